//! A store and a key manager in memory whose process can be killed at any write.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use svid_core::bundle::{Bundle, JwtAuthority, X509Authority};
use svid_core::clock::{Clock, unix_seconds};
use svid_core::id::TrustDomain;
use svid_core::key::{KeyType, Signer};
use svid_keymanager::MemoryKeyManager;
use svid_plugin_api::{KeyManager, PluginError};

use super::{CaStore, CaStoreError};

pub(super) fn trust_domain() -> TrustDomain {
    "example.org".parse().expect("a trust domain")
}

/// When the process dies: after so many writes, and whether the last one still takes effect.
#[derive(Debug)]
pub(super) struct Fuse {
    left: AtomicI64,
    last_takes_effect: bool,
}

impl Fuse {
    pub(super) fn never() -> Arc<Self> {
        Self::after(i64::MAX, true)
    }

    pub(super) fn after(writes: i64, last_takes_effect: bool) -> Arc<Self> {
        Arc::new(Self { left: AtomicI64::new(writes), last_takes_effect })
    }

    /// Whether a write takes effect, and whether anybody lives to hear of it.
    fn burn(&self) -> (bool, bool) {
        let left = self.left.fetch_sub(1, Ordering::SeqCst);
        (left > 0 || (left == 0 && self.last_takes_effect), left > 0)
    }

    pub(super) fn mend(&self) {
        self.left.store(i64::MAX, Ordering::SeqCst);
    }

    pub(super) fn has_blown(&self) -> bool {
        self.left.load(Ordering::SeqCst) < 0
    }
}

/// What outlives the process.
#[derive(Clone, Default)]
pub(super) struct Disk {
    journal: Arc<Mutex<Option<Vec<u8>>>>,
    bundle: Arc<Mutex<Option<Bundle>>>,
    keys: Arc<MemoryKeyManager>,
    audience: Arc<AtomicBool>,
}

impl Disk {
    /// From now on others go by the bundle.
    pub(super) fn has_audience(&self) {
        self.audience.store(true, Ordering::SeqCst);
    }

    pub(super) fn bundle(&self) -> Bundle {
        self.bundle.lock().expect("lock").clone().expect("a bundle")
    }

    /// How many JWT authorities are published.
    pub(super) fn prepared_jwt(&self) -> usize {
        self.bundle.lock().expect("lock").as_ref().map_or(0, |bundle| bundle.jwt_authorities.len())
    }

    pub(super) fn has_no_x509(&self) -> bool {
        self.bundle.lock().expect("lock").as_ref().is_none_or(|bundle| bundle.x509_authorities.is_empty())
    }

    /// As another server does it.
    pub(super) fn taint(&self, id: &str) {
        self.change(|bundle| {
            bundle
                .x509_authorities
                .iter_mut()
                .filter(|root| has_id(root, id))
                .for_each(|root| root.tainted = true);
        });
    }

    pub(super) fn lose_bundle(&self) {
        *self.bundle.lock().expect("lock") = None;
    }

    pub(super) fn begin_empty_bundle(&self) {
        *self.bundle.lock().expect("lock") = Some(Bundle::empty(trust_domain()));
    }

    pub(super) fn journal(&self) -> Option<Vec<u8>> {
        self.journal.lock().expect("lock").clone()
    }

    pub(super) fn keys(&self) -> &Arc<MemoryKeyManager> {
        &self.keys
    }

    pub(super) fn store(&self, fuse: &Arc<Fuse>) -> Arc<dyn CaStore> {
        Arc::new(FakeStore { disk: self.clone(), fuse: fuse.clone() })
    }

    pub(super) fn key_manager(&self, fuse: &Arc<Fuse>) -> Arc<dyn KeyManager> {
        Arc::new(FakeKeys { keys: self.keys.clone(), fuse: fuse.clone() })
    }

    fn change<R>(&self, change: impl FnOnce(&mut Bundle) -> R) -> R {
        let mut bundle = self.bundle.lock().expect("lock");
        change(bundle.get_or_insert_with(|| Bundle::empty(trust_domain())))
    }
}

struct FakeKeys {
    keys: Arc<MemoryKeyManager>,
    fuse: Arc<Fuse>,
}

#[async_trait]
impl KeyManager for FakeKeys {
    async fn generate(&self, id: &str, kind: KeyType) -> Result<Arc<dyn Signer>, PluginError> {
        let (effect, alive) = self.fuse.burn();
        let made = if effect { Some(self.keys.generate(id, kind).await?) } else { None };
        made.filter(|_| alive).ok_or_else(|| PluginError::internal("killed"))
    }

    async fn get(&self, id: &str) -> Result<Option<Arc<dyn Signer>>, PluginError> {
        self.keys.get(id).await
    }

    async fn list(&self) -> Result<Vec<(String, Arc<dyn Signer>)>, PluginError> {
        self.keys.list().await
    }

    fn is_durable(&self) -> bool {
        true
    }
}

struct FakeStore {
    disk: Disk,
    fuse: Arc<Fuse>,
}

impl FakeStore {
    fn write<R>(&self, write: impl FnOnce() -> R) -> Result<R, CaStoreError> {
        let (effect, alive) = self.fuse.burn();
        let done = effect.then(write);
        done.filter(|_| alive).ok_or_else(|| CaStoreError::new("killed", true))
    }

    fn tainted(&self, mark: impl FnOnce(&mut Bundle) -> bool) -> Result<(), CaStoreError> {
        let found = self.write(|| self.disk.change(mark))?;
        if found { Ok(()) } else { Err(CaStoreError::new("no such authority, or it is not tainted", false)) }
    }
}

fn has_id(root: &X509Authority, id: &str) -> bool {
    root.parsed().subject_key_id_hex().as_deref() == Some(id)
}

#[async_trait]
impl CaStore for FakeStore {
    async fn load_journal(&self) -> Result<Option<Vec<u8>>, CaStoreError> {
        Ok(self.disk.journal())
    }

    async fn save_journal(&self, journal: &[u8]) -> Result<(), CaStoreError> {
        self.write(|| *self.disk.journal.lock().expect("lock") = Some(journal.to_vec()))
    }

    async fn bundle(&self) -> Result<Option<Bundle>, CaStoreError> {
        Ok(self.disk.bundle.lock().expect("lock").clone())
    }

    async fn has_audience(&self) -> Result<bool, CaStoreError> {
        Ok(self.disk.audience.load(Ordering::SeqCst))
    }

    async fn append_to_bundle(
        &self,
        x509: &[X509Authority],
        jwt: &[JwtAuthority],
    ) -> Result<(), CaStoreError> {
        self.write(|| {
            self.disk.change(|bundle| {
                for root in x509 {
                    if !bundle.x509_authorities.iter().any(|known| known.der() == root.der()) {
                        bundle.x509_authorities.push(root.clone());
                    }
                }
                bundle.jwt_authorities.extend_from_slice(jwt);
            });
        })
    }

    async fn prune_bundle(&self, before: SystemTime) -> Result<bool, CaStoreError> {
        self.write(|| {
            self.disk.change(|bundle| {
                let count = bundle.x509_authorities.len() + bundle.jwt_authorities.len();
                bundle.x509_authorities.retain(|root| !root.parsed().life().is_over(before));
                bundle.jwt_authorities.retain(|key| key.expires_at > unix_seconds(before));
                count != bundle.x509_authorities.len() + bundle.jwt_authorities.len()
            })
        })
    }

    async fn taint_x509(&self, id: &str) -> Result<(), CaStoreError> {
        self.tainted(|bundle| {
            let found = bundle.x509_authorities.iter_mut().find(|root| has_id(root, id) && !root.tainted);
            found.map(|root| root.tainted = true).is_some()
        })
    }

    async fn revoke_x509(&self, id: &str) -> Result<(), CaStoreError> {
        self.tainted(|bundle| {
            let at = bundle.x509_authorities.iter().position(|root| root.tainted && has_id(root, id));
            at.map(|at| bundle.x509_authorities.remove(at)).is_some()
        })
    }

    async fn taint_jwt(&self, id: &str) -> Result<(), CaStoreError> {
        self.tainted(|bundle| {
            let found = bundle.jwt_authorities.iter_mut().find(|key| key.key_id == id);
            found.map(|key| key.tainted = true).is_some()
        })
    }

    async fn revoke_jwt(&self, id: &str) -> Result<(), CaStoreError> {
        self.tainted(|bundle| {
            let at = bundle.jwt_authorities.iter().position(|key| key.tainted && key.key_id == id);
            at.map(|at| bundle.jwt_authorities.remove(at)).is_some()
        })
    }
}

/// A clock that a test moves. Starts at a whole second.
#[derive(Clone, Debug)]
pub(super) struct Hands(Arc<AtomicU64>);

impl Hands {
    pub(super) fn new() -> Self {
        Self(Arc::new(AtomicU64::new(1_700_000_000)))
    }

    pub(super) fn clock(&self) -> Clock {
        let hands = self.clone();
        Clock::from_fn(move || hands.now())
    }

    pub(super) fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.0.load(Ordering::SeqCst))
    }

    pub(super) fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_secs(), Ordering::SeqCst);
    }

    pub(super) fn set_back(&self, by: Duration) {
        self.0.fetch_sub(by.as_secs(), Ordering::SeqCst);
    }
}
