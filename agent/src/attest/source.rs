//! The configured source of the first trust bundle.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use rustls::pki_types::ServerName;
use svid_core::bundle::document::BundleDocument;
use svid_core::id::TrustDomain;
use svid_core::pem;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::config::{Bootstrap, BundleFormat};

/// Largest bundle that is read, in bytes.
const MAX_BUNDLE: usize = 4 * 1024 * 1024;
/// SPIRE waits without an end; a source that hangs is asked again instead.
const TIMEOUT: Duration = Duration::from_secs(30);
const MAX_REDIRECTS: usize = 10;

/// Why there is no bundle.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The file cannot be read.
    #[error("could not parse trust bundle: cannot read {path}: {source}", path = .path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The download failed.
    #[error("unable to fetch trust bundle URL {url}: {message}")]
    Download {
        /// Which URL.
        url: String,
        /// What went wrong.
        message: String,
    },
    /// The content is no bundle.
    #[error("could not parse trust bundle: {0}")]
    Parse(String),
}

/// What the source on a Unix socket is told.
#[derive(Clone, Debug)]
pub struct SourceContext {
    /// The own trust domain.
    pub trust_domain: TrustDomain,
    /// The server's host.
    pub server_address: String,
    /// The server's port.
    pub server_port: u16,
    /// This agent had a bundle once.
    pub rebootstrap: bool,
    /// How often the source was asked, this time included.
    pub attempts: u32,
    /// When the search began.
    pub start: SystemTime,
}

/// Asks the source; `None` for an insecure bootstrap.
/// # Errors
/// [`SourceError`].
pub async fn fetch(
    bootstrap: &Bootstrap,
    context: &SourceContext,
) -> Result<Option<Vec<Vec<u8>>>, SourceError> {
    let (text, format) = match bootstrap {
        Bootstrap::Insecure => return Ok(None),
        Bootstrap::File { path, format } => {
            let failed = |source| SourceError::File { path: path.clone(), source };
            (tokio::fs::read(path).await.map_err(failed)?, *format)
        }
        Bootstrap::Url { url, unix_socket, format } => {
            let url = match unix_socket {
                Some(_) => with_context(url, context),
                None => url.clone(),
            };
            (download(&url, unix_socket.as_deref()).await?, *format)
        }
    };
    parse(&text, format, &context.trust_domain).map(Some)
}

fn parse(text: &[u8], format: BundleFormat, trust_domain: &TrustDomain) -> Result<Vec<Vec<u8>>, SourceError> {
    let ders = match format {
        BundleFormat::Pem => {
            pem::parse_certs_pem(text).map_err(|error| SourceError::Parse(error.to_string()))?
        }
        BundleFormat::Spiffe => {
            let document = BundleDocument::parse(trust_domain, text);
            let document = document.map_err(|error| SourceError::Parse(error.to_string()))?;
            document.bundle.x509_authorities.iter().map(|authority| authority.der().to_vec()).collect()
        }
    };
    if ders.is_empty() {
        return Err(SourceError::Parse("no certificates found in trust bundle".into()));
    }
    Ok(ders)
}

/// Adds the query parameters that tell a helper on the node what the agent is about.
fn with_context(url: &str, context: &SourceContext) -> String {
    let start = Timestamp::try_from(context.start).map(|at| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    let pairs = [
        ("spiffe-trust-domain", context.trust_domain.as_str().to_owned()),
        ("spire-attest-mode", if context.rebootstrap { "rebootstrap" } else { "bootstrap" }.to_owned()),
        ("spire-attest-start-time", start.unwrap_or_default()),
        ("spire-connection-attempts", context.attempts.to_string()),
        ("spire-server-address", context.server_address.clone()),
        ("spire-server-port", context.server_port.to_string()),
    ];
    let pairs: Vec<String> = pairs.iter().map(|(key, value)| format!("{key}={}", escape(value))).collect();
    let separator = if url.contains('?') { '&' } else { '?' };
    format!("{url}{separator}{}", pairs.join("&"))
}

fn escape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(byte.into()),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

async fn download(url: &str, socket: Option<&Path>) -> Result<Vec<u8>, SourceError> {
    let failed = |message: String| SourceError::Download { url: url.to_owned(), message };
    let slow = download_slowly(url, socket);
    tokio::time::timeout(TIMEOUT, slow).await.map_err(|_| failed("timed out".into()))?.map_err(failed)
}

async fn download_slowly(url: &str, socket: Option<&Path>) -> Result<Vec<u8>, String> {
    let mut url = url.to_owned();
    for _ in 0..MAX_REDIRECTS {
        let uri: http::Uri = url.parse().map_err(|error| format!("{error}"))?;
        let response = request(&uri, socket).await?;
        let status = response.status();
        if status.is_redirection() {
            let target = response.headers().get(http::header::LOCATION).and_then(|to| to.to_str().ok());
            url = redirect(&uri, target.ok_or("redirected to nowhere")?)?;
            continue;
        }
        if status != http::StatusCode::OK {
            return Err(format!("error downloading trust bundle: {status}"));
        }
        let body = Limited::new(response.into_body(), MAX_BUNDLE).collect().await;
        return Ok(body.map_err(|error| error.to_string())?.to_bytes().to_vec());
    }
    Err("too many redirects".into())
}

/// Where a redirect leads; never from TLS to plain text.
fn redirect(from: &http::Uri, to: &str) -> Result<String, String> {
    if to.starts_with('/') {
        let scheme = from.scheme_str().unwrap_or("https");
        let authority = from.authority().map(http::uri::Authority::as_str).unwrap_or_default();
        return Ok(format!("{scheme}://{authority}{to}"));
    }
    if from.scheme_str() == Some("https") && !to.starts_with("https://") {
        return Err(format!("refusing a redirect from https to {to:?}"));
    }
    Ok(to.to_owned())
}

async fn request(
    uri: &http::Uri,
    socket: Option<&Path>,
) -> Result<http::Response<hyper::body::Incoming>, String> {
    match socket {
        Some(path) => {
            let stream = UnixStream::connect(path).await;
            exchange(uri, stream.map_err(|error| format!("{}: {error}", path.display()))?).await
        }
        None => exchange(uri, tls(uri).await?).await,
    }
}

async fn tls(uri: &http::Uri) -> Result<tokio_rustls::client::TlsStream<TcpStream>, String> {
    let host = uri.host().ok_or("the URL has no host")?.trim_matches(['[', ']']).to_owned();
    let port = uri.port_u16().unwrap_or(443);
    let tcp = TcpStream::connect((host.as_str(), port)).await.map_err(|error| error.to_string())?;
    let name = ServerName::try_from(host).map_err(|error| error.to_string())?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(web_config()?));
    connector.connect(name, tcp).await.map_err(|error| error.to_string())
}

/// TLS for a web server: the system's roots, and the host name counts.
fn web_config() -> Result<rustls::ClientConfig, String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err("the system has no root certificates".into());
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config =
        builder.map_err(|error| error.to_string())?.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

async fn exchange<S>(uri: &http::Uri, stream: S) -> Result<http::Response<hyper::body::Incoming>, String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
    // Ends with the response's body; its error shows there as well.
    tokio::spawn(connection);
    let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let request = http::Request::get(path)
        .header(http::header::HOST, uri.authority().map_or("", http::uri::Authority::as_str))
        .header(http::header::USER_AGENT, "svid-agent")
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|error| error.to_string())?;
    sender.send_request(request).await.map_err(|error| error.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::TestCa;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn context() -> SourceContext {
        SourceContext {
            trust_domain: "example.org".parse().unwrap(),
            server_address: "s".into(),
            server_port: 8081,
            rebootstrap: false,
            attempts: 2,
            start: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        }
    }

    #[tokio::test]
    async fn files_in_both_formats() {
        let ca = TestCa::new("example.org");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bundle");
        let rows = [
            (BundleFormat::Pem, pem::certs_to_pem([ca.authority.cert_der()])),
            (BundleFormat::Spiffe, ca.bundle().to_document()),
        ];
        for (format, text) in rows {
            std::fs::write(&path, text).unwrap();
            let source = Bootstrap::File { path: path.clone(), format };
            assert_eq!(fetch(&source, &context()).await.unwrap().unwrap(), [ca.authority.cert_der()]);
        }
        std::fs::write(&path, "nothing").unwrap();
        let source = Bootstrap::File { path: path.clone(), format: BundleFormat::Pem };
        assert!(fetch(&source, &context()).await.is_err());
        assert!(fetch(&Bootstrap::Insecure, &context()).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_unix_socket_is_told_what_the_agent_is_about() {
        let ca = TestCa::new("example.org");
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let pem = pem::certs_to_pem([ca.authority.cert_der()]);
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let read = stream.read(&mut request).await.unwrap();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{pem}", pem.len());
            stream.write_all(head.as_bytes()).await.unwrap();
            String::from_utf8(request[..read].to_vec()).unwrap()
        });
        let source = Bootstrap::Url {
            url: "http://helper/bundle?x=1".into(),
            unix_socket: Some(socket),
            format: BundleFormat::Pem,
        };
        assert_eq!(fetch(&source, &context()).await.unwrap().unwrap().len(), 1);
        let request = server.await.unwrap();
        let want = "GET /bundle?x=1&spiffe-trust-domain=example.org&spire-attest-mode=bootstrap\
            &spire-attest-start-time=2023-11-14T22%3A13%3A20Z&spire-connection-attempts=2\
            &spire-server-address=s&spire-server-port=8081 HTTP/1.1\r\n";
        assert!(request.starts_with(want), "{request}");
    }

    #[test]
    fn redirects_stay_encrypted() {
        let from: http::Uri = "https://a/x".parse().unwrap();
        assert_eq!(redirect(&from, "/y").unwrap(), "https://a/y");
        assert_eq!(redirect(&from, "https://b/").unwrap(), "https://b/");
        assert!(redirect(&from, "http://b/").is_err());
    }
}
