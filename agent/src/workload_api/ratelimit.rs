//! Requests per second and set of selectors.
//!
//! All workloads with equal selectors share one bucket: a limit by connection or process would be no limit. Buckets
//! that nobody used for a minute or two are dropped, as two generations of maps.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use svid_core::selector::SelectorSet;

const GENERATION: Duration = Duration::from_secs(60);

/// A bucket that fills by `limit` tokens a second and holds as many.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

#[derive(Debug)]
struct Buckets {
    young: HashMap<Arc<SelectorSet>, Bucket>,
    old: HashMap<Arc<SelectorSet>, Bucket>,
    turned: Instant,
}

/// The limit of one method.
#[derive(Debug)]
pub(crate) struct Limit {
    per_second: f64,
    buckets: Mutex<Buckets>,
}

impl Limit {
    /// `None` for 0, which is no limit.
    pub(crate) fn new(per_second: u32, now: Instant) -> Option<Self> {
        let buckets = Buckets { young: HashMap::new(), old: HashMap::new(), turned: now };
        (per_second > 0).then(|| Self { per_second: per_second.into(), buckets: Mutex::new(buckets) })
    }

    /// Takes one token from the bucket of these selectors; false if there is none.
    pub(crate) fn allow(&self, selectors: &Arc<SelectorSet>, now: Instant) -> bool {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = buckets.get(selectors, self.per_second, now);
        let passed = now.saturating_duration_since(bucket.at).as_secs_f64();
        bucket.tokens = (bucket.tokens + passed * self.per_second).min(self.per_second);
        bucket.at = now;
        if bucket.tokens < 1.0 {
            return false;
        }
        bucket.tokens -= 1.0;
        true
    }
}

impl Buckets {
    fn get(&mut self, selectors: &Arc<SelectorSet>, full: f64, now: Instant) -> &mut Bucket {
        if now.saturating_duration_since(self.turned) >= GENERATION {
            self.old = std::mem::take(&mut self.young);
            self.turned = now;
        }
        let found = self.old.remove(selectors);
        self.young.entry(Arc::clone(selectors)).or_insert(found.unwrap_or(Bucket { tokens: full, at: now }))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn set(text: &str) -> Arc<SelectorSet> {
        Arc::new([text.parse().unwrap()].into_iter().collect())
    }

    #[test]
    fn zero_is_no_limit() {
        assert!(Limit::new(0, Instant::now()).is_none());
    }

    #[test]
    fn a_bucket_fills_with_time_and_is_shared_by_equal_sets() {
        let start = Instant::now();
        let limit = Limit::new(2, start).unwrap();
        let allowed =
            |text: &str, after_ms: u64| limit.allow(&set(text), start + Duration::from_millis(after_ms));
        assert!(allowed("a:1", 0) && allowed("a:1", 0) && !allowed("a:1", 0));
        assert!(allowed("b:1", 0), "another set has its own bucket");
        assert!(!allowed("a:1", 499));
        assert!(allowed("a:1", 501) && !allowed("a:1", 501));
        assert!(
            allowed("a:1", 9_000) && allowed("a:1", 9_000) && !allowed("a:1", 9_000),
            "it holds no more than one second's worth"
        );
    }

    #[test]
    fn unused_buckets_go_within_two_generations() {
        let start = Instant::now();
        let limit = Limit::new(1, start).unwrap();
        for n in 0..100 {
            limit.allow(&set(&format!("a:{n}")), start);
        }
        limit.allow(&set("b:1"), start + GENERATION);
        limit.allow(&set("b:1"), start + 2 * GENERATION);
        let buckets = limit.buckets.lock().unwrap();
        assert_eq!((buckets.young.len(), buckets.old.len()), (1, 0));
    }
}
