//! Certificates that prove nothing.

use std::sync::Arc;

use rustls::client::ResolvesClientCert;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, SignatureScheme};
use svid_proto::spire::api::types::permission_denied_details::Reason;
use svid_tests::calls::{attested, call, mint, reason};
use svid_tests::client::{ClientCert, careless_tls, tls};
use svid_tests::pki::TestCa;
use svid_tests::{Agent, AgentOptions, PATIENCE, Server};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tonic::Code;

const SYNC: &str = "/spire.api.server.entry.v1.Entry/GetAuthorizedEntries";

/// Shakes hands and returns why the server broke it off; panics if it did not.
async fn refused(server: &Server, config: ClientConfig) -> String {
    let tcp = TcpStream::connect(("127.0.0.1", server.port)).await.expect("connect");
    let name = ServerName::try_from("spire-server").expect("a name");
    let mut stream = match tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await {
        Ok(stream) => stream,
        Err(error) => return error.to_string(),
    };
    // In TLS 1.3 the client is done before the server has looked at its certificate.
    let _ = stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
    let mut byte = [0u8; 1];
    let read = tokio::time::timeout(PATIENCE, stream.read(&mut byte)).await.expect("an answer");
    read.map(|bytes| panic!("the server went on and sent {bytes} bytes")).expect_err("refused").to_string()
}

/// Shows certificates with any key.
#[derive(Debug)]
struct Mismatched(Arc<CertifiedKey>);

impl ResolvesClientCert for Mismatched {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
    fn has_certs(&self) -> bool {
        true
    }
}

fn with_another_key(cert: &ClientCert) -> ClientConfig {
    let other = rcgen::KeyPair::generate().expect("key").serialize_der();
    let key = PrivateKeyDer::Pkcs8(other.into());
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).expect("a key");
    let chain = cert.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    let mut config = careless_tls(None);
    config.client_auth_cert_resolver = Arc::new(Mismatched(Arc::new(CertifiedKey::new(chain, key))));
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_certificate_with_another_key() {
    let server = Server::start().await;
    let (agent, channel) = attested(&server).await;
    call(&channel, SYNC, &[]).await.expect("the honest one is answered");
    let why = refused(&server, with_another_key(&agent.cert)).await;
    assert!(why.contains("alert") || why.contains("Alert"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_another_ca_that_names_our_agent() {
    let server = Server::start().await;
    let (agent, _) = attested(&server).await;
    let foreign = TestCa::new("foreign");
    for id in [agent.id.as_str(), "spiffe://example.org/spire/server", "spiffe://example.org/admin"] {
        let why = refused(&server, careless_tls(Some(&foreign.leaf("x", &[id]).client()))).await;
        assert!(why.contains("alert") || why.contains("Alert"), "{id}: {why}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_federated_ca_that_names_our_trust_domain() {
    let server = Server::start().await;
    let (agent, _) = attested(&server).await;
    let foreign = TestCa::new("foreign");
    let path = server.path().join("foreign.pem");
    std::fs::write(&path, foreign.pem()).expect("write");
    let path = path.display().to_string();
    server.cli(&["bundle", "set", "-id", "spiffe://foreign.test", "-path", &path]).await.ok();
    let why = refused(&server, careless_tls(Some(&foreign.leaf("x", &[&agent.id]).client()))).await;
    assert!(why.contains("alert") || why.contains("Alert"), "{why}");
    // Two names, one of each: no SVID at all.
    let both = foreign.leaf("x", &["spiffe://foreign.test/x", &agent.id]).client();
    refused(&server, careless_tls(Some(&both))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_leaves_of_our_own_names() {
    let server = Server::start().await;
    let foreign = TestCa::new("foreign");
    for uris in [&[][..], &["https://example.org/x"], &["spiffe://example.org/a", "spiffe://example.org/b"]] {
        refused(&server, careless_tls(Some(&foreign.leaf("x", uris).client()))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_posing_as_an_agent() {
    let server = Server::start().await;
    let workload = mint(&server, "/web").await;
    let channel = tls(server.port, careless_tls(Some(&workload))).await.expect("a valid SVID");
    let status = call(&channel, SYNC, &[]).await.expect_err("no agent");
    assert_eq!((status.code(), reason(&status)), (Code::PermissionDenied, Some(Reason::AgentNotAttested)));
}

/// A server that everything is right with but its name.
async fn impostor(cert: ClientCert) -> (u16, tokio::task::JoinHandle<Vec<std::io::Result<usize>>>) {
    let chain = cert.chain.into_iter().map(CertificateDer::from).collect();
    let key = PrivateKeyDer::Pkcs8(cert.key.into());
    let config = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key);
    let mut config = config.expect("key and certificate");
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let port = listener.local_addr().expect("bound").port();
    let serve = async move {
        let mut ends = Vec::new();
        while ends.len() < 3 {
            let (tcp, _) = listener.accept().await.expect("accept");
            ends.push(match acceptor.accept(tcp).await {
                Ok(mut stream) => stream.read(&mut [0u8; 1024]).await,
                Err(error) => Err(error),
            });
        }
        ends
    };
    (port, tokio::spawn(serve))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_posing_as_the_server() {
    let mut server = Server::start().await;
    let token = server.token().await;
    let agent = Agent::prepare(&server, AgentOptions::default()).await;
    let honest = server.port;
    let (port, impostor) = impostor(mint(&server, "/web").await).await;
    server.port = port;
    agent.write_config(&server);
    let mut process = agent.launch(&["-joinToken", &token]);
    let ends = tokio::time::timeout(PATIENCE, impostor).await.expect("the agent came").expect("served");
    for end in ends {
        let why = end.expect_err("the agent sent something to an impostor").to_string();
        assert!(why.contains("alert") || why.contains("Alert"), "{why}");
    }
    process.wait_for("unexpected ID").await;
    process.kill().await;
    // The token was not spent on it.
    server.port = honest;
    svid_tests::client::attest_by_token(server.port, &token).await.expect("still good");
}
