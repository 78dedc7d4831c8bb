//! Partners that are dead, slow, huge or lying: the last good bundle stays, it is said why, and nobody else notices.

use std::time::Duration;

use status::RefreshOutcome::{self, Failed, Older, Replaced, Unchanged};
use svid_proto::spire::api::server::bundle::v1 as bundles;
use svid_proto::spire::api::server::trustdomain::v1 as wire;
use svid_proto::spire::api::types;
use svid_proto::svid::federation::v1 as status;
use svid_tests::partner::{Conduct, Partner, document};
use svid_tests::pki::TestCa;
use svid_tests::{Server, ServerOptions, client};
use tonic::transport::Channel;

/// A trust domain of one root, and its endpoint.
struct Domain {
    name: String,
    ca: TestCa,
    endpoint: Partner,
}

fn endpoint_id(name: &str) -> String {
    format!("spiffe://{name}/endpoint")
}

impl Domain {
    async fn start(name: &str) -> Self {
        let ca = TestCa::new(name);
        let good = Conduct::Document(document(Some(5), &[ca.der()]));
        let endpoint = Partner::start(&ca.leaf("endpoint", &[&endpoint_id(name)]), good).await;
        Self { name: name.into(), ca, endpoint }
    }

    /// Federates `server` with it. The bundle that is set by hand says sequence 1.
    async fn federate(&self, channel: &Channel) {
        let profile = types::HttpsspiffeProfile { endpoint_spiffe_id: endpoint_id(&self.name) };
        let root = types::X509Certificate { asn1: self.ca.der(), tainted: false };
        let bundle = types::Bundle {
            trust_domain: self.name.clone(),
            x509_authorities: vec![root],
            sequence_number: 1,
            ..Default::default()
        };
        let relationship = types::FederationRelationship {
            trust_domain: self.name.clone(),
            bundle_endpoint_url: self.endpoint.url(),
            bundle_endpoint_profile: Some(
                types::federation_relationship::BundleEndpointProfile::HttpsSpiffe(profile),
            ),
            trust_domain_bundle: Some(bundle),
        };
        let request = wire::BatchCreateFederationRelationshipRequest {
            federation_relationships: vec![relationship],
            output_mask: None,
        };
        let mut server = wire::trust_domain_client::TrustDomainClient::new(channel.clone());
        let made = server.batch_create_federation_relationship(request).await.expect("made").into_inner();
        assert_eq!(made.results[0].status.as_ref().expect("a status").code, 0, "{made:?}");
    }

    async fn refresh(&self, channel: &Channel) -> status::RefreshBundleResponse {
        refresh(channel, &self.name, false).await
    }
}

async fn refresh(channel: &Channel, name: &str, accept_older: bool) -> status::RefreshBundleResponse {
    let mut server = status::federation_client::FederationClient::new(channel.clone());
    let request = status::RefreshBundleRequest { trust_domain: name.into(), accept_older };
    server.refresh_bundle(request).await.expect("an outcome").into_inner()
}

async fn stored(channel: &Channel, name: &str) -> types::Bundle {
    let mut server = bundles::bundle_client::BundleClient::new(channel.clone());
    let request = bundles::GetFederatedBundleRequest { trust_domain: name.into(), output_mask: None };
    server.get_federated_bundle(request).await.expect("a bundle").into_inner()
}

fn raw(head: &str, body: &[u8]) -> Conduct {
    Conduct::Raw([head.as_bytes(), b"\r\n\r\n", body].concat())
}

fn json(body: &str) -> Conduct {
    Conduct::Document(body.into())
}

const OK: &str = "HTTP/1.1 200 OK";

/// What partners do, and the words that say so.
fn bad(ca: &TestCa) -> Vec<(&'static str, Conduct, &'static str)> {
    let good = document(Some(9), &[ca.der()]);
    let drip = |begin: &str, again: &str, pause| Conduct::Endless {
        begin: begin.as_bytes().to_vec(),
        again: again.as_bytes().to_vec(),
        pause: Duration::from_millis(pause),
    };
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
    let half = &good[..good.len() / 2];
    let announced = "HTTP/1.1 200 OK\r\ncontent-length: 99999999999";
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let large_head = format!("HTTP/1.1 200 OK\r\nx: {}\r\ncontent-length: 2", "x".repeat(300_000));
    let packed = "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 2";
    let twice = "{\"keys\":[],\"keys\":[],\"spiffe_sequence\":9}";
    vec![
        ("announces-much", raw(announced, b"{"), "larger than 1048576 bytes"),
        ("gives-much", drip(chunked, &chunk, 0), "larger than 1048576 bytes"),
        ("large-head", raw(&large_head, b"{}"), "not understood or ended early"),
        ("empty-body", json(""), "no bundle document (Content-Type \"application/json\"): unable to parse"),
        ("empty-object", json("{}"), "no authorities found"),
        ("null-keys", json("{\"keys\":null}"), "no authorities found"),
        ("same-member-twice", json(twice), "duplicate field"),
        (
            "not-json",
            raw("HTTP/1.1 200 OK\r\ncontent-type: text/html", b"<html>"),
            "Content-Type \"text/html\"",
        ),
        ("not-text", raw(OK, b"\xff\xfe{\"keys\":[]}"), "unable to parse bundle document"),
        (
            "broken-key",
            json("{\"keys\":[{\"use\":\"x509-svid\",\"kty\":\"EC\",\"x5c\":[\"AAAA\"]}]}"),
            "error adding authority 0",
        ),
        (
            "cut-by-length",
            raw(&format!("{OK}\r\ncontent-length: {}", good.len()), half.as_bytes()),
            "cut short",
        ),
        ("cut-by-close", raw(OK, half.as_bytes()), "unable to parse bundle document: EOF"),
        ("packed", raw(packed, b"{}"), "encoding that was not asked for: \"gzip\""),
        (
            "status-500",
            raw("HTTP/1.1 500 Oh\r\ncontent-length: 4", b"oops"),
            "unexpected status 500 fetching bundle: \"oops\"",
        ),
        ("status-204", raw("HTTP/1.1 204 No Content", b""), "unexpected status 204 fetching bundle"),
        (
            "status-401",
            raw("HTTP/1.1 401 Who\r\ncontent-length: 0", b""),
            "unexpected status 401 fetching bundle",
        ),
        (
            "redirect",
            raw("HTTP/1.1 302 Found\r\nlocation: https://elsewhere.test/\r\ncontent-length: 0", b""),
            "redirects are not followed; configure the URL it leads to (\"https://elsewhere.test/\")",
        ),
        ("not-http", raw("220 mail.example ESMTP", b""), "not understood or ended early"),
        ("no-tls", Conduct::NoTls, "TLS handshake failed"),
        ("silent", Conduct::Silent, "no bundle within 30 seconds: gave up while waiting for an answer"),
        ("no-handshake", Conduct::NoHandshake, "no bundle within 30 seconds: gave up in the TLS handshake"),
        (
            "slow-head",
            drip("HTTP/1.1 200 OK\r\nx: ", "x", 500),
            "no bundle within 30 seconds: gave up while waiting",
        ),
        (
            "slow-body",
            drip(announced_small(), " ", 500),
            "no bundle within 30 seconds: gave up while the answer came in",
        ),
    ]
}

fn announced_small() -> &'static str {
    "HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n"
}

/// Conformance: FED-14, FED-33, FED-36 to FED-38, FED-76, FED-80, TDB-04, TDB-14 (hc-04 to hc-27, hc-49, hc-50, bs-09, bs-10).
#[tokio::test(flavor = "multi_thread")]
async fn bad_partners_change_nothing_and_delay_nobody() {
    let mut server = Server::start().await;
    let channel = client::unix(&server.socket()).await;
    let good = Domain::start("good.test").await;
    good.federate(&channel).await;
    let mut waiting = Vec::new();
    let template = TestCa::new("template");
    for (name, ..) in bad(&template) {
        let domain = Domain::start(&format!("{name}.test")).await;
        domain.federate(&channel).await;
        let first = domain.refresh(&channel).await;
        assert!(matches!(first.outcome(), Replaced | Unchanged), "{first:?}");
        waiting.push(domain);
    }
    // Everybody turns bad at once.
    let asked = waiting.into_iter().map(|domain| {
        let channel = channel.clone();
        tokio::spawn(async move {
            let (name, conduct, words) = bad(&domain.ca)
                .into_iter()
                .find(|(name, ..)| domain.name == format!("{name}.test"))
                .expect("one of them");
            domain.endpoint.turn(conduct);
            let answer = domain.refresh(&channel).await;
            assert_eq!(answer.outcome(), Failed, "{name}: {answer:?}");
            assert!(answer.error.contains(words), "{name}: {}", answer.error);
            let state = answer.relationship.expect("a state");
            assert_eq!(state.last_error, answer.error, "{name}");
            // More than one where the next attempt by itself was due at the same time.
            assert!(state.failures_in_a_row >= 1, "{name}");
            assert!(state.last_success_at > 0 && state.next_refresh_at > state.last_attempt_at, "{state:?}");
            let kept = stored(&channel, &domain.name).await;
            assert_eq!((kept.sequence_number, kept.x509_authorities.len()), (5, 1), "{name}");
            assert_eq!(kept.x509_authorities[0].asn1, domain.ca.der(), "{name}");
            let age = state.bundle.expect("a bundle");
            assert!(age.is_fetched && age.fetched_at > 0, "{age:?}");
            domain
        })
    });
    let asked: Vec<_> = asked.collect();
    // Meanwhile a good one is asked as always.
    for sequence in 6..9 {
        good.endpoint.turn(Conduct::Document(document(Some(sequence), &[good.ca.der()])));
        assert_eq!(good.refresh(&channel).await.outcome(), Replaced);
        assert!(asked.iter().any(|one| !one.is_finished()), "the slow ones are still at it");
    }
    for one in asked {
        // One of them comes to its senses.
        let domain = one.await.expect("no panic");
        if domain.name == "slow-body.test" {
            domain.endpoint.turn(Conduct::Document(document(Some(6), &[domain.ca.der()])));
            assert_eq!(domain.refresh(&channel).await.outcome(), Replaced);
        }
    }
    let log = server.process().log();
    let is_said = |line: &&String| {
        line.contains("Error updating bundle") && line.contains("trust_domain=status-500.test")
    };
    let line = log.iter().find(is_said).expect("the failure is in the log");
    assert!(line.contains("failures=1") && line.contains("500"), "{line}");
}

/// Conformance: FED-10, FED-11, FED-13, FED-63, FED-65, TDB-09, TDB-16, TDB-17 (bs-01 to bs-08, hc-02, hc-34 to hc-42).
#[tokio::test(flavor = "multi_thread")]
async fn sequence_numbers_and_endpoint_ids_decide() {
    let server = Server::start().await;
    let channel = client::unix(&server.socket()).await;
    let far = Domain::start("far.test").await;
    far.federate(&channel).await;
    let next = TestCa::new("next");
    let (one, two) = (vec![far.ca.der()], vec![far.ca.der(), next.der()]);
    let give = async |sequence: Option<u64>, roots: &[Vec<u8>], want: RefreshOutcome, known: usize| {
        far.endpoint.turn(Conduct::Document(document(sequence, roots)));
        let answer = far.refresh(&channel).await;
        assert_eq!(answer.outcome(), want, "{answer:?}");
        assert_eq!(stored(&channel, "far.test").await.x509_authorities.len(), known);
        answer
    };
    // A poll may have come first.
    far.refresh(&channel).await;
    give(Some(5), &one, Unchanged, 1).await;
    give(Some(6), &two, Replaced, 2).await;
    let older = give(Some(4), &one, Older, 2).await;
    assert!(older.error.contains("sequence number 4, before 6"), "{}", older.error);
    assert_eq!(refresh(&channel, "far.test", true).await.outcome(), Replaced);
    give(Some(7), &two, Replaced, 2).await;
    give(Some(7), &one, Replaced, 1).await;
    give(None, &two, Replaced, 2).await;
    give(Some(1), &one, Replaced, 1).await;

    // The type is advice, an impostor's certificate is not; the endpoint's name in the URL plays no part.
    let body = document(Some(8), &two);
    let typed = format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}", body.len());
    far.endpoint.turn(raw(&typed, body.as_bytes()));
    assert_eq!(far.refresh(&channel).await.outcome(), Replaced);
    let impostors = [
        (far.ca.leaf("x", &["spiffe://far.test/other"]), "unexpected ID"),
        (far.ca.leaf("x", &["spiffe://example.org/endpoint"]), "unexpected ID"),
        (TestCa::new("stranger").leaf("x", &["spiffe://far.test/endpoint"]), "signed by unknown authority"),
        (far.ca.expired_leaf("x", &["spiffe://far.test/endpoint"]), "certificate verification failed"),
        (far.ca.leaf("x", &["spiffe://far.test/endpoint", "spiffe://far.test/b"]), "has 2 URI SANs"),
        (far.ca.server(&["127.0.0.1"]), "has 0 URI SANs"),
    ];
    let mut wanted = far_relationship(&far);
    for (cert, words) in impostors {
        let impostor = Partner::start(&cert, Conduct::Document(document(Some(99), &[next.der()]))).await;
        wanted.bundle_endpoint_url = impostor.url();
        update(&channel, wanted.clone()).await;
        let answer = far.refresh(&channel).await;
        assert_eq!(answer.outcome(), Failed);
        assert!(answer.error.contains("server was not believed: "), "{}", answer.error);
        assert!(answer.error.contains(words), "{}", answer.error);
        assert_eq!(stored(&channel, "far.test").await.x509_authorities.len(), 2);
    }
    // The newest bundle decides who may show itself, no longer the first one.
    let rotated = Partner::start(&next.leaf("x", &["spiffe://far.test/endpoint"]), Conduct::Silent).await;
    rotated.turn(Conduct::Document(document(Some(9), &[next.der()])));
    wanted.bundle_endpoint_url = rotated.url();
    update(&channel, wanted.clone()).await;
    assert!(matches!(far.refresh(&channel).await.outcome(), Replaced | Unchanged));
    wanted.bundle_endpoint_url = far.endpoint.url();
    update(&channel, wanted.clone()).await;
    assert_eq!(far.refresh(&channel).await.outcome(), Failed, "its root is gone");
    // No keys: nobody of that trust domain is believed any more.
    rotated.turn(Conduct::Document(document(Some(10), &[])));
    wanted.bundle_endpoint_url = rotated.url();
    update(&channel, wanted).await;
    far.refresh(&channel).await;
    assert!(stored(&channel, "far.test").await.x509_authorities.is_empty());
}

fn far_relationship(far: &Domain) -> types::FederationRelationship {
    types::FederationRelationship { bundle_endpoint_url: far.endpoint.url(), ..far_style(&far.name) }
}

async fn update(channel: &Channel, relationship: types::FederationRelationship) {
    let request = wire::BatchUpdateFederationRelationshipRequest {
        federation_relationships: vec![relationship],
        input_mask: None,
        output_mask: None,
    };
    let mut server = wire::trust_domain_client::TrustDomainClient::new(channel.clone());
    let done = server.batch_update_federation_relationship(request).await.expect("an answer").into_inner();
    assert_eq!(done.results[0].status.as_ref().expect("a status").code, 0, "{done:?}");
}

/// A call that only admins may make, with this certificate.
async fn may_call(server: &Server, cert: &svid_tests::pki::TestCert) -> bool {
    let config = client::careless_tls(Some(&cert.client()));
    let Ok(channel) = client::tls(server.port, config).await else { return false };
    let mut api = bundles::bundle_client::BundleClient::new(channel);
    let request = bundles::ListFederatedBundlesRequest::default();
    api.list_federated_bundles(request).await.is_ok()
}

/// Conformance: FED-81, TDB-02, TDB-37.
#[tokio::test(flavor = "multi_thread")]
async fn a_partner_vouches_for_its_own_names_only() {
    let options = ServerOptions {
        server: "admin_ids = [\"spiffe://far.test/admin\", \"spiffe://good.test/admin\", \"spiffe://example.org/admin\"]".into(),
        ..Default::default()
    };
    let server = Server::start_with(options).await;
    let channel = client::unix(&server.socket()).await;
    let (far, good) = (Domain::start("far.test").await, Domain::start("good.test").await);
    let admin = far.ca.leaf("admin", &["spiffe://far.test/admin"]);
    assert!(!may_call(&server, &admin).await, "its trust domain has no bundle here");
    far.federate(&channel).await;
    good.federate(&channel).await;
    assert!(may_call(&server, &admin).await);
    for id in ["spiffe://good.test/admin", "spiffe://example.org/admin", "spiffe://example.org/spire/server"]
    {
        assert!(!may_call(&server, &far.ca.leaf("admin", &[id])).await, "{id}");
    }
    assert!(!may_call(&server, &far.ca.leaf("other", &["spiffe://far.test/other"])).await);

    // Nobody says what our own authorities are.
    let mut ours = far_relationship(&far);
    ours.trust_domain = "example.org".into();
    let mut api = wire::trust_domain_client::TrustDomainClient::new(channel.clone());
    let request = wire::BatchCreateFederationRelationshipRequest {
        federation_relationships: vec![ours],
        output_mask: None,
    };
    let refused = api.batch_create_federation_relationship(request).await.expect("an answer").into_inner();
    let refused = refused.results[0].status.clone().expect("a status");
    assert_eq!(refused.message, "unable to create federation relationship for server trust domain");

    server.cli(&["federation", "delete", "-id", "far.test"]).await.ok();
    assert!(!may_call(&server, &admin).await, "it is withdrawn");
}

/// Pages, masks and codes as SPIRE has them.
#[tokio::test(flavor = "multi_thread")]
async fn relationships_are_listed_in_pages_and_masked() {
    let server = Server::start().await;
    let channel = client::unix(&server.socket()).await;
    let mut api = wire::trust_domain_client::TrustDomainClient::new(channel.clone());
    let web = |name: &str| types::FederationRelationship {
        trust_domain: name.into(),
        bundle_endpoint_url: "https://127.0.0.1:1/".into(),
        bundle_endpoint_profile: Some(types::federation_relationship::BundleEndpointProfile::HttpsWeb(
            types::HttpsWebProfile {},
        )),
        trust_domain_bundle: None,
    };
    let mut broken = web("d.test");
    broken.bundle_endpoint_url = "http://d.test".into();
    let wanted = vec![web("c.test"), web("a.test"), broken, web("b.test"), web("a.test")];
    let request = wire::BatchCreateFederationRelationshipRequest {
        federation_relationships: wanted,
        output_mask: None,
    };
    let made =
        api.batch_create_federation_relationship(request).await.expect("an answer").into_inner().results;
    let codes: Vec<_> = made.iter().map(|one| one.status.as_ref().expect("a status").code).collect();
    assert_eq!(codes, [0, 0, 3, 0, 6], "{made:?}");
    let text = &made[2].status.as_ref().expect("a status").message;
    assert_eq!(
        text,
        "failed to convert federation relationship: bundle endpoint URL must use the https scheme"
    );

    let mut token = String::new();
    let mut names = Vec::new();
    loop {
        let request = wire::ListFederationRelationshipsRequest {
            page_size: 2,
            page_token: token,
            output_mask: Some(types::FederationRelationshipMask::default()),
        };
        let page = api.list_federation_relationships(request).await.expect("a page").into_inner();
        assert!(page.federation_relationships.iter().all(|one| one.bundle_endpoint_url.is_empty()));
        names.extend(page.federation_relationships.into_iter().map(|one| one.trust_domain));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(names, ["c.test", "a.test", "b.test"], "in order of creation");
    let get =
        |name: &str| wire::GetFederationRelationshipRequest { trust_domain: name.into(), output_mask: None };
    let found = api.get_federation_relationship(get("spiffe://a.test")).await.expect("one").into_inner();
    assert_eq!(found, web("a.test"));
    let refused = async |api: &mut wire::trust_domain_client::TrustDomainClient<Channel>, name: &str| {
        let status = api.get_federation_relationship(get(name)).await.expect_err("none");
        (status.code(), status.message().to_owned())
    };
    let absent = (tonic::Code::NotFound, "federation relationship does not exist".to_owned());
    assert_eq!(refused(&mut api, "x.test").await, absent);
    assert_eq!(refused(&mut api, "X").await.0, tonic::Code::InvalidArgument);
    // An input mask keeps what it does not name.
    let mut changed = far_style("a.test");
    changed.bundle_endpoint_url = "https://127.0.0.1:2/".into();
    let request = wire::BatchUpdateFederationRelationshipRequest {
        federation_relationships: vec![changed, web("x.test")],
        input_mask: Some(types::FederationRelationshipMask {
            bundle_endpoint_url: true,
            ..Default::default()
        }),
        output_mask: None,
    };
    let done =
        api.batch_update_federation_relationship(request).await.expect("an answer").into_inner().results;
    let first = done[0].federation_relationship.as_ref().expect("one");
    assert_eq!(first.bundle_endpoint_url, "https://127.0.0.1:2/");
    assert_eq!(first.bundle_endpoint_profile, web("a.test").bundle_endpoint_profile);
    let second = done[1].status.as_ref().expect("a status");
    assert_eq!((second.code, second.message.as_str()), (5, "federation relationship not found"));
    let request = wire::BatchDeleteFederationRelationshipRequest {
        trust_domains: vec!["".into(), "spiffe://b.test".into(), "b.test".into()],
    };
    let gone =
        api.batch_delete_federation_relationship(request).await.expect("an answer").into_inner().results;
    let codes: Vec<_> = gone
        .iter()
        .map(|one| (one.status.as_ref().expect("a status").code, one.trust_domain.as_str()))
        .collect();
    assert_eq!(codes, [(3, ""), (0, "b.test"), (5, "b.test")]);
}

fn far_style(name: &str) -> types::FederationRelationship {
    let profile = types::HttpsspiffeProfile { endpoint_spiffe_id: endpoint_id(name) };
    types::FederationRelationship {
        trust_domain: name.into(),
        bundle_endpoint_url: "https://127.0.0.1:1/".into(),
        bundle_endpoint_profile: Some(types::federation_relationship::BundleEndpointProfile::HttpsSpiffe(
            profile,
        )),
        trust_domain_bundle: None,
    }
}
