//! Reading: the whole state for a start, in one snapshot of the database; then the change log.

use futures_util::TryStreamExt;
use svid_core::bundle::Bundle;
use tokio::task::JoinHandle;

use super::codec::{entries_from_json, entry_columns, entry_from_row, json, node_columns, node_from_row};
use super::db::{Conn, Row, Sql, args};
use super::{
    Changes, Cursor, Kind, Line, Node, Position, Reload, Rows, StoreError, StoredEntry, StoredRelationship,
    bundles, federation,
};

/// Most lines that one read returns: fewer are the log to its end.
pub(crate) const MAX_LINES: usize = 4096;

/// Takes the whole state row by row, so that it never stands in memory twice.
pub trait LoadSink: Send {
    /// How many entries and nodes will come; called first.
    fn expect(&mut self, entries: usize, nodes: usize);
    /// A bundle.
    fn bundle(&mut self, bundle: Bundle);
    /// A federation relationship.
    fn relationship(&mut self, relationship: StoredRelationship);
    /// A node.
    fn node(&mut self, node: Node);
    /// An entry, in order of creation.
    fn entry(&mut self, entry: StoredEntry);
}

struct Head {
    position: Position,
    pruned_to: u64,
}

async fn head(conn: &mut Conn) -> Result<Head, StoreError> {
    let row = conn.fetch_one("SELECT epoch, seq, pruned_to FROM svid_log_counter", &[]).await?;
    head_from_row(&row)
}

fn head_from_row(row: &Row) -> Result<Head, StoreError> {
    let epoch: &[u8] = row.get(0)?;
    let epoch =
        epoch.try_into().map_err(|_| StoreError::corrupt("change log counter", "epoch is not 16 bytes"))?;
    let seq = row.get::<i64>(1)?.unsigned_abs();
    Ok(Head { position: Position { epoch, seq }, pruned_to: row.get::<i64>(2)?.unsigned_abs() })
}

pub(super) async fn position(conn: &mut Conn) -> Result<Position, StoreError> {
    head(conn).await.map(|head| head.position)
}

pub(super) async fn tag(conn: &mut Conn, seq: u64) -> Result<Option<i64>, StoreError> {
    let sql = "SELECT tag FROM svid_log WHERE seq = $1";
    let row = conn.fetch_optional(sql, args![seq.cast_signed()]).await?;
    row.map(|row| row.get(0)).transpose()
}

/// Reads everything. `conn` is inside a transaction.
pub(super) async fn load(conn: &mut Conn, sink: &mut dyn LoadSink) -> Result<Cursor, StoreError> {
    let position = head(conn).await?.position;
    let tag = tag(conn, position.seq).await?;
    let sql = "SELECT (SELECT count(*) FROM svid_entries), (SELECT count(*) FROM svid_nodes)";
    let counts = conn.fetch_one(sql, &[]).await?;
    sink.expect(count(&counts, 0)?, count(&counts, 1)?);
    let names: Vec<String> = conn.fetch_column("SELECT trust_domain FROM svid_bundles", &[]).await?;
    for name in names {
        if let Some(bundle) = bundles::read(conn, &name).await? {
            sink.bundle(bundle);
        }
    }
    federation::read_all(conn).await?.into_iter().for_each(|one| sink.relationship(one));
    let mut nodes = conn.stream(concat!("SELECT ", node_columns!(), " FROM svid_nodes ORDER BY row"));
    while let Some(row) = nodes.try_next().await? {
        sink.node(node_from_row(&row)?);
    }
    drop(nodes);
    match conn {
        Conn::Sqlite(_) => load_pages(conn, sink).await?,
        Conn::Postgres(_) => load_rows(conn, sink).await?,
    }
    Ok(Cursor { position, tag })
}

/// A connection over a socket reads ahead by itself.
async fn load_rows(conn: &mut Conn, sink: &mut dyn LoadSink) -> Result<(), StoreError> {
    let mut entries = conn.stream(concat!("SELECT ", entry_columns!(), " FROM svid_entries ORDER BY row"));
    while let Some(row) = entries.try_next().await? {
        sink.entry(entry_from_row(&row)?);
    }
    Ok(())
}

/// A page of entries as one text. SQLite's driver hands rows from thread to thread one by one, which for a million of
/// them costs more than all else.
const PAGE: &str = "SELECT max(page.row), '[' || string_agg(
         '[' || page.row || ',\"' || id || '\",\"' || spiffe_id || '\",\"' || parent_id || '\",' || expires_at
             || ',' || revision || ',' || created_at || ',' || data || ']', ',') || ']'
     FROM (SELECT * FROM svid_entries WHERE row > $1 ORDER BY row LIMIT 2000) AS page";

/// Reads one page while the one before is decoded.
async fn load_pages(conn: &mut Conn, sink: &mut dyn LoadSink) -> Result<(), StoreError> {
    let mut after = 0i64;
    let mut decoding: Option<JoinHandle<Result<Vec<StoredEntry>, StoreError>>> = None;
    loop {
        let page = conn.fetch_one(PAGE, args![after]).await?;
        let text: Option<String> = page.get(1)?;
        let next = text.map(|text| tokio::task::spawn_blocking(move || entries_from_json(&text)));
        if let Some(decoding) = std::mem::replace(&mut decoding, next) {
            let entries = decoding.await.map_err(|_| StoreError::Closed)??;
            entries.into_iter().for_each(|entry| sink.entry(entry));
        }
        if decoding.is_none() {
            return Ok(());
        }
        after = page.get(0)?;
    }
}

fn count(row: &Row, at: usize) -> Result<usize, StoreError> {
    usize::try_from(row.get::<i64>(at)?).map_err(|e| StoreError::corrupt("count", e))
}

/// The counter, the reader's line and what follows it, of one moment.
const LINES: Sql = Sql::each(
    "SELECT epoch, seq, pruned_to, (SELECT tag FROM svid_log WHERE seq = $1),
         (SELECT json_group_array(json_array(seq, tag, kind, key) ORDER BY seq)
          FROM (SELECT * FROM svid_log WHERE seq > $1 ORDER BY seq LIMIT $2))
     FROM svid_log_counter",
    "SELECT epoch, seq, pruned_to, (SELECT tag FROM svid_log WHERE seq = $1),
         (SELECT coalesce(json_agg(json_build_array(seq, tag, kind, key) ORDER BY seq)::text, '[]')
          FROM (SELECT * FROM svid_log WHERE seq > $1 ORDER BY seq LIMIT $2) AS line)
     FROM svid_log_counter",
);

/// Reads what follows `cursor`. The lines are of one moment; the rows behind them are read after it and may be newer.
/// Whatever made them newer has lines of its own, and to apply a row again changes nothing.
pub(super) async fn changes_after(conn: &mut Conn, cursor: Cursor) -> Result<Changes, StoreError> {
    let seq = cursor.position.seq;
    let row = conn.fetch_one(LINES, args![seq.cast_signed(), MAX_LINES as i64]).await?;
    let head = head_from_row(&row)?;
    if head.position.epoch != cursor.position.epoch {
        return Ok(Changes::Reload(Reload::OtherEpoch));
    }
    if head.position.seq < seq {
        return Ok(Changes::Reload(Reload::Rewritten));
    }
    if seq < head.pruned_to {
        return Ok(Changes::Reload(Reload::Pruned));
    }
    if seq > head.pruned_to && row.get::<Option<i64>>(3)? != cursor.tag {
        return Ok(Changes::Reload(Reload::Rewritten));
    }
    if head.position.seq == seq {
        return Ok(Changes::Lines { cursor, lines: Vec::new(), rows: Rows::default() });
    }
    let lines = lines_from_json(row.get(4)?)?;
    let last =
        lines.last().ok_or_else(|| StoreError::corrupt("change log", "lines before the head are missing"))?;
    let position = Position { epoch: head.position.epoch, seq: last.seq };
    let cursor = Cursor { position, tag: Some(last.tag) };
    let rows = rows_behind(conn, &lines).await?;
    Ok(Changes::Lines { cursor, lines, rows })
}

fn lines_from_json(text: &str) -> Result<Vec<Line>, StoreError> {
    let lines: Vec<(u64, i64, i64, String)> =
        serde_json::from_str(text).map_err(|e| StoreError::corrupt("change log", e))?;
    let line = |(seq, tag, kind, key)| Ok(Line { seq, tag, kind: Kind::from_code(kind)?, key });
    lines.into_iter().map(line).collect()
}

async fn rows_behind(conn: &mut Conn, lines: &[Line]) -> Result<Rows, StoreError> {
    let keys = |kind: Kind| {
        let mut keys: Vec<&str> =
            lines.iter().filter(|line| line.kind == kind).map(|line| line.key.as_str()).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    };
    let mut rows = Rows::default();
    for name in keys(Kind::Bundle) {
        rows.bundles.push((name.to_owned(), bundles::read(conn, name).await?));
    }
    for name in keys(Kind::Federation) {
        rows.relationships.push((name.to_owned(), federation::read(conn, name).await?));
    }
    let ids = keys(Kind::Entry);
    if !ids.is_empty() {
        let sql = Sql::each(
            concat!(
                "SELECT ",
                entry_columns!(),
                " FROM svid_entries WHERE id IN (SELECT value FROM json_each($1)) ORDER BY id"
            ),
            concat!(
                "SELECT ",
                entry_columns!(),
                " FROM svid_entries WHERE id IN (SELECT jsonb_array_elements_text($1::jsonb)) ORDER BY id"
            ),
        );
        let found = conn.fetch_all(sql, args![&json(&ids)?]).await?;
        let found = found.iter().map(entry_from_row).collect::<Result<Vec<_>, _>>()?;
        rows.entries = pair(&ids, found, |stored| stored.entry.id.as_str());
    }
    // Nodes come last: an entry never shows beside an older state of the node that may have it, such as before a ban.
    let ids = keys(Kind::Node);
    if !ids.is_empty() {
        let sql = Sql::each(
            concat!(
                "SELECT ",
                node_columns!(),
                " FROM svid_nodes WHERE spiffe_id IN (SELECT value FROM json_each($1)) ORDER BY spiffe_id"
            ),
            concat!(
                "SELECT ",
                node_columns!(),
                " FROM svid_nodes WHERE spiffe_id IN (SELECT jsonb_array_elements_text($1::jsonb))
                 ORDER BY spiffe_id"
            ),
        );
        let found = conn.fetch_all(sql, args![&json(&ids)?]).await?;
        let found = found.iter().map(node_from_row).collect::<Result<Vec<_>, _>>()?;
        rows.nodes = pair(&ids, found, |node| node.id.as_str());
    }
    Ok(rows)
}

/// Puts each key next to its row, both sorted by key in bytes.
fn pair<T>(keys: &[&str], found: Vec<T>, key_of: impl Fn(&T) -> &str) -> Vec<(String, Option<T>)> {
    let mut found = found.into_iter().peekable();
    keys.iter().map(|key| ((*key).to_owned(), found.next_if(|row| key_of(row) == *key))).collect()
}
