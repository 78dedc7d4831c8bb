//! How many streams of secrets and bundles are open: counted by a guard that each stream holds.

use std::sync::atomic::{AtomicU64, Ordering};

static OPEN: AtomicU64 = AtomicU64::new(0);

/// Open streams of the Workload API and SDS in this process.
pub fn open_streams() -> u64 {
    OPEN.load(Ordering::Relaxed)
}

/// Counts as one open stream until it is dropped.
pub(crate) struct OpenStream(());

impl OpenStream {
    pub(crate) fn new() -> Self {
        OPEN.fetch_add(1, Ordering::Relaxed);
        Self(())
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::Relaxed);
    }
}
