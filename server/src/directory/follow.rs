//! The task that follows the log, lets time pass, and writes promotions behind.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use svid_core::id::SpiffeId;
use tokio::sync::watch;

use super::Shared;
use super::contact::Begun;
use super::state::State;
use super::watch::lock;
use crate::store::{Changes, MAX_LINES, Reload, StoreError};

/// The log is read this often even if nothing woke us: another server's write whose hint got lost, a database that went
/// away or was replaced.
const POLL: Duration = Duration::from_secs(1);
/// Pause after an error, unless somebody waits for an answer.
const RETRY: Duration = Duration::from_secs(1);
/// Pause after an error in any case.
const MIN_RETRY: Duration = Duration::from_millis(100);
/// One reading takes no longer; a database that hangs is one that is away.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the clock is looked at. Together with the work itself well within a second.
const TICK: Duration = Duration::from_millis(250);
/// Promotions that are written at a time.
const PROMOTIONS_AT_ONCE: usize = 64;
/// Certificates that one transaction notes as used.
const USED_AT_ONCE: usize = 500;

/// The directory's task, to be spawned.
pub struct DirectoryTask {
    pub(super) shared: Arc<Shared>,
    pub(super) committed: watch::Receiver<u64>,
}

impl DirectoryTask {
    /// Runs until dropped.
    pub async fn run(self) {
        let Self { shared, committed } = self;
        tokio::join!(follow(&shared, committed), tick(&shared), write_behind(&shared));
    }
}

async fn follow(shared: &Shared, mut committed: watch::Receiver<u64>) {
    let mut failed = false;
    loop {
        committed.borrow_and_update();
        let begun = Begun::now(shared.clock.now());
        let outcome = shared.catch_up().await;
        match &outcome {
            Ok(()) if std::mem::take(&mut failed) => tracing::info!("The database answers again"),
            Ok(()) => {}
            Err(error) if !std::mem::replace(&mut failed, true) => {
                let error = svid_daemon::log::chain(error);
                tracing::error!(%error, "The change log cannot be read: going on from memory");
            }
            Err(_) => {}
        }
        shared.contact.ended(begun, outcome);
        if failed {
            tokio::time::sleep(MIN_RETRY).await;
        }
        let pause = if failed { RETRY } else { POLL };
        tokio::select! {
            // The sender lives in the store, which `shared` holds.
            _ = committed.changed() => {}
            () = shared.contact.wanted() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn tick(shared: &Shared) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        shared.expire();
    }
}

/// Stores promotions, which hold in memory already. One that finds another row is void: a ban wins.
async fn write_behind(shared: &Shared) {
    let mut failed = false;
    loop {
        let (waiting, used) = {
            let state = shared.read();
            (pairs(&state.promoted, usize::MAX), pairs(&state.used, USED_AT_ONCE))
        };
        if waiting.is_empty() && used.is_empty() {
            shared.promotions.notified().await;
            continue;
        }
        match write_waiting(shared, waiting, used).await {
            Ok(()) => failed = false,
            Err(error) => {
                if !std::mem::replace(&mut failed, true) {
                    tracing::warn!(%error, "That agents use new certificates is not stored yet");
                }
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn store_promotions(shared: &Shared, waiting: Vec<(SpiffeId, String)>) -> Result<(), StoreError> {
    // Those that wait together share a transaction.
    let store = async |(id, serial): (SpiffeId, String)| {
        shared.store.activate_serial(&id, &serial).await?;
        let mut state = shared.write();
        if state.promoted.get(&id) == Some(&serial) {
            state.promoted.remove(&id);
        }
        Ok(())
    };
    futures_util::stream::iter(waiting.into_iter().map(Ok))
        .try_for_each_concurrent(PROMOTIONS_AT_ONCE, store)
        .await
}

async fn store_used(shared: &Shared, used: Vec<(SpiffeId, String)>) -> Result<(), StoreError> {
    shared.store.mark_used(used.clone()).await?;
    let mut state = shared.write();
    for (id, serial) in used {
        if state.used.get(&id) == Some(&serial) {
            state.used.remove(&id);
        }
    }
    Ok(())
}

async fn write_waiting(
    shared: &Shared,
    promoted: Vec<(SpiffeId, String)>,
    used: Vec<(SpiffeId, String)>,
) -> Result<(), StoreError> {
    if !used.is_empty() {
        store_used(shared, used).await?;
    }
    store_promotions(shared, promoted).await
}

fn pairs(from: &HashMap<SpiffeId, String>, limit: usize) -> Vec<(SpiffeId, String)> {
    from.iter().take(limit).map(|(id, serial)| (id.clone(), serial.clone())).collect()
}

fn timed_out() -> StoreError {
    sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()).into()
}

impl Shared {
    /// Applies what the log has, to its end.
    pub(super) async fn catch_up(&self) -> Result<(), StoreError> {
        loop {
            let cursor = self.read().cursor;
            let changes = tokio::time::timeout(READ_TIMEOUT, self.store.changes_after(cursor));
            match changes.await.unwrap_or_else(|_| Err(timed_out()))? {
                Changes::Lines { lines, .. } if lines.is_empty() => break,
                Changes::Lines { cursor, lines, rows } => {
                    let to_the_end = lines.len() < MAX_LINES;
                    let is_federation = !rows.bundles.is_empty() || !rows.relationships.is_empty();
                    let mut state = self.write();
                    state.apply(cursor, lines, rows, &lock(&self.watches));
                    drop(state);
                    if is_federation {
                        self.federation.send_replace(());
                    }
                    self.store.set_applied(cursor.position.seq);
                    if to_the_end {
                        break;
                    }
                }
                Changes::Reload(why) => self.reload(cursor.position.epoch, why).await?,
            }
        }
        Ok(())
    }

    async fn reload(&self, epoch: [u8; 16], why: Reload) -> Result<(), StoreError> {
        match why {
            Reload::Pruned => tracing::info!("The change log was pruned meanwhile: loading everything anew"),
            Reload::OtherEpoch => {
                tracing::warn!("The database's history has a new epoch: loading everything anew");
            }
            Reload::Rewritten => {
                tracing::error!(
                    "The database holds another history than before (a restored copy, or a standby that was promoted \
                     without the last writes?): loading everything anew. Changes made shortly before may be lost"
                );
                // For agents and other servers whose position looks the same in both histories. Whoever notices first
                // writes it, so that servers do not take turns.
                self.store.new_epoch(epoch).await?;
            }
        }
        let mut fresh = State::new(&self.trust_domain);
        // A promotion that is not written yet still holds; loading a node looks for it.
        {
            let state = self.read();
            fresh.promoted = state.promoted.clone();
            fresh.used = state.used.clone();
        }
        let cursor = self.store.load(&mut fresh).await?;
        fresh.loaded(cursor);
        let mut state = self.write();
        // Agents went on calling while this was loaded.
        for (id, serial) in &state.promoted {
            if fresh.nodes.get_mut(id).is_some_and(|node| node.promote(serial)) {
                fresh.promoted.insert(id.clone(), serial.clone());
            }
        }
        *state = fresh;
        let watches = lock(&self.watches);
        for agent in watches.agents() {
            match state.end_reason(agent) {
                Some(reason) => watches.of(agent).iter().for_each(|watch| watch.end(reason)),
                None => watches.of(agent).iter().for_each(|watch| watch.mark_snapshot()),
            }
        }
        drop(watches);
        drop(state);
        self.federation.send_replace(());
        self.store.set_applied(cursor.position.seq);
        Ok(())
    }

    /// Lets time pass until now.
    pub(super) fn expire(&self) {
        let now = self.clock.unix();
        let due = {
            let state = self.read();
            let watches = lock(&self.watches);
            state.ends.first().is_some_and(|(ends, _)| *ends <= now)
                || watches
                    .agents()
                    .any(|agent| state.nodes.get(agent).is_some_and(|node| node.ends_at() <= now))
        };
        if due {
            self.write().expire(now, &lock(&self.watches));
        }
    }
}
