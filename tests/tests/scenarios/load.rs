//! The load generator's simulated agents: a few of them, so that a figure can be trusted to count what it says.

use serde_json::Value;
use svid_tests::Server;
use svid_tests::process::run;

/// Runs a measure against `server` and returns its report.
async fn measure(server: &Server, args: &[&str]) -> Value {
    let (address, socket) = (format!("127.0.0.1:{}", server.port), server.socket());
    let socket = socket.to_str().expect("UTF-8");
    let common = ["--server", &address, "--admin-socket", socket, "--output", "json"];
    let out = run("svid-load", &[args, &common].concat()).await.ok();
    serde_json::from_str(&out).expect("a report")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_connects_polls_watches_and_hears() {
    let server = Server::start().await;
    let dir = server.path().join("fleet");
    let dir = dir.to_str().expect("UTF-8");
    let made = measure(&server, &["fleet", "--dir", dir, "--agents", "4", "--entries", "3"]).await;
    assert_eq!(made["units"], 4, "{made}");

    for protocol in ["sync", "get", "watch"] {
        let storm = ["storm", "--dir", dir, "--protocol", protocol, "--svids", "--seconds", "60"];
        let storm = measure(&server, &storm).await;
        assert_eq!((&storm["units"], &storm["errors"]), (&Value::from(4), &serde_json::json!({})), "{storm}");
        let spread = ["spread", "--dir", dir, "--protocol", protocol, "--every", "0.2", "--rounds", "2"];
        let spread = measure(&server, &spread).await;
        assert_eq!(
            (&spread["units"], &spread["errors"]),
            (&Value::from(8), &serde_json::json!({})),
            "{spread}"
        );
    }
    let poll = measure(&server, &["poll", "--dir", dir, "--every", "0.2", "--seconds", "1"]).await;
    assert!(poll["units"].as_u64() > Some(0) && poll["errors"] == serde_json::json!({}), "{poll}");
}
