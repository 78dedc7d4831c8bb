//! Facts of one certificate, without judgement.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::Oid;
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::{der, name};
use crate::id::{IdError, SpiffeId};
use crate::rotation::Life;

/// Largest certificate we read, in bytes.
pub const MAX_CERT_BYTES: usize = 64 * 1024;
/// Most certificates in one chain.
pub const MAX_CHAIN_CERTS: usize = 16;

/// Why bytes are no certificate, or one without a SPIFFE ID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertError {
    /// More bytes than [`MAX_CERT_BYTES`].
    #[error("certificate is too large: {0} bytes")]
    TooLarge(usize),
    /// Not a certificate in DER.
    #[error("malformed certificate")]
    Malformed,
    /// Bytes stand behind the certificate.
    #[error("trailing data after certificate")]
    Trailing,
    /// An extension appears twice.
    #[error("certificate contains a duplicate extension")]
    DuplicateExtension,
    /// A validity date cannot be represented.
    #[error("certificate validity is out of range")]
    Validity,
    /// There are no certificates.
    #[error("no certificates")]
    Empty,
    /// More certificates than [`MAX_CHAIN_CERTS`].
    #[error("certificate chain is too long: {0} certificates")]
    TooMany(usize),
    /// The certificate names no URI.
    #[error("certificate contains no URI SAN")]
    NoUri,
    /// The certificate names more than one URI.
    #[error("certificate contains more than one URI SAN")]
    ManyUris,
    /// The URI is no SPIFFE ID.
    #[error("certificate URI SAN is not a SPIFFE ID: {0}")]
    Id(#[from] IdError),
}

/// The KeyUsage bits that SPIFFE speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyUsage {
    /// The bits as in X.509, bit 0 (digitalSignature) lowest.
    pub bits: u16,
    /// Whether the extension is critical.
    pub critical: bool,
}

impl KeyUsage {
    /// digitalSignature.
    pub fn digital_signature(self) -> bool {
        self.bits & 1 != 0
    }

    /// keyCertSign.
    pub fn key_cert_sign(self) -> bool {
        self.bits & (1 << 5) != 0
    }

    /// cRLSign.
    pub fn crl_sign(self) -> bool {
        self.bits & (1 << 6) != 0
    }
}

/// One certificate's facts.
#[derive(Clone, Debug)]
pub struct ParsedCert {
    life: Life,
    serial: Vec<u8>,
    subject_key_id: Option<Vec<u8>>,
    authority_key_id: Option<Vec<u8>>,
    uri_sans: Vec<String>,
    dns_sans: Vec<String>,
    is_ca: bool,
    path_len: Option<u32>,
    key_usage: Option<KeyUsage>,
    server_auth: bool,
    client_auth: bool,
    subject_der: Vec<u8>,
    issuer_der: Vec<u8>,
    subject: OnceLock<String>,
    issuer: OnceLock<String>,
    public_key: Vec<u8>,
}

impl ParsedCert {
    /// Reads exactly one certificate.
    /// # Errors
    /// [`CertError`] for anything else, and for bytes behind it.
    pub fn from_der(der: &[u8]) -> Result<Self, CertError> {
        if der.len() > MAX_CERT_BYTES {
            return Err(CertError::TooLarge(der.len()));
        }
        let (rest, cert) = X509Certificate::from_der(der).map_err(|_| CertError::Malformed)?;
        if !rest.is_empty() {
            return Err(CertError::Trailing);
        }
        let mut facts = Self {
            life: life(&cert)?,
            serial: cert.raw_serial().to_vec(),
            subject_key_id: None,
            authority_key_id: None,
            uri_sans: Vec::new(),
            dns_sans: Vec::new(),
            is_ca: false,
            path_len: None,
            key_usage: None,
            server_auth: false,
            client_auth: false,
            subject_der: cert.subject().as_raw().to_vec(),
            issuer_der: cert.issuer().as_raw().to_vec(),
            subject: OnceLock::new(),
            issuer: OnceLock::new(),
            public_key: cert.public_key().raw.to_vec(),
        };
        facts.read_extensions(&cert)?;
        Ok(facts)
    }

    fn read_extensions(&mut self, cert: &X509Certificate<'_>) -> Result<(), CertError> {
        let extensions = cert.extensions();
        for (at, extension) in extensions.iter().enumerate() {
            if extensions[..at].iter().any(|earlier| earlier.oid == extension.oid) {
                return Err(CertError::DuplicateExtension);
            }
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(san) => {
                    san.general_names
                        .iter()
                        .for_each(|name| read_san(name, &mut self.uri_sans, &mut self.dns_sans));
                }
                ParsedExtension::BasicConstraints(constraints) => {
                    self.is_ca = constraints.ca;
                    self.path_len = constraints.path_len_constraint;
                }
                ParsedExtension::KeyUsage(usage) => {
                    self.key_usage = Some(KeyUsage { bits: usage.flags, critical: extension.critical });
                }
                ParsedExtension::ExtendedKeyUsage(usage) => {
                    self.server_auth = usage.server_auth;
                    self.client_auth = usage.client_auth;
                }
                ParsedExtension::SubjectKeyIdentifier(id) => self.subject_key_id = Some(id.0.to_vec()),
                ParsedExtension::AuthorityKeyIdentifier(id) => {
                    self.authority_key_id = id.key_identifier.as_ref().map(|id| id.0.to_vec());
                }
                ParsedExtension::ParseError { .. } if is_used(&extension.oid) => {
                    return Err(CertError::Malformed);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The validity.
    pub fn life(&self) -> Life {
        self.life
    }

    /// The serial number's magnitude, big-endian.
    pub fn serial(&self) -> &[u8] {
        &self.serial
    }

    /// The serial number in decimal, as SPIRE's node rows and listings hold it.
    pub fn serial_decimal(&self) -> String {
        decimal(&self.serial)
    }

    /// The subject key identifier in lower-case hex.
    pub fn subject_key_id_hex(&self) -> Option<String> {
        self.subject_key_id.as_ref().map(hex::encode)
    }

    /// The subject key identifier.
    pub fn subject_key_id(&self) -> Option<&[u8]> {
        self.subject_key_id.as_deref()
    }

    /// The authority key identifier in lower-case hex.
    pub fn authority_key_id_hex(&self) -> Option<String> {
        self.authority_key_id.as_ref().map(hex::encode)
    }

    /// The authority key identifier.
    pub fn authority_key_id(&self) -> Option<&[u8]> {
        self.authority_key_id.as_deref()
    }

    /// Every URI of the subject alternative name, in order.
    pub fn uri_sans(&self) -> &[String] {
        &self.uri_sans
    }

    /// Every DNS name of the subject alternative name, in order.
    pub fn dns_sans(&self) -> &[String] {
        &self.dns_sans
    }

    /// Whether basicConstraints says CA.
    pub fn is_ca(&self) -> bool {
        self.is_ca
    }

    /// The path length constraint, if present.
    pub fn path_len(&self) -> Option<u32> {
        self.path_len
    }

    /// The KeyUsage extension, if present.
    pub fn key_usage(&self) -> Option<KeyUsage> {
        self.key_usage
    }

    /// Whether the extended key usages name server and client authentication, in this order.
    pub fn server_and_client_auth(&self) -> (bool, bool) {
        (self.server_auth, self.client_auth)
    }

    /// The subject as SPIRE prints it, such as `O=SPIRE,C=US`.
    pub fn subject(&self) -> &str {
        self.subject.get_or_init(|| name::to_text(&self.subject_der))
    }

    /// The issuer as SPIRE prints it.
    pub fn issuer(&self) -> &str {
        self.issuer.get_or_init(|| name::to_text(&self.issuer_der))
    }

    /// The subject's Name as DER.
    pub fn subject_der(&self) -> &[u8] {
        &self.subject_der
    }

    /// The issuer's Name as DER.
    pub fn issuer_der(&self) -> &[u8] {
        &self.issuer_der
    }

    /// The public key as SubjectPublicKeyInfo DER.
    pub fn public_key_der(&self) -> &[u8] {
        &self.public_key
    }

    /// The SPIFFE ID: exactly one URI in the subject alternative name, and it parses.
    /// # Errors
    /// [`CertError::NoUri`], [`CertError::ManyUris`] or [`CertError::Id`].
    pub fn spiffe_id(&self) -> Result<SpiffeId, CertError> {
        match self.uri_sans.as_slice() {
            [] => Err(CertError::NoUri),
            [uri] => Ok(uri.parse()?),
            _ => Err(CertError::ManyUris),
        }
    }
}

/// The extensions whose content we read. Others may be as odd as corporate roots have them.
fn is_used(oid: &Oid<'_>) -> bool {
    use x509_parser::oid_registry as known;
    [
        known::OID_X509_EXT_SUBJECT_ALT_NAME,
        known::OID_X509_EXT_BASIC_CONSTRAINTS,
        known::OID_X509_EXT_KEY_USAGE,
        known::OID_X509_EXT_EXTENDED_KEY_USAGE,
        known::OID_X509_EXT_SUBJECT_KEY_IDENTIFIER,
        known::OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER,
    ]
    .contains(oid)
}

fn life(cert: &X509Certificate<'_>) -> Result<Life, CertError> {
    let validity = cert.validity();
    Ok(Life {
        not_before: from_unix(validity.not_before.timestamp()).ok_or(CertError::Validity)?,
        not_after: from_unix(validity.not_after.timestamp()).ok_or(CertError::Validity)?,
    })
}

fn from_unix(seconds: i64) -> Option<SystemTime> {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    match seconds {
        0.. => SystemTime::UNIX_EPOCH.checked_add(distance),
        _ => SystemTime::UNIX_EPOCH.checked_sub(distance),
    }
}

/// Adds a name to the URIs or DNS names. A URI that is no text is kept as text that no ID rule accepts.
pub(super) fn read_san(name: &GeneralName<'_>, uris: &mut Vec<String>, dns: &mut Vec<String>) {
    const URI_TAG: u32 = 6;
    match name {
        GeneralName::URI(uri) => uris.push((*uri).to_owned()),
        GeneralName::DNSName(name) => dns.push((*name).to_owned()),
        GeneralName::Invalid(tag, bytes) if tag.0 == URI_TAG => {
            uris.push(String::from_utf8_lossy(bytes).into_owned())
        }
        _ => {}
    }
}

/// A big-endian magnitude in decimal.
pub(crate) fn decimal(bytes: &[u8]) -> String {
    const BASE: u64 = 1_000_000_000;
    let mut limbs: Vec<u32> = vec![0]; // little-endian, base 10^9
    for &byte in bytes {
        let mut carry = u64::from(byte);
        for limb in &mut limbs {
            let value = u64::from(*limb) * 256 + carry;
            *limb = (value % BASE) as u32;
            carry = value / BASE;
        }
        if carry > 0 {
            limbs.push(carry as u32);
        }
    }
    let mut digits = limbs.iter().rev();
    let first = digits.next().map(u32::to_string).unwrap_or_default();
    digits.fold(first, |text, limb| format!("{text}{limb:09}"))
}

/// The key identifier of a SubjectPublicKeyInfo: SHA-1 of the key's bits (RFC 5280, 4.2.1.2, method 1), as SPIRE's.
/// `None` if the bytes are no SubjectPublicKeyInfo.
pub fn key_id(spki: &[u8]) -> Option<[u8; 20]> {
    let (_, info) = SubjectPublicKeyInfo::from_der(spki).ok()?;
    digest(&SHA1_FOR_LEGACY_USE_ONLY, &info.subject_public_key.data).as_ref().try_into().ok()
}

/// Splits certificates that stand one behind the other, as the Workload API carries chains.
/// # Errors
/// [`CertError`] if any part is no certificate, or there are none or too many.
pub fn split_der_chain(bytes: &[u8]) -> Result<Vec<Vec<u8>>, CertError> {
    let mut rest = bytes;
    let mut certs = Vec::new();
    while !rest.is_empty() {
        let (element, tail) = der::split_first(rest).ok_or(CertError::Malformed)?;
        if certs.len() == MAX_CHAIN_CERTS {
            return Err(CertError::TooMany(certs.len() + 1));
        }
        ParsedCert::from_der(element)?;
        certs.push(element.to_vec());
        rest = tail;
    }
    if certs.is_empty() { Err(CertError::Empty) } else { Ok(certs) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals() {
        for (bytes, want) in [
            (&[][..], "0"),
            (&[0], "0"),
            (&[1, 0], "256"),
            (&[0x3b, 0x9a, 0xca, 0x00], "1000000000"),
            (&[0xff; 16], "340282366920938463463374607431768211455"),
            (&[0xff; 20], "1461501637330902918203684832716283019655932542975"),
        ] {
            assert_eq!(decimal(bytes), want);
        }
    }

    #[test]
    fn refuses_what_is_no_certificate() {
        assert_eq!(ParsedCert::from_der(&[]).err(), Some(CertError::Malformed));
        assert_eq!(
            ParsedCert::from_der(&vec![0; MAX_CERT_BYTES + 1]).err(),
            Some(CertError::TooLarge(65_537))
        );
        assert_eq!(split_der_chain(&[]).err(), Some(CertError::Empty));
        assert_eq!(split_der_chain(&[0x30, 0x80, 0, 0]).err(), Some(CertError::Malformed));
    }

    proptest::proptest! {
        #[test]
        fn reading_never_panics(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let _ = ParsedCert::from_der(&bytes);
            let _ = split_der_chain(&bytes);
            let _ = key_id(&bytes);
        }
    }
}
