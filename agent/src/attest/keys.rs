//! The agent's own keys: two slots, used in turn, so that a failed attempt never loses the key in use.

use std::sync::Arc;

use svid_core::key::{KeyType, Signer};
use svid_core::x509::X509Svid;
use svid_plugin_api::{KeyManager, PluginError};

const SLOT_A: &str = "agent-svid-A";
const SLOT_B: &str = "agent-svid-B";

/// What a look for the key of an SVID found.
pub(super) enum Found {
    /// The key is there.
    Key(Arc<dyn Signer>),
    /// There are keys, but none is the SVID's.
    OtherKeys,
    /// There is no key.
    NoKeys,
}

/// Looks for the key of `svid`; without an SVID, whether there are keys at all.
pub(super) async fn find(keys: &dyn KeyManager, svid: Option<&X509Svid>) -> Result<Found, PluginError> {
    let mut any = false;
    for slot in [SLOT_A, SLOT_B] {
        let Some(signer) = keys.get(slot).await? else { continue };
        any = true;
        if svid.is_some_and(|svid| svid.leaf().public_key_der() == signer.public_key_der()) {
            return Ok(Found::Key(signer));
        }
    }
    Ok(if any { Found::OtherKeys } else { Found::NoKeys })
}

/// Makes a key in the slot that `current` is not in.
///
/// # Errors
/// The key manager's.
pub async fn next_key(
    keys: &dyn KeyManager,
    current: Option<&dyn Signer>,
) -> Result<Arc<dyn Signer>, PluginError> {
    let in_a = keys.get(SLOT_A).await?;
    let a_is_current = match (current, in_a) {
        (Some(current), Some(a)) => a.public_key_der() == current.public_key_der(),
        _ => false,
    };
    keys.generate(if a_is_current { SLOT_B } else { SLOT_A }, KeyType::EcP256).await
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use svid_keymanager::MemoryKeyManager;

    #[tokio::test]
    async fn slots_take_turns() {
        let keys = MemoryKeyManager::default();
        let first = next_key(&keys, None).await.unwrap();
        assert!(keys.get(SLOT_A).await.unwrap().is_some() && keys.get(SLOT_B).await.unwrap().is_none());
        let second = next_key(&keys, Some(&*first)).await.unwrap();
        assert_eq!(keys.get(SLOT_B).await.unwrap().unwrap().public_key_der(), second.public_key_der());
        next_key(&keys, Some(&*second)).await.unwrap();
        assert_ne!(keys.get(SLOT_A).await.unwrap().unwrap().public_key_der(), first.public_key_der());
        assert!(matches!(find(&keys, None).await.unwrap(), Found::OtherKeys));
    }
}
