//! An entry becomes a certificate at a waiting workload.

use std::time::Duration;

use spiffe::workload_api::WorkloadApiClient;
use svid_tests::process::eventually;
use svid_tests::{Agent, PATIENCE, Server};
use tokio_stream::StreamExt;

fn my_uid() -> String {
    format!("unix:uid:{}", nix::unistd::geteuid())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_reaches_a_waiting_workload_without_polling() {
    let server = Server::start().await;
    // With a poll this slow only the watch stream can be what brings the entry.
    let options = svid_tests::AgentOptions {
        agent: "experimental { sync_interval = \"1h\" }".into(),
        ..Default::default()
    };
    let agent = Agent::join_with(&server, options).await;
    let client = WorkloadApiClient::connect_to(agent.endpoint()).await.expect("connect");

    server.entry("/first", &my_uid(), &[]).await;
    // A workload that asks before its entry has arrived is told that it has no identity.
    eventually(|| agent.cli(&["api", "fetch", "x509"])).await;
    let mut updates = client.stream_x509_contexts().await.expect("a stream");
    let first = tokio::time::timeout(PATIENCE, updates.next())
        .await
        .expect("in time")
        .expect("open")
        .expect("an update");
    assert_eq!(first.default_svid().expect("an SVID").spiffe_id().to_string(), "spiffe://example.org/first");

    server.entry("/second", &my_uid(), &["-dns", "second.example.org"]).await;
    let second = async {
        loop {
            let update = updates.next().await.expect("open").expect("an update");
            if update.svids().len() == 2 {
                return update;
            }
        }
    };
    let update = tokio::time::timeout(PATIENCE, second).await.expect("in time");
    let ids: Vec<String> = update.svids().iter().map(|svid| svid.spiffe_id().to_string()).collect();
    assert!(ids.contains(&"spiffe://example.org/second".to_owned()), "{ids:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn jwt_svids_are_issued_and_validate() {
    let server = Server::start().await;
    let agent = Agent::join(&server).await;
    server.entry("/caller", &my_uid(), &[]).await;
    let fetched =
        eventually(|| agent.cli(&["api", "fetch", "jwt", "-audience", "billing", "-output", "json"])).await;
    let value: serde_json::Value = serde_json::from_str(&fetched).expect("JSON");
    let token = value[0]["svids"][0]["svid"].as_str().expect("a token");
    let valid = agent.cli(&["api", "validate", "jwt", "-audience", "billing", "-svid", token]).await.ok();
    assert!(valid.contains("SVID is valid."), "{valid}");
    let other = agent.cli(&["api", "validate", "jwt", "-audience", "payments", "-svid", token]).await;
    assert_ne!(other.code, 0);
    assert!(
        other.stderr.contains("not valid") || other.stdout.contains("not valid"),
        "{}{}",
        other.stdout,
        other.stderr
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_reaches_an_open_stream() {
    let server = Server::start().await;
    let agent = Agent::join(&server).await;
    server.entry("/short", &my_uid(), &["-x509SVIDTTL", "8"]).await;
    eventually(|| agent.cli(&["api", "fetch", "x509"])).await;
    let client = WorkloadApiClient::connect_to(agent.endpoint()).await.expect("connect");
    let mut updates = client.stream_x509_contexts().await.expect("a stream");
    let mut serials = std::collections::BTreeSet::new();
    let rotated = async {
        while serials.len() < 3 {
            let update = updates.next().await.expect("open").expect("an update");
            let svid = update.default_svid().expect("an SVID");
            let (_, cert) =
                x509_parser::parse_x509_certificate(svid.leaf().as_bytes()).expect("a certificate");
            serials.insert(cert.raw_serial().to_vec());
        }
    };
    tokio::time::timeout(Duration::from_secs(60), rotated).await.expect("three certificates in time");
}
