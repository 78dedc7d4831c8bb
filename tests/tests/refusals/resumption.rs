//! A TLS session is never taken up again: a certificate that was good then may be worth nothing now.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustls::client::{ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::ServerName;
use rustls::{HandshakeKind, NamedGroup};
use svid_tests::calls::{attested, call};
use svid_tests::client::{AttestedAgent, careless_tls};
use svid_tests::{Server, init};
use tokio::net::TcpStream;

/// Counts what the server offers to resume.
#[derive(Debug, Default)]
struct Counting {
    tickets: AtomicUsize,
    sessions: AtomicUsize,
}

impl ClientSessionStore for Counting {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}
    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }
    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {
        self.sessions.fetch_add(1, Ordering::Relaxed);
    }
    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }
    fn remove_tls12_session(&self, _: &ServerName<'static>) {}
    fn insert_tls13_ticket(&self, _: ServerName<'static>, _: Tls13ClientSessionValue) {
        self.tickets.fetch_add(1, Ordering::Relaxed);
    }
    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        None
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_tickets_nor_session_ids_are_offered() {
    let server = Server::start().await;
    let (agent, _) = attested(&server).await;
    for cert in [None, Some(&agent.cert)] {
        let store = Arc::new(Counting::default());
        let mut config = careless_tls(cert);
        config.resumption = Resumption::store(store.clone());
        let channel = svid_tests::client::tls(server.port, config).await.expect("connect");
        // Whatever the server has to say after the handshake came before this answer.
        call(&channel, "/spire.api.server.bundle.v1.Bundle/GetBundle", &[]).await.expect("answered");
        assert_eq!(store.tickets.load(Ordering::Relaxed), 0);
        assert_eq!(store.sessions.load(Ordering::Relaxed), 0);
    }
}

/// Three connections with one configuration that would resume if it could.
async fn kinds(server: &Server, agent: &AttestedAgent, version: &'static rustls::SupportedProtocolVersion) {
    init();
    let with_all = careless_tls(Some(&agent.cert));
    let builder = rustls::ClientConfig::builder_with_protocol_versions(&[version])
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(svid_tests::client::Careless));
    let mut config = builder.with_client_cert_resolver(with_all.client_auth_cert_resolver.clone());
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    for _ in 0..3 {
        let tcp = TcpStream::connect(("127.0.0.1", server.port)).await.expect("connect");
        let name = ServerName::try_from("spire-server").expect("a name");
        let stream = connector.connect(name, tcp).await.expect("shake hands");
        let (_, connection) = stream.get_ref();
        let kind = connection.handshake_kind().expect("done");
        assert!(!matches!(kind, HandshakeKind::Resumed), "{version:?}: {kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_would_resume_shakes_hands_in_full() {
    let server = Server::start().await;
    let (agent, _) = attested(&server).await;
    kinds(&server, &agent, &rustls::version::TLS13).await;
    kinds(&server, &agent, &rustls::version::TLS12).await;
}

/// The same as seen by a TLS stack that is not ours.
#[tokio::test(flavor = "multi_thread")]
async fn openssl_finds_nothing_to_resume() {
    let server = Server::start().await;
    let port = server.port.to_string();
    for version in ["-tls1_2", "-tls1_3"] {
        let target = format!("127.0.0.1:{port}");
        let mut openssl = tokio::process::Command::new("openssl");
        openssl.args(["s_client", "-connect", &target, "-alpn", "h2", "-reconnect", version]);
        let output = openssl.stdin(std::process::Stdio::null()).kill_on_drop(true).output();
        let Ok(output) = tokio::time::timeout(svid_tests::PATIENCE, output).await.expect("ended") else {
            println!("skipped: openssl is not installed");
            return;
        };
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("New, TLSv1."), "{version}: {said}");
        assert!(!said.contains("Reused, TLSv1."), "{version}: {said}");
        assert!(!said.contains("TLS session ticket"), "{version}: {said}");
    }
}
