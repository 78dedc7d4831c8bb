//! The checked configuration: whoever holds one need not ask again.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use svid_core::hcl::Body;
use svid_core::id::{SpiffeId, TrustDomain};
use svid_core::key::KeyType;
use svid_daemon::config::{HealthConfig, TelemetryConfig};
use svid_daemon::log::LogOptions;
use zeroize::Zeroizing;

/// Everything a run needs. Source of names and defaults: SPIRE 1.15.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// The own trust domain.
    pub trust_domain: TrustDomain,
    /// Host name or address of the server.
    pub server_address: String,
    /// TCP port of the server.
    pub server_port: u16,
    /// Where the agent keeps its state.
    pub data_dir: PathBuf,
    /// Where the Workload API and SDS listen.
    pub socket_path: PathBuf,
    /// Where the admin APIs listen; not served when absent.
    pub admin_socket_path: Option<PathBuf>,
    /// Where the first trust bundle comes from.
    pub bootstrap: Bootstrap,
    /// What happens when the server's authority is unknown.
    pub rebootstrap: Rebootstrap,
    /// A token for the built-in `join_token` attestor; overrides the configured attestor.
    pub join_token: Option<JoinToken>,
    /// Log sink, format and level.
    pub log: LogOptions,
    /// Prefixes of selectors that may be printed when no identity is issued.
    pub log_selectors: Vec<String>,
    /// Names and switches of the SDS API.
    pub sds: SdsConfig,
    /// Do not serve the Workload API.
    pub disable_workload_api: bool,
    /// Do not serve SDS.
    pub disable_sds_api: bool,
    /// Type of the workloads' keys.
    pub workload_key_type: KeyType,
    /// Give bundles also to callers without an entry.
    pub allow_unauthenticated_verifiers: bool,
    /// Claims of foreign JWT-SVIDs that `ValidateJWTSVID` passes on.
    pub allowed_foreign_jwt_claims: Vec<String>,
    /// How much validity a workload's SVID should always have left.
    pub availability_target: Option<Duration>,
    /// Soft limit of the X.509 cache.
    pub x509_svid_cache_max_size: usize,
    /// Hard limit of the JWT cache.
    pub jwt_svid_cache_max_size: usize,
    /// Who may use the Delegated Identity API.
    pub authorized_delegates: Vec<SpiffeId>,
    /// How often to ask a server that does not push.
    pub sync_interval: Duration,
    /// How long a JWT-SVID request waits for the server when an unexpired token is cached.
    pub jwt_svid_cache_hit_timeout: Duration,
    /// Use `SyncAuthorizedEntries`; otherwise `GetAuthorizedEntries`.
    pub use_sync_authorized_entries: bool,
    /// Only speak TLS 1.3 with post-quantum key exchange.
    pub require_pq_kem: bool,
    /// Requests per second and caller, 0 for no limit.
    pub ratelimit: RateLimits,
    /// The plugins.
    pub plugins: Plugins,
    /// Metrics sinks.
    pub telemetry: TelemetryConfig,
    /// The health listener.
    pub health: HealthConfig,
    /// Keep SVIDs on the disk for the time after a restart without a server. Ours: `experimental.persist_svids`.
    pub persist_svids: bool,
    /// What tells this machine from others, if not `/etc/machine-id`. Ours: `experimental.machine_id_path`.
    pub machine_id_path: Option<PathBuf>,
    /// Port and switch of SPIRE's profiling, which is not built here.
    pub profiling_enabled: bool,
}

/// Where the first trust bundle comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bootstrap {
    /// Take the server's word for the first connection.
    Insecure,
    /// A file.
    File {
        /// Its path.
        path: PathBuf,
        /// Its format.
        format: BundleFormat,
    },
    /// An https URL, or an http URL asked over a Unix socket.
    Url {
        /// The address.
        url: String,
        /// The socket for an http URL.
        unix_socket: Option<PathBuf>,
        /// The answer's format.
        format: BundleFormat,
    },
}

/// How a trust bundle is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BundleFormat {
    /// PEM certificates.
    Pem,
    /// A SPIFFE bundle document.
    Spiffe,
}

/// What happens when the server's authority is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rebootstrap {
    /// When to give up the stored bundle.
    pub mode: RebootstrapMode,
    /// How long the authority must have been unknown.
    pub delay: Duration,
}

/// When to give up the stored bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RebootstrapMode {
    /// Never.
    Never,
    /// If the node can attest again.
    Auto,
    /// Always; a node that cannot attest again is refused.
    Always,
}

/// A join token: wiped on drop, silent in `Debug`.
#[derive(Clone)]
pub struct JoinToken(Zeroizing<String>);

impl JoinToken {
    /// Takes the token.
    pub fn new(token: String) -> Self {
        Self(Zeroizing::new(token))
    }

    /// The token, for the payload.
    pub fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinToken")
    }
}

/// Names and switches of the SDS API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SdsConfig {
    /// Resource that stands for the default X509-SVID.
    pub default_svid_name: String,
    /// Resource that stands for the default bundle.
    pub default_bundle_name: String,
    /// Resource that stands for all bundles.
    pub default_all_bundles_name: String,
    /// Plain validation contexts instead of Envoy's SPIFFE validator.
    pub disable_spiffe_cert_validation: bool,
}

impl Default for SdsConfig {
    fn default() -> Self {
        Self {
            default_svid_name: "default".into(),
            default_bundle_name: "ROOTCA".into(),
            default_all_bundles_name: "ALL".into(),
            disable_spiffe_cert_validation: false,
        }
    }
}

/// Requests per second and caller; 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// `FetchX509SVID`.
    pub fetch_x509_svid: u32,
    /// `FetchJWTSVID`.
    pub fetch_jwt_svid: u32,
    /// `FetchX509Bundles`.
    pub fetch_x509_bundles: u32,
    /// `FetchJWTBundles`.
    pub fetch_jwt_bundles: u32,
    /// SDS `StreamSecrets`.
    pub stream_secrets: u32,
    /// SDS `FetchSecrets`.
    pub fetch_secrets: u32,
}

/// The plugins of a run.
#[derive(Clone, Debug)]
pub struct Plugins {
    /// Where the agent's own key lives.
    pub key_manager: KeyManagerConfig,
    /// How the node proves what it is; `None` only beside a join token.
    pub node_attestor: Option<NodeAttestorConfig>,
    /// How callers are recognised. Never empty.
    pub workload_attestors: Vec<WorkloadAttestorConfig>,
}

/// Where the agent's own key lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyManagerConfig {
    /// In `keys.json` in this directory.
    Disk(PathBuf),
    /// In memory.
    Memory,
}

/// How the node proves what it is.
#[derive(Clone, Debug)]
pub enum NodeAttestorConfig {
    /// With a join token (from `join_token` or `join_token_file`).
    JoinToken,
    /// With a certificate; the block is read by the plugin.
    X509Pop(Body),
}

/// How callers are recognised.
#[derive(Clone, Debug)]
pub enum WorkloadAttestorConfig {
    /// By what the kernel says of a process; the block is read by the plugin.
    Unix(Body),
}
