//! Destructive housekeeping runs only while the wall clock can be believed.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// How far the wall clock may drift from the monotonic one since start.
const TOLERANCE: Duration = Duration::from_secs(60);

/// The two clocks at start.
#[derive(Debug)]
pub(super) struct ClockGuard {
    wall: SystemTime,
    monotonic: Instant,
}

impl ClockGuard {
    pub(super) fn new(wall: SystemTime) -> Self {
        Self { wall, monotonic: Instant::now() }
    }

    /// True while both clocks have gone equally far since start: nobody has set the wall clock.
    pub(super) fn agrees(&self, wall: SystemTime) -> bool {
        let expected = self.wall + self.monotonic.elapsed();
        let apart = wall.duration_since(expected).unwrap_or_else(|earlier| earlier.duration());
        apart <= TOLERANCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_wall_clock_that_was_set_is_not_believed() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let guard = ClockGuard::new(start);
        let day = Duration::from_secs(86_400);
        assert!(guard.agrees(start));
        assert!(!guard.agrees(start + day));
        tokio::time::advance(day).await;
        assert!(guard.agrees(start + day));
        assert!(!guard.agrees(start));
    }
}
