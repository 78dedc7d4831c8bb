//! The agent's cache as a source of identities.

use std::sync::Arc;

use async_trait::async_trait;
use svid_core::selector::SelectorSet;

use super::source::{IdentitySource, Updates};
use crate::cache::{AgentEntry, Cache, JwtFetchError, JwtSvid, Subscription, WorkloadUpdate};

#[async_trait]
impl IdentitySource for Cache {
    fn subscribe(&self, selectors: Arc<SelectorSet>) -> Box<dyn Updates> {
        Box::new(Cache::subscribe(self, selectors))
    }

    fn current(&self, selectors: &SelectorSet) -> Arc<WorkloadUpdate> {
        Cache::current(self, selectors)
    }

    fn matching_entries(&self, selectors: &SelectorSet) -> Vec<Arc<AgentEntry>> {
        Cache::matching_entries(self, selectors)
    }

    async fn jwt_svid(&self, entry: &AgentEntry, audience: &[String]) -> Result<JwtSvid, JwtFetchError> {
        Cache::jwt_svid(self, entry, audience).await
    }
}

#[async_trait]
impl Updates for Subscription {
    async fn next(&mut self) -> Arc<WorkloadUpdate> {
        Subscription::next(self).await
    }
}
