//! Agents that outlive an outage: what they serve after a restart while no server answers, and what they do not.

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::process::Stdio;

use nix::sys::signal::Signal;
use svid_proto::envoy::service::discovery::v3::DiscoveryRequest;
use svid_proto::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use svid_tests::calls::{fetch_x509, http_get};
use svid_tests::client::unix;
use svid_tests::process::{Process, bin, run};
use svid_tests::{Agent, AgentOptions, Server, ServerOptions, free_port, until};
use tokio::process::Command;

use crate::{KeyedNode, my_uid};

/// The exit code of an agent that the server put out for good.
const PUT_OUT: i32 = 77;

/// What `api fetch x509` writes as the certificate; empty if there is none.
async fn certificate(agent: &Agent) -> String {
    let dir = agent.path().join("fetched");
    // Left from the last time, or not there yet.
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir(&dir).expect("create");
    let out = agent.cli(&["api", "fetch", "x509", "-write", &dir.display().to_string()]).await;
    if out.code == 0 {
        std::fs::read_to_string(dir.join("svid.0.pem")).expect("written")
    } else {
        String::new()
    }
}

async fn token(agent: &Agent) -> String {
    agent.cli(&["api", "fetch", "jwt", "-audience", "db"]).await.stdout
}

/// The names of the secrets that SDS gives to whoever asks for its default identity.
async fn secrets(agent: &Agent) -> Vec<String> {
    let mut client = SecretDiscoveryServiceClient::new(unix(&agent.socket()).await);
    let names = vec!["default".to_owned()];
    let request = DiscoveryRequest { resource_names: names, ..Default::default() };
    let (_keep, requests) = tokio::sync::mpsc::channel::<DiscoveryRequest>(1);
    let requests = tokio_stream::StreamExt::chain(
        tokio_stream::once(request),
        tokio_stream::wrappers::ReceiverStream::new(requests),
    );
    let mut answers = client.stream_secrets(requests).await.expect("a stream").into_inner();
    let answer = answers.message().await.expect("an answer").expect("an answer");
    answer.resources.iter().map(|resource| resource.type_url.clone()).collect()
}

fn stored(agent: &Agent) -> bool {
    agent.path().join("data/svid-cache/head").exists()
}

/// Waits until the agent has written an SVID down.
async fn has_stored(agent: &mut Agent) {
    let process = agent.process();
    let wrote = |line: &String| line.contains("stored_svids=") && !line.contains("stored_svids=0");
    until("stored SVIDs", || async { process.log().iter().any(wrote) }).await;
}

fn machine(agent: &Agent, id: &str) {
    std::fs::write(agent.path().join("machine-id"), id).expect("write");
}

/// An agent whose machine id is a file of the test, with an SVID that it has stored.
async fn settled(server: &Server) -> Agent {
    settled_with(server, &[], "").await
}

async fn settled_with(server: &Server, entry: &[&str], top: &str) -> Agent {
    let options = AgentOptions { top: top.to_owned(), ..Default::default() };
    let token = server.token().await;
    let mut agent = Agent::prepare(server, options).await;
    let config = std::fs::read_to_string(agent.config()).expect("read");
    let key = format!(
        "    experimental {{ machine_id_path = \"{}\" }}\n}}\nplugins",
        agent.path().join("machine-id").display()
    );
    std::fs::write(agent.config(), config.replacen("}\nplugins", &key, 1)).expect("write");
    machine(&agent, "one");
    agent.start_with(&["-joinToken", &token]).await;
    server.entry("/web", &my_uid(), entry).await;
    until("an SVID", || async { !certificate(&agent).await.is_empty() }).await;
    has_stored(&mut agent).await;
    agent
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_without_a_server_serves_the_same_at_once() {
    let mut server = Server::start().await;
    let metrics = free_port();
    let top = format!("telemetry {{ Prometheus {{ host = \"127.0.0.1\" port = {metrics} }} }}\n");
    let mut agent = settled_with(&server, &[], &top).await;
    let jwt = token(&agent).await;
    agent.process().wait_for("stored_jwts=1").await;
    let before = certificate(&agent).await;
    for kill_first in [true, false] {
        if kill_first {
            agent.kill().await;
            server.kill().await;
        } else {
            agent.stop().await;
        }
        agent.start_with(&[]).await;
        agent.process().wait_for("No server answers; serving what was stored before the restart").await;
        assert_eq!(certificate(&agent).await, before, "the very same certificate");
        assert_eq!(token(&agent).await, jwt, "the very same token");
        assert_eq!(secrets(&agent).await.len(), 1);
    }
    let status =
        run("svidctl", &["--agent-admin-socket", &agent.admin_socket().display().to_string(), "status"])
            .await
            .stdout;
    for part in
        ["There is no connection to the server: serving from memory for", "the first certificate ends in"]
    {
        assert!(status.contains(part), "{part} is not in {status}");
    }
    let (_, text) = http_get(metrics, "/metrics").await.expect("metrics");
    for name in ["first_svid_ends_in_seconds", "agent_svid_ends_in_seconds", "seconds_since_server_contact"] {
        let line = text.lines().find(|line| line.starts_with(&format!("spire_agent_outage_{name}")));
        assert!(line.is_some(), "{name} is not in {text}");
    }
    // It goes on where it was, with what came meanwhile.
    server.restart().await;
    server.entry("/later", &my_uid(), &[]).await;
    until("the new entry", || async { agent.cli(&["api", "fetch", "x509"]).await.stdout.contains("/later") })
        .await;
    agent.process().wait_for("Changes are pushed by the server").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_known_ban_outlives_the_outage() {
    let mut server = Server::start().await;
    let mut agent = settled(&server).await;
    let agents = server.cli(&["agent", "list"]).await.ok();
    let id = agents.lines().find_map(|line| line.strip_prefix("SPIFFE ID")).expect("an agent");
    let id = id.trim_start_matches([' ', ':']);
    assert!(stored(&agent));
    server.cli(&["agent", "ban", "-spiffeID", id]).await.ok();
    agent.process().wait_for("Agent is banned: removing SVID and shutting down").await;
    assert_eq!(agent.process().wait().await.code(), Some(PUT_OUT));
    assert!(!stored(&agent));
    server.kill().await;
    let mut again = agent.launch(&[]);
    again.wait_for("SVID is not found. Starting node attestation").await;
    again.wait_for("Failed to retrieve attestation result").await;
    assert!(tokio::net::UnixStream::connect(agent.socket()).await.is_err(), "nothing is served");
    again.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_eviction_that_is_known_outlives_the_outage() {
    let mut server = Server::start().await;
    let mut agent = settled(&server).await;
    let agents = server.cli(&["agent", "list"]).await.ok();
    let id = agents.lines().find_map(|line| line.strip_prefix("SPIFFE ID")).expect("an agent");
    server.cli(&["agent", "evict", "-spiffeID", id.trim_start_matches([' ', ':'])]).await.ok();
    assert_eq!(agent.process().wait().await.code(), Some(PUT_OUT), "its token is spent");
    assert!(!stored(&agent));
    server.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_attests_again_stores_again() {
    let node = KeyedNode::start("").await;
    let mut agent = node.agent().await;
    agent.start_with(&[]).await;
    node.entry("/web").await;
    until("an SVID", || async { !certificate(&agent).await.is_empty() }).await;
    has_stored(&mut agent).await;
    let agents = node.server.cli(&["agent", "list"]).await.ok();
    let id = agents.lines().find_map(|line| line.strip_prefix("SPIFFE ID")).expect("an agent");
    node.server.cli(&["agent", "evict", "-spiffeID", id.trim_start_matches([' ', ':'])]).await.ok();
    agent.process().wait_for("Removed the stored SVIDs").await;
    agent.process().wait_for("Successfully reattested node").await;
    until("stored again", || async { stored(&agent) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_disk_serves_nothing() {
    let mut server = Server::start().await;
    let mut agent = settled(&server).await;
    agent.kill().await;
    server.kill().await;
    machine(&agent, "two");
    let mut copy = agent.launch(&[]);
    let line = copy.wait_for("The stored SVIDs were written on another machine").await;
    assert!(line.contains("machine-id"), "{line}");
    copy.wait_for("Failed to initialize manager").await;
    assert!(tokio::net::UnixStream::connect(agent.socket()).await.is_err(), "nothing is served");
    copy.kill().await;
    machine(&agent, "one");
    agent.start_with(&[]).await;
    assert!(!certificate(&agent).await.is_empty(), "the machine itself still serves");
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_files_are_ignored_and_the_agent_waits_for_the_server() {
    let mut server = Server::start().await;
    let mut agent = settled(&server).await;
    agent.kill().await;
    server.kill().await;
    let head = agent.path().join("data/svid-cache/head");
    let mut bytes = std::fs::read(&head).expect("read");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&head, bytes).expect("write");
    let mut process = agent.launch(&[]);
    process.wait_for("The stored SVIDs cannot be used and are ignored").await;
    process.wait_for("Failed to initialize manager").await;
    server.restart().await;
    process.wait_for("Starting agent APIs").await;
    until("an SVID", || async { !certificate(&agent).await.is_empty() }).await;
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_served_past_its_end() {
    let mut server = Server::start_with(ServerOptions::default()).await;
    let mut agent = settled_with(&server, &["-x509SVIDTTL", "20"], "").await;
    agent.kill().await;
    server.kill().await;
    agent.start_with(&[]).await;
    assert!(!certificate(&agent).await.is_empty());
    // The end is the event: a fetch then waits for a server, so the stream that is open is told nothing either.
    let log = agent.process().log();
    assert!(log.iter().any(|line| line.contains("serving what was stored")));
    let ends = || async {
        let fetch = agent.cli(&["api", "fetch", "x509", "-timeout", "1s"]).await;
        fetch.code != 0
    };
    until("the end", ends).await;
}

/// A listener as a socket unit makes it.
fn listen(path: &Path) -> UnixListener {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir(path.parent().expect("a directory")).expect("create");
    let listener = UnixListener::bind(path).expect("listen");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).expect("chmod");
    listener
}

/// Starts the agent with the socket as descriptor 3, as systemd does.
fn activate(agent: &Agent, listener: &UnixListener, notify: &Path, flags: &[&str]) -> Process {
    let script =
        "export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=workload; exec 3<&0 </dev/null; exec \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(bin("svid-agent")).arg("run").arg("-config").arg(agent.config());
    command.args(flags).env("NOTIFY_SOCKET", notify);
    let socket = OwnedFd::from(listener.try_clone().expect("a copy"));
    Process::start_with_input("svid-agent", &mut command, Stdio::from(socket))
}

async fn told(notify: &tokio::net::UnixDatagram) -> String {
    let mut buffer = [0u8; 256];
    let length = tokio::time::timeout(svid_tests::PATIENCE, notify.recv(&mut buffer)).await;
    String::from_utf8_lossy(&buffer[..length.expect("told").expect("read")]).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_passed_socket_outlives_restarts_without_a_failed_fetch() {
    let server = Server::start().await;
    let token = server.token().await;
    let agent = Agent::prepare(&server, AgentOptions::default()).await;
    let listener = listen(&agent.socket());
    let notify_path = agent.path().join("notify.sock");
    let notify = UnixDatagram::bind(&notify_path).expect("bind");
    notify.set_nonblocking(true).expect("nonblocking");
    let notify = tokio::net::UnixDatagram::from_std(notify).expect("a socket");
    let mut process = activate(&agent, &listener, &notify_path, &["-joinToken", &token]);
    assert_eq!(told(&notify).await.trim(), "READY=1");
    server.entry("/web", &my_uid(), &[]).await;
    until("an SVID", || async { !certificate(&agent).await.is_empty() }).await;

    let (stop, stopped) = tokio::sync::watch::channel(false);
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let (socket, stopped) = (agent.socket(), stopped.clone());
            tokio::spawn(async move {
                let mut fetched = 0;
                while !*stopped.borrow() {
                    // A connection of its own each time, so that some fall into the gap.
                    let channel = unix(&socket).await;
                    fetch_x509(&channel).await.expect("no fetch fails");
                    fetched += 1;
                }
                fetched
            })
        })
        .collect();
    for _ in 0..3 {
        process.signal(Signal::SIGTERM);
        assert_eq!(told(&notify).await.trim(), "STOPPING=1");
        assert_eq!(process.wait().await.code(), Some(0));
        assert!(agent.socket().exists(), "the socket is not the agent's to remove");
        process = activate(&agent, &listener, &notify_path, &[]);
        assert_eq!(told(&notify).await.trim(), "READY=1");
    }
    stop.send(true).expect("callers");
    for caller in callers {
        assert!(caller.await.expect("no fetch failed") > 0);
    }
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_passed_socket_elsewhere_is_refused() {
    let server = Server::start().await;
    let agent = Agent::prepare(&server, AgentOptions::default()).await;
    let listener = listen(&agent.path().join("elsewhere/api.sock"));
    let process = activate(&agent, &listener, Path::new("/nowhere"), &[]);
    let (code, log) = process.end().await;
    assert_eq!(code, 1);
    assert!(log.contains("lies neither at socket_path nor at admin_socket_path"), "{log}");
}
