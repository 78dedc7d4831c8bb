//! Start, rotation over time, restart, and death at every write.

use super::*;

#[tokio::test]
async fn the_first_start_brings_everything_up() {
    let (disk, hands) = (Disk::default(), Hands::new());
    let (ca, _task) = start_with(config(), &disk, None, hands.clock()).await.unwrap();
    let snapshot = ca.snapshot();
    check_invariants(&disk, &snapshot, hands.now()).await;
    let (x509, jwt) = (active(&snapshot, AuthorityKind::X509), active(&snapshot, AuthorityKind::Jwt));
    assert_eq!((x509.slot, jwt.slot), (SlotId::A, SlotId::A));
    assert_eq!(x509.not_after, hands.now() + HOUR * 24);
    assert_eq!(x509.upstream_authority_id, "");
    assert_eq!(x509.authority_id, disk.bundle().x509_authorities[0].parsed().subject_key_id_hex().unwrap());
    let identity = ca.server_identity().borrow().clone();
    let peer = check_svid(&identity.svid, &disk.bundle(), hands.now()).unwrap();
    assert_eq!(*peer.id(), trust_domain().server_id());
    assert_eq!(identity.svid.leaf().public_key_der(), identity.key.public_key_der());
    assert_eq!(identity.svid.not_after(), hands.now() + HOUR);
    assert!(ca.rotation_health().is_healthy());
    ca.check_signing(hands.now()).await.unwrap();
}

#[tokio::test]
async fn a_restart_goes_on_with_the_same_authorities() {
    let (disk, hands) = (Disk::default(), Hands::new());
    let ids = |snapshot: &CaSnapshot| {
        [AuthorityKind::X509, AuthorityKind::Jwt].map(|kind| active(snapshot, kind).authority_id)
    };
    let before = ids(&load(&disk, &Fuse::never(), &hands).await.unwrap().state);
    hands.advance(HOUR);
    assert_eq!(ids(&load(&disk, &Fuse::never(), &hands).await.unwrap().state), before);

    // A bundle without them, as after a restored backup: nobody could verify what they sign.
    disk.lose_bundle();
    let after = load(&disk, &Fuse::never(), &hands).await.unwrap();
    assert!(ids(&after.state).iter().all(|id| !before.contains(id)));
    check_invariants(&disk, &after.state, hands.now()).await;

    // Long after their end.
    let before = ids(&after.state);
    hands.advance(HOUR * 100);
    let after = load(&disk, &Fuse::never(), &hands).await.unwrap();
    assert!(ids(&after.state).iter().all(|id| !before.contains(id)));
}

#[tokio::test]
async fn keys_that_do_not_match_the_journal_are_not_used() {
    let (disk, hands) = (Disk::default(), Hands::new());
    let before = active(&load(&disk, &Fuse::never(), &hands).await.unwrap().state, AuthorityKind::X509);
    disk.keys().generate("x509-CA-A", KeyType::EcP256).await.unwrap();
    let after = load(&disk, &Fuse::never(), &hands).await.unwrap();
    assert_ne!(active(&after.state, AuthorityKind::X509).authority_id, before.authority_id);
    check_invariants(&disk, &after.state, hands.now()).await;
}

#[tokio::test]
async fn three_weeks_of_rotations() {
    let (disk, hands) = (Disk::default(), Hands::new());
    let mut manager = load(&disk, &Fuse::never(), &hands).await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..21 * 24 {
        hands.advance(HOUR);
        manager.pass().await.expect("a pass that works");
        check_invariants(&disk, &manager.state, hands.now()).await;
        let info = active(&manager.state, AuthorityKind::X509);
        assert!(
            info.not_after >= hands.now() + HOUR * 4 - Duration::from_secs(1),
            "no SVID of 4 h is cut short"
        );
        if seen.last() != Some(&info) {
            seen.push(info);
        }
    }
    // Prepared at 13 h and active at 21 h of each life: one in 13 + 8 hours at the most.
    assert!((21..=40).contains(&seen.len()), "{}", seen.len());
    let slots: Vec<_> = seen.iter().map(|info| info.slot).collect();
    assert!(slots.windows(2).all(|pair| pair[0] == pair[1].other()));
}

#[tokio::test]
async fn jwt_authorities_can_be_switched_off() {
    let (disk, hands) = (Disk::default(), Hands::new());
    let config = CaConfig { disable_jwt_svids: true, ..config() };
    let (ca, _task) = start_with(config, &disk, None, hands.clock()).await.unwrap();
    assert!(matches!(ca.state(AuthorityKind::Jwt), Err(CaError::JwtDisabled)));
    assert!(matches!(ca.prepare(AuthorityKind::Jwt).await, Err(CaError::JwtDisabled)));
    assert!(ca.snapshot().jwt.iter().next().is_none());
    assert!(disk.bundle().jwt_authorities.is_empty());
}

#[tokio::test]
async fn a_failed_rotation_leaves_the_last_good_state_and_is_counted() {
    let (disk, hands, fuse) = (Disk::default(), Hands::new(), Fuse::after(10, true));
    let mut manager = load(&disk, &fuse, &hands).await.unwrap();
    let before = active(&manager.state, AuthorityKind::X509);
    while !fuse.has_blown() {
        manager.pass().await;
        hands.advance(HOUR);
    }
    for _ in 0..UNHEALTHY_FAILURES {
        assert_eq!(manager.pass().await, None);
    }
    let snapshot = manager.subscribe().borrow().clone();
    assert_eq!(active(&snapshot, AuthorityKind::X509).authority_id, before.authority_id);
    assert!(!snapshot.rotation.is_healthy());
    assert!(snapshot.rotation.last_error.as_ref().is_some_and(|text| text.contains("killed")));
    fuse.mend();
    assert!(manager.pass().await.is_some());
    assert_eq!(manager.subscribe().borrow().rotation, RotationHealth::default());
}

/// Kills the server at each of its writes (key, bundle, journal), with and without that write taking effect, and
/// starts it again: it signs with the authority it had, or its successor, or a new one; never with one that is not in
/// the bundle or not in the journal.
#[tokio::test]
async fn death_at_every_write() {
    let mut deaths = 0;
    for writes in 0..40 {
        for last_takes_effect in [false, true] {
            let (disk, hands, fuse) = (Disk::default(), Hands::new(), Fuse::after(writes, last_takes_effect));
            let before = live_until_killed(&disk, &fuse, &hands).await;
            deaths += i32::from(fuse.has_blown());
            let again = load(&disk, &Fuse::never(), &hands).await.unwrap();
            check_invariants(&disk, &again.state, hands.now()).await;
            for (kind, known) in before {
                let now = active(&again.state, kind).authority_id;
                assert!(known.is_empty() || known.contains(&now), "{kind} at write {writes}");
            }
        }
    }
    assert!(deaths > 30, "{deaths}");
}

/// Three days of a server. Gives the authorities that were active or prepared when it died.
async fn live_until_killed(
    disk: &Disk,
    fuse: &Arc<Fuse>,
    hands: &Hands,
) -> Vec<(AuthorityKind, Vec<String>)> {
    let Ok(mut manager) = load(disk, fuse, hands).await else { return Vec::new() };
    for _ in 0..72 {
        let known = [AuthorityKind::X509, AuthorityKind::Jwt].map(|kind| {
            let state = manager.state.state(kind);
            (kind, state.active.into_iter().chain(state.prepared).map(|info| info.authority_id).collect())
        });
        manager.pass().await;
        if fuse.has_blown() {
            return known.into();
        }
        hands.advance(HOUR);
    }
    Vec::new()
}
