//! Writers that know what was acknowledged to them, and the look afterwards whether it is so.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use svid_proto::spire::api::server::entry::v1::{
    BatchCreateEntryRequest, BatchDeleteEntryRequest, ListEntriesRequest, entry_client::EntryClient,
};
use svid_proto::spire::api::types::{self, Entry, Selector, Spiffeid};
use svid_tests::client::unix;
use svid_tests::{PATIENCE, Server, TRUST_DOMAIN, until};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::{Code, Status};

/// The trust domain that all written entries federate with.
pub const FOREIGN: &str = "foreign.test";

const WRITERS: usize = 2;
const BATCH: usize = 5;
/// Pause of a writer that was refused, as a script would make it.
const RETRY: Duration = Duration::from_millis(20);

fn id(path: String) -> Option<Spiffeid> {
    Some(Spiffeid { trust_domain: TRUST_DOMAIN.into(), path })
}

/// An entry that shows if it is there by halves.
pub fn entry(name: &str) -> Entry {
    let selector = |n: usize| Selector { r#type: "unix".into(), value: format!("uid:{n}") };
    Entry {
        spiffe_id: id(format!("/job/{name}")),
        parent_id: id("/jobs".into()),
        selectors: (1..=3).map(selector).collect(),
        dns_names: (1..=3).map(|n| format!("{name}-{n}.example.org")).collect(),
        federates_with: vec![FOREIGN.into()],
        ..Default::default()
    }
}

/// What writers were told.
#[derive(Default)]
pub struct Known {
    /// Entry IDs by name.
    pub acked: BTreeMap<String, String>,
    /// Names of entries whose deletion was acknowledged.
    pub deleted: BTreeSet<String>,
    /// Names whose deletion was asked for, with an answer that says nothing.
    pub in_doubt: BTreeSet<String>,
}

/// How far the writers of one server are.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Progress {
    acked: usize,
    refused: usize,
}

/// Writers at several servers: they create and delete, and try again what was not acknowledged.
pub struct Load {
    stop: watch::Sender<bool>,
    progress: Vec<watch::Sender<Progress>>,
    writers: JoinSet<Known>,
}

struct Writer {
    socket: PathBuf,
    name: String,
    stop: watch::Receiver<bool>,
    progress: watch::Sender<Progress>,
    /// Its server may be killed: connections may then end without a status of the server's.
    mortal: bool,
    known: Known,
}

impl Load {
    /// Writers at servers that live on.
    pub fn on(servers: &[&Server]) -> Self {
        Self::begin(servers, false)
    }

    /// Writers at servers that may be killed.
    pub fn on_mortal(servers: &[&Server]) -> Self {
        Self::begin(servers, true)
    }

    fn begin(servers: &[&Server], mortal: bool) -> Self {
        let stop = watch::Sender::new(false);
        let progress: Vec<_> = servers.iter().map(|_| watch::Sender::new(Progress::default())).collect();
        let mut writers = JoinSet::new();
        for (at, server) in servers.iter().enumerate() {
            for writer in 0..WRITERS {
                let writer = Writer {
                    socket: server.socket(),
                    name: format!("{}-{at}-{writer}", uuid::Uuid::new_v4().simple()),
                    stop: stop.subscribe(),
                    progress: progress[at].clone(),
                    mortal,
                    known: Known::default(),
                };
                writers.spawn(writer.run());
            }
        }
        Self { stop, progress, writers }
    }

    /// Waits until `count` more batches were acknowledged at the server.
    pub async fn acked_at(&self, at: usize, count: usize) {
        let before = self.progress[at].borrow().acked;
        self.wait(at, "acknowledges", |now| now.acked >= before + count).await;
    }

    /// Waits until `count` more batches were acknowledged at every server.
    pub async fn acked(&self, count: usize) {
        for at in 0..self.progress.len() {
            self.acked_at(at, count).await;
        }
    }

    /// Waits until every server refuses.
    pub async fn refused(&self) {
        for (at, progress) in self.progress.iter().enumerate() {
            let before = progress.borrow().refused;
            self.wait(at, "refuses", |now| now.refused > before).await;
        }
    }

    async fn wait(&self, at: usize, what: &str, met: impl FnMut(&Progress) -> bool) {
        let mut progress = self.progress[at].subscribe();
        let waited = tokio::time::timeout(PATIENCE, progress.wait_for(met)).await;
        assert!(waited.is_ok(), "server {at} never {what} anything");
    }

    /// Lets the writers finish, and returns what they know.
    pub async fn stop(mut self) -> Known {
        self.stop.send_replace(true);
        let mut all = Known::default();
        while let Some(known) = self.writers.join_next().await {
            let mut known = known.expect("no writer met what it should not");
            all.acked.append(&mut known.acked);
            all.deleted.append(&mut known.deleted);
            all.in_doubt.append(&mut known.in_doubt);
        }
        all
    }
}

impl Writer {
    async fn run(mut self) -> Known {
        let mut client = EntryClient::new(unix(&self.socket).await);
        for batch in 0.. {
            if *self.stop.borrow() {
                break;
            }
            let names: Vec<String> = (0..BATCH).map(|n| format!("{}-{batch}-{n}", self.name)).collect();
            self.create(&mut client, &names).await;
            if let Some(id) = self.known.acked.remove(&names[0]) {
                self.delete(&mut client, &names[0], id).await;
            }
        }
        self.known
    }

    /// Until all are acknowledged, or it is time to stop.
    async fn create(&mut self, client: &mut EntryClient<tonic::transport::Channel>, names: &[String]) {
        let mut wanted: Vec<String> = names.to_vec();
        let mut again = false;
        while !wanted.is_empty() {
            let entries = wanted.iter().map(|name| entry(name)).collect();
            let request = BatchCreateEntryRequest { entries, output_mask: None };
            let answer = in_time(client.batch_create_entry(request)).await;
            let Some(answer) = self.understood(answer).await else {
                again = true;
                if *self.stop.borrow() {
                    return;
                }
                continue;
            };
            let mut left = Vec::new();
            for (name, result) in std::mem::take(&mut wanted).into_iter().zip(answer.results) {
                let status = result.status.expect("a status");
                match Code::from(status.code) {
                    Code::Ok => {}
                    // Only of what an earlier try wrote, whose answer got lost.
                    Code::AlreadyExists => assert!(again, "{name} is there although it was never asked for"),
                    _ => {
                        self.refused(&status);
                        left.push(name);
                        continue;
                    }
                }
                self.known.acked.insert(name, result.entry.expect("an entry").id);
            }
            wanted = left;
            if wanted.is_empty() {
                self.progress.send_modify(|progress| progress.acked += 1);
            } else if self.pause().await {
                return;
            }
            again = true;
        }
    }

    async fn delete(&mut self, client: &mut EntryClient<tonic::transport::Channel>, name: &str, id: String) {
        let mut again = false;
        loop {
            let request = BatchDeleteEntryRequest { ids: vec![id.clone()] };
            let answer = in_time(client.batch_delete_entry(request)).await;
            if let Some(mut answer) = self.understood(answer).await {
                let status = answer.results.remove(0).status.expect("a status");
                match Code::from(status.code) {
                    Code::Ok => break,
                    Code::NotFound => {
                        assert!(again, "{name} was acknowledged and is gone");
                        break;
                    }
                    _ => self.refused(&status),
                }
            }
            again = true;
            if self.pause().await {
                self.known.in_doubt.insert(name.to_owned());
                return;
            }
        }
        self.known.deleted.insert(name.to_owned());
    }

    /// The answer, or nothing where the whole call was refused in a way that allows another try.
    async fn understood<T>(&self, answer: Result<tonic::Response<T>, Status>) -> Option<T> {
        match answer {
            Ok(answer) => Some(answer.into_inner()),
            Err(status) => {
                let code = status.code() as i32;
                if !self.mortal {
                    self.refused(&types::Status { code, message: status.message().to_owned() });
                }
                self.pause().await;
                None
            }
        }
    }

    fn refused(&self, status: &types::Status) {
        assert_eq!(Code::from(status.code), Code::Unavailable, "{}", status.message);
        self.progress.send_modify(|progress| progress.refused += 1);
    }

    /// True if it is time to stop.
    async fn pause(&self) -> bool {
        tokio::time::sleep(RETRY).await;
        *self.stop.borrow()
    }
}

/// A call that has to end, one way or the other.
async fn in_time<T>(call: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, call).await.expect("an answer in bounded time")
}

/// All entries that a server lists.
pub async fn all_entries(server: &Server) -> Vec<Entry> {
    let mut client = EntryClient::new(unix(&server.socket()).await).max_decoding_message_size(64 << 20);
    client.list_entries(ListEntriesRequest::default()).await.expect("listed").into_inner().entries
}

/// Every written entry is whole and there once, at each server; what was acknowledged is so.
pub async fn check(servers: &[&Server], known: &Known) {
    settle(servers).await;
    for server in servers {
        check_one(server, known).await;
    }
}

/// Waits until each server has what was written at the others: the log is in order, so a line more tells.
async fn settle(servers: &[&Server]) {
    for server in servers {
        let path = format!("/mark/{}", uuid::Uuid::new_v4());
        server.entry(&path, "unix:uid:1", &[]).await;
        for other in servers {
            until("the other's writes", || async {
                let has = |entry: &Entry| entry.spiffe_id.as_ref().is_some_and(|id| id.path == path);
                all_entries(other).await.iter().any(has)
            })
            .await;
        }
    }
}

async fn check_one(server: &Server, known: &Known) {
    let mut found = BTreeMap::new();
    for held in all_entries(server).await {
        let path = held.spiffe_id.as_ref().expect("an ID").path.clone();
        let Some(name) = path.strip_prefix("/job/").map(ToOwned::to_owned) else { continue };
        let wanted = entry(&name);
        let values = |entry: &Entry| -> BTreeSet<String> {
            entry.selectors.iter().map(|selector| selector.value.clone()).collect()
        };
        assert_eq!(held.dns_names, wanted.dns_names, "{path}");
        assert_eq!(held.federates_with, wanted.federates_with, "{path}");
        assert_eq!(values(&held), values(&wanted), "{path}");
        assert!(!known.deleted.contains(&name), "the deletion of {path} was acknowledged");
        assert!(found.insert(name, held.id).is_none(), "{path} is there twice");
    }
    assert!(!known.acked.is_empty() && !known.deleted.is_empty(), "nothing was written");
    for (name, id) in &known.acked {
        assert_eq!(found.get(name), Some(id), "{name} was acknowledged");
    }
}

/// Entries, their federation and the change log agree, and the log has no gap.
pub fn check_rows(sql: impl Fn(&str) -> String) {
    let unlogged =
        "SELECT count(*) FROM svid_entries e WHERE NOT EXISTS (SELECT 1 FROM svid_log l WHERE l.key = e.id)";
    assert_eq!(sql(unlogged), "0", "entries without a line in the change log");
    let lonely = "SELECT count(*) FROM svid_entries e WHERE spiffe_id LIKE '%/job/%'
        AND NOT EXISTS (SELECT 1 FROM svid_entry_federates f WHERE f.entry_row = e.row)";
    assert_eq!(sql(lonely), "0", "entries without their federation");
    let log = "SELECT max(seq) - min(seq) + 1 = count(*), max(seq) = (SELECT seq FROM svid_log_counter) FROM svid_log";
    assert_eq!(sql(log), "t|t", "the change log has a gap");
}
