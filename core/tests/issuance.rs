//! Issuance from end to end: CSR, authority, leaf, verification, and what the leaf looks like.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use svid_core::bundle::{Bundle, X509Authority};
use svid_core::id::{SpiffeId, TrustDomain};
use svid_core::key::{KeyType, LocalKey, Signer};
use svid_core::pem;
use svid_core::x509::ca::{ca_csr, check_ca_cert, self_signed_ca, sign_ca};
use svid_core::x509::csr::make_csr;
use svid_core::x509::{
    Authority, CaSubject, CaTemplate, CsrError, IssueError, LeafTemplate, ParsedCert, PublicKey, Roots,
    Subject, UnverifiedCsr, VerifiedCsr, VerifyError, verify, verify_path,
};

const HOUR: Duration = Duration::from_secs(3600);

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(1_900_000_000_500)
}

fn td() -> TrustDomain {
    "example.org".parse().unwrap()
}

fn id(path: &str) -> SpiffeId {
    SpiffeId::from_parts("example.org", path).unwrap()
}

fn signer(kind: KeyType) -> Arc<dyn Signer> {
    LocalKey::generate(kind).unwrap().into_signer()
}

fn authority(kind: KeyType) -> Authority {
    let signer = signer(kind);
    let root = self_signed_ca(&td(), &CaSubject::default(), 24 * HOUR, signer.as_ref(), now()).unwrap();
    Authority::new(&root, Vec::new(), signer).unwrap()
}

fn roots(authority: &Authority) -> Roots {
    Roots::for_trust_domain(&td(), [authority.cert_der()]).unwrap()
}

fn template(path: &str) -> LeafTemplate {
    LeafTemplate {
        id: id(path),
        public_key: PublicKey::of(signer(KeyType::EcP256).as_ref()).unwrap(),
        ttl: HOUR,
        dns_names: Vec::new(),
        subject: Subject::Spire,
        not_after_limit: None,
    }
}

#[test]
fn every_key_type_issues_and_verifies() {
    for kind in [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048] {
        let ca = authority(kind);
        let svid = ca.prepare(template("/web"), now()).unwrap().sign().unwrap();
        let chain = svid.chain().to_ders();
        let peer = verify(&chain, &roots(&ca), now()).unwrap();
        assert_eq!(*peer.id(), id("/web"));
        assert_eq!(peer.serial_decimal(), svid.serial_decimal());
    }
}

#[test]
fn a_leaf_has_spires_shape() {
    let ca = authority(KeyType::EcP256);
    let dns_names = vec!["web.example.org".to_owned(), "web".to_owned()];
    let prepared =
        ca.prepare(LeafTemplate { dns_names: dns_names.clone(), ..template("/web") }, now()).unwrap();
    let serial = prepared.serial_decimal();
    let svid = prepared.sign().unwrap();
    let leaf = svid.leaf();
    assert_eq!(leaf.serial_decimal(), serial);
    assert_eq!(leaf.subject(), "CN=web.example.org,O=SPIRE,C=US");
    assert_eq!(leaf.uri_sans(), ["spiffe://example.org/web"]);
    assert_eq!(leaf.dns_sans(), dns_names);
    let usage = leaf.key_usage().unwrap();
    assert!(usage.critical);
    assert_eq!(usage.bits, 0b1_0101); // digitalSignature, keyEncipherment, keyAgreement
    assert_eq!(leaf.server_and_client_auth(), (true, true));
    assert!(!leaf.is_ca());
    assert_eq!(leaf.authority_key_id_hex(), Some(ca.id_hex()));
    assert!(leaf.subject_key_id_hex().is_some_and(|id| id.len() == 40 && id != ca.id_hex()));
    assert_eq!(leaf.issuer_der(), ca.cert().subject_der());
    let whole = SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_000);
    assert_eq!(leaf.life().not_after, whole + HOUR);
    assert_eq!(leaf.life().not_before, whole - Duration::from_secs(10));
    assert!(svid.chain().rest().is_empty());
}

#[test]
fn a_ca_has_spires_shape() {
    let ca = authority(KeyType::EcP384);
    let cert = ca.cert();
    assert_eq!(cert.subject(), format!("SERIALNUMBER={},O=SPIFFE,C=US", cert.serial_decimal()));
    assert_eq!(cert.issuer(), cert.subject());
    assert_eq!(cert.uri_sans(), ["spiffe://example.org"]);
    assert!(cert.is_ca());
    assert_eq!(cert.key_usage().unwrap().bits, 0b110_0000);
    assert_eq!(cert.subject_key_id_hex(), Some(ca.id_hex()));
    assert_eq!(cert.authority_key_id_hex(), Some(ca.id_hex()));
    assert_eq!(check_ca_cert(cert, &td(), ca.signer().public_key_der(), now()), Ok(()));
    let other: TrustDomain = "other.org".parse().unwrap();
    assert!(check_ca_cert(cert, &other, ca.signer().public_key_der(), now()).is_err());
}

#[test]
fn lives_are_capped_and_short_ones_hardly_back_dated() {
    let ca = authority(KeyType::EcP256);
    let life = |ttl, limit: Option<SystemTime>| {
        let template = LeafTemplate { ttl, not_after_limit: limit, ..template("/web") };
        ca.prepare(template, now()).map(|prepared| prepared.life())
    };
    assert_eq!(life(48 * HOUR, None).unwrap().not_after, ca.life().not_after);
    let limit = now() + Duration::from_secs(20);
    let short = life(HOUR, Some(limit)).unwrap();
    assert_eq!(short.not_after, limit - Duration::from_millis(500));
    assert_eq!(short.not_before, SystemTime::UNIX_EPOCH + Duration::from_secs(1_899_999_995));
    assert_eq!(life(Duration::ZERO, None).err(), Some(IssueError::NoLife));
    assert_eq!(life(HOUR, Some(now() - HOUR)).err(), Some(IssueError::NoLife));
    assert_eq!(life(Duration::MAX, None).err(), Some(IssueError::Time));
    let late = now() + 25 * HOUR;
    assert_eq!(ca.prepare(template("/web"), late).err(), Some(IssueError::AuthorityExpired));
}

#[test]
fn templates_that_break_rules_are_refused() {
    let ca = authority(KeyType::EcP256);
    let refused = |template| ca.prepare(template, now()).map(|_| ()).unwrap_err();
    assert_eq!(refused(template("")), IssueError::NoPath);
    for bad in ["", "a b", "ü.example", &"a".repeat(254)] {
        let template = LeafTemplate { dns_names: vec![bad.to_owned()], ..template("/web") };
        assert_eq!(refused(template), IssueError::DnsName(bad.to_owned()));
    }
    let template = LeafTemplate { subject: Subject::Raw(vec![1, 2]), ..template("/web") };
    assert_eq!(refused(template), IssueError::Subject);
}

#[test]
fn minted_leaves_carry_the_subject_of_their_csr() {
    let ca = authority(KeyType::EcP256);
    let key = signer(KeyType::Rsa2048);
    let csr =
        VerifiedCsr::from_der(&make_csr(key.as_ref(), Some(&id("/web")), &["a.b".into()]).unwrap()).unwrap();
    assert_eq!(csr.spiffe_id(), Ok(id("/web")));
    assert_eq!(csr.dns_sans(), ["a.b"]);
    assert_eq!(csr.subject(), "O=SPIRE,C=US");
    let template = LeafTemplate {
        subject: Subject::Raw(ca.cert().subject_der().to_vec()),
        public_key: csr.into_public_key(),
        ..template("/web")
    };
    let svid = ca.prepare(template, now()).unwrap().sign().unwrap();
    assert_eq!(svid.leaf().subject_der(), ca.cert().subject_der());
    assert_eq!(svid.leaf().public_key_der(), key.public_key_der());
}

#[test]
fn csrs_are_verified() {
    for kind in [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048] {
        let key = signer(kind);
        let der = make_csr(key.as_ref(), None, &[]).unwrap();
        let csr = VerifiedCsr::from_der(&der).unwrap();
        assert_eq!(csr.public_key().spki(), key.public_key_der());
        assert!(csr.spiffe_id().is_err());
        let mut tampered = der.clone();
        *tampered.last_mut().unwrap() ^= 1;
        assert_eq!(VerifiedCsr::from_der(&tampered).err(), Some(CsrError::Signature));
        assert!(UnverifiedCsr::from_der(&tampered).is_ok());
        let trailing = [&der[..], &[0]].concat();
        assert_eq!(VerifiedCsr::from_der(&trailing).err(), Some(CsrError::Malformed));
    }
    assert_eq!(VerifiedCsr::from_der(&vec![0x30; 16 * 1024 + 1]).err(), Some(CsrError::TooLarge(16_385)));
}

#[test]
fn verification_tells_its_reasons_apart() {
    let (ca, other) = (authority(KeyType::EcP256), authority(KeyType::EcP256));
    let chain = ca.prepare(template("/web"), now()).unwrap().sign().unwrap().chain().to_ders();
    let check = |roots: &Roots, at| verify(&chain, roots, at).map(|_| ()).unwrap_err();
    assert_eq!(check(&roots(&other), now()), VerifyError::UnknownAuthority);
    assert_eq!(check(&roots(&ca), now() + 2 * HOUR), VerifyError::Expired);
    assert_eq!(check(&roots(&ca), now() - HOUR), VerifyError::NotYetValid);
    let foreign: TrustDomain = "other.org".parse().unwrap();
    let foreign = Roots::for_trust_domain(&foreign, [ca.cert_der()]).unwrap();
    assert_eq!(check(&foreign, now()), VerifyError::WrongTrustDomain { id: id("/web") });
    let nobodys = Roots::from_ders([ca.cert_der()]).unwrap();
    assert_eq!(check(&nobodys, now()), VerifyError::WrongTrustDomain { id: id("/web") });
    assert!(verify_path(&chain, &nobodys, now()).is_ok());
    assert_eq!(verify::<Vec<u8>>(&[], &roots(&ca), now()).err(), Some(VerifyError::Empty));
    let mut bundle = Bundle::empty(td());
    assert_eq!(check(&Roots::from_bundle(&bundle), now()), VerifyError::UnknownAuthority);
    bundle.x509_authorities.push(X509Authority::from_der(ca.cert_der()).unwrap());
    assert!(verify(&chain, &Roots::from_bundle(&bundle), now()).is_ok());
}

#[test]
fn chains_through_upstream_and_downstream_cas() {
    let root_key = signer(KeyType::EcP384);
    let root = self_signed_ca(&td(), &CaSubject::default(), 48 * HOUR, root_key.as_ref(), now()).unwrap();
    let ca_key = signer(KeyType::EcP256);
    let csr = VerifiedCsr::from_der(&ca_csr(&td(), &CaSubject::default(), ca_key.as_ref()).unwrap()).unwrap();
    let subject = csr.subject_der().to_vec();
    let request = CaTemplate::from_csr(csr, &td(), 24 * HOUR).unwrap();
    let ca_der = sign_ca(&root, root_key.as_ref(), &request, &subject, now()).unwrap();
    let ca = Authority::new(&ca_der, vec![ca_der.clone()], ca_key).unwrap();
    assert!(ca.cert().subject().starts_with("SERIALNUMBER="));

    let nested_key = signer(KeyType::EcP256);
    let nested = CaTemplate {
        trust_domain: td(),
        public_key: PublicKey::of(nested_key.as_ref()).unwrap(),
        ttl: 100 * HOUR,
    };
    let nested = ca.issue_downstream_ca(nested, now()).unwrap();
    let facts = ParsedCert::from_der(nested.leaf()).unwrap();
    assert!(facts.subject().contains("OU=DOWNSTREAM-1"), "{}", facts.subject());
    assert_eq!(facts.life().not_after, ca.life().not_after);
    let nested = Authority::new(nested.leaf(), nested.to_ders(), nested_key).unwrap();

    let svid = nested.prepare(template("/web"), now()).unwrap().sign().unwrap();
    assert_eq!(svid.chain().iter().count(), 3);
    let roots = Roots::for_trust_domain(&td(), [&root]).unwrap();
    assert!(verify(&svid.chain().to_ders(), &roots, now()).is_ok());
    assert_eq!(
        verify(&svid.chain().to_ders()[..1], &roots, now()).err(),
        Some(VerifyError::UnknownAuthority)
    );
}

#[test]
fn authorities_want_a_ca_and_its_key() {
    let ca = authority(KeyType::EcP256);
    let leaf = ca.prepare(template("/web"), now()).unwrap().sign().unwrap();
    let key = signer(KeyType::EcP256);
    assert!(matches!(
        Authority::new(leaf.chain().leaf(), vec![], key.clone()),
        Err(IssueError::CaProfile(_))
    ));
    assert!(matches!(Authority::new(ca.cert_der(), vec![], key), Err(IssueError::CaProfile(_))));
}

#[test]
fn pem_round_trips() {
    let ca = authority(KeyType::EcP256);
    let text = pem::certs_to_pem([ca.cert_der(), ca.cert_der()]);
    assert!(text.ends_with("-----END CERTIFICATE-----\n") && !text.contains('\r'));
    assert_eq!(pem::parse_certs_pem(&text).unwrap(), vec![ca.cert_der().to_vec(); 2]);
    assert!(pem::parse_certs_pem("").is_err());
    for kind in [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048] {
        let key = LocalKey::generate(kind).unwrap();
        let text = pem::key_to_pem(key.private_key());
        assert_eq!(
            pem::parse_key_pem(text.as_str()).unwrap().secret_bytes(),
            key.private_key().secret_bytes()
        );
        assert!(pem::parse_certs_pem(text.as_str()).is_err());
    }
}
