#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use prost::Message as _;
use svid_core::bundle::Bundle;
use svid_proto::envoy::config::core::v3::data_source::Specifier;
use svid_proto::envoy::config::core::v3::{BuildVersion, DataSource, Node, node};
use svid_proto::envoy::extensions::transport_sockets::tls::v3::{Secret, SpiffeCertValidatorConfig, secret};
use svid_proto::envoy::r#type::v3::SemanticVersion;
use svid_proto::google::rpc::Status as RpcStatus;

use super::resources::{Resource, SECRET_TYPE_URL};
use super::*;
use crate::cache::Identity;
use crate::testing::{TestCa, entry};

const OWN: &str = "spiffe://example.org";
const PARTNER: &str = "spiffe://partner.example";
const WEB: &str = "spiffe://example.org/web";
const DB: &str = "spiffe://example.org/db";

/// A workload with two identities that federates with one trust domain.
struct World {
    ca: TestCa,
    partner: TestCa,
}

impl World {
    fn new() -> Self {
        Self { ca: TestCa::new("example.org"), partner: TestCa::new("partner.example") }
    }

    fn identity(&self, id: &str, path: &str) -> Identity {
        let entry = entry(id, path, &["unix:uid:0"]);
        let x509 = self.ca.identity(&entry.spiffe_id, Duration::from_secs(3600), SystemTime::now());
        Identity { entry: Arc::new(entry), x509: Arc::new(x509) }
    }

    fn update(&self, identities: &[Identity]) -> Arc<WorkloadUpdate> {
        self.update_with(identities, self.ca.bundle())
    }

    /// Without federation.
    fn update_alone(&self, identities: &[Identity]) -> Arc<WorkloadUpdate> {
        let mut update = Arc::into_inner(self.update(identities)).unwrap();
        update.federated.clear();
        Arc::new(update)
    }

    fn update_with(&self, identities: &[Identity], bundle: Bundle) -> Arc<WorkloadUpdate> {
        let partner = Arc::new(self.partner.bundle());
        Arc::new(WorkloadUpdate {
            identities: identities.to_vec(),
            bundle: Arc::new(bundle),
            federated: BTreeMap::from([(partner.trust_domain.clone(), partner)]),
            x509_response: OnceLock::new(),
            revision: 0,
            x509_revision: 0,
        })
    }
}

fn names(resources: &[Resource]) -> Vec<&str> {
    resources.iter().map(|resource| resource.name.as_str()).collect()
}

fn decode(resource: &Resource) -> Secret {
    Secret::decode(resource.secret.as_bytes()).unwrap()
}

fn inline(source: Option<DataSource>) -> String {
    match source.unwrap().specifier.unwrap() {
        Specifier::InlineBytes(bytes) => String::from_utf8(bytes).unwrap(),
        other => panic!("{other:?}"),
    }
}

fn request(names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest {
        resource_names: names.iter().map(|&name| name.into()).collect(),
        type_url: SECRET_TYPE_URL.into(),
        ..Default::default()
    }
}

fn reply_to(reply: &Reply, names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest {
        version_info: reply.version_info.clone(),
        response_nonce: reply.nonce.clone(),
        ..request(names)
    }
}

fn refusal_of(reply: &Reply, names: &[&str]) -> DiscoveryRequest {
    let detail = RpcStatus { message: "no".into(), ..Default::default() };
    DiscoveryRequest { version_info: String::new(), error_detail: Some(detail), ..reply_to(reply, names) }
}

fn sotw() -> Sotw {
    Sotw::new(Arc::new(SdsConfig::default()))
}

#[test]
fn names_and_what_they_give() {
    let world = World::new();
    let update = world.update(&[world.identity("a", "/web"), world.identity("b", "/db")]);
    let check = |asked: &[&str], want: Result<&[&str], &str>| {
        let mut stream = sotw();
        stream.on_update(Arc::clone(&update)).unwrap();
        match (stream.on_request(request(asked)), want) {
            (Ok(Some(reply)), Ok(want)) => assert_eq!(names(&reply.resources), want, "{asked:?}"),
            (Err(err), Err(want)) => assert_eq!(err.to_string(), want, "{asked:?}"),
            (got, want) => panic!("{asked:?}: {got:?}, want {want:?}"),
        }
    };
    check(&[], Ok(&[OWN, PARTNER, WEB, DB]));
    check(&[""], Ok(&[OWN, PARTNER, WEB, DB]));
    check(&["default"], Ok(&["default"]));
    check(&[DB], Ok(&[DB]));
    check(&[WEB, "default"], Ok(&[WEB, "default"]));
    check(&["ROOTCA"], Ok(&["ROOTCA"]));
    check(&[PARTNER], Ok(&[PARTNER]));
    check(&["ALL", "ROOTCA", OWN, PARTNER], Ok(&[OWN, "ROOTCA", "ALL", PARTNER]));
    check(
        &["nope", WEB, "also"],
        Err("workload is not authorized for the requested identities [\"also\" \"nope\"]"),
    );
    check(
        &["spiffe://stranger.example"],
        Err("workload is not authorized for the requested identities [\"spiffe://stranger.example\"]"),
    );
}

#[test]
fn a_caller_without_identity_may_read_the_own_bundle() {
    let world = World::new();
    let mut stream = sotw();
    stream.on_update(world.update(&[])).unwrap();
    assert_eq!(names(&stream.on_request(request(&["ROOTCA"])).unwrap().unwrap().resources), ["ROOTCA"]);
    let mut stream = sotw();
    stream.on_update(world.update(&[])).unwrap();
    assert!(matches!(stream.on_request(request(&["default"])), Err(SdsError::NotAuthorized(_))));
}

#[test]
fn certificates_hold_chain_and_key() {
    let world = World::new();
    let identity = world.identity("a", "/web");
    let mut stream = sotw();
    stream.on_update(world.update(std::slice::from_ref(&identity))).unwrap();
    let reply = stream.on_request(request(&["default"])).unwrap().unwrap();
    assert_eq!(reply.type_url, SECRET_TYPE_URL);
    let secret = decode(&reply.resources[0]);
    assert_eq!(secret.name, "default");
    let Some(secret::Type::TlsCertificate(certificate)) = secret.r#type else { panic!("not a certificate") };
    assert_eq!(inline(certificate.certificate_chain), identity.x509.svid.chain().to_pem());
    let key = inline(certificate.private_key);
    assert!(key.starts_with("-----BEGIN PRIVATE KEY-----\n"), "a PKCS#8 PEM block");
}

#[test]
fn bundles_come_in_two_forms() {
    let world = World::new();
    let update = world.update(&[world.identity("a", "/web")]);
    let version = |major_number, minor_number| {
        let version = Some(SemanticVersion { major_number, minor_number, patch: 0 });
        let build = BuildVersion { version, metadata: None };
        Node {
            user_agent_version_type: Some(node::UserAgentVersionType::UserAgentBuildVersion(build)),
            ..Default::default()
        }
    };
    let metadata = |kind| {
        let value = prost_types::Value { kind: Some(kind) };
        let fields = [("disable_spiffe_cert_validation".to_owned(), value)].into();
        Node { metadata: Some(prost_types::Struct { fields }), ..Default::default() }
    };
    use prost_types::value::Kind::{BoolValue, NumberValue, StringValue};
    let check = |disabled: bool, node: Option<Node>, spiffe: bool| {
        let config = SdsConfig { disable_spiffe_cert_validation: disabled, ..Default::default() };
        let mut stream = Sotw::new(Arc::new(config));
        stream.on_update(Arc::clone(&update)).unwrap();
        let asked = DiscoveryRequest { node: node.clone(), ..request(&["ROOTCA"]) };
        let reply = stream.on_request(asked).unwrap().unwrap();
        let Some(secret::Type::ValidationContext(context)) = decode(&reply.resources[0]).r#type else {
            panic!("not a validation context")
        };
        assert_eq!(context.custom_validator_config.is_some(), spiffe, "{disabled} {node:?}");
        assert_eq!(context.trusted_ca.is_some(), !spiffe, "{disabled} {node:?}");
    };
    check(false, None, true);
    check(true, None, false);
    check(false, Some(version(1, 17)), false);
    check(false, Some(version(1, 18)), true);
    check(false, Some(version(2, 0)), true);
    check(false, Some(metadata(BoolValue(true))), false);
    check(true, Some(metadata(BoolValue(false))), true);
    check(true, Some(metadata(StringValue("false".into()))), true);
    check(false, Some(metadata(StringValue("TRUE".into()))), false);
    check(false, Some(metadata(StringValue("maybe".into()))), true);
    check(true, Some(metadata(NumberValue(0.0))), false);
}

#[test]
fn all_bundles_are_sorted_and_need_the_validator() {
    let world = World::new();
    let update = world.update(&[]);
    let mut stream = sotw();
    stream.on_update(Arc::clone(&update)).unwrap();
    let reply = stream.on_request(request(&["ALL"])).unwrap().unwrap();
    let Some(secret::Type::ValidationContext(context)) = decode(&reply.resources[0]).r#type else {
        panic!("not a validation context")
    };
    let validator = context.custom_validator_config.unwrap();
    assert_eq!(validator.name, "envoy.tls.cert_validator.spiffe");
    let config = SpiffeCertValidatorConfig::decode(&*validator.typed_config.unwrap().value).unwrap();
    let domains: Vec<&str> = config.trust_domains.iter().map(|domain| domain.name.as_str()).collect();
    assert_eq!(domains, ["example.org", "partner.example"]);

    let config = SdsConfig { disable_spiffe_cert_validation: true, ..Default::default() };
    let mut stream = Sotw::new(Arc::new(config));
    stream.on_update(update).unwrap();
    assert_eq!(stream.on_request(request(&["ALL"])).unwrap_err(), SdsError::NoValidator);
}

#[test]
fn equal_bundle_names_leave_only_the_single_one() {
    let config = SdsConfig { default_all_bundles_name: "ROOTCA".into(), ..Default::default() };
    let mut stream = Sotw::new(Arc::new(config));
    stream.on_update(World::new().update(&[])).unwrap();
    assert_eq!(names(&stream.on_request(request(&["ROOTCA"])).unwrap().unwrap().resources), ["ROOTCA"]);
}

#[test]
fn requests_before_the_first_update_wait_and_the_last_one_counts() {
    let world = World::new();
    let mut stream = sotw();
    assert!(stream.on_request(request(&["ROOTCA"])).unwrap().is_none());
    assert!(stream.on_request(request(&["default"])).unwrap().is_none());
    let reply = stream.on_update(world.update(&[world.identity("a", "/web")])).unwrap().unwrap();
    assert_eq!((reply.version_info.as_str(), names(&reply.resources)), ("1", vec!["default"]));
    assert_eq!(reply.nonce.len(), 8);
}

#[test]
fn acknowledgements_stale_requests_and_changed_lists() {
    let world = World::new();
    let mut stream = sotw();
    stream.on_update(world.update(&[world.identity("a", "/web")])).unwrap();
    let first = stream.on_request(request(&["default"])).unwrap().unwrap();
    assert!(stream.on_request(reply_to(&first, &["default"])).unwrap().is_none(), "an ACK gets nothing");
    let stale = DiscoveryRequest { response_nonce: "stale".into(), ..request(&["ROOTCA"]) };
    assert!(stream.on_request(stale).unwrap().is_none(), "a stale request counts for nothing");
    let second = stream.on_request(reply_to(&first, &["default", "ROOTCA"])).unwrap().unwrap();
    assert_eq!(names(&second.resources), ["ROOTCA", "default"]);
    assert_ne!(second.nonce, first.nonce);
    let refused = stream.on_request(refusal_of(&second, &["default", "ROOTCA"])).unwrap();
    assert!(refused.is_none(), "a refusal is not answered with the same again");
    let third = stream.on_request(refusal_of(&second, &["ROOTCA"])).unwrap().unwrap();
    assert_eq!(names(&third.resources), ["ROOTCA"], "but a refusal may come with other names");
}

#[test]
fn only_what_changed_is_sent_again() {
    let world = World::new();
    let (web, db) = (world.identity("a", "/web"), world.identity("b", "/db"));
    let mut stream = sotw();
    stream.on_update(world.update(&[web.clone(), db.clone()])).unwrap();
    let first = stream.on_request(request(&[WEB, DB, "ROOTCA"])).unwrap().unwrap();
    assert_eq!(first.resources.len(), 3);
    assert!(stream.on_update(world.update(&[web.clone(), db.clone()])).unwrap().is_none(), "nothing is new");
    let rotated = world.identity("b", "/db");
    let second = stream.on_update(world.update(&[web.clone(), rotated.clone()])).unwrap().unwrap();
    assert_eq!((second.version_info.as_str(), names(&second.resources)), ("3", vec![DB]));
    let mut bundle = world.ca.bundle();
    bundle.x509_authorities.extend(TestCa::new("example.org").bundle().x509_authorities);
    let third = stream.on_update(world.update_with(&[web, rotated], bundle)).unwrap().unwrap();
    assert_eq!(names(&third.resources), ["ROOTCA"]);
}

#[test]
fn a_client_of_everything_gets_the_whole_set_when_something_goes() {
    let world = World::new();
    let (web, db) = (world.identity("a", "/web"), world.identity("b", "/db"));
    let mut stream = sotw();
    stream.on_update(world.update(&[web.clone(), db])).unwrap();
    stream.on_request(request(&[])).unwrap().unwrap();
    let reply = stream.on_update(world.update(&[web])).unwrap().unwrap();
    assert_eq!(names(&reply.resources), [OWN, PARTNER, WEB]);
}

#[test]
fn a_lost_identity_ends_the_stream_of_who_named_it() {
    let world = World::new();
    let mut stream = sotw();
    stream.on_update(world.update(&[world.identity("a", "/web")])).unwrap();
    stream.on_request(request(&[WEB])).unwrap().unwrap();
    assert_eq!(stream.on_update(world.update(&[])).unwrap_err(), SdsError::NotAuthorized(vec![WEB.into()]));
}

/// What is no longer federated is withdrawn: Envoy would go on with what it has if the name were only refused.
#[test]
fn a_bundle_that_is_withdrawn_is_replaced_by_one_that_nothing_verifies_against() {
    let world = World::new();
    let identity = world.identity("a", "/web");
    let (with, without) = (world.update(std::slice::from_ref(&identity)), world.update_alone(&[identity]));
    let mut stream = sotw();
    stream.on_update(Arc::clone(&with)).unwrap();
    let first = stream.on_request(request(&[PARTNER])).unwrap().unwrap();
    let roots = |resource: &Resource| {
        let Some(secret::Type::ValidationContext(context)) = decode(resource).r#type else {
            panic!("no context")
        };
        let config = context.custom_validator_config.unwrap().typed_config.unwrap();
        let config = SpiffeCertValidatorConfig::decode(&*config.value).unwrap();
        assert_eq!(config.trust_domains[0].name, "partner.example");
        inline(config.trust_domains[0].trust_bundle.clone())
    };
    let last = stream.on_update(Arc::clone(&without)).unwrap().unwrap();
    assert_eq!(names(&last.resources), [PARTNER]);
    let nobody = roots(&last.resources[0]);
    assert!(nobody.contains("BEGIN CERTIFICATE") && nobody != roots(&first.resources[0]));
    assert!(stream.on_request(reply_to(&last, &[PARTNER])).unwrap().is_none());
    let again = stream.on_update(Arc::clone(&with)).unwrap().unwrap();
    assert_eq!(roots(&again.resources[0]), roots(&first.resources[0]));

    let mut other = sotw();
    other.on_update(without).unwrap();
    assert!(matches!(other.on_request(request(&[PARTNER])), Err(SdsError::NotAuthorized(_))), "never had it");
}

#[test]
fn refusals_do_not_go_round_for_ever() {
    let world = World::new();
    let mut stream = sotw();
    stream.on_update(world.update(&[world.identity("a", "/web")])).unwrap();
    let mut last = stream.on_request(request(&["default"])).unwrap().unwrap();
    let mut answers = 0;
    for round in 0..1000 {
        let names: &[&str] = if round % 2 == 0 { &["ROOTCA"] } else { &["default"] };
        if let Some(reply) = stream.on_request(refusal_of(&last, names)).unwrap() {
            answers += 1;
            last = reply;
        }
    }
    assert_eq!(answers, MAX_REFUSALS);
    assert!(
        stream.on_update(world.update(&[world.identity("a", "/web")])).unwrap().is_some(),
        "news still come"
    );
}

#[test]
fn too_many_names_are_refused() {
    let many: Vec<String> = (0..=MAX_NAMES).map(|at| at.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(sotw().on_request(request(&many)).unwrap_err(), SdsError::TooManyNames);
}

mod delta_protocol {
    use super::*;
    use crate::sds::respond::DeltaReply;

    fn delta() -> Delta {
        Delta::new(Arc::new(SdsConfig::default()))
    }

    fn subscribe(names: &[&str]) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            type_url: SECRET_TYPE_URL.into(),
            resource_names_subscribe: names.iter().map(|&name| name.into()).collect(),
            ..Default::default()
        }
    }

    fn unsubscribe(names: &[&str]) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            resource_names_unsubscribe: names.iter().map(|&name| name.into()).collect(),
            ..subscribe(&[])
        }
    }

    fn parts(reply: &DeltaReply) -> (Vec<&str>, Vec<&str>) {
        (names(&reply.resources), reply.removed.iter().map(String::as_str).collect())
    }

    #[test]
    fn subscribe_acknowledge_refuse_unsubscribe() {
        let world = World::new();
        let mut stream = delta();
        stream.on_update(world.update(&[world.identity("a", "/web")])).unwrap();
        let first = stream.on_request(subscribe(&["default", "ROOTCA"])).unwrap().unwrap();
        assert_eq!(parts(&first), (vec!["ROOTCA", "default"], vec![]));
        assert_eq!(first.system_version_info, "1");
        let ack = DeltaDiscoveryRequest { response_nonce: first.nonce.clone(), ..subscribe(&[]) };
        assert!(stream.on_request(ack).unwrap().is_none());
        let detail = Some(RpcStatus { message: "no".into(), ..Default::default() });
        let refusal =
            DeltaDiscoveryRequest { response_nonce: first.nonce, error_detail: detail, ..subscribe(&[]) };
        for _ in 0..100 {
            assert!(stream.on_request(refusal.clone()).unwrap().is_none(), "a refusal changes nothing");
        }
        let more = DeltaDiscoveryRequest { response_nonce: "stale".into(), ..subscribe(&[PARTNER]) };
        assert_eq!(parts(&stream.on_request(more).unwrap().unwrap()), (vec![PARTNER], vec![]));
        assert!(stream.on_request(unsubscribe(&["default"])).unwrap().is_none());
        assert!(stream.on_update(world.update(&[world.identity("a", "/web")])).unwrap().is_none());
        let again = stream.on_request(subscribe(&["ROOTCA"])).unwrap().unwrap();
        assert_eq!(parts(&again), (vec!["ROOTCA"], vec![]), "subscribing again sends again");
    }

    #[test]
    fn what_is_not_there_is_removed_and_comes_later() {
        let world = World::new();
        let mut stream = delta();
        stream.on_update(world.update(&[])).unwrap();
        let first = stream.on_request(subscribe(&["default", "nope"])).unwrap().unwrap();
        assert_eq!(parts(&first), (vec![], vec!["default", "nope"]));
        assert!(stream.on_update(world.update(&[])).unwrap().is_none(), "said once");
        let web = world.identity("a", "/web");
        let second = stream.on_update(world.update(std::slice::from_ref(&web))).unwrap().unwrap();
        assert_eq!(parts(&second), (vec!["default"], vec![]));
        let third = stream.on_update(world.update(&[])).unwrap().unwrap();
        assert_eq!(parts(&third), (vec![], vec!["default"]));
    }

    #[test]
    fn a_returning_client_says_what_it_has() {
        let world = World::new();
        let update = world.update(&[world.identity("a", "/web")]);
        let mut stream = delta();
        stream.on_update(Arc::clone(&update)).unwrap();
        let first = stream.on_request(subscribe(&["default", "ROOTCA"])).unwrap().unwrap();
        let mut versions: std::collections::HashMap<String, String> = first
            .resources
            .iter()
            .map(|resource| (resource.name.clone(), resource.version.clone()))
            .collect();
        versions.insert("default".into(), "older".into());
        let mut stream = delta();
        stream.on_update(update).unwrap();
        let returning = DeltaDiscoveryRequest {
            initial_resource_versions: versions.into_iter().collect(),
            ..subscribe(&["default", "ROOTCA"])
        };
        assert_eq!(parts(&stream.on_request(returning).unwrap().unwrap()), (vec!["default"], vec![]));
    }

    #[test]
    fn wildcards() {
        let world = World::new();
        let (web, db) = (world.identity("a", "/web"), world.identity("b", "/db"));
        for first in [subscribe(&[]), subscribe(&["*"])] {
            let mut stream = delta();
            assert!(stream.on_request(first).unwrap().is_none(), "nothing is known yet");
            let reply = stream.on_update(world.update(&[web.clone(), db.clone()])).unwrap().unwrap();
            assert_eq!(parts(&reply), (vec![OWN, PARTNER, WEB, DB], vec![]));
            let reply = stream.on_update(world.update(std::slice::from_ref(&web))).unwrap().unwrap();
            assert_eq!(parts(&reply), (vec![], vec![DB]));
            let reply = stream.on_request(subscribe(&["default"])).unwrap().unwrap();
            assert_eq!(parts(&reply), (vec!["default"], vec![]));
            assert!(stream.on_request(unsubscribe(&["*"])).unwrap().is_none());
            let reply = stream.on_update(world.update(&[world.identity("a", "/web")])).unwrap().unwrap();
            assert_eq!(parts(&reply), (vec!["default"], vec![]));
        }
    }

    #[test]
    fn versions_change_with_content_only() {
        let world = World::new();
        let update = world.update(&[world.identity("a", "/web")]);
        let version = |update: &Arc<WorkloadUpdate>| {
            let mut stream = delta();
            stream.on_update(Arc::clone(update)).unwrap();
            stream.on_request(subscribe(&["default"])).unwrap().unwrap().resources[0].version.clone()
        };
        assert_eq!(version(&update), version(&update));
        assert_ne!(version(&update), version(&world.update(&[world.identity("a", "/web")])));
    }

    #[test]
    fn too_many_names_are_refused() {
        let many: Vec<String> = (0..=MAX_NAMES).map(|at| at.to_string()).collect();
        let request = DeltaDiscoveryRequest { resource_names_subscribe: many, ..Default::default() };
        assert_eq!(delta().on_request(request).unwrap_err(), SdsError::TooManyNames);
    }
}
