//! Metrics of RPCs under SPIRE's names.

use std::time::Duration;

use svid_daemon::metrics::{Call, Metrics, code_name};
use tonic::Code;

use super::table::{LimitGroup, METHODS, Method};

/// One counter and one timing for each RPC, kept so that a call looks nothing up. Without a sink there are none.
#[derive(Clone, Debug, Default)]
pub struct RpcMetrics(Vec<Option<Call>>);

impl RpcMetrics {
    /// `rpc.<service>.<method>`: whole calls.
    pub fn new(metrics: &Metrics) -> Self {
        Self::of(metrics, "rpc", |_| true)
    }

    /// `rateLimit.<service>.<method>`: the waits of methods that have a limit.
    pub fn waits(metrics: &Metrics) -> Self {
        Self::of(metrics, "rateLimit", |method| method.limit != LimitGroup::Unlimited)
    }

    fn of(metrics: &Metrics, first: &str, counts: impl Fn(&Method) -> bool) -> Self {
        if !metrics.is_enabled() {
            return Self::default();
        }
        let call = |method: &Method| {
            let key = method.metric_key();
            let parts: Vec<&str> = [first].into_iter().chain(key.split('.')).collect();
            counts(method).then(|| metrics.call(&parts))
        };
        Self(METHODS.iter().map(call).collect())
    }

    /// Whether anything is counted.
    pub fn is_enabled(&self) -> bool {
        !self.0.is_empty()
    }

    /// Counts one finished call.
    pub fn record(&self, method: &Method, code: Code, elapsed: Duration) {
        if let Some(Some(call)) = self.0.get(method.index) {
            call.done(code_name(code), elapsed);
        }
    }
}
