//! Verification of a peer's chain against the bundle of its trust domain.

use std::time::{Duration, SystemTime};

use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter, VerifiedPath, aws_lc_rs as algs};

use super::cert::{CertError, MAX_CHAIN_CERTS, ParsedCert};
use super::svid::{self, SvidError};
use crate::bundle::Bundle;
use crate::id::{SpiffeId, TrustDomain};
use crate::rotation::Life;

/// Signatures we accept on certificates.
static ALGORITHMS: [&dyn SignatureVerificationAlgorithm; 17] = [
    algs::ECDSA_P256_SHA256,
    algs::ECDSA_P256_SHA384,
    algs::ECDSA_P256_SHA512,
    algs::ECDSA_P384_SHA256,
    algs::ECDSA_P384_SHA384,
    algs::ECDSA_P384_SHA512,
    algs::ECDSA_P521_SHA256,
    algs::ECDSA_P521_SHA384,
    algs::ECDSA_P521_SHA512,
    algs::RSA_PKCS1_2048_8192_SHA256,
    algs::RSA_PKCS1_2048_8192_SHA384,
    algs::RSA_PKCS1_2048_8192_SHA512,
    algs::RSA_PKCS1_2048_8192_SHA256_ABSENT_PARAMS,
    algs::RSA_PKCS1_2048_8192_SHA384_ABSENT_PARAMS,
    algs::RSA_PKCS1_2048_8192_SHA512_ABSENT_PARAMS,
    algs::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    algs::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
];

/// Why a chain was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// There are no certificates.
    #[error("no certificates presented")]
    Empty,
    /// A certificate does not parse, or there are too many.
    #[error("cannot parse certificate: {0}")]
    Cert(#[from] CertError),
    /// No root of the bundle signed this chain.
    #[error("certificate signed by unknown authority")]
    UnknownAuthority,
    /// A certificate of the path has ended.
    #[error("certificate has expired")]
    Expired,
    /// A certificate of the path has not begun.
    #[error("certificate is not yet valid")]
    NotYetValid,
    /// The path breaks another rule of RFC 5280; the verifier's word for it.
    #[error("certificate path is not valid: {0}")]
    Path(String),
    /// The chain breaks a rule of the X509-SVID standard.
    #[error(transparent)]
    Profile(#[from] SvidError),
    /// The ID lies in another trust domain than the bundle's, or the roots belong to none.
    #[error("{id:?} is not a member of the trust domain whose bundle was used")]
    WrongTrustDomain {
        /// The ID in the leaf.
        id: SpiffeId,
    },
}

/// Trust anchors, prepared once. Only those of a trust domain can vouch for a SPIFFE ID.
#[derive(Clone, Debug)]
pub struct Roots {
    trust_domain: Option<TrustDomain>,
    anchors: Vec<TrustAnchor<'static>>,
}

impl Roots {
    /// The X.509 roots of a bundle. Certificates that are no CA cannot vouch for others and are left out.
    pub fn from_bundle(bundle: &Bundle) -> Self {
        let authorities = bundle.x509_authorities.iter().filter(|root| root.parsed().is_ca());
        let anchors = authorities.filter_map(|root| anchor(root.der()).ok()).collect();
        Self { trust_domain: Some(bundle.trust_domain.clone()), anchors }
    }

    /// Roots of a trust domain that come without a bundle, such as an agent's bootstrap certificates. What is no CA is
    /// left out.
    /// # Errors
    /// [`CertError`] if one is no certificate.
    pub fn for_trust_domain<C: AsRef<[u8]>>(
        trust_domain: &TrustDomain,
        ders: impl IntoIterator<Item = C>,
    ) -> Result<Self, CertError> {
        let mut anchors = Vec::new();
        for der in ders {
            if ParsedCert::from_der(der.as_ref())?.is_ca() {
                anchors.push(anchor(der.as_ref())?);
            }
        }
        Ok(Self { trust_domain: Some(trust_domain.clone()), anchors })
    }

    /// Roots of no trust domain, for [`verify_path`] only: [`verify`] refuses every chain with them.
    /// # Errors
    /// [`CertError`] if one is no certificate.
    pub fn from_ders<C: AsRef<[u8]>>(ders: impl IntoIterator<Item = C>) -> Result<Self, CertError> {
        let anchors = ders.into_iter().map(|der| anchor(der.as_ref())).collect::<Result<_, _>>()?;
        Ok(Self { trust_domain: None, anchors })
    }

    /// Whose roots these are.
    pub fn trust_domain(&self) -> Option<&TrustDomain> {
        self.trust_domain.as_ref()
    }

    /// True if nothing can verify against these.
    pub fn is_empty(&self) -> bool {
        self.anchors.is_empty()
    }
}

fn anchor(der: &[u8]) -> Result<TrustAnchor<'static>, CertError> {
    let der = CertificateDer::from(der);
    Ok(webpki::anchor_from_trusted_cert(&der).map_err(|_| CertError::Malformed)?.to_owned())
}

/// A peer whose chain was verified. Only [`verify`] makes one.
#[derive(Clone, Debug)]
pub struct VerifiedPeer {
    id: SpiffeId,
    leaf: ParsedCert,
}

impl VerifiedPeer {
    /// Who the peer is.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The leaf's validity.
    pub fn life(&self) -> Life {
        self.leaf.life()
    }

    /// The leaf's serial number in decimal, as node rows hold it.
    pub fn serial_decimal(&self) -> String {
        self.leaf.serial_decimal()
    }

    /// The leaf's facts.
    pub fn leaf(&self) -> &ParsedCert {
        &self.leaf
    }
}

/// Verifies a chain, leaf first, as an X509-SVID of the roots' trust domain at `now`.
/// # Errors
/// [`VerifyError`]; nothing of the peer's claims can be used then.
pub fn verify<C: AsRef<[u8]>>(
    chain: &[C],
    roots: &Roots,
    now: SystemTime,
) -> Result<VerifiedPeer, VerifyError> {
    let leaf = read_leaf(chain)?;
    let id = svid::check_leaf(&leaf)?;
    if roots.trust_domain.as_ref().is_none_or(|trust_domain| !id.is_member_of(trust_domain)) {
        return Err(VerifyError::WrongTrustDomain { id });
    }
    build_path(chain, roots, now)?;
    Ok(VerifiedPeer { id, leaf })
}

/// Verifies a chain, leaf first, without the SPIFFE rules for its leaf, as node attestation with foreign certificates
/// needs. Gives the leaf's facts; extended key usages are not looked at.
/// # Errors
/// [`VerifyError`], never [`VerifyError::WrongTrustDomain`].
pub fn verify_path<C: AsRef<[u8]>>(
    chain: &[C],
    roots: &Roots,
    now: SystemTime,
) -> Result<ParsedCert, VerifyError> {
    let leaf = read_leaf(chain)?;
    build_path(chain, roots, now)?;
    Ok(leaf)
}

fn read_leaf<C: AsRef<[u8]>>(chain: &[C]) -> Result<ParsedCert, VerifyError> {
    if chain.len() > MAX_CHAIN_CERTS {
        return Err(CertError::TooMany(chain.len()).into());
    }
    let leaf = chain.first().ok_or(VerifyError::Empty)?;
    Ok(ParsedCert::from_der(leaf.as_ref())?)
}

fn build_path<C: AsRef<[u8]>>(chain: &[C], roots: &Roots, now: SystemTime) -> Result<(), VerifyError> {
    let (leaf, rest) = chain.split_first().ok_or(VerifyError::Empty)?;
    let leaf_der = CertificateDer::from(leaf.as_ref());
    let leaf = EndEntityCert::try_from(&leaf_der).map_err(path_error)?;
    let rest: Vec<_> = rest.iter().map(|der| CertificateDer::from(der.as_ref())).collect();
    let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let time = UnixTime::since_unix_epoch(since_epoch);
    leaf.verify_for_usage(&ALGORITHMS, &roots.anchors, &rest, time, AnyUsage, None, Some(&signers_may_sign))
        .map_err(path_error)?;
    Ok(())
}

/// webpki does not look at KeyUsage, so the path's signers are checked here: another path may still be found.
fn signers_may_sign(path: &VerifiedPath<'_>) -> Result<(), webpki::Error> {
    for cert in path.intermediate_certificates() {
        let facts = ParsedCert::from_der(&cert.der()).map_err(|_| webpki::Error::BadDer)?;
        svid::check_intermediate(&facts).map_err(|_| webpki::Error::EndEntityUsedAsCa)?;
    }
    Ok(())
}

/// SPIFFE asks issuers for both purposes and lets verifiers take either, as go-spiffe does.
struct AnyUsage;

impl ExtendedKeyUsageValidator for AnyUsage {
    fn validate(&self, _purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        Ok(())
    }
}

fn path_error(error: webpki::Error) -> VerifyError {
    match error {
        // A root of the same name with another key is not the one that signed: to the caller both mean the same.
        webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
            VerifyError::UnknownAuthority
        }
        webpki::Error::CertExpired { .. } => VerifyError::Expired,
        webpki::Error::CertNotValidYet { .. } => VerifyError::NotYetValid,
        other => VerifyError::Path(other.to_string()),
    }
}
