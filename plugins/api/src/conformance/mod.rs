//! One suite per trait, run on every implementation. A broken promise panics with its name.

mod upstream_authority;

pub use upstream_authority::upstream_authority;

use std::sync::Arc;

use aws_lc_rs::signature as sig;
use svid_core::key::{KeyType, Signer};
use svid_core::remote;

use crate::KeyManager;

async fn signs(signer: &dyn Signer) -> bool {
    let (asn1, fixed) = match signer.key_type() {
        KeyType::EcP256 => (&sig::ECDSA_P256_SHA256_ASN1, &sig::ECDSA_P256_SHA256_FIXED),
        KeyType::EcP384 => (&sig::ECDSA_P384_SHA384_ASN1, &sig::ECDSA_P384_SHA384_FIXED),
        KeyType::Rsa2048 | KeyType::Rsa4096 => panic!("this suite makes ECDSA keys"),
    };
    let verifies = |algorithm, signature: &[u8]| {
        let key = sig::ParsedPublicKey::new(algorithm, signer.public_key_der()).expect("a public key");
        key.verify_sig(b"message", signature).is_ok()
    };
    let x509 = remote::sign(signer, b"message").await.expect("sign");
    let jws = remote::sign_jws(signer, b"message").await.expect("sign in the form of JWS");
    verifies(asn1, &x509) && verifies(fixed, &jws)
}

/// Every promise of [`KeyManager`] that holds within one process.
pub async fn key_manager(keys: &dyn KeyManager) {
    assert!(keys.list().await.expect("list").is_empty(), "a fresh key manager is empty");
    assert!(keys.get("a").await.expect("get").is_none(), "an unknown id has no key");
    let first = keys.generate("a", KeyType::EcP256).await.expect("generate");
    assert!(signs(&*first).await, "a new key signs");
    let found = keys.get("a").await.expect("get").expect("the key just made");
    assert_eq!(found.public_key_der(), first.public_key_der(), "get finds what generate made");
    let second = keys.generate("a", KeyType::EcP256).await.expect("generate again");
    assert_ne!(second.public_key_der(), first.public_key_der(), "generate replaces");
    assert!(signs(&*first).await, "a replaced key still signs for its holder");
    let other = keys.generate("b", KeyType::EcP384).await.expect("generate another");
    assert_eq!(other.key_type(), KeyType::EcP384, "a key is of the type that was asked for");
    assert!(signs(&*other).await, "and signs as such");
    let ids: Vec<String> = keys.list().await.expect("list").into_iter().map(|(id, _)| id).collect();
    assert_eq!(ids, ["a", "b"], "list is complete and sorted");
}

/// What a durable [`KeyManager`] promises across restarts: `reopen` opens the same store again.
pub async fn durable_key_manager<F: AsyncFn() -> Arc<dyn KeyManager>>(reopen: F) {
    let keys = reopen().await;
    assert!(keys.is_durable(), "says that it is durable");
    let made = keys.generate("a", KeyType::EcP256).await.expect("generate");
    let wrapped = keys.wrap_secret(b"secret", b"for this").await.expect("wrap");
    drop(keys);
    if let Some(wrapped) = wrapped {
        wraps(&*reopen().await, &wrapped).await;
    }
    let again = reopen().await.get("a").await.expect("get").expect("the key outlives the process");
    assert_eq!(again.public_key_der(), made.public_key_der(), "and is the same");
    assert!(signs(&*again).await, "and signs");
}

/// `wrapped` holds `secret` for `for this`.
async fn wraps(keys: &dyn KeyManager, wrapped: &[u8]) {
    assert!(!wrapped.windows(6).any(|window| window == b"secret"), "a wrapped secret does not show");
    let opened = keys.unwrap_secret(wrapped, b"for this").await.expect("unwrap in a later process");
    assert_eq!(opened.as_slice(), b"secret", "and it is the same");
    assert!(keys.unwrap_secret(wrapped, b"for that").await.is_err(), "the context counts");
    for at in 0..wrapped.len() {
        let mut changed = wrapped.to_vec();
        changed[at] ^= 1;
        assert!(keys.unwrap_secret(&changed, b"for this").await.is_err(), "a change is noticed");
        assert!(keys.unwrap_secret(&wrapped[..at], b"for this").await.is_err(), "so is an end too early");
    }
    let again = keys.wrap_secret(b"secret", b"for this").await.expect("wrap again").expect("it can");
    assert_ne!(again, wrapped, "equal secrets do not show as equal");
}
