//! Who signed whom among certificates: told by signatures, not by positions.

use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::cert::{CertError, MAX_CHAIN_CERTS, ParsedCert};
use super::csr::PublicKey;
use super::signature;

/// True if `issuer` signed `cert` (both DER): names and key identifiers agree, and the signature is by its key. Where
/// the key is of a kind we do not read (P-521, RSA above 4096 bits) the names decide, and verification has the last word.
/// False also for what is no certificate.
pub fn is_issued_by(cert: &[u8], issuer: &[u8]) -> bool {
    let (Ok(facts), Ok(above)) = (ParsedCert::from_der(cert), ParsedCert::from_der(issuer)) else {
        return false;
    };
    let ids_differ =
        matches!((facts.authority_key_id(), above.subject_key_id()), (Some(id), Some(own)) if id != own);
    if facts.issuer_der() != above.subject_der() || ids_differ {
        return false;
    }
    let Ok(key) = PublicKey::from_spki(above.public_key_der()) else { return true };
    let Ok((_, cert)) = X509Certificate::from_der(cert) else { return false };
    let signed = cert.tbs_certificate.as_ref();
    signature::verify(&key, &cert.signature_algorithm, signed, &cert.signature_value.data).is_some()
}

/// True if a certificate (DER) names itself as its issuer, as roots do.
pub fn is_self_issued(cert: &[u8]) -> bool {
    ParsedCert::from_der(cert).is_ok_and(|cert| cert.subject_der() == cert.issuer_der())
}

/// A path put into order, and what does not belong to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderedPath {
    /// The first certificate, then each one's issuer.
    pub path: Vec<Vec<u8>>,
    /// What signed nothing of the path.
    pub rest: Vec<Vec<u8>>,
}

/// Walks upwards from `first` through `others` (all DER), by signatures, until an issuer is missing.
/// # Errors
/// [`CertError::TooMany`]: the walk compares each with each.
pub fn order_path(first: &[u8], others: impl IntoIterator<Item = Vec<u8>>) -> Result<OrderedPath, CertError> {
    let mut rest: Vec<Vec<u8>> = others.into_iter().collect();
    if rest.len() >= MAX_CHAIN_CERTS {
        return Err(CertError::TooMany(rest.len() + 1));
    }
    let mut path = vec![first.to_vec()];
    let mut last = first.to_vec();
    while !is_self_issued(&last) {
        let Some(at) = rest.iter().position(|issuer| is_issued_by(&last, issuer)) else { break };
        last = rest.remove(at);
        path.push(last.clone());
    }
    Ok(OrderedPath { path, rest })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::key::{KeyType, LocalKey};
    use crate::x509::ca::{CaSubject, CaTemplate, self_signed_ca, sign_ca};
    use crate::x509::name;

    const HOUR: Duration = Duration::from_secs(3600);

    struct Ca {
        key: LocalKey,
        der: Vec<u8>,
    }

    fn root() -> Ca {
        let key = LocalKey::generate(KeyType::EcP256).unwrap();
        let td = "example.org".parse().unwrap();
        let der = self_signed_ca(&td, &CaSubject::default(), HOUR, &key, SystemTime::now()).unwrap();
        Ca { key, der }
    }

    fn below(parent: &Ca, common_name: &str) -> Ca {
        let key = LocalKey::generate(KeyType::EcP384).unwrap();
        let public_key = PublicKey::of(&key).unwrap();
        let template = CaTemplate { trust_domain: "example.org".parse().unwrap(), public_key, ttl: HOUR / 2 };
        let subject = name::build(&[(name::COMMON_NAME, common_name)]);
        let der = sign_ca(&parent.der, &parent.key, &template, &subject, SystemTime::now()).unwrap();
        Ca { key, der }
    }

    #[test]
    fn signatures_tell_who_issued() {
        let (first, second) = (root(), root());
        let middle = below(&first, "middle");
        assert!(is_issued_by(&middle.der, &first.der));
        assert!(!is_issued_by(&middle.der, &second.der));
        assert!(!is_issued_by(&first.der, &middle.der));
        assert!(is_issued_by(&first.der, &first.der) && is_self_issued(&first.der));
        assert!(!is_issued_by(b"no certificate", &first.der) && !is_issued_by(&first.der, b""));
        assert!(!is_self_issued(b"") && !is_self_issued(&middle.der));
        let mut broken = middle.der.clone();
        *broken.last_mut().unwrap() ^= 1;
        assert!(!is_issued_by(&broken, &first.der), "the signature counts");
    }

    #[test]
    fn paths_are_put_into_order() {
        let (top, stranger) = (root(), root());
        let middle = below(&top, "middle");
        let low = below(&middle, "low").der;
        let others = [stranger.der.clone(), top.der.clone(), middle.der.clone()];
        let ordered = order_path(&low, others).unwrap();
        assert_eq!(ordered.path, [low.clone(), middle.der, top.der.clone()]);
        assert_eq!(ordered.rest, [stranger.der]);
        let gap = order_path(&low, [top.der.clone()]).unwrap();
        assert_eq!((gap.path, gap.rest), (vec![low.clone()], vec![top.der.clone()]));
        let many = vec![top.der; MAX_CHAIN_CERTS];
        assert_eq!(order_path(&low, many), Err(CertError::TooMany(MAX_CHAIN_CERTS + 1)));
    }
}
