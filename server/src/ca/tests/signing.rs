//! What comes out of the CA, and what it refuses.

use std::process::Command;

use svid_core::entry::EntrySpec;
use svid_core::jwt::validate;
use svid_core::pem::certs_to_pem;
use svid_core::selector::SelectorSet;
use svid_core::x509::csr::make_csr;
use svid_core::x509::{Authority, LeafTemplate, ParsedCert, Subject, VerifiedCsr};

use super::*;

fn request<'a>(
    id: &'a svid_core::id::SpiffeId,
    ttl: Duration,
    limit: Option<SystemTime>,
) -> X509SvidRequest<'a> {
    X509SvidRequest { id, ttl, dns_names: &[], not_after_limit: limit }
}

#[tokio::test]
async fn an_svid_ends_with_its_ttl_its_entry_or_its_authority() {
    let (disk, hands) = (Disk::default(), Hands::new());
    let (ca, _task) = start_with(config(), &disk, None, hands.clock()).await.unwrap();
    let (now, id, (_, key)) = (hands.now(), workload_id(), workload_key());
    let check = async |ttl: Duration, limit: Option<Duration>, at: SystemTime, want: SystemTime| {
        let limit = limit.map(|limit| now + limit);
        let svid = ca.sign_workload_x509(&request(&id, ttl, limit), key.clone(), at).await.unwrap();
        assert_eq!(svid.not_after(), want);
        assert_eq!(*check_svid(&svid, &disk.bundle(), at).unwrap().id(), id);
        let jwt = JwtSvidRequest {
            id: &id,
            audience: &["a".to_owned()],
            ttl,
            include_jti: true,
            not_after_limit: limit,
        };
        let jwt = ca.sign_jwt(&jwt, at).await.unwrap();
        let want_jwt = if ttl.is_zero() { want.min(at + Duration::from_secs(300)) } else { want };
        assert_eq!(jwt.expires_at, want_jwt);
    };
    check(Duration::ZERO, None, now, now + HOUR).await;
    check(HOUR * 2, None, now, now + HOUR * 2).await;
    check(HOUR * 2, Some(HOUR), now, now + HOUR).await;
    check(HOUR * 2, Some(HOUR * 3), now, now + HOUR * 2).await;
    check(HOUR * 100, None, now, now + HOUR * 24).await;
    check(HOUR, None, now + HOUR * 23 + HOUR / 2, now + HOUR * 24).await;

    let refused = async |limit: Option<SystemTime>, at| {
        ca.sign_workload_x509(&request(&id, HOUR, limit), key.clone(), at).await
    };
    assert!(matches!(refused(Some(now), now).await, Err(CaError::EntryExpired)));
    assert!(matches!(refused(Some(now - HOUR), now).await, Err(CaError::EntryExpired)));
    assert!(matches!(refused(None, now + HOUR * 24).await, Err(CaError::NoX509Authority)));
    let jwt = JwtSvidRequest {
        id: &id,
        audience: &["a".to_owned()],
        ttl: HOUR,
        include_jti: false,
        not_after_limit: None,
    };
    assert!(matches!(ca.sign_jwt(&jwt, now + HOUR * 24).await, Err(CaError::NoJwtAuthority)));
    let late = JwtSvidRequest { not_after_limit: Some(now), ..jwt };
    assert!(matches!(ca.sign_jwt(&late, now).await, Err(CaError::EntryExpired)));
}

#[tokio::test]
async fn entries_say_what_an_svid_holds() {
    let (disk, hands) = (Disk::default(), Hands::new());
    let config = CaConfig { jwt_issuer: Some("https://issuer.example.org".into()), ..config() };
    let (ca, _task) = start_with(config, &disk, None, hands.clock()).await.unwrap();
    let now = hands.now();
    let spec = EntrySpec {
        spiffe_id: workload_id(),
        parent_id: "spiffe://example.org/spire/agent/a".parse().unwrap(),
        selectors: SelectorSet::from_iter(["unix:uid:1".parse().unwrap()]),
        x509_svid_ttl: 600,
        jwt_svid_ttl: 60,
        federates_with: Vec::new(),
        admin: false,
        downstream: false,
        expires_at: svid_core::clock::unix_seconds(now + HOUR),
        dns_names: vec!["web.example.org".to_owned()],
        store_svid: false,
        hint: String::new(),
        disable_x509_svid_prefetch: false,
        jwt_svid_include_jti: true,
    };
    let svid =
        ca.sign_workload_x509(&X509SvidRequest::for_entry(&spec), workload_key().1, now).await.unwrap();
    assert_eq!(svid.leaf().dns_sans(), ["web.example.org"]);
    assert_eq!(svid.not_after(), now + Duration::from_secs(600));
    assert!(svid.leaf().subject().contains("CN=web.example.org"));
    let audience = ["peer".to_owned()];
    let jwt = ca.sign_jwt(&JwtSvidRequest::for_entry(&spec, &audience), now).await.unwrap();
    let valid = validate(&jwt.token, &disk.bundle(), &audience, now, Duration::ZERO).unwrap();
    assert_eq!(*valid.id(), spec.spiffe_id);
    assert_eq!(valid.claims()["iss"], "https://issuer.example.org");
    assert!(valid.claims().contains_key("jti"));
}

#[tokio::test]
async fn agents_are_prepared_before_they_are_signed() {
    let (disk, hands) = (Disk::default(), Hands::new());
    let config = CaConfig { agent_ttl: Some(HOUR * 3), ..config() };
    let (ca, _task) = start_with(config, &disk, None, hands.clock()).await.unwrap();
    let (now, snapshot) = (hands.now(), ca.snapshot());
    let id = "spiffe://example.org/spire/agent/join_token/x".parse().unwrap();
    let authority = snapshot.x509_authority(now).unwrap();
    let (_, key) = workload_key();
    let prepared = ca.prepare_agent_x509(authority, &id, key.clone(), now).unwrap();
    let serial = prepared.serial_decimal();
    let svid = ca.sign_agent_x509(prepared).await.unwrap();
    assert_eq!((svid.serial_decimal(), svid.not_after()), (serial.clone(), now + HOUR * 3));
    assert_eq!(svid.leaf().subject(), "O=SPIRE,C=US");
    // Its answer got lost: the same again later, and never longer than what was stored.
    let [then, end] = [now, svid.not_after()].map(svid_core::clock::unix_seconds);
    let again = |serial: &str, end| {
        ca.prepare_agent_x509_again(authority, &id, key.clone(), serial, then, end)
            .and_then(|p| Ok(p.sign()?))
    };
    let same = again(&serial, end).unwrap();
    assert_eq!((same.serial_decimal(), same.life()), (serial.clone(), svid.life()));
    assert_eq!(same.leaf().public_key_der(), svid.leaf().public_key_der());
    assert_eq!(again(&serial, end - 60).unwrap().not_after(), svid.not_after() - Duration::from_secs(60));
    for bad in ["", "0", "x", "-1"] {
        assert!(again(bad, end).is_err(), "{bad}");
    }
}

#[tokio::test]
async fn minted_svids_take_the_names_of_their_csr() {
    let (disk, hands) = (Disk::default(), Hands::new());
    let (ca, _task) = start_with(config(), &disk, None, hands.clock()).await.unwrap();
    let id = workload_id();
    let csr = make_csr(&workload_key().0, Some(&id), &["a.example.org".to_owned()]).unwrap();
    let csr = VerifiedCsr::from_der(&csr).unwrap();
    let svid = ca.mint_x509(&id, &csr, HOUR * 2, hands.now()).await.unwrap();
    assert_eq!(svid.leaf().dns_sans(), ["a.example.org"]);
    assert_eq!(svid.not_after(), hands.now() + HOUR * 2);
    assert_eq!(svid.leaf().public_key_der(), csr.public_key().spki());
}

#[tokio::test]
async fn a_nested_server_gets_a_ca_that_signs() {
    let (disk, hands) = (Disk::default(), Hands::new());
    let (ca, _task) = start_with(config(), &disk, None, hands.clock()).await.unwrap();
    let now = hands.now();
    let (key, public) = workload_key();
    let chain = ca.sign_downstream_ca(public.clone(), Duration::ZERO, None, now).await.unwrap().chain;
    assert_eq!(ParsedCert::from_der(&chain[0]).unwrap().life().not_after, now + HOUR * 24);
    let limited = ca.sign_downstream_ca(public.clone(), HOUR * 5, Some(now + HOUR), now).await.unwrap().chain;
    assert_eq!(ParsedCert::from_der(&limited[0]).unwrap().life().not_after, now + HOUR);
    assert!(matches!(ca.sign_downstream_ca(public, HOUR, Some(now), now).await, Err(CaError::EntryExpired)));
    let nested = Authority::new(&chain[0], chain.clone(), key.into_signer()).unwrap();
    let template = LeafTemplate {
        id: workload_id(),
        public_key: workload_key().1,
        ttl: HOUR,
        dns_names: Vec::new(),
        subject: Subject::Spire,
        not_after_limit: None,
    };
    let svid = nested.prepare(template, now).unwrap().sign().unwrap();
    check_svid(&svid, &disk.bundle(), now).unwrap();
}

/// A second opinion on everything we sign: OpenSSL with its strict checks.
#[tokio::test]
async fn openssl_agrees() {
    if Command::new("openssl").arg("version").output().is_err() {
        eprintln!("SKIPPED: openssl is not installed, so no second opinion on certificates");
        return;
    }
    for kind in [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048] {
        let disk = Disk::default();
        let config = CaConfig { ca_key_type: kind, ..config() };
        let (ca, _task) = start_with(config, &disk, None, Clock::system()).await.unwrap();
        let id = workload_id();
        let now = SystemTime::now();
        let svid = ca.sign_workload_x509(&request(&id, HOUR, None), workload_key().1, now).await.unwrap();
        let (nested_key, public) = workload_key();
        let nested = ca.sign_downstream_ca(public, HOUR, None, now).await.unwrap().chain;
        let nested = Authority::new(&nested[0], nested.clone(), nested_key.into_signer()).unwrap();
        let below = nested.prepare(template(), now).unwrap().sign().unwrap();
        let roots: Vec<_> = disk.bundle().x509_authorities.iter().map(|root| root.der().to_vec()).collect();
        for svid in [&svid, &ca.server_identity().borrow().svid, &below] {
            openssl_verify(svid, &roots);
        }
    }
}

fn template() -> LeafTemplate {
    LeafTemplate {
        id: workload_id(),
        public_key: workload_key().1,
        ttl: HOUR / 2,
        dns_names: vec!["a.example.org".to_owned()],
        subject: Subject::Spire,
        not_after_limit: None,
    }
}

pub(super) fn openssl_verify(svid: &X509Svid, roots: &[Vec<u8>]) {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let roots = file("roots.pem", certs_to_pem(roots));
    let leaf = file("leaf.pem", certs_to_pem([svid.chain().leaf()]));
    let chain = file("chain.pem", svid.chain().to_pem());
    let mut openssl = Command::new("openssl");
    openssl.args(["verify", "-x509_strict", "-purpose", "sslserver", "-CAfile"]).arg(roots);
    let output = openssl.arg("-untrusted").arg(chain).arg(leaf).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
