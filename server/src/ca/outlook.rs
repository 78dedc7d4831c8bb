//! What a server would find of its authority at its next start, for those who restore a backup.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use svid_core::bundle::Bundle;
use svid_core::clock::unix_seconds;
use svid_core::key::Signer;

use super::journal::Journal;
use super::load::Loader;
use super::slots::{Held, Slots};

/// An authority that a server could go on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usable {
    /// `X.509` or `JWT`.
    pub kind: &'static str,
    /// Subject key ID in hex, or key ID.
    pub authority_id: String,
    /// Unix seconds.
    pub not_after: i64,
}

/// Authorities of `journal` whose keys are among `keys`, and that `bundle` still holds. Where a kind has none, the
/// server makes a new one at its next start. A journal that cannot be read has none.
pub fn usable_authorities(
    keys: &BTreeMap<String, Arc<dyn Signer>>,
    journal: &[u8],
    bundle: Option<&Bundle>,
    has_upstream: bool,
    now: SystemTime,
) -> Vec<Usable> {
    let Ok(journal) = Journal::decode(journal) else { return Vec::new() };
    let loader = Loader { keys, bundle, has_upstream, jwt_issuer: None, now };
    let mut found = held("X.509", &loader.x509(&journal));
    found.extend(held("JWT", &loader.jwt(&journal)));
    found
}

fn held<K>(kind: &'static str, slots: &Slots<K>) -> Vec<Usable> {
    let usable = |held: &Held<K>| Usable {
        kind,
        authority_id: held.info.authority_id.clone(),
        not_after: unix_seconds(held.info.not_after),
    };
    slots.iter().filter(|held| held.key.is_some()).map(usable).collect()
}
