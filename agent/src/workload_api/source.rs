//! What the local APIs need of the cache, as traits, so that tests can stand in for it.

use std::sync::Arc;

use async_trait::async_trait;
use svid_core::selector::SelectorSet;

use crate::cache::{AgentEntry, JwtFetchError, JwtSvid, WorkloadUpdate};

/// The identities of workloads.
#[async_trait]
pub trait IdentitySource: Send + Sync + 'static {
    /// Follows what a workload with these selectors may have.
    fn subscribe(&self, selectors: Arc<SelectorSet>) -> Box<dyn Updates>;
    /// What is there now, without waiting for SVIDs that are not.
    fn current(&self, selectors: &SelectorSet) -> Arc<WorkloadUpdate>;
    /// The entries that apply, sorted by id.
    fn matching_entries(&self, selectors: &SelectorSet) -> Vec<Arc<AgentEntry>>;
    /// A JWT-SVID for an entry's identity.
    async fn jwt_svid(&self, entry: &AgentEntry, audience: &[String]) -> Result<JwtSvid, JwtFetchError>;
}

/// One subscription.
#[async_trait]
pub trait Updates: Send {
    /// The next state: the first as soon as every matching entry has its SVID, later ones as they come, states that
    /// were overtaken left out. Dropping the future loses nothing.
    async fn next(&mut self) -> Arc<WorkloadUpdate>;
}
