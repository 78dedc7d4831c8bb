//! Configuration sections that both daemons share: log options, telemetry, health checks, plugins.

use std::path::PathBuf;

use svid_core::hcl::{Body, Reader, Unknown};

use crate::log::{LogError, LogOptions};
use crate::metrics::Filter;

/// `log_*` keys of the `server` or `agent` block; flags may replace them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogConfig {
    /// `log_file`.
    pub file: Option<String>,
    /// `log_level`.
    pub level: Option<String>,
    /// `log_format`.
    pub format: Option<String>,
    /// `log_source_location`.
    pub source_location: bool,
}

impl LogConfig {
    /// Reads the keys of the block at hand.
    pub fn read(r: &mut Reader) -> Self {
        Self {
            file: r.string("log_file"),
            level: r.string("log_level"),
            format: r.string("log_format"),
            source_location: r.bool("log_source_location").unwrap_or_default(),
        }
    }

    /// Checked options; an empty text counts as absent.
    ///
    /// # Errors
    /// [`LogError`] for an unknown level or format.
    pub fn options(&self) -> Result<LogOptions, LogError> {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let mut options = LogOptions { source_location: self.source_location, ..LogOptions::default() };
        if let Some(level) = given(&self.level) {
            options.level = level.parse()?;
        }
        if let Some(format) = given(&self.format) {
            options.format = format.parse()?;
        }
        options.file = given(&self.file).map(PathBuf::from);
        Ok(options)
    }
}

/// The `health_checks` block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthConfig {
    /// Whether the HTTP listener runs.
    pub listener_enabled: bool,
    /// Host without port or brackets.
    pub bind_address: String,
    /// Port.
    pub bind_port: u16,
    /// Path of the liveness answer.
    pub live_path: String,
    /// Path of the readiness answer.
    pub ready_path: String,
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self {
            listener_enabled: false,
            bind_address: "localhost".into(),
            bind_port: 80,
            live_path: "/live".into(),
            ready_path: "/ready".into(),
        }
    }
}

impl HealthConfig {
    /// Reads the block of the file at hand; defaults where it is absent.
    pub fn read(r: &mut Reader) -> Self {
        let mut config = Self::default();
        r.block("health_checks", |r| {
            config.listener_enabled = r.bool("listener_enabled").unwrap_or_default();
            if let Some(address) = r.string("bind_address").filter(|text| !text.is_empty()) {
                config.bind_address = address.trim_matches(['[', ']']).to_owned();
            }
            if r.string("bind_port").is_some_and(|port| !port.is_empty()) {
                config.bind_port = r.port("bind_port").unwrap_or(config.bind_port);
            }
            for (key, path) in [("live_path", &mut config.live_path), ("ready_path", &mut config.ready_path)]
            {
                if let Some(given) = r.string(key).filter(|text| !text.is_empty()) {
                    *path = given;
                }
                if !path.starts_with('/') {
                    r.error(key, "a path starts with /");
                }
            }
            r.finish(Unknown::Refuse);
        });
        config
    }
}

/// The `telemetry` block.
#[derive(Clone, Debug, Default)]
pub struct TelemetryConfig {
    /// The Prometheus sink, if configured.
    pub prometheus: Option<PrometheusConfig>,
    /// `MetricPrefix`, in place of the daemon's own.
    pub prefix: Option<String>,
    /// `EnableTrustDomainLabel`, off by default.
    pub trust_domain_label: bool,
    /// `EnableHostnameLabel`, on by default.
    pub host_label: bool,
    /// Allowed and blocked prefixes and labels.
    pub filter: Filter,
}

/// The `Prometheus` block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrometheusConfig {
    /// Host to listen at.
    pub host: String,
    /// Port to listen at.
    pub port: u16,
    /// TLS, if configured.
    pub tls: Option<PrometheusTls>,
}

/// The `tls` block within `Prometheus`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrometheusTls {
    /// PEM file with the server's certificate; empty with `use_spire_svid`.
    pub cert_file: String,
    /// PEM file with its key; empty with `use_spire_svid`.
    pub key_file: String,
    /// PEM file with the authorities of client certificates, which are then required.
    pub client_ca_file: String,
    /// The daemon's own SVID serves.
    pub use_spire_svid: bool,
    /// SPIFFE IDs that may scrape, which then need a certificate.
    pub authorized_spiffe_ids: Vec<String>,
}

impl TelemetryConfig {
    /// Reads the block of the file at hand.
    pub fn read(r: &mut Reader) -> Self {
        let mut config = Self { host_label: true, ..Self::default() };
        r.block("telemetry", |r| {
            config.prometheus = r.block("Prometheus", PrometheusConfig::read);
            r.ignored(
                &["DogStatsd", "Statsd", "M3", "InMem"],
                "this sink is not built into this version; it gets no metrics",
            );
            config.prefix = r.string("MetricPrefix").filter(|text| !text.is_empty());
            config.trust_domain_label = r.bool("EnableTrustDomainLabel").unwrap_or_default();
            config.host_label = r.bool("EnableHostnameLabel").unwrap_or(true);
            config.filter = Filter {
                allowed_prefixes: r.strings("AllowedPrefixes").unwrap_or_default(),
                blocked_prefixes: r.strings("BlockedPrefixes").unwrap_or_default(),
                allowed_labels: r.strings("AllowedLabels").unwrap_or_default(),
                blocked_labels: r.strings("BlockedLabels").unwrap_or_default(),
            };
            r.finish(Unknown::Warn);
        });
        config
    }
}

impl PrometheusConfig {
    fn read(r: &mut Reader) -> Self {
        let host = r.string("host").filter(|host| !host.is_empty()).unwrap_or_else(|| "localhost".into());
        let port = r.port("port").unwrap_or_default();
        let tls = r.block("tls", PrometheusTls::read);
        r.finish(Unknown::Refuse);
        Self { host, port, tls }
    }
}

impl PrometheusTls {
    fn read(r: &mut Reader) -> Self {
        let mut text = |key| r.string(key).unwrap_or_default();
        let (cert_file, key_file, client_ca_file) =
            (text("cert_file"), text("key_file"), text("client_ca_file"));
        let use_spire_svid = r.bool("use_spire_svid").unwrap_or_default();
        let authorized_spiffe_ids = r.strings("authorized_spiffe_ids").unwrap_or_default();
        let (some, both) =
            (!(cert_file.is_empty() && key_file.is_empty()), !(cert_file.is_empty() || key_file.is_empty()));
        if use_spire_svid && some {
            r.error(
                "use_spire_svid",
                "cert_file and key_file cannot be configured when use_spire_svid is enabled",
            );
        }
        if !use_spire_svid && !both {
            r.error(
                "cert_file",
                "cert_file and key_file must both be configured unless use_spire_svid is enabled",
            );
        }
        if !authorized_spiffe_ids.is_empty() && !client_ca_file.is_empty() {
            r.error("client_ca_file", "client_ca_file cannot be configured with authorized_spiffe_ids");
        }
        // SPIRE does not look here.
        r.finish(Unknown::Warn);
        Self { cert_file, key_file, client_ca_file, use_spire_svid, authorized_spiffe_ids }
    }
}

/// One plugin of the `plugins` section.
#[derive(Clone, Debug, PartialEq)]
pub struct PluginConfig {
    /// `NodeAttestor`, `KeyManager` and so on.
    pub kind: String,
    /// `join_token`, `disk` and so on.
    pub name: String,
    /// `plugin_cmd`: an external plugin's program.
    pub cmd: Option<String>,
    /// `plugin_args`.
    pub args: Vec<String>,
    /// `plugin_checksum`: SHA-256 of the program in hex.
    pub checksum: Option<String>,
    /// Its configuration.
    pub data: PluginData,
    /// `enabled`, true by default.
    pub enabled: bool,
    /// Line in the file.
    pub line: u32,
}

/// Where a plugin's configuration is.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum PluginData {
    /// There is none.
    #[default]
    None,
    /// `plugin_data`.
    Inline(Body),
    /// `plugin_data_file`, read again at SIGUSR1.
    File(PathBuf),
}

/// Reads the `plugins` section of the file at hand, in order. Duplicates are mistakes.
pub fn read_plugins(r: &mut Reader) -> Vec<PluginConfig> {
    let plugins = r.blocks_labelled_twice("plugins", read_plugin);
    for (at, plugin) in plugins.iter().enumerate() {
        let same = |other: &PluginConfig| other.kind == plugin.kind && other.name == plugin.name;
        if plugins[..at].iter().any(same) {
            let PluginConfig { kind, name, line, .. } = plugin;
            r.error(
                "plugins",
                format!("plugin {kind:?}/{name:?} declared more than once (again in line {line})"),
            );
        }
    }
    plugins
}

fn read_plugin(kind: &str, name: &str, r: &mut Reader) -> PluginConfig {
    let inline = r.raw("plugin_data");
    let file = r.string("plugin_data_file");
    let data = match (inline, file) {
        (Some(_), Some(_)) => {
            r.error("plugin_data_file", "only one of [plugin_data, plugin_data_file] can be used");
            PluginData::None
        }
        (Some(body), None) => PluginData::Inline(body),
        (None, Some(path)) => PluginData::File(path.into()),
        (None, None) => PluginData::None,
    };
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let plugin = PluginConfig {
        kind: kind.to_owned(),
        name: name.to_owned(),
        cmd: given(r.string("plugin_cmd")),
        args: r.strings("plugin_args").unwrap_or_default(),
        checksum: given(r.string("plugin_checksum")),
        data,
        enabled: r.bool("enabled").unwrap_or(true),
        line: r.line(),
    };
    r.finish(Unknown::Warn);
    plugin
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use svid_core::hcl::{decode, parse};

    use super::*;
    use crate::log::{LogFormat, LogLevel};

    const SAMPLE: &str = r#"
log_level = "debug"
log_format = "json"
health_checks { listener_enabled = true bind_port = "8080" live_path = "/l" }
telemetry {
    Prometheus { host = "0.0.0.0" port = 9988 tls { cert_file = "c" } }
    Statsd = [{ address = "x" }]
    AllowedLabels = ["a"]
}
plugins {
    KeyManager "disk" { plugin_data { keys_path = "k" } }
    KeyManager "disk" { plugin_data_file = "f" }
    NodeAttestor "x" { plugin_cmd = "/bin/x" plugin_args = ["-v"] plugin_checksum = "00" enabled = false }
}
"#;

    #[test]
    fn reads_shared_sections() {
        let body = parse(SAMPLE).unwrap();
        let ((log, health, telemetry, plugins), report) = decode(&body, |r| {
            let all = (LogConfig::read(r), HealthConfig::read(r), TelemetryConfig::read(r), read_plugins(r));
            r.finish(Unknown::Refuse);
            all
        });
        let options = log.options().unwrap();
        assert_eq!((options.level, options.format), (LogLevel::Debug, LogFormat::Json));
        assert!(health.listener_enabled);
        assert_eq!(
            (health.bind_port, health.live_path.as_str(), health.ready_path.as_str()),
            (8080, "/l", "/ready")
        );
        let prometheus = telemetry.prometheus.unwrap();
        assert_eq!((prometheus.host.as_str(), prometheus.port), ("0.0.0.0", 9988));
        assert_eq!(telemetry.filter.allowed_labels, ["a"]);
        assert_eq!(plugins.len(), 3);
        assert!(matches!(plugins[0].data, PluginData::Inline(_)));
        assert_eq!(plugins[1].data, PluginData::File("f".into()));
        assert_eq!((plugins[2].cmd.as_deref(), plugins[2].enabled), (Some("/bin/x"), false));
        let errors: Vec<_> = report.errors.iter().map(ToString::to_string).collect();
        assert_eq!(errors.len(), 2, "{errors:?}");
        assert!(
            errors[0]
                .starts_with("line 6: telemetry.Prometheus.tls.cert_file: cert_file and key_file must both")
        );
        assert!(errors[1].contains("\"KeyManager\"/\"disk\" declared more than once"));
        assert_eq!(report.warnings.len(), 1);
    }
}
