//! SPIRE's configuration file for agents: HCL to checked values, all mistakes at once.

mod agent;
mod bootstrap;
mod experimental;
mod plugins;
mod types;

use std::fmt;
use std::path::{Path, PathBuf};

use svid_core::hcl::{self, HclError, Problem, Report, Unknown};
use svid_daemon::config::{HealthConfig, TelemetryConfig};

pub use types::*;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file does not exist.
    #[error("could not find config file {}: please use the -config flag", .0.display())]
    NotFound(PathBuf),
    /// The file cannot be read.
    #[error("unable to read configuration at {path:?}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file is no HCL 1.
    #[error("unable to decode configuration at {path:?}")]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        source: HclError,
    },
    /// Keys are missing, wrong, or do not go together.
    #[error("invalid configuration: {0}")]
    Invalid(Problems),
}

/// All mistakes of a file, in the order of their lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.0.iter().enumerate() {
            let separator = if at == 0 { "" } else { "; " };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

/// A checked configuration and what to warn about once there is a log.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: AgentConfig,
    /// Things that work differently from what the file may mean to say.
    pub warnings: Vec<Problem>,
}

/// What the command line says; it wins over the file. A flag can turn a switch on but not off.
#[derive(Clone, Debug, Default)]
pub struct Overlay {
    /// `-dataDir`
    pub data_dir: Option<String>,
    /// `-socketPath`
    pub socket_path: Option<String>,
    /// `-adminSocketPath`
    pub admin_socket_path: Option<String>,
    /// `-insecureBootstrap`
    pub insecure_bootstrap: bool,
    /// `-joinToken`
    pub join_token: Option<String>,
    /// `-joinTokenFile`
    pub join_token_file: Option<String>,
    /// `-logFile`
    pub log_file: Option<String>,
    /// `-logFormat`
    pub log_format: Option<String>,
    /// `-logLevel`
    pub log_level: Option<String>,
    /// `-logSourceLocation`
    pub log_source_location: bool,
    /// `-serverAddress`
    pub server_address: Option<String>,
    /// `-serverPort`
    pub server_port: Option<u16>,
    /// `-trustDomain`
    pub trust_domain: Option<String>,
    /// `-trustBundle`
    pub trust_bundle_path: Option<String>,
    /// `-trustBundleUrl`
    pub trust_bundle_url: Option<String>,
    /// `-trustBundleFormat`
    pub trust_bundle_format: Option<String>,
    /// `-allowUnauthenticatedVerifiers`
    pub allow_unauthenticated_verifiers: bool,
    /// `-rebootstrapMode`
    pub rebootstrap_mode: Option<String>,
    /// `-rebootstrapDelay`
    pub rebootstrap_delay: Option<String>,
    /// `-expandEnv`: replace `$NAME` in the file before it is read.
    pub expand_env: bool,
    /// `-allowUnknownConfig`: unknown keys are warnings.
    pub allow_unknown: bool,
}

/// Reads and checks the file at `path`.
/// # Errors
/// [`ConfigError`].
pub fn load(path: &Path, overlay: &Overlay) -> Result<Loaded, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => {
            ConfigError::NotFound(std::path::absolute(path).unwrap_or_else(|_| path.to_owned()))
        }
        _ => ConfigError::Read { path: path.to_owned(), source },
    })?;
    let text = if overlay.expand_env { hcl::expand_env(&text) } else { text };
    parse(&text, path, overlay)
}

/// Checks a configuration text; `path` is for messages.
/// # Errors
/// [`ConfigError::Syntax`] and [`ConfigError::Invalid`].
pub fn parse(text: &str, path: &Path, overlay: &Overlay) -> Result<Loaded, ConfigError> {
    let body = hcl::parse(text).map_err(|source| ConfigError::Syntax { path: path.to_owned(), source })?;
    let unknown = if overlay.allow_unknown { Unknown::Warn } else { Unknown::Refuse };
    let (config, report) = hcl::decode(&body, |file| {
        let telemetry = TelemetryConfig::read(file);
        let health = HealthConfig::read(file);
        let config = file.block("agent", |block| agent::read(block, overlay, unknown));
        if config.is_none() {
            file.error("agent", "agent section must be configured");
        }
        let has_token = config
            .as_ref()
            .is_some_and(|config| config.as_ref().is_some_and(|config| config.join_token.is_some()));
        let plugins = plugins::read(file, has_token);
        file.finish(unknown);
        let (mut config, plugins) = (config.flatten()?, plugins?);
        config.plugins = plugins;
        config.telemetry = telemetry;
        config.health = health;
        Some(config)
    });
    finish(config, report)
}

fn finish(config: Option<AgentConfig>, report: Report) -> Result<Loaded, ConfigError> {
    match config {
        Some(config) if report.errors.is_empty() => Ok(Loaded { config, warnings: report.warnings }),
        _ => Err(ConfigError::Invalid(Problems(report.errors))),
    }
}

#[cfg(test)]
mod tests;
