//! From a certificate to its root: by signatures, whatever the order in which the certificates came.

use std::collections::VecDeque;

use svid_core::x509::{ParsedCert, is_issued_by};

/// The way from a certificate to a root, without the certificate itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Path {
    /// Above the certificate, lowest first.
    pub(crate) intermediates: Vec<Vec<u8>>,
    pub(crate) root: Vec<u8>,
}

/// Finds the shortest way from `cert` over certificates of `pool` to a root: one of `pool` that signed itself, or any of
/// `anchors`. `None` if there is none. All are DER; what does not parse or is no CA is passed over.
pub(crate) fn walk(cert: &[u8], pool: &[Vec<u8>], anchors: &[Vec<u8>]) -> Option<Path> {
    let known: Vec<&[u8]> =
        anchors.iter().chain(pool).map(Vec::as_slice).filter(|der| is_ca(der) && *der != cert).collect();
    let is_root = |der: &[u8]| anchors.iter().any(|anchor| anchor == der) || is_issued_by(der, der);
    let mut seen = vec![false; known.len()];
    let mut ways = VecDeque::from([(Vec::new(), cert)]);
    while let Some((way, last)) = ways.pop_front() {
        for (at, parent) in known.iter().enumerate() {
            if seen[at] || !is_issued_by(last, parent) {
                continue;
            }
            seen[at] = true;
            if is_root(parent) {
                let intermediates = way.iter().map(|at: &usize| known[*at].to_vec()).collect();
                return Some(Path { intermediates, root: parent.to_vec() });
            }
            let way = way.iter().copied().chain([at]).collect();
            ways.push_back((way, parent));
        }
    }
    None
}

/// The root above an issuer, which may be one itself.
pub(crate) fn root_above(issuer: &[u8], pool: &[Vec<u8>], anchors: &[Vec<u8>]) -> Option<Vec<u8>> {
    if is_ca(issuer) && is_issued_by(issuer, issuer) {
        return Some(issuer.to_vec());
    }
    walk(issuer, pool, anchors).map(|path| path.root)
}

fn is_ca(der: &[u8]) -> bool {
    ParsedCert::from_der(der).is_ok_and(|cert| cert.is_ca())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

    use super::*;

    type Ca = CertifiedIssuer<'static, KeyPair>;

    fn params(name: &str, is_ca: bool) -> CertificateParams {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = if is_ca { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::NoCa };
        params
    }

    fn root(name: &str) -> Ca {
        Ca::self_signed(params(name, true), KeyPair::generate().unwrap()).unwrap()
    }

    fn below(name: &str, parent: &Ca) -> Ca {
        Ca::signed_by(params(name, true), KeyPair::generate().unwrap(), parent).unwrap()
    }

    fn der(ca: &Ca) -> Vec<u8> {
        ca.der().to_vec()
    }

    #[test]
    fn finds_the_root_in_any_order() {
        let root = root("root");
        let (middle, other) = (below("middle", &root), self::root("other"));
        let issuing = below("issuing", &middle);
        let leaf = below("leaf", &issuing);
        let want = Some(Path { intermediates: vec![der(&issuing), der(&middle)], root: der(&root) });
        let mut pool = vec![der(&issuing), der(&middle), der(&root), der(&other), der(&leaf), vec![1, 2]];
        for _ in 0..pool.len() {
            pool.rotate_left(1);
            assert_eq!(walk(&der(&leaf), &pool, &[]), want);
        }
        pool.retain(|cert| *cert != der(&root));
        assert_eq!(walk(&der(&leaf), &pool, &[]), None, "an issuer that did not sign itself is no root");
        assert_eq!(walk(&der(&leaf), &pool, &[der(&root)]), want, "a configured one is");
        assert_eq!(walk(&der(&leaf), &pool, &[der(&middle)]).unwrap().root, der(&middle));
        assert_eq!(root_above(&der(&root), &[], &[]), Some(der(&root)));
        assert_eq!(root_above(&der(&issuing), &[der(&root), der(&middle)], &[]), Some(der(&root)));
    }

    #[test]
    fn names_are_not_enough() {
        let (true_root, false_root) = (root("root"), root("root"));
        let leaf = below("leaf", &true_root);
        assert_eq!(walk(&der(&leaf), &[der(&false_root)], &[]), None);
        let found = walk(&der(&leaf), &[der(&false_root), der(&true_root)], &[]).unwrap();
        assert_eq!(found, Path { intermediates: Vec::new(), root: der(&true_root) });
        let no_ca = Ca::self_signed(params("root", false), KeyPair::generate().unwrap()).unwrap();
        assert_eq!(root_above(&der(&no_ca), &[], &[]), None);
    }

    #[test]
    fn two_that_signed_each_other_lead_nowhere() {
        let (key_a, key_b) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let a = Ca::self_signed(params("a", true), key_a).unwrap();
        let b = Ca::signed_by(params("b", true), key_b, &a).unwrap();
        let a_by_b = params("a", true).signed_by(a.key(), &b).unwrap();
        assert_eq!(walk(b.der(), &[a_by_b.der().to_vec(), der(&b)], &[]), None);
    }
}
