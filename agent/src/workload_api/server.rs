//! The socket: accepts callers and sends each request to its service.
//!
//! Requests are matched by path here instead of through generated servers, so that the caller goes to each handler
//! as an argument (it cannot be forgotten), and streams begin with small buffers.

use std::convert::Infallible;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::StreamExt as _;
use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use svid_core::clock::Clock;
use svid_core::id::TrustDomain;
use svid_daemon::metrics::Metrics;
use svid_daemon::peer::{
    BindError, PeerOptions, SocketFile, UnixConn, adopt_private, bind_private, incoming,
};
use svid_proto::FILE_DESCRIPTOR_SET;
use svid_proto::grpc::health::v1::HealthCheckResponse;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::body::Body;
use tower::util::BoxCloneSyncService;
use tower::{ServiceExt as _, service_fn};

use super::codec::SmallCodec;
use super::gate::Gate;
use super::health::Health;
use super::metrics::SocketMetrics;
use super::source::IdentitySource;
use super::{Options, WorkloadApi};
use crate::caller::{Attestors, Connection};
use crate::config::{AgentConfig, RateLimits, SdsConfig};
use crate::sds::{self, Sds};

const HEALTH: &str = "/grpc.health.v1.Health/";
const REFLECTION_V1: &str = "/grpc.reflection.v1.ServerReflection/";
const REFLECTION_V1_ALPHA: &str = "/grpc.reflection.v1alpha.ServerReflection/";
/// A caller that sends no request within this time is disconnected.
const FIRST_REQUEST: Duration = Duration::from_secs(10);
/// Streams of one connection. Envoy opens one per secret.
const MAX_STREAMS: u32 = 1000;
/// How long a caller that has sent no request yet may do so once the agent stops.
const LAST_REQUEST: Duration = Duration::from_millis(500);
const MAX_HEADER_BYTES: u32 = 16 * 1024;
const WINDOW_BYTES: u32 = 64 * 1024;
/// How long open streams may take to end once the agent stops.
const DRAIN: Duration = Duration::from_secs(2);

/// Why the socket is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It cannot be created.
    #[error(transparent)]
    Bind(#[from] BindError),
}

/// What the socket is served with.
#[derive(Clone, Debug)]
pub struct WorkloadServerConfig {
    /// Where it lies.
    pub socket_path: PathBuf,
    /// The socket, if the service manager made it.
    pub passed: Option<Arc<StdListener>>,
    /// The own trust domain.
    pub trust_domain: TrustDomain,
    /// Leave the Workload API out.
    pub disable_workload_api: bool,
    /// Leave SDS out.
    pub disable_sds_api: bool,
    /// Names and switches of SDS.
    pub sds: SdsConfig,
    /// Give bundles also to callers without an entry.
    pub allow_unauthenticated_verifiers: bool,
    /// Claims of foreign tokens that `ValidateJWTSVID` passes on.
    pub allowed_foreign_jwt_claims: Vec<String>,
    /// Prefixes of selectors that may be logged.
    pub log_selectors: Vec<String>,
    /// Requests per second and selector set.
    pub ratelimit: RateLimits,
    /// Where now comes from.
    pub clock: Clock,
    /// Counts calls.
    pub metrics: Metrics,
}

impl From<&AgentConfig> for WorkloadServerConfig {
    fn from(config: &AgentConfig) -> Self {
        Self {
            socket_path: config.socket_path.clone(),
            passed: None,
            trust_domain: config.trust_domain.clone(),
            disable_workload_api: config.disable_workload_api,
            disable_sds_api: config.disable_sds_api,
            sds: config.sds.clone(),
            allow_unauthenticated_verifiers: config.allow_unauthenticated_verifiers,
            allowed_foreign_jwt_claims: config.allowed_foreign_jwt_claims.clone(),
            log_selectors: config.log_selectors.clone(),
            ratelimit: config.ratelimit,
            clock: Clock::system(),
            metrics: Metrics::disabled(),
        }
    }
}

/// Serves the socket until `shutdown`. With both APIs disabled there is no socket, and this only waits.
/// `listening` is notified once callers can connect.
/// # Errors
/// [`ServeError`] if the socket cannot be created.
pub async fn serve(
    config: WorkloadServerConfig,
    source: Arc<dyn IdentitySource>,
    attestors: Attestors,
    listening: Arc<Notify>,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    if config.disable_workload_api && config.disable_sds_api {
        shutdown.cancelled().await;
        return Ok(());
    }
    let socket = config.socket_path.clone();
    // The file is removed also when this future is dropped because the agent fails; a passed one stays.
    let (listener, _file) = listen(config.passed.as_deref(), &socket)?;
    let endpoint = Arc::new(Endpoint::new(config, source, attestors));
    tracing::info!(address = %socket.display(), network = "unix", "Starting agent APIs");
    listening.notify_one();

    let tasks = TaskTracker::new();
    let mut callers = std::pin::pin!(incoming(listener, PeerOptions::default()));
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            caller = callers.next() => match caller {
                Some(Ok(connection)) => {
                    tasks.spawn(serve_caller(Arc::clone(&endpoint), connection, shutdown.clone()));
                }
                Some(Err(_)) => {}
                None => break,
            },
        }
    }
    tasks.close();
    // What is still open after that is cut off by the end of the process.
    let _ = tokio::time::timeout(DRAIN, tasks.wait()).await;
    Ok(())
}

/// A passed socket, or one of our own with what removes it.
fn listen(
    passed: Option<&StdListener>,
    path: &Path,
) -> Result<(tokio::net::UnixListener, Option<SocketFile>), BindError> {
    let Some(passed) = passed else {
        return Ok((bind_private(path, 0o777, 0o755)?, Some(SocketFile::new(path))));
    };
    let copy = passed.try_clone().map_err(|source| BindError::System { path: path.into(), source })?;
    Ok((adopt_private(copy, path, 0o777)?, None))
}

async fn serve_caller(endpoint: Arc<Endpoint>, connection: UnixConn, shutdown: CancellationToken) {
    let caller = Arc::new(Connection::from_process(Arc::clone(connection.caller())));
    let first_request = Arc::new(Notify::new());
    let started = Arc::clone(&first_request);
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        started.notify_one();
        let (endpoint, caller) = (Arc::clone(&endpoint), Arc::clone(&caller));
        async move { Ok::<_, Infallible>(endpoint.call(caller, request).await) }
    });
    let mut http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    http.max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_BYTES)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .auto_date_header(false)
        .max_send_buf_size(WINDOW_BYTES as usize);
    let mut serving = std::pin::pin!(http.serve_connection(TokioIo::new(connection), service));
    tokio::select! {
        // A client that breaks off is no event worth a word.
        _ = &mut serving => return,
        () = first_request.notified() => {}
        () = tokio::time::sleep(FIRST_REQUEST) => return,
        () = shutdown.cancelled() => {
            // Whoever connected just now still gets an answer: it cannot know, and would take this for a failure.
            tokio::select! {
                _ = &mut serving => return,
                () = first_request.notified() => {}
                () = tokio::time::sleep(LAST_REQUEST) => return,
            }
        }
    }
    tokio::select! {
        _ = &mut serving => return,
        () = shutdown.cancelled() => serving.as_mut().graceful_shutdown(),
    }
    let _ = tokio::time::timeout(DRAIN, serving).await;
}

type BoxedService = BoxCloneSyncService<Request<Incoming>, Response<Body>, Infallible>;

/// The services behind the socket.
pub(super) struct Endpoint {
    workload: Option<WorkloadApi>,
    sds: Option<Sds>,
    health: Health,
    metrics: SocketMetrics,
    reflection: OnceLock<Option<(BoxedService, BoxedService)>>,
}

impl Endpoint {
    pub(super) fn new(
        config: WorkloadServerConfig,
        source: Arc<dyn IdentitySource>,
        attestors: Attestors,
    ) -> Self {
        let gate =
            Arc::new(Gate::new(source, attestors, &config.ratelimit, config.log_selectors, &config.metrics));
        let options = Options {
            trust_domain: config.trust_domain,
            allow_unauthenticated_verifiers: config.allow_unauthenticated_verifiers,
            allowed_foreign_jwt_claims: config.allowed_foreign_jwt_claims,
            clock: config.clock,
        };
        let workload = WorkloadApi { gate: Arc::clone(&gate), options: Arc::new(options) };
        Self {
            workload: (!config.disable_workload_api).then_some(workload),
            sds: (!config.disable_sds_api).then(|| Sds::new(gate, config.sds)),
            health: Health::new((!config.disable_workload_api).then_some(config.socket_path)),
            metrics: SocketMetrics::new(&config.metrics),
            reflection: OnceLock::new(),
        }
    }

    async fn call(&self, caller: Arc<Connection>, request: Request<Incoming>) -> Response<Body> {
        let measured = self.metrics.begin(request.uri().path(), caller.is_agent());
        let response = self.dispatch(caller, request).await;
        match measured {
            Some(call) => call.until_end(response),
            None => response,
        }
    }

    async fn dispatch(&self, caller: Arc<Connection>, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path();
        if let (Some(method), Some(api)) = (path.strip_prefix(super::PREFIX), &self.workload) {
            let method = method.to_owned();
            return workload_call(api, &method, caller, request).await;
        }
        if let (Some(method), Some(sds)) = (path.strip_prefix(sds::PREFIX), &self.sds) {
            let method = method.to_owned();
            return sds_call(sds, &method, caller, request).await;
        }
        match path {
            path if path.starts_with(HEALTH) => self.health_call(request).await,
            path if path.starts_with(REFLECTION_V1) => self.reflection_call(request, |(v1, _)| v1).await,
            path if path.starts_with(REFLECTION_V1_ALPHA) => {
                self.reflection_call(request, |(_, alpha)| alpha).await
            }
            path => unimplemented_method(path),
        }
    }

    async fn health_call(&self, request: Request<Incoming>) -> Response<Body> {
        if !request.uri().path().ends_with("/Check") {
            return unimplemented_method(request.uri().path());
        }
        let codec = SmallCodec::<HealthCheckResponse, _>::default();
        let check = |request: tonic::Request<_>| self.health.check(request.into_inner());
        tonic::server::Grpc::new(codec).unary(service_fn(check), request).await
    }

    async fn reflection_call(
        &self,
        request: Request<Incoming>,
        version: fn(&(BoxedService, BoxedService)) -> &BoxedService,
    ) -> Response<Body> {
        let services = self.reflection.get_or_init(|| reflection(self.service_names()));
        let Some(services) = services else { return unimplemented_method(request.uri().path()) };
        let Ok(response) = version(services).clone().oneshot(request).await;
        response
    }

    fn service_names(&self) -> Vec<&'static str> {
        let mut names = vec!["grpc.health.v1.Health"];
        names.extend(self.workload.as_ref().map(|_| "SpiffeWorkloadAPI"));
        names.extend(self.sds.as_ref().map(|_| "envoy.service.secret.v3.SecretDiscoveryService"));
        names
    }
}

fn unimplemented_method(path: &str) -> Response<Body> {
    let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or((path, ""));
    Status::unimplemented(format!("unknown method {method} for service {service}")).into_http()
}

/// Built at the first call: few ask, and the descriptors take memory.
fn reflection(names: Vec<&'static str>) -> Option<(BoxedService, BoxedService)> {
    let builder = || {
        let all = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET);
        names.iter().fold(all, |builder, name| builder.with_service_name(*name))
    };
    let (v1, alpha) = (builder().build_v1().ok()?, builder().build_v1alpha().ok()?);
    Some((BoxCloneSyncService::new(v1), BoxCloneSyncService::new(alpha)))
}

fn has_security_header(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all("workload.spiffe.io").iter();
    values.next().is_some_and(|value| value == "true") && values.next().is_none()
}

async fn workload_call(
    api: &WorkloadApi,
    method: &str,
    caller: Arc<Connection>,
    request: Request<Incoming>,
) -> Response<Body> {
    use svid_proto::workload as wire;
    macro_rules! grpc {
        ($kind:ident, $request:ty, $handler:expr) => {{
            let handler = $handler;
            let codec = SmallCodec::<_, $request>::default();
            let service = service_fn(move |request: tonic::Request<$request>| handler(request.into_inner()));
            tonic::server::Grpc::new(codec).$kind(service, request).await
        }};
    }
    const METHODS: [&str; 7] = [
        "FetchX509SVID",
        "FetchX509Bundles",
        "FetchJWTSVID",
        "FetchJWTBundles",
        "ValidateJWTSVID",
        "FetchWITSVID",
        "FetchWITBundles",
    ];
    if !METHODS.contains(&method) {
        return unimplemented_method(request.uri().path());
    }
    if !has_security_header(request.headers()) {
        return Status::invalid_argument("security header missing from request").into_http();
    }
    match method {
        "FetchX509SVID" => {
            grpc!(server_streaming, wire::X509svidRequest, |_| api.fetch_x509_svid(Arc::clone(&caller)))
        }
        "FetchX509Bundles" => {
            grpc!(server_streaming, wire::X509BundlesRequest, |_| api.fetch_x509_bundles(Arc::clone(&caller)))
        }
        "FetchJWTSVID" => {
            grpc!(unary, wire::JwtsvidRequest, |request| api.fetch_jwt_svid(Arc::clone(&caller), request))
        }
        "FetchJWTBundles" => {
            grpc!(server_streaming, wire::JwtBundlesRequest, |_| api.fetch_jwt_bundles(Arc::clone(&caller)))
        }
        "ValidateJWTSVID" => {
            grpc!(unary, wire::ValidateJwtsvidRequest, |request| api
                .validate_jwt_svid(Arc::clone(&caller), request))
        }
        "FetchWITSVID" => Status::unimplemented("fetching WIT-SVIDs is not implemented").into_http(),
        _ => Status::unimplemented("fetching WIT bundles is not implemented").into_http(),
    }
}

async fn sds_call(
    sds: &Sds,
    method: &str,
    caller: Arc<Connection>,
    request: Request<Incoming>,
) -> Response<Body> {
    use svid_proto::envoy::service::discovery::v3::DiscoveryRequest;
    match method {
        "StreamSecrets" => {
            let handler =
                |request: tonic::Request<_>| sds.stream_secrets(Arc::clone(&caller), request.into_inner());
            tonic::server::Grpc::new(SmallCodec::default()).streaming(service_fn(handler), request).await
        }
        "DeltaSecrets" => {
            let handler =
                |request: tonic::Request<_>| sds.delta_secrets(Arc::clone(&caller), request.into_inner());
            tonic::server::Grpc::new(SmallCodec::default()).streaming(service_fn(handler), request).await
        }
        "FetchSecrets" => {
            let handler = |request: tonic::Request<DiscoveryRequest>| {
                sds.fetch_secrets(Arc::clone(&caller), request.into_inner())
            };
            tonic::server::Grpc::new(SmallCodec::default()).unary(service_fn(handler), request).await
        }
        _ => unimplemented_method(request.uri().path()),
    }
}
