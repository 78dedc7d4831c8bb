//! Running servers and their journals.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::db::args;
use super::log;
use super::metrics::Operation;
use super::writer::{Tx, Write};
use super::{Position, Store, StoreError};

/// A server that was not heard of for so many seconds is gone.
pub const SERVER_LEASE: i64 = 30;
/// A server whose authorities ended this long ago (seconds) is history, and so is its journal. As long as expired
/// authorities stay in the bundle.
const FORGET_AFTER: i64 = 24 * 3600;

/// A server's authorities of one kind; empty where it has none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs)] // what signs, and what will sign next
pub struct AuthorityIds {
    pub active: String,
    pub prepared: String,
}

/// What a server says of itself with each heartbeat.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerFacts {
    /// host:port of its API.
    pub address: String,
    /// Its release.
    pub version: String,
    /// Unix seconds.
    pub started_at: i64,
    /// Its X.509 authorities.
    pub x509: AuthorityIds,
    /// Its JWT authorities.
    pub jwt: AuthorityIds,
}

/// A running server's claim to its id. Times are the database's.
#[derive(Clone, Debug)]
pub struct ServerClaim {
    /// From `server-id` in the data directory.
    pub server_id: String,
    /// Host and data directory, for people.
    pub host: String,
    /// This data directory on this boot of this machine. Since the directory is locked, whoever held the id here before
    /// is dead.
    pub place: String,
    /// Random for each start.
    pub holder: String,
    /// Unix seconds.
    pub now: i64,
    /// A holder that was watched for [`SERVER_LEASE`] and is dead if nothing changed.
    pub watched: Option<Holder>,
    /// What is known already.
    pub facts: ServerFacts,
}

/// Who holds a server id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its host and data directory.
    pub host: String,
    /// Random for each start.
    pub holder: String,
    /// Its last heartbeat.
    pub heard_at: i64,
}

/// What came of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// The id is held.
    Yes,
    /// Another one holds it, and may live.
    Held(Holder),
}

#[async_trait]
impl Write for ServerClaim {
    type Out = Claimed;
    async fn run(&self, tx: &mut Tx<'_>) -> Result<Claimed, StoreError> {
        let sql = "SELECT host, holder, heartbeat_at, place FROM svid_servers WHERE server_id = $1";
        if let Some(row) = tx.conn.fetch_optional(sql, args![&self.server_id]).await? {
            let held = Holder { host: row.get(0)?, holder: row.get(1)?, heard_at: row.get(2)? };
            if self.must_wait_for(&held, row.get(3)?) {
                return Ok(Claimed::Held(held));
            }
        }
        let sql = "INSERT INTO svid_servers (server_id, host, holder, heartbeat_at, place, facts)
             VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT (server_id) DO UPDATE SET host = $2, holder = $3, heartbeat_at = $4, place = $5, facts = $6,
                 behind_lines = 0, behind_s = 0";
        let facts = to_json(&self.facts)?;
        let args = args![&self.server_id, &self.host, &self.holder, self.now, &self.place, &facts];
        tx.conn.execute(sql, args).await?;
        Ok(Claimed::Yes)
    }
}

impl ServerClaim {
    /// False for a holder that stopped, was not heard of for the lease, or is dead for sure.
    fn must_wait_for(&self, held: &Holder, place: &str) -> bool {
        let is_over = held.holder.is_empty() || held.heard_at.saturating_add(SERVER_LEASE) <= self.now;
        let was_here = held.holder == self.holder || (!place.is_empty() && place == self.place);
        !is_over && !was_here && self.watched.as_ref() != Some(held)
    }
}

fn to_json(facts: &ServerFacts) -> Result<String, StoreError> {
    serde_json::to_string(facts).map_err(|error| StoreError::corrupt("server facts", error))
}

/// A server says that it still runs. Times are the database's.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    /// Which server.
    pub server_id: String,
    /// Under which name it holds the id.
    pub holder: String,
    /// Unix seconds.
    pub now: i64,
    /// How far its memory has followed the log.
    pub position: Position,
    /// When the last of its authorities ends; 0 if it has none.
    pub authorities_end: i64,
    /// What it says of itself.
    pub facts: ServerFacts,
}

#[async_trait]
impl Write for Heartbeat {
    /// False if another server took the id.
    type Out = bool;
    async fn run(&self, tx: &mut Tx<'_>) -> Result<bool, StoreError> {
        let head = log::position(tx.conn).await?;
        let lines = if head.epoch == self.position.epoch {
            head.seq.saturating_sub(self.position.seq).cast_signed()
        } else {
            head.seq.cast_signed() // another history: all of it
        };
        let sql = "SELECT at FROM svid_log WHERE seq = $1";
        let next = self.position.seq.saturating_add(1).cast_signed();
        let waits_since = match lines {
            0 => None,
            _ => tx.conn.fetch_optional(sql, args![next]).await?.map(|row| row.get(0)).transpose()?,
        };
        let behind_s = waits_since.map_or(0, |since: i64| self.now.saturating_sub(since).max(0));
        let sql = "UPDATE svid_servers SET heartbeat_at = $3, facts = $4, behind_lines = $5, behind_s = $6,
                 authorities_end = $7
             WHERE server_id = $1 AND holder = $2";
        let facts = to_json(&self.facts)?;
        let args =
            args![&self.server_id, &self.holder, self.now, &facts, lines, behind_s, self.authorities_end];
        Ok(tx.conn.execute(sql, args).await? > 0)
    }
}

/// A server that ends by itself gives its id back.
struct Release {
    server_id: String,
    holder: String,
}

#[async_trait]
impl Write for Release {
    type Out = ();
    async fn run(&self, tx: &mut Tx<'_>) -> Result<(), StoreError> {
        let sql = "UPDATE svid_servers SET holder = '' WHERE server_id = $1 AND holder = $2";
        tx.conn.execute(sql, args![&self.server_id, &self.holder]).await.map(drop)
    }
}

struct PruneServers {
    now: i64,
}

#[async_trait]
impl Write for PruneServers {
    type Out = u64;
    async fn run(&self, tx: &mut Tx<'_>) -> Result<u64, StoreError> {
        let before = self.now.saturating_sub(FORGET_AFTER);
        let gone = "SELECT server_id FROM svid_servers
             WHERE authorities_end > 0 AND authorities_end < $1 AND heartbeat_at < $1";
        let gone: Vec<String> = tx.conn.fetch_column(gone, args![before]).await?;
        for server_id in &gone {
            tx.conn.execute("DELETE FROM svid_journals WHERE server_id = $1", args![server_id]).await?;
            tx.conn.execute("DELETE FROM svid_servers WHERE server_id = $1", args![server_id]).await?;
        }
        Ok(gone.len() as u64)
    }
}

/// A server of the trust domain as its last heartbeat left it. Times are the database's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerRow {
    /// From its `server-id`.
    pub server_id: String,
    /// Host and data directory.
    pub host: String,
    /// Its last heartbeat.
    pub heard_at: i64,
    /// It ended by itself.
    pub stopped: bool,
    /// Lines of the log it had not applied.
    pub behind_lines: i64,
    /// Seconds that the first of them had waited.
    pub behind_s: i64,
    /// What it said of itself.
    pub facts: ServerFacts,
}

pub(super) struct SaveJournal {
    pub(super) server_id: String,
    pub(super) data: Vec<u8>,
}

#[async_trait]
impl Write for SaveJournal {
    type Out = ();
    async fn run(&self, tx: &mut Tx<'_>) -> Result<(), StoreError> {
        let sql = "INSERT INTO svid_journals (server_id, data) VALUES ($1, $2)
             ON CONFLICT (server_id) DO UPDATE SET data = $2";
        tx.conn.execute(sql, args![&self.server_id, &self.data]).await?;
        Ok(())
    }
}

impl Store {
    /// Saves a server's journal; durable when it returns.
    /// # Errors
    /// Only the database's.
    pub async fn save_journal(&self, server_id: &str, journal: Vec<u8>) -> Result<(), StoreError> {
        let op = SaveJournal { server_id: server_id.to_owned(), data: journal };
        self.counted(Operation::JournalSet, self.write(op)).await
    }

    /// Reads a server's journal.
    /// # Errors
    /// Only the database's.
    pub async fn load_journal(&self, server_id: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let work = async {
            let sql = "SELECT data FROM svid_journals WHERE server_id = $1";
            let row = self.fetch_optional(sql, args![server_id]).await?;
            row.map(|row| row.get(0)).transpose()
        };
        self.counted(Operation::JournalFetch, work).await
    }

    /// Claims a server id.
    /// # Errors
    /// Only the database's.
    pub async fn claim_server(&self, claim: ServerClaim) -> Result<Claimed, StoreError> {
        self.write(claim).await
    }

    /// Says that this server still runs; well within the lease.
    /// # Errors
    /// [`StoreError::ServerIdHeld`] if another server took the id meanwhile: stop.
    pub async fn heartbeat_server(&self, beat: Heartbeat) -> Result<(), StoreError> {
        let server_id = beat.server_id.clone();
        if self.write(beat).await? { Ok(()) } else { Err(StoreError::ServerIdHeld(server_id)) }
    }

    /// Gives a server id back.
    /// # Errors
    /// Only the database's.
    pub async fn release_server(&self, server_id: &str, holder: &str) -> Result<(), StoreError> {
        self.write(Release { server_id: server_id.to_owned(), holder: holder.to_owned() }).await
    }

    /// The servers of the trust domain.
    /// # Errors
    /// Only the database's.
    pub async fn list_servers(&self) -> Result<Vec<ServerRow>, StoreError> {
        let sql =
            "SELECT server_id, host, heartbeat_at, holder, behind_lines, behind_s, facts FROM svid_servers
             ORDER BY server_id";
        let mut reader = self.0.reads.get().await?;
        let rows = self.0.connector.limit(reader.conn.fetch_all(sql, &[])).await?;
        reader.done();
        let server = |row: &super::db::Row| {
            let facts: &str = row.get(6)?;
            Ok(ServerRow {
                server_id: row.get(0)?,
                host: row.get(1)?,
                heard_at: row.get(2)?,
                stopped: row.get::<&str>(3)?.is_empty(),
                behind_lines: row.get(4)?,
                behind_s: row.get(5)?,
                facts: serde_json::from_str(facts).map_err(|e| StoreError::corrupt("server facts", e))?,
            })
        };
        rows.iter().map(server).collect()
    }

    /// True if others than this server go by the bundle: another running server, or an agent. `now` is the database's.
    /// # Errors
    /// Only the database's.
    pub async fn has_audience(&self, server_id: &str, now: i64) -> Result<bool, StoreError> {
        let heard_after = now.saturating_sub(SERVER_LEASE);
        let sql = "SELECT EXISTS (SELECT 1 FROM svid_nodes)
             OR EXISTS (SELECT 1 FROM svid_servers WHERE server_id <> $1 AND holder <> '' AND heartbeat_at > $2)";
        let row = self.fetch_optional(sql, args![server_id, heard_after]).await?;
        row.map_or(Ok(true), |row| row.get(0))
    }

    /// Forgets servers whose authorities ended a day ago, with their journals; returns how many.
    /// # Errors
    /// Only the database's.
    pub async fn prune_servers(&self, now: i64) -> Result<u64, StoreError> {
        self.write(PruneServers { now }).await
    }
}
