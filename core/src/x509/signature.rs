//! Signatures as X.509 and PKCS#10 carry them.

use aws_lc_rs::signature as sig;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::x509::AlgorithmIdentifier;

use super::cert::CertError;
use super::csr::{PublicKey, PublicKeyKind};
use super::der::{SEQUENCE, Writer};
use super::issue::IssueError;
use crate::key::{KeyError, KeyType, Signer};
use crate::remote;

/// SHA-2 with the key types we accept, as OID contents.
const ECDSA_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
const ECDSA_SHA384: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03];
const ECDSA_SHA512: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x04];
const RSA_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b];
const RSA_SHA384: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0c];
const RSA_SHA512: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0d];
/// Checks a signature by `key`. `None` if it is not by this key, or of an algorithm we do not take.
pub(super) fn verify(
    key: &PublicKey,
    id: &AlgorithmIdentifier<'_>,
    signed: &[u8],
    signature: &[u8],
) -> Option<()> {
    let alg = algorithm(key.kind(), id)?;
    sig::UnparsedPublicKey::new(alg, key.bytes()).verify(signed, signature).ok()
}

/// Checks a certificate's signature with its issuer's key, once more after signing: for CAs, where a fault costs most.
pub(super) fn verify_cert(der: &[u8], issuer_spki: &[u8]) -> Result<(), IssueError> {
    let (_, cert) = X509Certificate::from_der(der).map_err(|_| CertError::Malformed)?;
    let key = PublicKey::from_spki(issuer_spki)?;
    let signed = cert.tbs_certificate.as_ref();
    verify(&key, &cert.signature_algorithm, signed, &cert.signature_value.data)
        .ok_or(IssueError::Differs("signature"))
}

fn algorithm(
    kind: PublicKeyKind,
    id: &AlgorithmIdentifier<'_>,
) -> Option<&'static dyn sig::VerificationAlgorithm> {
    use PublicKeyKind::{EcP256, EcP384, Rsa};
    Some(match (kind, id.algorithm.as_bytes()) {
        (EcP256, ECDSA_SHA256) => &sig::ECDSA_P256_SHA256_ASN1,
        (EcP256, ECDSA_SHA384) => &sig::ECDSA_P256_SHA384_ASN1,
        (EcP256, ECDSA_SHA512) => &sig::ECDSA_P256_SHA512_ASN1,
        (EcP384, ECDSA_SHA256) => &sig::ECDSA_P384_SHA256_ASN1,
        (EcP384, ECDSA_SHA384) => &sig::ECDSA_P384_SHA384_ASN1,
        (EcP384, ECDSA_SHA512) => &sig::ECDSA_P384_SHA512_ASN1,
        (Rsa { .. }, RSA_SHA256) => &sig::RSA_PKCS1_2048_8192_SHA256,
        (Rsa { .. }, RSA_SHA384) => &sig::RSA_PKCS1_2048_8192_SHA384,
        (Rsa { .. }, RSA_SHA512) => &sig::RSA_PKCS1_2048_8192_SHA512,
        _ => return None,
    })
}

/// The AlgorithmIdentifier of what [`Signer::sign`] makes.
pub(super) fn signature_algorithm(kind: KeyType) -> Vec<u8> {
    let mut w = Writer::with_capacity(16);
    w.nest(SEQUENCE, |w| match kind {
        KeyType::EcP256 => w.oid(ECDSA_SHA256),
        KeyType::EcP384 => w.oid(ECDSA_SHA384),
        KeyType::Rsa2048 | KeyType::Rsa4096 => {
            w.oid(RSA_SHA256);
            w.raw(&[0x05, 0x00]);
        }
    });
    w.into_bytes()
}

/// Signs `tbs` with a local key and puts it, the algorithm and the signature together, as certificates and CSRs are.
pub(super) fn sign_der(tbs: &[u8], signer: &dyn Signer, algorithm: &[u8]) -> Result<Vec<u8>, KeyError> {
    Ok(put_together(tbs, algorithm, &signer.sign(tbs)?))
}

/// As [`sign_der`], with a key that lives here or elsewhere.
pub(super) async fn sign_der_awaited(
    tbs: &[u8],
    signer: &dyn Signer,
    algorithm: &[u8],
) -> Result<Vec<u8>, KeyError> {
    Ok(put_together(tbs, algorithm, &remote::sign(signer, tbs).await?))
}

fn put_together(tbs: &[u8], algorithm: &[u8], signature: &[u8]) -> Vec<u8> {
    let mut w = Writer::with_capacity(tbs.len() + signature.len() + 32);
    w.nest(SEQUENCE, |w| {
        w.raw(tbs);
        w.raw(algorithm);
        w.bit_string(signature);
    });
    w.into_bytes()
}
