//! Destructive housekeeping runs only while the wall clock can be believed.

use std::time::{Duration, Instant, SystemTime};

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
        agree(self.wall + self.monotonic.elapsed(), wall)
    }
}

fn agree(expected: SystemTime, wall: SystemTime) -> bool {
    let apart = wall.duration_since(expected).unwrap_or_else(|earlier| earlier.duration());
    apart <= TOLERANCE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wall_clock_that_was_set_is_not_believed() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert!(agree(at(1000), at(1000)));
        assert!(agree(at(1000), at(1060)) && agree(at(1000), at(940)));
        assert!(!agree(at(1000), at(1061)));
        assert!(!agree(at(1000), at(939)));
        assert!(ClockGuard::new(SystemTime::now()).agrees(SystemTime::now()));
        assert!(!ClockGuard::new(SystemTime::now()).agrees(SystemTime::now() + Duration::from_secs(86_400)));
    }
}
