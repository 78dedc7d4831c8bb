//! KeyManagers that keep keys in memory or in a file on disk.

mod disk;
mod file;
mod memory;
mod observed;
mod wrapping;

pub use disk::DiskKeyManager;
pub use memory::MemoryKeyManager;
pub use observed::{KeyObserver, KeyOperation, ObservedKeyManager};

use svid_core::key::{KeyType, LocalKey};
use svid_plugin_api::PluginError;

/// Makes a key where it does not hold up the caller's thread: RSA keys take seconds.
async fn new_key(kind: KeyType) -> Result<LocalKey, PluginError> {
    tokio::task::spawn_blocking(move || LocalKey::generate(kind))
        .await
        .map_err(|_| PluginError::internal("key generation was interrupted"))?
        .map_err(|error| PluginError::internal(format!("unable to generate key: {error}")))
}

/// An id that SPIRE would take as well: not empty.
fn check_id(id: &str) -> Result<(), PluginError> {
    if id.is_empty() { Err(PluginError::invalid("key id is required")) } else { Ok(()) }
}
