//! What every database must do, as cases over an open store.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Duration;

use sqlx::{ConnectOptions, Connection};
use svid_core::bundle::{Bundle, JwtAuthority, X509Authority};
use svid_core::entry::EntrySpec;
use svid_core::id::SpiffeId;
use svid_core::selector::{Selector, SelectorSet};

use super::*;
use answers::*;
use federation::*;

mod answers;
mod federation;
mod postgres;

fn td() -> TrustDomain {
    "example.org".parse().unwrap()
}

fn other() -> TrustDomain {
    "other.org".parse().unwrap()
}

fn id(path: &str) -> SpiffeId {
    SpiffeId::from_parts("example.org", path).unwrap()
}

fn selectors(texts: &[&str]) -> SelectorSet {
    texts.iter().map(|text| text.parse::<Selector>().unwrap()).collect()
}

fn spec(spiffe: &str) -> EntrySpec {
    EntrySpec {
        spiffe_id: id(spiffe),
        parent_id: id("/spire/agent/x509pop/a"),
        selectors: selectors(&["unix:uid:1", "unix:user:a\"b\u{e9}"]),
        x509_svid_ttl: 60,
        jwt_svid_ttl: 0,
        federates_with: Vec::new(),
        admin: true,
        downstream: false,
        expires_at: 0,
        dns_names: vec!["b.example".into(), "a.example".into()],
        store_svid: false,
        hint: "h".into(),
        disable_x509_svid_prefetch: false,
        jwt_svid_include_jti: false,
    }
}

fn item(entry_id: Option<&str>, spec: EntrySpec) -> CreateEntry {
    CreateEntry { id: entry_id.map(|text| text.parse().unwrap()), spec }
}

fn new_node(path: &str, serial: &str) -> NewNode {
    NewNode {
        id: id(path),
        attestation_type: "x509pop".into(),
        serial: serial.into(),
        expires_at: 1000,
        can_reattest: true,
        selectors: selectors(&["x509pop:cn:a"]),
        key_hash: [0; 32],
    }
}

/// An error's text, since errors do not compare.
fn refusal<T>(result: Result<T, StoreError>) -> String {
    result.err().map(|error| error.to_string()).unwrap_or_default()
}

fn root() -> X509Authority {
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    X509Authority::from_der(params.self_signed(&key).unwrap().der()).unwrap()
}

async fn open(dir: &Path) -> Store {
    Store::open(&StoreConfig::at(dir.join("db")), &td()).await.unwrap()
}

macro_rules! cases {
    ($($case:ident),* $(,)?) => {
        $(
            mod $case {
                #[tokio::test]
                async fn sqlite() {
                    let dir = tempfile::tempdir().unwrap();
                    super::$case(super::open(dir.path()).await).await;
                }

                #[tokio::test]
                async fn postgres() {
                    let database = svid_test_postgres::database();
                    super::$case(super::postgres::open(&database).await).await;
                }
            }
        )*
    };
}
cases!(
    entries_are_created_once,
    entries_change,
    one_token_one_node,
    bans_win,
    bundles_change,
    the_log_tells_all,
    servers_claim_ids,
    servers_are_listed,
    clocks_agree,
    a_lost_answer_is_given_again,
    an_answer_ends_with_its_first_use,
    proofs_of_one_use_without_a_token,
    renewals_in_flight,
    old_certificates_are_noticed,
    restored_nodes_take_one_unknown_certificate,
    relationships_come_and_go,
    the_newest_bundle_stays,
    an_ended_relationship_gets_no_bundle,
    another_hint_is_another_document,
);

async fn entries_are_created_once(store: Store) {
    let mut far = spec("/far");
    far.federates_with = vec![other()];
    let batch = vec![
        item(Some("a"), spec("/web")),
        item(None, spec("/web")),
        item(Some("a"), spec("/db")),
        item(None, far.clone()),
        item(None, spec("/api")),
    ];
    let results = store.create_entries(batch, 7).await;
    let Ok(Created::New(first)) = &results[0] else { panic!("{:?}", results[0]) };
    assert_eq!((first.id.as_str(), first.revision, first.created_at), ("a", 0, 7));
    assert!(matches!(&results[1], Ok(Created::Existing(entry)) if entry == first));
    assert_eq!(refusal(results[2].clone()), "entry already exists");
    assert!(matches!(results[3], Err(StoreError::FederatedBundleMissing(_))));
    assert!(matches!(results[4], Ok(Created::New(_))));
    store.set_bundle(Bundle::empty(other())).await.unwrap();
    assert!(matches!(store.create_entries(vec![item(Some("f"), far)], 7).await[0], Ok(Created::New(_))));

    assert!(matches!(
        store.delete_bundle(&other(), DeleteMode::Restrict).await,
        Err(StoreError::BundleInUse(1))
    ));
    store.delete_bundle(&other(), DeleteMode::Dissociate).await.unwrap();
    let update = UpdateEntry { id: "f".parse().unwrap(), patch: EntryPatch::default() };
    let entry = store.update_entries(vec![update]).await.remove(0).unwrap();
    assert_eq!((entry.spec.federates_with, entry.revision), (vec![], 2));
    let twice = vec!["f".parse().unwrap(), "f".parse().unwrap()];
    let deleted = store.delete_entries(twice).await;
    assert!(deleted[0].is_ok() && matches!(deleted[1], Err(StoreError::NotFound(_))));

    store.set_bundle(Bundle::empty(other())).await.unwrap();
    let mut far = spec("/far");
    far.federates_with = vec![other()];
    store.create_entries(vec![item(Some("g"), far)], 7).await.remove(0).unwrap();
    store.delete_bundle(&other(), DeleteMode::Delete).await.unwrap();
    assert!(store.delete_entries(vec!["g".parse().unwrap()]).await[0].is_err());
}

async fn entries_change(store: Store) {
    store.create_entries(vec![item(Some("a"), spec("/a")), item(Some("b"), spec("/b"))], 7).await;
    let change = |entry_id: &str, patch: EntryPatch| UpdateEntry { id: entry_id.parse().unwrap(), patch };
    let hint = |text: &str| EntryPatch { hint: Some(text.into()), ..EntryPatch::default() };
    let results = store
        .update_entries(vec![
            change("a", hint("x")),
            change("nobody", hint("x")),
            change("a", EntryPatch { admin: Some(false), ..EntryPatch::default() }),
            change("a", EntryPatch { spiffe_id: Some(id("/b")), ..EntryPatch::default() }),
            change("b", EntryPatch { x509_svid_ttl: Some(-1), ..EntryPatch::default() }),
        ])
        .await;
    let twice = results[2].clone().unwrap();
    assert_eq!((twice.revision, twice.spec.hint.as_str(), twice.spec.admin), (2, "x", false));
    assert_eq!(refusal(results[1].clone()), "entry not found");
    assert_eq!(refusal(results[3].clone()), "similar entry already exists");
    assert_eq!(refusal(results[4].clone()), "invalid X509-SVID TTL");
    let full = spec("/c");
    let entry = store.update_entries(vec![change("b", full.clone().into())]).await.remove(0).unwrap();
    assert_eq!((entry.spec, entry.revision, entry.created_at), (full, 1, 7));
    // The old place is free again.
    assert!(matches!(store.create_entries(vec![item(None, spec("/b"))], 8).await[0], Ok(Created::New(_))));
}

async fn one_token_one_node(store: Store) {
    let node = |n: u8| NewNode {
        can_reattest: false,
        key_hash: [n; 32],
        ..new_node("/spire/agent/join_token/t", &n.to_string())
    };
    let alias = EntrySpec { parent_id: id("/spire/agent/join_token/t"), ..spec("/nodes/t") };
    store.create_join_token("t", 100, Some(item(Some("alias"), alias)), 7).await.unwrap();
    assert_eq!(refusal(store.create_join_token("t", 100, None, 7).await), "join token already exists");
    let unknown = store.attest_with_join_token("u", node(0), 50).await;
    assert_eq!(refusal(unknown), "join token does not exist or has already been used");
    assert_eq!(refusal(store.attest_with_join_token("t", node(0), 100).await), "join token expired");
    let tasks: Vec<_> = (1..=200)
        .map(|n| {
            let (store, node) = (store.clone(), node(n));
            tokio::spawn(async move { store.attest_with_join_token("t", node, 50).await })
        })
        .collect();
    let mut won = 0;
    for task in tasks {
        match task.await.unwrap() {
            Ok(admitted) => {
                assert_eq!(admitted, Admitted::New);
                won += 1;
            }
            Err(error) => assert!(matches!(error, StoreError::TokenUnknown), "{error}"),
        }
    }
    assert_eq!(won, 1);
    assert!(matches!(store.attest_node(node(9), 50).await, Err(StoreError::CannotReattest)));
    let alias = EntrySpec { parent_id: id("/spire/agent/join_token/t"), ..spec("/nodes/u") };
    store.create_join_token("t", 100, Some(item(Some("second"), alias)), 7).await.unwrap();
    store.attest_with_join_token("t", node(201), 50).await.unwrap();
    assert!(
        store.delete_entries(vec!["alias".parse().unwrap()]).await[0].is_err(),
        "the second alias replaced the first"
    );
    store.delete_node(&id("/spire/agent/join_token/t")).await.unwrap();
    assert!(
        store.delete_entries(vec!["second".parse().unwrap()]).await[0].is_err(),
        "the alias went with its node"
    );

    store.create_join_token("old", 10, None, 7).await.unwrap();
    assert_eq!(store.prune_join_tokens(11).await.unwrap(), 1);
    assert!(matches!(store.attest_with_join_token("old", node(1), 5).await, Err(StoreError::TokenUnknown)));
}

async fn bans_win(store: Store) {
    let agent = id("/spire/agent/x509pop/a");
    store.attest_node(new_node("/spire/agent/x509pop/a", "1"), 5).await.unwrap();
    store.renew_node(&agent, "1", "", "2", 2000).await.unwrap();
    let node = store.node(&agent).await.unwrap().unwrap();
    assert_eq!(node.serial, Serial::Active { current: "1".into(), next: Some(("2".into(), 2000)) });
    assert!(!store.activate_serial(&agent, "3").await.unwrap());
    assert!(store.activate_serial(&agent, "2").await.unwrap());
    let node = store.node(&agent).await.unwrap().unwrap();
    assert_eq!((node.serial, node.expires_at), (Serial::Active { current: "2".into(), next: None }, 2000));
    // Who was replaced gets nothing more, whatever it was asked for before.
    assert!(store.renew_node(&agent, "1", "", "9", 9000).await.is_err());
    store.renew_node(&agent, "2", "", "2b", 2500).await.unwrap();
    // A caller with the next certificate uses it, even if that was not written yet.
    store.renew_node(&agent, "2b", "2b", "3", 3000).await.unwrap();
    let node = store.node(&agent).await.unwrap().unwrap();
    assert_eq!(node.serial, Serial::Active { current: "2b".into(), next: Some(("3".into(), 3000)) });
    assert_eq!(node.expires_at, 2500);
    store.ban_node(&agent).await.unwrap();
    assert!(!store.activate_serial(&agent, "3").await.unwrap());
    assert!(store.renew_node(&agent, "3", "", "4", 4000).await.is_err());
    assert!(matches!(
        store.attest_node(new_node("/spire/agent/x509pop/a", "5"), 5).await,
        Err(StoreError::Banned)
    ));
    assert_eq!(store.node(&agent).await.unwrap().unwrap().serial, Serial::Banned);
    let all = PruneNodes { expired_before: 5000, include_tofu: true, limit: 10 };
    assert_eq!(store.prune_nodes(all).await.unwrap(), 0, "bans are kept");
    assert_eq!(store.delete_node(&agent).await.unwrap().selectors, selectors(&["x509pop:cn:a"]));
    assert!(matches!(store.ban_node(&agent).await, Err(StoreError::NotFound(_))));
    store.attest_node(new_node("/spire/agent/x509pop/a", "6"), 5).await.unwrap();
    assert_eq!(store.prune_nodes(all).await.unwrap(), 1);
}

async fn bundles_change(store: Store) {
    let (one, two) = (root(), root());
    let jwt = |kid: &str, expires_at| JwtAuthority {
        key_id: kid.into(),
        public_key: [1, 2, 3][..].into(),
        expires_at,
        tainted: false,
    };
    let bundle =
        store.append_bundle(&td(), vec![one.clone()], vec![jwt("k", 50), jwt("l", 0)]).await.unwrap();
    assert_eq!(
        (bundle.sequence_number, bundle.x509_authorities.len(), bundle.jwt_authorities.len()),
        (0, 1, 2)
    );
    let bundle = store.append_bundle(&td(), vec![one.clone(), two.clone()], vec![]).await.unwrap();
    assert_eq!((bundle.sequence_number, &bundle.x509_authorities), (1, &vec![one.clone(), two.clone()]));
    let same = store.append_bundle(&td(), vec![two], vec![]).await.unwrap();
    assert_eq!(same, bundle, "nothing new, no new number");

    let skid = AuthorityRef::X509(one.parsed().subject_key_id_hex().unwrap());
    assert!(matches!(store.revoke_authority(&td(), skid.clone()).await, Err(StoreError::Conflict(_))));
    let tainted = store.taint_authority(&td(), skid.clone()).await.unwrap();
    assert!(tainted.x509_authorities[0].tainted && tainted.sequence_number == 2);
    assert!(matches!(store.taint_authority(&td(), skid.clone()).await, Err(StoreError::Conflict(_))));
    assert_eq!(store.revoke_authority(&td(), skid).await.unwrap().x509_authorities.len(), 1);
    let nobody = AuthorityRef::Jwt("m".into());
    assert!(matches!(store.taint_authority(&td(), nobody).await, Err(StoreError::NotFound(_))));

    assert!(store.prune_bundle(&td(), i64::MAX).await.unwrap(), "one kind does not hold up the other");
    assert!(!store.prune_bundle(&td(), 51).await.unwrap());
    assert!(matches!(store.prune_bundle(&td(), i64::MAX).await, Err(StoreError::Conflict(_))));
    assert_eq!(store.bundle(&td()).await.unwrap().unwrap().jwt_authorities, vec![jwt("l", 0)]);

    let mut far = Bundle::empty(other());
    far.sequence_number = u64::MAX;
    far.refresh_hint = Duration::from_secs(5);
    assert!(matches!(store.update_bundle(far.clone(), BundleMask::ALL).await, Err(StoreError::NotFound(_))));
    assert_eq!(store.create_bundle(far.clone()).await.unwrap(), far);
    assert!(matches!(store.create_bundle(far.clone()).await, Err(StoreError::AlreadyExists(_))));
    let hint_only = BundleMask {
        x509_authorities: false,
        jwt_authorities: false,
        refresh_hint: true,
        sequence_number: false,
    };
    let changed = store.update_bundle(Bundle::empty(other()), hint_only).await.unwrap();
    assert_eq!((changed.refresh_hint, changed.sequence_number), (Duration::ZERO, u64::MAX));
    assert!(store.delete_bundle(&"no.org".parse().unwrap(), DeleteMode::Delete).await.is_err());
}

#[derive(Default)]
struct Count(usize, usize, usize);

impl LoadSink for Count {
    fn expect(&mut self, entries: usize, nodes: usize) {
        (self.0, self.1) = (entries, nodes);
    }
    fn bundle(&mut self, _bundle: Bundle) {
        self.2 += 1;
    }
    fn relationship(&mut self, _relationship: StoredRelationship) {
        self.2 += 1;
    }
    fn node(&mut self, _node: Node) {
        self.1 -= 1;
    }
    fn entry(&mut self, _entry: StoredEntry) {
        self.0 -= 1;
    }
}

async fn the_log_tells_all(store: Store) {
    let mut sink = Count::default();
    let start = store.load(&mut sink).await.unwrap();
    assert_eq!((start.position.seq, start.tag), (0, None));
    store.create_entries(vec![item(Some("a"), spec("/a")), item(Some("b"), spec("/b"))], 7).await;
    store.delete_entries(vec!["b".parse().unwrap()]).await;
    store.attest_node(new_node("/spire/agent/x509pop/a", "1"), 5).await.unwrap();
    store.set_bundle(Bundle::empty(other())).await.unwrap();
    store.save_journal("s", vec![1]).await.unwrap();
    let Changes::Lines { cursor, lines, rows } = store.changes_after(start).await.unwrap() else {
        panic!("reload")
    };
    let keys: Vec<_> = lines.iter().map(|line| (line.seq, line.kind, line.key.as_str())).collect();
    let agent = "spiffe://example.org/spire/agent/x509pop/a";
    assert_eq!(
        keys,
        [
            (1, Kind::Entry, "a"),
            (2, Kind::Entry, "b"),
            (3, Kind::Entry, "b"),
            (4, Kind::Node, agent),
            (5, Kind::Bundle, "other.org")
        ]
    );
    assert_eq!(rows.entries.iter().map(|(_, row)| row.is_some()).collect::<Vec<_>>(), [true, false]);
    assert_eq!(rows.entries[0].1.as_ref().unwrap().entry.spec, spec("/a"));
    assert!(rows.nodes[0].1.is_some() && rows.bundles[0].1.is_some());
    assert!(
        matches!(store.changes_after(cursor).await.unwrap(), Changes::Lines { lines, .. } if lines.is_empty())
    );
    assert_eq!(store.head().await.unwrap(), cursor.position);

    let reload = |changes| match changes {
        Changes::Reload(why) => why,
        Changes::Lines { .. } => panic!("lines"),
    };
    let mut else_where = cursor;
    else_where.tag = Some(0);
    let why = reload(store.changes_after(else_where).await.unwrap());
    assert_eq!(why, Reload::Rewritten, "another line stands there");
    let mut ahead = cursor;
    ahead.position.seq += 1;
    assert_eq!(reload(store.changes_after(ahead).await.unwrap()), Reload::Rewritten, "the head is behind");
    store.new_epoch(cursor.position.epoch).await.unwrap();
    assert_eq!(reload(store.changes_after(cursor).await.unwrap()), Reload::OtherEpoch);
    let noted = store.head().await.unwrap();
    store.new_epoch(cursor.position.epoch).await.unwrap();
    assert_eq!(store.head().await.unwrap(), noted, "somebody was faster: one epoch is enough");
    assert_eq!(store.prune_log(i64::MAX).await.unwrap(), 0, "young logs are kept whole");
    let mut sink = Count::default();
    store.load(&mut sink).await.unwrap();
    assert_eq!((sink.0, sink.1, sink.2), (0, 0, 1), "as many rows as announced");
}

fn to_claim(place: &str, holder: &str, now: i64) -> ServerClaim {
    ServerClaim {
        server_id: "s".into(),
        host: format!("host of {place}"),
        place: place.into(),
        holder: holder.into(),
        now,
        watched: None,
        facts: ServerFacts::default(),
    }
}

fn beat(server_id: &str, holder: &str, now: i64) -> Heartbeat {
    Heartbeat {
        server_id: server_id.into(),
        holder: holder.into(),
        now,
        position: Position { epoch: [0; 16], seq: 0 },
        authorities_end: 0,
        facts: ServerFacts::default(),
    }
}

async fn servers_claim_ids(store: Store) {
    let claim = async |place: &str, holder: &str, now| {
        store.claim_server(to_claim(place, holder, now)).await.unwrap()
    };
    let held = |place: &str, holder: &str, heard_at| {
        let host = format!("host of {place}");
        Claimed::Held(Holder { host, holder: holder.into(), heard_at })
    };
    assert_eq!(claim("one", "x", 0).await, Claimed::Yes);
    assert_eq!(claim("two", "y", 29).await, held("one", "x", 0));
    store.heartbeat_server(beat("s", "x", 20)).await.unwrap();
    assert_eq!(claim("two", "y", 30).await, held("one", "x", 20), "heard of meanwhile");
    assert_eq!(claim("one", "z", 31).await, Claimed::Yes, "the directory is locked: its last holder is dead");
    let taken = store.heartbeat_server(beat("s", "x", 32)).await;
    assert!(matches!(taken, Err(StoreError::ServerIdHeld(_))), "its successor holds the id");
    assert_eq!(claim("two", "y", 61).await, Claimed::Yes, "the lease ran out");
    // One that was watched for the lease and is silent is dead, whatever the clocks say.
    let seen = Holder { host: "host of two".into(), holder: "y".into(), heard_at: 61 };
    let watched = |heard_at| ServerClaim {
        watched: Some(Holder { heard_at, ..seen.clone() }),
        ..to_claim("one", "w", 70)
    };
    assert_eq!(store.claim_server(watched(60)).await.unwrap(), held("two", "y", 61));
    assert_eq!(store.claim_server(watched(61)).await.unwrap(), Claimed::Yes);
    // One that ended by itself leaves the id to anybody.
    store.release_server("s", "y").await.unwrap();
    assert_eq!(claim("two", "y", 71).await, held("one", "w", 70), "only the holder gives it back");
    store.release_server("s", "w").await.unwrap();
    assert_eq!(claim("two", "y", 71).await, Claimed::Yes);
    assert_eq!(store.load_journal("s").await.unwrap(), None);
    store.save_journal("s", vec![1]).await.unwrap();
    store.save_journal("s", vec![2]).await.unwrap();
    assert_eq!(store.load_journal("s").await.unwrap(), Some(vec![2]));
}

async fn servers_are_listed(store: Store) {
    let clocks_differ = store.now().await.unwrap() - svid_core::clock::Clock::system().unix();
    assert!(clocks_differ.abs() <= 60, "{clocks_differ}");
    assert!(!store.has_audience("s", 100).await.unwrap(), "nobody");
    let facts = ServerFacts {
        address: "a:1".into(),
        version: "1".into(),
        started_at: 5,
        x509: AuthorityIds { active: "x".into(), prepared: "y".into() },
        jwt: AuthorityIds::default(),
    };
    for (server_id, holder) in [("s", "x"), ("t", "y")] {
        let claim = ServerClaim {
            server_id: server_id.into(),
            facts: facts.clone(),
            ..to_claim(server_id, holder, 100)
        };
        assert_eq!(store.claim_server(claim).await.unwrap(), Claimed::Yes);
    }
    assert!(store.has_audience("s", 129).await.unwrap(), "t runs");
    assert!(!store.has_audience("s", 130).await.unwrap(), "t is gone");
    // Two lines that memory has not applied, and the first of them waits.
    let before = store.head().await.unwrap();
    for n in 0..2 {
        let item = item(None, spec(&format!("/w{n}")));
        store.create_entries(vec![item], 7).await.remove(0).unwrap();
    }
    let now = store.now().await.unwrap() + 60;
    let slow =
        Heartbeat { position: before, authorities_end: 900, facts: facts.clone(), ..beat("t", "y", now) };
    store.heartbeat_server(slow).await.unwrap();
    let head = store.head().await.unwrap();
    let fast = Heartbeat { position: head, facts: facts.clone(), ..beat("s", "x", now) };
    store.heartbeat_server(fast).await.unwrap();
    let rows = store.list_servers().await.unwrap();
    let [s, t] = rows.as_slice() else { panic!("{rows:?}") };
    assert_eq!((s.server_id.as_str(), s.behind_lines, s.behind_s, s.heard_at), ("s", 0, 0, now));
    assert_eq!((t.server_id.as_str(), t.behind_lines, t.host.as_str()), ("t", 2, "host of t"));
    assert!((55..=120).contains(&t.behind_s), "{}", t.behind_s);
    assert_eq!((&s.facts, s.stopped), (&facts, false));
    // Housekeeping forgets what has nothing left that could verify, and its journal.
    store.save_journal("t", vec![1]).await.unwrap();
    assert_eq!(store.prune_servers(now + 80_000).await.unwrap(), 0, "heard of within the day");
    assert_eq!(store.prune_servers(now + 90_000).await.unwrap(), 1, "s never had an authority");
    assert_eq!(store.load_journal("t").await.unwrap(), None);
    store.attest_node(new_node("/spire/agent/x509pop/a", "1"), 7).await.unwrap();
    assert!(store.has_audience("s", now).await.unwrap(), "an agent");
}

async fn clocks_agree(store: Store) {
    let here = svid_core::clock::Clock::system().unix();
    assert!((store.now().await.unwrap() - here).abs() <= 60);
    assert!(["sqlite3", "postgres"].contains(&store.kind()));
}

/// A copy of the files at any moment is what a killed process leaves: every acknowledged write is in it.
#[tokio::test]
async fn acknowledged_means_durable() {
    let (dir, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = open(dir.path()).await;
    for n in 0..5 {
        store
            .create_entries(vec![item(Some(&format!("e{n}")), spec(&format!("/w{n}")))], 7)
            .await
            .remove(0)
            .unwrap();
    }
    for file in std::fs::read_dir(dir.path()).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    let mut sink = Count::default();
    let again = open(copy.path()).await;
    assert_eq!(again.load(&mut sink).await.unwrap().position.seq, 5);
    let all = (0..5).map(|n| format!("e{n}").parse().unwrap()).collect();
    assert!(again.delete_entries(all).await.iter().all(Result::is_ok));
}

/// Runs statements on a file behind the store's back.
async fn tamper(path: &Path, sql: &'static str) {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path).create_if_missing(true);
    let mut conn = options.connect().await.unwrap();
    sqlx::raw_sql(sql).execute(&mut conn).await.unwrap();
    conn.close().await.unwrap();
}

#[tokio::test]
async fn foreign_databases_are_refused_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    tamper(&path, "CREATE TABLE registered_entries (id INTEGER); CREATE TABLE migrations (version INTEGER)")
        .await;
    let before = std::fs::read(&path).unwrap();
    let text = refusal(Store::open(&StoreConfig::at(path.clone()), &td()).await);
    assert!(text.contains("is a database of SPIRE"), "{text}");
    assert_eq!(std::fs::read(&path).unwrap(), before);

    let newer = tempfile::tempdir().unwrap();
    let store = open(newer.path()).await;
    store.create_entries(vec![item(None, spec("/a"))], 7).await;
    let path = newer.path().join("db");
    let renamed = Store::open(&StoreConfig::at(path.clone()), &other()).await;
    assert!(refusal(renamed).contains("entries of trust domain \"example.org\""));
    drop(store);
    tamper(
        &path,
        "INSERT INTO svid_migrations (version, description, success, checksum, execution_time)
         VALUES (9999, 'later', 1, x'00', 0)",
    )
    .await;
    let text = refusal(Store::open(&StoreConfig::at(path), &td()).await);
    assert!(text.contains("9999, which is newer"), "{text}");
}

#[tokio::test]
async fn new_files_are_their_owners() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let _store = open(dir.path()).await;
    for name in ["db", "db-wal", "db-shm"] {
        let mode = std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[tokio::test]
async fn without_migration_an_older_schema_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig { migrate: false, ..StoreConfig::at(dir.path().join("db")) };
    assert!(Store::open(&config, &td()).await.is_ok(), "a new database is made");
    assert!(Store::open(&config, &td()).await.is_ok(), "the schema is what it should be");
    tamper(&dir.path().join("db"), "DELETE FROM svid_migrations").await;
    let text = refusal(Store::open(&config, &td()).await);
    assert!(text.contains("disable_migration is set"), "{text}");
}

#[tokio::test]
async fn calls_are_counted_with_their_outcome() {
    let dir = tempfile::tempdir().unwrap();
    let metrics = svid_daemon::metrics::Metrics::new(svid_daemon::metrics::MetricsOptions::default());
    let store = open(dir.path()).await;
    store.count_into(&metrics);
    store.create_entries(vec![item(None, spec("/a")), item(None, spec("/b"))], 7).await;
    assert!(store.ban_node(&id("/spire/agent/none")).await.is_err());
    let text = metrics.render();
    for line in [
        "_datastore_registration_entry_create{status=\"OK\"} 2",
        "_datastore_node_update{status=\"NotFound\"} 1",
    ] {
        assert!(text.lines().any(|got| got == line), "{line}\n{text}");
    }
}

#[test]
fn connection_strings() {
    let check = |text: &str, want: Option<&str>| {
        assert_eq!(StoreConfig::sqlite(text).ok(), want.map(StoreConfig::at), "{text}");
    };
    check("/var/lib/db", Some("/var/lib/db"));
    check("./data/db.sqlite3", Some("./data/db.sqlite3"));
    check("file:/var/lib/db?_busy_timeout=5", Some("/var/lib/db"));
    check("file:///var/lib/db", Some("/var/lib/db"));
    check("http://x/db", None);
    check("", None);
    check(":memory:", None);
    check("file:x?mode=memory&cache=shared", None);
}
