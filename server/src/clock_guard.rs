//! Housekeeping that deletes runs only while the clocks can be believed: what a clock that was set calls over may not be.
//!
//! Three witnesses: the wall clock and the steady clock have gone equally far since start, and the database's clock says
//! what the wall clock says.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use svid_core::clock::{Clock, unix_seconds};

/// How far clocks may be apart.
pub const TOLERANCE: Duration = Duration::from_secs(60);

/// Clocks that contradict each other. Seconds; positive where the wall clock is ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disagreement {
    /// The wall clock was set since start.
    Steady(i64),
    /// The wall clock says something else than the database's.
    Database(i64),
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (apart, from, remedy) = match self {
            Self::Steady(apart) => (
                apart,
                "where it should be by the time passed since start",
                "set it right, or restart the server if it is right now",
            ),
            Self::Database(apart) => (apart, "the database's clock", "set the one that is wrong"),
        };
        let way = if *apart < 0 { "behind" } else { "ahead of" };
        write!(f, "the wall clock is {} s {way} {from}: {remedy}; nothing is pruned meanwhile", apart.abs())
    }
}

/// Compares the clocks; cheap to clone, and one for the process.
#[derive(Clone)]
pub struct ClockGuard(Arc<Shared>);

struct Shared {
    clock: Clock,
    wall: SystemTime,
    steady: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The wall clock less the database's, when that was read last.
    database: Option<i64>,
    /// What was said last.
    said: Option<Disagreement>,
}

impl ClockGuard {
    /// Starts to compare.
    pub fn new(clock: Clock) -> Self {
        let wall = clock.now();
        Self(Arc::new(Shared { clock, wall, steady: Instant::now(), state: Mutex::default() }))
    }

    /// Notes what the database's clock says now (Unix seconds).
    pub fn saw_database(&self, now: i64) {
        let apart = unix_seconds(self.0.clock.now()).saturating_sub(now);
        self.state().database = Some(apart);
        // For what it logs.
        let _ = self.verdict();
    }

    /// Whether the clocks agree. A change of that is logged once, with the numbers.
    /// # Errors
    /// How they disagree.
    pub fn verdict(&self) -> Result<(), Disagreement> {
        self.verdict_at(Instant::now())
    }

    fn verdict_at(&self, steady: Instant) -> Result<(), Disagreement> {
        let wall = self.0.clock.now();
        let expected = self.0.wall + steady.duration_since(self.0.steady);
        let mut state = self.state();
        let verdict = match apart(wall, expected) {
            Some(apart) => Err(Disagreement::Steady(apart)),
            None => match state.database.filter(|apart| !is_little(*apart)) {
                Some(apart) => Err(Disagreement::Database(apart)),
                None => Ok(()),
            },
        };
        let kind = |said: &Disagreement| std::mem::discriminant(said);
        match (&verdict, &state.said) {
            (Err(new), said) if said.as_ref().map(kind) != Some(kind(new)) => {
                tracing::warn!("Housekeeping is paused: {new}");
            }
            (Ok(()), Some(_)) => tracing::info!("The clocks agree again: housekeeping goes on"),
            _ => {}
        }
        state.said = verdict.err();
        verdict
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for ClockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClockGuard").finish_non_exhaustive()
    }
}

fn is_little(seconds: i64) -> bool {
    seconds.unsigned_abs() <= TOLERANCE.as_secs()
}

/// Seconds from `expected` to `wall`, if too many.
fn apart(wall: SystemTime, expected: SystemTime) -> Option<i64> {
    let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    let apart = match wall.duration_since(expected) {
        Ok(ahead) => seconds(ahead),
        Err(behind) => -seconds(behind.duration()),
    };
    (!is_little(apart)).then_some(apart)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;

    const START: i64 = 1_700_000_000;
    const DAY: i64 = 86_400;

    #[test]
    fn who_is_believed() {
        // Seconds since start by the wall clock, the steady clock, and the database's.
        let check = |wall: i64, steady: u64, database: Option<i64>, want| {
            let hands = Arc::new(AtomicI64::new(START));
            let shown = hands.clone();
            let guard = ClockGuard::new(Clock::from_fn(move || {
                SystemTime::UNIX_EPOCH + Duration::from_secs(shown.load(Ordering::SeqCst).unsigned_abs())
            }));
            hands.store(START + wall, Ordering::SeqCst);
            if let Some(database) = database {
                guard.saw_database(START + database);
            }
            let verdict = guard.verdict_at(guard.0.steady + Duration::from_secs(steady));
            assert_eq!(verdict, want, "{wall} {steady} {database:?}");
        };
        check(3600, 3600, None, Ok(()));
        check(3600, 3600, Some(3600), Ok(()));
        check(3660, 3600, Some(3601), Ok(()));
        check(3661, 3600, Some(3661), Err(Disagreement::Steady(61)));
        // A day forward and back, the database's clock along or not.
        check(3600 + DAY, 3600, Some(3600 + DAY), Err(Disagreement::Steady(DAY)));
        check(3600 - DAY, 3600, Some(3600), Err(Disagreement::Steady(-DAY)));
        // It was wrong from the start, or the database's is.
        check(3600, 3600, Some(3600 + DAY), Err(Disagreement::Database(-DAY)));
        check(3600, 3600, Some(3600 - DAY), Err(Disagreement::Database(DAY)));
    }

    #[test]
    fn the_words_say_what_to_do() {
        let said = Disagreement::Steady(-DAY).to_string();
        assert!(said.starts_with("the wall clock is 86400 s behind where it should be"), "{said}");
        assert!(said.contains("restart the server if it is right now"), "{said}");
        let said = Disagreement::Database(DAY).to_string();
        assert!(said.starts_with("the wall clock is 86400 s ahead of the database's clock"), "{said}");
    }

    #[test]
    fn a_clock_that_is_set_right_again_is_believed_again() {
        let hands = Arc::new(AtomicI64::new(START));
        let shown = hands.clone();
        let guard = ClockGuard::new(Clock::from_fn(move || {
            SystemTime::UNIX_EPOCH + Duration::from_secs(shown.load(Ordering::SeqCst).unsigned_abs())
        }));
        for (wall, agrees) in [(0, true), (DAY, false), (0, true), (-DAY, false), (0, true)] {
            hands.store(START + wall, Ordering::SeqCst);
            assert_eq!(guard.verdict().is_ok(), agrees, "{wall}");
        }
    }
}
