//! What the agents of a run report, and what the run waits for.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use svid_proto::spire::api::types::Entry;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use crate::stats::{Failure, Outcome};

/// Where an agent heard of something, and how long after the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sighting {
    /// The server's number.
    pub server: usize,
    /// Since the phase or the round began.
    pub after: Duration,
}

/// Something that agents are to hear of.
struct Round {
    path: String,
    from: Instant,
    /// By agent: whether it has yet to hear of it.
    awaits: Vec<bool>,
    left: usize,
    seen: Vec<Sighting>,
}

struct Inner {
    from: Instant,
    /// By agent: whether it has yet to be synced in this phase.
    awaits: Vec<bool>,
    left: usize,
    /// Being synced at this server does not count.
    dead: Option<usize>,
    /// By agent: the server it was last synced at.
    at: Vec<usize>,
    back: Vec<Sighting>,
    syncs: Outcome,
    lost: u64,
    round: Option<Round>,
}

/// The board of one run.
pub struct Board {
    inner: Mutex<Inner>,
    changed: Notify,
}

/// What a phase came to.
pub struct Phase {
    /// Syncs and their latencies; failures by code.
    pub syncs: Outcome,
    /// When and where agents were synced first.
    pub back: Vec<Sighting>,
    /// Agents that were not.
    pub left: usize,
    /// Connections that ended after they had served.
    pub lost: u64,
}

impl Board {
    /// A board that awaits all agents.
    pub fn new(agents: usize) -> Self {
        let inner = Inner {
            from: Instant::now(),
            awaits: vec![true; agents],
            left: agents,
            dead: None,
            at: vec![0; agents],
            back: Vec::with_capacity(agents),
            syncs: Outcome::default(),
            lost: 0,
            round: None,
        };
        Self { inner: Mutex::new(inner), changed: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a phase. It awaits all agents, or after the death of a server those that were there.
    pub fn begin(&self, dead: Option<usize>) {
        let mut inner = self.lock();
        inner.from = Instant::now();
        inner.awaits = inner.at.iter().map(|at| dead.is_none_or(|dead| *at == dead)).collect();
        inner.left = inner.awaits.iter().filter(|awaits| **awaits).count();
        inner.dead = dead;
        inner.back.clear();
        inner.syncs = Outcome::default();
        inner.lost = 0;
    }

    /// Ends a phase.
    pub fn end(&self) -> Phase {
        let mut inner = self.lock();
        let mut syncs = std::mem::take(&mut inner.syncs);
        syncs.wall = inner.from.elapsed();
        Phase { syncs, back: std::mem::take(&mut inner.back), left: inner.left, lost: inner.lost }
    }

    /// An agent has everything that `server` has for it.
    pub fn synced(&self, agent: usize, server: usize, took: Duration) {
        let mut inner = self.lock();
        inner.syncs.add(took, Ok(1));
        if inner.dead == Some(server) {
            return; // its answer was still on the way
        }
        inner.at[agent] = server;
        if std::mem::take(&mut inner.awaits[agent]) {
            inner.left -= 1;
            let after = inner.from.elapsed();
            inner.back.push(Sighting { server, after });
            self.tell(inner.left == 0);
        }
    }

    /// Something failed that should not.
    pub fn failed(&self, failure: Failure) {
        self.lock().syncs.add(Duration::ZERO, Err(failure));
    }

    /// A connection ended.
    pub fn lost(&self) {
        self.lock().lost += 1;
    }

    /// From now on agents look out for an entry with this path. `only`: who, if not all.
    pub fn begin_round(&self, path: String, only: Option<usize>) {
        let mut inner = self.lock();
        let awaits: Vec<bool> =
            (0..inner.at.len()).map(|agent| only.is_none_or(|only| only == agent)).collect();
        let left = awaits.iter().filter(|awaits| **awaits).count();
        inner.round = Some(Round { path, from: Instant::now(), awaits, left, seen: Vec::new() });
    }

    /// Ends a round: who heard when, and how many did not.
    pub fn end_round(&self) -> (Vec<Sighting>, usize) {
        let Some(round) = self.lock().round.take() else { return (Vec::new(), 0) };
        (round.seen, round.left)
    }

    /// An agent heard of an entry that is new to it.
    pub fn saw_entry(&self, agent: usize, server: usize, entry: &Entry) {
        if let Some(id) = &entry.spiffe_id {
            self.saw(agent, server, &id.path);
        }
    }

    fn saw(&self, agent: usize, server: usize, path: &str) {
        let mut inner = self.lock();
        let Some(round) = inner.round.as_mut().filter(|round| round.path == path) else { return };
        if std::mem::take(&mut round.awaits[agent]) {
            round.seen.push(Sighting { server, after: round.from.elapsed() });
            round.left -= 1;
            let over = round.left == 0;
            self.tell(over);
        }
    }

    fn tell(&self, over: bool) {
        if over {
            self.changed.notify_waiters();
        }
    }

    /// Waits until all awaited agents are synced; false if that takes too long.
    pub async fn all_synced(&self, limit: Duration) -> bool {
        self.until(limit, |inner| inner.left == 0).await
    }

    /// Waits until all awaited agents have heard of the round's entry; false if that takes too long.
    pub async fn all_saw(&self, limit: Duration) -> bool {
        self.until(limit, |inner| inner.round.as_ref().is_none_or(|round| round.left == 0)).await
    }

    async fn until(&self, limit: Duration, over: impl Fn(&Inner) -> bool) -> bool {
        let waiting = async {
            loop {
                let changed = self.changed.notified(); // counts from here on, so nothing is missed
                if over(&self.lock()) {
                    return;
                }
                changed.await;
            }
        };
        timeout(limit, waiting).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(10);

    #[tokio::test(start_paused = true)]
    async fn a_phase_awaits_everybody_once() {
        let board = Board::new(2);
        board.synced(0, 0, SHORT);
        board.synced(0, 0, SHORT);
        assert!(!board.all_synced(SHORT).await);
        board.synced(1, 1, SHORT);
        assert!(board.all_synced(SHORT).await);
        let phase = board.end();
        assert_eq!((phase.syncs.units, phase.back.len(), phase.left), (3, 2, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_death_only_its_agents_are_awaited() {
        let board = Board::new(2);
        board.synced(0, 0, SHORT);
        board.synced(1, 1, SHORT);
        board.begin(Some(1));
        board.synced(1, 1, SHORT); // sent before
        board.synced(0, 0, SHORT);
        assert!(!board.all_synced(SHORT).await);
        tokio::time::advance(SHORT).await;
        board.synced(1, 0, SHORT);
        assert!(board.all_synced(SHORT).await);
        let back = board.end().back;
        assert_eq!((back.len(), back[0].server), (1, 0));
        assert!(back[0].after >= 2 * SHORT);
    }

    #[tokio::test(start_paused = true)]
    async fn rounds() {
        let board = Board::new(3);
        board.begin_round("/a".into(), None);
        board.saw(0, 0, "/b");
        for agent in 0..2 {
            board.saw(agent, 1, "/a");
            board.saw(agent, 1, "/a");
        }
        assert!(!board.all_saw(SHORT).await);
        let (seen, left) = board.end_round();
        assert_eq!((seen.len(), left), (2, 1));

        board.begin_round("/c".into(), Some(1));
        board.saw(1, 0, "/c");
        assert!(board.all_saw(SHORT).await);
    }
}
