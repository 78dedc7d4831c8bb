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
         agent_version, selectors, serial = used_serial, suspected_at, adopt_from"
    };
}
/// How many those are: where a column behind them is.
pub(super) const NODE_COLUMNS: usize = 13;
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

/// The columns of [`entry_columns!`], in its order, as JSON. No text but `data`, which is JSON itself, can hold what
/// JSON would escape.
#[derive(Deserialize)]
struct Columns<'a>(i64, &'a str, &'a str, &'a str, i64, i64, i64, EntryData);

impl Columns<'_> {
    fn into_entry(self) -> Result<StoredEntry, StoreError> {
        let bad = |why: &dyn std::fmt::Display| StoreError::corrupt("entry", why);
        let Self(row, id, spiffe_id, parent_id, expires_at, revision, created_at, data) = self;
        let domains = data.federates_with.iter().map(|name| name.parse::<TrustDomain>());
        let spec = EntrySpec {
            spiffe_id: spiffe_id.parse().map_err(|e| bad(&e))?,
            parent_id: parent_id.parse().map_err(|e| bad(&e))?,
            selectors: selectors_from(&data.selectors)?,
            x509_svid_ttl: data.x509_svid_ttl,
            jwt_svid_ttl: data.jwt_svid_ttl,
            federates_with: domains.collect::<Result<_, _>>().map_err(|e| bad(&e))?,
            admin: data.admin,
            downstream: data.downstream,
            expires_at,
            dns_names: data.dns_names,
            store_svid: data.store_svid,
            hint: data.hint,
            disable_x509_svid_prefetch: data.disable_x509_svid_prefetch,
            jwt_svid_include_jti: data.jwt_svid_include_jti,
        };
        let id: EntryId = id.parse().map_err(|e| bad(&e))?;
        Ok(StoredEntry { row: row.unsigned_abs(), entry: Entry { id, spec, revision, created_at } })
    }
}

/// Reads a row of [`entry_columns!`].
pub(super) fn entry_from_row(row: &Row) -> Result<StoredEntry, StoreError> {
    let data = serde_json::from_str(row.get(7)?).map_err(|e| StoreError::corrupt("entry", e))?;
    let texts = |at| row.get::<&str>(at);
    let columns =
        Columns(row.get(0)?, texts(1)?, texts(2)?, texts(3)?, row.get(4)?, row.get(5)?, row.get(6)?, data);
    columns.into_entry()
}

/// Reads a JSON array of arrays of [`entry_columns!`]; in order of the rows.
pub(super) fn entries_from_json(text: &str) -> Result<Vec<StoredEntry>, StoreError> {
    let rows: Vec<Columns<'_>> = serde_json::from_str(text).map_err(|e| StoreError::corrupt("entries", e))?;
    let mut entries = rows.into_iter().map(Columns::into_entry).collect::<Result<Vec<_>, _>>()?;
    entries.sort_unstable_by_key(|stored| stored.row);
    Ok(entries)
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
        used: row.get(10)?,
        suspected_at: row.get(11)?,
        adopt_from: row.get(12)?,
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn pages_hold_what_json_escapes() {
        let row = |row, id, data| {
            format!(r#"[{row},"{id}","spiffe://example.org/a","spiffe://example.org/b",9,1,7,{data}]"#)
        };
        let odd = r#"{"s":["unix:uid:1","unix:path:/a\"b\\"],"h":"\u001f\"","d":["a.example.org"]}"#;
        let text = format!("[{},{}]", row(2, "y", r#"{"s":["unix:uid:1"]}"#), row(1, "x", odd));
        let entries = entries_from_json(&text).unwrap();
        assert_eq!(entries.iter().map(|stored| stored.row).collect::<Vec<_>>(), [1, 2]);
        let Entry { id, spec, revision, created_at } = &entries[0].entry;
        assert_eq!((id.as_str(), *revision, *created_at, spec.expires_at), ("x", 1, 7, 9));
        assert_eq!((spec.hint.as_str(), spec.selectors.len(), spec.dns_names.len()), ("\u{1f}\"", 2, 1));
        for broken in ["", "[", "[[1]]", &row(1, "x", "{}"), &format!("[{}]", row(1, "a/b", odd))] {
            assert!(entries_from_json(broken).is_err(), "{broken}");
        }
    }
}
