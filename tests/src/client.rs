//! Clients of the public interfaces: the admin socket, the TCP port and the Workload API, as strangers speak them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use svid_proto::spire::api::server::agent::v1 as agent;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

/// A gRPC channel over a Unix socket.
pub async fn unix(path: &Path) -> Channel {
    let path: PathBuf = path.to_owned();
    let connect = service_fn(move |_: Uri| {
        let path = path.clone();
        async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(connect).await.expect("connect")
}

/// Who a TLS client says it is: a chain in DER, leaf first, and the PKCS#8 key of its leaf.
pub struct ClientCert {
    /// Leaf first.
    pub chain: Vec<Vec<u8>>,
    /// PKCS#8 DER.
    pub key: Vec<u8>,
}

/// A TLS configuration that looks at nothing of the server: hostile callers do not care.
pub fn careless_tls(cert: Option<&ClientCert>) -> rustls::ClientConfig {
    crate::init();
    let builder = rustls::ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(careless::Careless));
    let mut config = match cert {
        None => builder.with_no_client_auth(),
        Some(cert) => {
            let chain = cert.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
            let key = PrivateKeyDer::Pkcs8(cert.key.clone().into());
            builder.with_client_auth_cert(chain, key).expect("a key of its certificate")
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// A gRPC channel over TLS to a server on this machine.
/// # Errors
/// Whatever connecting, the handshake or HTTP/2 say.
pub async fn tls(port: u16, config: rustls::ClientConfig) -> Result<Channel, tonic::transport::Error> {
    let config = Arc::new(config);
    let connect = service_fn(move |_: Uri| {
        let config = config.clone();
        async move {
            let tcp = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
            tcp.set_nodelay(true)?;
            let name = ServerName::try_from("spire-server").expect("a name");
            let tls = tokio_rustls::TlsConnector::from(config).connect(name, tcp).await?;
            Ok::<_, std::io::Error>(TokioIo::new(tls))
        }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(connect).await
}

/// An agent of the scenario's own: a key, and the SVID that attestation gave for it.
pub struct AttestedAgent {
    /// Certificate and key, as a TLS client.
    pub cert: ClientCert,
    /// The agent's SPIFFE ID.
    pub id: String,
}

/// Attests with a join token, as a stock agent does.
/// # Errors
/// The server's refusal.
pub async fn attest_by_token(port: u16, token: &str) -> Result<AttestedAgent, tonic::Status> {
    let channel =
        tls(port, careless_tls(None)).await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
    attest(channel, "join_token", token.as_bytes().to_vec()).await
}

/// Attests with a first payload that needs no challenge.
/// # Errors
/// The server's refusal.
pub async fn attest(channel: Channel, kind: &str, payload: Vec<u8>) -> Result<AttestedAgent, tonic::Status> {
    attest_with(channel, kind, payload, &key_and_csr()).await
}

/// Attests with a join token and a key of the caller's choice, with its CSR: whose answer got lost asks so again.
/// # Errors
/// The server's refusal.
pub async fn attest_by_token_with(
    port: u16,
    token: &str,
    key: &(Vec<u8>, Vec<u8>),
) -> Result<AttestedAgent, tonic::Status> {
    let channel =
        tls(port, careless_tls(None)).await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
    attest_with(channel, "join_token", token.as_bytes().to_vec(), key).await
}

async fn attest_with(
    channel: Channel,
    kind: &str,
    payload: Vec<u8>,
    (key, csr): &(Vec<u8>, Vec<u8>),
) -> Result<AttestedAgent, tonic::Status> {
    let (key, csr) = (key.clone(), csr.clone());
    let data = svid_proto::spire::api::types::AttestationData { r#type: kind.to_owned(), payload };
    let params = agent::attest_agent_request::Params {
        data: Some(data),
        params: Some(agent::AgentX509svidParams { csr }),
    };
    let request = agent::AttestAgentRequest { step: Some(agent::attest_agent_request::Step::Params(params)) };
    let mut answers = agent::agent_client::AgentClient::new(channel)
        .attest_agent(tokio_stream::once(request))
        .await?
        .into_inner();
    let answer = answers.message().await?.ok_or_else(|| tonic::Status::internal("no answer"))?;
    let Some(agent::attest_agent_response::Step::Result(result)) = answer.step else {
        return Err(tonic::Status::internal("not a result"));
    };
    let svid = result.svid.ok_or_else(|| tonic::Status::internal("no SVID"))?;
    let id = svid.id.map(|id| format!("spiffe://{}{}", id.trust_domain, id.path)).unwrap_or_default();
    Ok(AttestedAgent { cert: ClientCert { chain: svid.cert_chain, key }, id })
}

/// A fresh P-256 key in PKCS#8 and a CSR signed by it.
pub fn key_and_csr() -> (Vec<u8>, Vec<u8>) {
    let key = rcgen::KeyPair::generate().expect("key");
    let params = rcgen::CertificateParams::new(Vec::new()).expect("no names");
    let csr = params.serialize_request(&key).expect("csr");
    (key.serialize_der(), csr.der().to_vec())
}

pub use careless::Careless;

mod careless {
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use rustls::{DigitallySignedStruct, Error, SignatureScheme};

    #[derive(Debug)]
    /// Believes any server.
    pub struct Careless;

    impl ServerCertVerifier for Careless {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            rustls::crypto::aws_lc_rs::default_provider()
                .signature_verification_algorithms
                .supported_schemes()
        }
    }
}
