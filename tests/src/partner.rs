//! A bundle endpoint of the scenario's own, which may be as bad as it likes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::pki::TestCert;

/// What the endpoint does with a request.
#[derive(Clone, Debug)]
pub enum Conduct {
    /// Gives this document.
    Document(String),
    /// Gives this answer, byte by byte as it stands, and closes.
    Raw(Vec<u8>),
    /// Begins like this and never comes to an end: the same bytes again and again, with pauses.
    Endless {
        /// At once.
        begin: Vec<u8>,
        /// Again and again.
        again: Vec<u8>,
        /// Before each time.
        pause: Duration,
    },
    /// Reads the request and says nothing.
    Silent,
    /// Takes the connection and does not shake hands.
    NoHandshake,
    /// Speaks something else than TLS.
    NoTls,
}

/// A running endpoint.
pub struct Partner {
    /// TCP port of the loopback address.
    pub port: u16,
    conduct: Arc<Mutex<Conduct>>,
    task: JoinHandle<()>,
}

impl Partner {
    /// Listens with this certificate.
    pub async fn start(cert: &TestCert, conduct: Conduct) -> Self {
        crate::init();
        let chain = vec![CertificateDer::from(cert.cert_der.clone())];
        let key = PrivateKeyDer::Pkcs8(cert.key_der.clone().into());
        let config = rustls::ServerConfig::builder().with_no_client_auth();
        let tls = TlsAcceptor::from(Arc::new(config.with_single_cert(chain, key).expect("a certificate")));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("bound").port();
        let conduct = Arc::new(Mutex::new(conduct));
        let current = conduct.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let conduct = current.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let tls = tls.clone();
                // What goes wrong here is what the scenario is about.
                tokio::spawn(async move { drop(serve(stream, tls, conduct).await) });
            }
        });
        Self { port, conduct, task }
    }

    /// Behaves so from the next connection on.
    pub fn turn(&self, conduct: Conduct) {
        *self.conduct.lock().unwrap_or_else(PoisonError::into_inner) = conduct;
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}/", self.port)
    }
}

impl Drop for Partner {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: TcpStream, tls: TlsAcceptor, conduct: Conduct) -> std::io::Result<()> {
    match conduct {
        Conduct::NoHandshake => std::future::pending().await,
        Conduct::NoTls => stream.write_all(b"220 mail.example ESMTP\r\n").await,
        conduct => answer(tls.accept(stream).await?, conduct).await,
    }
}

async fn answer(mut stream: TlsStream<TcpStream>, conduct: Conduct) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await?);
    }
    match conduct {
        Conduct::Document(document) => {
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                document.len()
            );
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(document.as_bytes()).await?;
        }
        Conduct::Raw(bytes) => stream.write_all(&bytes).await?,
        Conduct::Endless { begin, again, pause } => {
            stream.write_all(&begin).await?;
            loop {
                stream.flush().await?;
                tokio::time::sleep(pause).await;
                stream.write_all(&again).await?;
            }
        }
        Conduct::Silent => std::future::pending().await,
        Conduct::NoHandshake | Conduct::NoTls => {}
    }
    stream.shutdown().await
}

/// A bundle document with these X.509 roots (P-256, in DER) and this sequence number.
pub fn document(sequence: Option<u64>, roots: &[Vec<u8>]) -> String {
    let mut document = json!({ "keys": roots.iter().map(|der| root(der)).collect::<Vec<_>>(), "spiffe_refresh_hint": 86400 });
    if let Some(sequence) = sequence {
        document["spiffe_sequence"] = sequence.into();
    }
    document.to_string()
}

fn root(der: &[u8]) -> serde_json::Value {
    let (_, cert) = x509_parser::parse_x509_certificate(der).expect("a certificate");
    // An uncompressed point: 0x04, x, y.
    let point = cert.public_key().subject_public_key.data.to_vec();
    let [x, y] = [&point[1..33], &point[33..65]].map(|half| URL_SAFE_NO_PAD.encode(half));
    json!({ "use": "x509-svid", "kty": "EC", "crv": "P-256", "x": x, "y": y, "x5c": [STANDARD.encode(der)] })
}

/// Head and body of a resource over HTTPS on this machine, and the certificate that the server showed.
/// # Errors
/// Whatever connecting, TLS or reading say.
pub async fn https(port: u16, request: &str) -> std::io::Result<(String, String, Vec<u8>)> {
    let mut config = crate::client::careless_tls(None);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let name = rustls::pki_types::ServerName::try_from("localhost").expect("a name");
    let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let leaf = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).map(|der| der.to_vec());
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::InvalidData)?;
    Ok((head.to_owned(), body.to_owned(), leaf.unwrap_or_default()))
}
