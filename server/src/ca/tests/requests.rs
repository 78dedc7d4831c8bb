//! CSRs: in the journal before they are sent, sent again after a crash, and nothing waits for them.

use svid_core::x509::VerifiedCsr;
use svid_plugin_api::{MintedCa, PluginCode};

use super::puppet::{Puppet, authority, root, sign};
use super::*;

fn journal(disk: &Disk) -> journal::Journal {
    disk.journal().map(|bytes| journal::Journal::decode(&bytes).unwrap()).unwrap_or_default()
}

fn key_of(csr: &[u8]) -> Vec<u8> {
    VerifiedCsr::from_der(csr).unwrap().public_key().spki().to_vec()
}

/// Starts a server that dies while the upstream authority holds its CSR.
async fn dies_while_asking(disk: &Disk, puppet: &Arc<Puppet>, hands: &Hands) -> Vec<u8> {
    puppet.open(false);
    let (before, fuse) = (puppet.count(), Fuse::never());
    let (keys, store) = (disk.key_manager(&fuse), disk.store(&fuse));
    let starting = tokio::spawn(Ca::start(config(), keys, Some(puppet.clone()), store, hands.clock()));
    let seen = puppet.seen(before + 1).await;
    assert_eq!(journal(disk).request().unwrap().csr, seen[before], "it is in the journal by then");
    starting.abort();
    assert!(starting.await.is_err());
    puppet.open(true);
    seen[before].clone()
}

#[tokio::test]
async fn a_csr_is_journaled_first_and_sent_again_after_a_crash() {
    let (disk, hands, puppet) = (Disk::default(), Hands::new(), Puppet::honest(&root("top")));
    let sent = dies_while_asking(&disk, &puppet, &hands).await;
    let sent_again = dies_while_asking(&disk, &puppet, &hands).await;
    let (ca, _task) = start_with(config(), &disk, Some(puppet.clone()), hands.clock()).await.unwrap();
    assert_eq!(puppet.seen(3).await, [sent.clone(), sent_again, sent.clone()]);
    assert_eq!(puppet.seen(3).await[1], sent);
    let snapshot = ca.snapshot();
    assert_eq!(snapshot.x509_authority(hands.now()).unwrap().signer().public_key_der(), key_of(&sent));
    assert_eq!(journal(&disk).request(), None, "the answer took its place");
}

#[tokio::test]
async fn a_csr_whose_key_is_gone_is_abandoned() {
    let (disk, hands, puppet) = (Disk::default(), Hands::new(), Puppet::honest(&root("top")));
    let sent = dies_while_asking(&disk, &puppet, &hands).await;
    disk.keys().generate("x509-CA-A", KeyType::EcP256).await.unwrap();
    let _started = start_with(config(), &disk, Some(puppet.clone()), hands.clock()).await.unwrap();
    let seen = puppet.seen(2).await;
    assert_ne!(key_of(&seen[1]), key_of(&sent));
    assert_eq!(journal(&disk).request(), None);
}

#[tokio::test]
async fn a_csr_goes_to_no_other_upstream_authority() {
    let (disk, hands, top) = (Disk::default(), Hands::new(), root("top"));
    let sent = dies_while_asking(&disk, &Puppet::honest(&top), &hands).await;
    let other = Puppet::named("other", &top);
    let _started = start_with(config(), &disk, Some(other.clone()), hands.clock()).await.unwrap();
    assert_ne!(other.seen(1).await[0], sent);
    let kind = CaConfig { ca_key_type: KeyType::EcP384, ..config() };
    let disk = Disk::default();
    let puppet = Puppet::honest(&top);
    let sent = dies_while_asking(&disk, &puppet, &hands).await;
    puppet.refuses(PluginCode::Unavailable);
    start_with(kind, &disk, Some(puppet.clone()), hands.clock()).await.map(drop).unwrap_err();
    assert_ne!(key_of(&puppet.seen(2).await[1]), key_of(&sent));
}

/// An answer that was lost, and an upstream that is away: the same CSR again, and not without end.
#[tokio::test]
async fn lost_answers_are_asked_for_again_with_growing_delays() {
    let (disk, hands, puppet) = (Disk::default(), Hands::new(), Puppet::honest(&root("top")));
    let (ca, task) = start_with(config(), &disk, Some(puppet.clone()), hands.clock()).await.unwrap();
    let task = tokio::spawn(task);
    puppet.refuses(PluginCode::Unavailable);
    let begun = tokio::time::Instant::now();
    let error = ca.prepare(AuthorityKind::X509).await.unwrap_err();
    assert!(error.is_unavailable(), "{error}");
    let seen = puppet.seen(7).await;
    assert!(seen[2..].iter().all(|csr| *csr == seen[1]), "the same CSR each time");
    // In milliseconds here, and each shortened by a quarter at most.
    assert!(
        begun.elapsed() > Duration::from_millis(10 + 20 + 40 + 80 + 160) * 3 / 4,
        "{:?}",
        begun.elapsed()
    );
    assert!(!ca.rotation_health().last_error.unwrap().is_empty());
    assert!(ca.rotation_health().failures >= 5);
    puppet.signs_below(&root("later"));
    let mut snapshots = ca.snapshots();
    snapshots.wait_for(|snapshot| snapshot.x509.prepared().is_some()).await.unwrap();
    snapshots.wait_for(|snapshot| snapshot.rotation == RotationHealth::default()).await.unwrap();
    task.abort();
}

#[tokio::test]
async fn a_throttling_upstream_is_left_alone_for_longer() {
    let (disk, hands, puppet) = (Disk::default(), Hands::new(), Puppet::honest(&root("top")));
    let (ca, task) = start_with(config(), &disk, Some(puppet.clone()), hands.clock()).await.unwrap();
    let task = tokio::spawn(task);
    puppet.refuses(PluginCode::ResourceExhausted);
    ca.prepare(AuthorityKind::X509).await.unwrap_err();
    // Half an hour, in milliseconds.
    puppet.seen(3).await;
    tokio::time::sleep(Duration::from_millis(1800)).await;
    let count = puppet.count() - 1;
    assert!(count < 12, "{count} in half an hour");
    task.abort();
}

#[tokio::test]
async fn a_slow_upstream_holds_nothing_up() {
    let (disk, hands, puppet) = (Disk::default(), Hands::new(), Puppet::honest(&root("top")));
    let (ca, task) = start_with(config(), &disk, Some(puppet.clone()), hands.clock()).await.unwrap();
    let task = tokio::spawn(task);
    puppet.open(false);
    let asking = [ca.clone(), ca.clone()]
        .map(|ca| tokio::spawn(async move { ca.prepare(AuthorityKind::X509).await.unwrap().authority_id }));
    puppet.seen(2).await;
    // Everything else goes on: JWT authorities, the server's own SVID, leaves.
    let mut identity = ca.server_identity();
    let before = identity.borrow_and_update().svid.serial_decimal();
    let next = ca.prepare(AuthorityKind::Jwt).await.unwrap().authority_id;
    ca.activate(AuthorityKind::Jwt, &next).await.unwrap();
    hands.advance(Duration::from_secs(40 * 60));
    ca.poke().await;
    identity.changed().await.unwrap();
    assert_ne!(identity.borrow().svid.serial_decimal(), before);
    ca.check_signing(hands.now()).await.unwrap();
    assert!(asking.iter().all(|asked| !asked.is_finished()));
    puppet.open(true);
    let [first, second] = asking;
    assert_eq!(first.await.unwrap(), second.await.unwrap(), "both who asked get the one that was made");
    assert_eq!(puppet.count(), 2);
    task.abort();
}

/// Kills the server at each of its writes, with and without that write taking effect, and starts it again.
#[tokio::test]
async fn death_at_every_write_with_an_upstream() {
    let mut deaths = 0;
    for writes in 0..30 {
        for last_takes_effect in [false, true] {
            let (disk, hands, fuse) = (Disk::default(), Hands::new(), Fuse::after(writes, last_takes_effect));
            let top = root("top");
            let puppet = Puppet::honest(&top);
            let (signer, theirs) = (top.clone(), hands.clone());
            puppet.acts(move |csr| {
                let end = theirs.now() + HOUR * 24;
                let chain = vec![sign(&signer, csr, |params| params.not_after = end.into())];
                Ok(MintedCa { chain, roots: vec![authority(&signer)] })
            });
            live_until_killed(&disk, &puppet, &fuse, &hands).await;
            deaths += i32::from(fuse.has_blown());
            let asked_before = puppet.count();
            let open = journal(&disk).request().map(|request| request.csr.clone());
            let (ca, task) = start_with(config(), &disk, Some(puppet.clone()), hands.clock()).await.unwrap();
            let task = tokio::spawn(task);
            if let Some(open) = open {
                assert_eq!(puppet.seen(asked_before + 1).await[asked_before], open, "at write {writes}");
            }
            let snapshot = ca.snapshot();
            let id = workload_id();
            let request = X509SvidRequest { id: &id, ttl: HOUR, dns_names: &[], not_after_limit: None };
            let svid = ca.sign_workload_x509(&request, workload_key().1, hands.now()).await.unwrap();
            check_svid(&svid, &disk.bundle(), hands.now()).unwrap();
            check_svid(&ca.server_identity().borrow().svid, &disk.bundle(), hands.now()).unwrap();
            let info = active(&snapshot, AuthorityKind::X509);
            let stored = disk.keys().get(info.slot.key_id(AuthorityKind::X509)).await.unwrap().unwrap();
            let signer = snapshot.x509_authority(hands.now()).unwrap().signer().clone();
            assert_eq!(stored.public_key_der(), signer.public_key_der());
            orphans(&disk, &puppet, writes);
            task.abort();
        }
    }
    assert!(deaths > 20, "{deaths}");
}

/// Every key that the upstream authority signed is one that the journal knows, but at most one.
fn orphans(disk: &Disk, puppet: &Puppet, writes: i64) {
    let journal = journal(disk);
    let known = |key: &Vec<u8>| {
        let is_open = journal.request().is_some_and(|request| key_of(&request.csr) == *key);
        is_open
            || journal.x509().iter().any(|entry| {
                svid_core::x509::ParsedCert::from_der(&entry.certificate).unwrap().public_key_der() == *key
            })
    };
    let mut keys: Vec<Vec<u8>> = puppet.all().iter().map(|csr| key_of(csr)).collect();
    keys.sort();
    keys.dedup();
    let unknown = keys.iter().filter(|key| !known(key)).count();
    assert!(unknown <= 1, "{unknown} orphans at write {writes}");
}

/// Three days of a server.
async fn live_until_killed(disk: &Disk, puppet: &Arc<Puppet>, fuse: &Arc<Fuse>, hands: &Hands) {
    let (keys, store) = (disk.key_manager(fuse), disk.store(fuse));
    let upstream: Arc<dyn UpstreamAuthority> = puppet.clone();
    let loaded = Manager::load(Arc::new(config()), keys, Some(upstream), store, hands.clock()).await;
    let Ok(mut manager) = loaded else { return };
    if manager.first_rotation().await.is_err() {
        return;
    }
    for _ in 0..72 {
        manager.pass().await;
        if manager.is_asking() {
            let answer = manager.answered().await;
            let _ = manager.take_answer(answer).await;
        }
        if fuse.has_blown() {
            return;
        }
        hands.advance(HOUR);
    }
}
