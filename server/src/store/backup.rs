//! A backup: the whole state of one moment in the format of [`svid_proto::backup`], page by page in constant memory.
//!
//! Private keys are not in the database. Join tokens stay out: whoever reads one may become a node, they live for
//! minutes, and one that was used after the backup can then never come back.

use svid_core::bundle::Bundle;
use svid_core::federation::Relationship;
use svid_proto::backup::{Encoder, Header, Journal, Kind, Node as WireNode};
use svid_proto::convert::{bundle_to_wire, entry_to_wire, relationship_to_wire};
use svid_proto::svid::sync::v1::Position as WirePosition;
use tokio::sync::mpsc;
use tokio::time::{Duration, timeout};

use super::codec::{NODE_COLUMNS, entry_columns, entry_from_row, node_columns, node_from_row};
use super::db::{Conn, args};
use super::{Node, Serial, Store, StoreError, bundles, federation, log};

/// Bytes after which a piece is handed over. One record may make it longer; see [`MAX_PIECE_BYTES`].
const PIECE_BYTES: usize = 256 * 1024;
/// Longest piece.
pub const MAX_PIECE_BYTES: usize = 1024 * 1024;
/// Rows that are in memory at once.
const PAGE: i64 = 500;
/// How long the reader may keep the snapshot waiting: it holds up the database's own cleaning.
const STALL: Duration = Duration::from_secs(50);

/// Why there is no whole backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Whoever asked has gone.
    #[error("the caller has gone")]
    Gone,
    /// Whoever asked does not take what he gets.
    #[error("the caller took nothing for {} seconds", STALL.as_secs())]
    Slow,
}

impl Store {
    /// Writes a backup into `pieces`, none longer than 1 MiB. `now` is in Unix seconds.
    /// # Errors
    /// [`BackupError`]; what was written then has no end, and readers refuse it.
    pub async fn backup(
        &self,
        server_id: &str,
        now: i64,
        pieces: mpsc::Sender<Vec<u8>>,
    ) -> Result<(), BackupError> {
        // A connection of its own: the pool's are for calls that end soon.
        let mut conn = self.0.connector.connect().await?;
        conn.begin_read().await?;
        let header = Header {
            trust_domain: self.0.trust_domain.as_str().to_owned(),
            taken_at: now,
            server_id: server_id.to_owned(),
            server_version: env!("CARGO_PKG_VERSION").to_owned(),
            ..header(&mut conn).await?
        };
        let mut out = Out::begin(header, pieces);
        trust(&mut conn, &mut out).await?;
        nodes(&mut conn, &mut out).await?;
        entries(&mut conn, &mut out).await?;
        out.finish().await?;
        conn.rollback().await?;
        Ok(conn.close().await?)
    }
}

async fn header(conn: &mut Conn) -> Result<Header, StoreError> {
    let position = log::position(conn).await?;
    let version = conn.fetch_one("SELECT max(version) FROM svid_migrations", &[]).await?;
    Ok(Header {
        position: Some(WirePosition { epoch: position.epoch.to_vec(), seq: position.seq }),
        schema_version: version.get::<Option<i64>>(0)?.unwrap_or_default(),
        ..Default::default()
    })
}

async fn trust(conn: &mut Conn, out: &mut Out) -> Result<(), BackupError> {
    for bundle in read_bundles(conn).await? {
        out.push(Kind::Bundle(bundle_to_wire(&bundle))).await?;
    }
    for relationship in read_relationships(conn).await? {
        out.push(Kind::Relationship(relationship_to_wire(&relationship, None))).await?;
    }
    for (server_id, data) in read_journals(conn).await? {
        out.push(Kind::Journal(Journal { server_id, data })).await?;
    }
    Ok(())
}

/// Every bundle, by name.
pub(super) async fn read_bundles(conn: &mut Conn) -> Result<Vec<Bundle>, StoreError> {
    let sql = "SELECT trust_domain FROM svid_bundles ORDER BY trust_domain";
    let names: Vec<String> = conn.fetch_column(sql, &[]).await?;
    let mut found = Vec::with_capacity(names.len());
    for name in names {
        found.extend(bundles::read(conn, &name).await?);
    }
    Ok(found)
}

/// Every relationship, in order of creation. A database that is only looked at may be older than they are.
pub(super) async fn read_relationships(conn: &mut Conn) -> Result<Vec<Relationship>, StoreError> {
    let version = conn.fetch_one("SELECT coalesce(max(version), 0) FROM svid_migrations", &[]).await?;
    if version.get::<i64>(0)? < federation::SINCE_VERSION {
        return Ok(Vec::new());
    }
    Ok(federation::read_all(conn).await?.into_iter().map(|stored| stored.relationship).collect())
}

/// Every journal, by server.
pub(super) async fn read_journals(conn: &mut Conn) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
    let rows = conn.fetch_all("SELECT server_id, data FROM svid_journals ORDER BY server_id", &[]).await?;
    rows.iter().map(|row| Ok((row.get(0)?, row.get(1)?))).collect()
}

/// A node with its alias entry.
pub(super) struct NodeRow {
    pub(super) node: Node,
    pub(super) alias_entry: Option<String>,
}

/// The nodes behind a row, at most a page of them: fewer are the last.
pub(super) async fn node_page(conn: &mut Conn, after: i64) -> Result<Vec<NodeRow>, StoreError> {
    let sql = concat!(
        "SELECT ",
        node_columns!(),
        ", alias_entry FROM svid_nodes WHERE row > $1 ORDER BY row LIMIT $2"
    );
    let rows = conn.fetch_all(sql, args![after, PAGE]).await?;
    rows.iter()
        .map(|row| Ok(NodeRow { node: node_from_row(row)?, alias_entry: row.get(NODE_COLUMNS)? }))
        .collect()
}

async fn nodes(conn: &mut Conn, out: &mut Out) -> Result<(), BackupError> {
    let mut after = 0;
    loop {
        let page = node_page(conn, after).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = last.node.row.cast_signed();
        for row in page {
            out.push(Kind::Node(node_to_wire(row))).await?;
        }
    }
}

fn node_to_wire(NodeRow { node, alias_entry }: NodeRow) -> WireNode {
    let (serial, next) = match node.serial {
        Serial::Banned => (String::new(), None),
        Serial::Active { current, next } => (current, next),
    };
    let (new_serial, new_expires_at) = next.unwrap_or_default();
    WireNode {
        spiffe_id: node.id.to_string(),
        attestation_type: node.attestation_type,
        serial,
        expires_at: node.expires_at,
        new_serial,
        new_expires_at,
        can_reattest: node.can_reattest,
        agent_version: node.agent_version,
        selectors: node.selectors.iter().map(ToString::to_string).collect(),
        alias_entry: alias_entry.unwrap_or_default(),
    }
}

/// The entry that came with a token which was not used yet tells the token, and is good for nothing without it.
async fn entries(conn: &mut Conn, out: &mut Out) -> Result<(), BackupError> {
    let sql = concat!(
        "SELECT ",
        entry_columns!(),
        " FROM svid_entries WHERE row > $1
             AND id NOT IN (SELECT alias_entry FROM svid_join_tokens WHERE alias_entry IS NOT NULL)
         ORDER BY row LIMIT $2"
    );
    let mut after = 0;
    loop {
        let page = conn.fetch_all(sql, args![after, PAGE]).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = last.get(0)?;
        for row in &page {
            out.push(Kind::Entry(entry_to_wire(&entry_from_row(row)?.entry))).await?;
        }
    }
}

/// Collects records into pieces and hands them over.
struct Out {
    encoder: Encoder,
    piece: Vec<u8>,
    pieces: mpsc::Sender<Vec<u8>>,
}

impl Out {
    fn begin(header: Header, pieces: mpsc::Sender<Vec<u8>>) -> Self {
        let mut piece = Vec::new();
        Self { encoder: Encoder::begin(header, &mut piece), piece, pieces }
    }

    async fn push(&mut self, kind: Kind) -> Result<(), BackupError> {
        self.encoder.push(kind, &mut self.piece);
        if self.piece.len() < PIECE_BYTES { Ok(()) } else { hand_over(&mut self.piece, &self.pieces).await }
    }

    async fn finish(mut self) -> Result<(), BackupError> {
        self.encoder.finish(&mut self.piece);
        hand_over(&mut self.piece, &self.pieces).await
    }
}

async fn hand_over(piece: &mut Vec<u8>, pieces: &mpsc::Sender<Vec<u8>>) -> Result<(), BackupError> {
    for part in piece.chunks(MAX_PIECE_BYTES) {
        match timeout(STALL, pieces.send(part.to_vec())).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(BackupError::Gone),
            Err(_) => return Err(BackupError::Slow),
        }
    }
    piece.clear();
    Ok(())
}
