//! The attacker's table, with the real agent half on the other side.
#![allow(clippy::unwrap_used)]

/// A PSS signature with the longest salt over 32 bytes of 1 and 32 bytes of 2, as Go's agents make them.
pub(crate) const MODULUS: &str = "8804cb171c69fc60fdfb8d8dfb6aa75897b0e3be694bd015be7c14cfb56dcafccaa6ac7df1a89a5c237f70d4dd8d000847a4d6ecaf4bda04db996d8ef8eefb15370bc625d6dd1c38223871d67a12c73ff6121de7f123e46b430014e59c090b5bc6f661e5b04beecc98a65025e07291a54211af0b7ee3b4cbecce59c3fb2a40322f52e6b891e08daee6d43000e25f898a4d2eb1811b2037d43f7491ef22bb7adbd7789c8bcb464bc44a54fb0abbc66ea9f5a1b268aa5c389de72163d2c91bc3d702239edb1cab04050a15ee0e9582b05886b0f808d87d28d9304f2ae9d46eda908bcfc5b8d27ef01cf7e25228a61538657f2ccb0c352304c25cd5bd13f174280f";
pub(crate) const SIGNATURE: &str = "7ba0f9ccad5e5398b24793c01d49e76a90f185adca850f244d62118f93b117c7b0046ee4b232b71156dec6efc5b72f48e565b07de452d81c33b92f880ec257166433f0475bf061425807eeb4c7bceaa9be46f7a3f0701ab167fc5ce9b3298d8a0fcceb65b9c8c3b9806862cb4ec59a8ee0d31bb9b1a7f089ed63d34d8d4e5a1928a7928390b60cfcabbf96414d73f8e898c9b37717b3a629d6586ccb9d6aa69b9ea4083797a121692fe84c441ba4bc1eab54013977733c414177c4e1b323bafb1eb486f8af352d55374002f0084d14d9dc65a38b1fa7e16eb3c49352730f88f910a460d6d3e1e98446c62ab83587a8b4994ff3c0ec3a6fb2310bc5f13c63120d";

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use svid_core::clock::Clock;
use svid_core::hcl;
use svid_plugin_api::{
    AgentNodeAttestor, AttestContext, AttestSession, AttestedNode, Challenger, PluginCode, PluginError,
    ServerNodeAttestor,
};

use crate::template::Template;
use crate::wire::{AttestationData, Bytes, Nonce, RsaProof, to_json};
use crate::{AgentConfig, ServerConfig, X509PopAgent, X509PopServer, proof};

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    der: Vec<u8>,
    pem: String,
}

fn ca(name: &str) -> Ca {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate().unwrap();
    let cert = params.self_signed(&key).unwrap();
    Ca { der: cert.der().to_vec(), pem: cert.pem(), issuer: Issuer::new(params, key) }
}

struct Leaf {
    key: KeyPair,
    der: Vec<u8>,
    pem: String,
}

fn leaf(ca: &Ca, change: impl FnOnce(&mut CertificateParams)) -> Leaf {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, "node-1");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    let cert = params.signed_by(&key, &ca.issuer).unwrap();
    Leaf { der: cert.der().to_vec(), pem: cert.pem(), key }
}

struct Rig {
    dir: tempfile::TempDir,
    ca: Ca,
    now: SystemTime,
}

impl Rig {
    fn new() -> Self {
        let rig = Self { dir: tempfile::tempdir().unwrap(), ca: ca("nodes"), now: SystemTime::now() };
        std::fs::write(rig.dir.path().join("ca.pem"), &rig.ca.pem).unwrap();
        rig
    }

    fn server(&self, more: &str) -> X509PopServer {
        let path = self.dir.path().join("ca.pem");
        let body = hcl::parse(&format!("ca_bundle_path = {:?}\n{more}", path.display().to_string())).unwrap();
        let (config, report) = hcl::decode(&body, ServerConfig::read);
        assert_eq!(report.errors, []);
        let now = self.now;
        X509PopServer::new(config.unwrap(), Arc::new(Vec::new), Clock::from_fn(move || now))
    }

    fn agent(&self, key: &KeyPair, pem: &str) -> X509PopAgent {
        let (private_key_path, certificate_path) =
            (self.dir.path().join("key.pem"), self.dir.path().join("cert.pem"));
        std::fs::write(&private_key_path, key.serialize_pem()).unwrap();
        std::fs::write(&certificate_path, pem).unwrap();
        X509PopAgent::new(AgentConfig { private_key_path, certificate_path, intermediates_path: None })
    }

    async fn attest(&self, more: &str, key: &KeyPair, pem: &str) -> Result<AttestedNode, PluginError> {
        let session = self.agent(key, pem).begin().await.unwrap();
        let payload = session.payload().to_vec();
        self.server(more).attest(&context(), &payload, &mut Wire(session)).await
    }
}

fn context() -> AttestContext {
    AttestContext { trust_domain: "example.org".parse().unwrap(), client_ip: Some([192, 0, 2, 1].into()) }
}

struct Wire(Box<dyn AttestSession>);

#[async_trait]
impl Challenger for Wire {
    async fn challenge(&mut self, challenge: Vec<u8>) -> Result<Vec<u8>, PluginError> {
        self.0.respond(&challenge).await
    }
}

#[track_caller]
fn refused(got: Result<AttestedNode, PluginError>, code: PluginCode, text: &str) {
    let error = got.expect_err(text);
    assert!(error.code == code && error.message.contains(text), "{error:?} is not {code:?} {text}");
}

#[tokio::test]
async fn a_node_proves_itself() {
    let rig = Rig::new();
    let san = SanType::URI("x509pop://example.org/rack/12".try_into().unwrap());
    let node = leaf(&rig.ca, |params| params.subject_alt_names.push(san));
    let got = rig.attest("", &node.key, &node.pem).await.unwrap();
    let fingerprint = crate::chain::fingerprint(&node.der);
    assert_eq!(got.agent_id.path(), format!("/spire/agent/x509pop/{fingerprint}"));
    assert!(got.can_reattest);
    let ca = format!("ca:fingerprint:{}", crate::chain::fingerprint(&rig.ca.der));
    for want in ["subject:cn:node-1", ca.as_str(), "san:rack:12"] {
        assert!(got.selector_values.iter().any(|value| value == want), "{want}: {:?}", got.selector_values);
    }
}

#[tokio::test]
async fn attackers_are_refused() {
    let rig = Rig::new();
    let node = leaf(&rig.ca, |_| {});
    let denied = PluginCode::PermissionDenied;
    let other = KeyPair::generate().unwrap();
    refused(rig.attest("", &other, &node.pem).await, denied, "ECDSA signature verify failed");
    let foreign = leaf(&ca("nodes"), |_| {});
    refused(rig.attest("", &foreign.key, &foreign.pem).await, denied, "certificate verification failed");
    let past = SystemTime::now() - Duration::from_secs(3600);
    let expired = leaf(&rig.ca, |params| params.not_after = past.into());
    refused(rig.attest("", &expired.key, &expired.pem).await, denied, "certificate verification failed");
    let unfit = leaf(&rig.ca, |params| params.key_usages = vec![KeyUsagePurpose::KeyEncipherment]);
    refused(
        rig.attest("", &unfit.key, &unfit.pem).await,
        PluginCode::Internal,
        "not intended for digital signature",
    );
    let invalid = PluginCode::InvalidArgument;
    let long = node.pem.repeat(6);
    refused(rig.attest("", &node.key, &long).await, invalid, "too many intermediate certificates");
    let address = "verify_client_ip = true";
    refused(rig.attest(address, &node.key, &node.pem).await, denied, "does not match any certificate IP SAN");
}

#[tokio::test]
async fn names_of_the_certificate_make_no_path() {
    let rig = Rig::new();
    let template = "agent_path_template = \"/x509pop/{{ .Subject.CommonName }}\"";
    for (name, want) in [
        ("a/b", "contains a slash"),
        ("..", "dot segments"),
        (".", "dot segments"),
        ("", "trailing slash"),
        ("a b", "path segment characters"),
    ] {
        let node = leaf(&rig.ca, |params| params.distinguished_name.push(DnType::CommonName, name));
        refused(rig.attest(template, &node.key, &node.pem).await, PluginCode::Internal, want);
    }
    let node = leaf(&rig.ca, |_| {});
    let got = rig.attest(template, &node.key, &node.pem).await.unwrap();
    assert_eq!(got.agent_id.path(), "/spire/agent/x509pop/node-1");
}

#[tokio::test]
async fn payloads_that_are_none() {
    let rig = Rig::new();
    let node = leaf(&rig.ca, |_| {});
    let empty = to_json(&AttestationData::default()).unwrap();
    let garbage = to_json(&AttestationData { certificates: Some(vec![Bytes(vec![0x30; 100])]) }).unwrap();
    for (payload, want) in [
        (b"{".to_vec(), "failed to unmarshal data"),
        (empty, "no certificate to attest"),
        (garbage, "unable to parse leaf certificate"),
    ] {
        let session = rig.agent(&node.key, &node.pem).begin().await.unwrap();
        let got = rig.server("").attest(&context(), &payload, &mut Wire(session)).await;
        refused(got, PluginCode::InvalidArgument, want);
    }
}

#[tokio::test]
async fn rsa_keys_have_a_cap() {
    let rig = Rig::new();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let key = KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    let pem = params.signed_by(&key, &rig.ca.issuer).unwrap().pem();
    let capped = rig.attest("max_rsa_key_size = 1024", &key, &pem).await;
    refused(capped, PluginCode::InvalidArgument, "leaf certificate key size too large");
    assert!(rig.attest("", &key, &pem).await.is_ok());
}

#[test]
fn pss_salts_of_any_length() {
    let bytes = |hex: &str| hex::decode(hex).unwrap();
    let asked = Nonce { nonce: Bytes(vec![1; 32]) };
    let mut proof = RsaProof { nonce: Bytes(vec![2; 32]), signature: Bytes(bytes(SIGNATURE)) };
    assert_eq!(proof::verify_rsa(&bytes(MODULUS), &[1, 0, 1], &asked, &proof), Ok(()));
    proof.signature.0[40] ^= 1;
    assert!(proof::verify_rsa(&bytes(MODULUS), &[1, 0, 1], &asked, &proof).is_err());
    let huge = vec![0xff; 512];
    assert_eq!(proof::verify_rsa(&bytes(MODULUS), &huge, &asked, &proof), Err("unsupported RSA exponent"));
}

#[test]
fn templates_that_cannot_be_read() {
    for bad in [
        "{{ .Nope }}",
        "{{ .Fingerprint",
        "{{ if .Fingerprint }}x{{ end }}",
        "{{ env \"HOME\" }}",
        "{{ .Fingerprint | }}",
        "{{ lower }}",
        "{{ (.Fingerprint }}",
        "{{ }}",
    ] {
        assert!(Template::parse(bad).is_err(), "{bad}");
    }
    for good in [
        "/x/{{ .Fingerprint }}",
        "/x/{{- .SerialNumberHex | trunc 8 | upper -}}",
        "/{{ index .URISanSelectors \"rack\" }}/{{ .URISanSelectors.rack }}",
        "/{{ default \"none\" (first .DNSNames) }}",
        "{{/* words */}}/x/{{ .Subject.CommonName | replace \"/\" \"-\" }}",
    ] {
        assert!(Template::parse(good).is_ok(), "{good}: {:?}", Template::parse(good));
    }
}
