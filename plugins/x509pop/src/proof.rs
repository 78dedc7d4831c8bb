//! Proof of possession: both sides give a nonce, the node signs them together.
//!
//! RSA proofs are PSS with a salt of any length, as Go's agents choose it; libraries that insist on one length
//! would refuse them, so that check is written out here. It handles public values only.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P521_SHA256_ASN1, UnparsedPublicKey,
};
use svid_plugin_api::PluginError;
use x509_parser::certificate::X509Certificate;
use x509_parser::num_bigint::BigUint;
use x509_parser::public_key::PublicKey;

use crate::NONCE_BYTES;
use crate::wire::{Bytes, Challenge, EcdsaProof, Nonce, Response, RsaProof};

const HASH_BYTES: usize = 32;

/// 32 random bytes.
pub(crate) fn nonce() -> Result<Bytes, PluginError> {
    let mut nonce = vec![0; NONCE_BYTES];
    rand::fill(&mut nonce).map_err(|_| PluginError::internal("no randomness"))?;
    Ok(Bytes(nonce))
}

/// A challenge that fits the certificate's key.
pub(crate) fn challenge(cert: &X509Certificate<'_>) -> Result<Challenge, PluginError> {
    let unable = |why: &str| PluginError::internal(format!("unable to generate challenge: {why}"));
    if !crate::chain::may_sign(cert) {
        return Err(unable("certificate not intended for digital signature use"));
    }
    let nonce = Some(Nonce { nonce: nonce()? });
    match cert.public_key().parsed() {
        Ok(PublicKey::RSA(_)) => Ok(Challenge { rsa_signature: nonce, ecdsa_signature: None }),
        Ok(PublicKey::EC(_)) => Ok(Challenge { rsa_signature: None, ecdsa_signature: nonce }),
        _ => Err(unable("unsupported public key type")),
    }
}

/// Both nonces one behind the other: what is signed.
pub(crate) fn combined(challenge: &Bytes, response: &Bytes) -> Result<Vec<u8>, &'static str> {
    if challenge.0.len() != NONCE_BYTES {
        return Err("invalid challenge nonce");
    }
    if response.0.len() != NONCE_BYTES {
        return Err("invalid response nonce");
    }
    Ok([challenge.0.as_slice(), response.0.as_slice()].concat())
}

/// Checks the answer to `challenge`.
pub(crate) fn verify(
    cert: &X509Certificate<'_>,
    challenge: &Challenge,
    response: &Response,
) -> Result<(), &'static str> {
    match cert.public_key().parsed() {
        Ok(PublicKey::RSA(key)) => {
            let asked = challenge.rsa_signature.as_ref().ok_or("expecting RSA challenge")?;
            let proof = response.rsa_signature.as_ref().ok_or("expecting RSA response")?;
            verify_rsa(key.modulus, key.exponent, asked, proof)
        }
        Ok(PublicKey::EC(point)) => {
            let asked = challenge.ecdsa_signature.as_ref().ok_or("expecting ECDSA challenge")?;
            let proof = response.ecdsa_signature.as_ref().ok_or("expecting ECDSA response")?;
            verify_ecdsa(point.data(), asked, proof)
        }
        _ => Err("unsupported public key type"),
    }
}

fn verify_ecdsa(point: &[u8], asked: &Nonce, proof: &EcdsaProof) -> Result<(), &'static str> {
    let message = combined(&asked.nonce, &proof.nonce)?;
    let signature = ecdsa_der(&proof.r.0, &proof.s.0).ok_or("ECDSA signature verify failed")?;
    // Uncompressed points: a byte of 4 and two coordinates.
    let algorithm = match point.len() {
        65 => &ECDSA_P256_SHA256_ASN1,
        97 => &ECDSA_P384_SHA256_ASN1,
        133 => &ECDSA_P521_SHA256_ASN1,
        _ => return Err("unsupported curve"),
    };
    let key = UnparsedPublicKey::new(algorithm, point);
    key.verify(&message, &signature).map_err(|_| "ECDSA signature verify failed")
}

/// `SEQUENCE { INTEGER r, INTEGER s }`; at most 66 bytes each (P-521).
fn ecdsa_der(r: &[u8], s: &[u8]) -> Option<Vec<u8>> {
    let integer = |bytes: &[u8]| {
        let digits: Vec<u8> = bytes.iter().copied().skip_while(|byte| *byte == 0).collect();
        if digits.is_empty() || digits.len() > 66 {
            return None;
        }
        let pad = digits[0] & 0x80 != 0;
        let mut der = vec![2, u8::try_from(digits.len() + usize::from(pad)).ok()?];
        der.extend(pad.then_some(0));
        der.extend(digits);
        Some(der)
    };
    let body = [integer(r)?, integer(s)?].concat();
    let length = u8::try_from(body.len()).ok()?;
    let head = if length < 128 { vec![0x30, length] } else { vec![0x30, 0x81, length] };
    Some([head, body].concat())
}

pub(crate) fn verify_rsa(
    modulus: &[u8],
    exponent: &[u8],
    asked: &Nonce,
    proof: &RsaProof,
) -> Result<(), &'static str> {
    const FAILED: &str = "RSA signature verify failed";
    let message = combined(&asked.nonce, &proof.nonce)?;
    let n = BigUint::from_bytes_be(modulus);
    let e = BigUint::from_bytes_be(exponent);
    // Go refuses the same; a huge exponent would also be a way to keep the server busy.
    if e.bits() > 31 || e < BigUint::from(2u8) {
        return Err("unsupported RSA exponent");
    }
    let bytes = n.bits().div_ceil(8);
    let signature = BigUint::from_bytes_be(&proof.signature.0);
    if u64::try_from(proof.signature.0.len()) != Ok(bytes) || signature >= n || n.bits() < 1024 {
        return Err(FAILED);
    }
    let encoded = signature.modpow(&e, &n).to_bytes_be();
    let bits = usize::try_from(n.bits() - 1).map_err(|_| FAILED)?;
    if pss_matches(&encoded, bits, &message) { Ok(()) } else { Err(FAILED) }
}

/// EMSA-PSS-VERIFY with SHA-256, MGF1 and a salt of any length. Source: RFC 8017, section 9.1.2.
fn pss_matches(encoded: &[u8], bits: usize, message: &[u8]) -> bool {
    let length = bits.div_ceil(8);
    if encoded.len() > length || length < 2 * HASH_BYTES + 2 {
        return false;
    }
    let mut em = vec![0; length - encoded.len()];
    em.extend_from_slice(encoded);
    let (masked, tail) = em.split_at(length - HASH_BYTES - 1);
    let (hash, trailer) = tail.split_at(HASH_BYTES);
    let unused = 8 * length - bits;
    if trailer != [0xbc] || u16::from(masked[0]) >> (8 - unused) != 0 {
        return false;
    }
    let mut db: Vec<u8> =
        masked.iter().zip(mgf1(hash, masked.len())).map(|(byte, mask)| byte ^ mask).collect();
    db[0] &= 0xff >> unused;
    let Some(one) = db.iter().position(|byte| *byte != 0).filter(|at| db[*at] == 1) else { return false };
    let salt = &db[one + 1..];
    let inner = [&[0; 8], digest(&SHA256, message).as_ref(), salt].concat();
    digest(&SHA256, &inner).as_ref() == hash
}

fn mgf1(seed: &[u8], length: usize) -> Vec<u8> {
    let mut mask = Vec::with_capacity(length + HASH_BYTES);
    let mut counter = 0u32;
    while mask.len() < length {
        mask.extend_from_slice(digest(&SHA256, &[seed, &counter.to_be_bytes()].concat()).as_ref());
        counter += 1;
    }
    mask.truncate(length);
    mask
}
