//! CSRs with names of our own, built by rcgen around any [`Signer`].
//!
//! Certificates are not built this way: an issuer's name has to be the CA's bytes exactly, a minted certificate carries
//! its CSR's subject as it is, and rcgen writes names anew.

use rcgen::{
    CertificateParams, DistinguishedName, DnType, DnValue, PublicKeyData, SanType, SignatureAlgorithm,
    SigningKey,
};

use super::csr::PublicKey;
use crate::id::SpiffeId;
use crate::key::{KeyError, KeyType, Signer};

/// A signer as rcgen wants it. It never holds key bytes.
struct Key<'a> {
    signer: &'a dyn Signer,
    public: PublicKey,
}

impl PublicKeyData for Key<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.public.bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        match self.signer.key_type() {
            KeyType::EcP256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            KeyType::EcP384 => &rcgen::PKCS_ECDSA_P384_SHA384,
            KeyType::Rsa2048 | KeyType::Rsa4096 => &rcgen::PKCS_RSA_SHA256,
        }
    }
}

impl SigningKey for Key<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.signer.sign(message).map_err(|_| rcgen::Error::RemoteKeyError)
    }
}

/// A CSR with the subject that SPIRE's agents use, C=US and O=SPIRE.
/// # Errors
/// [`KeyError::Sign`].
pub fn make_csr(signer: &dyn Signer, id: Option<&SpiffeId>, dns: &[String]) -> Result<Vec<u8>, KeyError> {
    let key = Key { signer, public: PublicKey::of(signer).map_err(|_| KeyError::Sign)? };
    let request = params(id, dns).and_then(|params| params.serialize_request(&key));
    Ok(request.map_err(|_| KeyError::Sign)?.der().to_vec())
}

fn params(id: Option<&SpiffeId>, dns: &[String]) -> Result<CertificateParams, rcgen::Error> {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CountryName, DnValue::PrintableString("US".try_into()?));
    subject.push(DnType::OrganizationName, DnValue::PrintableString("SPIRE".try_into()?));
    let mut params = CertificateParams::default();
    params.distinguished_name = subject;
    if let Some(id) = id {
        params.subject_alt_names.push(SanType::URI(id.as_str().try_into()?));
    }
    for name in dns {
        params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
    }
    Ok(params)
}
