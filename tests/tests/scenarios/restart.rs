//! kill -9 loses nothing that was acknowledged, and both halves go on from what is on disk.

use svid_tests::process::eventually;
use svid_tests::{Agent, Server};

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_keeps_every_acknowledged_entry_and_its_authority() {
    let mut server = Server::start().await;
    let mut ids = Vec::new();
    for n in 0..20 {
        ids.push(server.entry(&format!("/web-{n}"), "unix:uid:1", &[]).await);
    }
    let bundle = server.bundle_pem().await;
    server.kill().await;
    server.restart().await;
    let shown = server.cli(&["entry", "show"]).await.ok();
    for id in &ids {
        assert!(shown.contains(id), "{id} was acknowledged and is gone");
    }
    assert_eq!(server.bundle_pem().await, bundle, "the same authority");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_goes_on_with_its_stored_svid() {
    let mut server = Server::start().await;
    let mut agent = Agent::join(&server).await;
    let uid = format!("unix:uid:{}", nix::unistd::geteuid());
    server.entry("/web", &uid, &[]).await;
    eventually(|| agent.cli(&["api", "fetch", "x509"])).await;
    agent.kill().await;
    server.kill().await;
    server.restart().await;
    // No token: only the stored SVID can be what it comes back with.
    agent.start_with(&[]).await;
    agent.process().wait_for("SVID loaded").await;
    eventually(|| agent.cli(&["api", "fetch", "x509"])).await;
}
