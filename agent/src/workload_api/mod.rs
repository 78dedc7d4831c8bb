//! The SPIFFE Workload API, and the socket it shares with SDS, health and reflection.
//!
//! One connection is one caller, pinned when it was accepted. Every RPC is admitted by the `gate`: attested,
//! limited, and checked again before each secret is written.

mod bundles;
mod cache_source;
mod codec;
pub(crate) mod gate;
mod health;
mod hints;
mod jwt;
pub(crate) mod metrics;
pub(crate) mod open;
mod ratelimit;
mod server;
pub mod source;
mod x509;

use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use svid_core::clock::Clock;
use svid_core::id::TrustDomain;
use tonic::Status;

use gate::Gate;

pub use health::{ProbeError, probe};
pub use open::open_streams;
pub use server::{ServeError, WorkloadServerConfig, serve};

/// Path of the service. Its protobuf has no package.
pub(crate) const PREFIX: &str = "/SpiffeWorkloadAPI/";

/// A stream of responses.
type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The Workload API.
#[derive(Clone)]
pub(crate) struct WorkloadApi {
    gate: Arc<Gate>,
    options: Arc<Options>,
}

/// What the configuration says about answers.
struct Options {
    trust_domain: TrustDomain,
    allow_unauthenticated_verifiers: bool,
    allowed_foreign_jwt_claims: Vec<String>,
    clock: Clock,
}

#[cfg(test)]
mod tests;
