//! Two servers on one database: what each has in memory, and who is right when they differ.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::UNIX_EPOCH;

use sqlx::{ConnectOptions as _, Connection as _};
use svid_core::entry::EntrySpec;

use super::*;
use crate::store::{CreateEntry, NewNode, StoreConfig};

const NOW: i64 = 1000;
const END: i64 = 2000;
const PATIENCE: Duration = Duration::from_secs(60);

fn td() -> TrustDomain {
    "example.org".parse().unwrap()
}

fn agent() -> SpiffeId {
    SpiffeId::from_parts("example.org", "/spire/agent/a").unwrap()
}

async fn store(dir: &Path) -> Store {
    Store::open(&StoreConfig::at(dir.join("db")), &td()).await.unwrap()
}

/// A directory whose task does not run: a server without its database.
async fn alone(store: &Store) -> (Directory, DirectoryTask) {
    let clock = Clock::from_fn(|| UNIX_EPOCH + Duration::from_secs(NOW.unsigned_abs()));
    Directory::start(store.clone(), &td(), clock).await.unwrap()
}

async fn connected(store: &Store) -> Directory {
    let (directory, task) = alone(store).await;
    tokio::spawn(task.run());
    directory
}

/// Attested with serial number 1 and renewed with 2, which nobody has seen in use.
async fn attest(store: &Store) {
    let node = NewNode {
        id: agent(),
        attestation_type: "x509pop".into(),
        serial: "1".into(),
        expires_at: END,
        can_reattest: true,
        selectors: Default::default(),
        key_hash: [1; 32],
    };
    store.attest_node(node, NOW).await.unwrap();
    store.renew_node(&agent(), "1", "", "2", END).await.unwrap();
}

async fn serial_in_use(store: &Store) -> Serial {
    store.node(&agent()).await.unwrap().unwrap().serial
}

#[tokio::test]
async fn a_ban_made_by_a_server_with_the_database_wins_over_a_promotion_made_without() {
    let dir = tempfile::tempdir().unwrap();
    let (store_a, store_b) = (store(dir.path()).await, store(dir.path()).await);
    attest(&store_a).await;
    let a = connected(&store_a).await;
    let (b, task) = alone(&store_b).await;
    assert!(b.check_agent(&agent(), "2", END, NOW).unwrap().promoted);
    let mut watch = b.watch_agent(&agent(), None);
    watch.next().await.expect("a first delta");
    store_a.ban_node(&agent()).await.unwrap();
    assert_eq!(a.check_agent(&agent(), "2", END, NOW), Err(AgentDenied::Banned));
    assert!(b.check_agent(&agent(), "2", END, NOW).is_ok(), "b cannot know");
    // The database is back.
    tokio::spawn(task.run());
    let ended = tokio::time::timeout(PATIENCE, watch.next()).await.expect("the stream ends");
    assert_eq!(ended.unwrap_err(), EndReason::Banned);
    for directory in [&a, &b] {
        let verified = directory.verify_agent(&agent(), "2", END, NOW).await;
        assert!(matches!(verified, Err(AgentRefusal::Denied(AgentDenied::Banned))));
    }
    assert_eq!(serial_in_use(&store_a).await, Serial::Banned);
}

#[tokio::test]
async fn an_agent_that_was_seen_by_a_server_without_the_database_is_welcome_at_another() {
    let dir = tempfile::tempdir().unwrap();
    let (store_a, store_b) = (store(dir.path()).await, store(dir.path()).await);
    attest(&store_a).await;
    let a = connected(&store_a).await;
    let (b, task) = alone(&store_b).await;
    assert!(b.check_agent(&agent(), "2", END, NOW).unwrap().promoted);
    assert!(a.verify_agent(&agent(), "2", END, NOW).await.unwrap().promoted, "by a as well");
    tokio::spawn(task.run());
    for directory in [&a, &b] {
        assert!(!directory.verify_agent(&agent(), "2", END, NOW).await.unwrap().promoted);
        let old = directory.verify_agent(&agent(), "1", END, NOW).await;
        assert!(matches!(old, Err(AgentRefusal::Denied(AgentDenied::NotActive))));
    }
    let written = async {
        while serial_in_use(&store_a).await != (Serial::Active { current: "2".into(), next: None }) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, written).await.expect("written behind");
}

#[tokio::test]
async fn what_one_server_writes_another_has_once_it_caught_up() {
    let dir = tempfile::tempdir().unwrap();
    let (store_a, store_b) = (store(dir.path()).await, store(dir.path()).await);
    let (a, b) = (connected(&store_a).await, connected(&store_b).await);
    attest(&store_a).await;
    let spec = EntrySpec {
        spiffe_id: SpiffeId::from_parts("example.org", "/web").unwrap(),
        parent_id: agent(),
        selectors: ["unix:uid:1".parse::<svid_core::selector::Selector>().unwrap()].into_iter().collect(),
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
    store_b.create_entries(vec![CreateEntry { id: None, spec }], NOW).await.remove(0).unwrap();
    for directory in [&a, &b] {
        directory.caught_up().await.unwrap();
        assert_eq!(directory.authorized_entries(&agent(), NOW).len(), 1);
        assert!(directory.has_database());
    }
    assert_eq!(a.position(), b.position());
}

/// A replica that was behind took over: memory is ahead of a log that tells another story, and what it says is not what
/// the database says.
#[tokio::test]
async fn a_denial_from_a_history_that_is_gone_is_not_given() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    attest(&store).await;
    let directory = connected(&store).await;
    let denied = directory.verify_agent(&agent(), "9", END, NOW).await;
    assert!(matches!(denied, Err(AgentRefusal::Denied(AgentDenied::NotActive))));
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(dir.path().join("db"));
    let mut conn = options.connect().await.unwrap();
    for sql in [
        "DELETE FROM svid_log WHERE seq = (SELECT seq FROM svid_log_counter)",
        "UPDATE svid_log_counter SET seq = seq - 1",
        "UPDATE svid_nodes SET serial = '9', new_serial = ''",
    ] {
        sqlx::query(sql).execute(&mut conn).await.unwrap();
    }
    conn.close().await.unwrap();
    directory.verify_agent(&agent(), "9", END, NOW).await.expect("as the database has it now");
}

#[tokio::test]
async fn memory_that_was_never_compared_grows_old() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let (directory, _task) = alone(&store).await;
    directory.stale_for(Duration::from_millis(20)).await;
    assert!(directory.staleness() > Duration::from_millis(20));
    let refused = directory.verify_agent(&agent(), "1", END, NOW).await.unwrap_err();
    assert!(matches!(refused, AgentRefusal::Unavailable(Unavailable::Behind)), "{refused:?}");
}
