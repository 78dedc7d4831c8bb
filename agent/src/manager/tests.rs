#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use svid_daemon::metrics::Metrics;
use svid_keymanager::{DiskKeyManager, MemoryKeyManager};
use svid_proto::spire::api::types::permission_denied_details::Reason;
use svid_proto::svid::sync::v1::WatchResponse;

use super::*;
use crate::attest::{Attestor, JoinTokenAttestor};
use crate::cache::{Cache, CacheOptions, WorkloadUpdate};
use crate::client::SharedRoots;
use crate::config::{Bootstrap, BundleFormat, JoinToken};
use crate::stored::KeeperOptions;
use crate::sync::{SyncOptions, SyncStatus};
use crate::testing::server::{FakeServer, agent_identity, position, to_wire};
use crate::testing::{entry, selectors};

const NEVER: Rebootstrap = Rebootstrap { mode: RebootstrapMode::Never, delay: Duration::from_secs(600) };

struct Fixture {
    server: FakeServer,
    manager: Manager,
    cache: Cache,
    status: SyncStatus,
    dir: tempfile::TempDir,
}

impl Fixture {
    async fn new(with_push: bool, reattestable: bool, ttl: Duration) -> Self {
        let server = FakeServer::start(with_push).await;
        server.state.reattestable.store(reattestable, Ordering::Relaxed);
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let identity = agent_identity(&server.state.ca, reattestable, ttl);
        store
            .update(|data| {
                data.svid = Some(identity.svid.clone());
                data.reattestable = reattestable;
            })
            .unwrap();
        let roots = SharedRoots::default();
        roots.set(&server.state.ca.bundle());
        let client = ServerClient::new(server.dialer(), roots, identity);
        let cache = Cache::new(Arc::new(server.state.ca.bundle()), CacheOptions::default());
        cache.set_jwt_source(Arc::new(client.clone()));
        let status = SyncStatus::default();
        let keeper = keeper(dir.path(), &client);
        let manager = manager(client, &cache, &status, store, keeper);
        Self { server, manager, cache, status, dir }
    }

    fn add(&self, id: &str, uid: u32) {
        let entry = entry(id, &format!("/{id}"), &[&format!("unix:uid:{uid}")]);
        self.server.state.entries.lock().unwrap().push(entry);
    }

    async fn first(&self, uid: u32) -> Arc<WorkloadUpdate> {
        let selectors = Arc::new(selectors(&[&format!("unix:uid:{uid}")]));
        let mut subscription = self.cache.subscribe(selectors);
        tokio::select! {
            update = subscription.next() => update,
            _ = self.manager.run() => panic!("the manager ended"),
        }
    }

    /// Works until `done`.
    async fn until(&self, done: impl Fn() -> bool) {
        let wait = async {
            while !done() {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = wait => {}
            _ = self.manager.run() => panic!("the manager ended"),
        }
    }

    fn stored_svid(&self) -> bool {
        Store::open(self.dir.path()).unwrap().data().svid.is_some()
    }

    fn deny(&self, path: &'static str, reason: Reason) {
        *self.server.state.deny.lock().unwrap() = Some((path, reason));
    }
}

fn keeper(dir: &std::path::Path, client: &ServerClient) -> Keeper {
    std::fs::write(dir.join("machine-id"), "one").unwrap();
    Keeper::new(KeeperOptions {
        data_dir: dir.to_owned(),
        machine_id_path: Some(dir.join("machine-id")),
        enabled: true,
        trust_domain: client.dialer().trust_domain().clone(),
        agent_id: client.current_identity().svid.id().clone(),
        keys: Arc::new(DiskKeyManager::open_in(dir).unwrap()),
        clock: Clock::system(),
        metrics: Metrics::disabled(),
    })
}

fn manager(
    client: ServerClient,
    cache: &Cache,
    status: &SyncStatus,
    store: Store,
    keeper: Keeper,
) -> Manager {
    let options = SyncOptions {
        interval: Duration::from_millis(20),
        use_sync_authorized_entries: true,
        rebootstrap: NEVER,
        store: store.clone(),
        clock: Clock::system(),
        metrics: Metrics::disabled(),
    };
    let rotator = Rotator {
        client: client.clone(),
        cache: cache.clone(),
        keys: Arc::new(MemoryKeyManager::default()),
        plugin: Arc::new(JoinTokenAttestor::new(JoinToken::new("token".into()))),
        store: store.clone(),
        availability_target: None,
        clock: Clock::system(),
        metrics: Metrics::disabled(),
    };
    Manager {
        synchronizer: Synchronizer::new(client.clone(), cache.clone(), status.clone(), options),
        fetcher: SvidFetcher::new(
            client.clone(),
            cache.clone(),
            svid_core::key::KeyType::EcP256,
            Clock::system(),
        ),
        rotator,
        store,
        rebootstrap: NEVER,
        clock: Clock::system(),
        client,
        keeper,
        cache: cache.clone(),
    }
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn an_entry_becomes_an_svid_at_a_stock_server() {
    let fixture = Fixture::new(false, false, HOUR).await;
    fixture.add("web", 1);
    fixture.manager.initialize().await.unwrap();
    let update = fixture.first(1).await;
    assert_eq!(update.identities[0].x509.svid.id().path(), "/web");
    assert!(fixture.status.last_success().is_some() && !fixture.status.is_watching());
    assert_eq!(fixture.server.state.calls.lock().unwrap()[0], "/spire.api.server.agent.v1.Agent/PostStatus");
    // A server without push is polled: what comes later arrives as well.
    fixture.add("db", 2);
    fixture.until(|| fixture.cache.stats().entries == 2).await;
    assert_eq!(fixture.first(2).await.identities.len(), 1);
    let calls = fixture.server.calls("SyncAuthorizedEntries");
    assert!(calls >= 2, "{calls} polls");
    let jwt_entry = fixture.cache.matching_entries(&selectors(&["unix:uid:1"])).remove(0);
    let audience = ["aud".to_owned()];
    fixture.cache.jwt_svid(&jwt_entry, &audience).await.unwrap();
    fixture.cache.jwt_svid(&jwt_entry, &audience).await.unwrap();
    assert_eq!(fixture.server.calls("NewJWTSVID"), 1);
}

#[tokio::test]
async fn long_lists_come_in_pages_and_only_differences_are_asked_for() {
    let fixture = Fixture::new(false, false, HOUR).await;
    (0..1203).for_each(|n| fixture.add(&format!("e{n:04}"), n));
    fixture.manager.initialize().await.unwrap();
    assert_eq!(fixture.cache.stats().entries, 1203);
    assert_eq!(fixture.server.state.asked.lock().unwrap().len(), 1203);
    {
        let mut entries = fixture.server.state.entries.lock().unwrap();
        entries.remove(0);
        entries[0].revision = 9;
        entries[1].created_at = 9;
    }
    fixture.server.state.asked.lock().unwrap().clear();
    fixture.manager.synchronizer.pass().await.unwrap();
    assert_eq!(*fixture.server.state.asked.lock().unwrap(), ["e0001", "e0002"]);
    assert_eq!(fixture.cache.stats().entries, 1202);
}

#[tokio::test]
async fn pushed_changes_need_no_poll() {
    let fixture = Fixture::new(true, false, HOUR).await;
    fixture.manager.initialize().await.unwrap();
    let selectors = Arc::new(selectors(&["unix:uid:1"]));
    let mut subscription = fixture.cache.subscribe(selectors);
    assert!(subscription.next().await.identities.is_empty());
    let web = entry("web", "/web", &["unix:uid:1"]);
    let scenario = async {
        while !fixture.status.is_watching() {
            tokio::task::yield_now().await;
        }
        let polls = fixture.server.calls("SyncAuthorizedEntries");
        fixture.server.push(WatchResponse {
            position: Some(position(2)),
            upserts: vec![to_wire(&web)],
            ..Default::default()
        });
        assert_eq!(subscription.next().await.identities.len(), 1);
        fixture.server.push(WatchResponse {
            position: Some(position(3)),
            removed_ids: vec!["web".into()],
            ..Default::default()
        });
        assert!(subscription.next().await.identities.is_empty());
        assert!(fixture.server.calls("SyncAuthorizedEntries") <= polls + 1);
    };
    tokio::select! {
        () = scenario => {}
        _ = fixture.manager.run() => panic!("the manager ended"),
    }
}

#[tokio::test]
async fn denials_at_the_start_remove_the_svid() {
    for reason in [Reason::AgentBanned, Reason::AgentNotAttested, Reason::AgentMustReattest] {
        let fixture = Fixture::new(false, true, HOUR).await;
        fixture.deny("SyncAuthorizedEntries", reason);
        let failure = fixture.manager.initialize().await.unwrap_err().to_string();
        assert!(failure.contains("failed to fetch authorized entries:"), "{failure}");
        assert!(!fixture.stored_svid());
    }
}

#[tokio::test]
async fn a_ban_ends_the_agent() {
    let fixture = Fixture::new(false, true, HOUR).await;
    fixture.manager.initialize().await.unwrap();
    fixture.deny("SyncAuthorizedEntries", Reason::AgentBanned);
    fixture.manager.run().await.unwrap_err();
    assert!(!fixture.stored_svid());
    assert_eq!(fixture.server.calls("AttestAgent"), 0);
}

#[tokio::test]
async fn an_evicted_node_attests_again_if_it_can() {
    let fixture = Fixture::new(false, true, HOUR).await;
    fixture.manager.initialize().await.unwrap();
    fixture.deny("SyncAuthorizedEntries", Reason::AgentNotAttested);
    let before = fixture.manager.client.current_identity().svid.serial_decimal();
    let mut identity = fixture.manager.client.identity();
    identity.mark_unchanged();
    tokio::select! {
        changed = identity.changed() => changed.unwrap(),
        _ = fixture.manager.run() => panic!("the manager ended"),
    }
    assert_ne!(fixture.manager.client.current_identity().svid.serial_decimal(), before);
    assert!(fixture.stored_svid());

    let fixture = Fixture::new(false, false, HOUR).await;
    fixture.manager.initialize().await.unwrap();
    fixture.deny("SyncAuthorizedEntries", Reason::AgentNotAttested);
    fixture.manager.run().await.unwrap_err();
    assert!(!fixture.stored_svid());
}

#[tokio::test]
async fn the_agents_svid_is_renewed_in_time() {
    for (reattestable, method) in [(false, "RenewAgent"), (true, "AttestAgent")] {
        let fixture = Fixture::new(false, reattestable, Duration::from_secs(12)).await;
        // Half of its life is over: the CA dates it back, and this one is short.
        let old = fixture.manager.client.current_identity();
        fixture.manager.rotator.reattest().await.unwrap();
        assert_eq!(fixture.server.calls("AttestAgent"), 1);
        fixture.manager.client.replace_identity((*old).clone());
        let far = old.svid.not_after() - Duration::from_secs(1);
        let rotator = Rotator { clock: Clock::from_fn(move || far), ..fixture.manager.rotator.clone() };
        let mut identity = fixture.manager.client.identity();
        identity.mark_unchanged();
        tokio::select! {
            changed = identity.changed() => changed.unwrap(),
            failed = rotator.run() => panic!("{failed:?}"),
        }
        let want = if reattestable { 2 } else { 1 };
        assert_eq!(fixture.server.calls(method), want, "{method}");
        fixture.manager.initialize().await.unwrap();
    }
}

#[tokio::test]
async fn attests_once_and_starts_again_from_the_disk() {
    let server = FakeServer::start(false).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bundle.pem");
    std::fs::write(&path, svid_core::pem::certs_to_pem([server.state.ca.authority.cert_der()])).unwrap();
    let keys = Arc::new(MemoryKeyManager::default());
    for want in [1, 1] {
        let mut attestor = Attestor {
            dialer: server.dialer(),
            server: ("127.0.0.1".into(), server.port),
            store: Store::open(dir.path()).unwrap(),
            keys: Arc::clone(&keys) as Arc<dyn svid_plugin_api::KeyManager>,
            plugin: Arc::new(JoinTokenAttestor::new(JoinToken::new("token".into()))),
            bootstrap: Bootstrap::File { path: path.clone(), format: BundleFormat::Pem },
            rebootstrap: NEVER,
            clock: Clock::system(),
            metrics: Metrics::disabled(),
        };
        attestor.prepare().unwrap();
        let attestation = attestor.run().await.unwrap();
        assert!(attestation.identity.svid.id().is_agent());
        assert_eq!(server.calls("AttestAgent"), want);
    }
    assert_eq!(server.calls("GetBundle"), 1);
}

#[tokio::test]
async fn an_unknown_authority_is_recognised() {
    let server = FakeServer::start(false).await;
    let roots = SharedRoots::default();
    roots.set(&crate::testing::TestCa::new("example.org").bundle());
    let identity = agent_identity(&server.state.ca, false, HOUR);
    let client = ServerClient::new(server.dialer(), roots, identity);
    let failure = client.bundle().await.unwrap_err();
    assert!(matches!(failure, ClientError::UnknownAuthority(_)), "{failure:?}");
    assert!(failure.to_string().contains("x509: certificate signed by unknown authority"));
}

#[tokio::test]
async fn what_is_stored_is_served_while_no_server_answers_and_never_after_a_ban() {
    let mut fixture = Fixture::new(false, false, HOUR).await;
    fixture.add("web", 1);
    fixture.manager.begin().await.unwrap();
    let first = fixture.first(1).await;
    fixture.manager.keeper.save(&fixture.cache, &fixture.manager.client).await.unwrap();
    // The next process, with nobody at the server's port.
    let nobody =
        crate::client::Dialer::new("127.0.0.1", 1, fixture.server.state.ca.trust_domain.clone(), false);
    let identity = fixture.manager.client.current_identity();
    let client = ServerClient::new(nobody, fixture.manager.client.roots().clone(), (*identity).clone());
    fixture.cache = Cache::new(Arc::new(fixture.server.state.ca.bundle()), CacheOptions::default());
    let (store, keeper) = (Store::open(fixture.dir.path()).unwrap(), keeper(fixture.dir.path(), &client));
    let next = manager(client, &fixture.cache, &fixture.status, store, keeper);
    next.begin().await.unwrap();
    let stored = fixture.cache.current(&selectors(&["unix:uid:1"]));
    assert_eq!(stored.identities[0].x509.svid.chain(), first.identities[0].x509.svid.chain());
    assert!(next.client.last_contact().is_some());
    // Another one, which a server tells that it is banned.
    fixture.deny("PostStatus", Reason::AgentBanned);
    fixture.deny("SyncAuthorizedEntries", Reason::AgentBanned);
    let failure = fixture.manager.begin().await.unwrap_err();
    assert!(matches!(failure, ManagerError::PutOut(_)), "{failure}");
    assert!(!fixture.dir.path().join("svid-cache/head").exists() && !fixture.stored_svid());
}
