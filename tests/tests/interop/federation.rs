//! Trust domains of real servers and agents, whose workloads speak mTLS: with the `spiffe` crate and with Envoy, while
//! the authorities of both change.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use svid_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use svid_proto::workload::{JwtsvidRequest, ValidateJwtsvidRequest};
use svid_tests::calls::unix_now;
use svid_tests::client::unix;
use svid_tests::envoy::Envoy;
use svid_tests::mtls::{Workload, shake_as, stranger};
use svid_tests::pki::TestCa;
use svid_tests::process::{eventually, run};
use svid_tests::{Agent, AgentOptions, Server, ServerOptions, free_port, interop, until};
use tokio::task::JoinHandle;
use tonic::{Request, Status};

fn my_uid() -> String {
    format!("unix:uid:{}", nix::unistd::geteuid())
}

/// A trust domain with a bundle endpoint, and an agent that would not ask by itself within an hour.
struct Domain {
    name: String,
    server: Server,
    agent: Agent,
    endpoint: u16,
}

impl Domain {
    async fn start(name: &str) -> Self {
        let endpoint = free_port();
        let options = ServerOptions {
            trust_domain: Some(name.to_owned()),
            server: format!(
                "federation {{ bundle_endpoint {{ address = \"127.0.0.1\" port = {endpoint} }} }}"
            ),
            ..ServerOptions::default()
        };
        let server = Server::start_with(options).await;
        let options = AgentOptions {
            agent: "experimental { sync_interval = \"1h\" }".into(),
            unix: "discover_workload_path = true workload_size_limit = -1".into(),
            ..AgentOptions::default()
        };
        let agent = Agent::join_with(&server, options).await;
        Self { name: name.to_owned(), server, agent, endpoint }
    }

    async fn svidctl(&self, args: &[&str]) -> String {
        let socket = self.server.socket().display().to_string();
        run("svidctl", &[&["--server-socket", &socket], args].concat()).await.ok()
    }

    /// Follows the other trust domain from now on; its bundle is brought over as a file.
    async fn follow(&self, other: &Self) {
        let file = self.server.path().join(format!("{}.json", other.name));
        std::fs::write(&file, other.server.cli(&["bundle", "show", "-format", "spiffe"]).await.ok())
            .expect("write the bundle");
        let (url, file) = (format!("https://127.0.0.1:{}/", other.endpoint), file.display().to_string());
        let args =
            ["federation", "add", &other.name, "--url", &url, "--profile", "https_spiffe", "--bundle", &file];
        let said = self.svidctl(&args).await;
        assert!(said.contains(&url), "{said}");
    }

    async fn refresh(&self, other: &Self) {
        self.svidctl(&["federation", "refresh", &other.name]).await;
    }

    /// An entry for this process that federates with the others.
    async fn register(&self, others: &[&Self]) {
        let flags: Vec<String> =
            others.iter().flat_map(|it| ["-federatesWith".to_owned(), it.server.id("")]).collect();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        self.server.entry("/web", &my_uid(), &flags).await;
        eventually(|| self.agent.cli(&["api", "fetch", "x509"])).await;
    }

    async fn token(&self) -> String {
        let request = JwtsvidRequest { audience: vec!["billing".into()], spiffe_id: String::new() };
        let answer = self.workload_api().await.fetch_jwtsvid(workload(request)).await.expect("a token");
        answer.into_inner().svids.into_iter().next().expect("one").svid
    }

    /// The subject of a token, if this domain's agent finds it valid for its workload.
    async fn validate(&self, svid: &str) -> Result<String, Status> {
        let request = ValidateJwtsvidRequest { audience: "billing".into(), svid: svid.to_owned() };
        let answer = self.workload_api().await.validate_jwtsvid(workload(request)).await?;
        Ok(answer.into_inner().spiffe_id)
    }

    async fn workload_api(&self) -> SpiffeWorkloadApiClient<tonic::transport::Channel> {
        SpiffeWorkloadApiClient::new(unix(&self.agent.socket()).await)
    }

    /// The other trust domain is no longer followed, and no entry federates with it any more.
    async fn part_from(&self, other: &Self) {
        self.server.cli(&["federation", "delete", "-id", &other.server.id("")]).await.ok();
    }
}

fn workload<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().expect("ascii"));
    request
}

/// Two trust domains that follow each other.
async fn pair() -> (Domain, Domain) {
    let (east, west) = tokio::join!(Domain::start("east.test"), Domain::start("west.test"));
    east.follow(&west).await;
    west.follow(&east).await;
    east.register(&[&west]).await;
    west.register(&[&east]).await;
    (east, west)
}

/// All X.509 authorities of `home` change once; `at_home` and `away`, a workload of the other domain, follow.
async fn change_x509(home: &Domain, at_home: &Workload, other: &Domain, away: &Workload) {
    let old = home.server.authority("x509", "show", None).await;
    let next = home.server.authority("x509", "prepare", None).await;
    other.refresh(home).await;
    away.when("the prepared foreign authority", |held| held.root_ids(&home.name).contains(&next)).await;
    home.server.authority("x509", "activate", Some(&next)).await;
    home.server.authority("x509", "taint", Some(&old)).await;
    at_home.when("an SVID of the next authority", |held| held.authority() == next).await;
    home.server.authority("x509", "revoke", Some(&old)).await;
    other.refresh(home).await;
    away.when("a foreign bundle without the old one", |held| held.root_ids(&home.name) == [next.clone()])
        .await;
}

/// The JWT key of `home` changes once; what it signs is believed at `other` before, and not after it was revoked.
async fn change_jwt(home: &Domain, other: &Domain) {
    let id = home.server.id("/web");
    let old = home.server.authority("jwt", "show", None).await;
    let first = home.token().await;
    assert_eq!(other.validate(&first).await.expect("believed"), id);
    let next = home.server.authority("jwt", "prepare", None).await;
    other.refresh(home).await;
    home.server.authority("jwt", "activate", Some(&next)).await;
    home.server.authority("jwt", "taint", Some(&old)).await;
    until("a token of the next key", || async { home.token().await != first }).await;
    let second = home.token().await;
    assert_eq!(other.validate(&second).await.expect("public before it signs"), id);
    home.server.authority("jwt", "revoke", Some(&old)).await;
    other.refresh(home).await;
    until("the old key is gone", || async { other.validate(&first).await.is_err() }).await;
    assert_eq!(other.validate(&second).await.expect("believed"), id);
}

async fn none_failed(traffic: Vec<JoinHandle<(usize, Vec<String>)>>) {
    for client in traffic {
        let (count, failed) = client.await.expect("the client");
        assert!(failed.is_empty(), "{} of {count} failed: {:?}", failed.len(), failed.first());
        assert!(count > 50, "only {count} handshakes");
    }
}

/// Conformance: FED-13, TDB-02, TDB-04.
#[tokio::test(flavor = "multi_thread")]
async fn no_handshake_fails_while_authorities_change_on_both_sides() {
    let (east, west) = pair().await;
    let (in_east, in_west) = (Workload::follow(&east.agent).await, Workload::follow(&west.agent).await);
    let (east_port, west_port) = (in_east.serve().await, in_west.serve().await);
    let stop = Arc::new(AtomicBool::new(false));
    let traffic = vec![in_east.traffic(west_port, &stop), in_west.traffic(east_port, &stop)];
    assert_eq!(in_east.shake(west_port).await, Ok("spiffe://east.test/web".into()));
    assert_eq!(in_west.shake(east_port).await, Ok("spiffe://west.test/web".into()));

    change_x509(&east, &in_east, &west, &in_west).await;
    change_x509(&west, &in_west, &east, &in_east).await;
    tokio::join!(
        change_x509(&east, &in_east, &west, &in_west),
        change_x509(&west, &in_west, &east, &in_east),
        change_jwt(&east, &west),
        change_jwt(&west, &east),
    );
    stop.store(true, Ordering::Relaxed);
    none_failed(traffic).await;

    // No longer federated: withdrawn at once, and refused.
    let token = east.token().await;
    west.validate(&token).await.expect("believed");
    west.part_from(&east).await;
    in_west.when("a withdrawn bundle", |held| !held.roots.contains_key("east.test")).await;
    let refused = in_west.shake(east_port).await.expect_err("a server that is not believed");
    assert!(refused.contains("no bundle of east.test"), "{refused}");
    in_east.shake(west_port).await.expect_err("a client that is not believed");
    until("no key of the other domain", || async { west.validate(&token).await.is_err() }).await;
    let all: Value =
        serde_json::from_str(&west.svidctl(&["-o", "json", "federation", "list"]).await).expect("JSON");
    assert_eq!(all["relationships"], json!([]));
    let all: Value =
        serde_json::from_str(&east.svidctl(&["-o", "json", "federation", "list"]).await).expect("JSON");
    let one = &all["relationships"][0];
    assert_eq!((one["trust_domain"].as_str(), one["source"].as_str()), (Some("west.test"), Some("dynamic")));
    assert!(one["bundle"]["age_s"].as_i64().is_some_and(|age| age < 600) && one["last_error"] == "", "{one}");
}

/// One listener per validation context: all trust domains that are believed, and the one.
fn listener(port: u16, context: &str) -> String {
    format!(
        r#"  - name: "{context}"
    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          common_tls_context:
            tls_certificate_sds_secret_configs:
            - {{name: default, sds_config: {sds}}}
            validation_context_sds_secret_config: {{name: "{context}", sds_config: {sds}}}
      filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {{prefix: "/"}}
                direct_response: {{status: 200}}
                response_headers_to_add:
                - header: {{key: x-peer, value: "%DOWNSTREAM_PEER_URI_SAN%"}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
"#,
        sds = "{resource_api_version: V3, initial_fetch_timeout: 0s, api_config_source: {api_type: GRPC, \
               transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: agent}}]}}",
    )
}

fn envoy_config(agent: &Agent, ports: [u16; 2], contexts: [&str; 2]) -> String {
    let listeners: String =
        ports.into_iter().zip(contexts).map(|(port, context)| listener(port, context)).collect();
    format!(
        r#"node: {{id: west, cluster: federation}}
static_resources:
  listeners:
{listeners}
  clusters:
  - name: agent
    type: STATIC
    connect_timeout: 1s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment:
      cluster_name: agent
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{pipe: {{path: "{}"}}}}}}}}]}}]
"#,
        agent.socket().display()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_believes_a_partner_through_its_changes_and_not_afterwards() {
    if !interop("Envoy with federated validation contexts") {
        return;
    }
    let (east, west) = pair().await;
    let mut envoy = Envoy::prepare().expect("SVID_TEST_ENVOY");
    let selector = format!("unix:path:{}", envoy.program().display());
    west.server.entry("/envoy", &selector, &["-federatesWith", "spiffe://east.test"]).await;
    let ports = [free_port(), free_port()];
    envoy.start(&envoy_config(&west.agent, ports, ["ALL", "spiffe://east.test"]));
    let (in_east, in_west) = (Workload::follow(&east.agent).await, Workload::follow(&west.agent).await);
    let id = Ok("spiffe://east.test/web".to_owned());
    for port in ports {
        until("a port of Envoy's", || async { in_east.shake(port).await == id }).await;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let traffic = ports.map(|port| in_east.traffic(port, &stop)).into_iter().collect();
    for _ in 0..2 {
        change_x509(&west, &in_west, &east, &in_east).await;
        change_x509(&east, &in_east, &west, &in_west).await;
    }
    stop.store(true, Ordering::Relaxed);
    none_failed(traffic).await;

    west.part_from(&east).await;
    for port in ports {
        until("no more mTLS", || async { in_east.shake(port).await.is_err() }).await;
    }
    drop(envoy);
}

/// Ten trust domains, each with all others.
#[tokio::test(flavor = "multi_thread")]
async fn ten_trust_domains_believe_each_other() {
    if !interop("ten trust domains at once") {
        return;
    }
    const DOMAINS: usize = 10;
    let mut domains = Vec::new();
    for number in 0..DOMAINS {
        domains.push(Domain::start(&format!("d{number}.test")).await);
    }
    let mut workloads = Vec::new();
    for one in &domains {
        let others: Vec<&Domain> = domains.iter().filter(|it| it.name != one.name).collect();
        for other in &others {
            one.follow(other).await;
        }
        one.register(&others).await;
        let workload = Workload::follow(&one.agent).await;
        workload.when("all bundles", |held| held.roots.len() == DOMAINS).await;
        workloads.push(workload);
    }
    let mut ports = Vec::new();
    for workload in &workloads {
        ports.push(workload.serve().await);
    }
    for (one, workload) in domains.iter().zip(&workloads) {
        for port in &ports {
            assert_eq!(workload.shake(*port).await, Ok(one.server.id("/web")));
        }
    }
    let next = domains[0].server.authority("x509", "prepare", None).await;
    for (one, workload) in domains.iter().zip(&workloads).skip(1) {
        one.refresh(&domains[0]).await;
        workload.when("the prepared authority", |held| held.root_ids("d0.test").contains(&next)).await;
    }
    let list: Value =
        serde_json::from_str(&domains[3].svidctl(&["-o", "json", "federation", "list"]).await).expect("JSON");
    assert_eq!(list["relationships"].as_array().map(Vec::len), Some(DOMAINS - 1));
}

/// A token of a key of the test's own.
fn token(key: &EcdsaKeyPair, subject: &str) -> String {
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let header = part(json!({"alg": "ES256", "kid": "evil", "typ": "JWT"}));
    let claims =
        part(json!({"sub": subject, "aud": ["billing"], "exp": unix_now() + 600, "iat": unix_now()}));
    let signed = format!("{header}.{claims}");
    let signature = key.sign(&SystemRandom::new(), signed.as_bytes()).expect("signed");
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
}

/// A bundle document with one root and one key for tokens.
fn document(root: &[u8], key: &EcdsaKeyPair) -> String {
    let (_, cert) = x509_parser::parse_x509_certificate(root).expect("a certificate");
    let coordinates = |point: &[u8]| [&point[1..33], &point[33..65]].map(|half| URL_SAFE_NO_PAD.encode(half));
    let [x, y] = coordinates(&cert.public_key().subject_public_key.data);
    let [key_x, key_y] = coordinates(key.public_key().as_ref());
    json!({"keys": [
        {"use": "x509-svid", "kty": "EC", "crv": "P-256", "x": x, "y": y, "x5c": [STANDARD.encode(root)]},
        {"use": "jwt-svid", "kty": "EC", "crv": "P-256", "x": key_x, "y": key_y, "kid": "evil"},
    ]})
    .to_string()
}

/// A partner may sign whatever it likes: a name of ours is believed nowhere. Conformance: FED-81, TDB-02.
#[tokio::test(flavor = "multi_thread")]
async fn a_partner_cannot_speak_for_us() {
    let home = Domain::start("home.test").await;
    let ca = TestCa::new("evil");
    let pkcs8 =
        EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).expect("a key");
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref()).expect("a key");
    let file = home.server.path().join("evil.json");
    std::fs::write(&file, document(&ca.der(), &key)).expect("write the bundle");
    let path = file.display().to_string();
    home.server
        .cli(&["bundle", "set", "-id", "spiffe://evil.test", "-path", &path, "-format", "spiffe"])
        .await
        .ok();
    home.server.entry("/web", &my_uid(), &["-federatesWith", "spiffe://evil.test"]).await;
    eventually(|| home.agent.cli(&["api", "fetch", "x509"])).await;
    let workload = Workload::follow(&home.agent).await;
    workload.when("the partner's bundle", |held| held.roots.contains_key("evil.test")).await;
    let port = workload.serve().await;
    let mut ports = vec![port];
    let mut envoy = Envoy::prepare().filter(|_| interop("Envoy and a partner that lies"));
    if let Some(envoy) = &mut envoy {
        let selector = format!("unix:path:{}", envoy.program().display());
        home.server.entry("/envoy", &selector, &["-federatesWith", "spiffe://evil.test"]).await;
        let own = [free_port(), free_port()];
        envoy.start(&envoy_config(&home.agent, own, ["ALL", "spiffe://evil.test"]));
        ports.extend(own);
    }
    let trusts: BTreeMap<_, _> = workload.now().roots.clone();
    let named = |id: &str| {
        let leaf = ca.leaf("x", &[id]);
        stranger(vec![leaf.cert_der], leaf.key_der, trusts.clone())
    };
    let (honest, liar) = (named("spiffe://evil.test/shop"), named("spiffe://home.test/web"));
    for port in ports {
        until("an honest partner", || async {
            shake_as(&honest, port).await == Ok("spiffe://evil.test/shop".into())
        })
        .await;
        shake_as(&liar, port).await.expect_err("a name of ours");
    }
    assert_eq!(
        home.validate(&token(&key, "spiffe://evil.test/shop")).await.expect("theirs"),
        "spiffe://evil.test/shop"
    );
    home.validate(&token(&key, "spiffe://home.test/web")).await.expect_err("a name of ours");
}
