//! One workload's place in a group.

use std::fmt;
use std::sync::Arc;

use svid_core::selector::SelectorSet;
use tokio::sync::watch;

use super::groups::Published;
use super::{Cache, WorkloadUpdate};

/// Follows the updates of one selector set. Dropping it leaves the group.
pub struct Subscription {
    cache: Cache,
    selectors: Arc<SelectorSet>,
    receiver: watch::Receiver<Published>,
    seen: Option<u64>,
}

impl Subscription {
    pub(super) fn new(
        cache: Cache,
        selectors: Arc<SelectorSet>,
        receiver: watch::Receiver<Published>,
    ) -> Self {
        Self { cache, selectors, receiver, seen: None }
    }

    /// The next update that differs from the last one returned. The first comes as soon as every entry that
    /// applies has an SVID (at once when none applies); of later ones only the newest is kept.
    pub async fn next(&mut self) -> Arc<WorkloadUpdate> {
        loop {
            if let Some(update) = self.take() {
                return update;
            }
            if self.receiver.changed().await.is_err() {
                // The sender lives in the group, and the group as long as this subscription.
                std::future::pending::<()>().await;
            }
        }
    }

    /// As [`Subscription::next`], but `None` at once when there is nothing new.
    pub fn take(&mut self) -> Option<Arc<WorkloadUpdate>> {
        let published = self.receiver.borrow_and_update();
        let is_new = match self.seen {
            None => published.complete,
            Some(revision) => published.update.revision != revision,
        };
        let update = is_new.then(|| Arc::clone(&published.update))?;
        self.seen = Some(update.revision);
        Some(update)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.cache.leave(&self.selectors);
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("seen", &self.seen).finish_non_exhaustive()
    }
}
