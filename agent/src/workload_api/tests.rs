//! The whole socket, in one process, with a cache that the test moves.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use svid_core::bundle::JwtAuthority;
use svid_core::jwt::{JwtSigner, sign_jwt_svid};
use svid_core::key::{KeyType, LocalKey};
use svid_core::selector::{Selector, SelectorSet};
use svid_core::x509::{CertChain, Roots, verify};
use svid_plugin_api::{Caller, PluginError, WorkloadAttestor};
use svid_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use svid_proto::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use svid_proto::grpc::health::v1::HealthCheckRequest;
use svid_proto::grpc::health::v1::health_client::HealthClient;
use svid_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use svid_proto::workload::*;
use tokio::sync::{Notify, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::Channel;
use tonic::{Code, Request};

use super::source::{IdentitySource, Updates};
use super::*;
use crate::cache::{AgentEntry, Identity, JwtFetchError, JwtSvid, WorkloadUpdate};
use crate::caller::Attestors;
use crate::config::{RateLimits, SdsConfig};
use crate::testing::{TestCa, entry};

/// A cache with one group of callers.
struct FakeCache {
    update: watch::Sender<Arc<WorkloadUpdate>>,
    entries: Mutex<Vec<Arc<AgentEntry>>>,
    jwt: Result<JwtSigner, String>,
}

struct FakeUpdates(watch::Receiver<Arc<WorkloadUpdate>>);

#[async_trait]
impl Updates for FakeUpdates {
    async fn next(&mut self) -> Arc<WorkloadUpdate> {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        self.0.borrow_and_update().clone()
    }
}

#[async_trait]
impl IdentitySource for FakeCache {
    fn subscribe(&self, _: Arc<SelectorSet>) -> Box<dyn Updates> {
        let mut receiver = self.update.subscribe();
        receiver.mark_changed();
        Box::new(FakeUpdates(receiver))
    }

    fn current(&self, _: &SelectorSet) -> Arc<WorkloadUpdate> {
        self.update.borrow().clone()
    }

    fn matching_entries(&self, _: &SelectorSet) -> Vec<Arc<AgentEntry>> {
        self.entries.lock().unwrap().clone()
    }

    async fn jwt_svid(&self, entry: &AgentEntry, audience: &[String]) -> Result<JwtSvid, JwtFetchError> {
        let refused =
            |message: &String| JwtFetchError::Server { code: Code::Unknown, message: message.clone() };
        let signer = self.jwt.as_ref().map_err(refused)?;
        let (ttl, now) = (Duration::from_secs(300), SystemTime::now());
        let svid = sign_jwt_svid(signer, &entry.spiffe_id, audience, ttl, now, None).unwrap();
        Ok(JwtSvid {
            token: svid.token.to_string().into(),
            id: entry.spiffe_id.clone(),
            issued_at: 0,
            expires_at: 0,
        })
    }
}

/// Says what the test wants, or fails.
struct FakeAttestor(Result<&'static str, &'static str>);

#[async_trait]
impl WorkloadAttestor for FakeAttestor {
    fn name(&self) -> &str {
        "fake"
    }
    async fn attest(&self, _: &dyn Caller) -> Result<Vec<Selector>, PluginError> {
        self.0.map(|value| vec![Selector::new("fake", value).unwrap()]).map_err(PluginError::internal)
    }
}

struct World {
    ca: TestCa,
    partner: TestCa,
    cache: Arc<FakeCache>,
    signer: JwtSigner,
    config: WorkloadServerConfig,
    attestors: Vec<Result<&'static str, &'static str>>,
    _dir: tempfile::TempDir,
}

fn signer() -> JwtSigner {
    let key = LocalKey::generate(KeyType::EcP256).unwrap().into_signer();
    JwtSigner::new("kid-1".into(), key, SystemTime::now() + Duration::from_secs(3600), None)
}

impl World {
    fn new() -> Self {
        let (ca, partner, signer) = (TestCa::new("example.org"), TestCa::new("partner.example"), signer());
        let again = JwtSigner::new("kid-1".into(), Arc::clone(signer.signer()), signer.not_after(), None);
        let dir = tempfile::tempdir().unwrap();
        let config = WorkloadServerConfig {
            passed: None,
            socket_path: dir.path().join("public/api.sock"),
            trust_domain: ca.trust_domain.clone(),
            disable_workload_api: false,
            disable_sds_api: false,
            sds: SdsConfig::default(),
            allow_unauthenticated_verifiers: false,
            allowed_foreign_jwt_claims: Vec::new(),
            log_selectors: Vec::new(),
            ratelimit: RateLimits::default(),
            clock: Clock::system(),
            metrics: Default::default(),
        };
        let empty = update_of(&ca, &partner, &signer, &[]);
        let cache =
            FakeCache { update: watch::Sender::new(empty), entries: Mutex::default(), jwt: Ok(again) };
        Self { ca, partner, cache: Arc::new(cache), signer, config, attestors: vec![Ok("a")], _dir: dir }
    }

    fn identity(&self, id: &str, path: &str, hint: &str, created_at: i64) -> Identity {
        let entry = AgentEntry { hint: hint.into(), created_at, ..entry(id, path, &["fake:a"]) };
        let x509 = self.ca.identity(&entry.spiffe_id, Duration::from_secs(3600), SystemTime::now());
        Identity { entry: Arc::new(entry), x509: Arc::new(x509) }
    }

    fn publish(&self, identities: &[Identity]) {
        *self.cache.entries.lock().unwrap() = identities.iter().map(|one| Arc::clone(&one.entry)).collect();
        self.cache.update.send_replace(update_of(&self.ca, &self.partner, &self.signer, identities));
    }

    async fn serve(&self) -> (SpiffeWorkloadApiClient<Channel>, Channel, DropGuard) {
        let attestors =
            self.attestors.iter().map(|answer| Arc::new(FakeAttestor(*answer)) as Arc<dyn WorkloadAttestor>);
        let (listening, stop) = (Arc::new(Notify::new()), CancellationToken::new());
        let source: Arc<dyn IdentitySource> = Arc::clone(&self.cache) as _;
        tokio::spawn(serve(
            self.config.clone(),
            source,
            Attestors::new(attestors.collect()),
            Arc::clone(&listening),
            stop.clone(),
        ));
        listening.notified().await;
        let channel = health::connect(&self.config.socket_path).await.unwrap();
        (SpiffeWorkloadApiClient::new(channel.clone()), channel, stop.drop_guard())
    }
}

fn update_of(
    ca: &TestCa,
    partner: &TestCa,
    signer: &JwtSigner,
    identities: &[Identity],
) -> Arc<WorkloadUpdate> {
    let mut bundle = ca.bundle();
    bundle.jwt_authorities.push(JwtAuthority {
        key_id: signer.key_id().into(),
        public_key: signer.public_key_der().into(),
        expires_at: 0,
        tainted: false,
    });
    static REVISION: AtomicU64 = AtomicU64::new(0);
    let revision = REVISION.fetch_add(1, Ordering::Relaxed);
    let foreign = Arc::new(partner.bundle());
    let federated = match identities {
        [] => BTreeMap::new(),
        _ => BTreeMap::from([(foreign.trust_domain.clone(), foreign)]),
    };
    Arc::new(WorkloadUpdate {
        identities: identities.to_vec(),
        bundle: Arc::new(bundle),
        federated,
        x509_response: OnceLock::new(),
        revision,
        x509_revision: revision,
    })
}

fn with_header<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
    request
}

macro_rules! refused {
    ($call:expr, $code:ident, $message:expr) => {{
        let status = $call.await.err().expect("a refusal");
        assert_eq!((status.code(), status.message()), (Code::$code, $message));
    }};
}

async fn first<T>(stream: Result<tonic::Response<tonic::Streaming<T>>, Status>) -> Result<T, Status> {
    Ok(stream?.into_inner().message().await?.expect("a message"))
}

/// WE 3, WE 6; vectors wa-01 to wa-18.
#[tokio::test]
async fn the_security_header() {
    let world = World::new();
    world.publish(&[world.identity("a", "/web", "", 1)]);
    let (mut client, _, _stop) = world.serve().await;
    let refusal = "security header missing from request";
    refused!(client.fetch_x509svid(X509svidRequest {}), InvalidArgument, refusal);
    refused!(client.fetch_x509_bundles(X509BundlesRequest {}), InvalidArgument, refusal);
    refused!(client.fetch_jwtsvid(JwtsvidRequest::default()), InvalidArgument, refusal);
    refused!(client.fetch_jwt_bundles(JwtBundlesRequest {}), InvalidArgument, refusal);
    refused!(client.validate_jwtsvid(ValidateJwtsvidRequest::default()), InvalidArgument, refusal);
    refused!(client.fetch_wit_bundles(WitBundlesRequest {}), InvalidArgument, refusal);
    let cases: [(&[&str], bool); 7] = [
        (&["true"], true),
        (&["false"], false),
        (&[""], false),
        (&["1"], false),
        (&["false", "true"], false),
        (&["true", "false"], false),
        (&["true", "true"], false),
    ];
    for (values, fine) in cases {
        let mut request = Request::new(X509svidRequest {});
        for value in values {
            request.metadata_mut().append("workload.spiffe.io", value.parse().unwrap());
        }
        assert_eq!(client.fetch_x509svid(request).await.is_ok(), fine, "{values:?}");
    }
    let mut request = with_header(X509svidRequest {});
    request.metadata_mut().insert("authorization", "Bearer x".parse().unwrap());
    assert!(first(client.fetch_x509svid(request).await).await.is_ok(), "other metadata does no harm (wa-19)");
}

/// WA 5.2.1; vectors wa-28, wa-29, wa-30, wa-43, wa-44.
#[tokio::test]
async fn x509_svids() {
    let world = World::new();
    world.publish(&[
        world.identity("a", "/web", "blue", 2),
        world.identity("b", "/db", "blue", 1),
        world.identity("c", "/queue", "", 1),
    ]);
    let (mut client, _, _stop) = world.serve().await;
    let response = first(client.fetch_x509svid(with_header(X509svidRequest {})).await).await.unwrap();
    let ids: Vec<&str> = response.svids.iter().map(|svid| svid.spiffe_id.as_str()).collect();
    assert_eq!(
        ids,
        ["spiffe://example.org/db", "spiffe://example.org/queue"],
        "the older entry keeps the hint"
    );
    assert_eq!(response.svids[0].hint, "blue");
    for svid in &response.svids {
        let chain = CertChain::from_concatenated_der(&svid.x509_svid).unwrap();
        let certs: Vec<&[u8]> = chain.iter().collect();
        let roots = Roots::from_bundle(&world.ca.bundle());
        assert_eq!(verify(&certs, &roots, SystemTime::now()).unwrap().id().as_str(), svid.spiffe_id);
        assert_eq!(svid.bundle, world.ca.bundle().x509_der());
        assert!(
            LocalKey::from_pkcs8(svid_core::key::PrivateKeyDer::from_pkcs8(svid.x509_svid_key.clone()))
                .is_ok()
        );
    }
    let keys: Vec<&String> = response.federated_bundles.keys().collect();
    assert_eq!(keys, ["spiffe://partner.example"]);
}

/// WA 4.3, 4.4, 5.2.1; vectors wa-33, wa-35, wa-36.
#[tokio::test]
async fn a_stream_follows_and_ends_with_the_last_identity() {
    let world = World::new();
    let (web, db) = (world.identity("a", "/web", "", 1), world.identity("b", "/db", "", 1));
    world.publish(&[web.clone(), db]);
    let (mut client, _, _stop) = world.serve().await;
    let mut stream = client.fetch_x509svid(with_header(X509svidRequest {})).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap().unwrap().svids.len(), 2);
    world.publish(&[web]);
    assert_eq!(stream.message().await.unwrap().unwrap().svids.len(), 1);
    world.publish(&[]);
    refused!(stream.message(), PermissionDenied, "no identity issued");
}

/// WE 6; vectors wa-25, wa-46.
#[tokio::test]
async fn no_identity() {
    let mut world = World::new();
    let (mut client, _, _stop) = world.serve().await;
    let denied = "no identity issued";
    refused!(first(client.fetch_x509svid(with_header(X509svidRequest {})).await), PermissionDenied, denied);
    refused!(
        first(client.fetch_x509_bundles(with_header(X509BundlesRequest {})).await),
        PermissionDenied,
        denied
    );
    refused!(
        first(client.fetch_jwt_bundles(with_header(JwtBundlesRequest {})).await),
        PermissionDenied,
        denied
    );
    let request = JwtsvidRequest { audience: vec!["a".into()], ..Default::default() };
    refused!(client.fetch_jwtsvid(with_header(request)), PermissionDenied, denied);

    world.config.allow_unauthenticated_verifiers = true;
    world.config.socket_path = world.config.socket_path.with_file_name("second.sock");
    let (mut client, _, _stop) = world.serve().await;
    let bundles =
        first(client.fetch_x509_bundles(with_header(X509BundlesRequest {})).await).await.unwrap().bundles;
    assert_eq!(bundles.keys().collect::<Vec<_>>(), ["spiffe://example.org"]);
    refused!(first(client.fetch_x509svid(with_header(X509svidRequest {})).await), PermissionDenied, denied);
}

/// WE 6; vector wa-26.
#[tokio::test]
async fn failed_attestation_is_unavailable() {
    for (attestors, fine) in [
        (vec![Err("broken")], false),
        (vec![Err("broken"), Err("too")], false),
        (vec![Err("broken"), Ok("a")], true),
    ] {
        let world = World { attestors, ..World::new() };
        world.publish(&[world.identity("a", "/web", "", 1)]);
        let (mut client, channel, _stop) = world.serve().await;
        let got = client.fetch_x509svid(with_header(X509svidRequest {})).await.map(|_| ());
        let failed = (Code::Unavailable, "workload attestation failed".to_owned());
        assert_eq!(
            got.map_err(|status| (status.code(), status.message().to_owned())),
            if fine { Ok(()) } else { Err(failed) }
        );
        let sds = SecretDiscoveryServiceClient::new(channel).fetch_secrets(DiscoveryRequest::default()).await;
        assert_eq!(sds.is_ok(), fine);
    }
}

/// WA 5.2.2; vector wa-47.
#[tokio::test]
async fn bundles_come_once_per_change() {
    let world = World::new();
    world.publish(&[world.identity("a", "/web", "", 1)]);
    let (mut client, _, _stop) = world.serve().await;
    let mut stream =
        client.fetch_x509_bundles(with_header(X509BundlesRequest {})).await.unwrap().into_inner();
    let bundles: BTreeMap<_, _> = stream.message().await.unwrap().unwrap().bundles.into_iter().collect();
    assert_eq!(bundles.keys().collect::<Vec<_>>(), ["spiffe://example.org", "spiffe://partner.example"]);
    assert_eq!(bundles["spiffe://partner.example"], world.partner.bundle().x509_der());
    world.publish(&[world.identity("a", "/web", "", 1)]);
    world.publish(&[]);
    refused!(stream.message(), PermissionDenied, "no identity issued");

    world.publish(&[world.identity("a", "/web", "", 1)]);
    let jwt = first(client.fetch_jwt_bundles(with_header(JwtBundlesRequest {})).await).await.unwrap();
    let jwks = String::from_utf8(jwt.bundles["spiffe://example.org"].clone()).unwrap();
    assert!(
        jwks.contains("\n    \"keys\"") && jwks.contains("\"kid-1\"") && !jwks.contains("\"use\""),
        "{jwks}"
    );
}

/// WA 4.5, 6.2.1; vectors wa-49 to wa-53.
#[tokio::test]
async fn jwt_svids() {
    let world = World::new();
    world.publish(&[
        world.identity("a", "/web", "x", 1),
        world.identity("b", "/db", "x", 2),
        world.identity("c", "/q", "", 3),
    ]);
    let (mut client, _, _stop) = world.serve().await;
    let request = |audience: &[&str], spiffe_id: &str| {
        with_header(JwtsvidRequest {
            audience: audience.iter().map(|&text| text.into()).collect(),
            spiffe_id: spiffe_id.into(),
        })
    };
    refused!(client.fetch_jwtsvid(request(&[], "")), InvalidArgument, "audience must be specified");
    let long = "a".repeat(svid_core::jwt::MAX_AUDIENCE_BYTES);
    let refused = client.fetch_jwtsvid(request(&[&long], ""));
    refused!(refused, InvalidArgument, "audience is too long: 32768 bytes allowed");
    refused!(
        client.fetch_jwtsvid(request(&["a"], "web")),
        InvalidArgument,
        "invalid requested SPIFFE ID: scheme is missing or invalid"
    );
    let all = client.fetch_jwtsvid(request(&["a", "b"], "")).await.unwrap().into_inner().svids;
    let ids: Vec<(&str, &str)> =
        all.iter().map(|svid| (svid.spiffe_id.as_str(), svid.hint.as_str())).collect();
    assert_eq!(ids, [("spiffe://example.org/web", "x"), ("spiffe://example.org/q", "")]);
    let one =
        client.fetch_jwtsvid(request(&["a"], "spiffe://example.org/q")).await.unwrap().into_inner().svids;
    assert_eq!(one.len(), 1);
    refused!(
        client.fetch_jwtsvid(request(&["a"], "spiffe://example.org/db")),
        PermissionDenied,
        "no identity issued"
    );

    let validate = |audience: &str, svid: &str| {
        with_header(ValidateJwtsvidRequest { audience: audience.into(), svid: svid.into() })
    };
    refused!(client.validate_jwtsvid(validate("", "x")), InvalidArgument, "audience must be specified");
    refused!(client.validate_jwtsvid(validate("a", "")), InvalidArgument, "svid must be specified");
    let bad = client.validate_jwtsvid(validate("a", "x.y.z")).await.unwrap_err();
    assert_eq!(bad.code(), Code::InvalidArgument);
    assert_eq!(
        client.validate_jwtsvid(validate("c", &all[0].svid)).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let valid = client.validate_jwtsvid(validate("b", &all[0].svid)).await.unwrap().into_inner();
    assert_eq!(valid.spiffe_id, "spiffe://example.org/web");
    let fields = valid.claims.unwrap().fields;
    assert!(fields.contains_key("iat") && fields.contains_key("exp"));
    let audience = fields["aud"].kind.clone().unwrap();
    assert!(matches!(audience, prost_types::value::Kind::ListValue(list) if list.values.len() == 2));
}

#[tokio::test]
async fn a_server_without_jwt_is_quoted() {
    let world = World::new();
    let cache = FakeCache {
        update: watch::Sender::new(update_of(&world.ca, &world.partner, &world.signer, &[])),
        entries: Mutex::new(vec![Arc::new(entry("a", "/web", &["fake:a"]))]),
        jwt: Err("JWT functionality is disabled".into()),
    };
    let world = World { cache: Arc::new(cache), ..world };
    let (mut client, _, _stop) = world.serve().await;
    let request = JwtsvidRequest { audience: vec!["a".into()], ..Default::default() };
    refused!(
        client.fetch_jwtsvid(with_header(request)),
        Unavailable,
        "could not fetch JWT-SVID: JWT functionality is disabled"
    );
}

/// WA 3; vectors wa-21, wa-22 and the WIT rows.
#[tokio::test]
async fn paths_that_are_not_served() {
    let mut world = World::new();
    world.config.disable_sds_api = true;
    let (mut client, channel, _stop) = world.serve().await;
    refused!(
        client.fetch_witsvid(with_header(WitsvidRequest::default())),
        Unimplemented,
        "fetching WIT-SVIDs is not implemented"
    );
    refused!(
        client.fetch_wit_bundles(with_header(WitBundlesRequest {})),
        Unimplemented,
        "fetching WIT bundles is not implemented"
    );
    let sds =
        SecretDiscoveryServiceClient::new(channel.clone()).fetch_secrets(DiscoveryRequest::default()).await;
    assert_eq!(sds.unwrap_err().code(), Code::Unimplemented);
    let mut health = HealthClient::new(channel);
    let service = HealthCheckRequest { service: "x".into() };
    refused!(health.check(service), InvalidArgument, "per-service health is not supported");
    assert_eq!(health.watch(HealthCheckRequest::default()).await.unwrap_err().code(), Code::Unimplemented);
    let answer = health.check(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(answer.status, 1, "without an identity the agent is healthy");
}

#[tokio::test]
async fn health_tells_when_attestation_is_broken() {
    let world = World { attestors: vec![Err("broken")], ..World::new() };
    let (_, channel, _stop) = world.serve().await;
    let answer = HealthClient::new(channel).check(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(answer.status, 2);
}

#[tokio::test]
async fn reflection_lists_what_is_served() {
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    let world = World::new();
    let (_, channel, _stop) = world.serve().await;
    let ask = tonic_reflection::pb::v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let stream = ServerReflectionClient::new(channel).server_reflection_info(tokio_stream::iter([ask])).await;
    let answer = first(stream).await.unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(list) = answer else { panic!("{answer:?}") };
    let names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
    for name in ["SpiffeWorkloadAPI", "envoy.service.secret.v3.SecretDiscoveryService"] {
        assert!(names.iter().any(|listed| listed == name), "{name} in {names:?}");
    }
}

#[tokio::test]
async fn secrets_over_the_socket() {
    let world = World::new();
    world.publish(&[world.identity("a", "/web", "", 1)]);
    let (_, channel, _stop) = world.serve().await;
    let mut sds = SecretDiscoveryServiceClient::new(channel);
    let named = |name: &str| DiscoveryRequest { resource_names: vec![name.into()], ..Default::default() };
    let fetched = sds.fetch_secrets(named("default")).await.unwrap().into_inner();
    assert_eq!((fetched.resources.len(), fetched.version_info.as_str(), fetched.nonce.as_str()), (1, "", ""));
    refused!(
        sds.fetch_secrets(named("nope")),
        InvalidArgument,
        "workload is not authorized for the requested identities [\"nope\"]"
    );

    let requests =
        tokio_stream::StreamExt::chain(tokio_stream::iter([named("default")]), tokio_stream::pending());
    let mut stream = sds.stream_secrets(requests).await.unwrap().into_inner();
    let one = stream.message().await.unwrap().unwrap();
    world.publish(&[world.identity("a", "/web", "", 1)]);
    let two = stream.message().await.unwrap().unwrap();
    assert_eq!((one.version_info.as_str(), two.version_info.as_str()), ("1", "2"));
    assert_ne!(one.nonce, two.nonce);

    let first_request =
        DeltaDiscoveryRequest { resource_names_subscribe: vec!["default".into()], ..Default::default() };
    let requests =
        tokio_stream::StreamExt::chain(tokio_stream::iter([first_request]), tokio_stream::pending());
    let mut stream = sds.delta_secrets(requests).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap().unwrap().resources[0].name, "default");
    world.publish(&[]);
    assert_eq!(stream.message().await.unwrap().unwrap().removed_resources, ["default"]);
}

/// WA 4.1; vector wa-42.
#[tokio::test]
async fn many_streams_on_one_connection() {
    let world = World::new();
    world.publish(&[world.identity("a", "/web", "", 1)]);
    let (client, _, _stop) = world.serve().await;
    let mut streams = Vec::new();
    for _ in 0..200 {
        let mut stream =
            client.clone().fetch_x509svid(with_header(X509svidRequest {})).await.unwrap().into_inner();
        assert_eq!(stream.message().await.unwrap().unwrap().svids.len(), 1);
        streams.push(stream);
    }
    assert!(open_streams() >= 200);
}

#[tokio::test]
async fn a_socket_directory_of_another_user_is_refused() {
    let world = World::new();
    let dir = world.config.socket_path.parent().unwrap();
    std::fs::create_dir(dir).unwrap();
    std::fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let source: Arc<dyn IdentitySource> = Arc::clone(&world.cache) as _;
    let attestors = Attestors::new(Vec::new());
    let served =
        serve(world.config.clone(), source, attestors, Arc::default(), CancellationToken::new()).await;
    assert!(served.is_err());
}

#[tokio::test]
async fn an_agent_that_fails_leaves_no_socket() {
    let world = World::new();
    let path = world.config.socket_path.clone();
    let listening = Arc::new(Notify::new());
    let serving = tokio::spawn(serve(
        world.config.clone(),
        Arc::clone(&world.cache) as _,
        Attestors::new(Vec::new()),
        Arc::clone(&listening),
        CancellationToken::new(),
    ));
    listening.notified().await;
    assert!(path.exists());
    serving.abort();
    assert!(serving.await.unwrap_err().is_cancelled());
    assert!(!path.exists());
}
