//! Health of the whole process: checks run in the background, `/live` and `/ready` tell their last results.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::StatusCode;
use serde_json::{Map, Value};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::cli::go_json;
use crate::config::HealthConfig;
use crate::http::{Answer, serve};

/// Until everything is live and ready.
const FIRST_INTERVAL: Duration = Duration::from_secs(1);
/// From then on.
const INTERVAL: Duration = Duration::from_secs(60);

/// What one check found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// False while the part still starts: its failures are then expected.
    pub started: Option<bool>,
    /// In a good state, or one it recovers from by itself.
    pub live: bool,
    /// Does its work.
    pub ready: bool,
    /// Shown at `/live`.
    pub live_details: Value,
    /// Shown at `/ready`.
    pub ready_details: Value,
}

impl State {
    /// Live and ready, with `details` at both paths.
    pub fn healthy(details: Value) -> Self {
        Self { started: None, live: true, ready: true, live_details: details.clone(), ready_details: details }
    }

    /// Neither live nor ready.
    pub fn unhealthy(details: Value) -> Self {
        Self { live: false, ready: false, ..Self::healthy(details) }
    }

    fn complaint(&self) -> Option<&'static str> {
        match (self.ready, self.live) {
            (true, true) => None,
            (true, false) => Some("subsystem is not live"),
            (false, true) => Some("subsystem is not ready"),
            (false, false) => Some("subsystem is not live or ready"),
        }
    }
}

type CheckFn = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = State> + Send>> + Send + Sync>;

/// Runs checks and remembers what they found. A check that has not run yet counts as not live and not ready.
#[derive(Clone, Default)]
pub struct HealthChecker {
    checks: Arc<Mutex<BTreeMap<String, (CheckFn, State)>>>,
}

impl HealthChecker {
    /// Adds a check; one of the same name is replaced.
    pub fn add<F, Fut>(&self, name: impl Into<String>, check: F)
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = State> + Send + 'static,
    {
        let check: CheckFn = Arc::new(move || Box::pin(check()));
        self.lock().insert(name.into(), (check, State::default()));
    }

    /// Whether all parts are live.
    pub fn is_live(&self) -> bool {
        self.lock().values().all(|(_, state)| state.live)
    }

    /// Whether all parts are ready.
    pub fn is_ready(&self) -> bool {
        self.lock().values().all(|(_, state)| state.ready)
    }

    /// Runs all checks once.
    pub async fn check_now(&self) {
        let checks: Vec<_> =
            self.lock().iter().map(|(name, (check, _))| (name.clone(), Arc::clone(check))).collect();
        for (name, check) in checks {
            let state = check().await;
            if let Some((_, last)) = self.lock().get_mut(&name) {
                log_change(&name, last, &state);
                *last = state;
            }
        }
    }

    /// Runs the checks every second until all is well once, then every minute, until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        let mut interval = FIRST_INTERVAL;
        loop {
            self.check_now().await;
            if self.is_live() && self.is_ready() {
                interval = INTERVAL;
            }
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Serves the results over HTTP until `stop`.
    pub async fn serve(&self, listener: TcpListener, config: &HealthConfig, stop: CancellationToken) {
        if let Ok(address) = listener.local_addr() {
            tracing::info!(subsystem_name = "health", address = %address, "Serving health checks");
        }
        let (checker, live, ready) = (self.clone(), config.live_path.clone(), config.ready_path.clone());
        serve(listener, None, stop, move |path| checker.answer(path, &live, &ready)).await;
    }

    fn answer(&self, path: &str, live_path: &str, ready_path: &str) -> Answer {
        let content_type = "application/json";
        let (well, details): (bool, fn(&State) -> &Value) = if path == live_path {
            (self.is_live(), |state| &state.live_details)
        } else if path == ready_path {
            (self.is_ready(), |state| &state.ready_details)
        } else {
            let body = "404 page not found\n".into();
            return Answer { status: StatusCode::NOT_FOUND, content_type: "text/plain; charset=utf-8", body };
        };
        let checks = self.lock();
        let fields: Vec<_> = checks
            .iter()
            .map(|(name, (_, state))| format!("{}:{}", Value::from(name.as_str()), go_json(details(state))))
            .collect();
        let status = if well { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
        Answer { status, content_type, body: format!("{{{}}}\n", fields.join(",")) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, (CheckFn, State)>> {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn log_change(check: &str, last: &State, now: &State) {
    let details = || {
        let fields = [("live", &now.live_details), ("ready", &now.ready_details)];
        let fields: Map<_, _> =
            fields.into_iter().map(|(name, value)| (name.to_owned(), value.clone())).collect();
        Value::Object(fields).to_string()
    };
    // A state that never was starts as a failure; only a real one is worth a word when it ends.
    let never_ran = *last == State::default();
    match now.complaint() {
        Some(error) if now.started == Some(false) => {
            if never_ran || last != now {
                tracing::warn!(
                    subsystem_name = "health",
                    check,
                    error,
                    "Health check has failed. Starting up still."
                );
            }
        }
        Some(error) => {
            tracing::error!(
                subsystem_name = "health",
                check,
                error,
                details = details(),
                "Health check has failed"
            );
        }
        None => {
            if let Some(error) = last.complaint().filter(|_| !never_ran) {
                tracing::info!(
                    subsystem_name = "health",
                    check,
                    error,
                    details = details(),
                    "Health check recovered"
                );
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn serves_cached_results() {
        let checker = HealthChecker::default();
        let well = Arc::new(AtomicBool::new(false));
        let state = Arc::clone(&well);
        checker.add("server", move || {
            let well = state.load(Ordering::Relaxed);
            let details = serde_json::json!({"note": "x"});
            std::future::ready(if well {
                State::healthy(details)
            } else {
                State { live: true, ..State::unhealthy(details) }
            })
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let serving = checker.clone();
        let task = tokio::spawn({
            let stop = stop.clone();
            async move { serving.serve(listener, &HealthConfig::default(), stop).await }
        });
        let get = async |path: &str| {
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            (answer[9..12].to_owned(), answer.split("\r\n\r\n").nth(1).unwrap().to_owned())
        };
        assert_eq!(get("/live").await, ("500".into(), "{\"server\":null}\n".into()));
        checker.check_now().await;
        assert_eq!(get("/live").await, ("200".into(), "{\"server\":{\"note\":\"x\"}}\n".into()));
        assert_eq!(get("/ready").await.0, "500");
        well.store(true, Ordering::Relaxed);
        assert_eq!(get("/ready").await.0, "500");
        checker.check_now().await;
        assert_eq!(get("/ready").await.0, "200");
        assert_eq!(get("/else").await.0, "404");
        stop.cancel();
        task.await.unwrap();
    }
}
