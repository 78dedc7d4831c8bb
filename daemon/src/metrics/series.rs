//! One number each.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Quantiles tell about the last ten seconds, as in SPIRE, and from at most this many samples of them.
const WINDOW: Duration = Duration::from_secs(10);
const SAMPLES: usize = 1024;

/// Only goes up.
#[derive(Clone, Debug, Default)]
pub struct Counter(pub(super) Option<Arc<AtomicU64>>);

impl Counter {
    /// Adds `value`.
    pub fn add(&self, value: u64) {
        if let Some(count) = &self.0 {
            count.fetch_add(value, Ordering::Relaxed);
        }
    }
}

/// Holds the last value.
#[derive(Clone, Debug, Default)]
pub struct Gauge(pub(super) Option<Arc<AtomicU64>>);

impl Gauge {
    /// Sets the value.
    pub fn set(&self, value: f64) {
        if let Some(bits) = &self.0 {
            bits.store(value.to_bits(), Ordering::Relaxed);
        }
    }

    /// Adds to the value; a negative `delta` takes away.
    pub fn add(&self, delta: f64) {
        if let Some(bits) = &self.0 {
            let add = |bits| Some((f64::from_bits(bits) + delta).to_bits());
            // Only a `None` of the closure is an error.
            let _ = bits.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        }
    }
}

/// Times in milliseconds, or other amounts that are summed up.
#[derive(Clone, Debug, Default)]
pub struct Timing(pub(super) Option<Arc<Mutex<Window>>>);

#[derive(Debug, Default)]
pub(super) struct Window {
    sum: f64,
    count: u64,
    recent: VecDeque<(Instant, f64)>,
}

/// What a scrape shows of a [`Timing`]; quantiles are NaN when nothing happened lately.
pub(super) struct Summary {
    pub quantiles: [(&'static str, f64); 3],
    pub sum: f64,
    pub count: u64,
}

impl Timing {
    /// Adds one time.
    pub fn record(&self, elapsed: Duration) {
        self.record_at(elapsed, Instant::now());
    }

    /// Adds one amount that is no time.
    pub fn sample(&self, amount: f64) {
        self.sample_at(amount, Instant::now());
    }

    pub(super) fn record_at(&self, elapsed: Duration, now: Instant) {
        self.sample_at(elapsed.as_secs_f64() * 1000.0, now);
    }

    fn sample_at(&self, amount: f64, now: Instant) {
        let Some(window) = &self.0 else { return };
        let mut window = window.lock().unwrap_or_else(PoisonError::into_inner);
        window.sum += amount;
        window.count += 1;
        if window.recent.len() == SAMPLES {
            window.recent.pop_front();
        }
        window.recent.push_back((now, amount));
    }

    pub(super) fn summary(&self, now: Instant) -> Option<Summary> {
        let mut window = self.0.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        window.recent.retain(|(at, _)| now.saturating_duration_since(*at) <= WINDOW);
        let mut sorted: Vec<f64> = window.recent.iter().map(|(_, amount)| *amount).collect();
        sorted.sort_by(f64::total_cmp);
        let quantile = |permille: usize| {
            let at = (sorted.len() * permille).div_ceil(1000).saturating_sub(1);
            sorted.get(at).copied().unwrap_or(f64::NAN)
        };
        let quantiles = [("0.5", quantile(500)), ("0.9", quantile(900)), ("0.99", quantile(990))];
        Some(Summary { quantiles, sum: window.sum, count: window.count })
    }
}
