//! The agent's key as rustls wants it: the key stays with its keeper.

use std::fmt;
use std::sync::Arc;

use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::sign::{Signer as TlsSigner, SigningKey};
use rustls::{Error, SignatureAlgorithm, SignatureScheme};
use svid_core::key::{KeyType, Signer};

/// A [`Signer`] that authenticates TLS connections. Agent keys are always on P-256; RSA keys would need PSS, which
/// the trait does not offer, and are refused by [`TlsKey::new`].
pub(super) struct TlsKey {
    signer: Arc<dyn Signer>,
    scheme: SignatureScheme,
}

impl TlsKey {
    pub(super) fn new(signer: Arc<dyn Signer>) -> Result<Self, Error> {
        let scheme = match signer.key_type() {
            KeyType::EcP256 => SignatureScheme::ECDSA_NISTP256_SHA256,
            KeyType::EcP384 => SignatureScheme::ECDSA_NISTP384_SHA384,
            KeyType::Rsa2048 | KeyType::Rsa4096 => {
                return Err(Error::General("the agent's key must be an ECDSA key".into()));
            }
        };
        Ok(Self { signer, scheme })
    }
}

impl SigningKey for TlsKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn TlsSigner>> {
        let signer = || Box::new(OneSignature { signer: Arc::clone(&self.signer), scheme: self.scheme });
        offered.contains(&self.scheme).then(|| signer() as Box<dyn TlsSigner>)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(SubjectPublicKeyInfoDer::from(self.signer.public_key_der()))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl fmt::Debug for TlsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsKey").field("scheme", &self.scheme).finish_non_exhaustive()
    }
}

struct OneSignature {
    signer: Arc<dyn Signer>,
    scheme: SignatureScheme,
}

impl TlsSigner for OneSignature {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        self.signer.sign(message).map_err(|error| Error::General(error.to_string()))
    }

    fn scheme(&self) -> SignatureScheme {
        self.scheme
    }
}

impl fmt::Debug for OneSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OneSignature").field("scheme", &self.scheme).finish_non_exhaustive()
    }
}
