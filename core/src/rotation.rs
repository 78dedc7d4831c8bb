//! When something that expires should be replaced: pure functions of its life and of now.

use std::time::{Duration, SystemTime};

/// A span of validity. `not_after` may lie before `not_before`; such a life is over at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
}

impl Life {
    /// The whole length.
    pub fn length(&self) -> Duration {
        self.not_after.duration_since(self.not_before).unwrap_or_default()
    }

    /// What is left at `now`, zero once over.
    pub fn remaining(&self, now: SystemTime) -> Duration {
        self.not_after.duration_since(now).unwrap_or_default()
    }

    /// True once `now` is at or past the end.
    pub fn is_over(&self, now: SystemTime) -> bool {
        self.not_after <= now
    }

    /// When to renew: at half of the life, moved by up to a tenth of it so that many do not renew at once.
    /// `draw` is a fixed number in 0..=1 kept with the SVID: SPIRE draws anew at each look and so bunches up early.
    pub fn renew_at(&self, draw: f64) -> SystemTime {
        let left = self.length().mul_f64(0.5 * (0.9 + 0.2 * draw.clamp(0.0, 1.0)));
        self.not_after.checked_sub(left).unwrap_or(self.not_after)
    }

    /// As [`Life::renew_at`], but early enough that `target` of validity is always left, where the life is long
    /// enough for that (SPIRE's `availability_target`: 12 h more than the target).
    pub fn renew_at_with_target(&self, draw: f64, target: Option<Duration>) -> SystemTime {
        const GRACE: Duration = Duration::from_secs(12 * 3600);
        const JITTER: Duration = Duration::from_secs(600);
        let half = self.renew_at(draw);
        match target {
            Some(target) if self.length() > target + GRACE => {
                let left = target + JITTER.mul_f64(draw.clamp(0.0, 1.0));
                half.min(self.not_after.checked_sub(left).unwrap_or(half))
            }
            _ => half,
        }
    }
}

/// How far `not_before` lies in the past: min(10 s, life / 4), so that a short life is not mostly behind it.
pub fn back_date(life: Duration) -> Duration {
    (life / 4).min(Duration::from_secs(10))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn renews_around_half_life() {
        let life = Life { not_before: at(0), not_after: at(1000) };
        assert_eq!(life.renew_at(0.5), at(500));
        assert_eq!(life.renew_at(0.0), at(550));
        assert_eq!(life.renew_at(1.0), at(450));
        assert!(life.is_over(at(1000)) && !life.is_over(at(999)));
        assert_eq!(life.remaining(at(2000)), Duration::ZERO);
    }

    #[test]
    fn availability_target_moves_renewal_forward_only_for_long_lives() {
        let day = 86_400;
        let target = Some(Duration::from_secs(day));
        let long = Life { not_before: at(0), not_after: at(10 * day) };
        assert_eq!(long.renew_at_with_target(0.5, target), at(5 * day));
        let short = Life { not_before: at(0), not_after: at(day + 3600) };
        assert_eq!(short.renew_at_with_target(0.5, target), short.renew_at(0.5));
        let middle = Life { not_before: at(0), not_after: at(day + 13 * 3600) };
        assert_eq!(middle.renew_at_with_target(0.0, target), at(13 * 3600));
    }

    #[test]
    fn back_dating() {
        assert_eq!(back_date(Duration::from_secs(3600)), Duration::from_secs(10));
        assert_eq!(back_date(Duration::from_secs(20)), Duration::from_secs(5));
    }
}
