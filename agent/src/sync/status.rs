//! How synchronising goes, for health checks, the debug API and `svidctl status`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::SystemTime;

use svid_core::clock::unix_seconds;

/// Shared by the task that synchronises and those who ask.
#[derive(Clone, Debug, Default)]
pub struct SyncStatus(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    last_success: AtomicI64,
    watching: AtomicBool,
}

impl SyncStatus {
    pub(super) fn succeeded(&self, now: SystemTime) {
        self.0.last_success.store(unix_seconds(now), Ordering::Relaxed);
    }

    /// True if this is a change.
    pub(super) fn set_watching(&self, watching: bool) -> bool {
        self.0.watching.swap(watching, Ordering::Relaxed) != watching
    }

    /// Unix seconds of the last time the cache was known to be in step; `None` before the first.
    pub fn last_success(&self) -> Option<i64> {
        Some(self.0.last_success.load(Ordering::Relaxed)).filter(|at| *at != 0)
    }

    /// Whether the server pushes changes.
    pub fn is_watching(&self) -> bool {
        self.0.watching.load(Ordering::Relaxed)
    }
}
