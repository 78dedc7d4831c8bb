//! What the CA needs kept: its journal, and the authorities of the trust domain's own bundle.

use std::error::Error;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use svid_core::bundle::{Bundle, JwtAuthority, X509Authority};

/// The store's refusal, in its own words.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{error}")]
pub struct CaStoreError {
    error: Arc<dyn Error + Send + Sync>,
    /// The same call may succeed later.
    pub is_unavailable: bool,
}

impl CaStoreError {
    /// Wraps the store's error, or a text.
    pub fn new(error: impl Into<Box<dyn Error + Send + Sync>>, is_unavailable: bool) -> Self {
        Self { error: Arc::from(error.into()), is_unavailable }
    }
}

/// Durable storage for one server's CA. Every write is committed before its method returns.
#[async_trait]
pub trait CaStore: Send + Sync {
    /// This server's journal, as last saved.
    async fn load_journal(&self) -> Result<Option<Vec<u8>>, CaStoreError>;
    /// Replaces this server's journal.
    async fn save_journal(&self, journal: &[u8]) -> Result<(), CaStoreError>;
    /// The trust domain's own bundle.
    async fn bundle(&self) -> Result<Option<Bundle>, CaStoreError>;
    /// True if others than this server go by the bundle: another running server, or an attested agent.
    async fn has_audience(&self) -> Result<bool, CaStoreError>;
    /// Adds authorities to the bundle; those that are there already stay as they are.
    async fn append_to_bundle(
        &self,
        x509: &[X509Authority],
        jwt: &[JwtAuthority],
    ) -> Result<(), CaStoreError>;
    /// Removes authorities that ended before `before`, but never the last of a kind. True if something went.
    async fn prune_bundle(&self, before: SystemTime) -> Result<bool, CaStoreError>;
    /// Marks an X.509 authority (subject key ID in hex) as tainted.
    async fn taint_x509(&self, authority_id: &str) -> Result<(), CaStoreError>;
    /// Removes a tainted X.509 authority.
    async fn revoke_x509(&self, authority_id: &str) -> Result<(), CaStoreError>;
    /// Marks a JWT authority (key ID) as tainted.
    async fn taint_jwt(&self, authority_id: &str) -> Result<(), CaStoreError>;
    /// Removes a tainted JWT authority.
    async fn revoke_jwt(&self, authority_id: &str) -> Result<(), CaStoreError>;
}
