//! Upstream roots: how they come, are tainted, and go.

use svid_core::bundle::X509Authority;

use super::puppet::{Issuer, Puppet, authority, id_of, root};
use super::*;

struct Running {
    ca: Ca,
    disk: Disk,
    puppet: Arc<Puppet>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Running {
    async fn below(top: &Arc<Issuer>) -> Self {
        let (disk, puppet) = (Disk::default(), Puppet::honest(top));
        Self::on(disk, puppet).await
    }

    async fn on(disk: Disk, puppet: Arc<Puppet>) -> Self {
        let (ca, task) = start_with(config(), &disk, Some(puppet.clone()), Clock::system()).await.unwrap();
        Self { ca, disk, puppet, task: tokio::spawn(task) }
    }

    /// Once the bundle is like this.
    async fn bundle(&self, is_so: impl Fn(&[X509Authority]) -> bool) {
        while !is_so(&self.disk.bundle().x509_authorities) {
            self.ca.poke().await;
            tokio::task::yield_now().await;
        }
    }

    fn above(&self) -> String {
        active(&self.ca.snapshot(), AuthorityKind::X509).upstream_authority_id
    }

    async fn rotate(&self) -> AuthorityInfo {
        let next = self.ca.prepare(AuthorityKind::X509).await.unwrap().authority_id;
        self.ca.activate(AuthorityKind::X509, &next).await.unwrap()
    }
}

fn holds(roots: &[X509Authority], id: &str) -> Option<bool> {
    let mut found = roots.iter().filter(|root| root.parsed().subject_key_id_hex().as_deref() == Some(id));
    found.next().map(|root| root.tainted)
}

fn tainted(issuer: &Issuer) -> X509Authority {
    let mut root = authority(issuer);
    root.tainted = true;
    root
}

#[tokio::test]
async fn roots_reach_the_bundle_without_a_restart() {
    let (first, second, third) = (root("first"), root("second"), root("third"));
    let puppet = Puppet::honest(&first);
    // Known before anything was asked for.
    puppet.set_roots(vec![authority(&first), authority(&second)]);
    let running = Running::on(Disk::default(), puppet).await;
    running.bundle(|roots| holds(roots, &id_of(&second)).is_some()).await;
    running.puppet.set_roots(vec![authority(&third)]);
    running.bundle(|roots| holds(roots, &id_of(&third)).is_some()).await;
    // What is not tainted does not go by being left out.
    assert_eq!(holds(&running.disk.bundle().x509_authorities, &id_of(&first)), Some(false));
    assert_eq!(running.disk.bundle().x509_authorities.len(), 3);
}

#[tokio::test]
async fn a_root_that_is_tainted_upstream_is_left_then_tainted_then_revoked() {
    let (old, new) = (root("old"), root("new"));
    let running = Running::below(&old).await;
    let mut identity = running.ca.server_identity();
    identity.borrow_and_update();
    running.puppet.open(false);
    running.puppet.signs_below(&new);
    running.puppet.set_roots(vec![tainted(&old), authority(&new)]);
    running.puppet.seen(2).await;
    // Nobody is told before there is another authority to go to.
    assert_eq!(holds(&running.disk.bundle().x509_authorities, &id_of(&old)), Some(false));
    running.puppet.open(true);
    running.bundle(|roots| holds(roots, &id_of(&old)) == Some(true)).await;
    assert_eq!(running.above(), id_of(&new));
    assert_eq!(holds(&running.disk.bundle().x509_authorities, &id_of(&new)), Some(false));
    identity.changed().await.unwrap();
    check_server(&running, &id_of(&new));
    // It vanishes upstream: nothing needs it any more.
    running.puppet.set_roots(vec![authority(&new)]);
    running.bundle(|roots| holds(roots, &id_of(&old)).is_none()).await;
    // And does not come back.
    running.puppet.set_roots(vec![authority(&old), authority(&new)]);
    running.ca.poke().await;
    let _ = running.ca.activate(AuthorityKind::X509, "").await;
    assert_eq!(holds(&running.disk.bundle().x509_authorities, &id_of(&old)), None);
}

fn check_server(running: &Running, above: &str) {
    let identity = running.ca.server_identity().borrow().clone();
    let ids = journal::issuers(identity.svid.chain().leaf(), identity.svid.chain().rest());
    assert!(ids.iter().any(|id| id == above));
}

#[tokio::test]
async fn an_upstream_that_goes_on_with_a_tainted_root_changes_nothing() {
    let old = root("old");
    let running = Running::below(&old).await;
    let before = active(&running.ca.snapshot(), AuthorityKind::X509);
    running.puppet.set_roots(vec![tainted(&old)]);
    running.puppet.seen(2).await;
    let mut snapshots = running.ca.snapshots();
    let failed = snapshots.wait_for(|snapshot| snapshot.rotation.failures > 0).await.unwrap().clone();
    let error = failed.rotation.last_error.clone().unwrap();
    assert!(error.contains("upstreamauthority(puppet): ") && error.contains("tainted root"), "{error}");
    assert_eq!(active(&failed, AuthorityKind::X509), before);
    assert_eq!(holds(&running.disk.bundle().x509_authorities, &id_of(&old)), Some(false));
}

#[tokio::test]
async fn an_operator_taints_and_revokes_an_upstream_root() {
    let (old, new) = (root("old"), root("new"));
    let running = Running::below(&old).await;
    let ca = &running.ca;
    let (old_id, new_id) = (id_of(&old), id_of(&new));
    assert!(matches!(ca.taint_upstream("").await, Err(CaError::SubjectKeyIdMissing)));
    assert!(matches!(ca.taint_upstream(&old_id).await, Err(CaError::UpstreamCurrent)));
    assert!(matches!(ca.taint_upstream("ab").await, Err(CaError::UpstreamUnknown)));
    running.puppet.signs_below(&new);
    let next = ca.prepare(AuthorityKind::X509).await.unwrap().authority_id;
    assert!(matches!(ca.taint_upstream(&new_id).await, Err(CaError::UpstreamPrepared)));
    ca.activate(AuthorityKind::X509, &next).await.unwrap();
    let mut identity = ca.server_identity();
    identity.borrow_and_update();
    assert!(matches!(ca.revoke_upstream(&old_id).await, Err(CaError::Store(_))), "not tainted");
    ca.taint_upstream(&old_id).await.unwrap();
    assert_eq!(holds(&running.disk.bundle().x509_authorities, &old_id), Some(true));
    identity.changed().await.unwrap();
    check_server(&running, &new_id);
    assert!(matches!(ca.taint_upstream(&old_id).await, Err(CaError::Store(_))), "twice");
    ca.revoke_upstream(&old_id).await.unwrap();
    assert_eq!(holds(&running.disk.bundle().x509_authorities, &old_id), None);
    // The upstream authority still names it; it was revoked all the same.
    running.puppet.set_roots(vec![authority(&old), authority(&new)]);
    running.puppet.signs_below(&old);
    let error = ca.prepare(AuthorityKind::X509).await.unwrap_err().to_string();
    assert!(error.contains("leads to a root that was revoked"), "{error}");
    assert_eq!(holds(&running.disk.bundle().x509_authorities, &old_id), None);
}

#[tokio::test]
async fn without_an_upstream_there_is_nothing_to_taint() {
    let (ca, task) = start_with(config(), &Disk::default(), None, Clock::system()).await.unwrap();
    let task = tokio::spawn(task);
    assert!(matches!(ca.taint_upstream("ab").await, Err(CaError::NoUpstream)));
    assert!(matches!(ca.revoke_upstream("ab").await, Err(CaError::NoUpstream)));
    task.abort();
}

/// Another server's operator tainted the root that this server's authority leads to.
#[tokio::test]
async fn a_root_that_others_tainted_is_left_at_once() {
    let (old, new) = (root("old"), root("new"));
    let running = Running::below(&old).await;
    running.puppet.signs_below(&new);
    running.disk.taint(&id_of(&old));
    running.bundle(|roots| holds(roots, &id_of(&new)).is_some()).await;
    let mut snapshots = running.ca.snapshots();
    let is_off = |snapshot: &Arc<CaSnapshot>| {
        active(snapshot, AuthorityKind::X509).upstream_authority_id == id_of(&new)
    };
    snapshots.wait_for(is_off).await.unwrap();
}

/// Where agents listen, a revocation waits until they had the time to replace what they hold.
#[tokio::test]
async fn a_revocation_waits_for_holders() {
    let disk = Disk::default();
    let spread = Duration::from_millis(200);
    let config = CaConfig { spread, ..config() };
    let (ca, task) = start_with(config, &disk, None, Clock::system()).await.unwrap();
    let task = tokio::spawn(task);
    let first = active(&ca.snapshot(), AuthorityKind::X509).authority_id;
    let next = ca.prepare(AuthorityKind::X509).await.unwrap().authority_id;
    ca.activate(AuthorityKind::X509, &next).await.unwrap();
    disk.has_audience();
    let begun = tokio::time::Instant::now();
    ca.taint(AuthorityKind::X509, &first).await.unwrap();
    let revoking = tokio::spawn({
        let (ca, first) = (ca.clone(), first.clone());
        async move { ca.revoke(AuthorityKind::X509, &first).await }
    });
    // The task does other things meanwhile.
    ca.prepare(AuthorityKind::Jwt).await.unwrap();
    revoking.await.unwrap().unwrap();
    assert!(begun.elapsed() >= spread * 2);
    assert_eq!(disk.bundle().x509_authorities.len(), 1);
    task.abort();
}

#[tokio::test]
async fn a_known_root_needs_no_time_to_spread() {
    let (top, disk) = (root("top"), Disk::default());
    let running = Running::on(disk.clone(), Puppet::honest(&top)).await;
    running.rotate().await;
    assert_eq!(running.above(), id_of(&top));
    assert_eq!(running.disk.bundle().x509_authorities.len(), 1);
}

#[tokio::test]
async fn any_jwt_key_of_the_bundle_that_is_not_in_use_can_be_revoked() {
    let disk = Disk::default();
    let (ca, task) = start_with(config(), &disk, None, Clock::system()).await.unwrap();
    let task = tokio::spawn(task);
    let kind = AuthorityKind::Jwt;
    let first = active(&ca.snapshot(), kind).authority_id;
    for _ in 0..2 {
        let next = ca.prepare(kind).await.unwrap().authority_id;
        assert!(matches!(ca.revoke(kind, &next).await, Err(CaError::NotOld("revoked"))));
        ca.activate(kind, &next).await.unwrap();
        if ca.snapshot().jwt.old().unwrap().info.authority_id == first {
            ca.taint(kind, &first).await.unwrap();
        }
    }
    // In no slot of this server any more.
    ca.revoke(kind, &first).await.unwrap();
    assert_eq!(disk.bundle().jwt_authorities.len(), 2);
    assert!(matches!(ca.revoke(kind, &first).await, Err(CaError::AuthorityIdUnexpected)));
    task.abort();
}
