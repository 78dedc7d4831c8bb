#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use svid_core::key::{KeyType, LocalKey, Signer};
use svid_core::pem::{certs_to_pem, key_to_pem};
use svid_core::x509::ca::{CaSubject, ca_csr, self_signed_ca};
use svid_core::x509::{Authority, ParsedCert, PublicKey};

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn trust_domain() -> TrustDomain {
    "example.org".parse().unwrap()
}

struct Ca {
    key: LocalKey,
    cert: Vec<u8>,
}

fn root() -> Ca {
    let key = LocalKey::generate(KeyType::EcP256).unwrap();
    let ttl = HOUR * 10;
    let cert = self_signed_ca(&trust_domain(), &CaSubject::default(), ttl, &key, SystemTime::now()).unwrap();
    Ca { key, cert }
}

fn below(parent: &Ca) -> Ca {
    let key = LocalKey::generate(KeyType::EcP384).unwrap();
    let signer = LocalKey::from_pkcs8(copy(&parent.key)).unwrap().into_signer();
    let template =
        CaTemplate { trust_domain: trust_domain(), public_key: PublicKey::of(&key).unwrap(), ttl: HOUR * 5 };
    let parent = Authority::new(&parent.cert, Vec::new(), signer).unwrap();
    let chain = parent.issue_downstream_ca(template, SystemTime::now()).unwrap();
    Ca { key, cert: chain.leaf().to_vec() }
}

fn copy(key: &LocalKey) -> svid_core::key::PrivateKeyDer {
    svid_core::key::PrivateKeyDer::from_pkcs8(key.private_key().secret_bytes().to_vec())
}

fn write(dir: &Path, key: &LocalKey, certs: &[&Ca], bundle: Option<&Ca>) -> DiskConfig {
    let config = DiskConfig {
        cert_file_path: dir.join("ca.crt"),
        key_file_path: dir.join("ca.key"),
        bundle_file_path: bundle.map(|_| dir.join("roots.pem")),
    };
    fs::write(&config.key_file_path, &*key_to_pem(key.private_key())).unwrap();
    fs::write(&config.cert_file_path, certs_to_pem(certs.iter().map(|ca| &ca.cert))).unwrap();
    if let Some(bundle) = bundle {
        fs::write(dir.join("roots.pem"), certs_to_pem([&bundle.cert])).unwrap();
    }
    config
}

fn open(config: DiskConfig) -> Result<UpstreamDisk, PluginError> {
    UpstreamDisk::open(config, trust_domain(), Clock::system())
}

async fn mint(plugin: &UpstreamDisk, ttl: Duration) -> (LocalKey, MintedCa) {
    let key = LocalKey::generate(KeyType::EcP256).unwrap();
    let csr = ca_csr(&trust_domain(), &CaSubject::default(), &key).unwrap();
    let minted = plugin.mint_x509_ca(&csr, ttl).await.unwrap();
    (key, minted)
}

fn life_left(der: &[u8]) -> Duration {
    ParsedCert::from_der(der).unwrap().life().remaining(SystemTime::now())
}

#[tokio::test]
async fn a_self_signed_ca_is_its_own_root() {
    let dir = tempfile::tempdir().unwrap();
    let root = root();
    let plugin = open(write(dir.path(), &root.key, &[&root], None)).unwrap();
    let (key, minted) = mint(&plugin, HOUR * 2).await;
    assert_eq!(minted.chain.len(), 1);
    let cert = ParsedCert::from_der(&minted.chain[0]).unwrap();
    assert_eq!(cert.public_key_der(), key.public_key_der());
    assert_eq!(minted.roots.iter().map(|root| root.der()).collect::<Vec<_>>(), [root.cert.as_slice()]);
    assert_eq!(plugin.roots().borrow().len(), 1);
    assert_eq!(plugin.name(), "disk");
}

#[tokio::test]
async fn an_intermediate_brings_its_chain() {
    let dir = tempfile::tempdir().unwrap();
    let root = root();
    let (middle, other) = (below(&root), self::root());
    // The root in the certificate file is left out of the chain.
    let plugin = open(write(dir.path(), &middle.key, &[&middle, &root], Some(&root))).unwrap();
    let (_, minted) = mint(&plugin, HOUR).await;
    assert_eq!(minted.chain.len(), 2);
    assert_eq!(minted.chain[1], middle.cert);

    let check = |config: DiskConfig, want: &str| {
        let error = open(config).unwrap_err().message;
        assert!(error.contains(want), "{error}");
    };
    check(write(dir.path(), &middle.key, &[&middle, &root], None), "only self-signed CAs are supported");
    check(write(dir.path(), &middle.key, &[&middle], None), "only self-signed CAs are supported");
    check(
        write(dir.path(), &middle.key, &[&middle], Some(&other)),
        "cannot be validated with the provided bundle",
    );
    check(write(dir.path(), &other.key, &[&middle], Some(&root)), "certificate and private key do not match");
}

#[tokio::test]
async fn keeps_the_promises_of_upstream_authorities() {
    let dir = tempfile::tempdir().unwrap();
    let root = root();
    let plugin = open(write(dir.path(), &root.key, &[&root], None)).unwrap();
    svid_plugin_api::conformance::upstream_authority(&plugin, &trust_domain()).await;
    let (upper, dir) = (self::root(), tempfile::tempdir().unwrap());
    let middle = below(&upper);
    let plugin = open(write(dir.path(), &middle.key, &[&middle, &upper], Some(&upper))).unwrap();
    svid_plugin_api::conformance::upstream_authority(&plugin, &trust_domain()).await;
}

#[tokio::test]
async fn the_ttl_is_a_wish_within_the_upstreams_life() {
    let dir = tempfile::tempdir().unwrap();
    let root = root();
    let plugin = open(write(dir.path(), &root.key, &[&root], None)).unwrap();
    for (asked, want) in [(Duration::ZERO, HOUR), (HOUR * 3, HOUR * 3), (HOUR * 100, HOUR * 10)] {
        let left = life_left(&mint(&plugin, asked).await.1.chain[0]);
        assert!(left <= want && left > want - Duration::from_secs(60), "{left:?} of {want:?}");
    }
}

#[tokio::test]
async fn files_are_read_again_and_a_broken_one_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (root(), root());
    let plugin = open(write(dir.path(), &first.key, &[&first], None)).unwrap();
    let mut roots = plugin.roots();
    write(dir.path(), &second.key, &[&second], None);
    assert_eq!(mint(&plugin, HOUR).await.1.roots[0].der(), second.cert);
    assert!(roots.has_changed().unwrap());
    assert_eq!(roots.borrow_and_update()[0].der(), second.cert);
    fs::write(dir.path().join("ca.key"), "broken").unwrap();
    assert_eq!(mint(&plugin, HOUR).await.1.roots[0].der(), second.cert);
    assert!(!roots.has_changed().unwrap());
}

/// As Kubernetes mounts secrets: files are links into a directory that is swapped as a whole.
#[tokio::test]
async fn new_roots_are_published_when_files_change() {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    let swap = |version: &str, ca: &Ca| {
        let versioned = dir.path().join(version);
        fs::create_dir(&versioned).unwrap();
        write(&versioned, &ca.key, &[ca], None);
        symlink(&versioned, dir.path().join("next")).unwrap();
        fs::rename(dir.path().join("next"), dir.path().join("data")).unwrap();
    };
    let (first, second, third) = (root(), root(), root());
    swap("1", &first);
    for name in ["ca.crt", "ca.key"] {
        symlink(dir.path().join("data").join(name), dir.path().join(name)).unwrap();
    }
    let config = DiskConfig {
        cert_file_path: dir.path().join("ca.crt"),
        key_file_path: dir.path().join("ca.key"),
        bundle_file_path: None,
    };
    let plugin = open(config).unwrap();
    let following = tokio::spawn(plugin.follow());
    let mut roots = plugin.roots();
    swap("2", &second);
    roots.changed().await.unwrap();
    assert_eq!(roots.borrow_and_update()[0].der(), second.cert);
    // What is broken changes nothing, and is looked at again until it can be used.
    fs::write(dir.path().join("data/ca.key"), "broken").unwrap();
    assert!(plugin.0.look().is_err() && plugin.0.look().is_err());
    assert!(!roots.has_changed().unwrap());
    write(&dir.path().join("data"), &third.key, &[&third], None);
    roots.changed().await.unwrap();
    assert_eq!(roots.borrow_and_update()[0].der(), third.cert);
    assert!(plugin.0.look().is_ok());
    drop(plugin);
    following.await.unwrap();
}

#[tokio::test]
async fn a_csr_of_another_trust_domain_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let root = root();
    let plugin = open(write(dir.path(), &root.key, &[&root], None)).unwrap();
    let key = LocalKey::generate(KeyType::EcP256).unwrap();
    let csr = ca_csr(&"other.org".parse().unwrap(), &CaSubject::default(), &key).unwrap();
    for csr in [csr.as_slice(), b"no csr"] {
        let error = plugin.mint_x509_ca(csr, HOUR).await.unwrap_err().message;
        assert!(error.starts_with("unable to sign CSR: "), "{error}");
    }
}

#[test]
fn missing_and_malformed_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let root = root();
    let good = write(dir.path(), &root.key, &[&root], None);
    let check = |config: DiskConfig, want: &str| {
        let error = open(config).unwrap_err().message;
        assert!(error.contains(want), "{error}");
    };
    let gone = dir.path().join("gone");
    check(DiskConfig { key_file_path: gone.clone(), ..good.clone() }, "unable to load upstream CA key: ");
    check(DiskConfig { cert_file_path: gone.clone(), ..good.clone() }, "gone: No such file");
    check(DiskConfig { bundle_file_path: Some(gone), ..good.clone() }, "unable to load upstream CA bundle: ");
    let swapped = DiskConfig { cert_file_path: good.key_file_path.clone(), ..good };
    check(swapped, "unable to load upstream CA cert: ");
}
