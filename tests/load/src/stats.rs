//! Latencies and errors of a run. Percentiles are exact: every sample is kept and sorted.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

/// Why one call, or one item of a batch, failed.
#[derive(Debug, Clone)]
pub struct Failure {
    /// A gRPC code's name, or what failed before there was one.
    pub code: String,
    /// In words.
    pub text: String,
}

impl Failure {
    /// A failure that is no gRPC status.
    pub fn new(code: &str, text: impl std::fmt::Display) -> Self {
        Self { code: code.to_owned(), text: text.to_string() }
    }

    /// The status of one item of a batch, unless it is OK.
    pub fn of_item(status: Option<&svid_proto::spire::api::types::Status>) -> Option<Self> {
        let status = status.filter(|status| status.code != 0)?;
        Some(Self::new(&format!("{:?}", tonic::Code::from_i32(status.code)), &status.message))
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.code, self.text)
    }
}

impl std::error::Error for Failure {}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        Self::new(&format!("{:?}", status.code()), status.message())
    }
}

/// Failures of one code.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct Errors {
    /// How many.
    pub count: u64,
    /// The text of the first.
    pub first: String,
}

/// What a run, or one caller's part of it, came to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// One per successful call.
    pub latencies: Vec<Duration>,
    /// What the calls made: entries, SVIDs, tokens.
    pub units: u64,
    /// By code.
    pub errors: BTreeMap<String, Errors>,
    /// From the first call's start to the last one's end.
    pub wall: Duration,
}

impl Outcome {
    /// Counts one call.
    pub fn add(&mut self, took: Duration, made: Result<u64, Failure>) {
        match made {
            Ok(units) => {
                self.latencies.push(took);
                self.units += units;
            }
            Err(failure) => self.fail(failure, 1),
        }
    }

    fn fail(&mut self, failure: Failure, count: u64) {
        let new = Errors { count: 0, first: failure.text };
        self.errors.entry(failure.code).or_insert(new).count += count;
    }

    /// Takes another caller's part in. `wall` stays.
    pub fn merge(&mut self, part: Self) {
        self.latencies.extend(part.latencies);
        self.units += part.units;
        for (code, errors) in part.errors {
            self.fail(Failure { code, text: errors.first }, errors.count);
        }
    }
}

/// Milliseconds of successful calls.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Latency {
    /// How many calls.
    pub calls: usize,
    /// Half took no longer.
    pub p50: f64,
    /// 99 of 100 took no longer.
    pub p99: f64,
    /// The longest.
    pub max: f64,
}

impl Latency {
    /// `None` without a sample.
    pub fn of(mut samples: Vec<Duration>) -> Option<Self> {
        samples.sort_unstable();
        let ms = |duration: Duration| (duration.as_secs_f64() * 1e6).round() / 1e3;
        Some(Self {
            calls: samples.len(),
            p50: ms(*percentile(&samples, 50)?),
            p99: ms(*percentile(&samples, 99)?),
            max: ms(*samples.last()?),
        })
    }
}

/// The smallest sample that is not below `percent` of all (nearest rank).
fn percentile<T>(sorted: &[T], percent: usize) -> Option<&T> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.max(1) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn percentiles_by_nearest_rank() {
        let to = |n: usize| (1..=n).collect::<Vec<_>>();
        for (n, percent, want) in
            [(1, 50, 1), (1, 99, 1), (2, 50, 1), (2, 99, 2), (100, 50, 50), (100, 99, 99), (101, 99, 100)]
        {
            assert_eq!(percentile(&to(n), percent), Some(&want), "{percent} of {n}");
        }
        assert_eq!(percentile(&to(0), 50), None);
    }

    #[test]
    fn latencies_are_sorted_first() {
        let latency = Latency::of(vec![ms(30), ms(10), ms(20)]);
        assert_eq!(latency, Some(Latency { calls: 3, p50: 20.0, p99: 30.0, max: 30.0 }));
        assert_eq!(Latency::of(Vec::new()), None);
    }

    #[test]
    fn parts_add_up() {
        let mut part = Outcome::default();
        part.add(ms(1), Ok(500));
        part.add(ms(2), Err(Failure::new("NotFound", "first")));
        part.add(ms(2), Err(Failure::new("NotFound", "second")));
        let mut all = Outcome::default();
        all.add(ms(3), Err(Failure::new("NotFound", "zeroth")));
        all.merge(part);
        assert_eq!((all.units, all.latencies.len()), (500, 1));
        assert_eq!(all.errors["NotFound"], Errors { count: 3, first: "zeroth".into() });
    }

    #[test]
    fn statuses_of_items() {
        use svid_proto::spire::api::types::Status;
        assert!(Failure::of_item(None).is_none());
        assert!(Failure::of_item(Some(&Status { code: 0, message: String::new() })).is_none());
        let failure = Failure::of_item(Some(&Status { code: 5, message: "entry not found".into() }));
        assert_eq!(failure.expect("a failure").to_string(), "NotFound: entry not found");
    }
}
