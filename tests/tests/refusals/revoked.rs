//! What was allowed a moment ago.

use svid_proto::spire::api::server::agent::v1::{
    AgentX509svidParams, RenewAgentRequest, agent_client::AgentClient,
};
use svid_proto::spire::api::server::svid::v1::{
    BatchNewX509svidRequest, NewJwtsvidRequest, NewX509svidParams, svid_client::SvidClient,
};
use svid_proto::spire::api::types::permission_denied_details::Reason;
use svid_proto::svid::sync::v1::{WatchRequest, WatchResponse, sync_client::SyncClient};
use svid_tests::calls::{attested, call, reason, unix_now};
use svid_tests::client::{AttestedAgent, ClientCert, key_and_csr};
use svid_tests::{PATIENCE, Server, until};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

const ENTRIES: &str = "/spire.api.server.entry.v1.Entry/GetAuthorizedEntries";
const BUNDLE: &str = "/spire.api.server.bundle.v1.Bundle/GetBundle";
/// All that an agent may call and others may not; the request is empty.
const AGENT_CALLS: &[&str] = &[
    ENTRIES,
    "/spire.api.server.entry.v1.Entry/SyncAuthorizedEntries",
    "/spire.api.server.svid.v1.SVID/BatchNewX509SVID",
    "/spire.api.server.svid.v1.SVID/NewJWTSVID",
    "/spire.api.server.agent.v1.Agent/RenewAgent",
    "/spire.api.server.agent.v1.Agent/PostStatus",
    "/svid.sync.v1.Sync/Watch",
];

async fn watch(channel: &Channel) -> Streaming<WatchResponse> {
    let mut client = SyncClient::new(channel.clone());
    let mut stream = client.watch(WatchRequest::default()).await.expect("a stream").into_inner();
    stream.message().await.expect("open").expect("a first message");
    stream
}

async fn end_of(mut stream: Streaming<WatchResponse>) -> Status {
    let read = async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended without a reason"),
                Err(status) => return status,
            }
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect("the stream ends")
}

async fn all_denied(channel: &Channel, why: Reason) {
    for path in AGENT_CALLS {
        let status = call(channel, path, &[]).await.expect_err(path);
        assert_eq!((status.code(), reason(&status)), (Code::PermissionDenied, Some(why)), "{path}");
    }
    call(channel, BUNDLE, &[]).await.expect("open to all");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_banned_agent_on_a_stream_it_opened_before() {
    let server = Server::start().await;
    let (agent, channel) = attested(&server).await;
    let stream = watch(&channel).await;
    server.cli(&["agent", "ban", "-spiffeID", &agent.id]).await.ok();
    let status = end_of(stream).await;
    assert_eq!((status.code(), reason(&status)), (Code::PermissionDenied, Some(Reason::AgentBanned)));
    all_denied(&channel, Reason::AgentBanned).await;
    // And on a new connection, and it cannot come in by the door either.
    all_denied(&agent.channel(&server).await, Reason::AgentBanned).await;
    let shown = server.cli(&["agent", "show", "-spiffeID", &agent.id]).await.ok();
    assert!(shown.contains("Banned            : true"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evicted_agent() {
    let server = Server::start().await;
    let (agent, channel) = attested(&server).await;
    let (other, others) = attested(&server).await;
    let stream = watch(&channel).await;
    let said = server.cli(&["agent", "evict", "-spiffeID", &agent.id]).await.ok();
    assert!(said.contains("Agent evicted successfully"), "{said}");
    let status = end_of(stream).await;
    assert_eq!((status.code(), reason(&status)), (Code::PermissionDenied, Some(Reason::AgentNotAttested)));
    all_denied(&channel, Reason::AgentNotAttested).await;
    call(&others, ENTRIES, &[]).await.unwrap_or_else(|error| panic!("{}: {error}", other.id));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_serial_after_its_successor_was_used() {
    let server = Server::start().await;
    let (agent, old) = attested(&server).await;
    let (key, csr) = key_and_csr();
    let params = Some(AgentX509svidParams { csr });
    let renewed =
        AgentClient::new(old.clone()).renew_agent(RenewAgentRequest { params }).await.expect("renewed");
    let svid = renewed.into_inner().svid.expect("an SVID");
    // Until the new one shows up the answer may have been lost, so the old one stays good.
    call(&old, ENTRIES, &[]).await.expect("still good");
    let new = AttestedAgent { cert: ClientCert { chain: svid.cert_chain, key }, id: agent.id.clone() };
    call(&new.channel(&server).await, ENTRIES, &[]).await.expect("good");
    all_denied(&old, Reason::AgentNotActive).await;
    all_denied(&agent.channel(&server).await, Reason::AgentNotActive).await;
}

async fn sign(channel: &Channel, entry_id: &str) -> (i32, i64) {
    let params = vec![NewX509svidParams { entry_id: entry_id.to_owned(), csr: key_and_csr().1 }];
    let answer =
        SvidClient::new(channel.clone()).batch_new_x509svid(BatchNewX509svidRequest { params }).await;
    let result = answer.expect("answered").into_inner().results.remove(0);
    (result.status.expect("a status").code, result.svid.map_or(0, |svid| svid.expires_at))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_past_its_expiry_is_neither_shown_nor_signed() {
    let server = Server::start().await;
    let (_, channel) = attested(&server).await;
    let end = unix_now() + 4;
    let id = server.entry("/guest", "unix:uid:1", &["-entryExpiry", &end.to_string()]).await;
    let mut stream =
        SyncClient::new(channel.clone()).watch(WatchRequest::default()).await.expect("a stream").into_inner();
    let (code, not_after) = sign(&channel, &id).await;
    assert_eq!(code, 0);
    assert!(not_after <= end, "an SVID outlives its entry by {} s", not_after - end);
    // The push says so by itself.
    let removed = async {
        loop {
            let message = stream.message().await.expect("open").expect("open");
            if message.removed_ids.contains(&id) {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, removed).await.expect("told");
    assert!(unix_now() >= end, "not before its time");
    until("two seconds after the end", || async { unix_now() >= end + 2 }).await;
    assert_eq!(sign(&channel, &id).await.0, Code::NotFound as i32);
    let request = NewJwtsvidRequest { entry_id: id.clone(), audience: vec!["x".into()] };
    let status = SvidClient::new(channel.clone()).new_jwtsvid(request).await.expect_err("expired");
    assert_eq!(status.code(), Code::NotFound, "{status}");
    let entries = svid_proto::spire::api::server::entry::v1::entry_client::EntryClient::new(channel)
        .get_authorized_entries(
            svid_proto::spire::api::server::entry::v1::GetAuthorizedEntriesRequest::default(),
        )
        .await
        .expect("answered")
        .into_inner()
        .entries;
    assert!(entries.iter().all(|entry| entry.id != id));
}
