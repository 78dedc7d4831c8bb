//! The `telemetry` and `health_checks` sections.

use svid_core::hcl::{Reader, Unknown};

use super::types::{HealthConfig, PrometheusConfig, TelemetryConfig};

/// Reads `telemetry`. SPIRE does not look for unknown keys here, so they are warnings.
pub(super) fn read(block: &mut Reader) -> TelemetryConfig {
    let config = TelemetryConfig {
        prometheus: block.block("Prometheus", prometheus),
        metric_prefix: block.string("MetricPrefix").filter(|prefix| !prefix.is_empty()),
        trust_domain_label: block.bool("EnableTrustDomainLabel").unwrap_or_default(),
        hostname_label: block.bool("EnableHostnameLabel").unwrap_or(true),
    };
    block.ignored(&["DogStatsd", "Statsd", "M3", "InMem"], "this metrics sink is not built");
    block.ignored(
        &["AllowedPrefixes", "BlockedPrefixes", "AllowedLabels", "BlockedLabels"],
        "metrics are not filtered",
    );
    block.finish(Unknown::Warn);
    config
}

fn prometheus(block: &mut Reader) -> PrometheusConfig {
    let config = PrometheusConfig {
        host: block.string("host").filter(|host| !host.is_empty()).unwrap_or_else(|| "localhost".into()),
        port: block.port("port").unwrap_or_default(),
    };
    if block.has("tls") {
        block.error("tls", "TLS for the Prometheus listener is not built");
        block.ignored(&["tls"], "not built");
    }
    block.finish(Unknown::Warn);
    config
}

/// Reads `health_checks`.
pub(super) fn read_health(block: &mut Reader, unknown: Unknown) -> HealthConfig {
    let default = HealthConfig::default();
    let mut text = |key: &str, default: String| block.string(key).filter(|text| !text.is_empty()).unwrap_or(default);
    let address = text("bind_address", default.address).trim_matches(['[', ']']).to_owned();
    let (live_path, ready_path) = (text("live_path", default.live_path), text("ready_path", default.ready_path));
    let config = HealthConfig {
        enabled: block.bool("listener_enabled").unwrap_or_default(),
        port: block.port("bind_port").unwrap_or(default.port),
        address,
        live_path,
        ready_path,
    };
    block.finish(unknown);
    config
}
