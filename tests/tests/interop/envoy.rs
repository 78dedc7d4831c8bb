//! Two real Envoys speak mTLS with SPIFFE IDs from our SDS socket, through rotations.

use std::time::Duration;

use svid_tests::envoy::Envoy;
use svid_tests::{Agent, AgentOptions, PATIENCE, Server, free_port, interop};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

struct Pair {
    server: Server,
    agent: Agent,
    backend: Envoy,
    frontend: Envoy,
    port: u16,
}

/// Both Envoys with their entries, from the configuration files that the quickstart uses.
async fn pair(change: impl Fn(String) -> String) -> Pair {
    let server = Server::start().await;
    let unix = "discover_workload_path = true workload_size_limit = -1".to_owned();
    let agent = Agent::join_with(&server, AgentOptions { unix, ..Default::default() }).await;
    let (mut backend, mut frontend) =
        (Envoy::prepare().expect("SVID_TEST_ENVOY"), Envoy::prepare().expect("SVID_TEST_ENVOY"));
    for (path, envoy) in [("/backend", &backend), ("/frontend", &frontend)] {
        server.entry(path, &format!("unix:path:{}", envoy.program().display()), &[]).await;
    }
    let (backend_port, port) = (free_port(), free_port());
    let fill = |template: &str| {
        let text = template
            .replace("@WORK@/agent.sock", &agent.socket().display().to_string())
            .replace("@BACKEND_PORT@", &backend_port.to_string())
            .replace("@FRONTEND_PORT@", &port.to_string());
        change(text)
    };
    backend.start(&fill(include_str!("../../../deploy/quickstart/backend-envoy.yaml")));
    frontend.start(&fill(include_str!("../../../deploy/quickstart/frontend-envoy.yaml")));
    Pair { server, agent, backend, frontend, port }
}

/// One HTTP request; the status line and headers, or nothing when the connection failed.
async fn ask(port: u16) -> Option<String> {
    let exchange = async {
        let mut tcp = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        tcp.write_all(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").await.ok()?;
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    };
    tokio::time::timeout(Duration::from_secs(10), exchange).await.ok().flatten()
}

fn header<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

/// Asks until an answer satisfies `good`.
async fn until(port: u16, what: &str, good: impl Fn(&str) -> bool) -> String {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut last = String::new();
    while tokio::time::Instant::now() < deadline {
        if let Some(answer) = ask(port).await {
            if good(&answer) {
                return answer;
            }
            last = answer;
        }
        tokio::task::yield_now().await;
    }
    panic!("{what}; the last answer was {last:?}");
}

async fn mtls_through_a_rotation(change: impl Fn(String) -> String) {
    let pair = pair(change).await;
    let first = until(pair.port, "no mTLS", |answer| answer.starts_with("HTTP/1.1 200")).await;
    assert_eq!(header(&first, "x-peer"), Some("spiffe://example.org/frontend"));
    let serial = header(&first, "x-peer-serial").expect("a serial").to_owned();

    let prepared = pair.server.cli(&["localauthority", "x509", "prepare"]).await.ok();
    let id = prepared
        .lines()
        .find_map(|line| line.trim().strip_prefix("Authority ID: "))
        .expect("an authority")
        .to_owned();
    pair.server.cli(&["localauthority", "x509", "activate", "-authorityID", &id]).await.ok();
    for (path, envoy) in [("/backend", &pair.backend), ("/frontend", &pair.frontend)] {
        let spiffe_id = pair.server.id(path);
        let shown = pair.server.cli(&["entry", "show", "-spiffeID", &spiffe_id]).await.ok();
        let entry = shown.lines().find_map(|line| line.strip_prefix("Entry ID")).expect("an entry");
        let entry = entry.split_once(": ").expect("a value").1.trim();
        let (parent, selector) =
            (pair.server.id("/host"), format!("unix:path:{}", envoy.program().display()));
        let args = [
            "entry",
            "update",
            "-entryID",
            entry,
            "-parentID",
            &parent,
            "-spiffeID",
            &spiffe_id,
            "-selector",
            &selector,
        ];
        pair.server.cli(&args).await.ok();
    }
    let rotated = |answer: &str| header(answer, "x-peer-serial").is_some_and(|new| new != serial);
    let second = until(pair.port, "no new certificate", rotated).await;
    assert!(second.starts_with("HTTP/1.1 200"), "{second}");
    drop((pair.frontend, pair.agent));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_envoys_speak_mtls_and_follow_a_rotation() {
    if interop("Envoy over StreamSecrets") {
        mtls_through_a_rotation(|text| text).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_over_delta() {
    if interop("Envoy over DeltaSecrets") {
        mtls_through_a_rotation(|text| text.replace("api_type: GRPC", "api_type: DELTA_GRPC")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn spires_default_names_work() {
    if interop("Envoy with default and ROOTCA") {
        let names = |text: String| {
            text.replace("name: \"spiffe://example.org/backend\"\n", "name: default\n")
                .replace("name: \"spiffe://example.org/frontend\"\n", "name: default\n")
                .replace("{name: \"spiffe://example.org\",", "{name: ROOTCA,")
        };
        mtls_through_a_rotation(names).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_with_another_identity_is_refused() {
    if !interop("Envoy with the wrong peer") {
        return;
    }
    // The backend accepts somebody else only, so the frontend's certificate must not get through.
    let strangers = |text: String| {
        text.replace("exact: \"spiffe://example.org/frontend\"", "exact: \"spiffe://example.org/other\"")
    };
    let pair = pair(strangers).await;
    let answer = until(pair.port, "no answer at all", |answer| answer.starts_with("HTTP/1.1 503")).await;
    assert_eq!(header(&answer, "x-peer"), None);
}
