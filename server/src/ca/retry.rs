//! How long an upstream authority is left alone after it failed.

use std::time::Duration;

use tokio::time::Instant;

/// Delays grow from the first to the second of these.
struct Range {
    first: Duration,
    longest: Duration,
}

/// What the delays count in. Tests have no minutes to spare.
const UNIT: Duration = if cfg!(test) { Duration::from_millis(1) } else { Duration::from_secs(1) };
const ROUTINE: Range = Range { first: UNIT.saturating_mul(10), longest: UNIT.saturating_mul(300) };
/// While the active authority leads to a tainted root, as SPIRE's.
const URGENT: Range = Range { first: UNIT.saturating_mul(5), longest: UNIT.saturating_mul(60) };
const THROTTLED: Range = Range { first: UNIT.saturating_mul(30), longest: UNIT.saturating_mul(600) };

/// How the upstream authority answered last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Haste {
    /// The next authority is due in its time.
    Routine,
    /// The active authority has to go.
    Urgent,
    /// The upstream authority has enough of us.
    Throttled,
}

/// The delay after so many failures in a row; `draw` shortens it by up to a quarter, so that servers that were refused
/// together do not come back together.
fn delay(failures: u32, haste: Haste, draw: u8) -> Duration {
    let Range { first, longest } = match haste {
        Haste::Routine => ROUTINE,
        Haste::Urgent => URGENT,
        Haste::Throttled => THROTTLED,
    };
    let doubled = first.saturating_mul(1 << failures.saturating_sub(1).min(16));
    doubled.min(longest).mul_f64(1.0 - f64::from(draw) / 255.0 / 4.0)
}

/// Failures in a row, and until when nothing is asked.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
    until: Option<Instant>,
}

impl Backoff {
    /// Notes a failure. Gives the delay.
    pub(super) fn failed(&mut self, haste: Haste, draw: u8) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let delay = delay(self.failures, haste, draw);
        self.until = Some(Instant::now() + delay);
        delay
    }

    /// Whatever failed works again, or something else is to be asked now.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// How long to wait still.
    pub(super) fn left(&self) -> Duration {
        self.until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()))
    }

    /// True after a failure, until the next success.
    pub(super) fn is_failing(&self) -> bool {
        self.failures > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_a_limit() {
        let units = |haste| (1..9).map(|n| delay(n, haste, 0).as_millis()).collect::<Vec<_>>();
        assert_eq!(units(Haste::Routine), [10, 20, 40, 80, 160, 300, 300, 300]);
        assert_eq!(units(Haste::Urgent), [5, 10, 20, 40, 60, 60, 60, 60]);
        assert_eq!(units(Haste::Throttled), [30, 60, 120, 240, 480, 600, 600, 600]);
        assert_eq!(delay(u32::MAX, Haste::Urgent, 255), UNIT * 45);
    }

    #[test]
    fn a_success_ends_the_wait() {
        let mut backoff = Backoff::default();
        assert!(backoff.left().is_zero() && !backoff.is_failing());
        assert_eq!(backoff.failed(Haste::Throttled, 0), UNIT * 30);
        assert!(backoff.left() <= UNIT * 30 && backoff.is_failing());
        backoff.clear();
        assert!(backoff.left().is_zero() && !backoff.is_failing());
    }
}
