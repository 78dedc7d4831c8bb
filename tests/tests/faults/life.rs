//! An agent's life: outages, renewal, eviction, ban.

use svid_tests::{Agent, Server, ServerOptions, until};

use crate::{KeyedNode, my_uid};

async fn fetch(agent: &Agent) -> String {
    let out = agent.cli(&["api", "fetch", "x509"]).await;
    if out.code == 0 { out.stdout } else { String::new() }
}

async fn serves(agent: &Agent, path: &str) {
    until(path, || async { fetch(agent).await.contains(path) }).await;
}

fn data(agent: &Agent) -> serde_json::Value {
    let text = std::fs::read_to_string(agent.path().join("data/agent-data.json")).expect("agent-data.json");
    serde_json::from_str(&text).expect("JSON")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_goes_away_and_comes_back() {
    let mut server = Server::start().await;
    let agent = Agent::join(&server).await;
    server.entry("/first", &my_uid(), &[]).await;
    serves(&agent, "/first").await;
    for stop in [true, false] {
        if stop {
            server.stop().await;
        } else {
            server.kill().await;
        }
        // The agent serves from memory.
        assert!(fetch(&agent).await.contains("/first"));
        server.restart().await;
        let path = if stop { "/second" } else { "/third" };
        server.entry(path, &my_uid(), &[]).await;
        serves(&agent, path).await;
    }
    assert!(fetch(&agent).await.contains("/first"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_renews_its_svid() {
    let options = ServerOptions { server: "agent_ttl = \"8s\"".into(), ..Default::default() };
    let mut server = Server::start_with(options).await;
    let mut agent = Agent::join(&server).await;
    server.entry("/web", &my_uid(), &[]).await;
    let first = data(&agent)["svid"].clone();
    agent.process().wait_for_lines("Successfully rotated agent SVID", 3).await;
    server.process().wait_for_lines("reason=renewal", 3).await;
    assert_ne!(data(&agent)["svid"], first);
    serves(&agent, "/web").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evicted_agent_that_can_attests_again() {
    let mut node = KeyedNode::start("").await;
    let mut agent = node.agent().await;
    agent.start_with(&[]).await;
    node.entry("/web").await;
    serves(&agent, "/web").await;
    let agents = node.server.cli(&["agent", "list"]).await.ok();
    let id = agents.lines().find_map(|line| line.strip_prefix("SPIFFE ID")).expect("an agent");
    let id = id.trim_start_matches([' ', ':']).to_owned();
    node.server.cli(&["agent", "evict", "-spiffeID", &id]).await.ok();
    node.server.process().wait_for("Agent deleted").await;
    agent.process().wait_for("Agent needs to re-attest").await;
    agent.process().wait_for("Successfully reattested node").await;
    serves(&agent, "/web").await;
    let again = node.server.cli(&["agent", "list"]).await.ok();
    assert!(again.contains(&id), "{again}");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evicted_agent_that_cannot_ends() {
    let mut server = Server::start().await;
    let agent = Agent::prepare(&server, svid_tests::AgentOptions::default()).await;
    let token = server.token().await;
    let mut process = agent.launch(&["-joinToken", &token]);
    process.wait_for("Starting agent APIs").await;
    let id = server.id(&format!("/spire/agent/join_token/{token}"));
    server.cli(&["agent", "evict", "-spiffeID", &id]).await.ok();
    let (code, log) = process.end().await;
    assert_eq!(code, 77, "{log}");
    for line in ["Agent needs to re-attest", "attestation method is not re-attestable"] {
        assert!(log.contains(line), "{line:?} is not in:\n{log}");
    }
    let denied = server.process().wait_for("Agent is not attested").await;
    assert!(denied.contains(&format!("caller_id=\"{id}\"")), "{denied}");
    server.process().wait_for("Agent deleted").await;
    assert!(data(&agent)["svid"].is_null(), "the SVID is gone");
    // Its supervisor starts it again, with the token it has.
    let mut process = agent.launch(&["-joinToken", &token]);
    process.wait_for("failed to attest: join token does not exist or has already been used").await;
    process.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_banned_agent_removes_its_svid_and_ends() {
    let mut server = Server::start().await;
    let agent = Agent::prepare(&server, svid_tests::AgentOptions::default()).await;
    let token = server.token().await;
    let mut process = agent.launch(&["-joinToken", &token]);
    process.wait_for("Starting agent APIs").await;
    let id = server.id(&format!("/spire/agent/join_token/{token}"));
    server.cli(&["agent", "ban", "-spiffeID", &id]).await.ok();
    server.process().wait_for("Agent banned").await;
    let (code, log) = process.end().await;
    assert_eq!(code, 77, "{log}");
    assert!(log.contains("Agent is banned: removing SVID and shutting down"), "{log}");
    assert!(data(&agent)["svid"].is_null(), "the SVID is gone");
    assert!(tokio::net::UnixStream::connect(agent.socket()).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_was_banned_while_it_was_down() {
    let server = Server::start().await;
    let mut agent = Agent::prepare(&server, svid_tests::AgentOptions::default()).await;
    let token = server.token().await;
    agent.start_with(&["-joinToken", &token]).await;
    agent.stop().await;
    let id = server.id(&format!("/spire/agent/join_token/{token}"));
    server.cli(&["agent", "ban", "-spiffeID", &id]).await.ok();
    let (code, log) = agent.launch(&[]).end().await;
    assert_eq!(code, 77, "{log}");
    assert!(log.contains("Agent is banned: removing SVID and shutting down"), "{log}");
    assert!(data(&agent)["svid"].is_null(), "the SVID is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn both_halves_stop_when_told_to() {
    let mut server = Server::start().await;
    let mut agent = Agent::join(&server).await;
    let unserved = Agent::prepare(&server, svid_tests::AgentOptions::default()).await;
    agent.stop().await;
    assert!(!agent.socket().exists());
    server.stop().await;
    assert!(!server.socket().exists());
    // While it still tries to attest, it can be stopped as well.
    let mut process = unserved.launch(&["-joinToken", "x"]);
    process.wait_for("Failed to retrieve attestation result").await;
    process.stop().await;
}
