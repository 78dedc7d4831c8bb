//! Answers that never arrive, and what comes of a copied agent.

use svid_proto::spire::api::server::agent::v1::{
    AgentX509svidParams, RenewAgentRequest, agent_client::AgentClient,
};
use svid_proto::spire::api::types::permission_denied_details::Reason;
use svid_tests::calls::{attested, call, http_get, reason};
use svid_tests::client::{AttestedAgent, ClientCert, attest_by_token_with, key_and_csr};
use svid_tests::process::run;
use svid_tests::{Server, ServerOptions, free_port, until};
use tonic::transport::Channel;
use tonic::{Code, Status};
use x509_parser::prelude::{FromDer as _, X509Certificate};

pub(crate) const ENTRIES: &str = "/spire.api.server.entry.v1.Entry/GetAuthorizedEntries";
const SPENT: &str = "failed to attest: join token does not exist or has already been used";
/// How an agent's old certificate shows in `svidctl`.
const COPY: &str = "an old certificate was used after its successor";

/// Everything of the leaf but its signature.
fn signed_part(agent: &AttestedAgent) -> Vec<u8> {
    let (_, cert) = X509Certificate::from_der(&agent.cert.chain[0]).expect("a certificate");
    cert.tbs_certificate.as_ref().to_vec()
}

fn refusal<T>(result: Result<T, Status>) -> (Code, String) {
    let status = result.err().expect("refused");
    (status.code(), status.message().to_owned())
}

fn spent() -> (Code, String) {
    (Code::InvalidArgument, SPENT.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attestation_whose_answer_was_lost() {
    let mut server = Server::start().await;
    let token = server.token().await;
    let (key, other) = (key_and_csr(), key_and_csr());
    let lost = attest_by_token_with(server.port, &token, &key).await.expect("attested");
    assert_eq!(refusal(attest_by_token_with(server.port, &token, &other).await), spent());
    // The server dies in between: what counts is in the database.
    server.kill().await;
    server.restart().await;
    let agent = attest_by_token_with(server.port, &token, &key).await.expect("answered again");
    assert_eq!(signed_part(&agent), signed_part(&lost), "one certificate, signed twice");
    assert_eq!(refusal(attest_by_token_with(server.port, &token, &other).await), spent());

    call(&agent.channel(&server).await, ENTRIES, &[]).await.expect("an agent");
    assert_eq!(refusal(attest_by_token_with(server.port, &token, &key).await), spent(), "it has arrived");
    call(&lost.channel(&server).await, ENTRIES, &[]).await.expect("whichever of the two arrived");
    server.kill().await;
    server.restart().await;
    // Whether that was written before the server died or not: the agent calls again, and so it is.
    call(&agent.channel(&server).await, ENTRIES, &[]).await.expect("an agent");
    assert_eq!(refusal(attest_by_token_with(server.port, &token, &key).await), spent());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_after_ban_and_eviction() {
    let server = Server::start().await;
    let (banned, evicted) = (server.token_for("/a").await, server.token_for("/b").await);
    let key = key_and_csr();
    for (token, verb) in [(&banned, "ban"), (&evicted, "evict")] {
        let agent = attest_by_token_with(server.port, token, &key).await.expect("attested");
        server.cli(&["agent", verb, "-spiffeID", &agent.id]).await.ok();
    }
    let refused = refusal(attest_by_token_with(server.port, &banned, &key).await);
    assert_eq!(refused, (Code::PermissionDenied, "failed to attest: agent is banned".to_owned()));
    assert_eq!(refusal(attest_by_token_with(server.port, &evicted, &key).await), spent());
}

pub(crate) async fn renew(channel: &Channel, agent: &AttestedAgent) -> Result<AttestedAgent, Status> {
    let (key, csr) = key_and_csr();
    let params = Some(AgentX509svidParams { csr });
    let answer = AgentClient::new(channel.clone()).renew_agent(RenewAgentRequest { params }).await?;
    let svid = answer.into_inner().svid.expect("an SVID");
    Ok(AttestedAgent { cert: ClientCert { chain: svid.cert_chain, key }, id: agent.id.clone() })
}

async fn is_out(agent: &AttestedAgent, server: &Server) {
    let status = call(&agent.channel(server).await, ENTRIES, &[]).await.expect_err("not active");
    assert_eq!((status.code(), reason(&status)), (Code::PermissionDenied, Some(Reason::AgentNotActive)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_whose_answer_was_lost() {
    let mut server = Server::start().await;
    let (agent, old) = attested(&server).await;
    let lost = renew(&old, &agent).await.expect("renewed");
    server.kill().await;
    server.restart().await;
    let old = agent.channel(&server).await;
    call(&old, ENTRIES, &[]).await.expect("good until the new one is used");
    let new = renew(&old, &agent).await.expect("renewed again");
    call(&old, ENTRIES, &[]).await.expect("still good");
    call(&new.channel(&server).await, ENTRIES, &[]).await.expect("good");
    is_out(&lost, &server).await;
    is_out(&agent, &server).await;
    let next = renew(&new.channel(&server).await, &agent).await.expect("renewed");
    call(&next.channel(&server).await, ENTRIES, &[]).await.expect("good");
}

async fn svidctl(server: &Server, args: &[&str]) -> String {
    let socket = server.socket().display().to_string();
    let args: Vec<&str> = args.iter().copied().chain(["--server-socket", &socket]).collect();
    run("svidctl", &args).await.ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_an_agent_shows() {
    let metrics = free_port();
    let top = format!("telemetry {{ Prometheus {{ host = \"127.0.0.1\" port = {metrics} }} }}\n");
    let mut server = Server::start_with(ServerOptions { top, ..Default::default() }).await;
    // Whoever renews first stays; the other one holds an old certificate.
    let (agent, channel) = attested(&server).await;
    let (copy, other) = (agent.channel(&server).await, attested(&server).await.0);
    call(&copy, ENTRIES, &[]).await.expect("nothing tells it from the agent yet");
    let renewed = renew(&channel, &agent).await.expect("renewed");
    call(&renewed.channel(&server).await, ENTRIES, &[]).await.expect("good");
    for _ in 0..3 {
        let status = call(&copy, ENTRIES, &[]).await.expect_err("out");
        assert_eq!(reason(&status), Some(Reason::AgentNotActive));
    }
    let line = server.process().wait_for("Suspected clone").await;
    assert!(line.contains(&agent.id) && line.contains("127.0.0.1"), "{line}");
    let counted = || async {
        let text = http_get(metrics, "/metrics").await.map(|(_, body)| body).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with("spire_server_agent_suspected_clone{"));
        line.is_some_and(|line| !line.contains("join_token") && !line.ends_with(" 0"))
    };
    until("the metric", counted).await;
    for restarts in 0..2 {
        assert!(svidctl(&server, &["status"]).await.contains(COPY), "{restarts}");
        let list = svidctl(&server, &["agent", "list"]).await;
        assert!(list.contains("active, suspected clone") && list.contains("1 of 2 agents may"), "{list}");
        assert!(svidctl(&server, &["agent", "show", &agent.id]).await.contains(COPY));
        assert!(!svidctl(&server, &["agent", "show", &other.id]).await.contains(COPY));
        server.stop().await;
        server.restart().await;
    }
    server.cli(&["agent", "evict", "-spiffeID", &agent.id]).await.ok();
    assert!(!svidctl(&server, &["status"]).await.contains(COPY));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_of_which_one_dies() {
    let database = svid_tests::postgres::database();
    let (mut one, two) = (Server::on(&database).await, Server::on(&database).await);
    let token = one.token().await;
    let attempts: Vec<_> = (0..200)
        .map(|n| {
            let (port, token) = (if n % 2 == 0 { one.port } else { two.port }, token.clone());
            tokio::spawn(async move {
                let key = key_and_csr();
                (attest_by_token_with(port, &token, &key).await, key)
            })
        })
        .collect();
    let mut won = None;
    for attempt in attempts {
        match attempt.await.expect("ran") {
            (Ok(agent), key) => assert!(won.replace((agent, key)).is_none(), "a second one"),
            (Err(status), _) => assert_eq!((status.code(), status.message()), (Code::InvalidArgument, SPENT)),
        }
    }
    let (_, key) = won.expect("one wins");
    // Its answer got lost with its server.
    one.kill().await;
    let agent = attest_by_token_with(two.port, &token, &key).await.expect("answered by the other one");
    call(&agent.channel(&two).await, ENTRIES, &[]).await.expect("an agent");
    one.restart().await;
    assert_eq!(refusal(attest_by_token_with(two.port, &token, &key).await), spent());
    // Renewed at one, used at the other, at once; and the old certificate is a copy's at both.
    let new = renew(&agent.channel(&one).await, &agent).await.expect("renewed");
    call(&new.channel(&two).await, ENTRIES, &[]).await.expect("good at once");
    let old = agent.channel(&one).await;
    until("the old one's end", || async { call(&old, ENTRIES, &[]).await.is_err() }).await;
    is_out(&agent, &one).await;
    one.process().wait_for("Suspected clone").await;
    for server in [&one, &two] {
        until("the warning", || async { svidctl(server, &["status"]).await.contains(COPY) }).await;
    }
    one.cli(&["agent", "ban", "-spiffeID", &agent.id]).await.ok();
    let refused = refusal(attest_by_token_with(two.port, &token, &key).await);
    assert_eq!(refused, (Code::PermissionDenied, "failed to attest: agent is banned".to_owned()));
}
