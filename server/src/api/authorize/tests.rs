//! Who is let in as what, and what those hear who are not.

#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::UNIX_EPOCH;

use svid_core::entry::EntrySpec;
use svid_core::id::TrustDomain;
use svid_proto::spire::api::types::permission_denied_details::Reason;

use super::*;
use crate::api::caller::LocalPeer;
use crate::store::{CreateEntry, NewNode, Store, StoreConfig};

const NOW: i64 = 1000;
const END: i64 = 2000;
const HOUR: Duration = Duration::from_secs(3600);

fn id(path: &str) -> SpiffeId {
    SpiffeId::from_parts("example.org", path).unwrap()
}

fn local() -> Peer {
    Peer::Local(LocalPeer::default())
}

fn nobody() -> Peer {
    Peer::Tls { address: ([192, 0, 2, 1], 1).into(), identity: None }
}

fn peer(path: &str, serial: &str, not_after: i64) -> Peer {
    let cert = PeerCert { id: id(path), serial: serial.into(), not_before: NOW, not_after, connection: None };
    Peer::Tls { address: ([192, 0, 2, 1], 1).into(), identity: Some(cert) }
}

struct World {
    gate: Gate,
    /// The authority behind every certificate is gone.
    revoked: Arc<AtomicBool>,
    _dir: tempfile::TempDir,
}

impl World {
    /// `/admin` and `/nested` have entries, `/ops` is in `admin_ids`; `a` is an agent, `banned` was one. `/both` is an
    /// agent's ID with an admin entry.
    async fn new(max_stale: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let trust_domain: TrustDomain = "example.org".parse().unwrap();
        let store = Store::open(&StoreConfig::at(dir.path().join("db")), &trust_domain).await.unwrap();
        let clock = Clock::from_fn(|| UNIX_EPOCH + Duration::from_secs(NOW.unsigned_abs()));
        let (directory, task) = Directory::start(store.clone(), &trust_domain, clock.clone()).await.unwrap();
        tokio::spawn(task.run());
        for (path, admin, downstream) in
            [("/admin", true, false), ("/nested", false, true), ("/spire/agent/both", true, false)]
        {
            create(&store, path, admin, downstream).await;
        }
        for name in ["a", "both", "banned"] {
            attest(&store, &format!("/spire/agent/{name}")).await;
        }
        store.ban_node(&id("/spire/agent/banned")).await.unwrap();
        let revoked = Arc::new(AtomicBool::new(false));
        let is_revoked = revoked.clone();
        let vouch = Vouch::from_fn(move |_| !is_revoked.load(Ordering::SeqCst));
        let gate = Gate::new(directory, clock, [id("/ops")], false, max_stale, vouch, RpcMetrics::default());
        Self { gate, revoked, _dir: dir }
    }

    async fn admit(&self, path: &str, peer: Peer) -> Result<(Role, &'static str), Status> {
        let method = table::method(path).unwrap();
        self.gate.admit(method, peer).await.map(|call| (call.role, call.via)).map_err(|(status, _)| status)
    }
}

async fn create(store: &Store, path: &str, admin: bool, downstream: bool) {
    let spec = EntrySpec {
        spiffe_id: id(path),
        parent_id: id("/spire/server"),
        selectors: ["unix:uid:1".parse::<svid_core::selector::Selector>().unwrap()].into_iter().collect(),
        x509_svid_ttl: 0,
        jwt_svid_ttl: 0,
        federates_with: Vec::new(),
        admin,
        downstream,
        expires_at: 0,
        dns_names: Vec::new(),
        store_svid: false,
        hint: String::new(),
        disable_x509_svid_prefetch: false,
        jwt_svid_include_jti: false,
    };
    store.create_entries(vec![CreateEntry { id: None, spec }], NOW).await.remove(0).unwrap();
}

async fn attest(store: &Store, path: &str) {
    let node = NewNode {
        id: id(path),
        attestation_type: "join_token".into(),
        serial: "1".into(),
        expires_at: END,
        can_reattest: false,
        selectors: Default::default(),
        key_hash: [1; 32],
    };
    store.attest_node(node, NOW).await.unwrap();
}

const BAN: &str = "/spire.api.server.agent.v1.Agent/BanAgent";
const ATTEST: &str = "/spire.api.server.agent.v1.Agent/AttestAgent";
const SYNC: &str = "/spire.api.server.entry.v1.Entry/SyncAuthorizedEntries";
const FEDERATED: &str = "/spire.api.server.bundle.v1.Bundle/GetFederatedBundle";
const DOWNSTREAM: &str = "/spire.api.server.svid.v1.SVID/NewDownstreamX509CA";
const LOGGER: &str = "/spire.api.server.logger.v1.Logger/GetLogger";

#[tokio::test]
async fn who_is_let_in_as_what() {
    let world = World::new(HOUR).await;
    let agent = || peer("/spire/agent/a", "1", END);
    let both = || peer("/spire/agent/both", "1", END);
    let rows = [
        (ATTEST, nobody(), (Role::Nobody, "")),
        (ATTEST, agent(), (Role::Nobody, "")),
        (BAN, local(), (Role::Local, "transport")),
        (BAN, peer("/ops", "9", END), (Role::Admin, "config")),
        (BAN, peer("/admin", "9", END), (Role::Admin, "entries")),
        (SYNC, agent(), (Role::Agent, "datastore")),
        (FEDERATED, agent(), (Role::Agent, "datastore")),
        // Admin comes before agent.
        (FEDERATED, both(), (Role::Admin, "entries")),
        (SYNC, both(), (Role::Agent, "datastore")),
        (DOWNSTREAM, peer("/nested", "9", END), (Role::Downstream, "entries")),
        (LOGGER, local(), (Role::Local, "transport")),
    ];
    for (path, peer, want) in rows {
        let text = format!("{path} {peer:?}");
        assert_eq!(world.admit(path, peer).await.unwrap(), want, "{text}");
    }
}

#[tokio::test]
async fn who_is_not_let_in() {
    let world = World::new(HOUR).await;
    let rows = [
        (BAN, nobody()),
        (BAN, peer("/spire/agent/a", "1", END)),
        (BAN, peer("/nested", "9", END)),
        (BAN, peer("/web", "9", END)),
        // Over: rights end with the certificate.
        (BAN, peer("/ops", "9", NOW)),
        (BAN, peer("/admin", "9", NOW)),
        (DOWNSTREAM, peer("/nested", "9", NOW)),
        (DOWNSTREAM, peer("/admin", "9", END)),
        (DOWNSTREAM, local()),
        (SYNC, local()),
        (SYNC, nobody()),
    ];
    for (path, peer) in rows {
        let text = format!("{path} {peer:?}");
        let status = world.admit(path, peer).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{text}");
        assert_eq!(status.message(), format!("authorization denied for method {path}"));
        assert!(status.details().is_empty(), "{text}: an agent would act on it");
    }
    let status = world.admit(LOGGER, peer("/ops", "9", END)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
}

#[tokio::test]
async fn agents_hear_why() {
    let world = World::new(HOUR).await;
    let rows = [
        (peer("/spire/agent/a", "1", NOW - 1), Reason::AgentExpired),
        (peer("/spire/agent/a", "2", END), Reason::AgentNotActive),
        (peer("/spire/agent/unknown", "1", END), Reason::AgentNotAttested),
        (peer("/spire/agent/banned", "1", END), Reason::AgentBanned),
    ];
    for (peer, reason) in rows {
        let status = world.admit(SYNC, peer).await.unwrap_err();
        let want = denied_because(&format!("authorization denied for method {SYNC}"), reason);
        assert_eq!((status.code(), status.details()), (want.code(), want.details()), "{reason:?}");
    }
}

#[tokio::test]
async fn stale_memory_serves_the_admin_socket_only() {
    let world = World::new(Duration::ZERO).await;
    // Between two readings of the log some time passes, however little.
    for peer in [nobody(), peer("/ops", "9", END), peer("/spire/agent/a", "1", END)] {
        for path in [ATTEST, SYNC, BAN] {
            assert_eq!(world.admit(path, peer.clone()).await.unwrap_err().code(), Code::Unavailable);
        }
    }
    assert!(world.admit(BAN, local()).await.is_ok());
}

#[tokio::test]
async fn a_certificate_of_a_revoked_authority_counts_for_nothing() {
    let world = World::new(HOUR).await;
    world.revoked.store(true, Ordering::SeqCst);
    for path in [SYNC, BAN, DOWNSTREAM, FEDERATED] {
        for peer in [peer("/ops", "9", END), peer("/admin", "9", END), peer("/spire/agent/a", "1", END)] {
            let status = world.admit(path, peer).await.unwrap_err();
            assert_eq!(status.code(), Code::Unauthenticated, "{path}");
            assert!(status.details().is_empty(), "{path}: an agent would drop its identity");
        }
    }
    assert!(world.admit(ATTEST, peer("/spire/agent/a", "1", END)).await.is_ok(), "open to all");
    assert!(world.admit(BAN, local()).await.is_ok());
    // A banned agent's own end comes second: the certificate proves nothing about who it is.
    let status = world.admit(SYNC, peer("/spire/agent/banned", "1", END)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
}
