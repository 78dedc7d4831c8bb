//! Watches: an agent's stream as a dirty set, never a queue, so that a slow reader costs nothing.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use svid_core::id::{SpiffeId, TrustDomain};
use tokio::sync::Notify;

use super::packed::Key;
use super::state::{Recent, State};
use super::{Delta, EndReason, Shared};
use crate::store::Position;

/// Beyond so many dirty entries the whole list is shorter.
const MAX_DIRTY: usize = 1024;

#[derive(Default)]
struct Dirty {
    /// The agent waits for an answer even if nothing changed: the first one.
    greet: bool,
    snapshot: bool,
    entries: BTreeSet<Key>,
    bundles: BTreeSet<TrustDomain>,
    ended: Option<EndReason>,
}

/// One open stream's state.
#[derive(Default)]
pub(super) struct WatchState {
    dirty: Mutex<Dirty>,
    wake: Notify,
}

impl WatchState {
    fn mark(&self, change: impl FnOnce(&mut Dirty)) {
        change(&mut lock(&self.dirty));
        self.wake.notify_one();
    }

    pub(super) fn mark_snapshot(&self) {
        self.mark(|dirty| {
            dirty.snapshot = true;
            dirty.entries.clear();
        });
    }

    pub(super) fn mark_entry(&self, key: &Key) {
        self.mark(|dirty| {
            if dirty.snapshot {
                return;
            }
            dirty.entries.insert(key.clone());
            if dirty.entries.len() > MAX_DIRTY {
                dirty.snapshot = true;
                dirty.entries.clear();
            }
        });
    }

    pub(super) fn mark_bundle(&self, domain: &TrustDomain) {
        self.mark(|dirty| {
            dirty.bundles.insert(domain.clone());
        });
    }

    pub(super) fn end(&self, reason: EndReason) {
        self.mark(|dirty| {
            dirty.ended.get_or_insert(reason);
        });
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing under these locks leaves a value half changed when it panics.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All open watches. Locked after the state, never before it.
#[derive(Default)]
pub(super) struct Watches {
    by_agent: HashMap<SpiffeId, Vec<Arc<WatchState>>>,
}

impl Watches {
    pub(super) fn agents(&self) -> impl Iterator<Item = &SpiffeId> {
        self.by_agent.keys()
    }

    /// The agent, if it watches.
    pub(super) fn agent(&self, id: &SpiffeId) -> Option<&SpiffeId> {
        self.by_agent.get_key_value(id).map(|(agent, _)| agent)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_agent.is_empty()
    }

    pub(super) fn of(&self, agent: &SpiffeId) -> &[Arc<WatchState>] {
        self.by_agent.get(agent).map_or(&[], Vec::as_slice)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<WatchState>> {
        self.by_agent.values().flatten()
    }

    fn add(&mut self, agent: &SpiffeId, watch: Arc<WatchState>) {
        self.by_agent.entry(agent.clone()).or_default().push(watch);
    }

    fn remove(&mut self, agent: &SpiffeId, watch: &Arc<WatchState>) {
        let Some(open) = self.by_agent.get_mut(agent) else { return };
        open.retain(|other| !Arc::ptr_eq(other, watch));
        if open.is_empty() {
            self.by_agent.remove(agent);
        }
    }
}

/// An agent's stream of what changes for it. Dropping it closes it.
pub struct AgentWatch {
    shared: Weak<Shared>,
    agent: SpiffeId,
    state: Arc<WatchState>,
}

impl AgentWatch {
    /// Opens a watch: what the agent missed since `since` is its first delta, or a snapshot.
    pub(super) fn open(shared: &Arc<Shared>, agent: &SpiffeId, since: Option<Position>) -> Self {
        let state = shared.read();
        let watch = Arc::new(WatchState::default());
        {
            let mut dirty = lock(&watch.dirty);
            dirty.greet = true;
            dirty.snapshot =
                since.is_none_or(|since| !resume(&state, agent, since, shared.clock.unix(), &mut dirty));
        }
        lock(&shared.watches).add(agent, watch.clone());
        if let Some(reason) = state.end_reason(agent) {
            watch.end(reason);
        }
        Self { shared: Arc::downgrade(shared), agent: agent.clone(), state: watch }
    }

    /// Waits until there is something to tell. The first answer comes at once. Safe to cancel.
    /// # Errors
    /// Why the watch ended; it stays ended.
    pub async fn next(&mut self) -> Result<Delta, EndReason> {
        loop {
            if let Some(delta) = self.take()? {
                return Ok(delta);
            }
            self.state.wake.notified().await;
        }
    }

    /// What is to be told now, if anything.
    fn take(&self) -> Result<Option<Delta>, EndReason> {
        let shared = self.shared.upgrade().ok_or(EndReason::Closed)?;
        let state = shared.read();
        let dirty = {
            let mut dirty = lock(&self.state.dirty);
            if let Some(reason) = dirty.ended {
                return Err(reason);
            }
            std::mem::take(&mut *dirty)
        };
        if !dirty.greet && !dirty.snapshot && dirty.entries.is_empty() && dirty.bundles.is_empty() {
            return Ok(None);
        }
        let now = shared.clock.unix();
        let delta = self.delta(&state, dirty, now);
        drop(state);
        Ok(delta)
    }

    fn delta(&self, state: &State, mut dirty: Dirty, now: i64) -> Option<Delta> {
        let mut delta = Delta {
            position: state.cursor.position,
            snapshot: dirty.snapshot,
            upserts: Vec::new(),
            removed: Vec::new(),
            revisions: Vec::new(),
            bundles_changed: Vec::new(),
        };
        if dirty.snapshot {
            let authorized = state.authorized(&self.agent, now);
            delta.revisions = authorized.into_iter().map(|handle| state.revision(handle)).collect();
            // What the agent missed is not known, so any bundle may be another than the one it has.
            dirty.bundles.extend(state.bundles.keys().cloned());
        }
        for key in &dirty.entries {
            match state.handle(key).filter(|handle| state.is_authorized(&self.agent, *handle, now)) {
                Some(handle) => delta.upserts.push(state.unpack(handle)),
                None => delta.removed.push(key.id()),
            }
        }
        let own = self.agent.trust_domain();
        let concerns = |domain: &TrustDomain| *domain == own || state.federates(&self.agent, domain, now);
        delta.bundles_changed = dirty.bundles.into_iter().filter(concerns).collect();
        let is_empty = !delta.snapshot
            && delta.upserts.is_empty()
            && delta.removed.is_empty()
            && delta.bundles_changed.is_empty();
        (dirty.greet || !is_empty).then_some(delta)
    }
}

impl Drop for AgentWatch {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            lock(&shared.watches).remove(&self.agent, &self.state);
        }
    }
}

/// Marks what happened since; false if that is not known any more or too much, so that a snapshot is due.
fn resume(state: &State, agent: &SpiffeId, since: Position, now: i64, dirty: &mut Dirty) -> bool {
    let here = state.cursor.position;
    // At the very start of this process's memory, entries may have expired while nobody looked.
    if since.epoch != here.epoch || since.seq > here.seq || since.seq <= state.recent_from {
        return false;
    }
    let first = state.recent.partition_point(|(seq, _)| *seq < since.seq);
    let reachable = state.reachable(agent, now);
    let concerns = |parent: &SpiffeId| {
        state.ids.find(parent).is_some_and(|id| reachable.contains(&id)) || parent == agent
    };
    for (seq, what) in state.recent.range(first..) {
        let missed = *seq > since.seq;
        match what {
            Recent::Expired(key, parent) if concerns(parent) => drop(dirty.entries.insert(key.clone())),
            Recent::Chain => return false,
            Recent::Entry(key, parents) if missed && parents.iter().any(concerns) => {
                dirty.entries.insert(key.clone());
            }
            Recent::Node(id) if missed && id == agent => return false,
            Recent::Bundle(domain) if missed => drop(dirty.bundles.insert(domain.clone())),
            _ => {}
        }
    }
    dirty.entries.len() <= MAX_DIRTY
}
