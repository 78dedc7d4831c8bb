//! Keys: their types, private keys that wipe themselves, and signers.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{self, EcdsaKeyPair, KeyPair, RsaKeyPair};
use zeroize::Zeroizing;

use crate::remote::RemoteSigner;

/// The key types SPIRE configures by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyType {
    /// ECDSA on P-256, with SHA-256.
    EcP256,
    /// ECDSA on P-384, with SHA-384.
    EcP384,
    /// RSA of 2048 bits, PKCS#1 v1.5 with SHA-256.
    Rsa2048,
    /// RSA of 4096 bits, PKCS#1 v1.5 with SHA-256.
    Rsa4096,
}

impl KeyType {
    /// The name in configuration files.
    pub fn name(self) -> &'static str {
        match self {
            Self::EcP256 => "ec-p256",
            Self::EcP384 => "ec-p384",
            Self::Rsa2048 => "rsa-2048",
            Self::Rsa4096 => "rsa-4096",
        }
    }
}

impl FromStr for KeyType {
    type Err = KeyError;
    fn from_str(name: &str) -> Result<Self, KeyError> {
        [Self::EcP256, Self::EcP384, Self::Rsa2048, Self::Rsa4096]
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| KeyError::UnknownType(name.to_owned()))
    }
}

/// Why a key could not be made, read or used. Never holds key bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A configured key type does not exist.
    #[error("key type {0:?} is unknown; must be one of [rsa-2048, rsa-4096, ec-p256, ec-p384]")]
    UnknownType(String),
    /// Key generation failed inside the crypto library.
    #[error("key generation failed")]
    Generate,
    /// The bytes are no PKCS#8 key of a type we use.
    #[error("not a PKCS#8 private key of type ECDSA P-256, ECDSA P-384 or RSA")]
    Parse,
    /// Signing failed inside the crypto library.
    #[error("signing failed")]
    Sign,
    /// The key lives elsewhere, and its signature has to be awaited: see [`crate::remote`].
    #[error("the key does not sign inline: it lives in a key service")]
    Remote,
    /// The service that keeps the key did not answer or is overloaded. The same request may succeed later.
    #[error("{0}")]
    Unavailable(String),
    /// The service that keeps the key refused to sign, in these words.
    #[error("{0}")]
    Refused(String),
    /// What the key's keeper returned is no signature by that key.
    #[error("the key manager returned a signature that is not by the key that was asked for")]
    OtherKey,
}

/// A PKCS#8 key in DER: wiped on drop, silent in `Debug`, and on purpose not `Clone`.
pub struct PrivateKeyDer(Zeroizing<Vec<u8>>);

impl PrivateKeyDer {
    /// Takes ownership of PKCS#8 bytes. They are not looked at.
    pub fn from_pkcs8(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The PKCS#8 bytes, for the one place that writes or sends them.
    pub fn secret_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for PrivateKeyDer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrivateKeyDer").finish_non_exhaustive()
    }
}

/// Signs with one immutable key. The algorithm follows from the key's type. A key that lives in another process or
/// machine signs through [`Signer::remote`] only.
pub trait Signer: Send + Sync {
    /// The key's type.
    fn key_type(&self) -> KeyType;
    /// The public key as SubjectPublicKeyInfo DER.
    fn public_key_der(&self) -> &[u8];
    /// Signs `message` as an X.509 signature: ECDSA in ASN.1 form, or RSA PKCS#1 v1.5.
    /// # Errors
    /// [`KeyError::Sign`] if the library refuses, [`KeyError::Remote`] if the key lives elsewhere.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError>;
    /// Signs `message` as a JWS signature: ECDSA as r and s of fixed length, or RSA PKCS#1 v1.5.
    /// # Errors
    /// As [`Signer::sign`].
    fn sign_jws(&self, message: &[u8]) -> Result<Vec<u8>, KeyError>;
    /// For a key that lives elsewhere: the half that signs. Use it through [`crate::remote::sign`] and
    /// [`crate::remote::sign_jws`], which take keys of both kinds.
    fn remote(&self) -> Option<&dyn RemoteSigner> {
        None
    }
}

impl fmt::Debug for dyn Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("key_type", &self.key_type()).finish_non_exhaustive()
    }
}

enum Pair {
    // The same key twice: aws-lc-rs fixes the signature's form with the pair.
    Ec { asn1: EcdsaKeyPair, fixed: EcdsaKeyPair },
    Rsa(RsaKeyPair),
}

/// A key in this process's memory.
pub struct LocalKey {
    kind: KeyType,
    pair: Pair,
    public: Vec<u8>,
    pkcs8: PrivateKeyDer,
    random: SystemRandom,
}

impl LocalKey {
    /// Makes a new key from the operating system's randomness.
    /// # Errors
    /// [`KeyError::Generate`].
    pub fn generate(kind: KeyType) -> Result<Self, KeyError> {
        let pkcs8 = match kind {
            KeyType::EcP256 => ec_pkcs8(&signature::ECDSA_P256_SHA256_ASN1_SIGNING)?,
            KeyType::EcP384 => ec_pkcs8(&signature::ECDSA_P384_SHA384_ASN1_SIGNING)?,
            KeyType::Rsa2048 => rsa_pkcs8(KeySize::Rsa2048)?,
            KeyType::Rsa4096 => rsa_pkcs8(KeySize::Rsa4096)?,
        };
        Self::from_pkcs8(PrivateKeyDer::from_pkcs8(pkcs8))
    }

    /// Reads a PKCS#8 key.
    /// # Errors
    /// [`KeyError::Parse`] for anything but P-256, P-384 and RSA of 2048 or 4096 bits.
    pub fn from_pkcs8(pkcs8: PrivateKeyDer) -> Result<Self, KeyError> {
        let bytes = pkcs8.secret_bytes();
        let (kind, pair) = read_ec(bytes).or_else(|| read_rsa(bytes)).ok_or(KeyError::Parse)?;
        let public = match &pair {
            Pair::Ec { asn1, .. } => spki(asn1.public_key())?,
            Pair::Rsa(key) => spki(key.public_key())?,
        };
        Ok(Self { kind, pair, public, pkcs8, random: SystemRandom::new() })
    }

    /// The private key, for the one place that stores or hands it out.
    pub fn private_key(&self) -> &PrivateKeyDer {
        &self.pkcs8
    }

    /// This key as a shared signer.
    pub fn into_signer(self) -> Arc<dyn Signer> {
        Arc::new(self)
    }
}

fn ec_pkcs8(alg: &'static signature::EcdsaSigningAlgorithm) -> Result<Vec<u8>, KeyError> {
    let pair = EcdsaKeyPair::generate(alg).map_err(|_| KeyError::Generate)?;
    let der = pair.to_pkcs8v1().map_err(|_| KeyError::Generate)?;
    Ok(der.as_ref().to_vec())
}

fn rsa_pkcs8(size: KeySize) -> Result<Vec<u8>, KeyError> {
    let pair = RsaKeyPair::generate(size).map_err(|_| KeyError::Generate)?;
    let der: Pkcs8V1Der<'_> = pair.as_der().map_err(|_| KeyError::Generate)?;
    Ok(der.as_ref().to_vec())
}

fn read_ec(bytes: &[u8]) -> Option<(KeyType, Pair)> {
    let read = |kind, asn1_alg, fixed_alg| {
        let asn1 = EcdsaKeyPair::from_pkcs8(asn1_alg, bytes).ok()?;
        let fixed = EcdsaKeyPair::from_pkcs8(fixed_alg, bytes).ok()?;
        Some((kind, Pair::Ec { asn1, fixed }))
    };
    read(
        KeyType::EcP256,
        &signature::ECDSA_P256_SHA256_ASN1_SIGNING,
        &signature::ECDSA_P256_SHA256_FIXED_SIGNING,
    )
    .or_else(|| {
        read(
            KeyType::EcP384,
            &signature::ECDSA_P384_SHA384_ASN1_SIGNING,
            &signature::ECDSA_P384_SHA384_FIXED_SIGNING,
        )
    })
}

fn read_rsa(bytes: &[u8]) -> Option<(KeyType, Pair)> {
    let key = RsaKeyPair::from_pkcs8(bytes).ok()?;
    let kind = match key.public_modulus_len() {
        256 => KeyType::Rsa2048,
        512 => KeyType::Rsa4096,
        _ => return None,
    };
    Some((kind, Pair::Rsa(key)))
}

fn spki<K: AsDer<PublicKeyX509Der<'static>>>(public: &K) -> Result<Vec<u8>, KeyError> {
    Ok(public.as_der().map_err(|_| KeyError::Parse)?.as_ref().to_vec())
}

impl Signer for LocalKey {
    fn key_type(&self) -> KeyType {
        self.kind
    }

    fn public_key_der(&self) -> &[u8] {
        &self.public
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        match &self.pair {
            Pair::Ec { asn1, .. } => ecdsa(asn1, &self.random, message),
            Pair::Rsa(key) => rsa(key, &self.random, message),
        }
    }

    fn sign_jws(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        match &self.pair {
            Pair::Ec { fixed, .. } => ecdsa(fixed, &self.random, message),
            Pair::Rsa(key) => rsa(key, &self.random, message),
        }
    }
}

fn ecdsa(key: &EcdsaKeyPair, random: &SystemRandom, message: &[u8]) -> Result<Vec<u8>, KeyError> {
    let signature = key.sign(random, message).map_err(|_| KeyError::Sign)?;
    Ok(signature.as_ref().to_vec())
}

fn rsa(key: &RsaKeyPair, random: &SystemRandom, message: &[u8]) -> Result<Vec<u8>, KeyError> {
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(&signature::RSA_PKCS1_SHA256, random, message, &mut signature).map_err(|_| KeyError::Sign)?;
    Ok(signature)
}

impl fmt::Debug for LocalKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalKey").field("kind", &self.kind).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_round_trips_and_signs() {
        for kind in [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048] {
            let key = LocalKey::generate(kind).expect("generate");
            let again =
                LocalKey::from_pkcs8(PrivateKeyDer::from_pkcs8(key.private_key().secret_bytes().to_vec()));
            let again = again.expect("parse");
            assert_eq!(again.key_type(), kind);
            assert_eq!(again.public_key_der(), key.public_key_der());
            assert!(!key.sign(b"x").expect("sign").is_empty());
            let want = match kind {
                KeyType::EcP256 => 64,
                KeyType::EcP384 => 96,
                _ => 256,
            };
            assert_eq!(key.sign_jws(b"x").expect("sign").len(), want);
        }
    }

    #[test]
    fn debug_shows_no_key() {
        let key = LocalKey::generate(KeyType::EcP256).expect("generate");
        assert_eq!(format!("{key:?}"), "LocalKey { kind: EcP256, .. }");
        assert_eq!(format!("{:?}", key.private_key()), "PrivateKeyDer { .. }");
    }

    #[test]
    fn names() {
        assert_eq!("ec-p384".parse(), Ok(KeyType::EcP384));
        assert!("ed25519".parse::<KeyType>().is_err());
        assert!(LocalKey::from_pkcs8(PrivateKeyDer::from_pkcs8(vec![1, 2, 3])).is_err());
    }
}
