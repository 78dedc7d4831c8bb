#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use svid_core::clock::Clock;
use svid_core::id::TrustDomain;
use svid_core::key::{KeyType, LocalKey};
use svid_core::pem::certs_to_pem;
use svid_core::x509::ca::{CaSubject, CaTemplate, ca_csr, self_signed_ca, sign_ca};
use svid_core::x509::{PublicKey, VerifiedCsr};
use svid_plugin_api::{PluginCode, PluginError, UpstreamAuthority as _, conformance};

use super::authority::Seams;
use super::*;
use crate::testing::{Answer, Fake, Moto, REGION, access_key};

const HOUR: Duration = Duration::from_secs(3600);
const FAKE_ARN: &str = "arn:aws:acm-pca:eu-west-1:123456789012:certificate-authority/fake";

fn td() -> TrustDomain {
    "example.org".parse().unwrap()
}

fn config(url: &str, arn: &str) -> PcaConfig {
    PcaConfig {
        region: REGION.to_owned(),
        endpoint: Some(url.to_owned()),
        certificate_authority_arn: arn.to_owned(),
        signing_algorithm: None,
        ca_signing_template_arn: "arn:aws:acm-pca:::template/SubordinateCACertificate_PathLen0/V1".to_owned(),
        assume_role_arn: None,
        supplemental_bundle_path: None,
    }
}

async fn open_as(config: PcaConfig, id: &str) -> Result<AwsPca, PluginError> {
    let (key, url) = (access_key(id), config.endpoint.clone());
    let min_poll = Duration::from_millis(10);
    let seams = Seams { access_key: Some(&key), endpoint: url.as_deref(), min_poll };
    AwsPca::open_with(config, Clock::system(), seams).await
}

async fn open(config: PcaConfig) -> Result<AwsPca, PluginError> {
    open_as(config, "AKID").await
}

fn csr() -> Vec<u8> {
    ca_csr(&td(), &CaSubject::default(), &LocalKey::generate(KeyType::EcP256).unwrap()).unwrap()
}

#[tokio::test]
async fn keeps_every_promise() {
    let Some(moto) = Moto::start() else { return };
    let pca = open(config(&moto.url, &moto.root_ca(&[]))).await.unwrap();
    conformance::upstream_authority(&pca, &td()).await;
    // The same CSR is one request, also when its answer was lost.
    let csr = csr();
    let [first, again] =
        [pca.mint_x509_ca(&csr, HOUR).await.unwrap(), pca.mint_x509_ca(&csr, HOUR * 2).await.unwrap()];
    assert_eq!(first.chain, again.chain);
}

#[tokio::test]
async fn refusals_say_what_is_wrong() {
    let Some(moto) = Moto::start() else { return };
    let arn = moto.root_ca(&["only=ASIA"]);
    let check = |result: Result<AwsPca, PluginError>, code, words: &str| {
        let error = result.unwrap_err();
        assert_eq!(error.code, code, "{error}");
        assert!(error.message.starts_with("failed to describe CertificateAuthority: "), "{error}");
        assert!(error.message.contains(words), "{error}");
    };
    let denied = open(config(&moto.url, &arn)).await;
    let words = format!("needs acm-pca:DescribeCertificateAuthority on {arn}");
    check(denied, PluginCode::PermissionDenied, &words);
    let wrong = open_as(config(&moto.url, &arn), "WRONG").await;
    check(wrong, PluginCode::Unauthenticated, "UnrecognizedClientException");
    let nowhere = open(config(&moto.url, &format!("{arn}x"))).await;
    check(nowhere, PluginCode::FailedPrecondition, &format!("{arn}x"));
    // The role may.
    let role = "arn:aws:iam::123456789012:role/pca".to_owned();
    let pca = open(PcaConfig { assume_role_arn: Some(role), ..config(&moto.url, &arn) }).await.unwrap();
    pca.mint_x509_ca(&csr(), HOUR).await.unwrap();
}

#[tokio::test]
async fn the_supplemental_bundle_is_followed() {
    let Some(moto) = Moto::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bundle.pem");
    let root = || {
        let key = LocalKey::generate(KeyType::EcP256).unwrap();
        self_signed_ca(&td(), &CaSubject::default(), HOUR, &key, SystemTime::now()).unwrap()
    };
    let (one, other) = (root(), root());
    let config =
        PcaConfig { supplemental_bundle_path: Some(path.clone()), ..config(&moto.url, &moto.root_ca(&[])) };
    let error = open(config.clone()).await.unwrap_err();
    assert!(error.message.starts_with("failed to load supplemental bundle: "), "{error}");
    std::fs::write(&path, certs_to_pem([&one])).unwrap();
    let pca = open(config).await.unwrap();
    let mut roots = pca.roots();
    let at_start: Vec<Vec<u8>> = roots.borrow().iter().map(|root| root.der().to_vec()).collect();
    assert_eq!(at_start, std::slice::from_ref(&one), "published before a CA is asked for");
    let minted = pca.mint_x509_ca(&csr(), HOUR).await.unwrap();
    assert_eq!(minted.roots.len(), 2);
    assert_eq!(minted.roots[1].der(), one);
    assert_eq!(**roots.borrow_and_update(), *minted.roots);
    // Half a file changes nothing; the next whole one does.
    std::fs::write(&path, "-----BEGIN CERTIFICATE-----\nAAAA").unwrap();
    std::fs::write(&path, certs_to_pem([&one, &other])).unwrap();
    tokio::time::timeout(Duration::from_secs(60), roots.changed()).await.unwrap().unwrap();
    let now: Vec<Vec<u8>> = roots.borrow().iter().map(|root| root.der().to_vec()).collect();
    assert_eq!(now[1..], [one, other]);
}

/// A private CA that the tests hold the key of.
struct Ca {
    key: LocalKey,
    cert: Vec<u8>,
}

impl Ca {
    fn new() -> Arc<Self> {
        let key = LocalKey::generate(KeyType::EcP256).unwrap();
        let cert = self_signed_ca(&td(), &CaSubject::default(), HOUR * 2, &key, SystemTime::now()).unwrap();
        Arc::new(Self { key, cert })
    }

    fn sign(&self, csr: &[u8], other_key: bool) -> Vec<u8> {
        let csr = VerifiedCsr::from_der(csr).unwrap();
        let subject = csr.subject_der().to_vec();
        let mut template = CaTemplate::from_csr(csr, &td(), HOUR).unwrap();
        if other_key {
            template.public_key = PublicKey::of(&LocalKey::generate(KeyType::EcP256).unwrap()).unwrap();
        }
        sign_ca(&self.cert, &self.key, &template, &subject, SystemTime::now()).unwrap()
    }
}

#[derive(Default)]
struct Fakes {
    status: &'static str,
    other_key: bool,
    without_root: bool,
    seen: Vec<(String, Value)>,
    trouble: Vec<(&'static str, Answer)>,
}

/// A PCA that does what `fakes` says, each trouble once.
async fn fake(csr: &[u8], fakes: Fakes) -> (Fake, Arc<Mutex<Fakes>>) {
    let ca = Ca::new();
    let cert = ca.sign(csr, fakes.other_key);
    let fakes = Arc::new(Mutex::new(fakes));
    let shared = fakes.clone();
    let end = svid_core::clock::unix_seconds(SystemTime::now() + HOUR * 2);
    let server = Fake::start(move |operation, input| {
        let mut fakes = shared.lock().unwrap();
        fakes.seen.push((operation.to_owned(), input));
        if let Some(at) = fakes.trouble.iter().position(|(of, _)| *of == operation) {
            return fakes.trouble.remove(at).1;
        }
        let chain = if fakes.without_root { &cert } else { &ca.cert };
        Answer::Json(match operation {
            "DescribeCertificateAuthority" => json!({ "CertificateAuthority": {
                "Arn": FAKE_ARN, "Status": fakes.status, "NotAfter": end,
                "CertificateAuthorityConfiguration": {
                    "KeyAlgorithm": "EC_prime256v1", "SigningAlgorithm": "SHA256WITHECDSA", "Subject": {},
                },
            } }),
            "IssueCertificate" => json!({ "CertificateArn": format!("{FAKE_ARN}/certificate/1") }),
            "GetCertificate" => json!({
                "Certificate": certs_to_pem([&cert]),
                "CertificateChain": certs_to_pem([chain]),
            }),
            other => panic!("{other} is not expected"),
        })
    });
    (server.await, fakes)
}

fn active() -> Fakes {
    Fakes { status: "ACTIVE", ..Fakes::default() }
}

async fn mint(fakes: Fakes) -> (Result<usize, PluginError>, Vec<(String, Value)>) {
    let csr = csr();
    let (server, fakes) = fake(&csr, fakes).await;
    let pca = open(config(&server.url, FAKE_ARN)).await.unwrap();
    let minted = pca.mint_x509_ca(&csr, HOUR * 100).await.map(|minted| minted.chain.len());
    let seen = std::mem::take(&mut fakes.lock().unwrap().seen);
    (minted, seen)
}

#[tokio::test]
async fn a_request_asks_for_what_the_ca_can_do() {
    let (minted, seen) = mint(active()).await;
    assert_eq!(minted, Ok(1));
    let issue = &seen.iter().find(|(operation, _)| operation == "IssueCertificate").unwrap().1;
    assert_eq!(issue["SigningAlgorithm"], "SHA256WITHECDSA");
    assert_eq!(issue["TemplateArn"], "arn:aws:acm-pca:::template/SubordinateCACertificate_PathLen0/V1");
    assert_eq!(issue["IdempotencyToken"].as_str().unwrap().len(), 36);
    assert_eq!(issue["Validity"]["Type"], "ABSOLUTE");
    let end = u64::try_from(issue["Validity"]["Value"].as_i64().unwrap()).unwrap();
    let end = SystemTime::UNIX_EPOCH + Duration::from_secs(end);
    assert!(end <= SystemTime::now() + HOUR * 2, "100 hours were wanted, and the CA ends in two");
}

#[tokio::test]
async fn what_passes_is_waited_out() {
    let trouble = vec![
        ("IssueCertificate", Answer::Refuse("ThrottlingException")),
        ("IssueCertificate", Answer::Lose),
        ("GetCertificate", Answer::Refuse("RequestInProgressException")),
        ("GetCertificate", Answer::Refuse("RequestInProgressException")),
    ];
    let (minted, seen) = mint(Fakes { trouble, ..active() }).await;
    assert_eq!(minted, Ok(1));
    let issued: Vec<&Value> = seen
        .iter()
        .filter(|(operation, _)| operation == "IssueCertificate")
        .map(|(_, input)| input)
        .collect();
    assert_eq!(issued.len(), 3);
    assert!(issued.iter().all(|input| input == &issued[0]), "one request with one token");
}

#[tokio::test]
async fn what_does_not_pass_is_told() {
    let check = async |fakes: Fakes, code, words: &str| {
        let error = mint(fakes).await.0.unwrap_err();
        assert_eq!(error.code, code, "{error}");
        assert!(error.message.contains(words), "{error}");
    };
    let refuse = |operation, code| Fakes { trouble: vec![(operation, Answer::Refuse(code))], ..active() };
    let quota = refuse("IssueCertificate", "LimitExceededException");
    check(quota, PluginCode::ResourceExhausted, "failed submitting CSR: LimitExceededException").await;
    let denied = refuse("GetCertificate", "AccessDeniedException");
    check(denied, PluginCode::PermissionDenied, "needs acm-pca:GetCertificate on arn:").await;
    let failed = refuse("GetCertificate", "RequestFailedException");
    check(failed, PluginCode::Internal, "failed waiting for issuance: RequestFailedException").await;
    let pending = Fakes { status: "PENDING_CERTIFICATE", ..Fakes::default() };
    check(pending, PluginCode::FailedPrecondition, "is PENDING_CERTIFICATE and cannot sign; install").await;
    let other = Fakes { other_key: true, ..active() };
    check(other, PluginCode::Internal, "not for the key that was sent").await;
    let gap = Fakes { without_root: true, ..active() };
    check(gap, PluginCode::FailedPrecondition, "supplemental_bundle_path").await;
}

#[tokio::test]
async fn without_aws_a_server_starts_all_the_same() {
    let pca = open(config("http://127.0.0.1:1", FAKE_ARN)).await.unwrap();
    let error = pca.mint_x509_ca(&csr(), HOUR).await.unwrap_err();
    assert_eq!(error.code, PluginCode::Unavailable, "{error}");
}
