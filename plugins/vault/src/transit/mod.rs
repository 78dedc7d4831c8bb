//! KeyManager `hashicorp_vault`: keys are made and used in a transit engine, and never leave it.
//!
//! A key is called `<server id>-<random UUID>-<id>`, as SPIRE calls it: the server's identifier tells whose it is, and the
//! UUID makes every generation a key of its own, so that whoever holds the old one can go on using it.

mod config;
mod engine;
mod identity;
mod trash;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use svid_core::key::{KeyError, KeyType, Signer};
use svid_core::remote::RemoteSigner;
use svid_plugin_api::{KeyManager, PluginError, RemoteKey, SigningLane, SigningLimits};
use tokio::task::JoinHandle;
use uuid::Uuid;

pub use config::KeyManagerConfig;

use crate::answer;
use crate::session::Vault;
use engine::{Transit, key_type, version_name};
use trash::Trash;

/// Length of a UUID as text.
const UUID_CHARS: usize = 36;

/// The plugin.
pub struct TransitKeyManager {
    engine: Arc<Transit>,
    lane: Arc<SigningLane>,
    server_id: String,
    keys: Mutex<BTreeMap<String, Arc<TransitKey>>>,
    trash: Trash,
    emptying: JoinHandle<()>,
}

impl Drop for TransitKeyManager {
    fn drop(&mut self) {
        self.emptying.abort();
    }
}

impl fmt::Debug for TransitKeyManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransitKeyManager").field("server_id", &self.server_id).finish_non_exhaustive()
    }
}

impl TransitKeyManager {
    /// Logs in and looks for the keys of this server.
    /// # Errors
    /// The identifier's file cannot be used, or Vault does not answer as wanted.
    pub async fn open(config: KeyManagerConfig) -> Result<Self, PluginError> {
        let server_id = identity::server_id(&config.key_identifier)?;
        let vault = Vault::new(config.connection);
        let engine = Arc::new(Transit { vault, mount: config.transit_engine_path });
        let (trash, names) = Trash::new();
        let emptying = tokio::spawn(trash::empty(engine.clone(), names));
        let lane = SigningLane::new(SigningLimits::default());
        let manager = Self { engine, lane, server_id, keys: Mutex::default(), trash, emptying };
        manager.load().await?;
        Ok(manager)
    }

    async fn load(&self) -> Result<(), PluginError> {
        let mut newest: BTreeMap<String, (jiff::Timestamp, String, answer::TransitKey)> = BTreeMap::new();
        for name in self.engine.names().await? {
            let Some(id) = key_id(&name, &self.server_id) else { continue };
            let key = self.engine.read(&name).await?;
            let created: jiff::Timestamp = key.created.parse().map_err(|_| {
                PluginError::internal(format!("failed to parse creation_time of key {name:?}"))
            })?;
            // Two of one id: the process ended before the old one was deleted.
            let stale = match newest.get(id) {
                Some((known, ..)) if *known >= created => Some(name),
                _ => newest.insert(id.to_owned(), (created, name, key)).map(|(_, stale, _)| stale),
            };
            if let Some(stale) = stale {
                tracing::warn!(key_name = stale, "Stale key found on startup, scheduling for deletion");
                self.trash.put(&stale);
            }
        }
        for (id, (_, name, key)) in newest {
            let key = self.signer(name, &key)?;
            tracing::debug!(key_id = id, key_type = key.key_type().name(), "Key loaded");
            self.keys().insert(id, Arc::new(key));
        }
        Ok(())
    }

    fn keys(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<TransitKey>>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signer(&self, name: String, key: &answer::TransitKey) -> Result<TransitKey, PluginError> {
        let kind = key_type(&key.kind)
            .ok_or_else(|| PluginError::internal(format!("unsupported key type: {}", key.kind)))?;
        let version = version_name(&name, key.version);
        let (engine, lane) = (self.engine.clone(), self.lane.clone());
        let inner = RemoteKey::new(engine, lane, version, kind, key.public_key.clone())?;
        Ok(TransitKey { inner, name, is_replaced: AtomicBool::new(false), trash: self.trash.clone() })
    }
}

/// The id in the name of a key of this server.
fn key_id<'a>(name: &'a str, server_id: &str) -> Option<&'a str> {
    let rest = name.strip_prefix(server_id)?.strip_prefix('-')?;
    let (uuid, rest) = rest.split_at_checked(UUID_CHARS)?;
    Uuid::parse_str(uuid).ok()?;
    rest.strip_prefix('-').filter(|id| !id.is_empty())
}

#[async_trait]
impl KeyManager for TransitKeyManager {
    async fn generate(&self, id: &str, kind: KeyType) -> Result<Arc<dyn Signer>, PluginError> {
        let name = format!("{}-{}-{id}", self.server_id, Uuid::new_v4());
        if !config::is_key_name(&name) {
            return Err(PluginError::invalid(format!("{id:?} cannot be part of the name of a key in Vault")));
        }
        let key = self.engine.create(&name, kind).await?;
        let key = Arc::new(self.signer(name, &key)?);
        if key.key_type() != kind {
            return Err(PluginError::internal("Vault made a key of another type than it was asked for"));
        }
        if let Some(replaced) = self.keys().insert(id.to_owned(), key.clone()) {
            replaced.is_replaced.store(true, Ordering::Release);
        }
        Ok(key)
    }

    async fn get(&self, id: &str) -> Result<Option<Arc<dyn Signer>>, PluginError> {
        Ok(self.keys().get(id).map(|key| key.clone() as Arc<dyn Signer>))
    }

    async fn list(&self) -> Result<Vec<(String, Arc<dyn Signer>)>, PluginError> {
        let keys = self.keys();
        Ok(keys.iter().map(|(id, key)| (id.clone(), key.clone() as Arc<dyn Signer>)).collect())
    }

    fn is_durable(&self) -> bool {
        true
    }
}

/// A key in the engine. Once another has taken its place, and its last user has let it go, it is deleted there.
struct TransitKey {
    inner: RemoteKey<Transit>,
    name: String,
    is_replaced: AtomicBool,
    trash: Trash,
}

impl Drop for TransitKey {
    fn drop(&mut self) {
        if self.is_replaced.load(Ordering::Acquire) {
            self.trash.put(&self.name);
        }
    }
}

impl Signer for TransitKey {
    fn key_type(&self) -> KeyType {
        self.inner.key_type()
    }

    fn public_key_der(&self) -> &[u8] {
        self.inner.public_key_der()
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        Signer::sign(&self.inner, message)
    }

    fn sign_jws(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.inner.sign_jws(message)
    }

    fn remote(&self) -> Option<&dyn RemoteSigner> {
        self.inner.remote()
    }
}

#[cfg(test)]
mod tests {
    use super::key_id;

    #[test]
    fn only_names_of_this_server_count() {
        let uuid = "0b3f4c8e-6f0e-4d7c-9e0f-2f1d3c4b5a69";
        assert_eq!(key_id(&format!("me-{uuid}-x509-CA-A"), "me"), Some("x509-CA-A"));
        for other in [
            format!("you-{uuid}-x509-CA-A"),
            format!("me-{uuid}-"),
            format!("me-{uuid}"),
            "me-x509-CA-A".to_owned(),
            format!("me-too-{uuid}-x509-CA-A"),
            format!("me-{}-x509-CA-A", "x".repeat(36)),
        ] {
            assert_eq!(key_id(&other, "me"), None, "{other}");
        }
    }
}
