//! How long the agent could go on without a server, as metrics and in words.

use std::time::{Duration, SystemTime};

use svid_core::clock::Clock;
use svid_daemon::metrics::Metrics;

use crate::cache::Cache;
use crate::client::ServerClient;

const INTERVAL: Duration = Duration::from_secs(5);

/// What is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Budget {
    /// Since a server answered; `None` if none ever did.
    pub(super) silence: Option<Duration>,
    /// Until the first X509-SVID of a workload ends; `None` without one.
    pub(super) first_end: Option<Duration>,
    /// Until the agent's own SVID ends.
    pub(super) own_end: Duration,
    /// A server answers, as far as is known.
    pub(super) connected: bool,
}

impl Budget {
    pub(super) fn of(client: &ServerClient, cache: &Cache, now: SystemTime) -> Self {
        let until = |end: SystemTime| end.duration_since(now).unwrap_or_default();
        let connected = client.is_connected();
        let silence = client.last_contact().map(|at| now.duration_since(at).unwrap_or_default());
        Self {
            silence: if connected { silence.map(|_| Duration::ZERO) } else { silence },
            first_end: cache.first_end().map(until),
            own_end: until(client.current_identity().svid.not_after()),
            connected,
        }
    }

    /// For people, while no server answers.
    pub(super) fn warning(&self) -> Option<String> {
        if self.connected {
            return None;
        }
        let since = match self.silence {
            Some(silence) => format!("serving from memory for {} s", silence.as_secs()),
            None => "no server answered yet".to_owned(),
        };
        let left = match self.first_end {
            Some(left) => format!("the first certificate ends in {} s", left.as_secs()),
            None => "there is no certificate".to_owned(),
        };
        let own = format!("the agent's own SVID in {} s", self.own_end.as_secs());
        Some(format!("There is no connection to the server: {since}; {left}, {own}."))
    }
}

/// Keeps the gauges up to date, for as long as the process lives.
pub(super) async fn show(client: ServerClient, cache: Cache, clock: Clock, metrics: Metrics) {
    if !metrics.is_enabled() {
        return;
    }
    let gauge = |name| metrics.gauge(&["outage", name], &[]);
    let first = gauge("first_svid_ends_in_seconds");
    let own = gauge("agent_svid_ends_in_seconds");
    let silence = gauge("seconds_since_server_contact");
    loop {
        let budget = Budget::of(&client, &cache, clock.now());
        first.set(budget.first_end.unwrap_or_default().as_secs_f64());
        own.set(budget.own_end.as_secs_f64());
        silence.set(budget.silence.unwrap_or_default().as_secs_f64());
        tokio::time::sleep(INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_words() {
        let seconds = Duration::from_secs;
        let mut budget = Budget {
            silence: Some(seconds(90)),
            first_end: Some(seconds(3000)),
            own_end: seconds(3100),
            connected: false,
        };
        assert_eq!(
            budget.warning().as_deref(),
            Some(
                "There is no connection to the server: serving from memory for 90 s; the first certificate ends in 3000 s, the agent's own SVID in 3100 s."
            )
        );
        budget.connected = true;
        assert_eq!(budget.warning(), None);
        budget = Budget { silence: None, first_end: None, own_end: seconds(0), connected: false };
        assert!(
            budget
                .warning()
                .is_some_and(|text| text.contains("no server answered yet; there is no certificate"))
        );
    }
}
