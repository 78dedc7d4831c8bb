//! The node's certificate: its facts, and the path from it to a root.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use svid_core::x509::ParsedCert;
use svid_plugin_api::PluginError;
use webpki::{
    ALL_VERIFICATION_ALGS, EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter, VerifiedPath,
};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

/// Longest certificate in bytes.
const MAX_CERT_BYTES: usize = 64 * 1024;

/// Parses exactly one certificate.
pub(crate) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, String> {
    if der.len() > MAX_CERT_BYTES {
        return Err(format!("{} bytes are more than a certificate may have", der.len()));
    }
    match X509Certificate::from_der(der) {
        Ok(([], cert)) => Ok(cert),
        Ok(_) => Err("trailing data".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Bits of an RSA key's modulus; `None` for other keys.
pub(crate) fn rsa_bits(cert: &X509Certificate<'_>) -> Option<usize> {
    match cert.public_key().parsed() {
        Ok(PublicKey::RSA(key)) => Some(key.key_size()),
        _ => None,
    }
}

/// SPIRE's fingerprint of a certificate: SHA-1 in hex.
pub(crate) fn fingerprint(der: &[u8]) -> String {
    hex::encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, der))
}

/// The serial number in hex with an even number of digits.
pub(crate) fn serial_hex(cert: &X509Certificate<'_>) -> String {
    let digits = cert.tbs_certificate.serial.to_str_radix(16);
    if digits.len() % 2 == 1 { format!("0{digits}") } else { digits }
}

/// The first common name.
pub(crate) fn common_name(cert: &X509Certificate<'_>) -> String {
    let name = cert.subject().iter_common_name().next();
    name.and_then(|name| name.as_str().ok()).unwrap_or_default().to_owned()
}

/// True if the key may sign data.
pub(crate) fn may_sign(cert: &X509Certificate<'_>) -> bool {
    cert.key_usage().ok().flatten().is_some_and(|usage| usage.value.digital_signature())
}

fn names<'a>(cert: &'a X509Certificate<'_>) -> impl Iterator<Item = &'a GeneralName<'a>> {
    let names = cert.subject_alternative_name().ok().flatten();
    names.map(|names| names.value.general_names.iter()).into_iter().flatten()
}

/// URI SANs.
pub(crate) fn uris(cert: &X509Certificate<'_>) -> Vec<String> {
    let uri = |name: &GeneralName<'_>| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    };
    names(cert).filter_map(uri).collect()
}

/// DNS SANs.
pub(crate) fn dns_names(cert: &X509Certificate<'_>) -> Vec<String> {
    let dns = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    };
    names(cert).filter_map(dns).collect()
}

/// True if `address` is an IP SAN.
pub(crate) fn has_ip(cert: &X509Certificate<'_>, address: IpAddr) -> bool {
    let bytes = |name: &GeneralName<'_>| match name {
        GeneralName::IPAddress(bytes) => Some(bytes.to_vec()),
        _ => None,
    };
    names(cert).filter_map(bytes).any(|bytes| match address.to_canonical() {
        IpAddr::V4(v4) => bytes == v4.octets() || bytes == v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => bytes == v6.octets(),
    })
}

struct AnyUsage;

impl ExtendedKeyUsageValidator for AnyUsage {
    fn validate(&self, _: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        Ok(())
    }
}

/// webpki does not look at KeyUsage: a certificate that may not sign certificates is no link of a path.
fn signers_may_sign(path: &VerifiedPath<'_>) -> Result<(), webpki::Error> {
    for cert in path.intermediate_certificates() {
        let facts = ParsedCert::from_der(&cert.der()).map_err(|_| webpki::Error::BadDer)?;
        if facts.key_usage().is_some_and(|usage| !usage.key_cert_sign()) {
            return Err(webpki::Error::EndEntityUsedAsCa);
        }
    }
    Ok(())
}

/// Verifies the chain and gives the fingerprints of the CA certificates on the path, the root last.
pub(crate) fn verify(
    chain: &[Vec<u8>],
    roots: &[Vec<u8>],
    now: SystemTime,
) -> Result<Vec<String>, PluginError> {
    let failed = |why: String| PluginError::denied(format!("certificate verification failed: {why}"));
    let ders: Vec<CertificateDer<'_>> =
        chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
    let (leaf, rest) = ders.split_first().ok_or_else(|| failed("no certificate".into()))?;
    let roots: Vec<CertificateDer<'_>> =
        roots.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
    let anchors: Vec<TrustAnchor<'_>> =
        roots.iter().filter_map(|der| webpki::anchor_from_trusted_cert(der).ok()).collect();
    let leaf = EndEntityCert::try_from(leaf).map_err(|error| failed(error.to_string()))?;
    let time =
        UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO));
    let path = leaf
        .verify_for_usage(
            ALL_VERIFICATION_ALGS,
            &anchors,
            rest,
            time,
            AnyUsage,
            None,
            Some(&signers_may_sign),
        )
        .map_err(|error| failed(error.to_string()))?;
    let mut fingerprints: Vec<String> =
        path.intermediate_certificates().map(|cert| fingerprint(&cert.der())).collect();
    for root in &roots {
        // Every root of this name and key is an end of the path, as Go's verifier has it.
        let same = webpki::anchor_from_trusted_cert(root).is_ok_and(|anchor| {
            anchor.subject == path.anchor().subject
                && anchor.subject_public_key_info == path.anchor().subject_public_key_info
        });
        if same && root_lives(root, now) {
            fingerprints.push(fingerprint(root));
        }
    }
    fingerprints.dedup();
    match fingerprints.is_empty() {
        true => Err(failed("the root is expired".into())),
        false => Ok(fingerprints),
    }
}

/// webpki takes a root at any time; Go does not.
fn root_lives(der: &[u8], now: SystemTime) -> bool {
    ParsedCert::from_der(der).is_ok_and(|root| root.life().not_before <= now && now <= root.life().not_after)
}
