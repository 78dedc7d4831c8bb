//! Where a server's or agent's own keys live.

use std::sync::Arc;

use async_trait::async_trait;
use svid_core::key::{KeyType, Signer};

use crate::PluginError;

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
}
