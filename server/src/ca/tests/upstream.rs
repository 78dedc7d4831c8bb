//! Authorities that an upstream signs.

use svid_core::bundle::X509Authority;
use svid_core::pem::{certs_to_pem, key_to_pem};
use svid_core::x509::ca::self_signed_ca;
use svid_upstream_disk::{DiskConfig, UpstreamDisk};

use super::*;

struct Root {
    dir: tempfile::TempDir,
    cert: Vec<u8>,
}

fn root() -> Root {
    let dir = tempfile::tempdir().unwrap();
    let key = LocalKey::generate(KeyType::EcP256).unwrap();
    let cert =
        self_signed_ca(&trust_domain(), &CaSubject::default(), HOUR * 1000, &key, SystemTime::now() - HOUR)
            .unwrap();
    std::fs::write(dir.path().join("ca.key"), &*key_to_pem(key.private_key())).unwrap();
    std::fs::write(dir.path().join("ca.crt"), certs_to_pem([&cert])).unwrap();
    Root { dir, cert }
}

fn plugin(root: &Root) -> Arc<UpstreamDisk> {
    let config = DiskConfig {
        cert_file_path: root.dir.path().join("ca.crt"),
        key_file_path: root.dir.path().join("ca.key"),
        bundle_file_path: None,
    };
    Arc::new(UpstreamDisk::open(config, trust_domain(), Clock::system()).unwrap())
}

#[tokio::test]
async fn svids_chain_to_the_upstream_root() {
    let (disk, root) = (Disk::default(), root());
    let (ca, _task) = start_with(config(), &disk, Some(plugin(&root)), Clock::system()).await.unwrap();
    let roots: Vec<_> = disk.bundle().x509_authorities.iter().map(|root| root.der().to_vec()).collect();
    assert_eq!(roots, std::slice::from_ref(&root.cert), "the bundle holds the upstream's roots, not ours");
    let info = active(&ca.snapshot(), AuthorityKind::X509);
    let upstream_id = X509Authority::from_der(&root.cert).unwrap().parsed().subject_key_id_hex().unwrap();
    assert_eq!(info.upstream_authority_id, upstream_id);
    assert_eq!(ca.snapshot().upstream.as_deref(), Some("disk"));
    let (id, now) = (workload_id(), SystemTime::now());
    let request = X509SvidRequest { id: &id, ttl: HOUR, dns_names: &[], not_after_limit: None };
    let svid = ca.sign_workload_x509(&request, workload_key().1, now).await.unwrap();
    assert_eq!(svid.chain().iter().count(), 2);
    check_svid(&svid, &disk.bundle(), now).unwrap();
    super::signing::openssl_verify(&svid, &roots);

    // And after a restart, whose bundle does not hold our CA.
    let (again, _task) = start_with(config(), &disk, Some(plugin(&root)), Clock::system()).await.unwrap();
    assert_eq!(active(&again.snapshot(), AuthorityKind::X509), info);
    // Without the upstream nobody vouches for that CA any more.
    let (alone, _task) = start_with(config(), &disk, None, Clock::system()).await.unwrap();
    assert_ne!(active(&alone.snapshot(), AuthorityKind::X509).authority_id, info.authority_id);
}

#[tokio::test]
async fn local_authorities_below_an_upstream_cannot_be_tainted() {
    let (disk, root) = (Disk::default(), root());
    let (ca, task) = start_with(config(), &disk, Some(plugin(&root)), Clock::system()).await.unwrap();
    let task = tokio::spawn(task);
    assert!(matches!(ca.taint(AuthorityKind::X509, "x").await, Err(CaError::HasUpstream("tainted"))));
    assert!(matches!(ca.revoke(AuthorityKind::X509, "x").await, Err(CaError::HasUpstream("revoked"))));
    task.abort();
}
