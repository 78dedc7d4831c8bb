//! How long a token lives, and when it is renewed. Monotonic: Vault says how long, not until when.

use std::time::Duration;

use tokio::time::Instant;

/// A token is not used in the last moments of its life, in which a request may still be under way.
const MARGIN: Duration = Duration::from_secs(5);
/// A life that is not worth renewing: Vault shortens what it gives as a token nears its longest life.
const MIN_LIFE: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const MAX_PAUSE: Duration = Duration::from_secs(300);
/// Longest life that is believed: what is longer does not end while we run.
const MAX_LIFE: Duration = Duration::from_secs(100 * 365 * 86_400);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    /// `None` for a token that does not end.
    ends: Option<(Instant, Duration)>,
    renew_at: Option<Instant>,
    pause: Duration,
    renewable: bool,
}

impl Lease {
    /// Of a token that was asked for at `begun`. Zero seconds are a token that does not end.
    pub(crate) fn new(begun: Instant, seconds: u64, renewable: bool) -> Self {
        let life = Duration::from_secs(seconds);
        let pause = FIRST_PAUSE;
        if seconds == 0 || life > MAX_LIFE {
            return Self { ends: None, renew_at: None, pause, renewable };
        }
        let renew_at = (renewable && life >= MIN_LIFE).then(|| begun + life * 2 / 3);
        Self { ends: Some((begun + life, life)), renew_at, pause, renewable }
    }

    /// After a renewal that failed: later again, with growing pauses, while there is time.
    pub(crate) fn after_failure(self, now: Instant) -> Self {
        let renew_at = self.ends.map(|(end, _)| end).filter(|end| now + self.pause < *end);
        let renew_at = renew_at.map(|_| now + self.pause);
        Self { renew_at, pause: (self.pause * 2).min(MAX_PAUSE), ..self }
    }

    /// True in the last moments too.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.ends.is_some_and(|(end, life)| now + MARGIN.min(life / 10) >= end)
    }

    pub(crate) fn renew_at(&self) -> Option<Instant> {
        self.renew_at
    }

    pub(crate) fn is_renewable(&self) -> bool {
        self.renewable
    }

    /// `None` for a token that does not end.
    pub(crate) fn life(&self) -> Option<Duration> {
        self.ends.map(|(_, life)| life)
    }

    /// What is left of the life; `None` for a token that does not end.
    pub(crate) fn left(&self, now: Instant) -> Option<Duration> {
        self.ends.map(|(end, _)| end.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_token_is_renewed_at_two_thirds_and_left_before_its_end() {
        let now = Instant::now();
        let lease = Lease::new(now, 600, true);
        assert_eq!(lease.renew_at(), Some(now + s(400)));
        assert!(!lease.is_over(now + s(594)) && lease.is_over(now + s(595)));
        assert_eq!(Lease::new(now, 600, false).renew_at(), None);
        assert_eq!(Lease::new(now, 9, true).renew_at(), None, "not worth it");
        assert!(!Lease::new(now, 0, false).is_over(now + s(1_000_000)), "the root's does not end");
        assert!(!Lease::new(now, u64::MAX, true).is_over(now + s(1_000_000)));
    }

    #[test]
    fn failed_renewals_are_tried_again_ever_more_slowly() {
        let begun = Instant::now();
        let (mut lease, mut now, mut pauses) = (Lease::new(begun, 1000, true), begun + s(667), Vec::new());
        loop {
            lease = lease.after_failure(now);
            let Some(next) = lease.renew_at() else { break };
            pauses.push((next - now).as_secs());
            now = next;
        }
        assert_eq!(pauses, [10, 20, 40, 80, 160]);
        assert!(!lease.is_over(now), "until its end it is used");
    }
}
