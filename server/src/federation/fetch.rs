//! One fetch of a bundle document. Whatever is at the other end, it costs a bounded time and a bounded memory.
//!
//! HTTPS only, straight to the URL's host: no redirect is followed, no proxy is used, nothing is remembered.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST, LOCATION, USER_AGENT,
};
use http::{HeaderMap, HeaderName, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use svid_core::bundle::document::{BundleDocument, DocumentError};
use svid_core::federation::{EndpointProfile, EndpointUrl, Relationship};
use svid_core::id::TrustDomain;
use svid_daemon::log::chain;
use svid_daemon::tls::{
    BundleSource, SpiffeServerVerifier, TlsError, TlsPolicy, WebVerifier, https_client_config,
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::task::AbortOnDropHandle;

use super::web_roots::{WebRoots, WebRootsError};

/// From the first look-up of the host to the last byte.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// To one address of the host.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest document that is taken. Every workload that federates with the partner gets what is in it, in one message with
/// its own bundle, so this is well below what a message may hold; SPIRE's own have a few kilobytes.
pub const MAX_FETCHED_BYTES: usize = 1024 * 1024;
/// Most authorities of a document. They are written in one transaction, which all other writes wait for.
const MAX_AUTHORITIES: usize = 500;
/// Longest `kid`.
const MAX_KEY_ID_BYTES: usize = 512;
/// All headers of the answer together.
const MAX_HEADER_BYTES: usize = 64 * 1024;
/// How much of an answer that is no bundle is shown.
const MAX_SHOWN_BYTES: usize = 200;

/// Why there is no bundle. The texts show what the endpoint sent only in quotes and cut short.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Nobody could say who answers.
    #[error(
        "can't perform SPIFFE Authentication: local copy of bundle not found: set that of {0} once with `bundle set`"
    )]
    NoBundle(TrustDomain),
    /// The system's authorities cannot be had.
    #[error("https_web needs the system's CA certificates")]
    WebRoots(#[from] WebRootsError),
    /// No TLS configuration.
    #[error("TLS cannot be set up")]
    Setup(#[source] TlsError),
    /// The host's name leads nowhere.
    #[error("unable to look up host {0:?}")]
    LookUp(String, #[source] io::Error),
    /// None of the host's addresses answers.
    #[error("unable to connect to {0}")]
    Connect(SocketAddr, #[source] io::Error),
    /// The server's certificate is not good enough.
    #[error("the endpoint's server was not believed: {0}")]
    Untrusted(String),
    /// The server does not speak TLS as we do.
    #[error("TLS handshake failed")]
    Handshake(#[source] io::Error),
    /// Not HTTP, or cut off.
    #[error("the endpoint's answer was not understood or ended early")]
    Http(#[source] hyper::Error),
    /// It leads elsewhere.
    #[error(
        "unexpected status {code} fetching bundle: redirects are not followed; configure the URL it leads to{}",
        quoted(" (", location, ")")
    )]
    Redirect {
        /// HTTP status.
        code: u16,
        /// Where to.
        location: String,
    },
    /// No success.
    #[error("unexpected status {code} fetching bundle{}", quoted(": ", body, ""))]
    Status {
        /// HTTP status.
        code: u16,
        /// How the answer begins.
        body: String,
    },
    /// More than a bundle may have.
    #[error("the bundle document is larger than {MAX_FETCHED_BYTES} bytes")]
    TooLarge,
    /// More keys than a trust domain has, or names of keys that are no names.
    #[error(
        "the bundle document has {found} authorities or a key id of more than {MAX_KEY_ID_BYTES} bytes; at most \
         {MAX_AUTHORITIES} authorities are taken"
    )]
    TooMany {
        /// How many authorities.
        found: usize,
    },
    /// Packed, although that was not asked for.
    #[error("the bundle document comes with an encoding that was not asked for: {0:?}")]
    Encoding(String),
    /// The body stopped before its end.
    #[error("the bundle document was cut short")]
    Cut(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// No bundle document.
    #[error("what the endpoint gave is no bundle document{}", quoted(" (Content-Type ", content_type, ")"))]
    Document {
        /// What it says it is.
        content_type: String,
        /// What is wrong with it.
        source: DocumentError,
    },
    /// Too slow, as a whole.
    #[error("no bundle within {} seconds: gave up {stage}", DEADLINE.as_secs())]
    Deadline {
        /// What was under way.
        stage: &'static str,
    },
}

fn quoted(before: &str, text: &str, after: &str) -> String {
    if text.is_empty() { String::new() } else { format!("{before}{text:?}{after}") }
}

fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_SHOWN_BYTES)]);
    text.trim().to_owned()
}

/// Fetches documents.
pub struct Fetcher {
    bundles: Arc<dyn BundleSource>,
    web_roots: WebRoots,
    policy: TlsPolicy,
}

impl Fetcher {
    /// Servers with SVIDs are checked against `bundles`.
    pub fn new(bundles: Arc<dyn BundleSource>, policy: TlsPolicy) -> Self {
        Self { bundles, web_roots: WebRoots::default(), policy }
    }

    /// Fetches the document of a relationship.
    /// # Errors
    /// [`FetchError`].
    pub async fn fetch(&self, relationship: &Relationship) -> Result<BundleDocument, FetchError> {
        let mut stage = "before anything was tried";
        let fetching = self.fetch_in_stages(relationship, &mut stage);
        match tokio::time::timeout(DEADLINE, fetching).await {
            Ok(fetched) => fetched,
            Err(_) => Err(FetchError::Deadline { stage }),
        }
    }

    async fn fetch_in_stages(
        &self,
        relationship: &Relationship,
        stage: &mut &'static str,
    ) -> Result<BundleDocument, FetchError> {
        let url = &relationship.url;
        let tls = self.tls(&relationship.profile).await?;
        *stage = "while connecting";
        let stream = connect(url).await?;
        *stage = "in the TLS handshake";
        let host = url.host().to_owned();
        let name =
            ServerName::try_from(host).map_err(|error| FetchError::Handshake(io::Error::other(error)))?;
        let connecting = TlsConnector::from(tls).connect(name, stream);
        let stream = connecting.await.map_err(not_shaken)?;
        *stage = "while waiting for an answer";
        let answer = ask(url, stream).await?;
        *stage = "while the answer came in";
        let (content_type, bytes) = read(answer).await?;
        let document = BundleDocument::parse(&relationship.trust_domain, &bytes)
            .map_err(|source| FetchError::Document { content_type, source })?;
        check_size(&document)?;
        Ok(document)
    }

    /// The configuration of a profile. One never stands in for the other.
    async fn tls(&self, profile: &EndpointProfile) -> Result<Arc<ClientConfig>, FetchError> {
        let made = match profile {
            EndpointProfile::Web => {
                let roots = self.web_roots.current().await?;
                let verifier = WebVerifier::new(roots, self.policy).map_err(FetchError::Setup)?;
                https_client_config(Arc::new(verifier), self.policy)
            }
            EndpointProfile::Spiffe(id) => {
                let trust_domain = id.trust_domain();
                if self.bundles.roots(&trust_domain).is_none() {
                    return Err(FetchError::NoBundle(trust_domain));
                }
                let verifier = SpiffeServerVerifier::exactly(id.clone(), Arc::clone(&self.bundles));
                https_client_config(Arc::new(verifier), self.policy)
            }
        };
        made.map_err(FetchError::Setup)
    }
}

/// Why there was no handshake: a refused certificate in the verifier's own words.
fn not_shaken(error: io::Error) -> FetchError {
    use rustls::{CertificateError, Error};
    let refused = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    let Some(Error::InvalidCertificate(refused)) = refused else { return FetchError::Handshake(error) };
    FetchError::Untrusted(match refused {
        CertificateError::Other(other) => chain(&*other.0),
        CertificateError::UnknownIssuer => TlsError::UnknownAuthority.to_string(),
        other => other.to_string(),
    })
}

fn check_size(document: &BundleDocument) -> Result<(), FetchError> {
    let bundle = &document.bundle;
    let found = bundle.x509_authorities.len() + bundle.jwt_authorities.len();
    let has_long_name = bundle.jwt_authorities.iter().any(|key| key.key_id.len() > MAX_KEY_ID_BYTES);
    if found > MAX_AUTHORITIES || has_long_name { Err(FetchError::TooMany { found }) } else { Ok(()) }
}

/// Tries the host's addresses in order.
async fn connect(url: &EndpointUrl) -> Result<TcpStream, FetchError> {
    let look_up = |error| FetchError::LookUp(url.host().to_owned(), error);
    let addresses = tokio::net::lookup_host((url.host(), url.port())).await.map_err(look_up)?;
    let mut last = look_up(io::Error::new(io::ErrorKind::NotFound, "it has no address"));
    for address in addresses {
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
        match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(stream) => {
                // Without it the request waits a moment; nothing more.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Err(error) => last = FetchError::Connect(address, error),
        }
    }
    Err(last)
}

/// Sends the request and reads the answer's head.
async fn ask(url: &EndpointUrl, stream: TlsStream<TcpStream>) -> Result<Answer, FetchError> {
    let mut builder = hyper::client::conn::http1::Builder::new();
    builder.max_buf_size(MAX_HEADER_BYTES);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(FetchError::Http)?;
    let request = Request::get(url.path_and_query())
        .header(HOST, url.authority())
        .header(USER_AGENT, concat!("svid-server/", env!("CARGO_PKG_VERSION")))
        .header(ACCEPT, "application/json")
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new());
    // The URL holds printable ASCII only, which every part of a request takes.
    let Ok(request) = request else {
        let odd = io::Error::new(io::ErrorKind::InvalidInput, "the URL's path cannot be asked for");
        return Err(FetchError::Handshake(odd));
    };
    let driving = AbortOnDropHandle::new(tokio::spawn(async move {
        // What ends it shows at the answer.
        let _ = connection.await;
    }));
    let (head, body) = sender.send_request(request).await.map_err(FetchError::Http)?.into_parts();
    Ok(Answer { head, body, _driving: driving })
}

/// An answer's head, and its body as it comes; the connection ends with it.
struct Answer {
    head: http::response::Parts,
    body: Incoming,
    _driving: AbortOnDropHandle<()>,
}

fn text(headers: &HeaderMap, name: HeaderName) -> String {
    headers.get(name).map(|value| shown(value.as_bytes())).unwrap_or_default()
}

/// Reads the body of a success, up to the limit; gives its type as well.
async fn read(answer: Answer) -> Result<(String, Bytes), FetchError> {
    let Answer { head, body, _driving } = answer;
    let headers = &head.headers;
    let code = head.status.as_u16();
    if head.status.is_redirection() {
        return Err(FetchError::Redirect { code, location: text(headers, LOCATION) });
    }
    if head.status != StatusCode::OK {
        let body = Limited::new(body, MAX_SHOWN_BYTES * 5).collect().await;
        let body = body.map(|body| shown(&body.to_bytes())).unwrap_or_default();
        return Err(FetchError::Status { code, body });
    }
    let encoding = text(headers, CONTENT_ENCODING);
    if !encoding.is_empty() && encoding != "identity" {
        return Err(FetchError::Encoding(encoding));
    }
    let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > MAX_FETCHED_BYTES as u64) {
        return Err(FetchError::TooLarge);
    }
    let content_type = text(headers, CONTENT_TYPE);
    match Limited::new(body, MAX_FETCHED_BYTES).collect().await {
        Ok(body) => Ok((content_type, body.to_bytes())),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(FetchError::TooLarge),
        Err(error) => Err(FetchError::Cut(error)),
    }
}
