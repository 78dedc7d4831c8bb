//! Authorities change under the feet of workloads: everything follows at once, and no handshake fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use svid_proto::envoy::config::core::v3::data_source::Specifier;
use svid_proto::envoy::extensions::transport_sockets::tls::v3::{Secret, secret};
use svid_proto::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use svid_proto::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use svid_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use svid_proto::workload::{JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, ValidateJwtsvidRequest};
use svid_tests::client::unix;
use svid_tests::mtls::Workload;
use svid_tests::process::{eventually, run};
use svid_tests::{Agent, AgentOptions, PATIENCE, Server, TRUST_DOMAIN, until};
use tonic::{Request, Streaming};

fn my_uid() -> String {
    format!("unix:uid:{}", nix::unistd::geteuid())
}

/// A server, and an agent that would not ask by itself within an hour.
async fn site() -> (Server, Agent) {
    let server = Server::start().await;
    let options =
        AgentOptions { agent: "experimental { sync_interval = \"1h\" }".into(), ..Default::default() };
    let agent = Agent::join_with(&server, options).await;
    server.entry("/web", &my_uid(), &[]).await;
    eventually(|| agent.cli(&["api", "fetch", "x509"])).await;
    (server, agent)
}

fn workload<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().expect("ascii"));
    request
}

/// An SDS stream that acknowledges what it gets, as Envoy does.
struct Sds {
    requests: tokio::sync::mpsc::Sender<DiscoveryRequest>,
    answers: Streaming<DiscoveryResponse>,
    names: Vec<String>,
}

impl Sds {
    async fn open(agent: &Agent, names: &[&str]) -> Self {
        let (requests, stream) = tokio::sync::mpsc::channel(4);
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let first = DiscoveryRequest { resource_names: names.clone(), ..Default::default() };
        requests.send(first).await.expect("room");
        let mut client = SecretDiscoveryServiceClient::new(unix(&agent.socket()).await);
        let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
        let answers = client.stream_secrets(stream).await.expect("a stream").into_inner();
        Self { requests, answers, names }
    }

    async fn next(&mut self) -> Vec<Secret> {
        use prost::Message as _;
        let answer = tokio::time::timeout(PATIENCE, self.answers.message()).await.expect("in time");
        let answer = answer.expect("open").expect("an answer");
        let request = DiscoveryRequest {
            resource_names: self.names.clone(),
            version_info: answer.version_info.clone(),
            response_nonce: answer.nonce.clone(),
            ..Default::default()
        };
        self.requests.send(request).await.expect("room");
        answer.resources.iter().map(|any| Secret::decode(any.value.as_slice()).expect("a secret")).collect()
    }
}

/// The PEM text of a certificate chain.
fn chain_of(secrets: &[Secret]) -> Option<String> {
    secrets.iter().find_map(|secret| {
        let Some(secret::Type::TlsCertificate(certificate)) = &secret.r#type else { return None };
        match certificate.certificate_chain.as_ref()?.specifier.as_ref()? {
            Specifier::InlineBytes(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
            _ => None,
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn no_handshake_fails_while_x509_authorities_change() {
    let (server, mut agent) = site().await;
    let (front, back) = (Workload::follow(&agent).await, Workload::follow(&agent).await);
    let mut sds = Sds::open(&agent, &["spiffe://example.org/web"]).await;
    let mut shown = chain_of(&sds.next().await).expect("a certificate");
    let port = back.serve().await;
    let stop = Arc::new(AtomicBool::new(false));
    let traffic = [front.traffic(port, &stop), front.traffic(port, &stop)];

    for round in 1..=2 {
        let old = server.authority("x509", "show", None).await;
        assert_eq!(front.now().authority(), old);
        let next = server.authority("x509", "prepare", None).await;
        for workload in [&front, &back] {
            workload.when("the prepared authority", |held| held.root_ids(TRUST_DOMAIN).contains(&next)).await;
        }
        server.authority("x509", "activate", Some(&next)).await;
        let ca = ca_show(&server).await;
        assert_eq!(ca["x509_authorities"][0]["id"], next.as_str());
        server.authority("x509", "taint", Some(&old)).await;
        for workload in [&front, &back] {
            workload.when("an SVID of the next authority", |held| held.authority() == next).await;
        }
        let renewed = chain_of(&sds.next().await).expect("a certificate");
        assert_ne!(renewed, shown);
        shown = renewed;
        let ca = ca_show(&server).await;
        let all = ca["x509_authorities"].as_array().expect("a list");
        let old_one = all.iter().find(|one| one["id"] == old.as_str()).expect("the old one");
        assert_eq!((old_one["state"].as_str(), old_one["tainted"].as_bool()), (Some("old"), Some(true)));
        // The agent follows as well; otherwise it could not go on after the next step.
        agent.process().wait_for_lines("Successfully rotated agent SVID", round).await;
        server.authority("x509", "revoke", Some(&old)).await;
        for workload in [&front, &back] {
            workload
                .when("a bundle without the old authority", |held| {
                    held.root_ids(TRUST_DOMAIN) == [next.clone()]
                })
                .await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    for client in traffic {
        let (count, failed) = client.await.expect("the client");
        assert!(failed.is_empty(), "{} of {count} failed: {:?}", failed.len(), failed.first());
        assert!(count > 20, "only {count} handshakes");
    }
}

/// `svidctl ca show`, in JSON; the table has to be there, too.
async fn ca_show(server: &Server) -> serde_json::Value {
    let socket = server.socket().display().to_string();
    let text = run("svidctl", &["--server-socket", &socket, "ca", "show"]).await.ok();
    assert!(text.contains("X.509 active: ") && text.contains(" in disk"), "{text}");
    let json = run("svidctl", &["--server-socket", &socket, "--output", "json", "ca", "show"]).await.ok();
    serde_json::from_str(&json).expect("JSON")
}

async fn bundle_with(stream: &mut Streaming<JwtBundlesResponse>, wanted: impl Fn(&str) -> bool) {
    let read = async {
        loop {
            let answer = stream.message().await.expect("open").expect("an answer");
            let own =
                answer.bundles.iter().find(|(name, _)| name.ends_with(TRUST_DOMAIN)).expect("the own one");
            if wanted(&String::from_utf8_lossy(own.1)) {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect("in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn jwt_keys_are_public_before_they_sign_and_gone_once_revoked() {
    let (server, agent) = site().await;
    let mut client = SpiffeWorkloadApiClient::new(unix(&agent.socket()).await);
    let answer = client.fetch_jwt_bundles(workload(JwtBundlesRequest {})).await;
    let mut bundles = answer.expect("a stream").into_inner();
    let token = async || {
        let request = JwtsvidRequest { audience: vec!["billing".into()], spiffe_id: String::new() };
        let answer = client.clone().fetch_jwtsvid(workload(request)).await.expect("a token").into_inner();
        answer.svids.into_iter().next().expect("one").svid
    };
    let validate = async |svid: &str| {
        let request = ValidateJwtsvidRequest { audience: "billing".into(), svid: svid.to_owned() };
        client.clone().validate_jwtsvid(workload(request)).await.map(|_| ())
    };
    let old = server.authority("jwt", "show", None).await;
    bundle_with(&mut bundles, |jwks| jwks.contains(&old)).await;
    let first = token().await;
    assert_eq!(token().await, first, "kept");
    let next = server.authority("jwt", "prepare", None).await;
    bundle_with(&mut bundles, |jwks| jwks.contains(&old) && jwks.contains(&next)).await;
    server.authority("jwt", "activate", Some(&next)).await;
    validate(&first).await.expect("still good");
    server.authority("jwt", "taint", Some(&old)).await;
    until("a token of the next key", || async { token().await != first }).await;
    let second = token().await;
    validate(&second).await.expect("public long since");
    validate(&first).await.expect("not revoked yet");
    server.authority("jwt", "revoke", Some(&old)).await;
    bundle_with(&mut bundles, |jwks| !jwks.contains(&old)).await;
    validate(&first).await.expect_err("revoked");
    validate(&second).await.expect("good");
}
