//! Wiring: builds the parts in order and runs them until told to stop.

mod error;
mod federation;
mod identity;
mod parts;
mod presence;
pub mod restore;
mod telemetry;
mod tls;

use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use svid_core::clock::Clock;
use svid_core::hcl::Problem;
use svid_core::id::TrustDomain;
use svid_daemon::harden::{Hardened, harden, lock_data_dir};
use svid_daemon::log::LogControl;
use svid_daemon::metrics::Metrics;
use svid_daemon::peer::{PeerOptions, bind_private};
use svid_daemon::{log, net, peer, signals};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::api::authorize::{AuthorizeLayer, Gate};
use crate::api::metrics::RpcMetrics;
use crate::api::vouch::Vouch;
use crate::api::{self, Context, caller};
use crate::attest::Clones;
use crate::ca::{Ca, StoredCa};
use crate::clock_guard::ClockGuard;
use crate::config::{self, RunFlags, ServerConfig};
use crate::directory::Directory;
use crate::store::{ServerFacts, Store};

pub use error::RunError;
use presence::Presence;

/// How long calls may go on after the order to stop.
const GRACE: Duration = Duration::from_secs(10);
/// Modes of the admin socket and its directory, as in SPIRE.
const SOCKET_MODE: u32 = 0o770;
const SOCKET_DIR_MODE: u32 = 0o750;

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
    let server_id = identity::server_id(&config.data_dir)?;
    let store = parts::open_store(&config).await?;
    store.count_into(&metrics);
    identity::check_served(&store, &config.data_dir, &config.trust_domain, config.new_trust_domain).await?;
    let facts = ServerFacts {
        address: parts::shown_address(&config),
        version: env!("CARGO_PKG_VERSION").into(),
        started_at: clock.unix(),
        ..ServerFacts::default()
    };
    let presence = tokio::select! {
        claimed = Presence::claim(&store, &server_id, &config.data_dir, facts.clone()) => claimed?,
        () = stop.cancelled() => return Ok(()),
    };
    let clock_guard = ClockGuard::new(clock.clone());
    let (directory, following) = Directory::start(store.clone(), &config.trust_domain, clock.clone()).await?;
    spawn("the directory", stop, following.run());
    spawn("giving memory back", stop, svid_daemon::memory::give_back());
    let ca = Arc::new(OnceLock::new());
    let base = Base { clock, metrics, server_id, facts, store, directory, clock_guard, ca };
    let serving = serve_trust_domain(&config, log, &base, stop);
    tokio::pin!(serving);
    let ended = tokio::select! {
        ended = &mut serving => ended,
        () = presence.keep(&base.directory, &base.ca, &base.clock_guard) => {
            let taken = RunError::IdTaken(base.server_id.clone());
            tracing::error!(error = %taken, "Stopping");
            stop.cancel();
            serving.await.and(Err(taken))
        }
    };
    presence.release().await;
    ended
}

/// What stands before there is an authority.
struct Base {
    clock: Clock,
    metrics: Metrics,
    server_id: String,
    facts: ServerFacts,
    store: Store,
    directory: Directory,
    clock_guard: ClockGuard,
    /// Filled once it may sign.
    ca: Arc<OnceLock<Ca>>,
}

async fn serve_trust_domain(
    config: &ServerConfig,
    log: LogControl,
    base: &Base,
    stop: &CancellationToken,
) -> Result<(), RunError> {
    let ca = tokio::select! {
        ca = start_ca(config, base, stop) => ca?,
        // It may wait for long, and nothing is lost.
        () = stop.cancelled() => return Ok(()),
    };
    let ca = base.ca.get_or_init(|| ca).clone();
    identity::note_served(&config.data_dir, &config.trust_domain)?;
    base.directory.caught_up().await?; // the new authorities are in the view before anybody asks
    spawn("housekeeping", stop, parts::housekeeping(config, &base.store, &base.clock, &base.clock_guard));
    let roots = Arc::new(tls::DirectoryRoots::new(base.directory.clone()));
    let federation = federation::follow(config, base, roots.clone(), stop);
    let context = Arc::new(Context {
        trust_domain: config.trust_domain.clone(),
        store: base.store.clone(),
        directory: base.directory.clone(),
        ca,
        clock: base.clock.clone(),
        clock_guard: base.clock_guard.clone(),
        limits: api::ratelimit::Limits::new(config.ratelimit),
        waits: RpcMetrics::waits(&base.metrics),
        max_stale: config.max_stale,
        vouch: Vouch::by(roots.clone(), base.clock.clone()),
        attestors: parts::attestors(config, &base.directory, &base.clock),
        agent_spiffe_id_as_selector: config.agent_spiffe_id_as_selector,
        log,
        started: Instant::now(),
        server_id: base.server_id.clone(),
        facts: base.facts.clone(),
        federation,
        key_manager: config.plugins.key_manager.name(),
        watchers: api::sync::Watchers::default(),
        syncs: api::sync::Watchers::default(),
    });
    telemetry::start(config, &context, &base.metrics, stop).await?;
    federation::serve(config, &context, stop).await?;
    endpoints(config, &context, roots, &base.metrics, stop).await
}

async fn start_ca(config: &ServerConfig, base: &Base, stop: &CancellationToken) -> Result<Ca, RunError> {
    let keys = parts::key_manager(config, &base.metrics, &base.clock).await?;
    let upstream = parts::upstream(config, &base.clock).await?;
    let stored = StoredCa::new(base.store.clone(), config.trust_domain.clone(), base.server_id.clone());
    let ca_config = parts::ca_config(config, &base.metrics, &base.clock_guard);
    let (ca, rotating) = Ca::start(ca_config, keys, upstream, Arc::new(stored), base.clock.clone()).await?;
    spawn("the CA rotation", stop, rotating);
    if ca.has_upstream() {
        let watching = poke_on_change(base.directory.clone(), config.trust_domain.clone(), ca.clone());
        spawn("watching the bundle for the CA", stop, watching);
    }
    Ok(ca)
}

/// Has the CA look at the bundle at once when it changes, whoever changed it: another server's operator may have tainted
/// the root that this server's authority leads to.
async fn poke_on_change(directory: Directory, trust_domain: TrustDomain, ca: Ca) {
    // A look at memory.
    const INTERVAL: Duration = Duration::from_millis(200);
    let mut seen = None;
    loop {
        let now = directory.bundle(&trust_domain).map(|bundle| bundle.sequence_number);
        if now != seen {
            seen = now;
            ca.poke().await;
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Serves both listeners until told to stop.
async fn endpoints(
    config: &ServerConfig,
    context: &Arc<Context>,
    roots: Arc<tls::DirectoryRoots>,
    metrics: &Metrics,
    stop: &CancellationToken,
) -> Result<(), RunError> {
    let address = parts::address(&config.bind_address, config.bind_port);
    let listen = |source| RunError::Listen { address: address.clone(), source };
    let listener =
        TcpListener::bind((config.bind_address.as_str(), config.bind_port)).await.map_err(listen)?;
    let bound = listener.local_addr().map_err(listen)?;
    let socket = bind_private(&config.socket_path, SOCKET_MODE, SOCKET_DIR_MODE)?;
    let tls = tls::follow(config, context, roots, stop)?;
    let clones =
        Clones::new(context.store.clone(), context.directory.clone(), context.clock.clone(), metrics);
    let gate = Gate::new(
        context.directory.clone(),
        context.clock.clone(),
        config.admin_ids.iter().cloned(),
        config.audit_log_enabled,
        config.max_stale,
        context.vouch.clone(),
        RpcMetrics::new(metrics),
    );
    let gate = Arc::new(gate.watching(clones));
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
    let ends = async {
        stop.cancelled().await;
        context.directory.end_watches();
    };
    let (tcp, unix, ()) = tokio::join!(until_grace(tcp, stop), until_grace(unix, stop), ends);
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
