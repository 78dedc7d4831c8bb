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

use super::identity::host_name;
use super::tls::own_svid;
use super::{RunError, spawn};
use crate::api::Context;
use crate::config::ServerConfig;
use crate::store::StoreError;

/// How often the uptime and what changes with time are set.
const UPTIME: Duration = Duration::from_secs(1);

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
    let states = state_metrics(metrics, context);
    spawn("the uptime metric", stop, async move {
        let since = std::time::Instant::now();
        loop {
            uptime.set(since.elapsed().as_secs_f64() * 1000.0);
            states();
            tokio::time::sleep(UPTIME).await;
        }
    });
    Ok(())
}

/// What an operator watches while the database is away or a clock is wrong.
fn state_metrics(metrics: &Metrics, context: &Arc<Context>) -> impl Fn() + Send + use<> {
    let gauge = |name| metrics.gauge(&["directory", name], &[]);
    gauge("max_stale_seconds").set(context.max_stale.as_secs_f64());
    let (staleness, database) = (gauge("staleness_seconds"), gauge("database_reachable"));
    let paused = metrics.gauge(&["housekeeping", "paused"], &[]);
    let context = context.clone();
    move || {
        staleness.set(context.directory.staleness().as_secs_f64());
        database.set(f64::from(u8::from(context.directory.has_database())));
        paused.set(f64::from(u8::from(context.clock_guard.verdict().is_err())));
    }
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
        let c = c.clone();
        async move { state(c.ca.check_signing(c.clock.now()).await.map_err(|error| error.to_string())) }
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
        let c = c.clone();
        async move { datastore(c.store.ping().await, c.directory.staleness(), c.max_stale) }
    });
    checker
}

/// Without the database memory serves for `max_stale`, so the server is ready until then; a restart would not help, so it
/// is live all the time.
fn datastore(answer: Result<(), StoreError>, stale: Duration, max_stale: Duration) -> State {
    let Err(error) = answer else { return State::healthy(json!({})) };
    let details = json!({
        "err": error.to_string(),
        "stale_s": stale.as_secs(),
        "max_stale_s": max_stale.as_secs(),
    });
    State { ready: stale <= max_stale, ..State::healthy(details) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_database_makes_unready_after_max_stale_and_never_dead() {
        let hour = Duration::from_secs(3600);
        let check = |stale, ready| {
            let state = datastore(Err(StoreError::Closed), stale, hour);
            assert_eq!((state.live, state.ready), (true, ready));
            assert_eq!(state.ready_details["max_stale_s"], 3600);
            assert_eq!(state.live_details["err"], "the database is closed");
        };
        check(Duration::from_secs(5), true);
        check(hour, true);
        check(hour * 2, false);
        assert_eq!(datastore(Ok(()), hour * 2, hour), State::healthy(json!({})));
    }
}
