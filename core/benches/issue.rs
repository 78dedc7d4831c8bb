//! Issuance in process, next to the signatures it cannot do without.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use criterion::{Criterion, criterion_group, criterion_main};
use svid_core::id::{SpiffeId, TrustDomain};
use svid_core::jwt::{JwtSigner, new_kid, sign_jwt_svid};
use svid_core::key::{KeyType, LocalKey, Signer};
use svid_core::x509::ca::self_signed_ca;
use svid_core::x509::csr::make_csr;
use svid_core::x509::{Authority, CaSubject, LeafTemplate, PublicKey, Subject, VerifiedCsr};

const DAY: Duration = Duration::from_secs(86_400);

fn key() -> Arc<dyn Signer> {
    LocalKey::generate(KeyType::EcP256).expect("key").into_signer()
}

fn x509(c: &mut Criterion) {
    let trust_domain: TrustDomain = "example.org".parse().expect("trust domain");
    let id = SpiffeId::from_parts("example.org", "/ns/default/sa/web").expect("id");
    let (ca_key, leaf_key, now) = (key(), key(), SystemTime::now());
    let ca = self_signed_ca(&trust_domain, &CaSubject::default(), DAY, ca_key.as_ref(), now).expect("CA");
    let authority = Authority::new(&ca, Vec::new(), ca_key.clone()).expect("authority");
    let csr = make_csr(leaf_key.as_ref(), Some(&id), &[]).expect("CSR");

    let message = vec![7; 600];
    let signature = leaf_key.sign(&message).expect("signature");
    let public_key = PublicKey::of(leaf_key.as_ref()).expect("public key");
    let verifier = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, public_key.bytes().to_vec());
    c.bench_function("x509/verify and sign alone", |b| {
        b.iter(|| {
            verifier.verify(black_box(&message), &signature).expect("valid");
            ca_key.sign(black_box(&message)).expect("signed")
        });
    });
    c.bench_function("x509/issue from CSR", |b| {
        b.iter(|| {
            let csr = VerifiedCsr::from_der(black_box(&csr)).expect("CSR");
            let template = LeafTemplate {
                id: id.clone(),
                public_key: csr.into_public_key(),
                ttl: Duration::from_secs(3600),
                dns_names: Vec::new(),
                subject: Subject::Spire,
                not_after_limit: None,
            };
            authority.prepare(template, now).expect("template").sign().expect("SVID")
        });
    });
}

fn jwt(c: &mut Criterion) {
    let id = SpiffeId::from_parts("example.org", "/ns/default/sa/web").expect("id");
    let (signer, now) = (key(), SystemTime::now());
    let key = JwtSigner::new(new_kid().expect("kid"), signer.clone(), now + DAY, None);
    let audience = ["spiffe://example.org/reports".to_owned()];
    let message = vec![7; 300];
    c.bench_function("jwt/sign alone", |b| b.iter(|| signer.sign_jws(black_box(&message)).expect("signed")));
    c.bench_function("jwt/sign SVID", |b| {
        b.iter(|| sign_jwt_svid(&key, black_box(&id), &audience, DAY, now, None).expect("SVID"));
    });
}

criterion_group!(benches, x509, jwt);
criterion_main!(benches);
