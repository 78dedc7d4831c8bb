//! New authorities of a trust domain that others know wait before they sign.

use std::time::Instant;

use super::*;

/// Short, for what waits.
const SHORT: Duration = Duration::from_millis(200);
/// Longer than any test takes, for what must not.
const LONG: Duration = HOUR;
const PATIENCE: Duration = Duration::from_secs(60);

async fn load_spread(spread: Duration, disk: &Disk, hands: &Hands) -> Manager {
    let config = CaConfig { spread, ..config() };
    load_with(config, disk, &Fuse::never(), hands).await.unwrap()
}

async fn at_once(disk: &Disk, hands: &Hands) -> Manager {
    tokio::time::timeout(PATIENCE, load_spread(LONG, disk, hands)).await.expect("nothing to wait for")
}

#[tokio::test]
async fn nobody_is_waited_for_where_nobody_is() {
    let (disk, hands) = (Disk::default(), Hands::new());
    at_once(&disk, &hands).await;
}

#[tokio::test]
async fn a_new_server_waits_and_a_restarted_one_does_not() {
    let (disk, hands) = (Disk::default(), Hands::new());
    disk.has_audience();
    let begun = Instant::now();
    let first = load_spread(SHORT, &disk, &hands).await;
    assert!(begun.elapsed() >= SHORT);
    check_invariants(&disk, &first.state, hands.now()).await;
    at_once(&disk, &hands).await;
    // A bundle that lost them, as an older database has it: new ones, and they wait.
    disk.lose_bundle();
    let begun = Instant::now();
    let again = load_spread(SHORT, &disk, &hands).await;
    assert!(begun.elapsed() >= SHORT);
    check_invariants(&disk, &again.state, hands.now()).await;
}

#[tokio::test]
async fn a_server_that_died_while_waiting_waits_again() {
    let (disk, hands) = (Disk::default(), Hands::new());
    disk.has_audience();
    let (waiting_disk, waiting_hands) = (disk.clone(), hands.clone());
    let waiting = tokio::spawn(async move { drop(load_spread(LONG, &waiting_disk, &waiting_hands).await) });
    while disk.prepared_jwt() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    waiting.abort();
    assert!(waiting.await.is_err(), "it was still waiting");
    let published = disk.bundle().x509_authorities.len();
    let begun = Instant::now();
    load_spread(SHORT, &disk, &hands).await;
    assert!(begun.elapsed() >= SHORT);
    assert_eq!(disk.bundle().x509_authorities.len(), published, "with the one that was prepared");
}

#[tokio::test]
async fn an_operator_who_prepares_and_activates_at_once_waits() {
    let (disk, hands) = (Disk::default(), Hands::new());
    let config = CaConfig { spread: SHORT, ..config() };
    let (ca, task) = start_with(config, &disk, None, hands.clock()).await.unwrap();
    tokio::spawn(task);
    disk.has_audience();
    for kind in [AuthorityKind::X509, AuthorityKind::Jwt] {
        let begun = Instant::now();
        let next = ca.prepare(kind).await.unwrap().authority_id;
        ca.activate(kind, &next).await.unwrap();
        assert!(begun.elapsed() >= SHORT);
        assert_eq!(active(&ca.snapshot(), kind).authority_id, next);
    }
}

/// After an outage that lasted longer than the authority the next one has no hours to spread in.
#[tokio::test]
async fn a_late_rotation_waits_too() {
    let (disk, hands) = (Disk::default(), Hands::new());
    let mut manager = at_once(&disk, &hands).await;
    disk.has_audience();
    let before = active(&manager.state, AuthorityKind::X509).authority_id;
    hands.advance(HOUR * 23);
    let due = manager.pass().await.expect("a pass that works");
    assert!(due > hands.now() && due <= hands.now() + LONG);
    assert_eq!(active(&manager.state, AuthorityKind::X509).authority_id, before);
    manager.spreading.begin(AuthorityKind::X509, Duration::ZERO);
    manager.pass().await.expect("a pass that works");
    assert_ne!(active(&manager.state, AuthorityKind::X509).authority_id, before);
}

#[tokio::test]
async fn an_authority_that_the_database_lost_is_not_activated() {
    let (disk, hands) = (Disk::default(), Hands::new());
    let mut manager = at_once(&disk, &hands).await;
    hands.advance(HOUR * 13);
    manager.pass().await.expect("a pass that works");
    let lost = manager.state.state(AuthorityKind::X509).prepared.unwrap().authority_id;
    disk.lose_bundle();
    hands.advance(HOUR * 9);
    assert_eq!(manager.pass().await, None, "it says so");
    while manager.pass().await.is_none() {}
    let now = active(&manager.state, AuthorityKind::X509).authority_id;
    assert_ne!(now, lost);
    check_invariants(&disk, &manager.state, hands.now()).await;
}

#[tokio::test]
async fn a_bundle_that_lost_what_signs_gets_it_back() {
    let (disk, hands) = (Disk::default(), Hands::new());
    let mut manager = at_once(&disk, &hands).await;
    let (before, bundle) = (active(&manager.state, AuthorityKind::X509), disk.bundle());
    disk.lose_bundle();
    disk.begin_empty_bundle();
    manager.pass().await.expect("a pass that works");
    assert_eq!(active(&manager.state, AuthorityKind::X509), before);
    assert_eq!(disk.bundle(), bundle);
    check_invariants(&disk, &manager.state, hands.now()).await;
}

/// What a clock calls over that was set by a day stays where it is, and each kind rotates once at most for it.
#[tokio::test]
async fn a_clock_that_jumps_by_a_day() {
    let day = HOUR * 24;
    let (disk, hands) = (Disk::default(), Hands::new());
    let config = CaConfig { clock_guard: crate::clock_guard::ClockGuard::new(hands.clock()), ..config() };
    let mut manager = load_with(config, &disk, &Fuse::never(), &hands).await.unwrap();
    let count = |disk: &Disk| (disk.bundle().x509_authorities.len(), disk.bundle().jwt_authorities.len());
    let first = active(&manager.state, AuthorityKind::X509);
    hands.advance(day * 3);
    for _ in 0..10 {
        manager.pass().await.expect("a pass that works");
    }
    assert_eq!(count(&disk), (2, 2), "one rotation, and the authorities that seem to be over are kept");
    let second = active(&manager.state, AuthorityKind::X509);
    assert_ne!(second, first);
    assert!(manager.state.x509_authority(hands.now()).is_ok());
    hands.set_back(day * 3);
    for _ in 0..10 {
        manager.pass().await.expect("a pass that works");
    }
    assert_eq!(count(&disk), (2, 2));
    assert_eq!(active(&manager.state, AuthorityKind::X509), second);
}
