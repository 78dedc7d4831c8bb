//! What operators see: health, metrics, the audit log, the log file.

use nix::sys::signal::Signal;
use svid_tests::calls::http_get;
use svid_tests::{Agent, AgentOptions, Server, ServerOptions, free_port, until};

use crate::my_uid;

fn health(port: u16) -> String {
    format!(
        "health_checks {{ listener_enabled = true bind_address = \"127.0.0.1\" bind_port = \"{port}\" \
         live_path = \"/live\" ready_path = \"/ready\" }}\n"
    )
}

fn prometheus(port: u16) -> String {
    format!("telemetry {{ Prometheus {{ host = \"127.0.0.1\" port = {port} }} }}\n")
}

async fn is_well(port: u16, path: &str) {
    until(path, || async { http_get(port, path).await.is_some_and(|(status, _)| status == 200) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_halves_say_how_they_are() {
    let (servers, agents) = (free_port(), free_port());
    let server = Server::start_with(ServerOptions { top: health(servers), ..Default::default() }).await;
    let _agent = Agent::join_with(&server, AgentOptions { top: health(agents), ..Default::default() }).await;
    for path in ["/live", "/ready"] {
        is_well(servers, path).await;
        is_well(agents, path).await;
    }
    let (_, body) = http_get(servers, "/ready").await.expect("answered");
    let body: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    for check in ["server", "server.ca", "server.ca.rotator", "catalog.datastore"] {
        assert!(body.get(check).is_some(), "{check} is not in {body}");
    }
    let (_, body) = http_get(agents, "/live").await.expect("answered");
    assert!(body.contains("\"agent\""), "{body}");
    let (status, _) = http_get(servers, "/other").await.expect("answered");
    assert_eq!(status, 404);
}

/// The names without their labels.
async fn has_metrics(port: u16, names: &[&str]) {
    let missing = || async {
        let text = http_get(port, "/metrics").await.map(|(_, body)| body).unwrap_or_default();
        let has = |name: &&&str| {
            text.lines().any(|line| line.split(['{', ' ']).next() == Some(**name) && !line.starts_with('#'))
        };
        names.iter().filter(|name| !has(name)).map(|name| (*name).to_owned()).collect::<Vec<_>>()
    };
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(15);
    let mut ticks = tokio::time::interval(std::time::Duration::from_millis(50));
    loop {
        let missing = missing().await;
        if missing.is_empty() {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "missing: {missing:?}");
        ticks.tick().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_have_their_names() {
    let (servers, agents) = (free_port(), free_port());
    let server = Server::start_with(ServerOptions { top: prometheus(servers), ..Default::default() }).await;
    let agent =
        Agent::join_with(&server, AgentOptions { top: prometheus(agents), ..Default::default() }).await;
    server.entry("/web", &my_uid(), &[]).await;
    until("an SVID", || async { agent.cli(&["api", "fetch", "x509"]).await.code == 0 }).await;
    let of_server = [
        "spire_server_started",
        "spire_server_uptime_in_ms",
        "spire_server_rpc_agent_v1_agent_attest_agent",
        "spire_server_rpc_agent_v1_agent_attest_agent_elapsed_time_count",
        "spire_server_rpc_entry_v1_entry_batch_create_entry",
        "spire_server_rpc_svid_v1_svid_batch_new_x509svid",
    ];
    has_metrics(servers, &of_server).await;
    let of_agent = [
        "spire_agent_started",
        "spire_agent_uptime_in_ms",
        "spire_agent_sync_entries_total",
        "spire_agent_sync_bundles_total",
        "spire_agent_manager_sync_fetch_entries_updates",
    ];
    has_metrics(agents, &of_agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_access_is_in_the_audit_log() {
    let options = ServerOptions { server: "audit_log_enabled = true".into(), ..Default::default() };
    let mut server = Server::start_with(options).await;
    server.entry("/web", "unix:uid:1", &[]).await;
    let line = server.process().wait_for("method=BatchCreateEntry").await;
    let uid = format!("caller_uid={}", nix::unistd::geteuid());
    let fields = [
        "msg=\"API accessed\"",
        "type=audit",
        "status=success",
        "authorized_as=local",
        "request_id=",
        "method=BatchCreateEntry",
        "service=entry.v1.Entry",
        &uid,
        "caller_path=",
        "spiffe_id=\"spiffe://example.org/web\"",
    ];
    for field in fields {
        assert!(line.contains(field), "{field} is not in {line}");
    }
    // A refusal is there too, with where it came from.
    let nobody =
        svid_tests::client::tls(server.port, svid_tests::client::careless_tls(None)).await.expect("connect");
    let refused = svid_tests::calls::call(&nobody, "/spire.api.server.agent.v1.Agent/ListAgents", &[]).await;
    assert!(refused.is_err());
    let line = server.process().wait_for("status_message=\"authorization denied for method").await;
    for field in
        ["status=error", "status_code=PermissionDenied", "caller_addr=", "type=audit", "method=ListAgents"]
    {
        assert!(line.contains(field), "{field} is not in {line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn issued_svids_are_in_the_log() {
    let mut server = Server::start().await;
    let agent = Agent::join(&server).await;
    let id = server.entry("/web", &my_uid(), &[]).await;
    until("an SVID", || async { agent.cli(&["api", "fetch", "x509"]).await.code == 0 }).await;
    let line = server.process().wait_for(&format!("entry_id={id}")).await;
    let fields = [
        "msg=\"Signed X509 SVID\"",
        "spiffe_id=\"spiffe://example.org/web\"",
        &format!("entry_id={id}"),
        "serial_num=",
        "agent_id=",
        "expiration=",
    ];
    for field in fields {
        assert!(line.contains(field), "{field} is not in {line}");
    }
}

async fn reopens(pid_signal: impl Fn(), log: &std::path::Path) {
    let has_lines = |path: std::path::PathBuf| async move {
        std::fs::read_to_string(path).is_ok_and(|text| text.contains("level="))
    };
    until("a log file", || has_lines(log.to_owned())).await;
    let old = log.with_extension("1");
    std::fs::rename(log, &old).expect("rename");
    pid_signal();
    until("a new log file", || async { log.exists() }).await;
    assert!(old.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_file_is_opened_again() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let log = dir.path().join("server.log");
    let server = Server::prepare(&ServerOptions {
        server: format!("log_file = \"{}\"", log.display()),
        ..Default::default()
    });
    let process = server.launch();
    until("the socket", || async { server.socket().exists() }).await;
    reopens(|| process.signal(Signal::SIGUSR2), &log).await;
    server.cli(&["agent", "ban", "-spiffeID", "spiffe://example.org/spire/agent/x"]).await;
    until("a line in the new file", || async {
        std::fs::read_to_string(&log).is_ok_and(|text| !text.is_empty())
    })
    .await;
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agents_log_file_is_opened_again() {
    let server = Server::start().await;
    let dir = tempfile::tempdir().expect("temporary directory");
    let log = dir.path().join("agent.log");
    let options = AgentOptions { agent: format!("log_file = \"{}\"", log.display()), ..Default::default() };
    let agent = Agent::prepare(&server, options).await;
    let token = server.token().await;
    let process = agent.launch(&["-joinToken", &token]);
    until("the socket", || async { agent.socket().exists() }).await;
    reopens(|| process.signal(Signal::SIGUSR2), &log).await;
    process.stop().await;
}
