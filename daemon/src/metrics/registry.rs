//! All series by name and labels.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::series::{Counter, Gauge, Timing};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Summary,
}

#[derive(Clone, Debug)]
pub(super) enum Series {
    Counter(Counter),
    Gauge(Gauge),
    Timing(Timing),
}

#[derive(Debug, Default)]
pub(super) struct Registry(Mutex<BTreeMap<String, Family>>);

#[derive(Debug)]
struct Family {
    kind: Kind,
    by_labels: BTreeMap<String, Series>,
}

impl Registry {
    /// The series, made where it is missing. A name keeps the kind it was first used with.
    pub(super) fn series(&self, kind: Kind, name: String, labels: String) -> Series {
        let mut families = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let family = families.entry(name).or_insert_with(|| Family { kind, by_labels: BTreeMap::new() });
        let kind = family.kind;
        family.by_labels.entry(labels).or_insert_with(|| Series::new(kind)).clone()
    }

    pub(super) fn render(&self, now: Instant) -> String {
        let families = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        for (name, family) in &*families {
            // Writing to a String cannot fail.
            let _ = write!(text, "# HELP {name} {name}\n# TYPE {name} {}\n", family.kind.word());
            for (labels, series) in &family.by_labels {
                series.render(name, labels, now, &mut text);
            }
        }
        text
    }
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Summary => "summary",
        }
    }
}

impl Series {
    fn new(kind: Kind) -> Self {
        match kind {
            Kind::Counter => Self::Counter(Counter(Some(Arc::new(AtomicU64::new(0))))),
            Kind::Gauge => Self::Gauge(Gauge(Some(Arc::new(AtomicU64::new(0f64.to_bits()))))),
            Kind::Summary => Self::Timing(Timing(Some(Arc::default()))),
        }
    }

    fn render(&self, name: &str, labels: &str, now: Instant, text: &mut String) {
        let mut line = |suffix: &str, labels: &str, value: &dyn std::fmt::Display| {
            let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name}{suffix}{labels} {value}");
        };
        let load =
            |bits: &Option<Arc<AtomicU64>>| bits.as_ref().map_or(0, |bits| bits.load(Ordering::Relaxed));
        match self {
            Self::Counter(counter) => line("", labels, &load(&counter.0)),
            Self::Gauge(gauge) => line("", labels, &f64::from_bits(load(&gauge.0))),
            Self::Timing(timing) => {
                let Some(summary) = timing.summary(now) else { return };
                for (quantile, value) in summary.quantiles {
                    let comma = if labels.is_empty() { "" } else { "," };
                    line("", &format!("{labels}{comma}quantile=\"{quantile}\""), &value);
                }
                line("_sum", labels, &summary.sum);
                line("_count", labels, &summary.count);
            }
        }
    }
}
