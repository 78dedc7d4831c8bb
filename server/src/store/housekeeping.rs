//! Throwing away what is over: expired entries, tokens and nodes, and old lines of the change log.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use svid_core::clock::Clock;

use super::db::args;
use super::metrics::outcome;
use super::writer::{Tx, Write};
use super::{PruneNodes, Store, StoreError};
use crate::clock_guard::ClockGuard;

/// How long a line of the change log is kept at least, in seconds.
const KEEP_SECONDS: i64 = 3600;
/// How many lines are kept at least.
const KEEP_LINES: i64 = 100_000;
/// Lines that one transaction deletes.
const CHUNK: i64 = 2000;
/// Entries and tokens are looked at this often. Source: SPIRE's registration manager.
const PERIOD: Duration = Duration::from_secs(300);

/// Deletes one chunk of old lines; returns how many went.
pub(super) struct PruneLog {
    pub(super) now: i64,
}

#[async_trait]
impl Write for PruneLog {
    type Out = u64;
    async fn run(&self, tx: &mut Tx<'_>) -> Result<u64, StoreError> {
        let sql = "SELECT max(seq) FROM (SELECT seq, at FROM svid_log
                 WHERE seq <= (SELECT seq FROM svid_log_counter) - $1 ORDER BY seq LIMIT $2) AS oldest WHERE at < $3";
        let before = self.now.saturating_sub(KEEP_SECONDS);
        let upto = tx.conn.fetch_one(sql, args![KEEP_LINES, CHUNK, before]).await?;
        let Some(upto) = upto.get::<Option<i64>>(0)? else { return Ok(0) };
        tx.conn.execute("UPDATE svid_log_counter SET pruned_to = $1", args![upto]).await?;
        tx.conn.execute("DELETE FROM svid_log WHERE seq <= $1", args![upto]).await
    }
}

/// What housekeeping may delete besides what is always over.
#[derive(Clone, Copy, Debug, Default)]
pub struct HousekeepingOptions {
    /// `prune_attested_nodes_expired_for`: nodes go this long after their certificate ended; `None` keeps them.
    pub prune_nodes_after: Option<Duration>,
    /// `prune_tofu_nodes`.
    pub prune_tofu_nodes: bool,
    /// `prune_attested_nodes_batch_size`; 0 stands for 1000.
    pub prune_nodes_batch: u32,
}

/// Runs until dropped: every five minutes entries, tokens, log and servers, every hour nodes if they are to go. Not while
/// the clocks disagree: what is over may not be.
pub async fn housekeeping(store: Store, clock: Clock, guard: ClockGuard, options: HousekeepingOptions) {
    let mut rounds: u32 = 0;
    loop {
        tokio::time::sleep(PERIOD).await;
        rounds = rounds.wrapping_add(1);
        let nodes = if rounds.is_multiple_of(12) { options } else { HousekeepingOptions::default() };
        if let Err(error) = guarded_sweep(&store, &clock, &guard, nodes).await {
            tracing::warn!(%error, "Housekeeping failed");
        }
    }
}

/// One round, if the database's clock and the own ones agree.
async fn guarded_sweep(
    store: &Store,
    clock: &Clock,
    guard: &ClockGuard,
    options: HousekeepingOptions,
) -> Result<(), StoreError> {
    guard.saw_database(store.now().await?);
    // The guard has said so.
    if guard.verdict().is_err() {
        return Ok(());
    }
    sweep(store, clock.unix(), options).await
}

/// One round of housekeeping.
/// # Errors
/// What the database said; the next round goes on where this one stopped.
pub async fn sweep(store: &Store, now: i64, options: HousekeepingOptions) -> Result<(), StoreError> {
    let begun = Instant::now();
    let pruned = store.prune_entries(now).await;
    if let Some(metrics) = store.metrics() {
        metrics.prune_entries.done(outcome(&pruned), begun.elapsed());
    }
    let entries = pruned?;
    if entries > 0 {
        tracing::info!(count = entries, "Pruned expired registration entries");
    }
    store.prune_join_tokens(now).await?;
    store.prune_log(now).await?;
    let servers = store.prune_servers(now).await?;
    if servers > 0 {
        tracing::info!(count = servers, "Forgot servers whose authorities are over");
    }
    let Some(after) = options.prune_nodes_after else { return Ok(()) };
    let limit = if options.prune_nodes_batch == 0 { 1000 } else { options.prune_nodes_batch };
    let expired_before = now.saturating_sub_unsigned(after.as_secs());
    let begun = Instant::now();
    let which = PruneNodes { expired_before, include_tofu: options.prune_tofu_nodes, limit };
    let pruned = store.prune_nodes(which).await;
    if let Some(metrics) = store.metrics() {
        metrics.prune_nodes.done(outcome(&pruned), begun.elapsed());
    }
    let nodes = pruned?;
    if nodes > 0 {
        tracing::info!(count = nodes, "Pruned expired agents");
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};
    use std::time::SystemTime;

    use super::*;
    use crate::store::StoreConfig;

    const DAY: i64 = 86_400;

    /// A clock that is set by a day in either direction deletes nothing; set right again it does.
    #[tokio::test]
    async fn nothing_is_pruned_while_the_clocks_disagree() {
        let dir = tempfile::tempdir().unwrap();
        let trust_domain = "example.org".parse().unwrap();
        let store = Store::open(&StoreConfig::at(dir.path().join("db")), &trust_domain).await.unwrap();
        let set_by = Arc::new(AtomicI64::new(0));
        let shown = set_by.clone();
        let clock = Clock::from_fn(move || {
            let by = shown.load(Ordering::SeqCst);
            let by_abs = Duration::from_secs(by.unsigned_abs());
            if by < 0 { SystemTime::now() - by_abs } else { SystemTime::now() + by_abs }
        });
        let guard = ClockGuard::new(clock.clone());
        let ends = clock.unix() + DAY / 2;
        store.create_join_token("t", ends, None, 0).await.unwrap();
        let sweep = async |by: i64| {
            set_by.store(by, Ordering::SeqCst);
            guarded_sweep(&store, &clock, &guard, HousekeepingOptions::default()).await.unwrap();
            guard.verdict().is_ok()
        };
        for (by, runs) in [(0, true), (DAY, false), (-DAY, false), (0, true)] {
            assert_eq!(sweep(by).await, runs, "{by}");
        }
        assert_eq!(store.prune_join_tokens(ends + 1).await.unwrap(), 1, "it was there still");
        // Wrong from the start, the steady clock sees nothing: the database's does.
        set_by.store(DAY, Ordering::SeqCst);
        let late = ClockGuard::new(clock.clone());
        store.create_join_token("u", ends, None, 0).await.unwrap();
        guarded_sweep(&store, &clock, &late, HousekeepingOptions::default()).await.unwrap();
        assert_eq!(store.prune_join_tokens(ends + 1).await.unwrap(), 1, "it was there still");
    }
}
