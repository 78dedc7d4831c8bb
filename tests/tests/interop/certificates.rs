//! Strict readers like the certificates of every authority that needs no foreign service.

use svid_tests::lint::{check_chain, pkilint};
use svid_tests::pki::TestCa;
use svid_tests::process::eventually;
use svid_tests::{Agent, Server, ServerOptions, interop};

async fn reads_well(options: ServerOptions, certs: usize) {
    let server = Server::start_with(options).await;
    let agent = Agent::join(&server).await;
    let more = ["-dns", "web.example.org"];
    server.entry("/web", &format!("unix:uid:{}", nix::unistd::geteuid()), &more).await;
    eventually(|| agent.cli(&["api", "fetch", "x509"])).await;
    let (chain, bundle) = agent.x509().await;
    assert_eq!((chain.len(), bundle.len()), (certs, 1));
    check_chain(&chain, &bundle).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn self_signed() {
    if interop("openssl and pkilint") && pkilint().is_some() {
        reads_well(ServerOptions::default(), 1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn below_a_ca_on_disk() {
    if !interop("openssl and pkilint") || pkilint().is_none() {
        return;
    }
    let dir = tempfile::TempDir::new().expect("a directory");
    let ca = TestCa::new("test root");
    let (cert, key) = (dir.path().join("ca.pem"), dir.path().join("ca-key.pem"));
    std::fs::write(&cert, ca.pem()).expect("write");
    std::fs::write(&key, ca.key_pem()).expect("write");
    let plugins = format!(
        r#"UpstreamAuthority "disk" {{ plugin_data {{ cert_file_path = "{}" key_file_path = "{}" }} }}"#,
        cert.display(),
        key.display()
    );
    reads_well(ServerOptions { plugins, ..ServerOptions::default() }, 2).await;
}
