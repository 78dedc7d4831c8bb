//! The `telemetry` and `health_checks` sections.

use svid_core::hcl::{Reader, Unknown};

/// Where metrics go and how they are named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Telemetry {
    /// The Prometheus listener.
    pub prometheus: Option<PrometheusSink>,
    /// First part of every name.
    pub prefix: String,
    /// Label every series with the trust domain.
    pub trust_domain_label: bool,
    /// Label every series with the host's name.
    pub hostname_label: bool,
    /// Name prefixes that are let through; all when empty.
    pub allowed_prefixes: Vec<String>,
    /// Name prefixes that are left out.
    pub blocked_prefixes: Vec<String>,
    /// Labels that are kept; all when empty.
    pub allowed_labels: Vec<String>,
    /// Labels that are left out.
    pub blocked_labels: Vec<String>,
}

/// The Prometheus listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrometheusSink {
    /// Host or address.
    pub host: String,
    /// Port.
    pub port: u16,
}

/// The HTTP health listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthChecks {
    /// Host or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Path that tells whether the process should be restarted.
    pub live_path: String,
    /// Path that tells whether requests should be sent here.
    pub ready_path: String,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            prometheus: None,
            prefix: "spire_server".into(),
            trust_domain_label: false,
            hostname_label: true,
            allowed_prefixes: Vec::new(),
            blocked_prefixes: Vec::new(),
            allowed_labels: Vec::new(),
            blocked_labels: Vec::new(),
        }
    }
}

pub(super) fn read(file: &mut Reader) -> Telemetry {
    file.block("telemetry", read_telemetry).unwrap_or_default()
}

fn read_telemetry(r: &mut Reader) -> Telemetry {
    let telemetry = Telemetry {
        prometheus: r.block("Prometheus", prometheus).flatten(),
        prefix: r.string("MetricPrefix").filter(|prefix| !prefix.is_empty()).unwrap_or_else(|| "spire_server".into()),
        trust_domain_label: r.bool("EnableTrustDomainLabel").unwrap_or_default(),
        hostname_label: r.bool("EnableHostnameLabel").unwrap_or(true),
        allowed_prefixes: r.strings("AllowedPrefixes").unwrap_or_default(),
        blocked_prefixes: r.strings("BlockedPrefixes").unwrap_or_default(),
        allowed_labels: r.strings("AllowedLabels").unwrap_or_default(),
        blocked_labels: r.strings("BlockedLabels").unwrap_or_default(),
    };
    push_sink(r, "DogStatsd", &["address"]);
    push_sink(r, "Statsd", &["address"]);
    push_sink(r, "M3", &["address", "env"]);
    push_sink(r, "InMem", &["enabled"]);
    r.finish(Unknown::Warn);
    telemetry
}

fn push_sink(r: &mut Reader, name: &str, keys: &[&str]) {
    if r.has(name) {
        r.warn(name, "this sink is not built: only Prometheus is");
    }
    r.blocks(name, |sink| {
        for key in keys {
            sink.string(key);
        }
        sink.finish(Unknown::Refuse);
    });
}

fn prometheus(r: &mut Reader) -> Option<PrometheusSink> {
    let host = r.string("host").filter(|host| !host.is_empty()).unwrap_or_else(|| "localhost".into());
    let port = r.port("port");
    if r.raw("tls").is_some() {
        // Serving in the clear what was asked to be served under TLS would be worse than not starting.
        r.error("tls", "TLS for the Prometheus listener is not built");
    }
    if port.is_none() {
        r.error("port", "must be configured");
    }
    r.finish(Unknown::Refuse);
    Some(PrometheusSink { host, port: port? })
}

pub(super) fn read_health(file: &mut Reader) -> Option<HealthChecks> {
    file.block("health_checks", |r| {
        let enabled = r.bool("listener_enabled").unwrap_or_default();
        let or = |value: Option<String>, default: &str| value.filter(|v| !v.is_empty()).unwrap_or_else(|| default.into());
        let checks = HealthChecks {
            host: or(r.string("bind_address"), "localhost"),
            port: r.port("bind_port").unwrap_or(80),
            live_path: or(r.string("live_path"), "/live"),
            ready_path: or(r.string("ready_path"), "/ready"),
        };
        r.finish(Unknown::Refuse);
        enabled.then_some(checks)
    })
    .flatten()
}
