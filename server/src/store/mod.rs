//! The database: domain types in, domain types out. Knows nothing of gRPC.

mod error;
mod types;

use std::sync::Arc;

use svid_core::bundle::{Bundle, JwtAuthority, X509Authority};
use svid_core::entry::{Entry, EntryId};
use svid_core::id::{SpiffeId, TrustDomain};

pub use error::StoreError;
pub use types::*;

/// A cheap handle on the database.
#[derive(Clone)]
pub struct Store(Arc<()>);

#[allow(missing_docs, clippy::unused_async)]
impl Store {
    pub async fn open(_config: &StoreConfig, _trust_domain: &TrustDomain) -> Result<Self, StoreError> {
        Ok(Self(Arc::new(())))
    }
    pub async fn ping(&self) -> Result<(), StoreError> {
        Err(StoreError::Closed)
    }
    // entries
    pub async fn create_entries(
        &self,
        items: Vec<CreateEntry>,
        _now: i64,
    ) -> Vec<Result<Created, StoreError>> {
        items.iter().map(|_| Err(StoreError::Closed)).collect()
    }
    pub async fn update_entries(&self, items: Vec<UpdateEntry>) -> Vec<Result<Entry, StoreError>> {
        items.iter().map(|_| Err(StoreError::Closed)).collect()
    }
    pub async fn delete_entries(&self, ids: Vec<EntryId>) -> Vec<Result<(), StoreError>> {
        ids.iter().map(|_| Err(StoreError::Closed)).collect()
    }
    // nodes
    pub async fn create_join_token(
        &self,
        _token: &str,
        _expires_at: i64,
        _alias: Option<CreateEntry>,
        _now: i64,
    ) -> Result<(), StoreError> {
        Err(StoreError::Closed)
    }
    pub async fn attest_with_join_token(
        &self,
        _token: &str,
        _node: NewNode,
        _now: i64,
    ) -> Result<(), StoreError> {
        Err(StoreError::Closed)
    }
    pub async fn attest_node(&self, _node: NewNode, _now: i64) -> Result<(), StoreError> {
        Err(StoreError::Closed)
    }
    pub async fn renew_node(
        &self,
        _id: &SpiffeId,
        _new_serial: &str,
        _new_expires_at: i64,
    ) -> Result<(), StoreError> {
        Err(StoreError::Closed)
    }
    pub async fn activate_serial(&self, _id: &SpiffeId, _serial: &str) -> Result<bool, StoreError> {
        Err(StoreError::Closed)
    }
    pub async fn ban_node(&self, _id: &SpiffeId) -> Result<(), StoreError> {
        Err(StoreError::Closed)
    }
    pub async fn delete_node(&self, _id: &SpiffeId) -> Result<Node, StoreError> {
        Err(StoreError::Closed)
    }
    pub async fn set_agent_version(&self, _id: &SpiffeId, _version: &str) -> Result<(), StoreError> {
        Err(StoreError::Closed)
    }
    pub async fn node(&self, _id: &SpiffeId) -> Result<Option<Node>, StoreError> {
        Err(StoreError::Closed)
    }
    // bundles
    pub async fn bundle(&self, _trust_domain: &TrustDomain) -> Result<Option<Bundle>, StoreError> {
        Err(StoreError::Closed)
    }
    pub async fn append_bundle(
        &self,
        _trust_domain: &TrustDomain,
        _x509: Vec<X509Authority>,
        _jwt: Vec<JwtAuthority>,
    ) -> Result<Bundle, StoreError> {
        Err(StoreError::Closed)
    }
    pub async fn create_bundle(&self, _bundle: Bundle) -> Result<Bundle, StoreError> {
        Err(StoreError::Closed)
    }
    pub async fn update_bundle(&self, _bundle: Bundle, _mask: BundleMask) -> Result<Bundle, StoreError> {
        Err(StoreError::Closed)
    }
    pub async fn set_bundle(&self, _bundle: Bundle) -> Result<Bundle, StoreError> {
        Err(StoreError::Closed)
    }
    pub async fn delete_bundle(
        &self,
        _trust_domain: &TrustDomain,
        _mode: DeleteMode,
    ) -> Result<(), StoreError> {
        Err(StoreError::Closed)
    }
    pub async fn taint_authority(
        &self,
        _trust_domain: &TrustDomain,
        _authority: AuthorityRef,
    ) -> Result<Bundle, StoreError> {
        Err(StoreError::Closed)
    }
    pub async fn revoke_authority(
        &self,
        _trust_domain: &TrustDomain,
        _authority: AuthorityRef,
    ) -> Result<Bundle, StoreError> {
        Err(StoreError::Closed)
    }
    /// Removes authorities that ended before `ended_before`; true if something went.
    pub async fn prune_bundle(
        &self,
        _trust_domain: &TrustDomain,
        _ended_before: i64,
    ) -> Result<bool, StoreError> {
        Err(StoreError::Closed)
    }
    // servers
    pub async fn save_journal(&self, _server_id: &str, _journal: Vec<u8>) -> Result<(), StoreError> {
        Err(StoreError::Closed)
    }
    pub async fn load_journal(&self, _server_id: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Err(StoreError::Closed)
    }
    pub async fn register_server(&self, _claim: ServerClaim) -> Result<(), StoreError> {
        Err(StoreError::Closed)
    }
    pub async fn heartbeat_server(
        &self,
        _server_id: &str,
        _holder: &str,
        _now: i64,
    ) -> Result<(), StoreError> {
        Err(StoreError::Closed)
    }
    // housekeeping (also `store::housekeeping(store, clock, options)`, a future for run.rs)
    pub async fn prune_entries(&self, _expired_before: i64) -> Result<u64, StoreError> {
        Err(StoreError::Closed)
    }
    pub async fn prune_join_tokens(&self, _expired_before: i64) -> Result<u64, StoreError> {
        Err(StoreError::Closed)
    }
    pub async fn prune_log(&self, _now: i64) -> Result<u64, StoreError> {
        Err(StoreError::Closed)
    }
}
