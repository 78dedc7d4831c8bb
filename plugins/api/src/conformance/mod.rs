//! One suite per trait, run on every implementation. A broken promise panics with its name.

mod upstream_authority;

pub use upstream_authority::upstream_authority;

use std::sync::Arc;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ParsedPublicKey};
use svid_core::key::{KeyType, Signer};

use crate::KeyManager;

fn signs(signer: &dyn Signer) -> bool {
    let signature = signer.sign(b"message").expect("sign");
    let key = ParsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, signer.public_key_der()).expect("a public key");
    key.verify_sig(b"message", &signature).is_ok()
}

/// Every promise of [`KeyManager`] that holds within one process.
pub async fn key_manager(keys: &dyn KeyManager) {
    assert!(keys.list().await.expect("list").is_empty(), "a fresh key manager is empty");
    assert!(keys.get("a").await.expect("get").is_none(), "an unknown id has no key");
    let first = keys.generate("a", KeyType::EcP256).await.expect("generate");
    assert!(signs(&*first), "a new key signs");
    let found = keys.get("a").await.expect("get").expect("the key just made");
    assert_eq!(found.public_key_der(), first.public_key_der(), "get finds what generate made");
    let second = keys.generate("a", KeyType::EcP256).await.expect("generate again");
    assert_ne!(second.public_key_der(), first.public_key_der(), "generate replaces");
    assert!(signs(&*first), "a replaced key still signs for its holder");
    keys.generate("b", KeyType::EcP384).await.expect("generate another");
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
    assert!(signs(&*again), "and signs");
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
