#![allow(clippy::unwrap_used)]

mod answers;
mod lifecycle;
mod manual;
mod puppet;
mod requests;
mod signing;
mod spread;
mod stored;
mod taint;
mod upstream;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use svid_core::bundle::Bundle;
use svid_core::key::{KeyType, LocalKey, Signer};
use svid_core::x509::{PublicKey, Roots, VerifiedPeer, VerifyError, X509Svid, verify};

use super::fake::{Disk, Fuse, Hands, trust_domain};
use super::manager::Manager;
use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn config() -> CaConfig {
    CaConfig::new(trust_domain())
}

async fn load(disk: &Disk, fuse: &Arc<Fuse>, hands: &Hands) -> Result<Manager, CaError> {
    load_with(config(), disk, fuse, hands).await
}

async fn load_with(
    config: CaConfig,
    disk: &Disk,
    fuse: &Arc<Fuse>,
    hands: &Hands,
) -> Result<Manager, CaError> {
    let (keys, store) = (disk.key_manager(fuse), disk.store(fuse));
    let mut manager = Manager::load(Arc::new(config), keys, None, store, hands.clock()).await?;
    manager.first_rotation().await?;
    Ok(manager)
}

async fn start_with(
    config: CaConfig,
    disk: &Disk,
    upstream: Option<Arc<dyn UpstreamAuthority>>,
    clock: Clock,
) -> Result<(Ca, CaTask), CaError> {
    let fuse = Fuse::never();
    Ca::start(config, disk.key_manager(&fuse), upstream, disk.store(&fuse), clock).await
}

fn active(snapshot: &CaSnapshot, kind: AuthorityKind) -> AuthorityInfo {
    snapshot.state(kind).active.expect("an active authority")
}

fn check_svid(svid: &X509Svid, bundle: &Bundle, now: SystemTime) -> Result<VerifiedPeer, VerifyError> {
    let chain: Vec<&[u8]> = svid.chain().iter().collect();
    verify(&chain, &Roots::from_bundle(bundle), now)
}

fn workload_key() -> (LocalKey, PublicKey) {
    let key = LocalKey::generate(KeyType::EcP256).unwrap();
    let public = PublicKey::of(&key).unwrap();
    (key, public)
}

fn workload_id() -> svid_core::id::SpiffeId {
    "spiffe://example.org/web".parse().unwrap()
}

/// What has to hold whenever a server runs: each active authority is in the bundle, not over, the one that the
/// journal calls active, and its key is the one in the key manager.
async fn check_invariants(disk: &Disk, snapshot: &CaSnapshot, now: SystemTime) {
    let bundle = disk.bundle();
    let journal = journal::Journal::decode(&disk.journal().expect("a journal")).unwrap();
    let x509 = snapshot.x509_authority(now).unwrap();
    assert!(bundle.x509_authorities.iter().any(|root| root.der() == x509.cert_der()));
    let jwt = snapshot.jwt_authority(now).unwrap();
    assert!(bundle.jwt_authority(jwt.key_id()).is_some());
    for (kind, public_key) in
        [(AuthorityKind::X509, x509.signer().public_key_der()), (AuthorityKind::Jwt, jwt.public_key_der())]
    {
        let info = active(snapshot, kind);
        let stored = disk.keys().get(info.slot.key_id(kind)).await.unwrap().expect("a stored key");
        assert_eq!(stored.public_key_der(), public_key);
        let journaled = match kind {
            AuthorityKind::X509 => journal.x509().iter().map(journal::EntryFacts::from).collect::<Vec<_>>(),
            AuthorityKind::Jwt => journal.jwt().iter().map(journal::EntryFacts::from).collect(),
        };
        let says_active =
            journaled.iter().filter_map(|facts| facts.info()).filter(|info| info.status == Status::Active);
        assert_eq!(says_active.map(|info| info.authority_id).collect::<Vec<_>>(), [info.authority_id]);
    }
}
