//! The cache's metrics under SPIRE's names.

use svid_daemon::metrics::{Call, Counter, Gauge, Metrics, Timing};

use super::records::Records;

/// Handles, made once.
#[derive(Debug, Default)]
pub(super) struct CacheMetrics {
    records: Gauge,
    svids: Gauge,
    pub(super) jwt_svids: Gauge,
    pub(super) expiring: Timing,
    pub(super) outdated: Timing,
    pub(super) tainted_x509: Timing,
    pub(super) tainted_jwt: Timing,
    pub(super) process_tainted_x509: Call,
    pub(super) process_tainted_jwt: Call,
}

/// What happened to entries.
#[derive(Debug, Default)]
pub(super) struct EntryCounters {
    pub(super) added: Counter,
    pub(super) updated: Counter,
    pub(super) removed: Counter,
}

impl EntryCounters {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let counter = |name| metrics.counter(&[name], &[]);
        Self {
            added: counter("lru_cache_entry_add"),
            updated: counter("lru_cache_entry_update"),
            removed: counter("lru_cache_entry_remove"),
        }
    }
}

impl CacheMetrics {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let x509 = [("svid_type", "X509")];
        let sample = |key: &[&str]| metrics.timing(&[&["cache_manager"], key].concat(), &[]);
        let process = |name| metrics.call(&["cache_manager", "workload", name]);
        Self {
            records: metrics.gauge(&["lru_cache_record_map_size"], &x509),
            svids: metrics.gauge(&["lru_cache_svid_map_size"], &x509),
            jwt_svids: metrics.gauge(&["jwt_svid_cache_size"], &[]),
            expiring: sample(&["expiring_svids"]),
            outdated: sample(&["outdated_svids"]),
            tainted_x509: sample(&["tainted_x509_svids", "workload"]),
            tainted_jwt: sample(&["tainted_jwt_svids", "workload"]),
            process_tainted_x509: process("process_tainted_x509_svids"),
            process_tainted_jwt: process("process_tainted_jwt_svids"),
        }
    }

    /// Shows how full the cache is.
    pub(super) fn sizes(&self, records: &Records) {
        self.records.set(amount(records.workload_entries()));
        self.svids.set(amount(records.svids()));
    }
}

/// A number of things as metrics want it.
#[allow(clippy::cast_precision_loss)] // far below 2^52
pub(super) fn amount(count: usize) -> f64 {
    count as f64
}
