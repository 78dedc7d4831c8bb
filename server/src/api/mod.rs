//! The gRPC services: one file each. A request is parsed, authorised by the gate in front, and answered.

pub mod agent;
pub mod audit;
mod authorities;
pub mod authorize;
pub mod backup;
pub mod bundle;
pub mod caller;
pub mod debug;
pub mod entry;
mod entry_sync;
pub mod federation;
pub mod health;
pub mod localauthority;
pub mod logger;
pub mod metrics;
pub mod ratelimit;
pub(crate) mod status;
mod status_servers;
pub mod status_service;
pub mod svid;
pub mod sync;
pub mod table;
pub mod trustdomain;
pub mod vouch;

use std::sync::Arc;
use std::time::{Duration, Instant};

use svid_core::clock::Clock;
use svid_core::id::TrustDomain;
use svid_daemon::log::LogControl;
use svid_proto::grpc::health::v1::health_server::HealthServer;
use svid_proto::spire::api::server as spire;
use svid_proto::svid as ours;
use tonic::service::Routes;
use tonic::{Code, Request, Status};

use crate::attest::Attestors;
use crate::ca::Ca;
use crate::clock_guard::ClockGuard;
use crate::directory::Directory;
use crate::federation::Federation;
use crate::store::{ServerFacts, Store};
use caller::{Call, PeerCert};
use metrics::RpcMetrics;
use ratelimit::Limits;
use vouch::Vouch;

/// Largest message that is read: gRPC's own default. Admin tools may send bigger ones over the local socket.
const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;
/// Largest message that is read from the admin socket.
const MAX_LOCAL_MESSAGE_BYTES: usize = 64 * 1024 * 1024;

/// What every service works with.
pub struct Context {
    /// The server's trust domain.
    pub trust_domain: TrustDomain,
    /// The database.
    pub store: Store,
    /// The view of it in memory.
    pub directory: Directory,
    /// The authority.
    pub ca: Ca,
    /// Now.
    pub clock: Clock,
    /// Whether the clocks agree.
    pub clock_guard: ClockGuard,
    /// Limits by address.
    pub limits: Limits,
    /// Counts waits for them.
    pub waits: RpcMetrics,
    /// Longest time that memory alone may answer.
    pub max_stale: Duration,
    /// Answers for the authorities behind callers' certificates.
    pub vouch: Vouch,
    /// The node attestors by name.
    pub attestors: Attestors,
    /// An agent's ID becomes one of its selectors.
    pub agent_spiffe_id_as_selector: bool,
    /// The log's level.
    pub log: LogControl,
    /// When the server started.
    pub started: Instant,
    /// From `server-id`.
    pub server_id: String,
    /// What this server says of itself.
    pub facts: ServerFacts,
    /// What is fetched from other trust domains.
    pub federation: Federation,
    /// Name of the plugin that keeps this server's keys.
    pub key_manager: &'static str,
    /// Open watch streams.
    pub watchers: sync::Watchers,
    /// Open dialogues of `SyncAuthorizedEntries` that hold a long list.
    pub syncs: sync::Watchers,
}

/// A service over the shared context.
macro_rules! service {
    ($name:ident) => {
        /// The service of this file.
        #[derive(Clone)]
        pub struct $name(pub std::sync::Arc<crate::api::Context>);
    };
}
use service;

/// The call behind a request.
///
/// # Errors
/// `Internal` when the gate was left out, which is a mistake of ours: nothing is served then.
fn call_of<T>(request: &Request<T>) -> Result<Arc<Call>, Status> {
    request
        .extensions()
        .get::<Arc<Call>>()
        .cloned()
        .ok_or_else(|| Status::internal("request was not authorized"))
}

/// The agent behind a request that only agents may make.
fn agent_of(call: &Call) -> Result<&PeerCert, Status> {
    call.peer.identity().ok_or_else(|| Status::internal("caller ID missing from request context"))
}

impl Context {
    /// Waits for `count` tokens of the call's limiter.
    ///
    /// # Errors
    /// `ResourceExhausted` with SPIRE's sentence.
    async fn limit(&self, call: &Call, count: usize, what: &str) -> Result<(), Status> {
        let Some(address) = call.peer.ip() else { return Ok(()) };
        let taken = self.limits.take(call.method.limit, address, count);
        let wait = taken.unwrap_or_default();
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        let code = if taken.is_ok() { Code::Ok } else { Code::ResourceExhausted };
        self.waits.record(call.method, code, wait);
        taken
            .map(drop)
            .map_err(|error| Status::resource_exhausted(format!("rejecting request due to {what}: {error}")))
    }

    fn now_unix(&self) -> i64 {
        self.clock.unix()
    }
}

macro_rules! with_limits {
    ($server:expr, $bytes:expr) => {
        $server.max_decoding_message_size($bytes).max_encoding_message_size(usize::MAX)
    };
}

fn shared(context: &Arc<Context>, bytes: usize) -> Routes {
    Routes::new(with_limits!(
        spire::agent::v1::agent_server::AgentServer::new(agent::AgentApi(context.clone())),
        bytes
    ))
    .add_service(with_limits!(
        spire::bundle::v1::bundle_server::BundleServer::new(bundle::BundleApi(context.clone())),
        bytes
    ))
    .add_service(with_limits!(
        spire::entry::v1::entry_server::EntryServer::new(entry::EntryApi(context.clone())),
        bytes
    ))
    .add_service(with_limits!(
        spire::svid::v1::svid_server::SvidServer::new(svid::SvidApi(context.clone())),
        bytes
    ))
    .add_service(with_limits!(
        spire::trustdomain::v1::trust_domain_server::TrustDomainServer::new(trustdomain::TrustDomainApi(
            context.clone()
        )),
        bytes
    ))
    .add_service(with_limits!(
        spire::localauthority::v1::local_authority_server::LocalAuthorityServer::new(
            localauthority::LocalAuthorityApi(context.clone())
        ),
        bytes
    ))
    .add_service(with_limits!(
        ours::sync::v1::sync_server::SyncServer::new(sync::SyncApi(context.clone())),
        bytes
    ))
}

/// The services of the TCP port.
pub fn tcp_routes(context: &Arc<Context>) -> Routes {
    shared(context, MAX_MESSAGE_BYTES).prepare()
}

/// The services of the admin socket.
pub fn local_routes(context: &Arc<Context>) -> Routes {
    shared(context, MAX_LOCAL_MESSAGE_BYTES)
        .add_service(spire::logger::v1::logger_server::LoggerServer::new(logger::LoggerApi(context.clone())))
        .add_service(spire::debug::v1::debug_server::DebugServer::new(debug::DebugApi::new(context.clone())))
        .add_service(ours::backup::v1::backup_server::BackupServer::new(backup::BackupApi::new(
            context.clone(),
        )))
        .add_service(ours::federation::v1::federation_server::FederationServer::new(
            federation::FederationApi(context.clone()),
        ))
        .add_service(HealthServer::new(health::HealthApi(context.clone())))
        .add_service(
            ours::status::v1::status_server::StatusServer::new(status_service::StatusApi(context.clone()))
                .max_encoding_message_size(usize::MAX),
        )
        .prepare()
}
