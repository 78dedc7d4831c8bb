//! The x509pop node attestor: who has the key, and who only has the certificate.

use svid_tests::client::{careless_tls, tls};
use svid_tests::pki::{TestCa, TestCert};
use svid_tests::{Agent, AgentOptions, Server, ServerOptions, x509pop};
use tonic::{Code, Status};

/// A server that believes this CA, in a directory of the test.
pub async fn server(ca: &TestCa, dir: &std::path::Path, more: &str) -> Server {
    let path = dir.join("ca.pem");
    std::fs::write(&path, ca.pem()).expect("write");
    let plugins = format!(
        "NodeAttestor \"x509pop\" {{ plugin_data {{ ca_bundle_path = \"{}\" {more} }} }}",
        path.display()
    );
    Server::start_with(ServerOptions { plugins, ..Default::default() }).await
}

async fn attack(server: &Server, chain: &[&TestCert], key: &TestCert) -> Status {
    let channel = tls(server.port, careless_tls(None)).await.expect("connect");
    let chain: Vec<_> = chain.iter().map(|cert| cert.cert_der.clone()).collect();
    x509pop::attest(channel, &chain, &key.key_der).await.err().expect("refused")
}

#[tokio::test(flavor = "multi_thread")]
async fn who_lacks_key_or_certificate_is_refused() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (ca, foreign) = (TestCa::new("ours"), TestCa::new("theirs"));
    let server = server(&ca, dir.path(), "").await;
    let (good, other) = (ca.leaf("node", &[]), ca.leaf("other", &[]));
    let stranger = foreign.leaf("node", &[]);
    let expired = ca.expired_leaf("node", &[]);
    let cases = [
        ("another key", &good, &other, "challenge"),
        ("foreign CA", &stranger, &stranger, "certificate"),
        ("expired", &expired, &expired, "certificate"),
    ];
    for (what, cert, key, says) in cases {
        let status = attack(&server, &[cert], key).await;
        let refused =
            matches!(status.code(), Code::InvalidArgument | Code::PermissionDenied | Code::Unauthenticated);
        assert!(refused && status.message().contains(says), "{what}: {status}");
    }
    let many: Vec<&TestCert> = std::iter::once(&good).chain(std::iter::repeat_n(&other, 50)).collect();
    attack(&server, &many, &good).await;
    attack(&server, &[], &good).await;
    assert!(server.cli(&["agent", "count"]).await.ok().starts_with("0 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_holder_of_the_key_attests_and_attests_again() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let ca = TestCa::new("ours");
    let server = server(&ca, dir.path(), "").await;
    let node = ca.leaf("node", &[]);
    let mut ids = Vec::new();
    for _ in 0..2 {
        let channel = tls(server.port, careless_tls(None)).await.expect("connect");
        let agent = x509pop::attest(channel, std::slice::from_ref(&node.cert_der), &node.key_der).await;
        ids.push(agent.expect("attested").id);
    }
    assert!(ids[0].starts_with("spiffe://example.org/spire/agent/x509pop/"), "{ids:?}");
    assert_eq!(ids[0], ids[1]);
    let shown = server.cli(&["agent", "show", "-spiffeID", &ids[0]]).await.ok();
    assert!(shown.contains("x509pop:subject:cn:node"), "{shown}");
    // A banned one stays out, whatever it proves.
    server.cli(&["agent", "ban", "-spiffeID", &ids[0]]).await.ok();
    let channel = tls(server.port, careless_tls(None)).await.expect("connect");
    let status = x509pop::attest(channel, &[node.cert_der], &node.key_der).await.err().expect("banned");
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_from_the_certificate_cannot_climb() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let ca = TestCa::new("ours");
    let server = server(&ca, dir.path(), "agent_path_template = \"/cn/{{ .Subject.CommonName }}\"").await;
    for name in ["..", "a/b", "../admin", ""] {
        let node = ca.leaf(name, &[]);
        let status = attack(&server, &[&node], &node).await;
        assert_ne!(status.code(), Code::Ok, "{name:?}");
    }
    let node = ca.leaf("web-1", &[]);
    let channel = tls(server.port, careless_tls(None)).await.expect("connect");
    let agent = x509pop::attest(channel, &[node.cert_der], &node.key_der).await.expect("attested");
    assert_eq!(agent.id, "spiffe://example.org/spire/agent/cn/web-1");
}

/// The agent's half of the plugin.
pub fn agent_options(node: &TestCert, dir: &std::path::Path) -> AgentOptions {
    let (cert, key) = (dir.join("node.pem"), dir.join("node.key"));
    std::fs::write(&cert, &node.cert_pem).expect("write");
    std::fs::write(&key, &node.key_pem).expect("write");
    let node_attestor = format!(
        "NodeAttestor \"x509pop\" {{ plugin_data {{ certificate_path = \"{}\" private_key_path = \"{}\" }} }}",
        cert.display(),
        key.display()
    );
    AgentOptions { node_attestor, ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_agent_attests_by_key() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let ca = TestCa::new("ours");
    let server = server(&ca, dir.path(), "").await;
    let mut agent = Agent::prepare(&server, agent_options(&ca.leaf("node", &[]), dir.path())).await;
    agent.start_with(&[]).await;
    agent.process().wait_for("Node attestation was successful").await;
    // With another key it never gets there.
    let other = tempfile::tempdir().expect("temporary directory");
    let mut wrong = ca.leaf("wrong", &[]);
    wrong.key_pem = ca.leaf("other", &[]).key_pem;
    let liar = Agent::prepare(&server, agent_options(&wrong, other.path())).await;
    let (code, log) = liar.launch(&[]).end().await;
    assert_eq!(code, 1, "{log}");
}
