//! Wiring: builds the parts in order and runs them until told to stop.

mod parts;
mod telemetry;
mod tls;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use svid_core::clock::Clock;
use svid_core::hcl::Problem;
use svid_daemon::harden::{HardenError, Hardened, harden, lock_data_dir};
use svid_daemon::log::{LogControl, LogError};
use svid_daemon::metrics::Metrics;
use svid_daemon::peer::{BindError, PeerOptions, bind_private};
use svid_daemon::{log, net, peer, signals};
use svid_plugin_api::PluginError;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::api::authorize::{AuthorizeLayer, Gate};
use crate::api::metrics::RpcMetrics;
use crate::api::{self, Context, caller};
use crate::ca::{Ca, CaError, StoredCa};
use crate::config::{self, ConfigError, RunFlags, ServerConfig};
use crate::directory::{Directory, Unavailable};
use crate::store::{Store, StoreError};

/// How long calls may go on after the order to stop.
const GRACE: Duration = Duration::from_secs(10);
/// Modes of the admin socket and its directory, as in SPIRE.
const SOCKET_MODE: u32 = 0o770;
const SOCKET_DIR_MODE: u32 = 0o750;

/// Why the server does not run, or ran no longer.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The process or its directories cannot be protected.
    #[error(transparent)]
    Harden(#[from] HardenError),
    /// The log cannot be written.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The database cannot be used.
    #[error("datastore")]
    Store(#[source] StoreError),
    /// The state cannot be loaded.
    #[error("the directory cannot be loaded")]
    Directory(#[from] Unavailable),
    /// The authority cannot start.
    #[error("the CA cannot start")]
    Ca(#[from] CaError),
    /// A plugin cannot be configured.
    #[error("{kind} {name:?}")]
    Plugin {
        /// The plugin's type.
        kind: &'static str,
        /// The plugin's name.
        name: &'static str,
        /// What it said.
        source: PluginError,
    },
    /// The metrics listener's TLS cannot be set up.
    #[error(transparent)]
    ScrapeTls(#[from] svid_daemon::tls::ScrapeTlsError),
    /// The TLS configuration cannot be built.
    #[error("the TLS configuration cannot be built")]
    Tls(#[from] svid_daemon::tls::TlsError),
    /// An address cannot be listened at.
    #[error("unable to listen at {address}")]
    Listen {
        /// The address.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The admin socket cannot be made.
    #[error("unable to create the admin socket")]
    Socket(#[from] BindError),
    /// gRPC ended by itself.
    #[error("the gRPC server ended")]
    Grpc(#[from] tonic::transport::Error),
    /// A file in the data directory cannot be used.
    #[error("cannot use {path}")]
    File {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The system refused something.
    #[error("{what}")]
    System {
        /// What was wanted.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// A task that must run ended.
    #[error("{0} ended unexpectedly")]
    TaskEnded(&'static str),
}

impl From<StoreError> for RunError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Runs the server until it is told to stop.
pub fn run(flags: RunFlags) -> ExitCode {
    let (config, log) = match prepare(&flags) {
        Ok(prepared) => prepared,
        Err(error) => {
            eprintln!("{}", svid_daemon::log::chain(&error));
            return ExitCode::FAILURE;
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let ended = match runtime {
        Ok(runtime) => runtime.block_on(serve(config, log)),
        Err(source) => Err(RunError::System { what: "unable to start threads", source }),
    };
    match ended {
        Ok(()) => {
            tracing::info!("Server stopped gracefully");
            ExitCode::SUCCESS
        }
        Err(error) => {
            tracing::error!(error = %svid_daemon::log::chain(&error), "Server crashed");
            ExitCode::FAILURE
        }
    }
}

fn prepare(flags: &RunFlags) -> Result<(ServerConfig, LogControl), RunError> {
    let hardened = harden()?;
    let loaded = config::load(flags)?;
    let log = log::init(&loaded.config.log)?;
    report(&hardened, &loaded.warnings);
    Ok((loaded.config, log))
}

fn report(hardened: &Hardened, warnings: &[Problem]) {
    if let Some(old) = hardened.old_umask {
        tracing::warn!("Current umask {old:#05o} is too permissive; setting umask {:#05o}", hardened.umask);
    }
    for warning in warnings {
        tracing::warn!(line = warning.line, key = %warning.key, "{}", warning.message);
    }
}

/// A part that runs until the server stops; when it ends before, the server stops as well.
fn spawn(name: &'static str, stop: &CancellationToken, task: impl Future<Output = ()> + Send + 'static) {
    let stop = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = task => {
                if !stop.is_cancelled() {
                    tracing::error!("{}", RunError::TaskEnded(name));
                    stop.cancel();
                }
            }
        }
    });
}

async fn serve(config: ServerConfig, log: LogControl) -> Result<(), RunError> {
    let reopen = log.clone();
    let on_usr2 = move || match reopen.reopen() {
        Ok(()) => tracing::info!("Log file reopened"),
        Err(error) => tracing::error!(error = %svid_daemon::log::chain(&error), "Failed to reopen log file"),
    };
    let stop = signals::install(|| {}, on_usr2)
        .map_err(|source| RunError::System { what: "unable to listen for signals", source })?;
    tracing::info!(
        data_dir = %config.data_dir.display(),
        trust_domain_id = %config.trust_domain.id(),
        version = env!("CARGO_PKG_VERSION"),
        "Configured"
    );
    let _lock = lock_data_dir(&config.data_dir)?;
    // Told to stop while starting up: that is no failure.
    tokio::select! {
        ended = start(config, log, &stop) => ended,
        () = stopped_early(&stop) => Ok(()),
    }
}

/// Once told to stop, everything gets its grace and a little more.
async fn stopped_early(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(GRACE + Duration::from_secs(1)).await;
    tracing::warn!("Stopping although calls are still open");
}

async fn start(config: ServerConfig, log: LogControl, stop: &CancellationToken) -> Result<(), RunError> {
    let clock = Clock::system();
    let metrics = telemetry::metrics(&config);
    let server_id = parts::server_id(&config.data_dir)?;
    let store = parts::open_store(&config).await?;
    store.count_into(&metrics);
    let holder = parts::claim(&store, &config, &server_id, &clock).await?;
    let (directory, following) = Directory::start(store.clone(), &config.trust_domain, clock.clone()).await?;
    spawn("the directory", stop, following.run());
    let attestors = parts::attestors(&config, &directory, &clock);
    let ca = start_ca(&config, &store, &server_id, &clock, &metrics, stop).await?;
    directory.caught_up().await?; // the new authorities are in the view before anybody asks
    spawn("housekeeping", stop, parts::housekeeping(&config, &store, &clock));
    spawn("the heartbeat", stop, parts::heartbeat(store.clone(), server_id.clone(), holder, clock.clone()));
    let context = Arc::new(Context {
        trust_domain: config.trust_domain.clone(),
        store,
        directory,
        ca,
        clock,
        limits: api::ratelimit::Limits::new(config.ratelimit),
        waits: RpcMetrics::waits(&metrics),
        max_stale: config.max_stale,
        attestors,
        agent_spiffe_id_as_selector: config.agent_spiffe_id_as_selector,
        log,
        started: Instant::now(),
        server_id,
        watchers: api::sync::Watchers::default(),
        syncs: api::sync::Watchers::default(),
    });
    telemetry::start(&config, &context, &metrics, stop).await?;
    endpoints(&config, &context, &metrics, stop).await
}

async fn start_ca(
    config: &ServerConfig,
    store: &Store,
    server_id: &str,
    clock: &Clock,
    metrics: &Metrics,
    stop: &CancellationToken,
) -> Result<Ca, RunError> {
    let keys = parts::key_manager(config, metrics)?;
    let upstream = parts::upstream(config, clock)?;
    let stored = Arc::new(StoredCa::new(store.clone(), config.trust_domain.clone(), server_id.to_owned()));
    let (ca, rotating) =
        Ca::start(parts::ca_config(config, metrics), keys, upstream, stored, clock.clone()).await?;
    spawn("the CA rotation", stop, rotating);
    Ok(ca)
}

/// Serves both listeners until told to stop.
async fn endpoints(
    config: &ServerConfig,
    context: &Arc<Context>,
    metrics: &Metrics,
    stop: &CancellationToken,
) -> Result<(), RunError> {
    let address = format!("{}:{}", bracketed(&config.bind_address), config.bind_port);
    let listen = |source| RunError::Listen { address: address.clone(), source };
    let listener =
        TcpListener::bind((config.bind_address.as_str(), config.bind_port)).await.map_err(listen)?;
    let bound = listener.local_addr().map_err(listen)?;
    let socket = bind_private(&config.socket_path, SOCKET_MODE, SOCKET_DIR_MODE)?;
    let tls = tls::follow(config, context, stop)?;
    let gate = Arc::new(Gate::new(
        context.directory.clone(),
        context.clock.clone(),
        config.admin_ids.iter().cloned(),
        config.audit_log_enabled,
        config.max_stale,
        RpcMetrics::new(metrics),
    ));
    let local = if config.audit_log_enabled { caller::audited_local_peer } else { caller::local_peer };
    let incoming = net::incoming(listener, net::TcpOptions::default(), move || Some(tls.load_full()));
    let tcp = net::tcp_server()
        .layer(AuthorizeLayer::new(gate.clone(), caller::tls_peer))
        .add_routes(api::tcp_routes(context))
        .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
    let unix = net::unix_server()
        .layer(AuthorizeLayer::new(gate, local))
        .add_routes(api::local_routes(context))
        .serve_with_incoming_shutdown(
            peer::incoming(socket, PeerOptions::default()),
            stop.clone().cancelled_owned(),
        );
    tracing::info!(subsystem_name = "endpoints", network = "tcp", address = %bound, "Starting Server APIs");
    let path = config.socket_path.display();
    tracing::info!(subsystem_name = "endpoints", network = "unix", address = %path, "Starting Server APIs");
    tell_ready();
    let (tcp, unix) = tokio::join!(until_grace(tcp, stop), until_grace(unix, stop));
    // A socket nobody listens at would make the next start look for its owner.
    let _ = std::fs::remove_file(&config.socket_path);
    tcp.and(unix)
}

/// Tells systemd, if that started this process: both listeners are open.
fn tell_ready() {
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!(%error, "Cannot tell the service manager that the server is ready");
    }
}

fn bracketed(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
}

/// Runs a server to its end. When it ends by itself, the other one is told to stop; once told, its open calls get
/// [`GRACE`].
async fn until_grace(
    server: impl Future<Output = Result<(), tonic::transport::Error>>,
    stop: &CancellationToken,
) -> Result<(), RunError> {
    let grace = async {
        stop.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    let ended = tokio::select! {
        ended = server => ended.map_err(RunError::from),
        () = grace => Ok(()),
    };
    stop.cancel();
    ended
}
