//! Tables of authorised sets, watches over a moved clock, and a directory that followed against one that was rebuilt.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use proptest::prelude::*;
use svid_core::entry::{EntryId, EntrySpec};
use svid_core::selector::SelectorSet;

use super::*;
use crate::store::{CreateEntry, EntryPatch, NewNode, Node, StoreConfig, StoredEntry, UpdateEntry};

fn td() -> TrustDomain {
    "example.org".parse().unwrap()
}

fn id(path: &str) -> SpiffeId {
    SpiffeId::from_parts("example.org", path).unwrap()
}

fn selectors(texts: &str) -> SelectorSet {
    texts.split_whitespace().map(|text| text.parse::<svid_core::selector::Selector>().unwrap()).collect()
}

fn spec(parent: &str, spiffe: &str, wanted: &str) -> EntrySpec {
    EntrySpec {
        spiffe_id: id(spiffe),
        parent_id: id(parent),
        selectors: selectors(wanted),
        x509_svid_ttl: 300,
        jwt_svid_ttl: 0,
        federates_with: Vec::new(),
        admin: false,
        downstream: true,
        expires_at: 0,
        dns_names: vec!["web.example.org".into()],
        store_svid: false,
        hint: "hint".into(),
        disable_x509_svid_prefetch: false,
        jwt_svid_include_jti: true,
    }
}

fn node(path: &str, facts: &str) -> Node {
    Node {
        row: path.len() as u64,
        id: id(path),
        attestation_type: "x509pop".into(),
        serial: Serial::Active { current: "1".into(), next: None },
        expires_at: 1000,
        can_reattest: true,
        agent_version: String::new(),
        selectors: selectors(facts),
        used: true,
        suspected_at: 0,
        adopt_from: 0,
    }
}

const A: &str = "/spire/agent/a";
const B: &str = "/spire/agent/bb";
const SERVER: &str = "/spire/server";

/// Entries are `(id, parent, SPIFFE ID, selectors, expires_at)`; `want` is what agents a and b may have at 100.
fn check(entries: &[(&str, &str, &str, &str, i64)], want_a: &[&str], want_b: &[&str]) {
    let mut state = State::new(&td());
    state.put_node(node(A, "env:prod rack:1"));
    state.put_node(node(B, "env:prod rack:2"));
    for (row, (entry_id, parent, spiffe, wanted, expires_at)) in entries.iter().enumerate() {
        let mut spec = spec(parent, spiffe, wanted);
        spec.expires_at = *expires_at;
        let entry = Entry { id: entry_id.parse().unwrap(), spec, revision: 0, created_at: 1 };
        state.insert(&StoredEntry { row: row as u64 + 1, entry: entry.clone() });
        assert_eq!(state.unpack(state.handle(&Key::new(entry_id)).unwrap()), entry);
    }
    for (agent, want) in [(A, want_a), (B, want_b)] {
        let agent = id(agent);
        let all = state.authorized(&agent, 100);
        let got: BTreeSet<String> = all.iter().map(|h| state.packed(*h).key.id().to_string()).collect();
        assert_eq!(got, want.iter().map(|text| (*text).to_owned()).collect(), "{agent}");
        assert_eq!(got.len(), all.len(), "each once");
        for (entry_id, ..) in entries {
            let handle = state.handle(&Key::new(entry_id)).unwrap();
            assert_eq!(
                state.is_authorized(&agent, handle, 100),
                want.contains(entry_id),
                "{agent} {entry_id}"
            );
        }
    }
    for (entry_id, ..) in entries {
        state.remove(state.handle(&Key::new(entry_id)).unwrap());
    }
    assert_eq!((state.entry_count(), state.ends.len()), (0, 0));
    assert!(state.ids.find(&id("/web")).is_none(), "numbers are given back");
}

#[test]
fn a_parent_that_many_share() {
    let members: Vec<_> = (0..100).map(|n| (format!("m{n}"), format!("/spire/agent/{n}"))).collect();
    let mut entries: Vec<_> =
        members.iter().map(|(id, agent)| (&**id, &**agent, "/group", "unix:uid:1", 0)).collect();
    entries.extend([("e", "/group", "/web", "unix:uid:1", 0), ("f", "/web", "/web/x", "unix:uid:2", 0)]);
    check(&entries, &[], &[]);
    entries.push(("a", A, "/group", "unix:uid:1", 0));
    check(&entries, &["a", "e", "f"], &[]);
    entries.push(("b", SERVER, "/group", "rack:2", 0));
    check(&entries, &["a", "e", "f"], &["e", "f"]);
    entries.extend([("c", A, "/group", "unix:uid:3", 100), ("g", "/group", "/late", "unix:uid:4", 100)]);
    check(&entries, &["a", "e", "f"], &["e", "f"]);
}

#[test]
fn authorized_sets() {
    check(&[("1", A, "/web", "unix:uid:1", 0), ("2", B, "/web", "unix:uid:1", 0)], &["1"], &["2"]);
    // Nested parents, any depth, and a loop.
    check(
        &[
            ("1", A, "/web", "unix:uid:1", 0),
            ("2", "/web", "/web/x", "unix:uid:2", 0),
            ("3", "/web/x", "/web/y", "unix:uid:3", 0),
            ("4", "/web/y", "/web", "unix:uid:4", 0),
        ],
        &["1", "2", "3", "4"],
        &[],
    );
    // Aliases: all selectors must be the node's; the alias itself is never given out.
    check(
        &[
            ("1", SERVER, "/nodes/prod", "env:prod", 0),
            ("2", SERVER, "/nodes/rack1", "env:prod rack:1", 0),
            ("3", "/nodes/prod", "/web", "unix:uid:1", 0),
            ("4", "/nodes/rack1", "/db", "unix:uid:2", 0),
            ("5", "/db", "/db/x", "unix:uid:3", 0),
        ],
        &["3", "4", "5"],
        &["3"],
    );
    // An alias of an alias is no member: only nodes are.
    check(
        &[
            ("1", SERVER, "/nodes/prod", "env:prod", 0),
            ("2", SERVER, "/nodes/none", "env:prod env:test", 0),
            ("3", "/nodes/none", "/web", "unix:uid:1", 0),
        ],
        &[],
        &[],
    );
    // Time: an expired entry is neither given out nor walked through.
    check(
        &[
            ("1", A, "/web", "unix:uid:1", 100),
            ("2", "/web", "/web/x", "unix:uid:2", 0),
            ("3", A, "/db", "unix:uid:3", 101),
            ("4", SERVER, "/nodes/prod", "env:prod", 99),
            ("5", "/nodes/prod", "/api", "unix:uid:1", 0),
        ],
        &["3"],
        &[],
    );
}

struct Rig {
    _dir: tempfile::TempDir,
    store: Store,
    directory: Directory,
    now: Arc<AtomicI64>,
    task: tokio::task::JoinHandle<()>,
}

impl Rig {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = StoreConfig::at(dir.path().join("datastore.sqlite3"));
        let store = Store::open(&config, &td()).await.unwrap();
        let now = Arc::new(AtomicI64::new(100));
        let clock = {
            let now = now.clone();
            Clock::from_fn(move || {
                UNIX_EPOCH + Duration::from_secs(now.load(Ordering::SeqCst).unsigned_abs())
            })
        };
        let (directory, task) = Directory::start(store.clone(), &td(), clock).await.unwrap();
        Self { _dir: dir, store, directory, now, task: tokio::spawn(task.run()) }
    }

    async fn attest(&self, path: &str, facts: &str) {
        let node = NewNode {
            id: id(path),
            attestation_type: "x509pop".into(),
            serial: "1".into(),
            expires_at: 1000,
            can_reattest: true,
            selectors: selectors(facts),
            key_hash: [1; 32],
        };
        self.store.attest_node(node, 100).await.unwrap();
    }

    async fn create(&self, entry_id: &str, spec: EntrySpec) {
        let item = CreateEntry { id: Some(entry_id.parse().unwrap()), spec };
        self.store.create_entries(vec![item], 100).await.remove(0).unwrap();
    }

    async fn delete(&self, entry_id: &str) {
        self.store.delete_entries(vec![entry_id.parse().unwrap()]).await.remove(0).unwrap();
    }

    /// Moves the clock and lets the timer's work happen now.
    fn pass(&self, now: i64) {
        self.now.store(now, Ordering::SeqCst);
        self.directory.0.expire();
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// `(snapshot, upserts or revisions, removed)` as texts.
fn told(delta: &Delta) -> (bool, Vec<String>, Vec<String>) {
    let upserts = delta.upserts.iter().map(|entry| entry.id.to_string());
    let mut shown: Vec<String> = upserts.chain(delta.revisions.iter().map(|r| r.id.to_string())).collect();
    shown.sort();
    (delta.snapshot, shown, delta.removed.iter().map(ToString::to_string).collect())
}

fn texts(all: &[&str]) -> Vec<String> {
    all.iter().map(|text| (*text).to_owned()).collect()
}

#[tokio::test]
async fn a_watch_tells_what_changes_for_its_agent() {
    let rig = Rig::new().await;
    rig.attest(A, "env:prod").await;
    rig.attest(B, "env:test").await;
    rig.create("e1", spec(A, "/web", "unix:uid:1")).await;
    let mut watch = rig.directory.watch_agent(&id(A), None);
    assert_eq!(told(&watch.next().await.unwrap()), (true, texts(&["e1"]), vec![]));
    // Another agent's entry says nothing here; an own one does.
    rig.create("e2", spec(B, "/web", "unix:uid:1")).await;
    rig.create("e3", spec(A, "/db", "unix:uid:1")).await;
    let delta = watch.next().await.unwrap();
    assert_eq!(told(&delta), (false, texts(&["e3"]), vec![]));
    // An alias with entries under it: the whole list.
    rig.create("e4", spec("/nodes/prod", "/api", "unix:uid:1")).await;
    rig.create("e5", spec(SERVER, "/nodes/prod", "env:prod")).await;
    assert_eq!(told(&watch.next().await.unwrap()), (true, texts(&["e1", "e3", "e4"]), vec![]));
    rig.delete("e4").await;
    assert_eq!(told(&watch.next().await.unwrap()), (false, vec![], texts(&["e4"])));
    // Coming back with a position: what was missed, and no more.
    drop(watch);
    rig.delete("e3").await;
    let mut watch = rig.directory.watch_agent(&id(A), Some(delta.position));
    assert!(watch.next().await.unwrap().snapshot, "an alias changed meanwhile");
    let here = rig.directory.position();
    rig.create("e6", spec(A, "/db", "unix:uid:1")).await;
    rig.create("e7", spec(B, "/db", "unix:uid:1")).await;
    let mut again = rig.directory.watch_agent(&id(A), Some(here));
    assert_eq!(told(&again.next().await.unwrap()), (false, texts(&["e6"]), vec![]));
    let stale = Position { epoch: [9; 16], seq: here.seq };
    assert!(rig.directory.watch_agent(&id(A), Some(stale)).next().await.unwrap().snapshot);
    // New facts about the node, then its end.
    rig.attest(A, "env:none").await;
    assert!(again.next().await.unwrap().snapshot);
    // A bundle that changed while the stream was away is told with the snapshot: its own line may lie behind.
    let here = rig.directory.position();
    drop(again);
    rig.store.set_bundle(Bundle::empty(td())).await.unwrap();
    rig.attest(A, "env:other").await;
    let mut again = rig.directory.watch_agent(&id(A), Some(here));
    let delta = again.next().await.unwrap();
    assert_eq!((delta.snapshot, delta.bundles_changed), (true, vec![td()]));
    rig.store.ban_node(&id(A)).await.unwrap();
    assert_eq!(again.next().await.unwrap_err(), EndReason::Banned);
    let mut evicted = rig.directory.watch_agent(&id(B), None);
    rig.store.delete_node(&id(B)).await.unwrap();
    assert_eq!(evicted.next().await.unwrap_err(), EndReason::Evicted);
}

/// A call that was let in before the ban, and signs after it.
#[tokio::test]
async fn who_is_banned_meanwhile_gets_no_entry() {
    let rig = Rig::new().await;
    let has = || rig.directory.authorized_entry(&id(A), "e1", 100).is_some();
    rig.attest(A, "env:prod").await;
    rig.create("e1", spec(A, "/web", "unix:uid:1")).await;
    assert!(has());
    rig.store.ban_node(&id(A)).await.unwrap();
    assert!(!has());
    rig.store.delete_node(&id(A)).await.unwrap();
    assert!(!has());
    rig.attest(A, "env:prod").await;
    assert!(has());
}

#[tokio::test]
async fn time_ends_entries_and_watches() {
    let rig = Rig::new().await;
    rig.attest(A, "env:prod").await;
    let mut ending = spec(A, "/web", "unix:uid:1");
    ending.expires_at = 200;
    rig.create("e1", ending).await;
    rig.create("e2", spec(A, "/db", "unix:uid:1")).await;
    let mut watch = rig.directory.watch_agent(&id(A), None);
    let position = watch.next().await.unwrap().position;
    rig.pass(199);
    assert!(rig.directory.authorized_entry(&id(A), "e1", 199).is_some());
    rig.pass(200);
    assert_eq!(told(&watch.next().await.unwrap()), (false, vec![], texts(&["e1"])));
    assert!(rig.directory.authorized_entry(&id(A), "e1", 200).is_none());
    assert!(rig.directory.entries_with_spiffe_id(&id("/web"), 200).is_empty());
    // No line of the log says so, and an agent that comes back hears of it all the same.
    let mut again = rig.directory.watch_agent(&id(A), Some(position));
    assert_eq!(told(&again.next().await.unwrap()), (false, vec![], texts(&["e1"])));
    assert_eq!(rig.store.prune_entries(201).await.unwrap(), 1);
    assert!(rig.directory.entry("e1").is_none());
    rig.pass(1000);
    loop {
        match again.next().await {
            Ok(_) => {}
            Err(reason) => break assert_eq!(reason, EndReason::Expired),
        }
    }
}

#[tokio::test]
async fn agents_are_checked() {
    let rig = Rig::new().await;
    let check = |serial: &str| rig.directory.check_agent(&id(A), serial, 1000, 100);
    let ok = |promoted| Ok(AgentOk { can_reattest: true, promoted });
    assert_eq!(check("1"), Err(AgentDenied::NotAttested));
    rig.attest(A, "env:prod").await;
    assert_eq!(check("1"), ok(false));
    assert_eq!(check("2"), Err(AgentDenied::NotActive));
    assert_eq!(rig.directory.check_agent(&id(A), "1", 99, 100), Err(AgentDenied::Expired));
    rig.store.renew_node(&id(A), "1", "", "2", 2000).await.unwrap();
    assert_eq!(check("1"), ok(false), "the old certificate is good until the new one is seen");
    assert_eq!(check("2"), ok(true));
    assert_eq!(check("2"), ok(false));
    assert_eq!(check("1"), Err(AgentDenied::NotActive));
    // A row that does not know of the promotion yet does not undo it.
    rig.store.set_agent_version(&id(A), "1.15.2").await.unwrap();
    assert_eq!(check("2"), ok(false));
    assert!(matches!(
        rig.directory.verify_agent(&id(A), "1", 1000, 100).await,
        Err(AgentRefusal::Denied(AgentDenied::NotActive))
    ));
    rig.store.ban_node(&id(A)).await.unwrap();
    assert_eq!(check("2"), Err(AgentDenied::Banned));
    rig.store.activate_serial(&id(A), "2").await.unwrap();
    assert_eq!(check("2"), Err(AgentDenied::Banned), "a ban wins");
}

#[tokio::test]
async fn a_restored_node_takes_the_first_certificate_issued_after_the_backup() {
    let rig = Rig::new().await;
    rig.attest(A, "env:prod").await;
    let agent = id(A);
    let admit = async |serial: &str, not_before: i64, not_after: i64| {
        let cert = AgentCert { id: &agent, serial, not_before, not_after };
        rig.directory.admit_agent(&cert, 600).await.map(drop).map_err(|error| error.to_string())
    };
    let (over, inactive) =
        (Err("agent SVID is expired".to_owned()), Err("agent SVID is not active".to_owned()));
    assert_eq!(admit("7", 510, 5000).await, inactive, "an ordinary node");
    rig.store.mark_restored(&agent, 500).await;
    assert_eq!(admit("7", 489, 5000).await, inactive, "issued before the backup");
    assert_eq!(admit("7", 510, 599).await, over);
    assert_eq!(admit("1", 100, 1000).await, Ok(()), "one that the backup knows ends nothing");
    let (first, second) = tokio::join!(admit("7", 490, 5000), admit("8", 510, 5000));
    assert!(first.is_ok() != second.is_ok(), "one of them: {first:?} {second:?}");
    let (won, lost) = if first.is_ok() { ("7", "8") } else { ("8", "7") };
    assert_eq!(admit(won, 510, 5000).await, Ok(()));
    for serial in [lost, "1", "9"] {
        assert_eq!(admit(serial, 510, 5000).await, inactive, "{serial}");
    }
    let node = rig.store.node(&agent).await.unwrap().unwrap();
    assert_eq!(node.serial, Serial::Active { current: won.into(), next: None });

    rig.store.mark_restored(&agent, 500).await;
    rig.task.abort();
    let unknown = admit("9", 510, 5000).await;
    assert_eq!(unknown, Err("the authorization state cannot be brought up to date".into()), "no denial");
}

#[tokio::test]
async fn a_banned_node_takes_no_certificate() {
    let rig = Rig::new().await;
    rig.attest(A, "env:prod").await;
    let agent = id(A);
    rig.store.mark_restored(&agent, 500).await;
    let cert = AgentCert { id: &agent, serial: "7", not_before: 510, not_after: 5000 };
    let denied = async || rig.directory.admit_agent(&cert, 600).await.map(drop).unwrap_err().to_string();
    rig.store.ban_node(&agent).await.unwrap();
    assert_eq!(denied().await, "agent is banned");
    rig.store.delete_node(&agent).await.unwrap();
    assert_eq!(denied().await, "agent is not attested");
}

#[tokio::test]
async fn listings() {
    let rig = Rig::new().await;
    rig.attest(A, "env:prod").await;
    rig.attest(B, "env:test").await;
    for (entry_id, parent, spiffe) in [("e3", A, "/web"), ("e1", B, "/web"), ("e2", A, "/db")] {
        rig.create(entry_id, spec(parent, spiffe, "unix:uid:1 unix:gid:2")).await;
    }
    let ids = |filter: &EntryFilter, page| {
        let listing = rig.directory.list_entries(filter, page);
        (listing.items.iter().map(|e| e.id.to_string()).collect::<Vec<_>>(), listing.next)
    };
    let all = EntryFilter::default();
    assert_eq!(ids(&all, Page::default()), (texts(&["e3", "e1", "e2"]), None));
    let (first, next) = ids(&all, Page { after: 0, size: 2 });
    assert_eq!(first, texts(&["e3", "e1"]));
    let (second, next) = ids(&all, Page { after: next.unwrap(), size: 2 });
    assert_eq!(second, texts(&["e2"]));
    assert_eq!(ids(&all, Page { after: next.unwrap(), size: 2 }), (vec![], None));
    let web = EntryFilter { spiffe_id: Some(id("/web")), ..all.clone() };
    assert_eq!(ids(&web, Page::default()).0, texts(&["e3", "e1"]));
    assert_eq!(rig.directory.count_entries(&web), 2);
    let own = EntryFilter { parent_id: Some(id(A)), spiffe_id: Some(id("/db")), ..all.clone() };
    assert_eq!(ids(&own, Page::default()).0, texts(&["e2"]));
    let matched = |how, wanted: &str| {
        rig.directory.count_entries(&EntryFilter { selectors: Some((selectors(wanted), how)), ..all.clone() })
    };
    use svid_core::selector::SetMatch::{Any, Exact, Subset, Superset};
    assert_eq!((matched(Exact, "unix:uid:1"), matched(Exact, "unix:gid:2 unix:uid:1")), (0, 3));
    assert_eq!((matched(Superset, "unix:uid:1"), matched(Subset, "unix:uid:1 unix:gid:2 a:b")), (3, 3));
    assert_eq!((matched(Any, "unix:uid:1 a:b"), matched(Any, "a:b")), (3, 0));
    rig.store.ban_node(&id(B)).await.unwrap();
    let banned = NodeFilter { banned: Some(true), ..NodeFilter::default() };
    assert_eq!(rig.directory.list_nodes(&banned, Page::default()).items[0].id, id(B));
    assert_eq!(
        rig.directory.count_nodes(&NodeFilter { expires_before: Some(1000), ..NodeFilter::default() }),
        0
    );
}

#[derive(Clone, Debug)]
enum Op {
    Create(u8, u8, u8, u8),
    Move(u8, u8, u8),
    Delete(u8),
    Attest(u8, u8),
    Evict(u8),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        (0..12u8, 0..6u8, 0..5u8, 0..4u8).prop_map(|(e, p, s, x)| Op::Create(e, p, s, x)),
        (0..12u8, 0..6u8, 0..5u8).prop_map(|(e, p, s)| Op::Move(e, p, s)),
        (0..12u8).prop_map(Op::Delete),
        (0..2u8, 0..4u8).prop_map(|(n, s)| Op::Attest(n, s)),
        (0..2u8).prop_map(Op::Evict),
    ]
}

const PARENTS: [&str; 6] = [A, B, SERVER, "/w0", "/w1", "/w2"];
const SPIFFES: [&str; 5] = ["/w0", "/w1", "/w2", "/w3", "/w4"];
const FACTS: [&str; 4] = ["env:prod", "env:prod rack:1", "rack:1", "env:test"];

async fn run(rig: &Rig, op: Op) {
    let entry_id = |n: u8| -> EntryId { format!("e{n}").parse().unwrap() };
    match op {
        Op::Create(e, p, s, x) => {
            let mut spec = spec(PARENTS[p as usize], SPIFFES[s as usize], FACTS[x as usize]);
            spec.expires_at = if x == 3 { 50 } else { 0 };
            rig.store.create_entries(vec![CreateEntry { id: Some(entry_id(e)), spec }], 100).await;
        }
        Op::Move(e, p, s) => {
            let patch = EntryPatch {
                parent_id: Some(id(PARENTS[p as usize])),
                spiffe_id: Some(id(SPIFFES[s as usize])),
                ..EntryPatch::default()
            };
            rig.store.update_entries(vec![UpdateEntry { id: entry_id(e), patch }]).await;
        }
        Op::Delete(e) => drop(rig.store.delete_entries(vec![entry_id(e)]).await),
        Op::Attest(n, s) => rig.attest([A, B][n as usize], FACTS[s as usize]).await,
        Op::Evict(n) => drop(rig.store.delete_node(&id([A, B][n as usize])).await),
    }
}

/// Everything that can be asked, as text.
fn picture(directory: &Directory) -> String {
    let authorized = |agent: &str| {
        let mut ids: Vec<_> =
            directory.authorized_entries(&id(agent), 100).into_iter().map(|e| e.id).collect();
        ids.sort();
        for entry in directory.list_entries(&EntryFilter::default(), Page::default()).items {
            let one = directory.authorized_entry(&id(agent), entry.id.as_str(), 100).is_some();
            let serves = directory.node(&id(agent)).is_some();
            assert_eq!(one, serves && ids.contains(&entry.id), "both walks agree on {}", entry.id);
        }
        ids
    };
    format!(
        "{:?} {:?} {:?} {:?}",
        directory.list_entries(&EntryFilter::default(), Page::default()),
        directory.list_nodes(&NodeFilter::default(), Page::default()),
        authorized(A),
        authorized(B),
    )
}

/// What an agent that applies deltas ends up with.
fn apply_delta(held: &mut BTreeSet<EntryId>, delta: Delta) {
    if delta.snapshot {
        *held = delta.revisions.into_iter().map(|revision| revision.id).collect();
    }
    held.retain(|id| !delta.removed.contains(id));
    held.extend(delta.upserts.into_iter().map(|entry| entry.id));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn following_equals_rebuilding(ops in proptest::collection::vec(op(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let rig = Rig::new().await;
            rig.attest(A, "env:prod").await;
            let mut watch = rig.directory.watch_agent(&id(A), None);
            let mut held = BTreeSet::new();
            apply_delta(&mut held, watch.next().await.unwrap());
            for op in ops {
                run(&rig, op).await;
                // Whatever is dirty is told without waiting; an evicted agent begins anew.
                while let Ok(next) = tokio::time::timeout(Duration::ZERO, watch.next()).await {
                    match next {
                        Ok(delta) => apply_delta(&mut held, delta),
                        Err(_) => {
                            held.clear();
                            rig.attest(A, "env:prod").await;
                            watch = rig.directory.watch_agent(&id(A), None);
                        }
                    }
                }
                let want = rig.directory.authorized_entries(&id(A), 100).into_iter().map(|entry| entry.id).collect();
                assert_eq!(held, want, "deltas add up");
            }
            let fresh = Directory::start(rig.store.clone(), &td(), rig.directory.0.clock.clone()).await.unwrap().0;
            assert_eq!(picture(&rig.directory), picture(&fresh));
        });
    }
}
