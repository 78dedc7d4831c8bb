//! What one core of this machine does of the cryptography alone, and of issuance without gRPC around it.

use std::hint::black_box;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use svid_core::id::{SpiffeId, TrustDomain};
use svid_core::key::{KeyType, LocalKey};
use svid_core::x509::ca::self_signed_ca;
use svid_core::x509::csr::make_csr;
use svid_core::x509::{Authority, CaSubject, LeafTemplate, PublicKey, Subject, VerifiedCsr};

use crate::process::thread_cpu;

/// Long enough for a stable figure.
const MEASURE: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// What [`verify_and_sign`] counts, in words.
pub const VERIFY_AND_SIGN: &str = "one P-256 verify and one sign";
/// What [`es256`] counts, in words.
pub const ES256: &str = "one ES256 signature";

/// Runs `work` for a second; its calls per CPU-second of this thread, or per second where that is not counted.
fn per_second(mut work: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    const BATCH: u32 = 64;
    let (began, cpu) = (Instant::now(), thread_cpu());
    let mut calls = 0u32;
    while began.elapsed() < MEASURE {
        for _ in 0..BATCH {
            work()?;
        }
        calls += BATCH;
    }
    let used = match (cpu, thread_cpu()) {
        (Some(before), Some(after)) if after > before => after - before,
        _ => began.elapsed(),
    };
    Ok(f64::from(calls) / used.as_secs_f64())
}

fn key() -> anyhow::Result<std::sync::Arc<dyn svid_core::key::Signer>> {
    Ok(LocalKey::generate(KeyType::EcP256)?.into_signer())
}

/// A verification (of a CSR) and a signature (of a certificate), of messages of their usual size.
/// # Errors
/// If the crypto library fails.
pub fn verify_and_sign() -> anyhow::Result<f64> {
    let (ca, leaf) = (key()?, key()?);
    let (csr, tbs) = (vec![7; 220], vec![7; 560]);
    let signature = leaf.sign(&csr)?;
    let public = PublicKey::of(leaf.as_ref())?;
    let verifier = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, public.bytes().to_vec());
    per_second(|| {
        verifier.verify(black_box(&csr), &signature).ok().context("own signature")?;
        black_box(ca.sign(black_box(&tbs))?);
        Ok(())
    })
}

/// A signature of a token.
/// # Errors
/// If the crypto library fails.
pub fn es256() -> anyhow::Result<f64> {
    let (signer, token) = (key()?, vec![7; 300]);
    per_second(|| {
        black_box(signer.sign_jws(black_box(&token))?);
        Ok(())
    })
}

/// Issuance as the server does it, from a CSR in DER to a checked SVID, on one thread.
/// # Errors
/// If issuing fails.
pub fn issue() -> anyhow::Result<f64> {
    let trust_domain: TrustDomain = "example.org".parse()?;
    let id = SpiffeId::from_parts("example.org", "/load/workload")?;
    let (ca_key, leaf_key, now) = (key()?, key()?, SystemTime::now());
    let ca = self_signed_ca(&trust_domain, &CaSubject::default(), HOUR * 24, ca_key.as_ref(), now)?;
    let authority = Authority::new(&ca, Vec::new(), ca_key)?;
    let csr = make_csr(leaf_key.as_ref(), Some(&id), &[])?;
    per_second(|| {
        let csr = VerifiedCsr::from_der(black_box(&csr))?;
        let template = LeafTemplate {
            id: id.clone(),
            public_key: csr.into_public_key(),
            ttl: HOUR,
            dns_names: Vec::new(),
            subject: Subject::Spire,
            not_after_limit: None,
        };
        black_box(authority.prepare(template, now)?.sign()?);
        Ok(())
    })
}
