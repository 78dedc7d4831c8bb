//! With what a server really runs on: SQLite and keys on disk.

use svid_keymanager::DiskKeyManager;

use super::*;
use crate::store::{Store, StoreConfig};

async fn start(dir: &std::path::Path) -> (Ca, CaTask, Store) {
    let config = StoreConfig::at(dir.join("datastore.sqlite3"));
    let store = Store::open(&config, &trust_domain()).await.unwrap();
    let keys = Arc::new(DiskKeyManager::open(dir.join("keys.json")).unwrap());
    let stored = Arc::new(StoredCa::new(store.clone(), trust_domain(), "server-1".to_owned()));
    let (ca, task) = Ca::start(super::config(), keys, None, stored, Clock::system()).await.unwrap();
    (ca, task, store)
}

#[tokio::test]
async fn authorities_outlive_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let kinds = [AuthorityKind::X509, AuthorityKind::Jwt];
    let (before, bundle) = {
        let (ca, task, store) = start(dir.path()).await;
        let task = tokio::spawn(task);
        let old = active(&ca.snapshot(), AuthorityKind::X509).authority_id;
        let next = ca.prepare(AuthorityKind::X509).await.unwrap().authority_id;
        ca.activate(AuthorityKind::X509, &next).await.unwrap();
        ca.taint(AuthorityKind::X509, &old).await.unwrap();
        task.abort();
        let bundle = store.bundle(&trust_domain()).await.unwrap().unwrap();
        (kinds.map(|kind| active(&ca.snapshot(), kind)), bundle)
    };
    let tainted: Vec<_> = bundle.x509_authorities.iter().map(|root| root.tainted).collect();
    assert_eq!(tainted, [true, false]);
    let (ca, _task, store) = start(dir.path()).await;
    assert_eq!(kinds.map(|kind| active(&ca.snapshot(), kind)), before);
    assert_eq!(store.bundle(&trust_domain()).await.unwrap().unwrap(), bundle);
    let identity = ca.server_identity().borrow().clone();
    check_svid(&identity.svid, &bundle, SystemTime::now()).unwrap();
    assert!(ca.snapshot().is_tainted(&bundle.x509_authorities[0].parsed().subject_key_id_hex().unwrap()));
}
