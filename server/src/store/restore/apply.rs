//! Carrying a plan out, inside the transaction in which it was made.

use std::collections::HashMap;

use aws_lc_rs::digest::{SHA256, digest};
use svid_core::bundle::Bundle;
use svid_core::clock::unix_seconds;
use svid_core::entry::Entry;

use super::RestoreError;
use super::dump::Dump;
use super::plan::Plan;
use crate::store::backup::NodeRow;
use crate::store::codec::{EntryData, json, selectors_json, similar_key};
use crate::store::db::{Conn, Sql, args};
use crate::store::{Serial, StoreError, federation};

/// Rows in one statement.
const BATCH: usize = 500;
/// Kinds of authorities in their table.
const X509: i64 = 1;
const JWT: i64 = 2;

/// Writes everything. The caller commits.
pub(super) async fn apply(conn: &mut Conn, plan: &Plan, dump: &Dump, now: i64) -> Result<(), RestoreError> {
    for bundle in &plan.trust.write {
        write_bundle(conn, bundle).await?;
    }
    for relationship in &plan.relationships {
        federation::insert(conn, relationship).await?;
    }
    for ids in plan.entries.delete.chunks(BATCH) {
        conn.execute(DELETE_ENTRIES, args![&json(ids)?]).await?;
    }
    write_entries(conn, plan, dump, now).await?;
    for id in &plan.agents.ban {
        let sql =
            "UPDATE svid_nodes SET serial = '', new_serial = '', new_expires_at = 0 WHERE spiffe_id = $1";
        conn.execute(sql, args![id]).await?;
    }
    for row in plan.agents.add.iter().filter_map(|id| dump.nodes.get(id)) {
        write_node(conn, row, plan.adopt_from).await?;
    }
    for id in &plan.journals {
        let Some(journal) = dump.journals.get(id) else { continue };
        let sql = "INSERT INTO svid_journals (server_id, data) VALUES ($1, $2)";
        conn.execute(sql, args![id, journal]).await?;
    }
    begin_history(conn, plan.seq).await?;
    Ok(())
}

/// Nobody can follow the old log into the new state: everybody takes a snapshot.
async fn begin_history(conn: &mut Conn, seq: u64) -> Result<(), StoreError> {
    conn.execute("DELETE FROM svid_log", &[]).await?;
    let sql = "UPDATE svid_log_counter SET epoch = $1, seq = $2, pruned_to = $2";
    conn.execute(sql, args![uuid::Uuid::new_v4().as_bytes(), seq.cast_signed()]).await?;
    Ok(())
}

async fn write_bundle(conn: &mut Conn, bundle: &Bundle) -> Result<(), StoreError> {
    let name = bundle.trust_domain.as_str();
    let sql = "INSERT INTO svid_bundles (trust_domain, refresh_hint, sequence_number) VALUES ($1, $2, $3)
         ON CONFLICT (trust_domain) DO UPDATE SET refresh_hint = $2, sequence_number = $3";
    let hint = i64::try_from(bundle.refresh_hint.as_secs()).unwrap_or(i64::MAX);
    conn.execute(sql, args![name, hint, bundle.sequence_number.cast_signed()]).await?;
    let sql = "INSERT INTO svid_authorities (trust_domain, kind, key_id, data, expires_at, tainted)
         VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (trust_domain, kind, key_id) DO UPDATE SET tainted = $6";
    for authority in &bundle.x509_authorities {
        let key_id = hex::encode(digest(&SHA256, authority.der()));
        let ends = unix_seconds(authority.parsed().life().not_after);
        let args = args![name, X509, &key_id, authority.der(), ends, authority.tainted];
        conn.execute(sql, args).await?;
    }
    for key in &bundle.jwt_authorities {
        let args = args![name, JWT, &key.key_id, &key.public_key[..], key.expires_at, key.tainted];
        conn.execute(sql, args).await?;
    }
    Ok(())
}

const DELETE_ENTRIES: Sql = Sql::each(
    "DELETE FROM svid_entries WHERE id IN (SELECT value FROM json_each($1))",
    "DELETE FROM svid_entries WHERE id IN (SELECT jsonb_array_elements_text($1::jsonb))",
);

/// An entry whose like is there under another ID (one that stays) is left out.
const INSERT_ENTRIES: Sql = Sql::each(
    "INSERT INTO svid_entries (id, spiffe_id, parent_id, similar, expires_at, revision, created_at, data)
     SELECT value ->> 0, value ->> 1, value ->> 2, unhex(value ->> 3), value ->> 4, value ->> 5, value ->> 6, value ->> 7
     FROM json_each($1) WHERE true
     ON CONFLICT DO NOTHING RETURNING id, row",
    "INSERT INTO svid_entries (id, spiffe_id, parent_id, \"similar\", expires_at, revision, created_at, data)
     SELECT value ->> 0, value ->> 1, value ->> 2, decode(value ->> 3, 'hex'), (value ->> 4)::bigint,
         (value ->> 5)::bigint, (value ->> 6)::bigint, value ->> 7
     FROM jsonb_array_elements($1::jsonb)
     ON CONFLICT DO NOTHING RETURNING id, row",
);

const LINK_BUNDLES: Sql = Sql::each(
    "INSERT INTO svid_entry_federates (trust_domain, entry_row)
     SELECT value ->> 0, value ->> 1 FROM json_each($1) WHERE true ON CONFLICT DO NOTHING",
    "INSERT INTO svid_entry_federates (trust_domain, entry_row)
     SELECT value ->> 0, (value ->> 1)::bigint FROM jsonb_array_elements($1::jsonb) ON CONFLICT DO NOTHING",
);

async fn write_entries(conn: &mut Conn, plan: &Plan, dump: &Dump, now: i64) -> Result<(), RestoreError> {
    let mut batches = dump.batches(BATCH)?;
    loop {
        let batch = batches.next_batch()?;
        if batch.is_empty() {
            return Ok(());
        }
        let wanted = batch.iter().filter_map(|entry| Some((entry, plan.entries.revision(entry, now)?)));
        let rows = wanted.clone().map(|(entry, revision)| entry_row(entry, revision)).collect::<Vec<_>>();
        if rows.is_empty() {
            continue;
        }
        let inserted = conn.fetch_all(INSERT_ENTRIES, args![&json(&rows)?]).await?;
        let numbers: Result<HashMap<String, i64>, StoreError> =
            inserted.iter().map(|row| Ok((row.get(0)?, row.get(1)?))).collect();
        let numbers = numbers?;
        let links: Vec<(&str, i64)> = wanted
            .filter_map(|(entry, _)| Some((entry, *numbers.get(entry.id.as_str())?)))
            .flat_map(|(entry, row)| entry.spec.federates_with.iter().map(move |name| (name.as_str(), row)))
            .collect();
        if !links.is_empty() {
            conn.execute(LINK_BUNDLES, args![&json(&links)?]).await?;
        }
    }
}

fn entry_row(entry: &Entry, revision: i64) -> impl serde::Serialize {
    let spec = &entry.spec;
    (
        entry.id.as_str(),
        spec.spiffe_id.as_str(),
        spec.parent_id.as_str(),
        hex::encode(similar_key(spec)),
        spec.expires_at,
        revision,
        entry.created_at,
        EntryData::from(spec),
    )
}

/// An agent may have renewed after the backup: its node takes one certificate that is younger than `adopt_from`.
async fn write_node(conn: &mut Conn, row: &NodeRow, adopt_from: i64) -> Result<(), StoreError> {
    let NodeRow { node, alias_entry } = row;
    let (serial, next, adopt_from) = match &node.serial {
        Serial::Banned => ("", None, 0),
        Serial::Active { current, next } => (current.as_str(), next.as_ref(), adopt_from),
    };
    let selectors = selectors_json(&node.selectors)?;
    let (new_serial, new_ends) = next.map_or(("", 0), |(serial, ends)| (serial.as_str(), *ends));
    let sql =
        "INSERT INTO svid_nodes (spiffe_id, attestation_type, serial, expires_at, new_serial, new_expires_at,
             can_reattest, agent_version, selectors, alias_entry, adopt_from)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)";
    let args = args![
        node.id.as_str(),
        &node.attestation_type,
        serial,
        node.expires_at,
        new_serial,
        new_ends,
        node.can_reattest,
        &node.agent_version,
        &selectors,
        alias_entry.as_deref(),
        adopt_from,
    ];
    conn.execute(sql, args).await.map(drop)
}
