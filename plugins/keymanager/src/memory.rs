//! Keys that end with the process.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use svid_core::key::{KeyType, Signer};
use svid_plugin_api::{KeyManager, PluginError};

use crate::{check_id, new_key};

type Keys = BTreeMap<String, Arc<dyn Signer>>;

/// KeyManager `memory`.
#[derive(Debug, Default)]
pub struct MemoryKeyManager {
    keys: Mutex<Keys>,
}

impl MemoryKeyManager {
    /// One without keys.
    pub fn new() -> Self {
        Self::default()
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        // The map is whole at every moment at which a holder could panic.
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl KeyManager for MemoryKeyManager {
    async fn generate(&self, id: &str, kind: KeyType) -> Result<Arc<dyn Signer>, PluginError> {
        check_id(id)?;
        let key = new_key(kind).await?.into_signer();
        self.keys().insert(id.to_owned(), key.clone());
        Ok(key)
    }

    async fn get(&self, id: &str) -> Result<Option<Arc<dyn Signer>>, PluginError> {
        Ok(self.keys().get(id).cloned())
    }

    async fn list(&self) -> Result<Vec<(String, Arc<dyn Signer>)>, PluginError> {
        Ok(self.keys().iter().map(|(id, key)| (id.clone(), key.clone())).collect())
    }

    fn is_durable(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keeps_every_promise() {
        let keys = MemoryKeyManager::new();
        svid_plugin_api::conformance::key_manager(&keys).await;
        assert!(!keys.is_durable());
        assert!(keys.generate("", KeyType::EcP256).await.is_err());
    }
}
