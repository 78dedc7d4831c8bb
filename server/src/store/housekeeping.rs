//! Throwing away what is over: expired entries, tokens and nodes, and old lines of the change log.

use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use svid_core::clock::Clock;

use super::db::args;
use super::metrics::outcome;
use super::writer::{Tx, Write};
use super::{PruneNodes, Store, StoreError};

/// How long a line of the change log is kept at least, in seconds.
const KEEP_SECONDS: i64 = 3600;
/// How many lines are kept at least.
const KEEP_LINES: i64 = 100_000;
/// Lines that one transaction deletes.
const CHUNK: i64 = 2000;
/// Entries and tokens are looked at this often. Source: SPIRE's registration manager.
const PERIOD: Duration = Duration::from_secs(300);
/// How far wall and monotonic clock may drift apart before nothing is deleted any more.
const MAX_DRIFT: Duration = Duration::from_secs(60);

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

/// Notices a wall clock that jumped: what it says is over may not be.
struct ClockGuard {
    wall: SystemTime,
    steady: Instant,
}

impl ClockGuard {
    fn agrees(&self, wall: SystemTime, steady: Instant) -> bool {
        let passed = steady.duration_since(self.steady);
        let expected = self.wall + passed;
        let drift = wall.duration_since(expected).unwrap_or_else(|error| error.duration());
        drift <= MAX_DRIFT
    }
}

/// Runs until dropped: every five minutes entries, tokens and log, every hour nodes if they are to go.
pub async fn housekeeping(store: Store, clock: Clock, options: HousekeepingOptions) {
    let guard = ClockGuard { wall: clock.now(), steady: Instant::now() };
    let mut rounds: u32 = 0;
    loop {
        tokio::time::sleep(PERIOD).await;
        rounds = rounds.wrapping_add(1);
        if !guard.agrees(clock.now(), Instant::now()) {
            tracing::warn!("The wall clock jumped since start: housekeeping is paused until a restart");
            continue;
        }
        let nodes = if rounds.is_multiple_of(12) { options } else { HousekeepingOptions::default() };
        if let Err(error) = sweep(&store, clock.unix(), nodes).await {
            tracing::warn!(%error, "Housekeeping failed");
        }
    }
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
mod tests {
    use super::*;

    #[test]
    fn a_jump_of_the_wall_clock_is_noticed() {
        let (wall, steady) = (SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000), Instant::now());
        let guard = ClockGuard { wall, steady };
        let hour = Duration::from_secs(3600);
        assert!(guard.agrees(wall + hour, steady + hour));
        assert!(!guard.agrees(wall + 3 * hour, steady + hour));
        assert!(!guard.agrees(wall, steady + hour));
    }
}
