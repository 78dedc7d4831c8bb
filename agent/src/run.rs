//! `svid-agent run`: puts the parts together, in SPIRE's order of start.

mod budget;
mod facts;
mod listeners;
mod passed;
mod plugins;

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use svid_core::clock::Clock;
use svid_daemon::harden;
use svid_daemon::log::{LogControl, chain};
use svid_daemon::metrics::{Metrics, MetricsOptions};
use svid_daemon::signals;
use svid_plugin_api::KeyManager;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::admin;
use crate::attest::{AttestError, Attestation, Attestor, Store};
use crate::cache::{Cache, CacheOptions};
use crate::client::{ClientError, Dialer, ServerClient, SharedRoots};
use crate::config::{AgentConfig, Loaded};
use crate::manager::{Manager, ManagerError};
use crate::rotate::Rotator;
use crate::stored::{self, ClockGuard, Keeper, KeeperOptions};
use crate::sync::{SvidFetcher, SyncOptions, SyncStatus, Synchronizer};
use crate::workload_api::{self, WorkloadServerConfig};

use facts::LiveFacts;
use passed::Passed;

/// Threads of the runtime. One serves the workloads: with more, most of a short call's time goes to handing it from
/// thread to thread, and the node is the workloads' first. Beside it the main thread keeps up with the server, and what
/// takes long (keys by the hundred, hashes of files) has threads of its own.
const WORKERS: usize = 1;
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The exit code once the server put the agent out for good (sysexits' EX_NOPERM): a service manager that is told not
/// to restart after it does not loop.
pub const PUT_OUT: i32 = 77;

/// Runs the agent until a signal or a failure ends it. Returns the exit code: 0 after SIGINT or SIGTERM, [`PUT_OUT`]
/// once the server refused the agent for good, else 1.
pub fn run(loaded: Loaded) -> i32 {
    let hardened = match harden::harden() {
        Ok(hardened) => hardened,
        Err(error) => return fail(&error),
    };
    let log = match svid_daemon::log::init(&loaded.config.log) {
        Ok(log) => log,
        Err(error) => return fail(&error),
    };
    if let Some(old) = hardened.old_umask {
        warn!(
            umask = format!("{:04o}", hardened.umask),
            "Current umask {old:04o} is too permissive; setting umask"
        );
    }
    for warning in &loaded.warnings {
        warn!("{warning}");
    }
    let passed = match Passed::take(&loaded.config) {
        Ok(passed) => passed,
        Err(error) => return fail(&error),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .thread_name("agent")
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    let result = runtime.block_on(run_until_signal(loaded.config, log, passed));
    runtime.shutdown_timeout(Duration::from_secs(1));
    match result {
        Ok(()) => {
            info!("Agent stopped gracefully");
            0
        }
        Err(error) => {
            error!(error = %chain(error.as_ref()), "Agent crashed");
            if is_put_out(&error) { PUT_OUT } else { 1 }
        }
    }
}

/// Whether the server refused this agent in a way that starting again does not change.
fn is_put_out(error: &anyhow::Error) -> bool {
    // A proof that is refused at a first attestation may be good once the server's configuration knows it. Of a ban,
    // servers tell in words there.
    if let Some(AttestError::Client(ClientError::Denied { reason, message })) = error.downcast_ref() {
        return reason.is_some() || message.ends_with("agent is banned");
    }
    matches!(error.downcast_ref(), Some(ManagerError::PutOut(_)))
}

/// Before there is a log.
fn fail(error: &dyn std::error::Error) -> i32 {
    eprintln!("{}", chain(error));
    1
}

async fn run_until_signal(config: AgentConfig, log: LogControl, passed: Passed) -> Result<(), anyhow::Error> {
    let reopen = log.clone();
    let stop = signals::install(
        || info!("Plugins have nothing to reconfigure"),
        move || {
            if let Err(error) = reopen.reopen() {
                error!(error = %error, "Failed to reopen the log file");
            }
        },
    )?;
    let guard = ClockGuard::new();
    let agent = Agent { config, log, passed, stop: stop.clone(), clock: guard.clock(), guard };
    let mut running = std::pin::pin!(agent.run());
    let ended = tokio::select! {
        result = &mut running => Some(result),
        () = stop.cancelled() => None,
    };
    // Said here, whichever of the two came first: an idle agent ends as soon as it is told to.
    passed::notify(NotifyState::Stopping);
    let result = match ended {
        Some(result) => result,
        // Whatever is still starting is dropped; what serves gets the time it takes for open calls to end.
        None => tokio::time::timeout(GRACE, running).await.unwrap_or(Ok(())),
    };
    stop.cancel();
    result
}

/// How long open calls may take to end after a signal.
const GRACE: Duration = Duration::from_secs(3);

struct Agent {
    config: AgentConfig,
    log: LogControl,
    passed: Passed,
    stop: CancellationToken,
    /// Does not go back.
    clock: Clock,
    guard: ClockGuard,
}

impl Agent {
    async fn run(&self) -> Result<(), anyhow::Error> {
        let config = &self.config;
        info!(data_dir = %config.data_dir.display(), version = VERSION, "Starting agent");
        let _lock = harden::lock_data_dir(&config.data_dir)?;
        let store = Store::open(&config.data_dir)?;
        let metrics = self.metrics();
        let listeners = listeners::Listeners::new(self.stop.clone());
        if !listeners::needs_svid(config) {
            listeners.metrics(config, &metrics, facts::no_svid()).await?;
        }

        let keys = plugins::key_manager(config, &metrics)?;
        let node_attestor = plugins::node_attestor(config)?;
        let workload_attestors = plugins::workload_attestors(config)?;
        listeners.health(config);

        let dialer = Dialer::new(
            &config.server_address,
            config.server_port,
            config.trust_domain.clone(),
            config.require_pq_kem,
        );
        let mut attestor = Attestor {
            dialer: dialer.clone(),
            server: (config.server_address.clone(), config.server_port),
            store: store.clone(),
            keys: Arc::clone(&keys),
            plugin: Arc::clone(&node_attestor),
            bootstrap: config.bootstrap.clone(),
            rebootstrap: config.rebootstrap,
            clock: self.clock.clone(),
            metrics: metrics.clone(),
        };
        attestor.prepare()?;
        let attestation = attestor.run().await.inspect_err(|error| {
            if matches!(error, AttestError::Client(ClientError::Denied { .. })) {
                stored::forget(&config.data_dir);
            }
        })?;
        let keeper = self.keeper(&attestation, &keys, &metrics);
        attestor.check_rebootstrap(attestation.identity.reattestable)?;
        if !attestation.identity.reattestable && !keys.is_durable() {
            warn!(
                "Node attestation is not reattestable and the 'memory' key manager is in use; if the agent process is restarted, it will be unable to obtain a new SVID and will need to be manually evicted to be able to re-attest."
            );
        }

        let parts = Parts {
            dialer,
            store,
            keys,
            node_attestor,
            metrics: metrics.clone(),
            rebootstrap: attestor.rebootstrap,
            keeper,
        };
        let (manager, cache, status) = self.manager(parts, attestation);
        if listeners::needs_svid(config) {
            listeners.metrics(config, &metrics, facts::own_svid(&manager.client, &cache)).await?;
        }
        manager.begin().await?;

        tokio::spawn(budget::show(
            manager.client.clone(),
            cache.clone(),
            self.clock.clone(),
            metrics.clone(),
        ));
        let facts = LiveFacts::new(manager.client.clone(), cache.clone(), status, self.clock.clone());
        let listening = Arc::new(Notify::new());
        listeners.serve_health_once(Arc::clone(&listening), config);
        let server = WorkloadServerConfig {
            metrics: metrics.clone(),
            passed: self.passed.workload.clone(),
            clock: self.clock.clone(),
            ..WorkloadServerConfig::from(config)
        };
        // On the worker: a connection then stays on the thread that accepted it.
        let workload = tokio::spawn(workload_api::serve(
            server,
            Arc::new(cache.clone()),
            workload_attestors,
            listening,
            self.stop.clone(),
        ));
        tokio::select! {
            result = manager.run() => Ok(result?),
            result = workload => Ok(result??),
            result = self.admin(cache, Arc::new(facts), metrics) => result,
        }
    }

    async fn admin(
        &self,
        cache: Cache,
        facts: Arc<LiveFacts>,
        metrics: Metrics,
    ) -> Result<(), anyhow::Error> {
        let Some(socket_path) = self.config.admin_socket_path.clone() else {
            self.stop.cancelled().await;
            // The workload socket may still have calls to finish.
            return std::future::pending().await;
        };
        let config = admin::AdminConfig {
            socket_path,
            passed: self.passed.admin.clone(),
            trust_domain: self.config.trust_domain.clone(),
            clock: self.clock.clone(),
            log: self.log.clone(),
            metrics,
        };
        admin::serve(config, cache, facts, self.stop.clone()).await?;
        std::future::pending().await
    }

    fn metrics(&self) -> Metrics {
        let telemetry = &self.config.telemetry;
        if telemetry.prometheus.is_none() {
            return Metrics::disabled();
        }
        let host = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
        let trust_domain = self.config.trust_domain.as_str().to_owned();
        let metrics = Metrics::new(MetricsOptions {
            prefix: telemetry.prefix.clone().unwrap_or_else(|| "spire_agent".into()),
            host: if telemetry.host_label { host().map(|name| name.trim().to_owned()) } else { None },
            trust_domain: telemetry.trust_domain_label.then(|| trust_domain.clone()),
            filter: telemetry.filter.clone(),
        });
        metrics.set_gauge(&["started"], 1.0, &[("version", VERSION), ("trust_domain_id", &trust_domain)]);
        metrics
    }

    fn keeper(&self, attestation: &Attestation, keys: &Arc<dyn KeyManager>, metrics: &Metrics) -> Keeper {
        Keeper::new(KeeperOptions {
            data_dir: self.config.data_dir.clone(),
            machine_id_path: self.config.machine_id_path.clone(),
            enabled: self.config.persist_svids,
            trust_domain: self.config.trust_domain.clone(),
            agent_id: attestation.identity.svid.id().clone(),
            keys: Arc::clone(keys),
            clock: self.clock.clone(),
            metrics: metrics.clone(),
        })
    }

    fn manager(&self, parts: Parts, attestation: Attestation) -> (Manager, Cache, SyncStatus) {
        let config = &self.config;
        let roots = SharedRoots::default();
        roots.set(&attestation.bundle);
        let options = CacheOptions {
            x509_svid_cache_max_size: config.x509_svid_cache_max_size,
            jwt_svid_cache_max_size: config.jwt_svid_cache_max_size,
            availability_target: config.availability_target,
            jwt_svid_cache_hit_timeout: config.jwt_svid_cache_hit_timeout,
            clock: self.clock.clone(),
            metrics: parts.metrics.clone(),
        };
        let cache = Cache::new(Arc::new(attestation.bundle), options);
        let client = ServerClient::new(parts.dialer, roots, attestation.identity);
        cache.set_jwt_source(Arc::new(client.clone()));
        client.watch_clock(self.guard.clone());
        let status = SyncStatus::default();
        let options = SyncOptions {
            interval: config.sync_interval,
            use_sync_authorized_entries: config.use_sync_authorized_entries,
            rebootstrap: parts.rebootstrap,
            store: parts.store.clone(),
            clock: self.clock.clone(),
            metrics: parts.metrics.clone(),
        };
        let fetcher =
            SvidFetcher::new(client.clone(), cache.clone(), config.workload_key_type, self.clock.clone());
        let manager = Manager {
            synchronizer: Synchronizer::new(client.clone(), cache.clone(), status.clone(), options),
            fetcher,
            rotator: Rotator {
                client: client.clone(),
                cache: cache.clone(),
                keys: parts.keys,
                plugin: parts.node_attestor,
                store: parts.store.clone(),
                availability_target: config.availability_target,
                clock: self.clock.clone(),
                metrics: parts.metrics,
            },
            store: parts.store,
            rebootstrap: parts.rebootstrap,
            clock: self.clock.clone(),
            client,
            keeper: parts.keeper,
            cache: cache.clone(),
        };
        (manager, cache, status)
    }
}

/// What the manager is put together from.
struct Parts {
    dialer: Dialer,
    store: Store,
    keys: Arc<dyn KeyManager>,
    node_attestor: Arc<dyn svid_plugin_api::AgentNodeAttestor>,
    metrics: Metrics,
    rebootstrap: crate::config::Rebootstrap,
    keeper: Keeper,
}
