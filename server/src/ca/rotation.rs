//! When the next authority is prepared and when it takes over: pure functions of the slots and of now.

use std::time::{Duration, SystemTime};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// The next authority is prepared at most this long before the active one ends.
pub const PREPARE_CAP: Duration = DAY.saturating_mul(30);
/// ... or this fraction of its life, whichever is shorter.
pub const PREPARE_DIVISOR: u32 = 2;
/// The next authority takes over at most this long before the active one ends.
pub const ACTIVATE_CAP: Duration = DAY.saturating_mul(7);
/// ... or this fraction of its life, whichever is shorter.
pub const ACTIVATE_DIVISOR: u32 = 6;

/// When an authority was made and when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// When it was prepared.
    pub issued_at: SystemTime,
    /// When its certificate or key ends.
    pub not_after: SystemTime,
}

impl Span {
    fn before_end(&self, divisor: u32, cap: Duration) -> SystemTime {
        let life = self.not_after.duration_since(self.issued_at).unwrap_or_default();
        self.not_after.checked_sub((life / divisor).min(cap)).unwrap_or(self.issued_at)
    }

    /// From when on a successor should stand ready.
    pub fn prepare_at(&self) -> SystemTime {
        self.before_end(PREPARE_DIVISOR, PREPARE_CAP)
    }

    /// From when on the successor should sign.
    pub fn activate_at(&self) -> SystemTime {
        self.before_end(ACTIVATE_DIVISOR, ACTIVATE_CAP)
    }
}

/// What a kind of authority needs now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Prepare an authority in the slot that is not active.
    Prepare,
    /// Let the prepared authority take over.
    Activate,
    /// Nothing before this moment.
    SleepUntil(SystemTime),
}

/// What to do at `now`, given the active authority and whether another one is prepared.
pub fn next_step(active: Option<Span>, prepared: bool, now: SystemTime) -> Step {
    let (due, step) = match (active, prepared) {
        (None, true) => return Step::Activate,
        (None, false) => return Step::Prepare,
        (Some(active), true) => (active.activate_at(), Step::Activate),
        (Some(active), false) => (active.prepare_at(), Step::Prepare),
    };
    if now > due { step } else { Step::SleepUntil(due) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn at(hours: u32) -> SystemTime {
        SystemTime::UNIX_EPOCH + HOUR * hours
    }

    fn span(from: u32, hours: u32) -> Span {
        Span { issued_at: at(from), not_after: at(from + hours) }
    }

    #[test]
    fn thresholds() {
        let day = span(100, 24);
        assert_eq!((day.prepare_at(), day.activate_at()), (at(112), at(120)));
        let year = span(0, 365 * 24);
        assert_eq!((year.prepare_at(), year.activate_at()), (at(335 * 24), at(358 * 24)));
        let backwards = Span { issued_at: at(5), not_after: at(1) };
        assert_eq!((backwards.prepare_at(), backwards.activate_at()), (at(1), at(1)));
    }

    #[test]
    fn steps() {
        let day = Some(span(0, 24));
        let check = |active, prepared, hour: u32, want| {
            assert_eq!(next_step(active, prepared, at(hour)), want, "hour {hour}")
        };
        check(None, false, 0, Step::Prepare);
        check(None, true, 0, Step::Activate);
        check(day, false, 0, Step::SleepUntil(at(12)));
        check(day, false, 12, Step::SleepUntil(at(12)));
        check(day, false, 13, Step::Prepare);
        check(day, true, 13, Step::SleepUntil(at(20)));
        check(day, true, 20, Step::SleepUntil(at(20)));
        check(day, true, 21, Step::Activate);
        check(day, false, 25, Step::Prepare);
    }

    /// At every check of a year an authority is active, has not ended, and was prepared long before it signs.
    #[test]
    fn a_year_of_checks_every_ten_seconds() {
        for ttl in [HOUR, HOUR * 24, DAY * 90] {
            let (mut active, mut prepared): (Option<Span>, Option<Span>) = (None, None);
            let mut rotations = 0;
            let mut now = at(0);
            while now < SystemTime::UNIX_EPOCH + DAY * 365 {
                match next_step(active, prepared.is_some(), now) {
                    Step::Prepare => prepared = Some(Span { issued_at: now, not_after: now + ttl }),
                    Step::Activate => {
                        let next = prepared.take().expect("a prepared authority");
                        let ready_for = now.duration_since(next.issued_at).expect("time goes forward");
                        assert!(active.is_none() || ready_for >= (ttl / 3).min(DAY * 20));
                        active = Some(next);
                        rotations += 1;
                        continue;
                    }
                    Step::SleepUntil(due) => {
                        assert!(due >= now);
                        assert!(active.is_some_and(|active| active.not_after
                            > now + (ttl / 6).min(DAY * 6) - Duration::from_secs(20)));
                        // What a sleeper who checks each 10 s would see next.
                        let skip = due.duration_since(now).expect("due is ahead").as_secs() / 10 * 10;
                        now += Duration::from_secs(skip);
                    }
                }
                now += Duration::from_secs(10);
            }
            assert!(rotations >= (DAY * 365).as_secs() / ttl.as_secs());
        }
    }
}
