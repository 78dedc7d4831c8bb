//! Join tokens.

use svid_tests::calls::unix_now;
use svid_tests::client::attest_by_token;
use svid_tests::{Agent, AgentOptions, Server, until};
use tonic::Code;

const SPENT: &str = "failed to attest: join token does not exist or has already been used";

#[tokio::test(flavor = "multi_thread")]
async fn of_two_hundred_at_once_one_wins() {
    let server = Server::start().await;
    let token = server.token().await;
    let attempts: Vec<_> = (0..200)
        .map(|_| {
            let (port, token) = (server.port, token.clone());
            tokio::spawn(async move { attest_by_token(port, &token).await })
        })
        .collect();
    let mut won = 0;
    for attempt in attempts {
        match attempt.await.expect("ran") {
            Ok(agent) => {
                won += 1;
                assert_eq!(agent.id, server.id(&format!("/spire/agent/join_token/{token}")));
            }
            Err(status) => {
                assert_eq!((status.code(), status.message()), (Code::InvalidArgument, SPENT));
            }
        }
    }
    assert_eq!(won, 1);
    let agents = server.cli(&["agent", "count"]).await.ok();
    assert!(agents.starts_with("1 "), "{agents}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_and_an_expired_token() {
    let server = Server::start().await;
    for token in ["nonsense", "a/b", "..", "x".repeat(5000).as_str()] {
        let status = attest_by_token(server.port, token).await.err().expect("refused");
        assert_eq!(status.code(), Code::InvalidArgument, "{token:.20}: {status}");
    }
    let out = server.cli(&["token", "generate", "-ttl", "1"]).await.ok();
    let token = out.lines().find_map(|line| line.strip_prefix("Token: ")).expect("a token").trim().to_owned();
    let end = unix_now() + 2;
    until("the token's end", || async { unix_now() >= end }).await;
    let status = attest_by_token(server.port, &token).await.err().expect("refused");
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("join token expired") || status.message() == SPENT, "{status}");
    assert!(server.cli(&["agent", "count"]).await.ok().starts_with("0 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_a_spent_token_says_so() {
    let server = Server::start().await;
    let token = server.token().await;
    attest_by_token(server.port, &token).await.expect("attested");
    let agent = Agent::prepare(&server, AgentOptions::default()).await;
    let mut process = agent.launch(&["-joinToken", &token]);
    process.wait_for(SPENT).await;
    process.kill().await;
    assert!(!agent.socket().exists());
}
