//! Where a server's or agent's own keys live.

use std::sync::Arc;

use async_trait::async_trait;
use svid_core::key::{KeyType, Signer};
use zeroize::Zeroizing;

use crate::{PluginCode, PluginError};

/// Keeps keys by id. A key in use is never changed: generating under a taken id makes a new signer,
/// and whoever holds the old one may go on using it until it is dropped.
#[async_trait]
pub trait KeyManager: Send + Sync {
    /// Makes a key under `id`, replacing what was there. It is durable before this returns.
    async fn generate(&self, id: &str, kind: KeyType) -> Result<Arc<dyn Signer>, PluginError>;
    /// The key under `id`, if there is one.
    async fn get(&self, id: &str) -> Result<Option<Arc<dyn Signer>>, PluginError>;
    /// All keys with their ids, sorted by id.
    async fn list(&self) -> Result<Vec<(String, Arc<dyn Signer>)>, PluginError>;
    /// True if keys outlive the process.
    fn is_durable(&self) -> bool;
    /// Encrypts a secret of at most a few hundred bytes, such as a key for something bigger, so that only this key
    /// manager opens it again, in a later process too. `None` if it cannot, as when its keys end with the process.
    async fn wrap_secret(&self, _secret: &[u8], _context: &[u8]) -> Result<Option<Vec<u8>>, PluginError> {
        Ok(None)
    }
    /// Opens what [`KeyManager::wrap_secret`] made with the same `context`.
    ///
    /// # Errors
    /// [`PluginError`], also when it was made by another key manager or changed since.
    async fn unwrap_secret(
        &self,
        _wrapped: &[u8],
        _context: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, PluginError> {
        Err(PluginError::new(PluginCode::Unimplemented, "this key manager wraps no secrets"))
    }
}
