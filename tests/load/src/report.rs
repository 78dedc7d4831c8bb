//! What a run tells: a table for people, or JSON whose names stay.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use crate::pairs::Ratio;
use crate::process::{Usage, round};
use crate::stats::{Errors, Latency, Outcome};

/// The report of one run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The measure's name.
    pub measure: &'static str,
    /// What is counted.
    pub unit: &'static str,
    /// Calls at the same time.
    pub callers: usize,
    /// What the run made.
    pub units: u64,
    /// Seconds from start to end.
    pub wall_seconds: f64,
    /// Units a second.
    pub rate: f64,
    /// Of calls, in milliseconds.
    pub latency_ms: Option<Latency>,
    /// By code.
    pub errors: BTreeMap<String, Errors>,
    /// The measured process.
    pub process: Option<Usage>,
    /// Processes of further servers.
    pub more_processes: Vec<Usage>,
    /// CPU-seconds of the load generator itself.
    pub client_cpu_seconds: f64,
    /// What one core of this machine does of the work that cannot be avoided.
    pub one_core: Option<OneCore>,
    /// Of two sides that were measured in turn.
    pub ratios: Vec<Ratio>,
    /// What else there is to know.
    pub notes: Vec<String>,
}

/// The ceiling that the crypto library sets.
#[derive(Debug, Clone, Serialize)]
pub struct OneCore {
    /// Which operations.
    pub work: &'static str,
    /// A CPU-second's worth of them.
    pub per_second: f64,
    /// Units per CPU-second of the measured process, as a part of that.
    pub ratio: Option<f64>,
}

impl Report {
    /// A report of `outcome`, without a process.
    pub fn of(measure: &'static str, unit: &'static str, callers: usize, outcome: Outcome) -> Self {
        let wall = outcome.wall.as_secs_f64();
        Self {
            measure,
            unit,
            callers,
            units: outcome.units,
            wall_seconds: round(wall, 1000.0),
            rate: if wall > 0.0 { round(outcome.units as f64 / wall, 10.0) } else { 0.0 },
            latency_ms: Latency::of(outcome.latencies),
            errors: outcome.errors,
            process: None,
            more_processes: Vec::new(),
            client_cpu_seconds: 0.0,
            one_core: None,
            ratios: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Adds the ceiling, and how near the measured process came to it.
    pub fn against(mut self, work: &'static str, per_second: f64) -> Self {
        let rate = self.process.as_ref().and_then(|usage| usage.rate_per_cpu_second);
        let ratio = rate.map(|rate| round(rate / per_second, 1000.0));
        self.one_core = Some(OneCore { work, per_second: per_second.round(), ratio });
        self
    }

    /// True if nothing came of the run.
    pub fn is_failure(&self) -> bool {
        self.units == 0 && !self.errors.is_empty()
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut rows = vec![
            ("measure", format!("{}, {} at a time", self.measure, self.callers)),
            (self.unit, format!("{} in {:.2} s", self.units, self.wall_seconds)),
            ("rate", format!("{:.1} /s", self.rate)),
        ];
        if let Some(latency) = &self.latency_ms {
            let Latency { calls, p50, p99, max } = latency;
            rows.push(("latency of a call", format!("p50 {p50}, p99 {p99}, max {max} ms ({calls} calls)")));
        }
        for usage in self.process.iter().chain(&self.more_processes) {
            let per = usage.rate_per_cpu_second.map_or("-".to_owned(), |rate| format!("{rate:.1}"));
            let share = usage.cpu_seconds / self.wall_seconds.max(f64::MIN_POSITIVE) * 100.0;
            let cpu = format!("{:.2} s, {share:.1}% of a core (pid {})", usage.cpu_seconds, usage.pid);
            rows.push(("CPU of the process", cpu));
            rows.push(("per CPU-second", per));
            let Usage { peak_rss_mib, rss_before_mib, rss_mib, anon_mib, .. } = usage;
            let memory = format!(
                "{rss_before_mib} MiB before, {rss_mib} now ({anon_mib} anonymous), {peak_rss_mib} at its peak"
            );
            rows.push(("memory", memory));
        }
        rows.push(("CPU of svid-load", format!("{:.2} s", self.client_cpu_seconds)));
        if let Some(core) = &self.one_core {
            rows.push(("one core alone", format!("{} /s of {}", core.per_second, core.work)));
            let ratio = core.ratio.map_or("-".to_owned(), |ratio| format!("{:.1}%", ratio * 100.0));
            rows.push(("reached of that", ratio));
        }
        rows.extend(self.ratios.iter().map(|ratio| ("ratio", ratio.to_string())));
        for (code, errors) in &self.errors {
            rows.push(("errors", format!("{} {code}; the first: {}", errors.count, errors.first)));
        }
        rows.extend(self.notes.iter().map(|note| ("note", note.clone())));
        let mut text = String::new();
        for (name, value) in rows {
            let _ = writeln!(text, "{name:<20} {value}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Failure;
    use std::time::Duration;

    fn report() -> Report {
        let mut outcome = Outcome::default();
        outcome.add(Duration::from_millis(4), Ok(500));
        outcome.add(Duration::from_millis(1), Err(Failure::new("NotFound", "entry not found")));
        outcome.wall = Duration::from_secs(2);
        let mut report = Report::of("sign", "SVIDs", 2, outcome);
        report.process = Some(Usage {
            pid: 7,
            cpu_seconds: 0.25,
            rate_per_cpu_second: Some(2000.0),
            peak_rss_mib: 30.0,
            rss_before_mib: 15.0,
            rss_mib: 20.0,
            anon_mib: 10.0,
        });
        report.against("verify and sign", 8000.0)
    }

    #[test]
    fn names_in_json_stay() {
        let json = serde_json::to_value(report()).expect("JSON");
        let names: Vec<_> = json.as_object().expect("an object").keys().map(String::as_str).collect();
        assert_eq!(
            names.join(" "),
            "measure unit callers units wall_seconds rate latency_ms errors process more_processes client_cpu_seconds one_core ratios notes"
        );
        assert_eq!(json["rate"], 250.0);
        assert_eq!(json["latency_ms"]["p99"], 4.0);
        assert_eq!(json["errors"]["NotFound"]["count"], 1);
        assert_eq!(json["one_core"]["ratio"], 0.25);
    }

    #[test]
    fn the_table_says_the_same() {
        let table = report().table();
        for part in ["250.0 /s", "p99 4", "2000.0", "25.0%", "1 NotFound; the first: entry not found"] {
            assert!(table.contains(part), "{part} in\n{table}");
        }
    }

    #[test]
    fn nothing_made_is_a_failure() {
        assert!(!report().is_failure());
        let mut outcome = Outcome::default();
        outcome.add(Duration::ZERO, Err(Failure::new("Connect", "refused")));
        let report = Report::of("fetch", "SVIDs", 1, outcome);
        assert!(report.is_failure());
        assert_eq!(report.rate, 0.0);
    }
}
