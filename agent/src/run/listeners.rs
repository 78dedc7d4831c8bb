//! The health and metrics listeners.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use sd_notify::NotifyState;
use serde_json::{Value, json};
use svid_daemon::config::{HealthConfig, PrometheusConfig};
use svid_daemon::health::{HealthChecker, State};
use svid_daemon::http::{Answer, serve};
use svid_daemon::metrics::Metrics;
use svid_daemon::tls::{CurrentTls, OwnSvid, TlsPolicy, scrape_tls};
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::passed;
use crate::config::AgentConfig;

/// The health listener waits this long for the APIs. Source: SPIRE.
const HEALTH_WAIT: Duration = Duration::from_secs(8);
const UPTIME_INTERVAL: Duration = Duration::from_secs(10);

/// Starts listeners that run until the agent stops.
pub(super) struct Listeners {
    stop: CancellationToken,
    health: HealthChecker,
    started: Arc<AtomicBool>,
    serve_health: Arc<Notify>,
}

impl Listeners {
    pub(super) fn new(stop: CancellationToken) -> Self {
        Self { stop, health: HealthChecker::default(), started: Arc::default(), serve_health: Arc::default() }
    }

    /// Before attestation, which may take long.
    /// With TLS of the agent's own: after it.
    pub(super) async fn metrics(
        &self,
        config: &AgentConfig,
        metrics: &Metrics,
        own: OwnSvid,
    ) -> Result<(), anyhow::Error> {
        let Some(prometheus) = &config.telemetry.prometheus else { return Ok(()) };
        let tls = self.metrics_tls(config, prometheus, own)?;
        let address = (prometheus.host.as_str(), prometheus.port);
        let listener = TcpListener::bind(address).await;
        let listener = listener.with_context(|| format!("cannot listen for Prometheus at {address:?}"))?;
        let render = metrics.clone();
        tokio::spawn(serve(listener, tls, self.stop.clone(), move |_path| Answer {
            status: http::StatusCode::OK,
            content_type: "text/plain; version=0.0.4; charset=utf-8",
            body: render.render(),
        }));
        tokio::spawn(uptime(metrics.clone(), self.stop.clone()));
        Ok(())
    }

    fn metrics_tls(
        &self,
        config: &AgentConfig,
        prometheus: &PrometheusConfig,
        own: OwnSvid,
    ) -> Result<Option<CurrentTls>, anyhow::Error> {
        let Some(tls) = prometheus.tls.clone() else { return Ok(None) };
        let policy = TlsPolicy { require_pq_kem: config.require_pq_kem };
        let (current, refresh) = scrape_tls(tls, policy, own)?;
        let stop = self.stop.clone();
        tokio::spawn(async move { stop.run_until_cancelled(refresh).await });
        Ok(Some(current))
    }

    /// The checks run from here on; the listener opens once the APIs do, or after a while without them.
    pub(super) fn health(&self, config: &AgentConfig) {
        let socket =
            (!(config.disable_workload_api && config.disable_sds_api)).then(|| config.socket_path.clone());
        let started = Arc::clone(&self.started);
        self.health.add("agent", move || check(socket.clone(), started.load(Ordering::Relaxed)));
        if !config.health.listener_enabled {
            return;
        }
        let (health, stop, ready) = (self.health.clone(), self.stop.clone(), Arc::clone(&self.serve_health));
        let config = config.health.clone();
        tokio::spawn(async move {
            // Late is not wrong: the listener then says what is missing.
            let _ = tokio::time::timeout(HEALTH_WAIT, ready.notified()).await;
            serve_health(health, config, stop).await;
        });
    }

    /// Remembers that the APIs are there, once they are, and tells the service manager.
    pub(super) fn serve_health_once(&self, listening: Arc<Notify>, config: &AgentConfig) {
        let (started, ready) = (Arc::clone(&self.started), Arc::clone(&self.serve_health));
        if config.disable_workload_api && config.disable_sds_api {
            started.store(true, Ordering::Relaxed);
            ready.notify_one();
            passed::notify(NotifyState::Ready);
            return;
        }
        tokio::spawn(async move {
            listening.notified().await;
            started.store(true, Ordering::Relaxed);
            ready.notify_one();
            passed::notify(NotifyState::Ready);
        });
    }
}

/// True if the metrics listener cannot open before the agent has an SVID and a bundle.
pub(super) fn needs_svid(config: &AgentConfig) -> bool {
    let tls = config.telemetry.prometheus.as_ref().and_then(|prometheus| prometheus.tls.as_ref());
    tls.is_some_and(|tls| tls.use_spire_svid || !tls.authorized_spiffe_ids.is_empty())
}

async fn serve_health(health: HealthChecker, config: HealthConfig, stop: CancellationToken) {
    let listener = match TcpListener::bind((config.bind_address.as_str(), config.bind_port)).await {
        Ok(listener) => listener,
        Err(failure) => {
            error!(error = %failure, address = %config.bind_address, port = config.bind_port, "Cannot listen for health checks");
            return;
        }
    };
    tokio::join!(health.run(stop.clone()), health.serve(listener, &config, stop));
}

/// Ready means that workloads can connect.
async fn check(socket: Option<impl AsRef<Path>>, started: bool) -> State {
    let failure = match socket {
        Some(path) => UnixStream::connect(path).await.err(),
        None => None,
    };
    let details = |shown: bool| match &failure {
        Some(_) if shown => json!({ "make_new_x509_err": "workload api is unavailable" }),
        _ => Value::Object(serde_json::Map::new()),
    };
    State {
        started: Some(started),
        live: !started || failure.is_none(),
        ready: started && failure.is_none(),
        live_details: details(started),
        ready_details: details(true),
    }
}

async fn uptime(metrics: Metrics, stop: CancellationToken) {
    let begun = Instant::now();
    let gauge = metrics.gauge(&["uptime_in_ms"], &[]);
    loop {
        #[allow(clippy::cast_precision_loss)]
        gauge.set(begun.elapsed().as_millis() as f64);
        tokio::select! {
            () = tokio::time::sleep(UPTIME_INTERVAL) => {}
            () = stop.cancelled() => return,
        }
    }
}
