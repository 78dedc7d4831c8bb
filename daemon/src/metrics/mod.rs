//! Metrics under SPIRE's names, in the form of SPIRE's Prometheus sink: counters without `_total`, timings in
//! milliseconds as summaries, a `host` label on everything.
//!
//! Written out by hand because prometheus-client appends `_total` to counters and knows no summaries. Without a
//! sink nothing is counted and every call is free. On hot paths keep the [`Counter`], [`Gauge`], [`Timing`] or
//! [`Call`] that the look-up returns.

mod key;
mod registry;
mod rpc;
mod series;

use std::sync::Arc;
use std::time::{Duration, Instant};

pub use key::Filter;
pub use rpc::{code_name, on_end};
pub use series::{Counter, Gauge, Timing};

use registry::{Kind, Registry, Series};

/// A label: name and value. Both are sanitised before use.
pub type Label<'a> = (&'a str, &'a str);

/// How metrics are named and filtered.
#[derive(Clone, Debug, Default)]
pub struct MetricsOptions {
    /// First part of every name: `spire_server`, `spire_agent` or `MetricPrefix`.
    pub prefix: String,
    /// Host name for the `host` label; `None` leaves it out.
    pub host: Option<String>,
    /// Trust domain for the `trust_domain` label; `None` leaves it out.
    pub trust_domain: Option<String>,
    /// Prefixes and labels let through or not.
    pub filter: Filter,
}

/// The handle through which everything counts; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Metrics(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    options: MetricsOptions,
    registry: Registry,
}

impl Metrics {
    /// Counts nothing: no sink is configured.
    pub fn disabled() -> Self {
        Self(None)
    }

    /// Counts into memory for [`Metrics::render`].
    pub fn new(options: MetricsOptions) -> Self {
        Self(Some(Arc::new(Inner { options, registry: Registry::default() })))
    }

    /// Whether anything is counted.
    pub fn is_enabled(&self) -> bool {
        self.0.is_some()
    }

    /// The counter `key` with these labels.
    pub fn counter(&self, key: &[&str], labels: &[Label<'_>]) -> Counter {
        match self.series(Kind::Counter, key, labels) {
            Some(Series::Counter(counter)) => counter,
            _ => Counter::default(),
        }
    }

    /// The gauge `key` with these labels.
    pub fn gauge(&self, key: &[&str], labels: &[Label<'_>]) -> Gauge {
        match self.series(Kind::Gauge, key, labels) {
            Some(Series::Gauge(gauge)) => gauge,
            _ => Gauge::default(),
        }
    }

    /// The summary `key` with these labels.
    pub fn timing(&self, key: &[&str], labels: &[Label<'_>]) -> Timing {
        match self.series(Kind::Summary, key, labels) {
            Some(Series::Timing(timing)) => timing,
            _ => Timing::default(),
        }
    }

    /// A call that happens often, with its counters kept.
    pub fn call(&self, key: &[&str]) -> Call {
        self.call_with(key, &[])
    }

    /// As [`Metrics::call`], with labels that each call carries.
    pub fn call_with(&self, key: &[&str], labels: &[Label<'_>]) -> Call {
        let key = key.iter().map(|part| (*part).to_owned()).collect();
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Call { metrics: self.clone(), key, labels, known: Arc::default() }
    }

    /// Adds `value` to a counter.
    pub fn incr_counter(&self, key: &[&str], value: u64, labels: &[Label<'_>]) {
        self.counter(key, labels).add(value);
    }

    /// Sets a gauge.
    pub fn set_gauge(&self, key: &[&str], value: f64, labels: &[Label<'_>]) {
        self.gauge(key, labels).set(value);
    }

    /// Counts a finished call: the counter `key` and the timing `key.elapsed_time`, both with `status`, the
    /// name of a gRPC code (`OK`, `NotFound`).
    pub fn measure_call(&self, key: &[&str], status: &str, elapsed: Duration, labels: &[Label<'_>]) {
        if self.0.is_none() {
            return;
        }
        let labels = [labels, &[("status", status)]].concat();
        self.counter(key, &labels).add(1);
        self.timing(&[key, &["elapsed_time"]].concat(), &labels).record(elapsed);
    }

    /// Everything counted so far in the Prometheus text format 0.0.4.
    pub fn render(&self) -> String {
        self.0.as_ref().map(|inner| inner.registry.render(Instant::now())).unwrap_or_default()
    }

    fn series(&self, kind: Kind, key: &[&str], labels: &[Label<'_>]) -> Option<Series> {
        let Inner { options, registry } = &**self.0.as_ref()?;
        let parts = [&[options.prefix.as_str()], key].concat();
        if !options.filter.allows_key(&parts) {
            return None;
        }
        let own = [("trust_domain", &options.trust_domain), ("host", &options.host)];
        let own = own.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?)));
        let labels = key::render_labels(labels.iter().copied().chain(own), &options.filter);
        Some(registry.series(kind, key::metric_name(&parts), labels))
    }
}

/// A call measured often; see [`Metrics::call`].
#[derive(Clone, Debug, Default)]
pub struct Call {
    metrics: Metrics,
    key: Vec<String>,
    labels: Vec<(String, String)>,
    known: Arc<arc_swap::ArcSwap<Vec<(String, Counter, Timing)>>>,
}

impl Call {
    /// Whether anything is counted.
    pub fn is_enabled(&self) -> bool {
        self.metrics.is_enabled()
    }

    /// Counts one call that ended with `status` after `elapsed`.
    pub fn done(&self, status: &str, elapsed: Duration) {
        if !self.metrics.is_enabled() {
            return;
        }
        if let Some((_, counter, timing)) = self.known.load().iter().find(|(known, ..)| known == status) {
            counter.add(1);
            timing.record(elapsed);
            return;
        }
        let mut key: Vec<&str> = self.key.iter().map(String::as_str).collect();
        let own = self.labels.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let labels: Vec<Label<'_>> = own.chain([("status", status)]).collect();
        let counter = self.metrics.counter(&key, &labels);
        key.push("elapsed_time");
        let timing = self.metrics.timing(&key, &labels);
        counter.add(1);
        timing.record(elapsed);
        self.known.rcu(|known| {
            let mut known = known.to_vec();
            known.push((status.to_owned(), counter.clone(), timing.clone()));
            known
        });
    }
}

#[cfg(test)]
mod tests;
