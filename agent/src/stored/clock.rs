//! A clock that does not go back: what has ended stays ended.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use svid_core::clock::Clock;

/// How far the wall clock may lie behind what is known. Time daemons step by this much when they start, and so much
/// longer a certificate could at worst be handed out; peers with right clocks refuse it meanwhile.
pub const TOLERANCE: Duration = Duration::from_secs(180);

/// How far `now` lies behind `last_seen`, if it is more than [`TOLERANCE`].
pub fn behind(now: SystemTime, last_seen: SystemTime) -> Option<Duration> {
    last_seen.duration_since(now).ok().filter(|by| *by > TOLERANCE)
}

/// Where the wall clock stood and when: since then at least as much time has passed as the monotonic clock says.
#[derive(Debug)]
struct Anchor {
    wall: SystemTime,
    monotonic: Instant,
}

/// Watches over the wall clock. Clones share what they saw.
#[derive(Clone, Debug)]
pub struct ClockGuard(Arc<Mutex<Anchor>>);

impl ClockGuard {
    /// Starts from what the wall clock says.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Anchor { wall: SystemTime::now(), monotonic: Instant::now() })))
    }

    /// The wall clock; once that went back, what it would say if it had not.
    pub fn clock(&self) -> Clock {
        let guard = self.clone();
        Clock::from_fn(move || guard.at(SystemTime::now(), Instant::now()))
    }

    fn at(&self, wall: SystemTime, monotonic: Instant) -> SystemTime {
        let mut anchor = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let expected = anchor.wall + monotonic.saturating_duration_since(anchor.monotonic);
        if behind(wall, expected).is_some() {
            return expected;
        }
        if wall > expected {
            *anchor = Anchor { wall, monotonic };
        }
        wall
    }

    /// A server's certificate was found valid at the wall clock's time: it is right, whatever it said before.
    pub fn confirm(&self) {
        self.confirm_at(SystemTime::now(), Instant::now());
    }

    fn confirm_at(&self, wall: SystemTime, monotonic: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Anchor { wall, monotonic };
    }
}

impl Default for ClockGuard {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);
    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn behind_what_was_seen() {
        let seen = SystemTime::UNIX_EPOCH + 100 * DAY;
        let rows = [
            (seen + DAY, None),
            (seen, None),
            (seen - TOLERANCE, None),
            (seen - TOLERANCE - Duration::from_secs(1), Some(TOLERANCE + Duration::from_secs(1))),
            (seen - DAY, Some(DAY)),
            (SystemTime::UNIX_EPOCH, Some(100 * DAY)),
        ];
        for (now, want) in rows {
            assert_eq!(behind(now, seen), want);
        }
    }

    #[test]
    fn jumps_of_a_day() {
        let (wall, monotonic) = (SystemTime::now(), Instant::now());
        let guard = ClockGuard(Arc::new(Mutex::new(Anchor { wall, monotonic })));
        assert_eq!(guard.at(wall + MINUTE, monotonic + MINUTE), wall + MINUTE);
        // A small step is the time daemon's, a big one is not believed.
        assert_eq!(guard.at(wall, monotonic + MINUTE), wall);
        assert_eq!(guard.at(wall - DAY, monotonic + 2 * MINUTE), wall + 2 * MINUTE);
        // Ahead is always believed, and going back from there is not.
        assert_eq!(guard.at(wall + DAY, monotonic + 3 * MINUTE), wall + DAY);
        assert_eq!(guard.at(wall, monotonic + 4 * MINUTE), wall + DAY + MINUTE);
        guard.confirm_at(wall, monotonic + 4 * MINUTE);
        assert_eq!(guard.at(wall + MINUTE, monotonic + 5 * MINUTE), wall + MINUTE);
    }
}
