//! What entries do: expiry, updates, deletion, duplicates, the same answer after kill -9.

use spiffe::workload_api::WorkloadApiClient;
use svid_tests::process::eventually;
use svid_tests::{Agent, PATIENCE, Server};
use tokio_stream::StreamExt;

fn my_uid() -> String {
    format!("unix:uid:{}", nix::unistd::geteuid())
}

fn unix_now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_entry_is_withdrawn_by_itself_and_no_svid_outlives_it() {
    let server = Server::start().await;
    let agent = Agent::join(&server).await;
    let end = unix_now() + 6;
    server.entry("/guest", &my_uid(), &["-entryExpiry", &end.to_string()]).await;
    eventually(|| agent.cli(&["api", "fetch", "x509"])).await;
    let client = WorkloadApiClient::connect_to(agent.endpoint()).await.expect("connect");
    let mut updates = client.stream_x509_contexts().await.expect("a stream");
    let first = tokio::time::timeout(PATIENCE, updates.next())
        .await
        .expect("in time")
        .expect("open")
        .expect("an SVID");
    let leaf = first.default_svid().expect("an SVID").leaf().as_bytes().to_vec();
    let (_, cert) = x509_parser::parse_x509_certificate(&leaf).expect("a certificate");
    assert!(cert.validity().not_after.timestamp() <= i64::try_from(end).expect("fits"));
    // The stream ends with PermissionDenied once the only identity is gone.
    let ended = async { while let Some(Ok(_)) = updates.next().await {} };
    tokio::time::timeout(PATIENCE, ended).await.expect("withdrawn");
    assert!(unix_now() >= end, "not before its time");
    let out = agent.cli(&["api", "fetch", "x509"]).await;
    assert_ne!(out.code, 0);
    assert!(out.stderr.contains("no identity issued"), "{}{}", out.stdout, out.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_entry_is_gone_from_an_open_stream() {
    let server = Server::start().await;
    let agent = Agent::join(&server).await;
    let id = server.entry("/gone", &my_uid(), &[]).await;
    eventually(|| agent.cli(&["api", "fetch", "x509"])).await;
    let client = WorkloadApiClient::connect_to(agent.endpoint()).await.expect("connect");
    let mut updates = client.stream_x509_contexts().await.expect("a stream");
    assert!(updates.next().await.expect("open").is_ok());
    server.cli(&["entry", "delete", "-entryID", &id]).await.ok();
    let ended = async { while let Some(Ok(_)) = updates.next().await {} };
    tokio::time::timeout(PATIENCE, ended).await.expect("withdrawn");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_duplicate_is_refused_and_named() {
    let server = Server::start().await;
    let id = server.entry("/web", "unix:uid:1", &[]).await;
    let parent = server.id("/host");
    let args = [
        "entry",
        "create",
        "-parentID",
        &parent,
        "-spiffeID",
        "spiffe://example.org/web",
        "-selector",
        "unix:uid:1",
    ];
    let again = server.cli(&args).await;
    assert_eq!(again.code, 1);
    assert!(again.stderr.contains("AlreadyExists"), "{}{}", again.stdout, again.stderr);
    let shown = server.cli(&["entry", "show", "-entryID", &id]).await.ok();
    assert!(shown.contains("Found 1 entry"), "{shown}");
}
