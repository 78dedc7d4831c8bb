//! kill -9 of the server while it writes: what it acknowledged is there, and nothing is there by halves.

use std::collections::{BTreeMap, BTreeSet};

use svid_proto::spire::api::server::entry::v1::{
    BatchCreateEntryRequest, ListEntriesRequest, entry_client::EntryClient,
};
use svid_proto::spire::api::types::{Entry, Selector, Spiffeid};
use svid_tests::calls::call;
use svid_tests::client::{AttestedAgent, attest_by_token, unix};
use svid_tests::{Server, TRUST_DOMAIN};
use tokio::sync::mpsc;

use crate::random_below;

const ROUNDS: usize = 4;
const WRITERS: usize = 4;
const BATCH: usize = 5;
const SYNC: &str = "/spire.api.server.entry.v1.Entry/GetAuthorizedEntries";

fn id(path: String) -> Option<Spiffeid> {
    Some(Spiffeid { trust_domain: TRUST_DOMAIN.into(), path })
}

fn entry(name: &str) -> Entry {
    let selector = |n: usize| Selector { r#type: "unix".into(), value: format!("uid:{n}") };
    Entry {
        spiffe_id: id(format!("/job/{name}")),
        parent_id: id("/host".into()),
        selectors: (1..=3).map(selector).collect(),
        dns_names: (1..=3).map(|n| format!("{name}-{n}.example.org")).collect(),
        ..Default::default()
    }
}

/// Creates batch after batch and tells the names of what was acknowledged, until the server is gone.
async fn create_entries(
    server: tonic::transport::Channel,
    writer: String,
    acks: mpsc::UnboundedSender<(String, String)>,
) {
    for batch in 0.. {
        let names: Vec<String> = (0..BATCH).map(|n| format!("{writer}-{batch}-{n}")).collect();
        let entries = names.iter().map(|name| entry(name)).collect();
        let request = BatchCreateEntryRequest { entries, output_mask: None };
        let Ok(answer) = EntryClient::new(server.clone()).batch_create_entry(request).await else { return };
        for (name, result) in names.into_iter().zip(answer.into_inner().results) {
            assert_eq!(result.status.expect("a status").code, 0);
            if acks.send((name, result.entry.expect("an entry").id)).is_err() {
                return;
            }
        }
    }
}

async fn all_entries(server: &Server) -> Vec<Entry> {
    let mut client = EntryClient::new(unix(&server.socket()).await).max_decoding_message_size(64 << 20);
    client.list_entries(ListEntriesRequest::default()).await.expect("listed").into_inner().entries
}

/// Every entry is whole and there once; all that were acknowledged are there.
fn check_entries(entries: Vec<Entry>, acked: &BTreeMap<String, String>) {
    let mut found = BTreeMap::new();
    for held in entries {
        let path = held.spiffe_id.as_ref().expect("an ID").path.clone();
        let name = path.strip_prefix("/job/").expect("ours").to_owned();
        let wanted = entry(&name);
        let names: BTreeSet<_> = held.dns_names.iter().cloned().collect();
        let selectors: BTreeSet<_> = held.selectors.iter().map(|selector| selector.value.clone()).collect();
        assert_eq!(names, wanted.dns_names.into_iter().collect());
        assert_eq!(selectors, wanted.selectors.into_iter().map(|selector| selector.value).collect());
        assert!(found.insert(name, held.id).is_none(), "{path} is there twice");
    }
    for (name, id) in acked {
        assert_eq!(found.get(name), Some(id), "{name} was acknowledged");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_entries_are_created() {
    let mut server = Server::start().await;
    let mut acked = BTreeMap::new();
    for round in 0..ROUNDS {
        let (sender, mut acks) = mpsc::unbounded_channel();
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..WRITERS {
            let channel = unix(&server.socket()).await;
            writers.spawn(create_entries(channel, format!("{round}-{writer}"), sender.clone()));
        }
        drop(sender);
        for _ in 0..=random_below(200) {
            let (name, id) = acks.recv().await.expect("acknowledged");
            acked.insert(name, id);
        }
        server.kill().await;
        while let Some((name, id)) = acks.recv().await {
            acked.insert(name, id);
        }
        while let Some(ended) = writers.join_next().await {
            ended.expect("no batch went wrong before the end");
        }
        server.restart().await;
        check_entries(all_entries(&server).await, &acked);
    }
}

/// Attests one token after the other until the server is gone. The last token's fate is not known.
async fn attest_all(port: u16, tokens: Vec<String>, acks: mpsc::UnboundedSender<(String, AttestedAgent)>) {
    for token in tokens {
        let Ok(agent) = attest_by_token(port, &token).await else { return };
        if acks.send((token, agent)).is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_agents_attest() {
    let mut server = Server::start().await;
    let mut tokens = Vec::new();
    for _ in 0..WRITERS * 10 {
        tokens.push(server.token().await);
    }
    let (sender, mut acks) = mpsc::unbounded_channel();
    for part in tokens.chunks(10) {
        tokio::spawn(attest_all(server.port, part.to_vec(), sender.clone()));
    }
    drop(sender);
    let mut attested = BTreeMap::new();
    for _ in 0..=random_below(WRITERS * 10 / 2) {
        let (token, agent) = acks.recv().await.expect("attested");
        attested.insert(token, agent);
    }
    server.kill().await;
    while let Some((token, agent)) = acks.recv().await {
        attested.insert(token, agent);
    }
    server.restart().await;
    let listed = server.cli(&["agent", "list"]).await.ok();
    for token in &tokens {
        let id = server.id(&format!("/spire/agent/join_token/{token}"));
        match attested.get(token) {
            // Acknowledged: it is an agent, and the token is spent.
            Some(agent) => {
                assert!(listed.contains(&id), "{id} attested and is gone");
                call(&agent.channel(&server).await, SYNC, &[]).await.expect("still an agent");
                assert!(attest_by_token(server.port, token).await.is_err(), "{token} was good twice");
            }
            // Not: either nothing happened, and the token is good, or all of it did.
            None => {
                let again = attest_by_token(server.port, token).await;
                assert_eq!(again.is_ok(), !listed.contains(&id), "{token} is half spent");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_starting() {
    let mut server = Server::start().await;
    let entry = server.entry("/web", "unix:uid:1", &[]).await;
    let bundle = server.bundle_pem().await;
    server.kill().await;
    for _ in 0..6 {
        let mut process = server.launch();
        process.wait_for_lines("level=", 1 + random_below(5)).await;
        process.kill().await;
    }
    server.restart().await;
    assert_eq!(server.bundle_pem().await, bundle, "the same authority");
    server.cli(&["entry", "show", "-entryID", &entry]).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_first_starting() {
    for _ in 0..6 {
        let mut server = Server::prepare(&svid_tests::ServerOptions::default());
        let mut process = server.launch();
        process.wait_for_lines("level=", 1 + random_below(5)).await;
        process.kill().await;
        server.restart().await;
        server.cli(&["healthcheck"]).await.ok();
        let pem = server.bundle_pem().await;
        assert!(pem.contains("BEGIN CERTIFICATE"), "{pem}");
    }
}
