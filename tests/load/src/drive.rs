//! How calls are offered: one after the other by each caller, or by a timetable that waits for nobody.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::stats::{Failure, Outcome};

/// Longer than this no call may take.
const CALL_LIMIT: Duration = Duration::from_secs(60);
/// After a failure a caller waits, so that a dead server is not met with a storm.
const AFTER_FAILURE: Duration = Duration::from_millis(5);

/// One client that calls again and again.
pub trait Caller: Send + 'static {
    /// Makes one call and tells how many units it made; `None` when nothing is left to be done.
    fn call(&mut self) -> impl Future<Output = Option<Result<u64, Failure>>> + Send;
}

/// Each caller calls as soon as its last call has ended, for `limit`.
pub async fn closed<C: Caller>(callers: Vec<C>, limit: Duration) -> Outcome {
    let progress = Progress::start(limit);
    let began = Instant::now();
    let end = began + limit;
    let mut parts = JoinSet::new();
    for mut caller in callers {
        let units = progress.units();
        parts.spawn(async move {
            let mut part = Outcome::default();
            while Instant::now() < end {
                let from = Instant::now();
                let Some(made) = limited(&mut caller).await else { break };
                let took = from.elapsed();
                count(&units, &made);
                let failed = made.is_err();
                part.add(took, made);
                if failed {
                    sleep(AFTER_FAILURE).await;
                }
            }
            part
        });
    }
    gather(parts, began).await
}

/// Calls are due `rate` times a second for `limit`, whoever is free makes them, and their latency counts from when
/// they were due.
pub async fn offered<C: Caller>(callers: Vec<C>, rate: f64, limit: Duration) -> Outcome {
    let progress = Progress::start(limit);
    let began = Instant::now();
    let due = (rate * limit.as_secs_f64()).floor() as u64;
    let next = Arc::new(AtomicU64::new(0));
    let gate = timetable(began, rate, due);
    let mut parts = JoinSet::new();
    for mut caller in callers {
        let (units, next, gate) = (progress.units(), next.clone(), gate.clone());
        parts.spawn(async move {
            let mut part = Outcome::default();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= due {
                    break;
                }
                let Ok(permit) = gate.acquire().await else { break };
                permit.forget();
                let at = began + Duration::from_secs_f64(number as f64 / rate);
                let Some(made) = limited(&mut caller).await else { break };
                count(&units, &made);
                part.add(at.elapsed(), made);
            }
            part
        });
    }
    gather(parts, began).await
}

/// Opens the way for one call at each due time. A thread of its own keeps the time: the runtime's timers round up to
/// whole milliseconds, and that lateness would count as the server's.
fn timetable(began: Instant, rate: f64, due: u64) -> Arc<Semaphore> {
    let gate = Arc::new(Semaphore::new(0));
    let (opened, began) = (gate.clone(), began.into_std());
    std::thread::spawn(move || {
        for number in 0..due {
            let at = began + Duration::from_secs_f64(number as f64 / rate);
            std::thread::sleep(at.saturating_duration_since(std::time::Instant::now()));
            opened.add_permits(1);
        }
    });
    gate
}

async fn limited<C: Caller>(caller: &mut C) -> Option<Result<u64, Failure>> {
    match timeout(CALL_LIMIT, caller.call()).await {
        Ok(made) => made,
        Err(_) => Some(Err(Failure::new("NoAnswer", format!("no answer within {} s", CALL_LIMIT.as_secs())))),
    }
}

fn count(units: &AtomicU64, made: &Result<u64, Failure>) {
    if let Ok(made) = made {
        units.fetch_add(*made, Ordering::Relaxed);
    }
}

async fn gather(mut parts: JoinSet<Outcome>, began: Instant) -> Outcome {
    let mut outcome = Outcome::default();
    while let Some(part) = parts.join_next().await {
        match part {
            Ok(part) => outcome.merge(part),
            Err(error) => outcome.add(Duration::ZERO, Err(Failure::new("CallerDied", error))),
        }
    }
    outcome.wall = began.elapsed();
    outcome
}

/// A bar on a terminal, nothing elsewhere.
pub struct Progress {
    units: Arc<AtomicU64>,
    ticker: tokio::task::JoinHandle<()>,
    bar: ProgressBar,
}

impl Progress {
    /// A bar that fills in `limit`.
    pub fn start(limit: Duration) -> Self {
        const TICK: Duration = Duration::from_millis(200);
        let bar = ProgressBar::new(limit.as_millis().try_into().unwrap_or(u64::MAX));
        if let Ok(style) = ProgressStyle::with_template("{elapsed_precise} {wide_bar} {msg}") {
            bar.set_style(style);
        }
        let units = Arc::new(AtomicU64::new(0));
        let (shown, counted) = (bar.clone(), units.clone());
        let ticker = tokio::spawn(async move {
            if shown.is_hidden() {
                return; // not a terminal
            }
            let began = Instant::now();
            loop {
                shown.set_position(began.elapsed().as_millis().try_into().unwrap_or(u64::MAX));
                shown.set_message(counted.load(Ordering::Relaxed).to_string());
                sleep(TICK).await;
            }
        });
        Self { units, ticker, bar }
    }

    /// Where callers count what they made.
    pub fn units(&self) -> Arc<AtomicU64> {
        self.units.clone()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.ticker.abort();
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each call takes `takes`; there are `left` of them.
    struct Fake {
        takes: Duration,
        left: u64,
    }

    impl Caller for Fake {
        async fn call(&mut self) -> Option<Result<u64, Failure>> {
            self.left = self.left.checked_sub(1)?;
            sleep(self.takes).await;
            Some(if self.left == 0 { Err(Failure::new("Last", "of all")) } else { Ok(2) })
        }
    }

    fn fake(takes: u64, left: u64) -> Fake {
        Fake { takes: Duration::from_millis(takes), left }
    }

    #[tokio::test(start_paused = true)]
    async fn closed_loops_end_with_the_time_or_the_work() {
        let outcome = closed(vec![fake(100, 1000), fake(10, 5)], Duration::from_secs(1)).await;
        assert_eq!(outcome.latencies.len(), 10 + 4);
        assert_eq!(outcome.units, 28);
        assert_eq!(outcome.errors["Last"].count, 1);
        assert_eq!(outcome.wall, Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_call_counts_from_when_it_was_due() {
        // 20 a second are due, one caller does 10: the last of 20 starts 0.95 s late.
        let outcome = offered(vec![fake(100, 1000)], 20.0, Duration::from_secs(1)).await;
        assert_eq!(outcome.latencies.len(), 20);
        let last = outcome.latencies.last().expect("calls").as_millis();
        assert!((1040..=1060).contains(&last), "{last}");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_a_failure() {
        let outcome = closed(vec![fake(3_600_000, 2)], Duration::from_secs(1)).await;
        assert_eq!(outcome.errors["NoAnswer"].count, 1);
    }
}
