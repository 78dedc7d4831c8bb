#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use svid_core::bundle::X509Authority;
use svid_core::entry::EntrySpec;
use svid_core::federation::{EndpointProfile, Relationship};
use svid_core::id::SpiffeId;
use svid_core::selector::Selector;
use svid_proto::spire::private::server::journal;
use tempfile::TempDir;
use tokio::sync::mpsc;

use super::*;
use crate::store::{
    AuthorityRef, BundleMask, CreateEntry, DeleteMode, EntryPatch, NewNode, ServerClaim, Store, UpdateEntry,
};

/// The moment of every call, and one long after everything ended.
const NOW: i64 = 1_800_000_000;
const HOUR: i64 = 3600;

fn td() -> TrustDomain {
    "example.org".parse().unwrap()
}

fn id(path: &str) -> SpiffeId {
    SpiffeId::from_parts("example.org", path).unwrap()
}

fn agent(name: &str) -> SpiffeId {
    id(&format!("/spire/agent/x509pop/{name}"))
}

fn entry(name: &str) -> CreateEntry {
    let spec = EntrySpec {
        spiffe_id: id(&format!("/{name}")),
        parent_id: agent("a"),
        selectors: ["unix:uid:1".parse::<Selector>().unwrap()].into_iter().collect(),
        x509_svid_ttl: 0,
        jwt_svid_ttl: 0,
        federates_with: Vec::new(),
        admin: false,
        downstream: false,
        expires_at: 0,
        dns_names: Vec::new(),
        store_svid: false,
        hint: String::new(),
        disable_x509_svid_prefetch: false,
        jwt_svid_include_jti: false,
    };
    CreateEntry { id: Some(name.parse().unwrap()), spec }
}

fn authority() -> X509Authority {
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    X509Authority::from_der(params.self_signed(&key).unwrap().der()).unwrap()
}

fn key_id(authority: &X509Authority) -> String {
    authority.parsed().subject_key_id_hex().unwrap().to_string()
}

/// A journal that knows this authority.
fn journal(authority: &X509Authority) -> Vec<u8> {
    let entry = journal::X509caEntry { authority_id: key_id(authority), ..Default::default() };
    prost::Message::encode_to_vec(&journal::Entries { x509_c_as: vec![entry], ..Default::default() })
}

const SERVER: &str = "7d444840-9dc0-11d1-b245-5ffdce74fad2";

/// A directory with databases and a backup of the first one.
struct Site {
    dir: TempDir,
    root: X509Authority,
}

impl Site {
    fn config(&self, name: &str) -> StoreConfig {
        StoreConfig::at(self.dir.path().join(name))
    }

    async fn store(&self, name: &str) -> Store {
        Store::open(&self.config(name), &td()).await.unwrap()
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("backup")
    }

    /// A database with two entries, two agents, a root and a journal, and its backup.
    async fn new() -> Self {
        let site = Self { dir: tempfile::tempdir().unwrap(), root: authority() };
        let store = site.store("db").await;
        store.append_bundle(&td(), vec![site.root.clone()], vec![]).await.unwrap();
        store.save_journal(SERVER, journal(&site.root)).await.unwrap();
        for (name, serial) in [("a", "1"), ("b", "2")] {
            let node = NewNode {
                id: agent(name),
                attestation_type: "x509pop".into(),
                serial: serial.into(),
                expires_at: NOW + HOUR,
                can_reattest: true,
                key_hash: [1; 32],
                selectors: ["x509pop:cn:a".parse::<Selector>().unwrap()].into_iter().collect(),
            };
            store.attest_node(node, NOW).await.unwrap();
        }
        for outcome in store.create_entries(vec![entry("one"), entry("two")], NOW).await {
            outcome.unwrap();
        }
        site.back_up(&store).await;
        site
    }

    async fn back_up(&self, store: &Store) {
        let (pieces, mut taken) = mpsc::channel(4);
        let collect = async {
            let mut bytes = Vec::new();
            while let Some(piece) = taken.recv().await {
                bytes.extend(piece);
            }
            bytes
        };
        let (done, bytes) = tokio::join!(store.backup(SERVER, NOW, pieces), collect);
        done.unwrap();
        std::fs::write(self.file(), bytes).unwrap();
    }

    fn terms(&self, accept_rollback: bool) -> Terms {
        Terms {
            trust_domain: td(),
            now: NOW + 60,
            accept_rollback,
            rehearsal: false,
            lease: 90,
            locked_host: None,
        }
    }

    /// Restores into a database; a rehearsal before it says the same and writes nothing.
    async fn restore(&self, name: &str, accept_rollback: bool) -> Report {
        let backup = Backup::read(&self.file(), &td()).unwrap();
        let (config, terms) = (self.config(name), self.terms(accept_rollback));
        let rehearsed = backup.rehearse(&config, &terms).await.unwrap().report;
        let done = backup.restore(&config, &terms).await.unwrap().report;
        assert_eq!(Report { restored: false, ..done.clone() }, rehearsed);
        assert_eq!(done.restored, done.accepted);
        done
    }
}

fn table<'r>(report: &'r Report, name: &str) -> &'r Table {
    report.tables.iter().find(|table| table.table == name).unwrap()
}

fn listed(lists: &[List]) -> Vec<&str> {
    lists.iter().flat_map(|list| &list.items).map(String::as_str).collect()
}

async fn entry_ids(store: &Store) -> Vec<String> {
    let mut ids = Vec::new();
    let mut sink = Collect { ids: &mut ids };
    store.load(&mut sink).await.unwrap();
    ids.sort();
    ids
}

struct Collect<'s> {
    ids: &'s mut Vec<String>,
}

impl crate::store::LoadSink for Collect<'_> {
    fn expect(&mut self, _: usize, _: usize) {}
    fn bundle(&mut self, _: Bundle) {}
    fn relationship(&mut self, _: crate::store::StoredRelationship) {}
    fn node(&mut self, _: crate::store::Node) {}
    fn entry(&mut self, stored: crate::store::StoredEntry) {
        self.ids.push(stored.entry.id.to_string());
    }
}

#[tokio::test]
async fn an_empty_database_gets_everything_but_only_if_told_so() {
    let site = Site::new().await;
    let refused = site.restore("new", false).await;
    assert!(refused.database.is_empty && !refused.accepted);
    assert!(
        refused.refusals[0].starts_with("the database is empty, so nothing can tell what happened since")
    );
    assert!(entry_ids(&site.store("new").await).await.is_empty());

    let report = site.restore("new", true).await;
    assert!(report.restored, "{report:?}");
    let (old, new) = (site.store("db").await, site.store("new").await);
    assert_eq!(entry_ids(&new).await, ["one", "two"]);
    let (node, wanted) =
        (new.node(&agent("a")).await.unwrap().unwrap(), old.node(&agent("a")).await.unwrap().unwrap());
    // It may have renewed since.
    assert_eq!(node, crate::store::Node { adopt_from: NOW, ..wanted });
    let (bundle, wanted) =
        (new.bundle(&td()).await.unwrap().unwrap(), old.bundle(&td()).await.unwrap().unwrap());
    assert_eq!(bundle.x509_authorities, wanted.x509_authorities);
    assert!(bundle.sequence_number > wanted.sequence_number);
    assert_eq!(new.load_journal(SERVER).await.unwrap(), old.load_journal(SERVER).await.unwrap());
    let (head, before) = (new.head().await.unwrap(), old.head().await.unwrap());
    assert!(head.epoch != before.epoch && head.seq > before.seq);
    // Agents may have seen later revisions of the same entry.
    let update = UpdateEntry { id: "one".parse().unwrap(), patch: EntryPatch::default() };
    assert!(new.update_entries(vec![update]).await.remove(0).unwrap().revision > 1_000_000);
}

#[tokio::test]
async fn nothing_to_do_needs_no_permission() {
    let site = Site::new().await;
    let before = site.store("db").await.head().await.unwrap();
    let report = site.restore("db", false).await;
    assert!(report.restored, "{report:?}");
    assert_eq!((table(&report, "entries").same, table(&report, "agents").same), (2, 2));
    assert!(site.store("db").await.head().await.unwrap().seq > before.seq);
}

#[tokio::test]
async fn what_was_taken_away_since_comes_back_only_if_told_so() {
    let site = Site::new().await;
    let store = site.store("db").await;
    store.delete_node(&agent("b")).await.unwrap();
    store.delete_entries(vec!["one".parse().unwrap()]).await.remove(0).unwrap();
    let patch = EntryPatch { hint: Some("narrower".into()), ..Default::default() };
    let update = UpdateEntry { id: "two".parse().unwrap(), patch };
    let narrowed = store.update_entries(vec![update]).await.remove(0).unwrap();
    store.create_entries(vec![entry("three")], NOW).await.remove(0).unwrap();
    drop(store);

    let refused = site.restore("db", false).await;
    assert!(!refused.accepted && !refused.restored);
    let back = listed(&refused.comes_back);
    assert!(back.contains(&"one (spiffe://example.org/one)"), "{back:?}");
    assert!(back.contains(&"two (spiffe://example.org/two)"), "{back:?}");
    assert!(back.contains(&"spiffe://example.org/spire/agent/x509pop/b"), "{back:?}");
    assert_eq!(listed(&refused.lost), ["three (spiffe://example.org/three)"]);
    assert_eq!(entry_ids(&site.store("db").await).await, ["three", "two"]);

    let report = site.restore("db", true).await;
    assert!(report.restored, "{report:?}");
    let store = site.store("db").await;
    assert_eq!(entry_ids(&store).await, ["one", "two"]);
    assert!(store.node(&agent("b")).await.unwrap().is_some());
    let update = UpdateEntry { id: "two".parse().unwrap(), patch: EntryPatch::default() };
    let entry = store.update_entries(vec![update]).await.remove(0).unwrap();
    assert_eq!(entry.spec.hint, "");
    assert!(entry.revision > narrowed.revision + 1, "agents see that it changed");
}

#[tokio::test]
async fn bans_and_certificates_in_use_stay_whatever_was_accepted() {
    let site = Site::new().await;
    let store = site.store("db").await;
    store.ban_node(&agent("a")).await.unwrap();
    store.renew_node(&agent("b"), "2", "", "3", NOW + 2 * HOUR).await.unwrap();
    store.activate_serial(&agent("b"), "3").await.unwrap();
    let banned = store.node(&agent("a")).await.unwrap();
    let renewed = store.node(&agent("b")).await.unwrap();
    drop(store);
    let report = site.restore("db", true).await;
    assert_eq!(listed(&report.stays), ["spiffe://example.org/spire/agent/x509pop/a"]);
    let store = site.store("db").await;
    assert_eq!(store.node(&agent("a")).await.unwrap(), banned);
    assert_eq!(store.node(&agent("b")).await.unwrap(), renewed);
}

#[tokio::test]
async fn a_ban_of_the_backup_holds_as_well() {
    let site = Site::new().await;
    let store = site.store("db").await;
    store.ban_node(&agent("a")).await.unwrap();
    site.back_up(&store).await;
    let node = NewNode {
        id: agent("a"),
        attestation_type: "x509pop".into(),
        serial: "9".into(),
        expires_at: NOW + HOUR,
        can_reattest: true,
        key_hash: [1; 32],
        selectors: ["x509pop:cn:a".parse::<Selector>().unwrap()].into_iter().collect(),
    };
    store.delete_node(&agent("a")).await.unwrap();
    store.attest_node(node, NOW).await.unwrap();
    drop(store);
    let report = site.restore("db", false).await;
    assert!(report.restored, "{report:?}");
    let node = site.store("db").await.node(&agent("a")).await.unwrap().unwrap();
    assert_eq!(node.serial, crate::store::Serial::Banned);
    let report = site.restore("new", true).await;
    assert!(report.restored, "{report:?}");
    let node = site.store("new").await.node(&agent("a")).await.unwrap().unwrap();
    assert_eq!((node.serial, node.adopt_from), (crate::store::Serial::Banned, 0));
}

#[tokio::test]
async fn a_revoked_authority_never_comes_back_and_a_tainted_one_stays_so() {
    let site = Site::new().await;
    let store = site.store("db").await;
    let (next, foreign) = (authority(), authority());
    store.append_bundle(&td(), vec![next.clone()], vec![]).await.unwrap();
    let taint = |authority: &X509Authority| AuthorityRef::X509(key_id(authority));
    store.taint_authority(&td(), taint(&site.root)).await.unwrap();
    let report = site.restore("db", true).await;
    assert_eq!(listed(&report.stays), [format!("X.509 {} of example.org", key_id(&site.root))]);
    store.revoke_authority(&td(), taint(&site.root)).await.unwrap();

    let report = site.restore("db", true).await;
    assert!(report.stays[0].what.contains("revoked"), "{:?}", report.stays);
    let bundle = store.bundle(&td()).await.unwrap().unwrap();
    assert_eq!(bundle.x509_authorities, [next]);

    // A database that never knew it, such as one that was made anew: its own authority stays beside the backup's.
    let other = site.store("other").await;
    other.append_bundle(&td(), vec![foreign.clone()], vec![]).await.unwrap();
    let refused = site.restore("other", false).await;
    assert!(listed(&refused.comes_back).contains(&&*format!("X.509 {} of example.org", key_id(&site.root))));
    site.restore("other", true).await;
    let bundle = other.bundle(&td()).await.unwrap().unwrap();
    assert_eq!(bundle.x509_authorities, [foreign, site.root.clone()]);
}

#[tokio::test]
async fn join_tokens_are_not_in_a_backup() {
    let site = Site::new().await;
    let store = site.store("db").await;
    let mut alias = entry("host");
    alias.spec.parent_id = id("/spire/agent/join_token/secret-of-minutes");
    store.create_join_token("secret-of-minutes", NOW + 600, Some(alias), NOW).await.unwrap();
    site.back_up(&store).await;
    let bytes = std::fs::read(site.file()).unwrap();
    let secret = b"secret-of-minutes";
    assert!(!bytes.windows(secret.len()).any(|window| window == secret));
    // The token and its entry stay where they are.
    let report = site.restore("db", false).await;
    assert!(report.restored, "{report:?}");
    assert_eq!(entry_ids(&store).await, ["host", "one", "two"]);
}

#[tokio::test]
async fn an_entry_that_goes_with_its_agent_still_does_so_afterwards() {
    let site = Site::new().await;
    let store = site.store("db").await;
    let node = NewNode {
        id: id("/spire/agent/join_token/t"),
        attestation_type: "join_token".into(),
        serial: "5".into(),
        expires_at: NOW + HOUR,
        can_reattest: false,
        key_hash: [1; 32],
        selectors: Default::default(),
    };
    store.create_join_token("t", NOW + 600, Some(entry("host")), NOW).await.unwrap();
    store.attest_with_join_token("t", node.clone(), NOW).await.unwrap();
    site.back_up(&store).await;
    assert!(site.restore("new", true).await.restored);
    let new = site.store("new").await;
    assert_eq!(entry_ids(&new).await, ["host", "one", "two"]);
    new.delete_node(&node.id).await.unwrap();
    assert_eq!(entry_ids(&new).await, ["one", "two"]);
}

#[tokio::test]
async fn bundles_of_others_come_back_only_if_told_so() {
    let site = Site::new().await;
    let store = site.store("db").await;
    let other: TrustDomain = "other.org".parse().unwrap();
    let bundle = Bundle { x509_authorities: vec![authority()], ..Bundle::empty(other.clone()) };
    store.set_bundle(bundle.clone()).await.unwrap();
    let mut far = entry("far");
    far.spec.federates_with = vec![other.clone()];
    store.create_entries(vec![far], NOW).await.remove(0).unwrap();
    site.back_up(&store).await;
    store.delete_bundle(&other, DeleteMode::Delete).await.unwrap();
    let refused = site.restore("db", false).await;
    assert!(listed(&refused.comes_back).contains(&"other.org"), "{:?}", refused.comes_back);
    let report = site.restore("db", true).await;
    assert!(report.restored, "{report:?}");
    let found = store.bundle(&other).await.unwrap().unwrap();
    assert_eq!(found.x509_authorities, bundle.x509_authorities);
    let refusal = store.delete_bundle(&other, DeleteMode::Restrict).await.unwrap_err().to_string();
    assert!(refusal.contains("federated with 1"), "{refusal}");
    // What it has stays as it has it.
    let newer = Bundle { x509_authorities: vec![authority()], ..Bundle::empty(other.clone()) };
    store.update_bundle(newer.clone(), BundleMask::ALL).await.unwrap();
    site.restore("db", true).await;
    let found = store.bundle(&other).await.unwrap().unwrap();
    assert_eq!(found.x509_authorities[0], newer.x509_authorities[0]);
}

#[tokio::test]
async fn a_running_server_is_an_obstacle_but_not_for_a_rehearsal() {
    let site = Site::new().await;
    let claim = ServerClaim {
        server_id: SERVER.into(),
        host: "host:/data".into(),
        place: "here".into(),
        holder: "x".into(),
        now: NOW,
        watched: None,
        facts: Default::default(),
    };
    site.store("db").await.claim_server(claim).await.unwrap();
    let report = site.restore("db", true).await;
    assert!(report.refusals[0].contains("(host:/data): stop every server first"), "{:?}", report.refusals);
    let backup = Backup::read(&site.file(), &td()).unwrap();
    let rehearse = async |terms: Terms| backup.rehearse(&site.config("db"), &terms).await.unwrap().report;
    let report = rehearse(Terms { rehearsal: true, ..site.terms(false) }).await;
    assert!(report.accepted && report.notes.len() == 1, "{report:?}");
    let report = rehearse(Terms { locked_host: Some("host:/data".into()), ..site.terms(false) }).await;
    assert!(report.accepted && report.notes.is_empty(), "{report:?}");
    let report = rehearse(Terms { now: NOW + 91, ..site.terms(false) }).await;
    assert!(report.accepted, "its lease is over: {report:?}");
}

#[tokio::test]
async fn a_rehearsal_makes_no_database() {
    let site = Site::new().await;
    let backup = Backup::read(&site.file(), &td()).unwrap();
    let outlook = backup.rehearse(&site.config("new"), &site.terms(true)).await.unwrap();
    assert!(outlook.report.accepted && !outlook.report.restored);
    assert!(outlook.bundle.is_some() && outlook.journals.len() == 1);
    assert!(!site.dir.path().join("new").exists());
}

#[tokio::test]
async fn files_that_no_server_wrote_are_refused() {
    let site = Site::new().await;
    let check = |bytes: &[u8], trust_domain: &str, want: &str| {
        let path = site.dir.path().join("bad");
        std::fs::write(&path, bytes).unwrap();
        let error = Backup::read(&path, &trust_domain.parse().unwrap()).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    };
    let good = std::fs::read(site.file()).unwrap();
    check(&good[..good.len() - 1], "example.org", "cut short");
    check(&good, "other.org", "is of trust domain \"example.org\", and the configuration says \"other.org\"");
    let forge = |kind: svid_proto::backup::Kind| {
        let mut out = Vec::new();
        let position = svid_proto::svid::sync::v1::Position { epoch: vec![0; 16], seq: 1 };
        let header = svid_proto::backup::Header {
            trust_domain: "example.org".into(),
            position: Some(position),
            ..Default::default()
        };
        let mut encoder = svid_proto::backup::Encoder::begin(header, &mut out);
        encoder.push(kind.clone(), &mut out);
        encoder.push(kind, &mut out);
        encoder.finish(&mut out);
        out
    };
    let node = |spiffe_id: &str| {
        forge(svid_proto::backup::Kind::Node(svid_proto::backup::Node {
            spiffe_id: spiffe_id.into(),
            serial: "1".into(),
            ..Default::default()
        }))
    };
    check(&node("spiffe://evil.org/spire/agent/a"), "example.org", "no server would have written");
    check(&node("spiffe://example.org/spire/agent/a"), "example.org", "it is there twice");
    check(&forge(svid_proto::backup::Kind::Entry(Default::default())), "example.org", "entry \"\"");
}

#[tokio::test]
async fn relationships_come_back_only_if_told_so() {
    let site = Site::new().await;
    let store = site.store("db").await;
    let relationship = |name: &str, url: &str| Relationship {
        trust_domain: name.parse().unwrap(),
        url: url.parse().unwrap(),
        profile: EndpointProfile::Web,
    };
    let (ended, changed) =
        (relationship("ended.org", "https://a.test"), relationship("kept.org", "https://b.test"));
    store.create_relationship(ended.clone(), None).await.unwrap();
    store.create_relationship(changed, None).await.unwrap();
    site.back_up(&store).await;
    store.delete_relationship(&ended.trust_domain, true).await.unwrap();
    let newer = relationship("kept.org", "https://c.test");
    let all = crate::store::RelationshipMask { url: true, profile: true };
    store.update_relationship(newer.clone(), all, None).await.unwrap();

    let refused = site.restore("db", false).await;
    assert!(!refused.accepted);
    assert_eq!(listed(&refused.comes_back), ["ended.org (https://a.test)"]);
    let done = site.restore("db", true).await;
    assert!(done.restored, "{done:?}");
    let rows = table(&done, "relationships");
    assert_eq!((rows.backup, rows.database, rows.added, rows.kept), (2, 1, 1, 1));
    let (directory, _) =
        crate::directory::Directory::start(site.store("db").await, &td(), svid_core::clock::Clock::system())
            .await
            .unwrap();
    assert_eq!(directory.relationship(&newer.trust_domain), Some(newer));
    assert_eq!(directory.relationship(&ended.trust_domain), Some(ended));
}
