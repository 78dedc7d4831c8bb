//! How entries and selectors are written into a column: compact JSON with short names and without defaults.

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};
use svid_core::entry::{Entry, EntryId, EntrySpec};
use svid_core::id::{SpiffeId, TrustDomain};
use svid_core::selector::SelectorSet;

use super::db::Row;
use super::{Node, Serial, StoreError, StoredEntry};

/// The columns [`entry_from_row`] reads, in its order.
macro_rules! entry_columns {
    () => {
        "row, id, spiffe_id, parent_id, expires_at, revision, created_at, data"
    };
}
/// The columns [`node_from_row`] reads, in its order.
macro_rules! node_columns {
    () => {
        "row, spiffe_id, attestation_type, serial, expires_at, new_serial, new_expires_at, can_reattest, \
         agent_version, selectors"
    };
}
pub(super) use {entry_columns, node_columns};

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What of an entry has no column of its own. The names are part of the schema.
#[derive(Serialize, Deserialize)]
pub(super) struct EntryData {
    #[serde(rename = "s")]
    selectors: Vec<String>,
    #[serde(rename = "x", default, skip_serializing_if = "is_default")]
    x509_svid_ttl: i32,
    #[serde(rename = "j", default, skip_serializing_if = "is_default")]
    jwt_svid_ttl: i32,
    #[serde(rename = "f", default, skip_serializing_if = "is_default")]
    federates_with: Vec<String>,
    #[serde(rename = "d", default, skip_serializing_if = "is_default")]
    dns_names: Vec<String>,
    #[serde(rename = "h", default, skip_serializing_if = "is_default")]
    hint: String,
    #[serde(rename = "a", default, skip_serializing_if = "is_default")]
    admin: bool,
    #[serde(rename = "w", default, skip_serializing_if = "is_default")]
    downstream: bool,
    #[serde(rename = "v", default, skip_serializing_if = "is_default")]
    store_svid: bool,
    #[serde(rename = "p", default, skip_serializing_if = "is_default")]
    disable_x509_svid_prefetch: bool,
    #[serde(rename = "t", default, skip_serializing_if = "is_default")]
    jwt_svid_include_jti: bool,
}

impl From<&EntrySpec> for EntryData {
    fn from(spec: &EntrySpec) -> Self {
        Self {
            selectors: spec.selectors.iter().map(ToString::to_string).collect(),
            x509_svid_ttl: spec.x509_svid_ttl,
            jwt_svid_ttl: spec.jwt_svid_ttl,
            federates_with: spec.federates_with.iter().map(ToString::to_string).collect(),
            dns_names: spec.dns_names.clone(),
            hint: spec.hint.clone(),
            admin: spec.admin,
            downstream: spec.downstream,
            store_svid: spec.store_svid,
            disable_x509_svid_prefetch: spec.disable_x509_svid_prefetch,
            jwt_svid_include_jti: spec.jwt_svid_include_jti,
        }
    }
}

/// Reads a row of [`entry_columns!`].
pub(super) fn entry_from_row(row: &Row) -> Result<StoredEntry, StoreError> {
    let bad = |why: &dyn std::fmt::Display| StoreError::corrupt("entry", why);
    let data: EntryData = serde_json::from_str(row.get::<&str>(7)?).map_err(|e| bad(&e))?;
    let domains = data.federates_with.iter().map(|name| name.parse::<TrustDomain>());
    let spec = EntrySpec {
        spiffe_id: row.get::<&str>(2)?.parse().map_err(|e| bad(&e))?,
        parent_id: row.get::<&str>(3)?.parse().map_err(|e| bad(&e))?,
        selectors: selectors_from(&data.selectors)?,
        x509_svid_ttl: data.x509_svid_ttl,
        jwt_svid_ttl: data.jwt_svid_ttl,
        federates_with: domains.collect::<Result<_, _>>().map_err(|e| bad(&e))?,
        admin: data.admin,
        downstream: data.downstream,
        expires_at: row.get(4)?,
        dns_names: data.dns_names,
        store_svid: data.store_svid,
        hint: data.hint,
        disable_x509_svid_prefetch: data.disable_x509_svid_prefetch,
        jwt_svid_include_jti: data.jwt_svid_include_jti,
    };
    let id: EntryId = row.get::<&str>(1)?.parse().map_err(|e| bad(&e))?;
    let entry = Entry { id, spec, revision: row.get(5)?, created_at: row.get(6)? };
    Ok(StoredEntry { row: row.get::<i64>(0)?.unsigned_abs(), entry })
}

/// Reads a row of [`node_columns!`].
pub(super) fn node_from_row(row: &Row) -> Result<Node, StoreError> {
    let id: SpiffeId = row.get::<&str>(1)?.parse().map_err(|e| StoreError::corrupt("node", e))?;
    let selectors: Vec<String> =
        serde_json::from_str(row.get::<&str>(9)?).map_err(|e| StoreError::corrupt("node", e))?;
    let current: String = row.get(3)?;
    let next: String = row.get(5)?;
    let next_ends: i64 = row.get(6)?;
    let serial = match current.is_empty() {
        true => Serial::Banned,
        false => Serial::Active { current, next: (!next.is_empty()).then_some((next, next_ends)) },
    };
    Ok(Node {
        row: row.get::<i64>(0)?.unsigned_abs(),
        id,
        attestation_type: row.get(2)?,
        serial,
        expires_at: row.get(4)?,
        can_reattest: row.get(7)?,
        agent_version: row.get(8)?,
        selectors: selectors_from(&selectors)?,
    })
}

/// A node's selectors as the column holds them.
pub(super) fn selectors_json(selectors: &SelectorSet) -> Result<String, StoreError> {
    json(&selectors.iter().map(ToString::to_string).collect::<Vec<_>>())
}

fn selectors_from(texts: &[String]) -> Result<SelectorSet, StoreError> {
    let parsed = texts.iter().map(|text| text.parse().map_err(|e| StoreError::corrupt("selector", e)));
    parsed.collect::<Result<Vec<_>, _>>().map(|all| all.into_iter().collect())
}

/// JSON for a parameter that holds many rows.
pub(super) fn json<T: Serialize + ?Sized>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|e| StoreError::corrupt("parameter", e))
}

/// What two similar entries share: SHA-256 over SPIFFE ID, parent and selectors, each ended by a byte that no text
/// of the first two holds and counted by the length of the third.
pub(super) fn similar_key(spec: &EntrySpec) -> [u8; 32] {
    let mut hash = digest::Context::new(&digest::SHA256);
    for text in [spec.spiffe_id.as_str(), spec.parent_id.as_str()] {
        hash.update(text.as_bytes());
        hash.update(&[0]);
    }
    for selector in &spec.selectors {
        for part in [selector.kind(), selector.value()] {
            hash.update(&(part.len() as u64).to_be_bytes());
            hash.update(part.as_bytes());
        }
    }
    let mut key = [0; 32];
    key.copy_from_slice(hash.finish().as_ref());
    key
}
