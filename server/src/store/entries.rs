//! Entries: bulk statements, so that a call with 500 of them costs a handful.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use svid_core::entry::{Entry, EntryId};
use svid_core::id::TrustDomain;
use uuid::Uuid;

use super::codec::{EntryData, entry_columns, entry_from_row, json, similar_key};
use super::db::{Sql, args};
use super::writer::{Tx, Write};
use super::{CreateEntry, Created, EntryPatch, Kind, StoreError, StoredEntry, UpdateEntry};

/// An entry on its way into the table.
pub(super) struct Prepared {
    pub(super) entry: Entry,
    similar: [u8; 32],
}

impl Prepared {
    pub(super) fn new(item: CreateEntry, now: i64) -> Result<Self, StoreError> {
        let id = match item.id {
            Some(id) => id,
            None => Uuid::new_v4().to_string().parse().map_err(StoreError::Invalid)?,
        };
        let similar = similar_key(&item.spec);
        Ok(Self { entry: Entry { id, spec: item.spec, revision: 0, created_at: now }, similar })
    }

    fn row(&self) -> impl serde::Serialize {
        let spec = &self.entry.spec;
        (
            self.entry.id.as_str(),
            spec.spiffe_id.as_str(),
            spec.parent_id.as_str(),
            hex::encode(self.similar),
            spec.expires_at,
            self.entry.created_at,
            EntryData::from(spec),
        )
    }
}

/// What became of one prepared entry.
pub(super) enum Outcome {
    New,
    Existing(Box<Entry>),
    Refused(StoreError),
}

pub(super) struct CreateEntries(pub(super) Arc<[Prepared]>);

#[async_trait]
impl Write for CreateEntries {
    type Out = Vec<Outcome>;
    async fn run(&self, tx: &mut Tx<'_>) -> Result<Vec<Outcome>, StoreError> {
        create(tx, &self.0).await
    }
}

pub(super) async fn create(tx: &mut Tx<'_>, items: &[Prepared]) -> Result<Vec<Outcome>, StoreError> {
    let wanted = items.iter().flat_map(|item| &item.entry.spec.federates_with);
    let missing = missing_bundles(tx, wanted).await?;
    // The first of two items with one ID is the one that can be inserted.
    let mut seen = HashSet::with_capacity(items.len());
    let candidate: Vec<bool> = items
        .iter()
        .map(|item| missing_for(&item.entry, &missing).is_none() && seen.insert(item.entry.id.as_str()))
        .collect();
    let rows = insert(tx, items.iter().zip(&candidate).filter(|(_, go)| **go).map(|(item, _)| item)).await?;
    link_bundles(tx, items.iter().zip(&candidate).filter(|(_, go)| **go).map(|(item, _)| &item.entry), &rows)
        .await?;
    let is_new = |at: usize| candidate[at] && rows.contains_key(items[at].entry.id.as_str());
    let left = (0..items.len()).filter(|at| !is_new(*at)).map(|at| hex::encode(items[at].similar));
    let similar = find_similar(tx, left.collect()).await?;
    let mut outcomes = Vec::with_capacity(items.len());
    for (at, item) in items.iter().enumerate() {
        outcomes.push(if is_new(at) {
            tx.log(Kind::Entry, item.entry.id.as_str());
            Outcome::New
        } else if let Some(domain) = missing_for(&item.entry, &missing) {
            Outcome::Refused(StoreError::FederatedBundleMissing(domain.clone()))
        } else if let Some(stored) = similar.get(&item.similar[..]) {
            Outcome::Existing(Box::new(stored.entry.clone()))
        } else {
            Outcome::Refused(StoreError::AlreadyExists("entry"))
        });
    }
    Ok(outcomes)
}

/// `similar` is a word of PostgreSQL's own, hence the quotes.
const INSERT: Sql = Sql::each(
    "INSERT INTO svid_entries (id, spiffe_id, parent_id, similar, expires_at, revision, created_at, data)
     SELECT value ->> 0, value ->> 1, value ->> 2, unhex(value ->> 3), value ->> 4, 0, value ->> 5, value ->> 6
     FROM json_each($1) WHERE true
     ON CONFLICT DO NOTHING RETURNING id, row",
    "INSERT INTO svid_entries (id, spiffe_id, parent_id, \"similar\", expires_at, revision, created_at, data)
     SELECT value ->> 0, value ->> 1, value ->> 2, decode(value ->> 3, 'hex'), (value ->> 4)::bigint, 0,
         (value ->> 5)::bigint, value ->> 6
     FROM jsonb_array_elements($1::jsonb)
     ON CONFLICT DO NOTHING RETURNING id, row",
);

/// Inserts what does not collide; returns the new rows' numbers by ID.
async fn insert<'a>(
    tx: &mut Tx<'_>,
    items: impl Iterator<Item = &'a Prepared>,
) -> Result<HashMap<String, i64>, StoreError> {
    let rows: Vec<_> = items.map(Prepared::row).collect();
    if rows.is_empty() {
        return Ok(HashMap::new());
    }
    let inserted = tx.conn.fetch_all(INSERT, args![&json(&rows)?]).await?;
    inserted.iter().map(|row| Ok((row.get(0)?, row.get(1)?))).collect()
}

async fn find_similar(
    tx: &mut Tx<'_>,
    keys: Vec<String>,
) -> Result<HashMap<Vec<u8>, StoredEntry>, StoreError> {
    if keys.is_empty() {
        return Ok(HashMap::new());
    }
    let sql = Sql::each(
        concat!(
            "SELECT ",
            entry_columns!(),
            ", similar FROM svid_entries WHERE similar IN (SELECT unhex(value) FROM json_each($1))"
        ),
        concat!(
            "SELECT ",
            entry_columns!(),
            ", \"similar\" FROM svid_entries WHERE \"similar\" IN (
                SELECT decode(value, 'hex') FROM jsonb_array_elements_text($1::jsonb))"
        ),
    );
    let rows = tx.conn.fetch_all(sql, args![&json(&keys)?]).await?;
    rows.iter().map(|row| Ok((row.get(8)?, entry_from_row(row)?))).collect()
}

/// Which of `wanted` have no bundle.
async fn missing_bundles<'a>(
    tx: &mut Tx<'_>,
    wanted: impl Iterator<Item = &'a TrustDomain>,
) -> Result<HashSet<TrustDomain>, StoreError> {
    let mut missing: HashSet<TrustDomain> = wanted.cloned().collect();
    if missing.is_empty() {
        return Ok(missing);
    }
    let sql = Sql::each(
        "SELECT trust_domain FROM svid_bundles WHERE trust_domain IN (SELECT value FROM json_each($1))",
        "SELECT trust_domain FROM svid_bundles WHERE trust_domain IN (
             SELECT jsonb_array_elements_text($1::jsonb))",
    );
    let found: Vec<String> = tx.conn.fetch_column(sql, args![&json(&missing)?]).await?;
    missing.retain(|domain| !found.iter().any(|name| name == domain.as_str()));
    Ok(missing)
}

fn missing_for<'m>(entry: &Entry, missing: &'m HashSet<TrustDomain>) -> Option<&'m TrustDomain> {
    entry.spec.federates_with.iter().find_map(|domain| missing.get(domain))
}

/// Notes which entries federate with which bundles, for deleting bundles.
async fn link_bundles<'a>(
    tx: &mut Tx<'_>,
    entries: impl Iterator<Item = &'a Entry>,
    rows: &HashMap<String, i64>,
) -> Result<(), StoreError> {
    let links: Vec<(&str, i64)> = entries
        .filter_map(|entry| Some((entry, *rows.get(entry.id.as_str())?)))
        .flat_map(|(entry, row)| entry.spec.federates_with.iter().map(move |domain| (domain.as_str(), row)))
        .collect();
    if links.is_empty() {
        return Ok(());
    }
    let sql = Sql::each(
        "INSERT INTO svid_entry_federates (trust_domain, entry_row)
         SELECT value ->> 0, value ->> 1 FROM json_each($1) WHERE true ON CONFLICT DO NOTHING",
        "INSERT INTO svid_entry_federates (trust_domain, entry_row)
         SELECT value ->> 0, (value ->> 1)::bigint FROM jsonb_array_elements($1::jsonb) ON CONFLICT DO NOTHING",
    );
    tx.conn.execute(sql, args![&json(&links)?]).await?;
    Ok(())
}

pub(super) struct UpdateEntries {
    pub(super) items: Vec<UpdateEntry>,
    pub(super) trust_domain: TrustDomain,
}

/// An entry whose row is to be rewritten.
struct Changed {
    row: u64,
    entry: Entry,
    similar: [u8; 32],
}

#[async_trait]
impl Write for UpdateEntries {
    type Out = Vec<Result<Entry, StoreError>>;
    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Out, StoreError> {
        let ids: Vec<&str> = self.items.iter().map(|item| item.id.as_str()).collect();
        let mut stored = by_id(tx, &ids).await?;
        let patched: Vec<Option<Entry>> = self.items.iter().map(|item| patched(&stored, item)).collect();
        let missing =
            missing_bundles(tx, patched.iter().flatten().flat_map(|entry| &entry.spec.federates_with))
                .await?;
        let keys = patched.iter().flatten().map(|entry| hex::encode(similar_key(&entry.spec)));
        let mut owners: HashMap<Vec<u8>, String> = find_similar(tx, keys.collect())
            .await?
            .into_iter()
            .map(|(key, stored)| (key, stored.entry.id.to_string()))
            .collect();
        let mut changed: HashMap<String, Changed> = HashMap::new();
        let results = self.items.iter().map(|item| {
            let next = self.next(&stored, item, &missing, &owners)?;
            // A second item for the same entry begins where this one ends.
            stored.insert(item.id.to_string(), StoredEntry { row: next.row, entry: next.entry.clone() });
            owners.insert(next.similar.to_vec(), item.id.to_string());
            let entry = next.entry.clone();
            changed.insert(item.id.to_string(), next);
            Ok(entry)
        });
        let results = results.collect();
        rewrite(tx, &changed).await?;
        for id in changed.into_keys() {
            tx.log(Kind::Entry, id);
        }
        Ok(results)
    }
}

fn patched(stored: &HashMap<String, StoredEntry>, item: &UpdateEntry) -> Option<Entry> {
    stored.get(item.id.as_str()).map(|stored| patch(&stored.entry, &item.patch))
}

fn patch(entry: &Entry, patch: &EntryPatch) -> Entry {
    let mut entry = entry.clone();
    patch.apply(&mut entry.spec);
    entry.revision += 1;
    entry
}

impl UpdateEntries {
    fn next(
        &self,
        stored: &HashMap<String, StoredEntry>,
        item: &UpdateEntry,
        missing: &HashSet<TrustDomain>,
        owners: &HashMap<Vec<u8>, String>,
    ) -> Result<Changed, StoreError> {
        let current = stored.get(item.id.as_str()).ok_or(StoreError::NotFound("entry"))?;
        let entry = patch(&current.entry, &item.patch);
        entry.spec.check(&self.trust_domain)?;
        if let Some(domain) = missing_for(&entry, missing) {
            return Err(StoreError::FederatedBundleMissing(domain.clone()));
        }
        let similar = similar_key(&entry.spec);
        if owners.get(&similar[..]).is_some_and(|owner| owner != item.id.as_str()) {
            return Err(StoreError::AlreadyExists("similar entry"));
        }
        Ok(Changed { row: current.row, entry, similar })
    }
}

async fn rewrite(tx: &mut Tx<'_>, changed: &HashMap<String, Changed>) -> Result<(), StoreError> {
    if changed.is_empty() {
        return Ok(());
    }
    let rows: Vec<_> = changed
        .values()
        .map(|change| {
            let spec = &change.entry.spec;
            let keys =
                (change.row, spec.spiffe_id.as_str(), spec.parent_id.as_str(), hex::encode(change.similar));
            (keys, spec.expires_at, change.entry.revision, EntryData::from(spec))
        })
        .collect();
    let sql = Sql::each(
        "UPDATE svid_entries SET spiffe_id = j.value ->> '$[0][1]', parent_id = j.value ->> '$[0][2]',
             similar = unhex(j.value ->> '$[0][3]'), expires_at = j.value ->> 1, revision = j.value ->> 2,
             data = j.value ->> 3
         FROM json_each($1) AS j WHERE svid_entries.row = j.value ->> '$[0][0]'",
        "UPDATE svid_entries SET spiffe_id = j.value #>> '{0,1}', parent_id = j.value #>> '{0,2}',
             \"similar\" = decode(j.value #>> '{0,3}', 'hex'), expires_at = (j.value ->> 1)::bigint,
             revision = (j.value ->> 2)::bigint, data = j.value ->> 3
         FROM jsonb_array_elements($1::jsonb) AS j WHERE svid_entries.row = (j.value #>> '{0,0}')::bigint",
    );
    tx.conn.execute(sql, args![&json(&rows)?]).await?;
    let numbers: HashMap<String, i64> =
        changed.iter().map(|(id, change)| (id.clone(), change.row.cast_signed())).collect();
    let sql = Sql::each(
        "DELETE FROM svid_entry_federates WHERE entry_row IN (SELECT value FROM json_each($1))",
        "DELETE FROM svid_entry_federates WHERE entry_row IN (
             SELECT jsonb_array_elements_text($1::jsonb)::bigint)",
    );
    tx.conn.execute(sql, args![&json(&numbers.values().collect::<Vec<_>>())?]).await?;
    link_bundles(tx, changed.values().map(|change| &change.entry), &numbers).await
}

async fn by_id(tx: &mut Tx<'_>, ids: &[&str]) -> Result<HashMap<String, StoredEntry>, StoreError> {
    let sql = Sql::each(
        concat!(
            "SELECT ",
            entry_columns!(),
            " FROM svid_entries WHERE id IN (SELECT value FROM json_each($1))"
        ),
        concat!(
            "SELECT ",
            entry_columns!(),
            " FROM svid_entries WHERE id IN (SELECT jsonb_array_elements_text($1::jsonb))"
        ),
    );
    let rows = tx.conn.fetch_all(sql, args![&json(ids)?]).await?;
    let stored = rows.iter().map(entry_from_row);
    stored.map(|stored| stored.map(|stored| (stored.entry.id.to_string(), stored))).collect()
}

pub(super) struct DeleteEntries(pub(super) Vec<EntryId>);

#[async_trait]
impl Write for DeleteEntries {
    type Out = Vec<Result<(), StoreError>>;
    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Out, StoreError> {
        let mut gone = delete(tx, &json(&self.0)?).await?;
        // Of two items with one ID the first deletes it.
        let results = self.0.iter().map(|id| match gone.remove(id.as_str()) {
            true => Ok(()),
            false => Err(StoreError::NotFound("entry")),
        });
        Ok(results.collect())
    }
}

/// Deletes the entries whose IDs stand in a JSON array; returns those that were there.
pub(super) async fn delete(tx: &mut Tx<'_>, ids: &str) -> Result<HashSet<String>, StoreError> {
    let sql = Sql::each(
        "DELETE FROM svid_entries WHERE id IN (SELECT value FROM json_each($1)) RETURNING id",
        "DELETE FROM svid_entries WHERE id IN (SELECT jsonb_array_elements_text($1::jsonb)) RETURNING id",
    );
    let gone: Vec<String> = tx.conn.fetch_column(sql, args![ids]).await?;
    for id in &gone {
        tx.log(Kind::Entry, id.as_str());
    }
    Ok(gone.into_iter().collect())
}

/// Deletes at most 500 entries that ended before a moment.
pub(super) struct PruneEntries {
    pub(super) expired_before: i64,
}

#[async_trait]
impl Write for PruneEntries {
    type Out = u64;
    async fn run(&self, tx: &mut Tx<'_>) -> Result<u64, StoreError> {
        let sql = "SELECT id FROM svid_entries WHERE expires_at > 0 AND expires_at < $1 LIMIT 500";
        let ids: Vec<String> = tx.conn.fetch_column(sql, args![self.expired_before]).await?;
        Ok(delete(tx, &json(&ids)?).await?.len() as u64)
    }
}

impl Outcome {
    /// The public answer for `item`.
    pub(super) fn into_result(self, item: &Prepared) -> Result<Created, StoreError> {
        match self {
            Self::New => Ok(Created::New(item.entry.clone())),
            Self::Existing(entry) => Ok(Created::Existing(*entry)),
            Self::Refused(error) => Err(error),
        }
    }
}
