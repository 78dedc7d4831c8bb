//! Workloads that speak mTLS with what the `spiffe` crate gives them, and count how often that fails.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};
use spiffe::workload_api::WorkloadApiClient;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};
use tokio_stream::StreamExt as _;

use crate::{Agent, PATIENCE};

/// What a workload holds at one moment.
#[derive(Debug)]
pub struct Held {
    /// Its SPIFFE ID.
    pub id: String,
    /// Leaf first.
    pub chain: Vec<Vec<u8>>,
    /// PKCS#8.
    key: Vec<u8>,
    /// By trust domain, the own one and those that it federates with.
    pub roots: BTreeMap<String, Vec<Vec<u8>>>,
}

impl Held {
    /// The subject key ids, in hex, that a trust domain's bundle has for this workload; empty without one.
    pub fn root_ids(&self, trust_domain: &str) -> Vec<String> {
        let roots = self.roots.get(trust_domain).into_iter().flatten();
        roots.filter_map(|der| key_ids(der).0).collect()
    }

    /// The key id, in hex, of the authority that signed the SVID.
    pub fn authority(&self) -> String {
        self.chain.first().and_then(|leaf| key_ids(leaf).1).unwrap_or_default()
    }
}

/// Subject and authority key id of a certificate, in hex.
fn key_ids(der: &[u8]) -> (Option<String>, Option<String>) {
    use x509_parser::extensions::ParsedExtension;
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let (_, cert) = x509_parser::parse_x509_certificate(der).expect("a certificate");
    let mut ids = (None, None);
    for extension in cert.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => ids.0 = Some(hex(id.0)),
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                ids.1 = id.key_identifier.as_ref().map(|id| hex(id.0));
            }
            _ => {}
        }
    }
    ids
}

/// A workload with an open stream.
pub struct Workload {
    held: watch::Receiver<Option<Arc<Held>>>,
    task: AbortHandle,
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Workload {
    /// Follows the agent's stream as this process, and waits for its first SVID. What ends the stream is asked again.
    pub async fn follow(agent: &Agent) -> Arc<Self> {
        crate::init();
        let (send, held) = watch::channel(None);
        let endpoint = agent.endpoint();
        let task = tokio::spawn(async move {
            loop {
                if let Ok(client) = WorkloadApiClient::connect_to(&endpoint).await
                    && let Ok(mut updates) = client.stream_x509_contexts().await
                {
                    while let Some(Ok(update)) = updates.next().await {
                        send.send_replace(Some(Arc::new(read(&update))));
                    }
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        let workload = Arc::new(Self { held, task: task.abort_handle() });
        workload.when("an SVID", |_| true).await;
        workload
    }

    /// What it holds now.
    pub fn now(&self) -> Arc<Held> {
        self.held.borrow().clone().expect("followed")
    }

    /// Waits until what it holds is as wanted.
    pub async fn when(&self, what: &str, wanted: impl Fn(&Held) -> bool) -> Arc<Held> {
        let mut held = self.held.clone();
        let met = held.wait_for(|held| held.as_ref().is_some_and(|held| wanted(held)));
        let met = tokio::time::timeout(PATIENCE, met).await;
        let met = met.unwrap_or_else(|_| panic!("{what}: never came; it holds {:?}", self.held.borrow()));
        met.expect("the stream is followed").clone().expect("met")
    }

    /// Accepts mTLS connections and tells each peer who it is. The port.
    pub async fn serve(self: &Arc<Self>) -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let port = listener.local_addr().expect("bound").port();
        let this = Arc::downgrade(self);
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let Some(this) = this.upgrade() else { return };
                let held = this.now();
                tokio::spawn(async move {
                    let config = server_config(&held);
                    let Ok(mut tls) = tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(tcp).await
                    else {
                        return;
                    };
                    let peer = tls.get_ref().1.peer_certificates().and_then(|chain| uri(chain.first()?));
                    let _ = answer(&mut tls, &peer.unwrap_or_default()).await;
                });
            }
        });
        port
    }

    /// One handshake with a server. Who the server says this workload is.
    /// # Errors
    /// Why it failed, on either side.
    pub async fn shake(&self, port: u16) -> Result<String, String> {
        shake_as(&self.now(), port).await
    }

    /// Handshakes one after the other until `stop`: how many, and what failed.
    pub fn traffic(self: &Arc<Self>, port: u16, stop: &Arc<AtomicBool>) -> JoinHandle<(usize, Vec<String>)> {
        let (this, stop) = (Arc::clone(self), Arc::clone(stop));
        tokio::spawn(async move {
            let (mut count, mut failed) = (0, Vec::new());
            while !stop.load(Ordering::Relaxed) {
                count += 1;
                failed.extend(this.shake(port).await.err());
                // Not as fast as possible: two cores also run everything else.
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
            (count, failed)
        })
    }
}

/// Tells an HTTP client who it is, as the Envoys of the scenarios do.
async fn answer(
    tls: &mut tokio_rustls::server::TlsStream<tokio::net::TcpStream>,
    peer: &str,
) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(tls.read_u8().await?);
    }
    let answer = format!("HTTP/1.1 200 OK\r\nx-peer: {peer}\r\nconnection: close\r\n\r\n");
    tls.write_all(answer.as_bytes()).await?;
    tls.shutdown().await
}

/// One handshake with what somebody holds, who may be a stranger.
/// # Errors
/// Why it failed, on either side.
pub async fn shake_as(held: &Held, port: u16) -> Result<String, String> {
    let exchange = async {
        let tcp = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
        let name = ServerName::try_from("workload").expect("a name");
        let config = Arc::new(client_config(held));
        let mut tls = tokio_rustls::TlsConnector::from(config).connect(name, tcp).await?;
        let mut told = String::new();
        tls.write_all(b"GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").await?;
        // With TLS 1.3 it is here that the client hears of its own refusal.
        let mut piece = [0; 1024];
        while !told.contains("\r\n\r\n") {
            match tls.read(&mut piece).await? {
                0 => break,
                read => told += &String::from_utf8_lossy(&piece[..read]),
            }
        }
        let peer = told.lines().find_map(|line| line.strip_prefix("x-peer: ")).map(str::to_owned);
        peer.ok_or_else(|| std::io::Error::other(format!("not served: {told:?}")))
    };
    match tokio::time::timeout(PATIENCE, exchange).await {
        Ok(told) => told.map_err(|error| error.to_string()),
        Err(_) => Err("no answer".to_owned()),
    }
}

/// What a stranger holds: a chain and key of its own, and whom it believes.
pub fn stranger(chain: Vec<Vec<u8>>, key: Vec<u8>, roots: BTreeMap<String, Vec<Vec<u8>>>) -> Held {
    Held { id: String::new(), chain, key, roots }
}

fn read(update: &spiffe::X509Context) -> Held {
    let svid = update.default_svid().expect("an SVID");
    let bundles = update.bundle_set().iter();
    let ders = |bundle: &spiffe::X509Bundle| -> Vec<Vec<u8>> {
        bundle.authorities().iter().map(|cert| cert.as_bytes().to_vec()).collect()
    };
    Held {
        id: svid.spiffe_id().to_string(),
        chain: svid.cert_chain().iter().map(|cert| cert.as_bytes().to_vec()).collect(),
        key: svid.private_key().as_bytes().to_vec(),
        roots: bundles.map(|(name, bundle)| (name.to_string(), ders(bundle))).collect(),
    }
}

fn uri(leaf: &CertificateDer<'_>) -> Option<String> {
    let (_, cert) = x509_parser::parse_x509_certificate(leaf).ok()?;
    let names = cert.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        x509_parser::extensions::GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    })
}

fn identity(held: &Held) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = held.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    (chain, PrivateKeyDer::Pkcs8(held.key.clone().into()))
}

fn server_config(held: &Held) -> rustls::ServerConfig {
    let (chain, key) = identity(held);
    let builder = rustls::ServerConfig::builder().with_client_cert_verifier(Arc::new(Peers::of(held)));
    let mut config = builder.with_single_cert(chain, key).expect("a key of its certificate");
    config.send_tls13_tickets = 0;
    config
}

fn client_config(held: &Held) -> rustls::ClientConfig {
    let (chain, key) = identity(held);
    let builder = rustls::ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Peers::of(held)));
    builder.with_client_auth_cert(chain, key).expect("a key of its certificate")
}

/// Believes a peer whose chain leads to the bundle of the trust domain that it names.
#[derive(Debug)]
struct Peers(BTreeMap<String, Vec<Vec<u8>>>);

impl Peers {
    fn of(held: &Held) -> Self {
        Self(held.roots.clone())
    }

    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let id = uri(leaf).ok_or_else(|| Error::General("no SPIFFE ID".into()))?;
        let name = id.strip_prefix("spiffe://").and_then(|id| id.split('/').next()).unwrap_or_default();
        let roots = self.0.get(name).ok_or_else(|| Error::General(format!("no bundle of {name}")))?;
        let mut store = RootCertStore::empty();
        for der in roots {
            store.add(CertificateDer::from(der.clone()))?;
        }
        let verifier = rustls::server::WebPkiClientVerifier::builder(Arc::new(store)).build();
        let verifier = verifier.map_err(|error| Error::General(error.to_string()))?;
        verifier.verify_client_cert(leaf, rest, now).map(|_| ())
    }

    fn algorithms() -> rustls::crypto::WebPkiSupportedAlgorithms {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms
    }
}

impl ClientCertVerifier for Peers {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }
    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(leaf, rest, now).map(|()| ClientCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, cert, signed, &Self::algorithms())
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, signed, &Self::algorithms())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Self::algorithms().supported_schemes()
    }
}

impl rustls::client::danger::ServerCertVerifier for Peers {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, Error> {
        self.check(leaf, rest, now).map(|()| rustls::client::danger::ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, Error> {
        ClientCertVerifier::verify_tls12_signature(self, message, cert, signed)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, Error> {
        ClientCertVerifier::verify_tls13_signature(self, message, cert, signed)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Self::algorithms().supported_schemes()
    }
}
