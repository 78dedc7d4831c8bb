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

    /// When to renew, so early that an outage of all servers is survived for eleven twelfths of the life: at age
    /// max(life / 12, min(life / 2, 60 s)), moved forward by up to a fifth of that so that many do not renew at once.
    /// One hour is renewed after 4 to 5 minutes, so 55 are always left; a life of under two minutes at its half, as in
    /// SPIRE, since what is short-lived would else be renewed all the time.
    /// `draw` is a fixed number in 0..=1 kept with the SVID: SPIRE draws anew at each look and so bunches up early.
    pub fn renew_at(&self, draw: f64) -> SystemTime {
        const AT_LEAST: Duration = Duration::from_secs(60);
        const JITTER: f64 = 0.2;
        let length = self.length();
        let age = (length / 12).max((length / 2).min(AT_LEAST));
        let age = age.mul_f64(1.0 - JITTER * draw.clamp(0.0, 1.0));
        self.not_after.checked_sub(length.saturating_sub(age)).unwrap_or(self.not_after)
    }

    /// As SPIRE renews: at half of the life, moved by up to a tenth of it either way.
    pub fn half(&self, draw: f64) -> SystemTime {
        let left = self.length().mul_f64(0.5 * (0.9 + 0.2 * draw.clamp(0.0, 1.0)));
        self.not_after.checked_sub(left).unwrap_or(self.not_after)
    }

    /// As [`Life::renew_at`], but early enough that `target` of validity is always left, where the life is long
    /// enough for that (SPIRE's `availability_target`: 12 h more than the target).
    pub fn renew_at_with_target(&self, draw: f64, target: Option<Duration>) -> SystemTime {
        const GRACE: Duration = Duration::from_secs(12 * 3600);
        const JITTER: Duration = Duration::from_secs(600);
        let early = self.renew_at(draw);
        match target {
            Some(target) if self.length() > target + GRACE => {
                let left = target + JITTER.mul_f64(draw.clamp(0.0, 1.0));
                early.min(self.not_after.checked_sub(left).unwrap_or(early))
            }
            _ => early,
        }
    }
}

/// How far `not_before` lies in the past at most.
pub const MAX_BACK_DATE: Duration = Duration::from_secs(10);

/// How far `not_before` lies in the past: min(10 s, life / 4), so that a short life is not mostly behind it.
pub fn back_date(life: Duration) -> Duration {
    (life / 4).min(MAX_BACK_DATE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn early_enough_to_outlive_an_outage() {
        let hour = 3600;
        // Life, and the ages between which it is renewed.
        let rows = [
            (24, 9.6, 12.0),
            (100, 40.0, 50.0),
            (120, 48.0, 60.0),
            (300, 48.0, 60.0),
            (720, 48.0, 60.0),
            (hour, 240.0, 300.0),
            (24 * hour, 5760.0, 7200.0),
        ];
        for (length, first, last) in rows {
            let life = Life { not_before: at(1000), not_after: at(1000 + length) };
            let age = |draw| life.renew_at(draw).duration_since(at(1000)).unwrap_or_default().as_secs_f64();
            assert!((age(1.0) - first).abs() < 1e-6 && (age(0.0) - last).abs() < 1e-6, "{length} s");
            assert!(age(0.5) > first && age(0.5) < last, "{length} s");
        }
    }

    #[test]
    fn half_a_life_and_its_end() {
        let life = Life { not_before: at(0), not_after: at(1000) };
        assert_eq!((life.half(0.5), life.half(0.0), life.half(1.0)), (at(500), at(550), at(450)));
        assert!(life.is_over(at(1000)) && !life.is_over(at(999)));
        assert_eq!(life.remaining(at(2000)), Duration::ZERO);
        let backwards = Life { not_before: at(1000), not_after: at(10) };
        assert_eq!(backwards.renew_at(0.5), at(10));
    }

    #[test]
    fn availability_target_never_renews_later() {
        let day = 86_400;
        let target = Some(Duration::from_secs(23 * day));
        let long = Life { not_before: at(0), not_after: at(24 * day) };
        assert_eq!(long.renew_at(0.0), at(2 * day));
        assert_eq!(long.renew_at_with_target(0.0, target), at(day));
        let short = Life { not_before: at(0), not_after: at(day + 3600) };
        for target in [None, Some(Duration::from_secs(day))] {
            assert_eq!(short.renew_at_with_target(0.5, target), short.renew_at(0.5));
        }
    }

    #[test]
    fn back_dating() {
        assert_eq!(back_date(Duration::from_secs(3600)), Duration::from_secs(10));
        assert_eq!(back_date(Duration::from_secs(20)), Duration::from_secs(5));
    }
}
