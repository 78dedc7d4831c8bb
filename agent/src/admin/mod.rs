//! The admin socket: debug facts, the log level, and the status that `svidctl` shows.
//!
//! Who may open the socket (mode 0770) may use it. The Delegated Identity API is not built yet: it answers
//! Unimplemented, as every service that is not registered does.

mod debug;
pub mod logger;
mod measure;
mod status;

use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use svid_core::bundle::Bundle;
use svid_core::clock::Clock;
use svid_core::id::TrustDomain;
use svid_core::x509::X509Svid;
use svid_daemon::log::LogControl;
use svid_daemon::metrics::Metrics;
use svid_daemon::peer::{BindError, PeerOptions, SocketFile, adopt_private, bind_private, incoming};
use svid_proto::spire::agent::debug::v1::debug_server::DebugServer;
use svid_proto::spire::api::agent::logger::v1::logger_server::LoggerServer;
use svid_proto::svid::status::v1::agent_status_server::AgentStatusServer;
use tokio_util::sync::CancellationToken;

use crate::cache::Cache;
use crate::workload_api::metrics::SocketMetrics;

use debug::DebugService;
use logger::LoggerService;
use measure::Measured;
use status::StatusService;

/// How long open calls may take to end once the agent stops.
const DRAIN: Duration = Duration::from_secs(2);

/// What the running agent knows of itself at one moment.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The agent's own SVID.
    pub svid: Arc<X509Svid>,
    /// The own trust domain's bundle.
    pub bundle: Arc<Bundle>,
    /// Since the process started.
    pub uptime: Duration,
    /// Unix seconds, 0 for never.
    pub last_sync_success: i64,
    /// The node can attest again by itself.
    pub reattestable: bool,
    /// host:port.
    pub server_address: String,
    /// The last call to the server succeeded.
    pub connected: bool,
    /// The server pushes.
    pub watch_active: bool,
    /// How callers are identified: `pidfd`, or what stands in for it.
    pub peer_identification: String,
    /// When the first X509-SVID of a workload ends.
    pub first_svid_end: Option<SystemTime>,
    /// When a server last answered.
    pub last_contact: Option<SystemTime>,
    /// Sentences for people, most urgent first.
    pub warnings: Vec<String>,
}

/// Where the facts come from.
pub trait AgentFacts: Send + Sync + 'static {
    /// The facts now.
    fn facts(&self) -> Facts;
}

/// Why the admin socket is not served.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// It cannot be created.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The server broke off.
    #[error("the admin socket failed")]
    Serve(#[from] tonic::transport::Error),
}

/// What the admin socket is served with.
pub struct AdminConfig {
    /// Where it lies.
    pub socket_path: PathBuf,
    /// The socket, if the service manager made it.
    pub passed: Option<Arc<StdListener>>,
    /// The own trust domain.
    pub trust_domain: TrustDomain,
    /// Where now comes from.
    pub clock: Clock,
    /// The running log.
    pub log: LogControl,
    /// Counts calls.
    pub metrics: Metrics,
}

/// A passed socket, or one of our own with what removes it: also when this future is dropped because the agent fails.
fn listen(
    passed: Option<&StdListener>,
    path: &Path,
) -> Result<(tokio::net::UnixListener, Option<SocketFile>), BindError> {
    let Some(passed) = passed else {
        return Ok((bind_private(path, 0o770, 0o750)?, Some(SocketFile::new(path))));
    };
    let copy = passed.try_clone().map_err(|source| BindError::System { path: path.into(), source })?;
    Ok((adopt_private(copy, path, 0o770)?, None))
}

/// Serves the socket until `shutdown`.
/// # Errors
/// [`AdminError`].
pub async fn serve(
    config: AdminConfig,
    cache: Cache,
    facts: Arc<dyn AgentFacts>,
    shutdown: CancellationToken,
) -> Result<(), AdminError> {
    let (listener, _file) = listen(config.passed.as_deref(), &config.socket_path)?;
    tracing::info!(address = %config.socket_path.display(), network = "unix", "Starting Admin APIs");
    let debug = DebugService::new(cache.clone(), Arc::clone(&facts), config.clock);
    let status = StatusService::new(config.trust_domain, cache, facts);
    let stop = shutdown.clone();
    let metrics = Arc::new(SocketMetrics::new(&config.metrics));
    let measured = move |inner| Measured { inner, metrics: Arc::clone(&metrics) };
    let serving = tonic::transport::Server::builder()
        .layer(tower::layer::layer_fn(measured))
        .add_service(DebugServer::new(debug))
        .add_service(LoggerServer::new(LoggerService::new(config.log)))
        .add_service(AgentStatusServer::new(status))
        .serve_with_incoming_shutdown(incoming(listener, PeerOptions::default()), stop.cancelled_owned());
    let drained = async {
        shutdown.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        served = serving => Ok(served?),
        () = drained => Ok(()),
    }
}
