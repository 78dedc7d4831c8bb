#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use svid_core::bundle::JwtAuthority;
use svid_core::clock::Clock;
use svid_daemon::metrics::Metrics;
use svid_keymanager::{DiskKeyManager, MemoryKeyManager};
use svid_plugin_api::KeyManager;
use svid_proto::svid::sync::v1::Position;
use zeroize::Zeroizing;

use super::bytes::Writer;
use super::codec::Record;
use super::*;
use crate::cache::{Cache, CacheOptions, JwtSvid, KeptJwt, Minted};
use crate::client::{Dialer, ServerClient, SharedRoots};
use crate::testing::server::agent_identity;
use crate::testing::{TestCa, entry, selectors};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: i64 = 86_400;

struct Node {
    dir: tempfile::TempDir,
    ca: TestCa,
    cache: Cache,
    client: ServerClient,
    /// Seconds that the clock is ahead of the real one.
    offset: Arc<AtomicI64>,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("machine-id"), "one").unwrap();
        let ca = TestCa::new("example.org");
        let dialer = Dialer::new("localhost", 1, ca.trust_domain.clone(), false);
        let client = ServerClient::new(dialer, SharedRoots::default(), agent_identity(&ca, false, HOUR));
        let cache = Cache::new(Arc::new(ca.bundle()), CacheOptions::default());
        Self { dir, ca, cache, client, offset: Arc::default() }
    }

    fn options(&self, keys: Arc<dyn KeyManager>) -> KeeperOptions {
        let offset = Arc::clone(&self.offset);
        let clock = Clock::from_fn(move || {
            let offset = offset.load(Ordering::Relaxed);
            let by = Duration::from_secs(offset.unsigned_abs());
            if offset < 0 { SystemTime::now() - by } else { SystemTime::now() + by }
        });
        KeeperOptions {
            data_dir: self.dir.path().to_owned(),
            machine_id_path: Some(self.dir.path().join("machine-id")),
            enabled: true,
            trust_domain: self.ca.trust_domain.clone(),
            agent_id: "spiffe://example.org/spire/agent/x".parse().unwrap(),
            keys,
            clock,
            metrics: Metrics::disabled(),
        }
    }

    /// As a process that starts here would have it.
    fn keeper(&self) -> Keeper {
        Keeper::new(self.options(Arc::new(DiskKeyManager::open_in(self.dir.path()).unwrap())))
    }

    fn add(&self, id: &str) {
        let entry = entry(id, &format!("/{id}"), &["unix:uid:1"]);
        self.cache.apply(vec![entry], &[]);
        self.mint();
    }

    fn mint(&self) {
        let minted = self.cache.wanted(100).into_iter().map(|entry| Minted {
            identity: Some(self.ca.identity(&entry.spiffe_id, HOUR, SystemTime::now())),
            entry,
        });
        self.cache.store(minted.collect());
    }

    async fn save(&self, keeper: &Keeper) {
        keeper.save(&self.cache, &self.client).await.unwrap();
    }

    fn files(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(self.dir.path().join("svid-cache"));
        let mut files: Vec<_> = files.into_iter().flatten().map(|file| file.unwrap().path()).collect();
        files.sort();
        files
    }

    fn log(&self) -> PathBuf {
        self.files().into_iter().find(|path| path.extension().is_some_and(|ext| ext == "log")).unwrap()
    }

    fn head(&self) -> PathBuf {
        self.dir.path().join("svid-cache/head")
    }
}

fn ready(stored: Stored) -> Box<Restored> {
    match stored {
        Stored::Ready(restored) => restored,
        other => panic!("{other:?}"),
    }
}

fn serials(cache: &Cache) -> Vec<String> {
    let update = cache.current(&selectors(&["unix:uid:1"]));
    update.identities.iter().map(|identity| identity.x509.svid.serial_decimal()).collect()
}

fn jwt(entry: &str, token: &str) -> KeptJwt {
    let now = svid_core::clock::unix_seconds(SystemTime::now());
    KeptJwt {
        entry: entry.parse().unwrap(),
        audience: vec!["db".into(), "api".into()],
        svid: JwtSvid {
            token: Zeroizing::new(token.into()),
            id: format!("spiffe://example.org/{entry}").parse().unwrap(),
            issued_at: now,
            expires_at: now + 300,
        },
    }
}

#[tokio::test]
async fn the_next_process_serves_the_same() {
    let node = Node::new();
    let keeper = node.keeper();
    assert!(matches!(keeper.load().await, Stored::Nothing));
    node.add("a");
    node.add("b");
    node.cache.set_position(Some(Position { epoch: vec![7; 16], seq: 9 }));
    node.save(&keeper).await;
    let size = |node: &Node| fs::metadata(node.log()).unwrap().len();
    let before = size(&node);
    node.save(&keeper).await;
    assert_eq!(size(&node), before, "nothing changed");
    node.add("c");
    node.save(&keeper).await;
    assert!(size(&node) > before, "only what changed is written");

    let restored = ready(node.keeper().load().await);
    assert_eq!((restored.entries.len(), restored.svids()), (3, 3));
    let next = Cache::new(Arc::new(node.ca.bundle()), CacheOptions::default());
    next.restore(*restored);
    assert_eq!(serials(&next), serials(&node.cache));
    assert_eq!(next.position(), Some(Position { epoch: vec![7; 16], seq: 9 }));
    assert!(next.wanted(10).is_empty(), "nothing is to be fetched");
}

#[tokio::test]
async fn what_goes_is_gone() {
    let node = Node::new();
    let keeper = node.keeper();
    node.add("a");
    node.add("b");
    node.save(&keeper).await;
    node.cache.apply(Vec::new(), &["a".parse().unwrap()]);
    node.save(&keeper).await;
    let restored = ready(node.keeper().load().await);
    let ids: Vec<_> = restored.entries.keys().map(ToString::to_string).collect();
    assert_eq!(ids, ["b"]);
}

#[tokio::test]
async fn an_svid_that_ended_is_not_given_back() {
    let node = Node::new();
    node.add("a");
    node.save(&node.keeper()).await;
    for (seconds, svids) in [(3500, 1), (3600, 0), (DAY, 0)] {
        node.offset.store(seconds, Ordering::Relaxed);
        assert_eq!(ready(node.keeper().load().await).svids(), svids, "{seconds} s later");
    }
}

#[tokio::test]
async fn a_clock_behind_the_last_time_seen() {
    let node = Node::new();
    node.add("a");
    node.save(&node.keeper()).await;
    for (seconds, usable) in [(0, true), (-170, true), (-200, false), (-DAY, false)] {
        node.offset.store(seconds, Ordering::Relaxed);
        match (node.keeper().load().await, usable) {
            (Stored::Ready(_), true) => {}
            (Stored::ClockBehind { by }, false) => {
                assert!(by.as_secs().abs_diff(seconds.unsigned_abs()) < 60, "{by:?}");
            }
            (other, _) => panic!("{seconds}: {other:?}"),
        }
    }
    node.offset.store(-DAY, Ordering::Relaxed);
    let keeper = node.keeper();
    let waiting = tokio::spawn(async move { keeper.wait_for_clock().await.svids() });
    node.offset.store(0, Ordering::Relaxed);
    assert_eq!(waiting.await.unwrap(), 1);
}

#[tokio::test]
async fn a_copied_disk_is_noticed() {
    let node = Node::new();
    node.add("a");
    node.save(&node.keeper()).await;
    for other in ["two", ""] {
        fs::write(node.dir.path().join("machine-id"), other).unwrap();
        assert!(matches!(node.keeper().load().await, Stored::Nothing), "{other:?}");
    }
    fs::write(node.dir.path().join("machine-id"), "one\n").unwrap();
    assert!(
        matches!(node.keeper().load().await, Stored::Ready(_)),
        "the machine that wrote it still reads it"
    );
}

#[tokio::test]
async fn another_agents_state_is_not_used() {
    let node = Node::new();
    node.add("a");
    node.save(&node.keeper()).await;
    let keys = || Arc::new(DiskKeyManager::open_in(node.dir.path()).unwrap());
    let mut options = node.options(keys());
    options.agent_id = "spiffe://example.org/spire/agent/y".parse().unwrap();
    assert!(matches!(Keeper::new(options).load().await, Stored::Nothing));
    let mut options = node.options(keys());
    options.trust_domain = "other.org".parse().unwrap();
    assert!(matches!(Keeper::new(options).load().await, Stored::Nothing));
    fs::remove_file(node.dir.path().join("wrapping.key")).unwrap();
    assert!(matches!(node.keeper().load().await, Stored::Nothing), "without its key");
}

#[tokio::test]
async fn damage_is_ignored_whole() {
    let node = Node::new();
    node.add("a");
    node.save(&node.keeper()).await;
    let (head, log) = (fs::read(node.head()).unwrap(), fs::read(node.log()).unwrap());
    let unusable = async |what: String| {
        assert!(matches!(node.keeper().load().await, Stored::Nothing), "{what}");
    };
    for at in (0..head.len()).step_by(7) {
        let mut changed = head.clone();
        changed[at] ^= 1;
        fs::write(node.head(), changed).unwrap();
        unusable(format!("head, byte {at}")).await;
        fs::write(node.head(), &head[..at]).unwrap();
        unusable(format!("head, cut at {at}")).await;
    }
    fs::write(node.head(), &head).unwrap();
    for at in (0..log.len()).step_by(97) {
        let mut changed = log.clone();
        changed[at] ^= 1;
        fs::write(node.log(), changed).unwrap();
        unusable(format!("log, byte {at}")).await;
        fs::write(node.log(), &log[..at]).unwrap();
        unusable(format!("log, cut at {at}")).await;
    }
    // What was appended by a process that ended before its head was written never counted.
    fs::write(node.log(), [log.as_slice(), b"torn"].concat()).unwrap();
    assert_eq!(ready(node.keeper().load().await).svids(), 1);
    fs::remove_file(node.log()).unwrap();
    unusable("no log".into()).await;
    fs::remove_file(node.head()).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", node.head()).unwrap();
    unusable("a link".into()).await;
}

#[tokio::test]
async fn nothing_of_it_shows() {
    let node = Node::new();
    node.add("a");
    node.save(&node.keeper()).await;
    use std::os::unix::fs::PermissionsExt;
    for path in node.files() {
        let bytes = fs::read(&path).unwrap();
        let cache = node.cache.snapshot();
        let svid = cache.entries[0].1.clone().unwrap();
        for secret in [svid.key.secret_bytes(), svid.svid.leaf().public_key_der(), b"unix", b"one"] {
            assert!(!bytes.windows(secret.len()).any(|window| window == secret), "{}", path.display());
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[tokio::test]
async fn after_a_ban_nothing_is_there_and_nothing_is_written() {
    let node = Node::new();
    let keeper = node.keeper();
    node.add("a");
    node.save(&keeper).await;
    keeper.wipe();
    assert!(node.files().is_empty());
    node.add("b");
    node.save(&keeper).await;
    node.save(&keeper).await;
    assert!(node.files().is_empty());
    keeper.go_on();
    node.save(&keeper).await;
    assert_eq!(ready(node.keeper().load().await).svids(), 2);
}

#[tokio::test]
async fn the_log_does_not_grow_for_ever() {
    let node = Node::new();
    let keeper = node.keeper();
    (0..20).for_each(|n| node.add(&format!("e{n}")));
    node.save(&keeper).await;
    let first = node.log();
    let mut most = 0;
    for _ in 0..40 {
        for n in 0..20 {
            let id = format!("e{n}");
            node.cache.apply(Vec::new(), &[id.parse().unwrap()]);
            node.add(&id);
        }
        node.save(&keeper).await;
        most = most.max(fs::metadata(node.log()).unwrap().len());
    }
    assert_ne!(node.log(), first, "a new log was begun");
    assert_eq!(node.files().len(), 2, "and the old one removed");
    assert!(most < 400_000, "{most}");
    assert_eq!(ready(node.keeper().load().await).svids(), 20);
}

#[tokio::test]
async fn keys_that_end_with_the_process_store_nothing() {
    let node = Node::new();
    let keeper = Keeper::new(node.options(Arc::new(MemoryKeyManager::new())));
    assert!(keeper.refusal().await.unwrap().contains("the key manager keeps nothing"));
    let mut options = node.options(Arc::new(DiskKeyManager::open_in(node.dir.path()).unwrap()));
    options.enabled = false;
    assert_eq!(Keeper::new(options).refusal().await.unwrap(), "persist_svids = false");
    assert_eq!(node.keeper().refusal().await, None);
    fs::remove_file(node.dir.path().join("machine-id")).unwrap();
    if Machine::read(Some(&node.dir.path().join("machine-id"))).is_unknown() {
        assert!(node.keeper().refusal().await.unwrap().contains("experimental.machine_id_path"));
    }
}

fn bytes_of(records: &[Record]) -> Vec<u8> {
    let mut out = Writer::default();
    records.iter().for_each(|record| record.write(&mut out));
    out.into_bytes().to_vec()
}

#[test]
fn records_round_trip() {
    let ca = TestCa::new("example.org");
    let mut full = entry("a", "/a", &["unix:uid:1", "unix:gid:2"]);
    full.federates_with = vec!["other.org".parse().unwrap()];
    (full.admin, full.store_svid, full.hint) = (true, true, "main".into());
    (full.revision, full.created_at) = (-1, i64::MAX);
    let mut bundle = ca.bundle();
    bundle.x509_authorities[0].tainted = true;
    bundle.jwt_authorities =
        vec![JwtAuthority { key_id: "k".into(), public_key: [1, 2].into(), expires_at: 0, tainted: true }];
    let identity = ca.identity(&full.spiffe_id, HOUR, SystemTime::now());
    let records = [
        Record::Entry(Arc::new(full)),
        Record::EntryGone("b".parse().unwrap()),
        Record::Svid("a".parse().unwrap(), Arc::new(identity)),
        Record::SvidGone("a".parse().unwrap()),
        Record::Jwt(Arc::new(jwt("a", "x.y.z"))),
        Record::JwtGone("a".parse().unwrap(), vec!["db".into()]),
        Record::OwnBundle(Arc::new(bundle.clone())),
        Record::Bundle(Arc::new(bundle)),
        Record::BundleGone("other.org".parse().unwrap()),
        Record::Position(Some(Position { epoch: vec![1; 16], seq: 2 })),
        Record::Position(None),
    ];
    let bytes = bytes_of(&records);
    assert_eq!(bytes_of(&Record::read_all(&bytes).unwrap()), bytes);
    for record in &records {
        let bytes = bytes_of(std::slice::from_ref(record));
        for end in 1..bytes.len() {
            assert!(Record::read_all(&bytes[..end]).is_err(), "{record:?} cut at {end}");
        }
    }
    assert!(Record::read_all(&[99, 0, 0, 0, 0]).is_err(), "an unknown kind");
    let without_selectors = entry("a", "/a", &[]);
    assert!(Record::read_all(&bytes_of(&[Record::Entry(Arc::new(without_selectors))])).is_err());
}

#[tokio::test]
async fn jwt_svids_come_along() {
    let node = Node::new();
    node.add("a");
    let restored = Restored::replay(
        vec![
            Record::Entry(Arc::new(entry("a", "/a", &["unix:uid:1"]))),
            Record::Jwt(Arc::new(jwt("a", "x.y.z"))),
        ],
        SystemTime::now(),
    );
    node.cache.restore(restored);
    node.save(&node.keeper()).await;
    let next = Cache::new(Arc::new(node.ca.bundle()), CacheOptions::default());
    next.restore(*ready(node.keeper().load().await));
    let entry = next.matching_entries(&selectors(&["unix:uid:1"])).remove(0);
    let audience = ["api".to_owned(), "db".to_owned()];
    assert_eq!(next.jwt_svid(&entry, &audience).await.unwrap().token.as_str(), "x.y.z");
}
