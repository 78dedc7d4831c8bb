//! A server that speaks the agent's half of SPIRE's API over real TLS, and does as a test tells it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use svid_core::id::{SpiffeId, TrustDomain};
use svid_core::key::{KeyType, LocalKey};
use svid_core::x509::{PublicKey, Subject, UnverifiedCsr, VerifiedCsr};
use svid_daemon::tls::{Identity, Roots, SpiffeClientVerifier, TlsPolicy, server_config};
use svid_proto::convert::{bundle_to_wire, id_to_wire, selectors_to_wire};
use svid_proto::spire::api::server::agent::v1 as agent;
use svid_proto::spire::api::server::entry::v1 as entry;
use svid_proto::spire::api::server::svid::v1 as svid;
use svid_proto::spire::api::types;
use svid_proto::spire::api::types::permission_denied_details::Reason;
use svid_proto::svid::sync::v1 as push;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::server::Grpc;
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;
use tower::service_fn;

use super::TestCa;
use crate::cache::AgentEntry;
use crate::client::Dialer;
use crate::client::error::tests::denied;

/// What a test sets and looks at.
pub(crate) struct FakeState {
    pub(crate) ca: TestCa,
    pub(crate) entries: Mutex<Vec<AgentEntry>>,
    /// Paths of all calls, in order.
    pub(crate) calls: Mutex<Vec<String>>,
    /// Calls whose path holds this text are refused for this reason.
    pub(crate) deny: Mutex<Option<(&'static str, Reason)>>,
    pub(crate) reattestable: AtomicBool,
    /// Seconds of an agent's SVID.
    pub(crate) agent_ttl: AtomicU64,
    /// Ids that were asked for in full.
    pub(crate) asked: Mutex<Vec<String>>,
    /// The push stream, if the server has one.
    pub(crate) push: Option<broadcast::Sender<push::WatchResponse>>,
}

pub(crate) struct FakeServer {
    pub(crate) state: Arc<FakeState>,
    pub(crate) port: u16,
}

const PAGE: usize = 500;

impl FakeServer {
    pub(crate) async fn start(with_push: bool) -> Self {
        let state = Arc::new(FakeState {
            ca: TestCa::new("example.org"),
            entries: Mutex::default(),
            calls: Mutex::default(),
            deny: Mutex::default(),
            reattestable: AtomicBool::new(false),
            agent_ttl: AtomicU64::new(3600),
            asked: Mutex::default(),
            push: with_push.then(|| broadcast::channel(16).0),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(accept(listener, Arc::clone(&state)));
        Self { state, port }
    }

    pub(crate) fn dialer(&self) -> Dialer {
        Dialer::new("127.0.0.1", self.port, self.state.ca.trust_domain.clone(), false)
    }

    pub(crate) fn calls(&self, method: &str) -> usize {
        self.state.calls.lock().unwrap().iter().filter(|call| call.ends_with(method)).count()
    }

    pub(crate) fn push(&self, message: push::WatchResponse) {
        self.state.push.as_ref().unwrap().send(message).unwrap();
    }
}

async fn accept(listener: tokio::net::TcpListener, state: Arc<FakeState>) {
    let acceptor = tokio_rustls::TlsAcceptor::from(tls(&state.ca));
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let (acceptor, state) = (acceptor.clone(), Arc::clone(&state));
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(tcp).await else { return };
            let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let state = Arc::clone(&state);
                async move { Ok::<_, std::convert::Infallible>(route(state, request.map(Body::new)).await) }
            });
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

fn tls(ca: &TestCa) -> Arc<rustls::ServerConfig> {
    let identity = ca.identity(&ca.trust_domain.server_id(), Duration::from_secs(3600), SystemTime::now());
    let chain: Vec<&[u8]> = identity.svid.chain().iter().collect();
    let identity = Identity::from_pkcs8(chain, identity.key.secret_bytes()).unwrap();
    let roots = Arc::new(Roots::from_ders([ca.authority.cert_der()]).unwrap());
    let bundles = Arc::new(move |_: &TrustDomain| Some(Arc::clone(&roots)));
    let verifier = SpiffeClientVerifier::new(ca.trust_domain.clone(), [], bundles);
    server_config(&identity, Arc::new(verifier), TlsPolicy::default()).unwrap()
}

async fn unary<Q, A, F>(request: http::Request<Body>, answer: F) -> http::Response<Body>
where
    Q: Message + Default + Send + 'static,
    A: Message + Default + Send + 'static,
    F: Fn(Q) -> Result<A, Status> + Clone,
{
    let service = service_fn(move |request: Request<Q>| {
        std::future::ready(answer(request.into_inner()).map(Response::new))
    });
    Grpc::new(ProstCodec::<A, Q>::default()).unary(service, request).await
}

async fn route(state: Arc<FakeState>, request: http::Request<Body>) -> http::Response<Body> {
    let path = request.uri().path().to_owned();
    state.calls.lock().unwrap().push(path.clone());
    let refusal = *state.deny.lock().unwrap();
    if let Some((_, reason)) = refusal.filter(|(text, _)| path.contains(text)) {
        return denied(reason).into_http();
    }
    let method = path.rsplit('/').next().unwrap_or_default();
    match method {
        "PostStatus" => unary(request, |_: agent::PostStatusRequest| Ok(agent::PostStatusResponse {})).await,
        "GetBundle" => unary(request, move |_: Bundleless| Ok(bundle_to_wire(&state.ca.bundle()))).await,
        "RenewAgent" => {
            unary(request, move |request: agent::RenewAgentRequest| {
                let svid = Some(state.agent_svid(&request.params.unwrap().csr));
                Ok(agent::RenewAgentResponse { svid })
            })
            .await
        }
        "AttestAgent" => attest(state, request).await,
        "SyncAuthorizedEntries" => sync(state, request).await,
        "BatchNewX509SVID" => {
            unary(request, move |request: svid::BatchNewX509svidRequest| Ok(state.mint(&request))).await
        }
        "NewJWTSVID" => unary(request, move |request: svid::NewJwtsvidRequest| state.jwt(&request)).await,
        "Watch" if state.push.is_some() => watch(state, request).await,
        _ => Status::unimplemented(path).into_http(),
    }
}

type Bundleless = svid_proto::spire::api::server::bundle::v1::GetBundleRequest;

impl FakeState {
    fn agent_svid(&self, csr: &[u8]) -> types::X509svid {
        let key = UnverifiedCsr::from_der(csr).unwrap().public_key().clone();
        let id: SpiffeId = "spiffe://example.org/spire/agent/join_token/x".parse().unwrap();
        let ttl = Duration::from_secs(self.agent_ttl.load(Ordering::Relaxed));
        let svid = self.ca.sign(&id, key, ttl, Subject::Spire, SystemTime::now());
        types::X509svid { cert_chain: svid.chain().to_ders(), ..Default::default() }
    }

    fn mint(&self, request: &svid::BatchNewX509svidRequest) -> svid::BatchNewX509svidResponse {
        let one = |params: &svid::NewX509svidParams| {
            let csr = VerifiedCsr::from_der(&params.csr).unwrap();
            let id = csr.spiffe_id().unwrap();
            let ttl = Duration::from_secs(3600);
            let svid = self.ca.sign(&id, csr.into_public_key(), ttl, Subject::Spire, SystemTime::now());
            svid::batch_new_x509svid_response::Result {
                status: Some(types::Status::default()),
                svid: Some(types::X509svid { cert_chain: svid.chain().to_ders(), ..Default::default() }),
            }
        };
        svid::BatchNewX509svidResponse { results: request.params.iter().map(one).collect() }
    }

    fn jwt(&self, request: &svid::NewJwtsvidRequest) -> Result<svid::NewJwtsvidResponse, Status> {
        let entries = self.entries.lock().unwrap();
        let entry = entries.iter().find(|entry| entry.id.as_str() == request.entry_id);
        let entry = entry.ok_or_else(|| Status::invalid_argument("no entry"))?;
        let now = svid_core::clock::unix_seconds(SystemTime::now());
        let svid = types::Jwtsvid {
            token: "a.b.c".into(),
            id: Some(id_to_wire(&entry.spiffe_id)),
            issued_at: now,
            expires_at: now + 300,
            hint: String::new(),
        };
        Ok(svid::NewJwtsvidResponse { svid: Some(svid) })
    }
}

async fn attest(state: Arc<FakeState>, request: http::Request<Body>) -> http::Response<Body> {
    let service = service_fn(move |request: Request<Streaming<agent::AttestAgentRequest>>| {
        let state = Arc::clone(&state);
        async move {
            let first = request.into_inner().message().await?.unwrap();
            let Some(agent::attest_agent_request::Step::Params(params)) = first.step else {
                return Err(Status::invalid_argument("no params"));
            };
            assert!(!params.data.unwrap().payload.is_empty());
            let result = agent::attest_agent_response::Result {
                svid: Some(state.agent_svid(&params.params.unwrap().csr)),
                reattestable: state.reattestable.load(Ordering::Relaxed),
            };
            let step = agent::attest_agent_response::Step::Result(result);
            let answer = agent::AttestAgentResponse { step: Some(step) };
            Ok(Response::new(tokio_stream::iter([Ok(answer)])))
        }
    });
    Grpc::new(ProstCodec::default()).streaming(service, request).await
}

type SyncAnswer = entry::SyncAuthorizedEntriesResponse;

async fn sync(state: Arc<FakeState>, request: http::Request<Body>) -> http::Response<Body> {
    let service = service_fn(move |request: Request<Streaming<entry::SyncAuthorizedEntriesRequest>>| {
        let state = Arc::clone(&state);
        async move {
            let (answers, stream) = mpsc::channel(64);
            tokio::spawn(serve_sync(state, request.into_inner(), answers));
            Ok::<_, Status>(Response::new(ReceiverStream::new(stream)))
        }
    });
    Grpc::new(ProstCodec::default()).streaming(service, request).await
}

async fn serve_sync(
    state: Arc<FakeState>,
    mut requests: Streaming<entry::SyncAuthorizedEntriesRequest>,
    answers: mpsc::Sender<Result<SyncAnswer, Status>>,
) {
    let first = requests.message().await.unwrap().unwrap();
    assert!(first.output_mask.unwrap().revision_number && first.ids.is_empty());
    let entries = state.entries.lock().unwrap().clone();
    if entries.len() <= PAGE {
        let entries = entries.iter().map(to_wire).collect();
        let _ = answers.send(Ok(SyncAnswer { entries, ..Default::default() })).await;
        return;
    }
    let pages: Vec<_> = entries.chunks(PAGE).collect();
    for (at, page) in pages.iter().enumerate() {
        let entry_revisions = page.iter().map(|entry| entry::EntryRevision {
            id: entry.id.to_string(),
            revision_number: entry.revision,
            created_at: entry.created_at,
        });
        let entry_revisions = entry_revisions.collect();
        let more = at + 1 < pages.len();
        let _ = answers.send(Ok(SyncAnswer { entry_revisions, more, ..Default::default() })).await;
    }
    while let Ok(Some(request)) = requests.message().await {
        assert!(request.ids.len() <= PAGE);
        state.asked.lock().unwrap().extend(request.ids.iter().cloned());
        let wanted = entries.iter().filter(|entry| request.ids.contains(&entry.id.to_string()));
        let entries = wanted.map(to_wire).collect();
        let _ = answers.send(Ok(SyncAnswer { entries, ..Default::default() })).await;
    }
}

async fn watch(state: Arc<FakeState>, request: http::Request<Body>) -> http::Response<Body> {
    let service = service_fn(move |request: Request<push::WatchRequest>| {
        let state = Arc::clone(&state);
        async move {
            let changes = state.push.as_ref().unwrap().subscribe();
            let changes = tokio_stream::wrappers::BroadcastStream::new(changes);
            let changes = changes.filter_map(Result::ok).map(Ok::<_, Status>);
            let revisions = state.entries.lock().unwrap().iter().map(revision).collect();
            let first = match request.into_inner().position {
                Some(position) => push::WatchResponse { position: Some(position), ..Default::default() },
                None => push::WatchResponse {
                    position: Some(position(1)),
                    snapshot: true,
                    revisions,
                    ..Default::default()
                },
            };
            Ok::<_, Status>(Response::new(tokio_stream::iter([Ok(first)]).chain(changes)))
        }
    });
    Grpc::new(ProstCodec::default()).server_streaming(service, request).await
}

fn revision(entry: &AgentEntry) -> push::EntryRevision {
    push::EntryRevision {
        id: entry.id.to_string(),
        revision_number: entry.revision,
        created_at: entry.created_at,
    }
}

pub(crate) fn position(seq: u64) -> push::Position {
    push::Position { epoch: vec![7; 16], seq }
}

pub(crate) fn to_wire(entry: &AgentEntry) -> types::Entry {
    types::Entry {
        id: entry.id.to_string(),
        spiffe_id: Some(id_to_wire(&entry.spiffe_id)),
        selectors: selectors_to_wire(&entry.selectors),
        revision_number: entry.revision,
        created_at: entry.created_at,
        hint: entry.hint.clone(),
        ..Default::default()
    }
}

/// An agent's identity that this CA issued.
pub(crate) fn agent_identity(ca: &TestCa, reattestable: bool, ttl: Duration) -> crate::client::AgentIdentity {
    let key = LocalKey::generate(KeyType::EcP256).unwrap();
    let id: SpiffeId = "spiffe://example.org/spire/agent/join_token/x".parse().unwrap();
    let svid = ca.sign(&id, PublicKey::of(&key).unwrap(), ttl, Subject::Spire, SystemTime::now());
    crate::client::AgentIdentity { svid, signer: key.into_signer(), reattestable }
}
