//! What others may watch: metrics and health.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use svid_daemon::config::PrometheusConfig;
use svid_daemon::health::{HealthChecker, State};
use svid_daemon::http::{self, Answer};
use svid_daemon::metrics::{Metrics, MetricsOptions};
use svid_daemon::tls::{CurrentTls, TlsPolicy, scrape_tls};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::parts::host_name;
use super::tls::own_svid;
use super::{RunError, spawn};
use crate::api::Context;
use crate::config::ServerConfig;

/// How often the uptime is set.
const UPTIME: Duration = Duration::from_secs(10);

/// Metrics as configured; without a sink nothing is counted.
pub(super) fn metrics(config: &ServerConfig) -> Metrics {
    let telemetry = &config.telemetry;
    if telemetry.prometheus.is_none() {
        return Metrics::disabled();
    }
    Metrics::new(MetricsOptions {
        prefix: telemetry.prefix.clone().unwrap_or_else(|| "spire_server".into()),
        host: telemetry.host_label.then(host_name).flatten(),
        trust_domain: telemetry.trust_domain_label.then(|| config.trust_domain.to_string()),
        filter: telemetry.filter.clone(),
    })
}

/// Starts the listeners that are configured.
pub(super) async fn start(
    config: &ServerConfig,
    context: &Arc<Context>,
    metrics: &Metrics,
    stop: &CancellationToken,
) -> Result<(), RunError> {
    start_metrics(config, context, metrics, stop).await?;
    start_health(config, context, stop).await
}

async fn listen(host: &str, port: u16) -> Result<TcpListener, RunError> {
    let bound = TcpListener::bind((host, port)).await;
    bound.map_err(|source| RunError::Listen { address: format!("{host}:{port}"), source })
}

async fn start_metrics(
    config: &ServerConfig,
    context: &Arc<Context>,
    metrics: &Metrics,
    stop: &CancellationToken,
) -> Result<(), RunError> {
    let Some(sink) = &config.telemetry.prometheus else { return Ok(()) };
    let tls = metrics_tls(config, sink, context, stop)?;
    let listener = listen(&sink.host, sink.port).await?;
    if sink.host != "localhost" {
        tracing::warn!(
            subsystem_name = "telemetry",
            host = %sink.host,
            "Agent is now configured to accept remote network connections for Prometheus stats collection. Please \
             ensure access to this port is tightly controlled"
        );
    }
    let scheme = if tls.is_some() { "https" } else { "http" };
    tracing::info!(subsystem_name = "telemetry", url = %format!("{scheme}://{}:{}", sink.host, sink.port), "Starting prometheus exporter");
    let trust_domain = config.trust_domain.to_string();
    let labels = [("version", env!("CARGO_PKG_VERSION")), ("trust_domain_id", trust_domain.as_str())];
    metrics.set_gauge(&["started"], 1.0, &labels);
    let rendered = metrics.clone();
    let answer = move |_: &str| Answer {
        status: ::http::StatusCode::OK,
        content_type: "text/plain; version=0.0.4; charset=utf-8",
        body: rendered.render(),
    };
    spawn("the metrics listener", stop, http::serve(listener, tls, stop.clone(), answer));
    let uptime = metrics.gauge(&["uptime_in_ms"], &[]);
    let staleness = metrics.gauge(&["directory", "staleness_seconds"], &[]);
    let directory = context.directory.clone();
    spawn("the uptime metric", stop, async move {
        let since = std::time::Instant::now();
        loop {
            uptime.set(since.elapsed().as_secs_f64() * 1000.0);
            staleness.set(directory.staleness().as_secs_f64());
            tokio::time::sleep(UPTIME).await;
        }
    });
    Ok(())
}

fn metrics_tls(
    config: &ServerConfig,
    sink: &PrometheusConfig,
    context: &Arc<Context>,
    stop: &CancellationToken,
) -> Result<Option<CurrentTls>, RunError> {
    let Some(tls) = sink.tls.clone() else { return Ok(None) };
    let policy = TlsPolicy { require_pq_kem: config.require_pq_kem };
    let (current, refresh) = scrape_tls(tls, policy, own_svid(context))?;
    spawn("the metrics listener's TLS", stop, refresh);
    Ok(Some(current))
}

async fn start_health(
    config: &ServerConfig,
    context: &Arc<Context>,
    stop: &CancellationToken,
) -> Result<(), RunError> {
    if !config.health.listener_enabled {
        return Ok(());
    }
    let checker = checks(context);
    let listener = listen(&config.health.bind_address, config.health.bind_port).await?;
    let (running, health) = (checker.clone(), config.health.clone());
    let stopping = stop.clone();
    spawn("the health listener", stop, async move { checker.serve(listener, &health, stopping).await });
    let stopping = stop.clone();
    spawn("the health checks", stop, async move { running.run(stopping).await });
    Ok(())
}

fn state(ok: Result<(), String>) -> State {
    match ok {
        Ok(()) => State::healthy(json!({})),
        Err(error) => State::unhealthy(json!({ "err": error })),
    }
}

/// SPIRE's checks under SPIRE's names.
fn checks(context: &Arc<Context>) -> HealthChecker {
    let checker = HealthChecker::default();
    let c = context.clone();
    checker.add("server", move || {
        let bundle = c.directory.bundle(&c.trust_domain);
        async move { state(bundle.map(drop).ok_or_else(|| "bundle not found".to_owned())) }
    });
    let c = context.clone();
    checker.add("server.ca", move || {
        let signed = c.ca.check_signing(c.clock.now()).map_err(|error| error.to_string());
        async move { state(signed) }
    });
    let c = context.clone();
    checker.add("server.ca.rotator", move || {
        let health = c.ca.rotation_health();
        let text = || format!("rotations exceed the threshold number of failures: {}", health.failures);
        let rotated = if health.is_healthy() { Ok(()) } else { Err(text()) };
        async move { state(rotated) }
    });
    let c = context.clone();
    checker.add("catalog.datastore", move || {
        let (store, stale) = (c.store.clone(), c.directory.staleness().as_secs());
        let max_stale = c.max_stale.as_secs();
        async move {
            match store.ping().await {
                Ok(()) => State::healthy(json!({})),
                Err(error) => State::unhealthy(
                    json!({ "err": error.to_string(), "stale_s": stale, "max_stale_s": max_stale }),
                ),
            }
        }
    });
    checker
}
