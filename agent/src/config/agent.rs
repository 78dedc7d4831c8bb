//! The `agent` section.

use std::path::{Path, PathBuf};
use std::time::Duration;

use svid_core::hcl::{Reader, Unknown};
use svid_core::id::{SpiffeId, TrustDomain};
use svid_core::key::KeyType;
use svid_daemon::config::{HealthConfig, LogConfig, TelemetryConfig};
use svid_daemon::log::{LogError, LogOptions};

use super::types::{AgentConfig, JoinToken, KeyManagerConfig, Plugins, SdsConfig};
use super::{Overlay, bootstrap, experimental};

const DEFAULT_SOCKET: &str = "/tmp/spire-agent/public/api.sock";
const DEFAULT_CACHE_SIZE: usize = 1000;
const MIN_AVAILABILITY_TARGET: Duration = Duration::from_secs(24 * 3600);
/// Largest join token file in bytes.
const MAX_TOKEN_FILE: u64 = 64 * 1024;

/// A string that is set on the command line or in the file; empty is not set.
pub(super) fn text(block: &mut Reader, key: &str, flag: Option<&String>) -> Option<String> {
    let from_file = block.string(key);
    flag.cloned().filter(|value| !value.is_empty()).or(from_file.filter(|value| !value.is_empty()))
}

/// Reads the section. `None` only together with a reported mistake.
pub(super) fn read(block: &mut Reader, overlay: &Overlay, unknown: Unknown) -> Option<AgentConfig> {
    let config = read_keys(block, overlay, unknown);
    // Also after a mistake: unknown keys are listed with the others.
    block.finish(unknown);
    config
}

/// Looks at every key, whatever mistakes there are.
fn read_keys(block: &mut Reader, overlay: &Overlay, unknown: Unknown) -> Option<AgentConfig> {
    let join_token = join_token(block, overlay);
    let server_address = required(block, "server_address", overlay.server_address.as_ref());
    let server_port = server_port(block, overlay);
    let trust_domain = trust_domain(block, overlay);
    let bootstrap = bootstrap::read(block, overlay);
    let rebootstrap = bootstrap::read_rebootstrap(block, overlay);
    let socket_path = text(block, "socket_path", overlay.socket_path.as_ref());
    let socket_path = PathBuf::from(socket_path.unwrap_or_else(|| DEFAULT_SOCKET.into()));
    let admin_socket_path = admin_socket(block, overlay, &socket_path);
    let experimental = experimental::read(block, unknown);
    let authorized_delegates = delegates(block, trust_domain.as_ref());
    let profiling_enabled = profiling(block);
    let data_dir = text(block, "data_dir", overlay.data_dir.as_ref()).unwrap_or_else(|| ".".into());
    Some(AgentConfig {
        data_dir: data_dir.into(),
        socket_path,
        admin_socket_path,
        rebootstrap,
        join_token,
        log: log(block, overlay),
        log_selectors: block.strings("log_selectors").unwrap_or_default(),
        sds: block.block("sds", |block| sds(block, unknown)).unwrap_or_default(),
        disable_workload_api: block.bool("disable_workload_api").unwrap_or_default(),
        disable_sds_api: block.bool("disable_sds_api").unwrap_or_default(),
        workload_key_type: workload_key_type(block),
        allow_unauthenticated_verifiers: overlay.allow_unauthenticated_verifiers
            | block.bool("allow_unauthenticated_verifiers").unwrap_or_default(),
        allowed_foreign_jwt_claims: block.strings("allowed_foreign_jwt_claims").unwrap_or_default(),
        availability_target: availability_target(block),
        x509_svid_cache_max_size: cache_size(block, "x509_svid_cache_max_size"),
        jwt_svid_cache_max_size: cache_size(block, "jwt_svid_cache_max_size"),
        authorized_delegates,
        sync_interval: experimental.sync_interval,
        jwt_svid_cache_hit_timeout: experimental.jwt_svid_cache_hit_timeout,
        use_sync_authorized_entries: experimental.use_sync_authorized_entries,
        require_pq_kem: experimental.require_pq_kem,
        ratelimit: experimental.ratelimit,
        persist_svids: experimental.persist_svids,
        machine_id_path: experimental.machine_id_path,
        plugins: Plugins {
            key_manager: KeyManagerConfig::Memory,
            node_attestor: None,
            workload_attestors: Vec::new(),
        },
        telemetry: TelemetryConfig::default(),
        health: HealthConfig::default(),
        profiling_enabled,
        trust_domain: trust_domain?,
        server_address: server_address?,
        server_port: server_port?,
        bootstrap: bootstrap?,
    })
}

fn required(block: &mut Reader, key: &str, flag: Option<&String>) -> Option<String> {
    let value = text(block, key, flag);
    if value.is_none() {
        block.error(key, format!("{key} must be configured"));
    }
    value
}

fn server_port(block: &mut Reader, overlay: &Overlay) -> Option<u16> {
    let present = block.has("server_port");
    let from_file = block.port("server_port");
    let port = overlay.server_port.filter(|port| *port != 0).or(from_file.filter(|port| *port != 0));
    // A port that does not read has been reported already.
    if port.is_none() && (!present || from_file == Some(0)) {
        block.error("server_port", "server_port must be configured");
    }
    port
}

fn trust_domain(block: &mut Reader, overlay: &Overlay) -> Option<TrustDomain> {
    let name = required(block, "trust_domain", overlay.trust_domain.as_ref())?;
    match TrustDomain::from_name_or_id(&name) {
        Ok(trust_domain) => Some(trust_domain),
        Err(error) => {
            block.error("trust_domain", format!("could not parse trust_domain {name:?}: {error}"));
            None
        }
    }
}

fn join_token(block: &mut Reader, overlay: &Overlay) -> Option<JoinToken> {
    let token = text(block, "join_token", overlay.join_token.as_ref());
    let file = text(block, "join_token_file", overlay.join_token_file.as_ref());
    match (token, file) {
        (Some(_), Some(_)) => {
            block.error("join_token", "only one of join_token or join_token_file can be specified, not both");
            None
        }
        (Some(token), None) => Some(JoinToken::new(token)),
        (None, Some(path)) => {
            read_token(Path::new(&path)).map_err(|message| block.error("join_token_file", message)).ok()
        }
        (None, None) => None,
    }
}

fn read_token(path: &Path) -> Result<JoinToken, String> {
    let unreadable = |error: std::io::Error| {
        format!("unable to read join token file {:?}: {error}", path.display().to_string())
    };
    if std::fs::metadata(path).map_err(unreadable)?.len() > MAX_TOKEN_FILE {
        return Err("join token file is larger than 64 KiB".into());
    }
    let content = zeroize::Zeroizing::new(std::fs::read_to_string(path).map_err(unreadable)?);
    match content.trim() {
        "" => Err("join token file is empty".into()),
        token => Ok(JoinToken::new(token.to_owned())),
    }
}

fn admin_socket(block: &mut Reader, overlay: &Overlay, workload: &Path) -> Option<PathBuf> {
    let admin = PathBuf::from(text(block, "admin_socket_path", overlay.admin_socket_path.as_ref())?);
    let directory = |path: &Path| {
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        absolute.parent().map(Path::to_owned).unwrap_or_default()
    };
    // Workloads mount that directory; the admin socket must not come along.
    if directory(&admin).starts_with(directory(workload)) {
        block.error("admin_socket_path", "admin socket cannot be in the same directory or a subdirectory as that containing the Workload API socket");
    }
    Some(admin)
}

fn log(block: &mut Reader, overlay: &Overlay) -> LogOptions {
    let config = LogConfig {
        file: text(block, "log_file", overlay.log_file.as_ref()),
        level: text(block, "log_level", overlay.log_level.as_ref()),
        format: text(block, "log_format", overlay.log_format.as_ref()),
        source_location: overlay.log_source_location | block.bool("log_source_location").unwrap_or_default(),
    };
    config.options().unwrap_or_else(|error| {
        let key = if matches!(error, LogError::Format(_)) { "log_format" } else { "log_level" };
        block.error(key, error.to_string());
        LogOptions::default()
    })
}

fn sds(block: &mut Reader, unknown: Unknown) -> SdsConfig {
    let default = SdsConfig::default();
    let sds = SdsConfig {
        default_svid_name: text(block, "default_svid_name", None).unwrap_or(default.default_svid_name),
        default_bundle_name: text(block, "default_bundle_name", None).unwrap_or(default.default_bundle_name),
        default_all_bundles_name: text(block, "default_all_bundles_name", None)
            .unwrap_or(default.default_all_bundles_name),
        disable_spiffe_cert_validation: block.bool("disable_spiffe_cert_validation").unwrap_or_default(),
    };
    if sds.default_bundle_name == sds.default_all_bundles_name {
        block.warn(
            "default_all_bundles_name",
            "has the same value as default_bundle_name and will be ignored; use distinct values or the defaults",
        );
    }
    block.finish(unknown);
    sds
}

fn workload_key_type(block: &mut Reader) -> KeyType {
    let Some(name) = text(block, "workload_x509_svid_key_type", None) else { return KeyType::EcP256 };
    match name.parse() {
        Ok(kind @ (KeyType::EcP256 | KeyType::EcP384 | KeyType::Rsa2048)) => kind,
        _ => {
            block.error(
                "workload_x509_svid_key_type",
                format!("workload key type {name:?} is unknown; must be one of [ec-p256, ec-p384, rsa-2048]"),
            );
            KeyType::EcP256
        }
    }
}

fn availability_target(block: &mut Reader) -> Option<Duration> {
    let target = block.duration("availability_target")?;
    if target < MIN_AVAILABILITY_TARGET {
        block.error("availability_target", "availability_target must be at least 24h0m0s");
    }
    Some(target)
}

fn cache_size(block: &mut Reader, key: &str) -> usize {
    let size = block.int(key).unwrap_or_default();
    if size < 0 {
        block.error(key, format!("{key} should not be negative"));
    }
    match usize::try_from(size) {
        Ok(0) | Err(_) => DEFAULT_CACHE_SIZE,
        Ok(size) => size,
    }
}

fn delegates(block: &mut Reader, trust_domain: Option<&TrustDomain>) -> Vec<SpiffeId> {
    let mut ids = Vec::new();
    for text in block.strings("authorized_delegates").unwrap_or_default() {
        let checked = text.parse::<SpiffeId>().and_then(|id| {
            trust_domain.map_or(Ok(()), |trust_domain| id.require_member(trust_domain)).map(|()| id)
        });
        match checked {
            Ok(id) => ids.push(id),
            Err(error) => block.error(
                "authorized_delegates",
                format!("error validating authorized delegate: {text:?}: {error}"),
            ),
        }
    }
    ids
}

fn profiling(block: &mut Reader) -> bool {
    let enabled = block.bool("profiling_enabled").unwrap_or_default();
    block.ignored(&["profiling_port", "profiling_freq", "profiling_names"], "profiling is not built");
    if enabled {
        block.warn("profiling_enabled", "profiling is not built");
    }
    enabled
}
