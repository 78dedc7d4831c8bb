//! Certificate signing requests: a public key whose holder proved to have the private one.

pub use super::request::make_csr;
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use aws_lc_rs::signature as sig;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey as ParsedKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::cert::{CertError, read_san};
use super::der::{self, SEQUENCE, Writer};
use super::name;
use super::signature;
use crate::id::SpiffeId;
use crate::key::Signer;

/// Largest CSR we read, in bytes.
pub const MAX_CSR_BYTES: usize = 16 * 1024;
const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const RSA_ENCRYPTION: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const CURVE_P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const CURVE_P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];
const EXTENSION_REQUEST: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x0e];
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];

/// Why a CSR was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// More bytes than [`MAX_CSR_BYTES`].
    #[error("CSR is too large: {0} bytes")]
    TooLarge(usize),
    /// Not a CSR in DER, or bytes stand behind it.
    #[error("malformed CSR")]
    Malformed,
    /// The key is none of P-256, P-384, RSA of 2048 to 4096 bits with exponent 65537.
    #[error("key type is not allowed: must be ECDSA P-256, ECDSA P-384 or RSA of 2048 to 4096 bits")]
    KeyType,
    /// The signature is not by this key, or of an algorithm we do not take.
    #[error("CSR signature verify failed")]
    Signature,
    /// The requested SPIFFE ID is missing, doubled or malformed.
    #[error("{0}")]
    Id(CertError),
}

/// What a [`PublicKey`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublicKeyKind {
    /// ECDSA on P-256.
    EcP256,
    /// ECDSA on P-384.
    EcP384,
    /// RSA with a modulus of so many bits.
    Rsa {
        /// Bits of the modulus, 2048 to 4096.
        bits: usize,
    },
}

/// A key we issue for. Invariant: of an allowed type and size; an EC point lies on its curve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    spki: Vec<u8>,
    key_at: usize,
    kind: PublicKeyKind,
}

impl PublicKey {
    /// Reads a SubjectPublicKeyInfo.
    /// # Errors
    /// [`CsrError::Malformed`] or [`CsrError::KeyType`].
    pub fn from_spki(spki: &[u8]) -> Result<Self, CsrError> {
        if spki.len() > MAX_CSR_BYTES {
            return Err(CsrError::TooLarge(spki.len()));
        }
        let (rest, info) = SubjectPublicKeyInfo::from_der(spki).map_err(|_| CsrError::Malformed)?;
        if !rest.is_empty() {
            return Err(CsrError::Malformed);
        }
        let key = Self::from_info(&info)?;
        let alg: &dyn sig::VerificationAlgorithm = match key.kind {
            PublicKeyKind::EcP256 => &sig::ECDSA_P256_SHA256_ASN1,
            PublicKeyKind::EcP384 => &sig::ECDSA_P384_SHA384_ASN1,
            PublicKeyKind::Rsa { .. } => return Ok(key),
        };
        // A CSR's signature check proves the same; a bare key needs a look of its own.
        sig::ParsedPublicKey::new(alg, key.bytes()).map_err(|_| CsrError::KeyType)?;
        Ok(key)
    }

    /// The key of a signer, whose type is allowed by construction.
    /// # Errors
    /// [`CsrError`] if the signer's key does not parse.
    pub fn of(signer: &dyn Signer) -> Result<Self, CsrError> {
        Self::from_spki(signer.public_key_der())
    }

    fn from_info(info: &SubjectPublicKeyInfo<'_>) -> Result<Self, CsrError> {
        let kind = kind_of(info)?;
        let spki = info.raw.to_vec();
        // The key's bits are the last element, so they end where the whole ends.
        let key_at = spki.len() - info.subject_public_key.data.len();
        Ok(Self { spki, key_at, kind })
    }

    /// SubjectPublicKeyInfo DER.
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// The bits inside: an uncompressed point, or PKCS#1 RSAPublicKey DER.
    pub fn bytes(&self) -> &[u8] {
        &self.spki[self.key_at..]
    }

    /// Type and size.
    pub fn kind(&self) -> PublicKeyKind {
        self.kind
    }
}

/// The key identifier: SHA-1 of the key's bits, as [`super::key_id`].
pub(super) fn key_id_of(key: &PublicKey) -> Vec<u8> {
    digest(&SHA1_FOR_LEGACY_USE_ONLY, key.bytes()).as_ref().to_vec()
}

fn kind_of(info: &SubjectPublicKeyInfo<'_>) -> Result<PublicKeyKind, CsrError> {
    match info.algorithm.algorithm.as_bytes() {
        EC_PUBLIC_KEY => ec_kind(info),
        RSA_ENCRYPTION => rsa_kind(info),
        _ => Err(CsrError::KeyType),
    }
}

fn ec_kind(info: &SubjectPublicKeyInfo<'_>) -> Result<PublicKeyKind, CsrError> {
    let curve = info.algorithm.parameters.as_ref().ok_or(CsrError::KeyType)?;
    let point = &info.subject_public_key.data;
    match (curve.data, point.len(), point.first()) {
        (CURVE_P256, 65, Some(4)) => Ok(PublicKeyKind::EcP256),
        (CURVE_P384, 97, Some(4)) => Ok(PublicKeyKind::EcP384),
        _ => Err(CsrError::KeyType),
    }
}

fn rsa_kind(info: &SubjectPublicKeyInfo<'_>) -> Result<PublicKeyKind, CsrError> {
    let Ok(ParsedKey::RSA(key)) = info.parsed() else { return Err(CsrError::Malformed) };
    let skip = key.modulus.iter().take_while(|byte| **byte == 0).count();
    let modulus = &key.modulus[skip..];
    let bits = modulus.len() * 8 - modulus.first().map_or(0, |byte| byte.leading_zeros() as usize);
    let odd = modulus.last().is_some_and(|byte| byte & 1 == 1);
    let exponent_ok = matches!(key.try_exponent(), Ok(65_537));
    if (2048..=4096).contains(&bits) && odd && exponent_ok {
        return Ok(PublicKeyKind::Rsa { bits });
    }
    Err(CsrError::KeyType)
}

/// A CSR whose signature was checked with the key in it, after that key was found to be one we allow.
#[derive(Clone, Debug)]
pub struct VerifiedCsr {
    public_key: PublicKey,
    subject: Vec<u8>,
    uri_sans: Vec<String>,
    dns_sans: Vec<String>,
}

impl VerifiedCsr {
    /// Reads and verifies.
    /// # Errors
    /// [`CsrError`]; the key is judged before its signature is.
    pub fn from_der(der: &[u8]) -> Result<Self, CsrError> {
        let csr = read(der)?;
        let public_key = PublicKey::from_info(&csr.certification_request_info.subject_pki)?;
        verify_signature(&csr, &public_key)?;
        let (mut uri_sans, mut dns_sans) = (Vec::new(), Vec::new());
        for extension in csr.requested_extensions().into_iter().flatten() {
            if let ParsedExtension::SubjectAlternativeName(san) = extension {
                san.general_names.iter().for_each(|name| read_san(name, &mut uri_sans, &mut dns_sans));
            }
        }
        let subject = csr.certification_request_info.subject.as_raw().to_vec();
        Ok(Self { public_key, subject, uri_sans, dns_sans })
    }

    /// The key.
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// The key, taken out.
    pub fn into_public_key(self) -> PublicKey {
        self.public_key
    }

    /// The requested subject's Name as DER.
    pub fn subject_der(&self) -> &[u8] {
        &self.subject
    }

    /// The requested subject in text, as [`super::ParsedCert::subject`] prints it.
    pub fn subject(&self) -> String {
        name::to_text(&self.subject)
    }

    /// The requested URIs.
    pub fn uri_sans(&self) -> &[String] {
        &self.uri_sans
    }

    /// The requested DNS names.
    pub fn dns_sans(&self) -> &[String] {
        &self.dns_sans
    }

    /// The requested SPIFFE ID: exactly one URI, and it parses.
    /// # Errors
    /// [`CsrError::Id`].
    pub fn spiffe_id(&self) -> Result<SpiffeId, CsrError> {
        match self.uri_sans.as_slice() {
            [] => Err(CsrError::Id(CertError::NoUri)),
            [uri] => uri.parse().map_err(|error| CsrError::Id(CertError::Id(error))),
            _ => Err(CsrError::Id(CertError::ManyUris)),
        }
    }
}

/// A CSR of which only the key is taken, its signature unchecked: for callers that prove possession otherwise.
#[derive(Clone, Debug)]
pub struct UnverifiedCsr {
    public_key: PublicKey,
}

impl UnverifiedCsr {
    /// Reads without verifying.
    /// # Errors
    /// [`CsrError`], never [`CsrError::Signature`].
    pub fn from_der(der: &[u8]) -> Result<Self, CsrError> {
        let csr = read(der)?;
        Ok(Self { public_key: PublicKey::from_spki(csr.certification_request_info.subject_pki.raw)? })
    }

    /// The key.
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }
}

fn read(der: &[u8]) -> Result<X509CertificationRequest<'_>, CsrError> {
    if der.len() > MAX_CSR_BYTES {
        return Err(CsrError::TooLarge(der.len()));
    }
    match X509CertificationRequest::from_der(der) {
        Ok(([], csr)) => Ok(csr),
        _ => Err(CsrError::Malformed),
    }
}

fn verify_signature(csr: &X509CertificationRequest<'_>, key: &PublicKey) -> Result<(), CsrError> {
    let signed = csr.certification_request_info.raw;
    signature::verify(key, &csr.signature_algorithm, signed, &csr.signature_value.data)
        .ok_or(CsrError::Signature)
}

/// Writes a SubjectAlternativeName extension: the URI first, then DNS names.
pub(super) fn write_san(w: &mut Writer, id: Option<&str>, dns: &[String]) {
    const URI: u8 = 0x86;
    const DNS: u8 = 0x82;
    w.nest(SEQUENCE, |w| {
        w.oid(SUBJECT_ALT_NAME);
        w.nest(der::OCTET_STRING, |w| {
            w.nest(SEQUENCE, |w| {
                id.into_iter().for_each(|id| w.bytes(URI, id.as_bytes()));
                dns.iter().for_each(|name| w.bytes(DNS, name.as_bytes()));
            });
        });
    });
}

/// The SubjectPublicKeyInfo of an RSA key, from big-endian magnitudes.
pub(crate) fn rsa_spki(modulus: &[u8], exponent: &[u8]) -> Vec<u8> {
    let mut key = Writer::with_capacity(modulus.len() + 32);
    key.nest(SEQUENCE, |w| {
        w.unsigned(modulus);
        w.unsigned(exponent);
    });
    let mut w = Writer::with_capacity(modulus.len() + 64);
    w.nest(SEQUENCE, |w| {
        w.nest(SEQUENCE, |w| {
            w.oid(RSA_ENCRYPTION);
            w.raw(&[0x05, 0x00]);
        });
        w.bit_string(&key.into_bytes());
    });
    w.into_bytes()
}

/// The content of a CSR with a subject that may repeat attributes, which [`super::request`] cannot say.
pub(super) fn csr_content(
    public_key_der: &[u8],
    subject: &[u8],
    uri: Option<&str>,
    dns: &[String],
) -> Vec<u8> {
    const ATTRIBUTES: u8 = 0xa0;
    let mut w = Writer::with_capacity(512);
    w.nest(SEQUENCE, |w| {
        w.unsigned(&[0]);
        w.raw(subject);
        w.raw(public_key_der);
        w.nest(ATTRIBUTES, |w| {
            if uri.is_none() && dns.is_empty() {
                return;
            }
            w.nest(SEQUENCE, |w| {
                w.oid(EXTENSION_REQUEST);
                w.nest(der::SET, |w| w.nest(SEQUENCE, |w| write_san(w, uri, dns)));
            });
        });
    });
    w.into_bytes()
}
