//! Metrics of RPCs under SPIRE's names.

use std::time::Duration;

use svid_daemon::metrics::{Call, Metrics};
use tonic::Code;

use super::table::{METHODS, Method};

/// One counter and one timing for each RPC, kept so that a call looks nothing up.
#[derive(Clone, Debug)]
pub struct RpcMetrics(Vec<Call>);

impl RpcMetrics {
    /// Counters in `metrics`.
    pub fn new(metrics: &Metrics) -> Self {
        let call = |method: &Method| {
            let key = method.metric_key();
            let parts: Vec<&str> = ["rpc"].into_iter().chain(key.split('.')).collect();
            metrics.call(&parts)
        };
        Self(METHODS.iter().map(call).collect())
    }

    /// Counts one finished call.
    pub fn record(&self, method: &Method, code: Code, elapsed: Duration) {
        if let Some(call) = self.0.get(method.index) {
            call.done(code_name(code), elapsed);
        }
    }
}

/// gRPC's name of a code, as Go prints it.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}
