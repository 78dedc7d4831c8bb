//! Reading: the whole state for a start, then the change log. Each answer is of one snapshot of the database.

use futures_util::TryStreamExt;
use sqlx::{Row, SqliteConnection};
use svid_core::bundle::Bundle;

use super::codec::{entry_columns, entry_from_row, json, node_columns, node_from_row};
use super::{Changes, Cursor, Kind, Line, Node, Position, Rows, StoreError, StoredEntry, bundles};

/// Most lines that one read returns.
const MAX_LINES: i64 = 4096;

/// Takes the whole state row by row, so that it never stands in memory twice.
pub trait LoadSink: Send {
    /// How many entries and nodes will come; called first.
    fn expect(&mut self, entries: usize, nodes: usize);
    /// A bundle.
    fn bundle(&mut self, bundle: Bundle);
    /// A node.
    fn node(&mut self, node: Node);
    /// An entry, in order of creation.
    fn entry(&mut self, entry: StoredEntry);
}

struct Head {
    position: Position,
    pruned_to: u64,
}

async fn head(conn: &mut SqliteConnection) -> Result<Head, StoreError> {
    let row = sqlx::query("SELECT epoch, seq, pruned_to FROM svid_log_counter").fetch_one(conn).await?;
    let epoch: &[u8] = row.try_get(0)?;
    let epoch =
        epoch.try_into().map_err(|_| StoreError::corrupt("change log counter", "epoch is not 16 bytes"))?;
    let seq = row.try_get::<i64, _>(1)?.unsigned_abs();
    Ok(Head { position: Position { epoch, seq }, pruned_to: row.try_get::<i64, _>(2)?.unsigned_abs() })
}

pub(super) async fn position(conn: &mut SqliteConnection) -> Result<Position, StoreError> {
    head(conn).await.map(|head| head.position)
}

async fn tag(conn: &mut SqliteConnection, seq: u64) -> Result<Option<i64>, StoreError> {
    let tag = sqlx::query_scalar("SELECT tag FROM svid_log WHERE seq = ?1").bind(seq.cast_signed());
    Ok(tag.fetch_optional(conn).await?)
}

/// Reads everything. `conn` is inside a transaction.
pub(super) async fn load(conn: &mut SqliteConnection, sink: &mut dyn LoadSink) -> Result<Cursor, StoreError> {
    let position = head(conn).await?.position;
    let tag = tag(conn, position.seq).await?;
    let counts = sqlx::query("SELECT (SELECT count(*) FROM svid_entries), (SELECT count(*) FROM svid_nodes)")
        .fetch_one(&mut *conn)
        .await?;
    sink.expect(count(&counts, 0)?, count(&counts, 1)?);
    let names: Vec<String> =
        sqlx::query_scalar("SELECT trust_domain FROM svid_bundles").fetch_all(&mut *conn).await?;
    for name in names {
        if let Some(bundle) = bundles::read(conn, &name).await? {
            sink.bundle(bundle);
        }
    }
    let mut nodes =
        sqlx::query(concat!("SELECT ", node_columns!(), " FROM svid_nodes ORDER BY row")).fetch(&mut *conn);
    while let Some(row) = nodes.try_next().await? {
        sink.node(node_from_row(&row)?);
    }
    drop(nodes);
    let mut entries = sqlx::query(concat!("SELECT ", entry_columns!(), " FROM svid_entries ORDER BY row"))
        .fetch(&mut *conn);
    while let Some(row) = entries.try_next().await? {
        sink.entry(entry_from_row(&row)?);
    }
    Ok(Cursor { position, tag })
}

fn count(row: &sqlx::sqlite::SqliteRow, at: usize) -> Result<usize, StoreError> {
    usize::try_from(row.try_get::<i64, _>(at)?).map_err(|e| StoreError::corrupt("count", e))
}

/// Reads what follows `cursor`. `conn` is inside a transaction.
pub(super) async fn changes_after(
    conn: &mut SqliteConnection,
    cursor: Cursor,
) -> Result<Changes, StoreError> {
    let head = head(conn).await?;
    let seq = cursor.position.seq;
    if head.position.epoch != cursor.position.epoch || head.position.seq < seq {
        return Ok(Changes::Reload { history_changed: true });
    }
    if seq < head.pruned_to {
        return Ok(Changes::Reload { history_changed: false });
    }
    if seq > head.pruned_to && tag(conn, seq).await? != cursor.tag {
        return Ok(Changes::Reload { history_changed: true });
    }
    if head.position.seq == seq {
        return Ok(Changes::Lines { cursor, lines: Vec::new(), rows: Rows::default() });
    }
    let rows = sqlx::query("SELECT seq, tag, kind, key FROM svid_log WHERE seq > ?1 ORDER BY seq LIMIT ?2")
        .bind(seq.cast_signed())
        .bind(MAX_LINES)
        .fetch_all(&mut *conn)
        .await?;
    let mut lines = Vec::with_capacity(rows.len());
    for row in &rows {
        let (seq, tag) = (row.try_get::<i64, _>(0)?.unsigned_abs(), row.try_get(1)?);
        lines.push(Line { seq, tag, kind: Kind::from_code(row.try_get(2)?)?, key: row.try_get(3)? });
    }
    let last =
        lines.last().ok_or_else(|| StoreError::corrupt("change log", "lines before the head are missing"))?;
    let position = Position { epoch: head.position.epoch, seq: last.seq };
    let cursor = Cursor { position, tag: Some(last.tag) };
    let rows = rows_behind(conn, &lines).await?;
    Ok(Changes::Lines { cursor, lines, rows })
}

async fn rows_behind(conn: &mut SqliteConnection, lines: &[Line]) -> Result<Rows, StoreError> {
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
    let ids = keys(Kind::Node);
    if !ids.is_empty() {
        let sql = concat!(
            "SELECT ",
            node_columns!(),
            " FROM svid_nodes WHERE spiffe_id IN (SELECT value FROM json_each(?1)) ORDER BY spiffe_id"
        );
        let found = sqlx::query(sql).bind(json(&ids)?).fetch_all(&mut *conn).await?;
        let found = found.iter().map(node_from_row).collect::<Result<Vec<_>, _>>()?;
        rows.nodes = pair(&ids, found, |node| node.id.as_str());
    }
    let ids = keys(Kind::Entry);
    if !ids.is_empty() {
        let sql = concat!(
            "SELECT ",
            entry_columns!(),
            " FROM svid_entries WHERE id IN (SELECT value FROM json_each(?1)) ORDER BY id"
        );
        let found = sqlx::query(sql).bind(json(&ids)?).fetch_all(&mut *conn).await?;
        let found = found.iter().map(entry_from_row).collect::<Result<Vec<_>, _>>()?;
        rows.entries = pair(&ids, found, |stored| stored.entry.id.as_str());
    }
    Ok(rows)
}

/// Puts each key next to its row, both sorted by key in bytes.
fn pair<T>(keys: &[&str], found: Vec<T>, key_of: impl Fn(&T) -> &str) -> Vec<(String, Option<T>)> {
    let mut found = found.into_iter().peekable();
    keys.iter().map(|key| ((*key).to_owned(), found.next_if(|row| key_of(row) == *key))).collect()
}
