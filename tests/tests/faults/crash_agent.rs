//! kill -9 of the agent: it goes on from what is on its disk.

use svid_tests::{Agent, Server, ServerOptions, until};

use crate::{KeyedNode, my_uid, random_below};

async fn serves(agent: &Agent) -> bool {
    agent.cli(&["api", "fetch", "x509"]).await.code == 0
}

fn has_svid(agent: &Agent) -> bool {
    let text = std::fs::read_to_string(agent.path().join("data/agent-data.json")).unwrap_or_default();
    text.contains("\"svid\":[")
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_it_attests() {
    let node = KeyedNode::start("").await;
    let mut agent = node.agent().await;
    let lines =
        ["Starting agent", "SVID is not found. Starting node attestation", "Node attestation was successful"];
    for line in lines {
        let mut process = agent.launch(&[]);
        process.wait_for(line).await;
        process.kill().await;
        if has_svid(&agent) {
            break; // the next line would not come
        }
    }
    agent.start_with(&[]).await;
    agent.process().wait_for("SVID loaded").await;
    node.entry("/web").await;
    until("an SVID", || serves(&agent)).await;
    let agents = node.server.cli(&["agent", "count"]).await.ok();
    assert!(agents.starts_with("1 "), "{agents}");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_right_after_its_token_was_spent() {
    let server = Server::start().await;
    let token = server.token().await;
    let mut agent = Agent::prepare(&server, svid_tests::AgentOptions::default()).await;
    let mut process = agent.launch(&["-joinToken", &token]);
    process.wait_for("Node attestation was successful").await;
    process.kill().await;
    agent.start_with(&["-joinToken", &token]).await;
    agent.process().wait_for("SVID loaded").await;
    server.entry("/web", &my_uid(), &[]).await;
    until("an SVID", || serves(&agent)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_it_renews() {
    let options = ServerOptions { server: "agent_ttl = \"8s\"".into(), ..Default::default() };
    let server = Server::start_with(options).await;
    let mut agent = Agent::join(&server).await;
    server.entry("/web", &my_uid(), &[]).await;
    until("an SVID", || serves(&agent)).await;
    for line in ["Rotating agent SVID", "Successfully rotated agent SVID", "Rotating agent SVID"] {
        agent.process().wait_for(line).await;
        if random_below(2) == 0 {
            agent.process().wait_for("Successfully rotated agent SVID").await;
        }
        agent.kill().await;
        agent.start_with(&[]).await;
        agent.process().wait_for("SVID loaded").await;
        until("an SVID", || serves(&agent)).await;
    }
}
