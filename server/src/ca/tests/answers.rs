//! What an upstream authority may answer, and what becomes of it.

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyUsagePurpose, SanType};
use svid_core::x509::ca::{CaSubject, ca_csr};
use svid_core::x509::{Authority, ParsedCert};
use svid_plugin_api::{MintedCa, PluginCode, PluginError};

use super::puppet::{Issuer, Puppet, authority, below, ca_params, root, sign};
use super::*;

/// What a first start says to an answer.
async fn start(
    act: impl Fn(&[u8]) -> Result<MintedCa, PluginError> + Send + 'static,
) -> (Disk, Result<Ca, CaError>) {
    let (disk, puppet) = (Disk::default(), Puppet::honest(&root("unused")));
    puppet.acts(act);
    let started = start_with(config(), &disk, Some(puppet), Clock::system()).await;
    (disk, started.map(|(ca, _task)| ca))
}

async fn refused(act: impl Fn(&[u8]) -> Result<MintedCa, PluginError> + Send + 'static, want: &str) {
    let (disk, started) = start(act).await;
    let error = started.map(drop).unwrap_err().to_string();
    assert!(error.starts_with("upstreamauthority(puppet): ") && error.contains(want), "{error}");
    let journal = journal::Journal::decode(&disk.journal().unwrap()).unwrap();
    assert!(journal.x509().is_empty(), "nothing of it is used");
    assert!(disk.has_no_x509(), "and nobody is told to believe it");
}

/// The CA is changed before it is signed.
async fn refused_ca(change: fn(&mut CertificateParams), want: &str) {
    let top = root("top");
    let act =
        move |csr: &[u8]| Ok(MintedCa { chain: vec![sign(&top, csr, change)], roots: vec![authority(&top)] });
    refused(act, want).await;
}

#[tokio::test]
async fn a_ca_that_breaks_a_rule_is_refused() {
    refused_ca(|p| p.subject_alt_names = vec![uri("spiffe://other.org")], "URI SAN is not the ID").await;
    refused_ca(|p| p.subject_alt_names.clear(), "URI SAN is not the ID").await;
    refused_ca(|p| p.subject_alt_names.push(uri("spiffe://example.org/b")), "URI").await;
    refused_ca(|p| p.not_after = rcgen::date_time_ymd(2020, 1, 1), "expired").await;
    refused_ca(|p| p.not_before = rcgen::date_time_ymd(2059, 1, 1), "not yet valid").await;
    refused_ca(|p| p.is_ca = IsCa::ExplicitNoCa, "cA constraint is not set").await;
    refused_ca(|p| p.key_usages.push(KeyUsagePurpose::KeyAgreement), "only keyCertSign, cRLSign").await;
    refused_ca(|p| p.key_usages = vec![KeyUsagePurpose::CrlSign], "keyCertSign key usage must be set").await;
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

#[tokio::test]
async fn a_chain_that_leads_nowhere_is_refused() {
    let (top, other) = (root("top"), root("other"));
    let roots = vec![authority(&other)];
    let signer = top.clone();
    let act =
        move |csr: &[u8]| Ok(MintedCa { chain: vec![sign(&signer, csr, |_| {})], roots: roots.clone() });
    refused(act, "certificate signed by unknown authority").await;

    let signer = top.clone();
    let act = move |csr: &[u8]| Ok(MintedCa { chain: vec![sign(&signer, csr, |_| {})], roots: Vec::new() });
    refused(act, "no upstream roots").await;

    let root = authority(&top);
    refused(move |_| Ok(MintedCa { chain: Vec::new(), roots: vec![root.clone()] }), "the chain is empty")
        .await;

    let signer = top.clone();
    let act = move |_: &[u8]| {
        let key = LocalKey::generate(KeyType::EcP256).unwrap();
        let csr = ca_csr(&trust_domain(), &CaSubject::default(), &key).unwrap();
        Ok(MintedCa { chain: vec![sign(&signer, &csr, |_| {})], roots: vec![authority(&signer)] })
    };
    refused(act, "certificate is not for the signing key").await;

    let signer = top.clone();
    let act = move |_: &[u8]| {
        Ok(MintedCa { chain: vec![b"no certificate".to_vec()], roots: vec![authority(&signer)] })
    };
    refused(act, "malformed certificate").await;

    // One level is all that this intermediate allows: itself above leaves.
    let mut params = ca_params("narrow");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let narrow = below(&top, params);
    let act = move |csr: &[u8]| {
        let chain = vec![sign(&narrow, csr, |_| {}), narrow.der().to_vec()];
        Ok(MintedCa { chain, roots: vec![authority(&top)] })
    };
    refused(act, "failed validation").await;
}

struct Tower {
    top: Arc<Issuer>,
    upper: Arc<Issuer>,
    lower: Arc<Issuer>,
}

fn tower() -> Tower {
    let top = root("top");
    let upper = below(&top, ca_params("upper"));
    let lower = below(&upper, ca_params("lower"));
    Tower { top, upper, lower }
}

#[tokio::test]
async fn a_chain_is_put_into_order() {
    let Tower { top, upper, lower } = tower();
    let stranger = root("stranger");
    let want = [lower.der().to_vec(), upper.der().to_vec()];
    let gap = (lower.clone(), authority(&top));
    let act = move |csr: &[u8]| {
        let ours = sign(&lower, csr, |_| {});
        let others = [&top, &upper, &stranger, &lower].map(|issuer| issuer.der().to_vec());
        let chain = others.into_iter().chain([ours]).collect();
        Ok(MintedCa { chain, roots: vec![authority(&top)] })
    };
    let (disk, started) = start(act).await;
    let ca = started.unwrap();
    let snapshot = ca.snapshot();
    let chain = snapshot.x509_authority(SystemTime::now()).unwrap().chain();
    assert_eq!(chain[1..], want);
    let id = workload_id();
    let request = X509SvidRequest { id: &id, ttl: HOUR, dns_names: &[], not_after_limit: None };
    let svid = ca.sign_workload_x509(&request, workload_key().1, SystemTime::now()).await.unwrap();
    check_svid(&svid, &disk.bundle(), SystemTime::now()).unwrap();

    // Where one is missing there is no order to find.
    let act = move |csr: &[u8]| {
        Ok(MintedCa {
            chain: vec![sign(&gap.0, csr, |_| {}), gap.0.der().to_vec()],
            roots: vec![gap.1.clone()],
        })
    };
    refused(act, "certificate signed by unknown authority").await;
}

#[tokio::test]
async fn nothing_outlives_the_chain() {
    let top = root("top");
    let mut short = ca_params("short");
    let end = SystemTime::now() + HOUR * 5;
    short.not_after = end.into();
    let middle = below(&top, short);
    let act = move |csr: &[u8]| {
        let chain = vec![sign(&middle, csr, |_| {}), middle.der().to_vec()];
        Ok(MintedCa { chain, roots: vec![authority(&top)] })
    };
    let (disk, started) = start(act).await;
    let (ca, now) = (started.unwrap(), SystemTime::now());
    let info = active(&ca.snapshot(), AuthorityKind::X509);
    let left = info.not_after.duration_since(now).unwrap();
    assert!(left <= HOUR * 5 && left > HOUR * 5 - Duration::from_secs(60), "{left:?}");
    let id = workload_id();
    let request = X509SvidRequest { id: &id, ttl: HOUR * 100, dns_names: &[], not_after_limit: None };
    let svid = ca.sign_workload_x509(&request, workload_key().1, now).await.unwrap();
    assert_eq!(svid.not_after(), info.not_after);

    // A nested CA that asks for longer gets what there is, with the whole chain.
    let (key, public) = workload_key();
    let chain = ca.sign_downstream_ca(public, HOUR * 1000, None, now).await.unwrap().chain;
    assert_eq!(chain.len(), 3);
    assert_eq!(ParsedCert::from_der(&chain[0]).unwrap().life().not_after, info.not_after);
    let nested = Authority::new(&chain[0], chain.clone(), key.into_signer()).unwrap();
    assert_eq!(nested.life().not_after, info.not_after);
    let roots: Vec<_> = disk.bundle().x509_authorities.iter().map(|root| root.der().to_vec()).collect();
    super::signing::openssl_verify(&svid, &roots);
}

#[tokio::test]
async fn a_refusal_names_the_plugin_and_keeps_its_words() {
    for code in [PluginCode::PermissionDenied, PluginCode::Unauthenticated, PluginCode::ResourceExhausted] {
        let act = move |_: &[u8]| Err(PluginError::new(code, "not today"));
        refused(act, "not today").await;
    }
}
