//! The server's configuration: SPIRE's HCL, read into one struct that was checked, with all mistakes at once.

mod data_store;
mod federation;
mod flags;
mod plugins;
mod section;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::Duration;

use svid_core::hcl::{self, HclError, Problem, Reader, Report, Unknown};
use svid_core::id::{SpiffeId, TrustDomain};
use svid_core::key::KeyType;
use svid_daemon::config::{HealthConfig, LogConfig, TelemetryConfig};
use svid_daemon::log::LogOptions;

use crate::federation::config::FederationConfig;
pub use flags::{FlagError, RunFlags};
pub use plugins::{KeyManagerChoice, NodeAttestorChoice, Plugins, UpstreamChoice};

/// Where SPIRE looks for the file when no flag names one, relative to the working directory.
pub const DEFAULT_CONFIG_PATH: &str = "conf/server/server.conf";
/// The admin socket when neither file nor flag names one.
pub const DEFAULT_SOCKET_PATH: &str = "/tmp/spire-server/private/api.sock";

/// A configuration that was checked as a whole.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// The trust domain this server is an authority of.
    pub trust_domain: TrustDomain,
    /// Directory for what must outlive the process.
    pub data_dir: PathBuf,
    /// Host or address of the TCP API.
    pub bind_address: String,
    /// Port of the TCP API.
    pub bind_port: u16,
    /// The admin socket.
    pub socket_path: PathBuf,
    /// SPIFFE IDs that may call admin RPCs over TCP.
    pub admin_ids: Vec<SpiffeId>,
    /// One line per API call.
    pub audit_log_enabled: bool,
    /// Lifetime of agents' SVIDs; the default X509-SVID lifetime when absent.
    pub agent_ttl: Option<Duration>,
    /// What the authority signs, and for how long.
    pub ca: CaSettings,
    /// Where log lines go.
    pub log: LogOptions,
    /// Which limits hold.
    pub ratelimit: RateLimits,
    /// Removal of agents that expired long ago; absent when off.
    pub node_pruning: Option<NodePruning>,
    /// A database that does not know the trust domain gets a new authority even if this data directory served it.
    pub new_trust_domain: bool,
    /// An agent's own ID becomes one of its node selectors.
    pub agent_spiffe_id_as_selector: bool,
    /// Only post-quantum key exchanges on the TCP port.
    pub require_pq_kem: bool,
    /// Without the database, memory alone may answer for this long.
    pub max_stale: Duration,
    /// Bundles of other trust domains, and our own for them.
    pub federation: FederationConfig,
    /// The plugins, by type.
    pub plugins: Plugins,
    /// Metrics.
    pub telemetry: TelemetryConfig,
    /// The HTTP health listener.
    pub health: HealthConfig,
}

/// What the authority signs, and for how long.
#[derive(Clone, Debug)]
pub struct CaSettings {
    /// Key type of the X.509 CA and of the server's own SVID.
    pub ca_key_type: KeyType,
    /// Key type of the JWT signer.
    pub jwt_key_type: KeyType,
    /// Lifetime of the CA and of JWT keys.
    pub ca_ttl: Duration,
    /// Subject country names.
    pub country: Vec<String>,
    /// Subject organisations.
    pub organization: Vec<String>,
    /// Subject common name; empty when not set.
    pub common_name: String,
    /// Lifetime of X509-SVIDs whose entry does not say.
    pub default_x509_svid_ttl: Duration,
    /// Lifetime of JWT-SVIDs whose entry does not say.
    pub default_jwt_svid_ttl: Duration,
    /// No JWT keys, no JWT-SVIDs.
    pub disable_jwt_svids: bool,
    /// The `iss` claim.
    pub jwt_issuer: Option<String>,
}

/// Which per-address limits hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimits {
    /// One attestation a second.
    pub attestation: bool,
    /// 500 signatures a second.
    pub signing: bool,
}

/// Removal of agents that expired long ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodePruning {
    /// How long ago.
    pub expired_for: Duration,
    /// How many in one transaction.
    pub batch_size: u32,
    /// Also agents that cannot attest again.
    pub tofu: bool,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A command line flag is wrong.
    #[error(transparent)]
    Flag(#[from] FlagError),
    /// The file does not exist.
    #[error("could not find config file {0}: please use the -config flag")]
    Missing(String),
    /// The file cannot be read.
    #[error("unable to read configuration at {path:?}: {source}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not HCL.
    #[error("unable to decode configuration at {path:?}: {source}")]
    Syntax {
        /// The file.
        path: String,
        /// Where and why.
        source: HclError,
    },
    /// The file says something that cannot be done. Every mistake is listed.
    #[error("{}", list(.0))]
    Invalid(Vec<Problem>),
}

fn list(problems: &[Problem]) -> String {
    problems
        .iter()
        .map(|problem| match problem.key.as_str() {
            "" => problem.message.clone(),
            _ => problem.to_string(),
        })
        .collect::<Vec<_>>()
        .join("\n")
}

/// A configuration and what should be logged about it once there is a log.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: ServerConfig,
    /// Keys that do nothing here, values that will not have the wished effect.
    pub warnings: Vec<Problem>,
}

/// Reads the file that `flags` name, or the default one, and lays the flags over it.
/// # Errors
/// [`ConfigError`] with every mistake.
pub fn load(flags: &RunFlags) -> Result<Loaded, ConfigError> {
    let path = flags.config.clone().unwrap_or_else(|| DEFAULT_CONFIG_PATH.into());
    let text = std::fs::read_to_string(&path).map_err(|source| unreadable(&path, source))?;
    parse(&text, &path, flags)
}

fn unreadable(path: &Path, source: std::io::Error) -> ConfigError {
    if source.kind() == std::io::ErrorKind::NotFound {
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        return ConfigError::Missing(absolute.display().to_string());
    }
    ConfigError::Read { path: path.display().to_string(), source }
}

/// Checks the text of a configuration file.
/// # Errors
/// [`ConfigError`] with every mistake.
pub fn parse(text: &str, path: &Path, flags: &RunFlags) -> Result<Loaded, ConfigError> {
    let expanded = flags.expand_env.then(|| hcl::expand_env(text));
    let body = hcl::parse(expanded.as_deref().unwrap_or(text))
        .map_err(|source| ConfigError::Syntax { path: path.display().to_string(), source })?;
    let (config, report) = hcl::decode(&body, |file| read_file(file, flags));
    finish(config, report)
}

fn finish(config: Option<ServerConfig>, report: Report) -> Result<Loaded, ConfigError> {
    match config {
        Some(config) if report.errors.is_empty() => Ok(Loaded { config, warnings: report.warnings }),
        _ => Err(ConfigError::Invalid(report.errors)),
    }
}

/// `None` only together with a recorded mistake.
fn read_file(file: &mut Reader, flags: &RunFlags) -> Option<ServerConfig> {
    let had_plugins = file.has("plugins");
    let server = file.block("server", |server| section::read(server, flags));
    let plugins = plugins::read(file);
    let telemetry = TelemetryConfig::read(file);
    let health = HealthConfig::read(file);
    if !had_plugins {
        file.error("plugins", "plugins section must be configured");
    }
    let server = match server {
        Some(server) => server,
        None => {
            file.error("server", "server section must be configured");
            return None;
        }
    };
    file.finish(Unknown::Refuse);
    section::assemble(server, plugins?, telemetry, health)
}
