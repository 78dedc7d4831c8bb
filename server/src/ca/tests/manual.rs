//! What an operator does by hand, through the handle.

use super::*;

struct Running {
    ca: Ca,
    disk: Disk,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn running() -> Running {
    let disk = Disk::default();
    let (ca, task) = start_with(config(), &disk, None, Clock::system()).await.unwrap();
    Running { ca, disk, task: tokio::spawn(task) }
}

#[tokio::test]
async fn prepare_and_activate() {
    for kind in [AuthorityKind::X509, AuthorityKind::Jwt] {
        let running = running().await;
        let ca = &running.ca;
        let first = ca.state(kind).unwrap().active.unwrap();
        assert!(matches!(ca.activate(kind, "").await, Err(CaError::AuthorityIdMissing)));
        assert!(matches!(ca.activate(kind, "x").await, Err(CaError::AuthorityIdUnexpected)));
        let replaced = ca.prepare(kind).await.unwrap();
        let next = ca.prepare(kind).await.unwrap();
        assert_ne!(replaced.authority_id, next.authority_id);
        assert_eq!((next.slot, next.status), (SlotId::B, Status::Prepared));
        assert!(matches!(
            ca.activate(kind, &replaced.authority_id).await,
            Err(CaError::AuthorityIdUnexpected)
        ));
        let now_active = ca.activate(kind, &next.authority_id).await.unwrap();
        assert_eq!(now_active, AuthorityInfo { status: Status::Active, ..next.clone() });
        let state = ca.state(kind).unwrap();
        assert_eq!(state.active, Some(now_active));
        assert_eq!(state.prepared, None);
        assert_eq!(state.old, Some(AuthorityInfo { status: Status::Old, ..first }));
        assert!(matches!(ca.activate(kind, &next.authority_id).await, Err(CaError::AuthorityIdUnexpected)));
        check_invariants(&running.disk, &ca.snapshot(), SystemTime::now()).await;
    }
}

#[tokio::test]
async fn taint_and_revoke_the_old_authority() {
    for kind in [AuthorityKind::X509, AuthorityKind::Jwt] {
        let running = running().await;
        let ca = &running.ca;
        let first = ca.state(kind).unwrap().active.unwrap().authority_id;
        assert!(matches!(ca.taint(kind, &first).await, Err(CaError::TaintCurrent)));
        assert!(matches!(ca.revoke(kind, &first).await, Err(CaError::RevokeCurrent)));
        assert!(matches!(ca.taint(kind, "").await, Err(CaError::AuthorityIdMissing)));
        let next = ca.prepare(kind).await.unwrap().authority_id;
        assert!(matches!(ca.taint(kind, &next).await, Err(CaError::NotOld("tainted"))));
        ca.activate(kind, &next).await.unwrap();
        assert!(matches!(ca.revoke(kind, &first).await, Err(CaError::Store(_))), "not tainted");
        ca.taint(kind, &first).await.unwrap();
        let bundle = running.disk.bundle();
        assert!(bundle.x509_authorities.iter().any(|root| root.tainted) || kind == AuthorityKind::Jwt);
        ca.revoke(kind, &first).await.unwrap();
        let bundle = running.disk.bundle();
        let left = match kind {
            AuthorityKind::X509 => bundle.x509_authorities.len(),
            AuthorityKind::Jwt => bundle.jwt_authorities.len(),
        };
        assert_eq!(left, 1);
    }
}

#[tokio::test]
async fn the_servers_svid_leaves_a_tainted_authority_at_once() {
    let running = running().await;
    let ca = &running.ca;
    let mut identity = ca.server_identity();
    let first = identity.borrow_and_update().authority_id.clone();
    let next = ca.prepare(AuthorityKind::X509).await.unwrap().authority_id;
    ca.activate(AuthorityKind::X509, &next).await.unwrap();
    // Agents get a while to learn of the new authority.
    assert_eq!(identity.borrow().authority_id, first);
    ca.taint(AuthorityKind::X509, &first).await.unwrap();
    identity.changed().await.unwrap();
    assert_eq!(identity.borrow().authority_id, next);
}

#[tokio::test]
async fn without_its_task_the_handle_says_so() {
    let running = running().await;
    running.task.abort();
    while !running.task.is_finished() {
        tokio::task::yield_now().await;
    }
    assert!(matches!(running.ca.prepare(AuthorityKind::X509).await, Err(CaError::Stopped)));
    running.ca.poke().await;
    running.ca.check_signing(SystemTime::now()).await.unwrap();
}

#[tokio::test]
async fn the_servers_svid_is_replaced_around_half_of_its_life() {
    let (disk, hands) = (Disk::default(), Hands::new());
    let (ca, task) = start_with(config(), &disk, None, hands.clock()).await.unwrap();
    let task = tokio::spawn(task);
    let mut identity = ca.server_identity();
    let first = identity.borrow_and_update().svid.serial_decimal();
    hands.advance(Duration::from_secs(20 * 60));
    ca.poke().await;
    // The answer to a command comes after the poke was dealt with.
    let _ = ca.activate(AuthorityKind::X509, "").await;
    assert_eq!(identity.borrow().svid.serial_decimal(), first);
    hands.advance(Duration::from_secs(15 * 60));
    ca.poke().await;
    identity.changed().await.unwrap();
    let second = identity.borrow().clone();
    assert_ne!(second.svid.serial_decimal(), first);
    assert_eq!(second.svid.not_after(), hands.now() + HOUR);
    task.abort();
}
