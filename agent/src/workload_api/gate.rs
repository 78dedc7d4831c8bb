//! Who may pass: attestation, rate limits, and what is said to those who may not.

use std::sync::Arc;
use std::time::Instant;

use svid_core::selector::{Selector, SelectorSet};
use svid_daemon::metrics::{Counter, Metrics};
use tonic::Status;

use super::ratelimit::Limit;
use super::source::IdentitySource;
use crate::caller::{Attestors, Connection, attestation_failed};
use crate::config::RateLimits;

/// What every RPC goes through.
pub(crate) struct Gate {
    pub(crate) source: Arc<dyn IdentitySource>,
    attestors: Attestors,
    limits: Vec<Limited>,
    log_selectors: Vec<String>,
}

/// A method with a limit.
struct Limited {
    method: &'static str,
    limit: Limit,
    exceeded: Counter,
}

impl Gate {
    pub(crate) fn new(
        source: Arc<dyn IdentitySource>,
        attestors: Attestors,
        limits: &RateLimits,
        log_selectors: Vec<String>,
        metrics: &Metrics,
    ) -> Self {
        Self {
            source,
            attestors: attestors.measured(metrics),
            limits: configured(limits, metrics),
            log_selectors,
        }
    }

    /// Attests the caller, then takes a token of the method's limit. The agent itself has no limit.
    pub(crate) async fn admit(
        &self,
        caller: &Connection,
        method: &'static str,
    ) -> Result<Arc<SelectorSet>, Status> {
        let selectors = self.attest(caller).await?;
        let limited = self.limits.iter().find(|limited| limited.method == method);
        match limited {
            Some(limited) if !caller.is_agent() && !limited.limit.allow(&selectors, Instant::now()) => {
                limited.exceeded.add(1);
                Err(Status::unavailable(format!("rate limit exceeded for {method}")))
            }
            _ => Ok(selectors),
        }
    }

    /// Attests the caller.
    pub(crate) async fn attest(&self, caller: &Connection) -> Result<Arc<SelectorSet>, Status> {
        self.attestors.attest(caller).await.map_err(|err| {
            tracing::error!(pid = caller.pid(), error = %err, "Workload attestation failed");
            attestation_failed()
        })
    }

    /// To be called right before a secret is written: the caller is still the one that was attested.
    pub(crate) fn recheck(&self, caller: &Connection) -> Result<(), Status> {
        caller.check().map_err(|err| {
            tracing::error!(pid = caller.pid(), error = %err, "Workload attestation failed");
            attestation_failed()
        })
    }

    /// The answer to a caller without identity, which is also logged, except for the agent's own health check.
    pub(crate) fn no_identity(&self, caller: &Connection, selectors: &SelectorSet) -> Status {
        if !caller.is_agent() {
            let pid = caller.pid();
            match loggable(selectors, &self.log_selectors) {
                Some(selectors) => tracing::error!(pid, registered = false, selectors, "No identity issued"),
                None => tracing::error!(pid, registered = false, "No identity issued"),
            }
        }
        Status::permission_denied("no identity issued")
    }
}

fn configured(limits: &RateLimits, metrics: &Metrics) -> Vec<Limited> {
    use super::{jwt, x509};
    use crate::sds;
    let now = Instant::now();
    let methods = [
        (x509::FETCH_X509_SVID, limits.fetch_x509_svid),
        (jwt::FETCH_JWT_SVID, limits.fetch_jwt_svid),
        (x509::FETCH_X509_BUNDLES, limits.fetch_x509_bundles),
        (jwt::FETCH_JWT_BUNDLES, limits.fetch_jwt_bundles),
        (sds::STREAM_SECRETS, limits.stream_secrets),
        (sds::DELTA_SECRETS, limits.stream_secrets),
        (sds::FETCH_SECRETS, limits.fetch_secrets),
    ];
    let limited =
        methods.into_iter().filter_map(|(method, limit)| Some((method, Limit::new(limit, now)?, limit)));
    limited
        .map(|(method, limiter, limit)| {
            tracing::info!(method, limit, "Workload API/SDS rate limiting enabled");
            let exceeded = metrics.counter(&["workload_api", "rate_limit_exceeded"], &[("method", method)]);
            Limited { method, limit: limiter, exceeded }
        })
        .collect()
}

/// Selectors that the configuration allows in logs: those equal to a prefix, or going on with a colon after it.
fn loggable(selectors: &SelectorSet, prefixes: &[String]) -> Option<String> {
    let allowed = |text: &String| {
        prefixes.iter().any(|prefix| {
            text.strip_prefix(prefix.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
        })
    };
    let mut texts: Vec<String> = selectors.iter().map(Selector::to_string).filter(allowed).collect();
    texts.sort_unstable();
    (!texts.is_empty()).then(|| texts.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::selectors;

    #[test]
    fn only_configured_selectors_are_logged() {
        let set = selectors(&["unix:uid:0", "unix:user:root", "k8s:ns:web", "k8s:nsx:no"]);
        let check = |prefixes: &[&str], want: Option<&str>| {
            let prefixes: Vec<String> = prefixes.iter().map(|&text| text.into()).collect();
            assert_eq!(loggable(&set, &prefixes).as_deref(), want, "{prefixes:?}");
        };
        check(&[], None);
        check(&["docker"], None);
        check(&["unix"], Some("unix:uid:0,unix:user:root"));
        check(&["k8s:ns"], Some("k8s:ns:web"));
        check(&["unix:uid:0", "k8s"], Some("k8s:ns:web,k8s:nsx:no,unix:uid:0"));
    }
}
