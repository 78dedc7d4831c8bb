//! The promises of [`UpstreamAuthority`].

use std::time::{Duration, SystemTime};

use svid_core::bundle::X509Authority;
use svid_core::id::{SpiffeId, TrustDomain};
use svid_core::key::{KeyType, LocalKey, Signer};
use svid_core::x509::ca::{CaSubject, ca_csr, check_ca_cert};
use svid_core::x509::{
    Authority, LeafTemplate, ParsedCert, PublicKey, Roots, Subject, is_issued_by, is_self_issued, verify,
};

use crate::{MintedCa, UpstreamAuthority};

/// The life that is asked for.
const TTL: Duration = Duration::from_secs(3600);
/// Upstreams may have clocks of their own and round to minutes.
const TOLERANCE: Duration = Duration::from_secs(120);

/// A key and a CSR for it, as a server of `trust_domain` sends them.
struct Request {
    key: LocalKey,
    csr: Vec<u8>,
}

impl Request {
    fn new(trust_domain: &TrustDomain, kind: KeyType) -> Self {
        let key = LocalKey::generate(kind).expect("a key");
        let csr = ca_csr(trust_domain, &CaSubject::default(), &key).expect("a CSR");
        Self { key, csr }
    }
}

/// Every promise of [`UpstreamAuthority`] that one server can see. Mints six CAs of up to an hour.
pub async fn upstream_authority(upstream: &dyn UpstreamAuthority, trust_domain: &TrustDomain) {
    let name = upstream.name();
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    assert!(!name.is_empty() && name.bytes().all(is_word), "the name is the plugin's in configuration files");
    let roots = upstream.roots();

    for kind in [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048] {
        let request = Request::new(trust_domain, kind);
        let minted = upstream.mint_x509_ca(&request.csr, TTL).await.expect("mint");
        fits(&minted, request, trust_domain);
        let known: Vec<Vec<u8>> = roots.borrow().iter().map(|root| root.der().to_vec()).collect();
        let came: Vec<&[u8]> = minted.roots.iter().map(X509Authority::der).collect();
        assert_eq!(known, came, "the roots are known once they came with a CA");
    }

    // An answer that was lost: the same CSR again.
    let request = Request::new(trust_domain, KeyType::EcP256);
    upstream.mint_x509_ca(&request.csr, TTL).await.expect("mint");
    let again = upstream.mint_x509_ca(&request.csr, TTL).await.expect("mint the same CSR again");
    fits(&again, request, trust_domain);

    let request = Request::new(trust_domain, KeyType::EcP256);
    let minted = upstream.mint_x509_ca(&request.csr, Duration::ZERO).await.expect("mint without a wish");
    fits(&MintedCa { chain: minted.chain, roots: minted.roots }, request, trust_domain);

    for csr in [b"".as_slice(), b"no CSR"] {
        let error = upstream.mint_x509_ca(csr, TTL).await.expect_err("what is no CSR is refused");
        assert!(!error.message.is_empty(), "and with words");
    }
}

/// What comes back is a CA of `trust_domain` for the key of the request, with all that leads to the roots.
fn fits(minted: &MintedCa, request: Request, trust_domain: &TrustDomain) {
    let now = SystemTime::now();
    let MintedCa { chain, roots } = minted;
    let first = chain.first().expect("the chain begins with the CA");
    let cert = ParsedCert::from_der(first).expect("a certificate");
    check_ca_cert(&cert, trust_domain, request.key.public_key_der(), now)
        .expect("a CA of the trust domain for the key that was sent");
    assert!(cert.dns_sans().is_empty(), "a CA has no host names");
    let left = cert.life().remaining(now);
    assert!(!left.is_zero() && left <= TTL + TOLERANCE, "no longer than was asked for: {left:?}");

    assert!(!roots.is_empty(), "roots come with each CA");
    for root in roots {
        assert!(root.parsed().is_ca(), "roots are CAs");
        assert!(!chain.iter().any(|cert| cert == root.der()), "the chain stops below the roots");
    }
    assert!(!chain.iter().any(|cert| is_self_issued(cert)), "no root is in the chain");
    for pair in chain.windows(2) {
        assert!(is_issued_by(&pair[0], &pair[1]), "the chain is in order");
    }
    let last = chain.last().expect("not empty");
    assert!(roots.iter().any(|root| is_issued_by(last, root.der())), "a root signed the last of the chain");
    leads_to_roots(chain, roots, request.key, trust_domain, now);
}

/// An SVID signed with the new CA verifies as peers will do it.
fn leads_to_roots(
    chain: &[Vec<u8>],
    roots: &[X509Authority],
    key: LocalKey,
    trust_domain: &TrustDomain,
    now: SystemTime,
) {
    let authority = Authority::new(&chain[0], chain.to_vec(), key.into_signer()).expect("an authority");
    let leaf = LocalKey::generate(KeyType::EcP256).expect("a key");
    let template = LeafTemplate {
        id: SpiffeId::from_parts(trust_domain.as_str(), "/conformance").expect("an ID"),
        public_key: PublicKey::of(&leaf).expect("a public key"),
        ttl: Duration::from_secs(60),
        dns_names: Vec::new(),
        subject: Subject::Spire,
        not_after_limit: None,
    };
    let svid = authority.prepare(template, now).expect("prepare").sign().expect("sign");
    let roots = Roots::for_trust_domain(trust_domain, roots.iter().map(X509Authority::der)).expect("roots");
    let chain: Vec<&[u8]> = svid.chain().iter().collect();
    verify(&chain, &roots, now).expect("an SVID of the new CA verifies to the roots that came with it");
}
