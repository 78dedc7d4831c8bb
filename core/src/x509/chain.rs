//! A chain of certificates in DER.

use super::cert::{CertError, MAX_CHAIN_CERTS, split_der_chain};
use crate::pem;

/// Leaf first and never empty, so [`CertChain::leaf`] always has an answer. The parts are not judged here.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CertChain {
    leaf: Vec<u8>,
    rest: Vec<Vec<u8>>,
}

impl CertChain {
    /// Takes certificates in DER, leaf first.
    /// # Errors
    /// [`CertError::Empty`] or [`CertError::TooMany`].
    pub fn from_certs(certs: impl IntoIterator<Item = Vec<u8>>) -> Result<Self, CertError> {
        let mut certs = certs.into_iter();
        let leaf = certs.next().ok_or(CertError::Empty)?;
        let rest: Vec<_> = certs.collect();
        if rest.len() >= MAX_CHAIN_CERTS {
            return Err(CertError::TooMany(rest.len() + 1));
        }
        Ok(Self { leaf, rest })
    }

    /// Reads certificates that stand one behind the other.
    /// # Errors
    /// As [`split_der_chain`].
    pub fn from_concatenated_der(bytes: &[u8]) -> Result<Self, CertError> {
        Self::from_certs(split_der_chain(bytes)?)
    }

    /// The first certificate.
    pub fn leaf(&self) -> &[u8] {
        &self.leaf
    }

    /// What stands behind the leaf.
    pub fn rest(&self) -> &[Vec<u8>] {
        &self.rest
    }

    /// All certificates, leaf first.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::once(self.leaf.as_slice()).chain(self.rest.iter().map(Vec::as_slice))
    }

    /// All certificates as owned bytes, leaf first.
    pub fn to_ders(&self) -> Vec<Vec<u8>> {
        self.iter().map(<[u8]>::to_vec).collect()
    }

    /// All certificates one behind the other, as the Workload API carries them.
    pub fn to_concatenated_der(&self) -> Vec<u8> {
        self.iter().collect::<Vec<_>>().concat()
    }

    /// All certificates as PEM blocks.
    pub fn to_pem(&self) -> String {
        pem::certs_to_pem(self.iter())
    }
}
