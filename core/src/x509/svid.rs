//! The rules of the SPIFFE X509-SVID standard for a leaf and what stands behind it.

use std::time::SystemTime;

use super::cert::{CertError, KeyUsage, ParsedCert};
use super::chain::CertChain;
use crate::id::SpiffeId;
use crate::rotation::Life;

/// Which rule of the standard a chain breaks. The texts are go-spiffe's, since people search for them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SvidError {
    /// A certificate does not parse.
    #[error("cannot parse certificate: {0}")]
    Cert(CertError),
    /// The leaf's SPIFFE ID is missing, doubled or malformed.
    #[error("cannot get leaf certificate SPIFFE ID: {0}")]
    Id(CertError),
    /// The leaf names a trust domain, not a workload (X509-SVID, 4.1 and 5.2).
    #[error("leaf certificate SPIFFE ID has no path")]
    NoPath,
    /// The leaf may sign certificates (X509-SVID, 5.2).
    #[error("leaf certificate must not have CA flag set to true")]
    LeafIsCa,
    /// The leaf limits the paths below it, which only a CA can (RFC 5280, 4.2.1.9).
    #[error("leaf certificate must not have a path length constraint")]
    LeafPathLen,
    /// The leaf may not sign handshakes (X509-SVID, 4.3).
    #[error("leaf certificate must have 'digitalSignature' set as key usage")]
    LeafDigitalSignature,
    /// The leaf's key usage names certificate signing.
    #[error("leaf certificate must not have 'keyCertSign' set as key usage")]
    LeafCertSign,
    /// The leaf's key usage names CRL signing.
    #[error("leaf certificate must not have 'cRLSign' set as key usage")]
    LeafCrlSign,
    /// An intermediate is no CA (X509-SVID, 4.2).
    #[error("intermediate certificate must have CA flag set to true")]
    IntermediateNotCa,
    /// An intermediate may not sign certificates.
    #[error("intermediate certificate must have 'keyCertSign' set as key usage")]
    IntermediateCertSign,
    /// An intermediate names more than one URI (X509-SVID, 2).
    #[error("intermediate certificate contains more than one URI SAN")]
    IntermediateUris,
}

/// A chain that keeps the rules. Its signatures and validity are not part of them.
#[derive(Clone, Debug)]
pub struct X509Svid {
    chain: CertChain,
    leaf: ParsedCert,
    id: SpiffeId,
}

impl X509Svid {
    /// Reads a chain and checks it.
    /// # Errors
    /// [`SvidError`] names the rule that is broken.
    pub fn parse(chain: CertChain) -> Result<Self, SvidError> {
        let leaf = ParsedCert::from_der(chain.leaf()).map_err(SvidError::Cert)?;
        let id = check_leaf(&leaf)?;
        for der in chain.rest() {
            check_intermediate(&ParsedCert::from_der(der).map_err(SvidError::Cert)?)?;
        }
        Ok(Self { chain, leaf, id })
    }

    /// For issuance, whose upstream chain was checked when the authority was made.
    pub(super) fn from_checked(chain: CertChain, leaf: ParsedCert, id: SpiffeId) -> Self {
        Self { chain, leaf, id }
    }

    /// The chain, leaf first.
    pub fn chain(&self) -> &CertChain {
        &self.chain
    }

    /// The leaf's facts.
    pub fn leaf(&self) -> &ParsedCert {
        &self.leaf
    }

    /// Whose SVID this is.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The leaf's validity.
    pub fn life(&self) -> Life {
        self.leaf.life()
    }

    /// When the leaf ends.
    pub fn not_after(&self) -> SystemTime {
        self.leaf.life().not_after
    }

    /// The leaf's serial number in decimal.
    pub fn serial_decimal(&self) -> String {
        self.leaf.serial_decimal()
    }
}

/// Checks a leaf and gives its ID.
pub(super) fn check_leaf(leaf: &ParsedCert) -> Result<SpiffeId, SvidError> {
    let id = leaf.spiffe_id().map_err(SvidError::Id)?;
    if id.path().is_empty() {
        return Err(SvidError::NoPath);
    }
    if leaf.is_ca() {
        return Err(SvidError::LeafIsCa);
    }
    if leaf.path_len().is_some() {
        return Err(SvidError::LeafPathLen);
    }
    let usage = leaf.key_usage().unwrap_or(KeyUsage { bits: 0, critical: false });
    if usage.key_cert_sign() {
        return Err(SvidError::LeafCertSign);
    }
    if usage.crl_sign() {
        return Err(SvidError::LeafCrlSign);
    }
    if !usage.digital_signature() {
        return Err(SvidError::LeafDigitalSignature);
    }
    Ok(id)
}

/// Checks a signing certificate. Its ID may be absent, have a path or break the ID rules: upstream PKIs know nothing
/// of SPIFFE, and the bundle, not the intermediate, says which trust domain it is.
pub(super) fn check_intermediate(cert: &ParsedCert) -> Result<(), SvidError> {
    if !cert.is_ca() {
        return Err(SvidError::IntermediateNotCa);
    }
    if !cert.key_usage().is_some_and(KeyUsage::key_cert_sign) {
        return Err(SvidError::IntermediateCertSign);
    }
    if cert.uri_sans().len() > 1 {
        return Err(SvidError::IntermediateUris);
    }
    Ok(())
}
