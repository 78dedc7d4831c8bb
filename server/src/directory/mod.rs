//! The whole authorisation state in memory, updated by deltas of the change log.

mod types;

use std::sync::Arc;

use svid_core::bundle::Bundle;
use svid_core::clock::Clock;
use svid_core::entry::{Entry, EntryId};
use svid_core::id::{SpiffeId, TrustDomain};

pub use types::*;

use crate::store::{Position, Store, StoreError};

/// A cheap handle on the directory.
#[derive(Clone)]
pub struct Directory(Arc<()>);

/// A stream's state: a dirty set, never a queue.
pub struct AgentWatch(());

impl AgentWatch {
    /// Waits until there is something to tell.
    /// # Errors
    /// Why the watch ended.
    pub async fn next(&mut self) -> Result<Delta, EndReason> {
        Err(EndReason::Closed)
    }
}

/// The task that follows the log, to be spawned: `task.run().await` ends when the last handle is dropped.
pub struct DirectoryTask(());

impl DirectoryTask {
    /// Runs until the store closes.
    pub async fn run(self) {}
}

#[allow(missing_docs, clippy::unused_async)]
impl Directory {
    pub async fn start(
        _store: Store,
        _trust_domain: &TrustDomain,
        _clock: Clock,
    ) -> Result<(Self, DirectoryTask), StoreError> {
        Err(StoreError::Closed)
    }
    pub fn position(&self) -> Position {
        Position { epoch: [0; 16], seq: 0 }
    }
    pub async fn caught_up(&self) -> Result<(), Unavailable> {
        Err(Unavailable::Behind)
    }
    pub fn entry(&self, _id: &str) -> Option<Entry> {
        None
    }
    pub fn count_entries(&self, _filter: &EntryFilter) -> usize {
        0
    }
    pub fn list_entries(&self, _filter: &EntryFilter, _page: Page) -> Listing<Entry> {
        Listing { items: Vec::new(), next: None }
    }
    pub fn entries_with_spiffe_id(&self, _id: &SpiffeId, _now: i64) -> Vec<Entry> {
        Vec::new()
    }
    pub fn authorized_entries(&self, _agent: &SpiffeId, _now: i64) -> Vec<Entry> {
        Vec::new()
    }
    pub fn authorized_revisions(&self, _agent: &SpiffeId, _now: i64) -> Vec<EntryRevision> {
        Vec::new()
    }
    pub fn authorized_entry(&self, _agent: &SpiffeId, _entry_id: &str, _now: i64) -> Option<Entry> {
        None
    }
    pub fn node(&self, _id: &SpiffeId) -> Option<NodeView> {
        None
    }
    pub fn count_nodes(&self, _filter: &NodeFilter) -> usize {
        0
    }
    pub fn list_nodes(&self, _filter: &NodeFilter, _page: Page) -> Listing<NodeView> {
        Listing { items: Vec::new(), next: None }
    }
    /// From memory alone; promotes a next serial at once. `not_after`, `now`: Unix seconds.
    pub fn check_agent(
        &self,
        _id: &SpiffeId,
        _serial: &str,
        _not_after: i64,
        _now: i64,
    ) -> Result<AgentOk, AgentDenied> {
        Err(AgentDenied::NotAttested)
    }
    /// As `check_agent`, but a denial is only given once memory has caught up with the log.
    pub async fn verify_agent(
        &self,
        _id: &SpiffeId,
        _serial: &str,
        _not_after: i64,
        _now: i64,
    ) -> Result<AgentOk, AgentRefusal> {
        Err(AgentRefusal::Denied(AgentDenied::NotAttested))
    }
    pub fn bundle(&self, _trust_domain: &TrustDomain) -> Option<Arc<Bundle>> {
        None
    }
    /// In order of the trust domain's name.
    pub fn list_bundles(&self) -> Vec<Arc<Bundle>> {
        Vec::new()
    }
    pub fn watch_agent(&self, _agent: &SpiffeId, _since: Option<Position>) -> AgentWatch {
        AgentWatch(())
    }
    /// Ids needed by other modules.
    pub fn has_entry(&self, _id: &EntryId) -> bool {
        false
    }
}
