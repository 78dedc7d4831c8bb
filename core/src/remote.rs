//! Signatures of keys that live elsewhere: awaited, and verified before anything is made of them.
//!
//! A local key signs inline, without an allocation or a wait that it did not have before.

use std::future::Future;
use std::pin::Pin;

use aws_lc_rs::digest;
use aws_lc_rs::signature::{self as sig, UnparsedPublicKey, VerificationAlgorithm};

use crate::key::{KeyError, KeyType, Signer};

/// A signature on its way.
pub type SignFuture<'a> = Pin<Box<dyn Future<Output = Result<Vec<u8>, KeyError>> + Send + 'a>>;

/// The asynchronous half of a [`Signer`] whose key lives elsewhere.
pub trait RemoteSigner: Send + Sync {
    /// Has `message` signed as an X.509 signature: ECDSA in ASN.1 form, or RSA PKCS#1 v1.5, with the hash of the key's
    /// type. Ends by itself: whoever implements this sets a deadline.
    ///
    /// Nobody calls this but [`sign`] and [`sign_jws`], which verify what comes back.
    fn sign<'a>(&'a self, message: &'a [u8]) -> SignFuture<'a>;
}

/// Signs `message` as an X.509 signature with a key that lives here or elsewhere.
/// # Errors
/// [`KeyError`]; [`KeyError::OtherKey`] if what a remote key's keeper answered is no signature by that key.
pub async fn sign(signer: &dyn Signer, message: &[u8]) -> Result<Vec<u8>, KeyError> {
    match signer.remote() {
        None => signer.sign(message),
        Some(remote) => verified(signer, remote, message).await,
    }
}

/// As [`sign`], in the form of JWS.
/// # Errors
/// As [`sign`].
pub async fn sign_jws(signer: &dyn Signer, message: &[u8]) -> Result<Vec<u8>, KeyError> {
    let Some(remote) = signer.remote() else { return signer.sign_jws(message) };
    let signature = verified(signer, remote, message).await?;
    match signer.key_type() {
        KeyType::EcP256 => fixed(&signature, 32).ok_or(KeyError::OtherKey),
        KeyType::EcP384 => fixed(&signature, 48).ok_or(KeyError::OtherKey),
        KeyType::Rsa2048 | KeyType::Rsa4096 => Ok(signature),
    }
}

/// The hash of `message` that a key of this type signs: SHA-384 for P-384, else SHA-256.
pub fn digest(kind: KeyType, message: &[u8]) -> Vec<u8> {
    let algorithm = match kind {
        KeyType::EcP384 => &digest::SHA384,
        KeyType::EcP256 | KeyType::Rsa2048 | KeyType::Rsa4096 => &digest::SHA256,
    };
    digest::digest(algorithm, message).as_ref().to_vec()
}

async fn verified(
    signer: &dyn Signer,
    remote: &dyn RemoteSigner,
    message: &[u8],
) -> Result<Vec<u8>, KeyError> {
    let signature = remote.sign(message).await?;
    let algorithm: &dyn VerificationAlgorithm = match signer.key_type() {
        KeyType::EcP256 => &sig::ECDSA_P256_SHA256_ASN1,
        KeyType::EcP384 => &sig::ECDSA_P384_SHA384_ASN1,
        KeyType::Rsa2048 | KeyType::Rsa4096 => &sig::RSA_PKCS1_2048_8192_SHA256,
    };
    let key = UnparsedPublicKey::new(algorithm, signer.public_key_der());
    key.verify(message, &signature).map_err(|_| KeyError::OtherKey)?;
    Ok(signature)
}

/// r and s of an ECDSA signature in ASN.1, each in `length` bytes, which is at most 127.
fn fixed(asn1: &[u8], length: usize) -> Option<Vec<u8>> {
    let (&[0x30, size], rest) = asn1.split_first_chunk::<2>()? else { return None };
    if usize::from(size) != rest.len() || size >= 0x80 {
        return None;
    }
    let (r, rest) = number(rest, length)?;
    let (s, rest) = number(rest, length)?;
    rest.is_empty().then(|| [r, s].concat())
}

/// A positive INTEGER in DER, and what stands behind it.
fn number(der: &[u8], length: usize) -> Option<(Vec<u8>, &[u8])> {
    let (&[0x02, size], rest) = der.split_first_chunk::<2>()? else { return None };
    let (value, rest) = rest.split_at_checked(usize::from(size))?;
    let value = value.strip_prefix(&[0]).unwrap_or(value);
    let mut padded = vec![0; length.checked_sub(value.len())?];
    padded.extend_from_slice(value);
    Some((padded, rest))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::key::LocalKey;

    /// Signs with `inner` and says that it was `shown`.
    struct Elsewhere {
        inner: LocalKey,
        shown: Arc<LocalKey>,
    }

    impl Signer for Elsewhere {
        fn key_type(&self) -> KeyType {
            self.shown.key_type()
        }

        fn public_key_der(&self) -> &[u8] {
            self.shown.public_key_der()
        }

        fn sign(&self, _: &[u8]) -> Result<Vec<u8>, KeyError> {
            Err(KeyError::Remote)
        }

        fn sign_jws(&self, _: &[u8]) -> Result<Vec<u8>, KeyError> {
            Err(KeyError::Remote)
        }

        fn remote(&self) -> Option<&dyn RemoteSigner> {
            Some(self)
        }
    }

    impl RemoteSigner for Elsewhere {
        fn sign<'a>(&'a self, message: &'a [u8]) -> SignFuture<'a> {
            Box::pin(async move { Signer::sign(&self.inner, message) })
        }
    }

    fn ready<T>(future: impl Future<Output = T>) -> T {
        match std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => value,
            Poll::Pending => panic!("nothing here waits"),
        }
    }

    fn copy(key: &LocalKey) -> LocalKey {
        let bytes = key.private_key().secret_bytes().to_vec();
        LocalKey::from_pkcs8(crate::key::PrivateKeyDer::from_pkcs8(bytes)).unwrap()
    }

    #[test]
    fn both_forms_are_those_of_a_local_key() {
        for (kind, jws) in [
            (KeyType::EcP256, &sig::ECDSA_P256_SHA256_FIXED as &dyn VerificationAlgorithm),
            (KeyType::EcP384, &sig::ECDSA_P384_SHA384_FIXED),
            (KeyType::Rsa2048, &sig::RSA_PKCS1_2048_8192_SHA256),
        ] {
            let key = Arc::new(LocalKey::generate(kind).unwrap());
            let elsewhere = Elsewhere { inner: copy(&key), shown: key.clone() };
            // Short numbers occur in one of 128 signatures.
            for n in 0..if kind == KeyType::EcP256 { 600u32 } else { 3 } {
                let message = n.to_be_bytes();
                let signature = ready(sign_jws(&elsewhere, &message)).unwrap();
                let public = UnparsedPublicKey::new(jws, key.public_key_der());
                public.verify(&message, &signature).unwrap();
            }
            assert!(ready(sign(&elsewhere, b"x")).is_ok());
            assert!(ready(sign(&*key, b"x")).is_ok() && ready(sign_jws(&*key, b"x")).is_ok());
            assert_eq!(digest(kind, b"x").len(), if kind == KeyType::EcP384 { 48 } else { 32 });
        }
    }

    #[test]
    fn a_signature_by_another_key_is_refused() {
        for kind in [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048] {
            let [inner, shown] = [(), ()].map(|()| LocalKey::generate(kind).unwrap());
            let elsewhere = Elsewhere { inner, shown: Arc::new(shown) };
            assert_eq!(ready(sign(&elsewhere, b"x")), Err(KeyError::OtherKey));
            assert_eq!(ready(sign_jws(&elsewhere, b"x")), Err(KeyError::OtherKey));
            assert_eq!(Signer::sign(&elsewhere, b"x"), Err(KeyError::Remote));
        }
    }

    #[test]
    fn what_is_no_signature_has_no_fixed_form() {
        let good = [0x30, 6, 2, 1, 5, 2, 1, 7];
        assert_eq!(fixed(&good, 2), Some(vec![0, 5, 0, 7]));
        for end in 0..good.len() {
            assert_eq!(fixed(&good[..end], 2), None);
        }
        assert_eq!(fixed(&[0x30, 7, 2, 1, 5, 2, 1, 7, 0], 2), None, "something behind it");
        assert_eq!(fixed(&[0x30, 9, 2, 4, 1, 2, 3, 4, 2, 1, 7], 2), None, "too long");
        assert_eq!(fixed(&[0x31, 6, 2, 1, 5, 2, 1, 7], 2), None);
    }
}
