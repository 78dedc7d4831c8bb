//! The `server` section.

use std::path::PathBuf;
use std::time::Duration;

use svid_core::hcl::{Reader, Unknown};
use svid_core::id::{SpiffeId, TrustDomain};
use svid_core::key::KeyType;
use svid_daemon::log::LogError;

use super::flags::RunFlags;
use super::{
    CaSettings, DEFAULT_SOCKET_PATH, HealthConfig, LogConfig, LogOptions, NodePruning, Plugins, RateLimits,
    ServerConfig, TelemetryConfig, federation,
};
use crate::federation::config::FederationConfig;

const HOUR: Duration = Duration::from_secs(3600);
/// How long memory may answer alone when the database is away.
const MAX_STALE: Duration = HOUR;
const NOTHING: &str = "has no effect: this server keeps its view of the database up to date by itself";

/// The section with defaults filled in. What is `None` was missing, and that was recorded as a mistake.
pub(super) struct ServerSection {
    pub(super) data_dir: Option<PathBuf>,
    trust_domain: Option<TrustDomain>,
    bind_address: String,
    bind_port: u16,
    socket_path: PathBuf,
    admin_ids: Vec<SpiffeId>,
    audit_log_enabled: bool,
    agent_ttl: Option<Duration>,
    ca: CaSettings,
    log: LogOptions,
    ratelimit: RateLimits,
    node_pruning: Option<NodePruning>,
    new_trust_domain: bool,
    federation: FederationConfig,
    experimental: Experimental,
}

#[derive(Default)]
struct Experimental {
    agent_spiffe_id_as_selector: bool,
    require_pq_kem: bool,
    max_stale: Option<Duration>,
}

pub(super) fn assemble(
    server: ServerSection,
    plugins: Plugins,
    telemetry: TelemetryConfig,
    health: HealthConfig,
) -> Option<ServerConfig> {
    Some(ServerConfig {
        trust_domain: server.trust_domain?,
        data_dir: server.data_dir?,
        bind_address: server.bind_address,
        bind_port: server.bind_port,
        socket_path: server.socket_path,
        admin_ids: server.admin_ids,
        audit_log_enabled: server.audit_log_enabled,
        agent_ttl: server.agent_ttl,
        ca: server.ca,
        log: server.log,
        ratelimit: server.ratelimit,
        node_pruning: server.node_pruning,
        new_trust_domain: server.new_trust_domain,
        agent_spiffe_id_as_selector: server.experimental.agent_spiffe_id_as_selector,
        require_pq_kem: server.experimental.require_pq_kem,
        max_stale: server.experimental.max_stale.unwrap_or(MAX_STALE),
        federation: server.federation,
        plugins,
        telemetry,
        health,
    })
}

pub(super) fn read(r: &mut Reader, flags: &RunFlags) -> ServerSection {
    let experimental = r.block("experimental", read_experimental).unwrap_or_default();
    let bind_port = r.port("bind_port").filter(|port| *port != 0);
    let ca = read_ca(r);
    let agent_ttl = ttl(r, "agent_ttl");
    let trust_domain = trust_domain(r, flags);
    let federation =
        r.block("federation", |r| federation::read(r, trust_domain.as_ref())).unwrap_or_default();
    let section = ServerSection {
        data_dir: data_dir(r, flags),
        trust_domain,
        bind_address: bind_address(r, flags),
        bind_port: flags.server_port.or(bind_port).unwrap_or(8081),
        socket_path: socket_path(r, flags),
        admin_ids: admin_ids(r),
        audit_log_enabled: r.bool("audit_log_enabled").unwrap_or_default(),
        agent_ttl,
        ca,
        log: read_log(r, flags),
        ratelimit: r
            .block("ratelimit", read_ratelimit)
            .unwrap_or(RateLimits { attestation: true, signing: true }),
        node_pruning: node_pruning(r),
        new_trust_domain: flags.new_trust_domain,
        federation,
        experimental,
    };
    read_without_effect(r);
    r.finish(Unknown::Refuse);
    section
}

fn read_without_effect(r: &mut Reader) {
    if let Some(cidrs) = r.strings("proxy_protocol_trusted_cidrs") {
        for cidr in cidrs.iter().filter(|cidr| !is_cidr(cidr)) {
            r.error(
                "proxy_protocol_trusted_cidrs",
                format!("invalid proxy_protocol_trusted_cidrs value {cidr:?}"),
            );
        }
        if !cidrs.is_empty() {
            r.warn(
                "proxy_protocol_trusted_cidrs",
                "is not built yet: PROXY headers are refused from everybody",
            );
        }
    }
    if r.duration("max_attested_node_info_staleness").is_some() {
        r.warn(
            "max_attested_node_info_staleness",
            "has no effect: agents are always checked against current state",
        );
    }
    let profiling = ["profiling_enabled", "profiling_port", "profiling_freq", "profiling_names"];
    r.ignored(&profiling, "has no effect: this server has no Go profiler");
    r.ignored(&["named_pipe_name"], "has no effect: named pipes exist on Windows only");
}

fn is_cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let (Ok(address), Ok(bits)) = (address.parse::<std::net::IpAddr>(), bits.parse::<u8>()) else {
        return false;
    };
    bits <= if address.is_ipv4() { 32 } else { 128 }
}

/// The flag's value, else the key's; an empty string counts as absent. The key is known either way.
fn text(r: &mut Reader, key: &str, flag: Option<&String>) -> Option<String> {
    let value = r.string(key).filter(|value| !value.is_empty());
    flag.cloned().or(value)
}

fn data_dir(r: &mut Reader, flags: &RunFlags) -> Option<PathBuf> {
    let value = r.string("data_dir").filter(|value| !value.is_empty()).map(PathBuf::from);
    let value = flags.data_dir.clone().or(value);
    if value.is_none() {
        r.error("data_dir", "data_dir must be configured");
    }
    value
}

fn trust_domain(r: &mut Reader, flags: &RunFlags) -> Option<TrustDomain> {
    let Some(name) = text(r, "trust_domain", flags.trust_domain.as_ref()) else {
        r.error("trust_domain", "trust_domain must be configured");
        return None;
    };
    match TrustDomain::from_name_or_id(&name) {
        Ok(trust_domain) => Some(trust_domain),
        Err(error) => {
            r.error("trust_domain", format!("could not parse trust_domain {name:?}: {error}"));
            None
        }
    }
}

fn bind_address(r: &mut Reader, flags: &RunFlags) -> String {
    let address = text(r, "bind_address", flags.bind_address.as_ref());
    let address = address.unwrap_or_else(|| "0.0.0.0".into());
    address.trim_matches(['[', ']']).to_owned()
}

fn socket_path(r: &mut Reader, flags: &RunFlags) -> PathBuf {
    let value = r.string("socket_path").filter(|value| !value.is_empty()).map(PathBuf::from);
    let path = flags.socket_path.clone().or(value);
    path.unwrap_or_else(|| DEFAULT_SOCKET_PATH.into())
}

fn admin_ids(r: &mut Reader) -> Vec<SpiffeId> {
    let mut ids = Vec::new();
    for text in r.strings("admin_ids").unwrap_or_default() {
        match text.parse() {
            Ok(id) => ids.push(id),
            Err(error) => r.error("admin_ids", format!("could not parse admin ID {text:?}: {error}")),
        }
    }
    ids
}

/// A duration above zero; an empty string counts as absent.
fn ttl(r: &mut Reader, key: &str) -> Option<Duration> {
    if r.string(key)?.is_empty() {
        return None;
    }
    let value = r.duration(key)?;
    if value < Duration::from_secs(1) {
        r.error(key, "must be at least 1s");
        return None;
    }
    Some(value)
}

fn read_ca(r: &mut Reader) -> CaSettings {
    let ca_key_type = key_type(r, "ca_key_type").unwrap_or(KeyType::EcP256);
    let subject = r.block("ca_subject", read_subject).unwrap_or_default();
    if r.has("ca_subject") && subject == Default::default() {
        r.warn("ca_subject", "ca_subject configurable is set but empty; the default will be used");
    }
    let (country, organization, common_name) = match subject {
        empty if empty == Default::default() => (vec!["US".into()], vec!["SPIFFE".into()], String::new()),
        subject => subject,
    };
    CaSettings {
        ca_key_type,
        jwt_key_type: key_type(r, "jwt_key_type").unwrap_or(ca_key_type),
        ca_ttl: ttl(r, "ca_ttl").unwrap_or(24 * HOUR),
        country,
        organization,
        common_name,
        default_x509_svid_ttl: ttl(r, "default_x509_svid_ttl").unwrap_or(HOUR),
        default_jwt_svid_ttl: ttl(r, "default_jwt_svid_ttl").unwrap_or(Duration::from_secs(300)),
        disable_jwt_svids: r.bool("disable_jwt_svids").unwrap_or_default(),
        jwt_issuer: r.string("jwt_issuer").filter(|issuer| !issuer.is_empty()),
    }
}

fn read_subject(r: &mut Reader) -> (Vec<String>, Vec<String>, String) {
    let subject = (
        r.strings("country").unwrap_or_default(),
        r.strings("organization").unwrap_or_default(),
        r.string("common_name").unwrap_or_default(),
    );
    r.finish(Unknown::Refuse);
    subject
}

fn key_type(r: &mut Reader, key: &str) -> Option<KeyType> {
    let name = r.string(key).filter(|name| !name.is_empty())?;
    match name.parse() {
        Ok(kind) => Some(kind),
        Err(error) => {
            r.error(key, format!("error parsing {key}: {error}"));
            None
        }
    }
}

fn read_log(r: &mut Reader, flags: &RunFlags) -> LogOptions {
    let mut log = LogConfig::read(r);
    log.level = flags.log_level.clone().or(log.level);
    log.format = flags.log_format.clone().or(log.format);
    log.source_location |= flags.log_source_location;
    let mut options = log.options().unwrap_or_else(|error| {
        let key = if matches!(error, LogError::Format(_)) { "log_format" } else { "log_level" };
        r.error(key, error.to_string());
        LogOptions::default()
    });
    options.file = flags.log_file.clone().or(options.file);
    options
}

fn read_ratelimit(r: &mut Reader) -> RateLimits {
    let limits = RateLimits {
        attestation: r.bool("attestation").unwrap_or(true),
        signing: r.bool("signing").unwrap_or(true),
    };
    r.finish(Unknown::Refuse);
    limits
}

fn node_pruning(r: &mut Reader) -> Option<NodePruning> {
    let tofu = r.bool("prune_tofu_nodes").unwrap_or_default();
    let batch = r.int("prune_attested_nodes_batch_size").filter(|size| *size != 0).unwrap_or(1000);
    let batch_size = u32::try_from(batch).unwrap_or_else(|_| {
        r.error("prune_attested_nodes_batch_size", "must be above 0");
        1000
    });
    r.string("prune_attested_nodes_expired_for").filter(|text| !text.is_empty())?;
    let expired_for = r.duration("prune_attested_nodes_expired_for")?;
    Some(NodePruning { expired_for, batch_size, tofu })
}

fn read_experimental(r: &mut Reader) -> Experimental {
    let experimental = Experimental {
        agent_spiffe_id_as_selector: r.bool("agent_spiffe_id_as_selector").unwrap_or_default(),
        require_pq_kem: r.bool("require_pq_kem").unwrap_or_default(),
        max_stale: ttl(r, "max_stale"),
    };
    if r.has("event_timeout") && r.has("sql_transaction_timeout") {
        let both = "both experimental sql_transaction_timeout and event_timeout set, only set event_timeout";
        r.error("event_timeout", both);
    }
    let timing = [
        "cache_reload_interval",
        "full_cache_reload_interval",
        "prune_events_older_than",
        "event_timeout",
        "sql_transaction_timeout",
    ];
    for key in timing {
        if r.has(key) && r.duration(key).is_some() {
            r.warn(key, NOTHING);
        }
    }
    r.ignored(&["events_based_cache"], NOTHING);
    if r.raw("auth_opa_policy_engine").is_some() {
        // A policy that is not applied would leave doors open that its author believes shut.
        r.error("auth_opa_policy_engine", "custom authorization policies are not built into this server");
    }
    r.ignored(&["wit_key_type", "wit_issuer"], "has no effect: WIT-SVIDs are not built into this server");
    for flag in r.strings("feature_flags").unwrap_or_default() {
        match flag.as_str() {
            "wit-svid" => r.warn("feature_flags", "\"wit-svid\" has no effect: WIT-SVIDs are not built"),
            _ => r.error("feature_flags", format!("unknown feature flag(s): {flag}")),
        }
    }
    r.ignored(&["named_pipe_name"], "has no effect: named pipes exist on Windows only");
    r.finish(Unknown::Warn);
    experimental
}
