//! The database: domain types in, domain types out. Knows nothing of gRPC.
//!
//! Every write to entries, nodes, bundles and federation appends to the change log in the same transaction
//! (`writer`); a [`Directory`](crate::directory::Directory) follows the log (`log`).

mod answers;
mod attest_batch;
mod backup;
mod bundles;
mod codec;
#[cfg(test)]
mod conformance;
mod db;
mod entries;
mod error;
mod federation;
mod housekeeping;
mod listen;
mod log;
mod metrics;
mod nodes;
mod postgres_config;
mod readers;
pub mod restore;
mod schema;
mod servers;
mod types;
mod writer;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use svid_core::entry::{Entry, EntryId};
use svid_core::id::TrustDomain;
use tokio::sync::{Mutex, mpsc, watch};

pub use answers::{Admitted, Answered};
pub use backup::BackupError;
pub use error::StoreError;
pub use housekeeping::{HousekeepingOptions, housekeeping, sweep};
pub use log::LoadSink;
pub(crate) use log::MAX_LINES;
pub use nodes::PruneNodes;
pub use postgres_config::{PgHost, PostgresConfig, SslMode};
pub use servers::{
    AuthorityIds, Claimed, Heartbeat, Holder, SERVER_LEASE, ServerClaim, ServerFacts, ServerRow,
};
pub use types::*;

use attest_batch::Attestations;
use db::{Conn, Connector, Row, Sql, Value};
use entries::{Outcome, Prepared};
use metrics::{Operation, StoreMetrics};
use readers::Readers;
use schema::Opened;
use writer::{Committed, Queued, Write, Writer};

/// Write requests that may wait: callers beyond wait in line without memory of their own here.
const QUEUE: usize = 1024;
/// How long a write waits for this process's directory to have applied it.
const APPLY_TIMEOUT: Duration = Duration::from_secs(5);

struct Shared {
    jobs: mpsc::Sender<Box<dyn writer::Job>>,
    attestations: Attestations,
    reads: Readers,
    connector: Connector,
    /// The connection that reads the change log after each commit.
    follower: Mutex<Option<Conn>>,
    /// The last line that was committed here; wakes the directory.
    committed: watch::Sender<u64>,
    /// The last line that this process's directory applied; `None` without a directory.
    applied: watch::Sender<Option<u64>>,
    trust_domain: TrustDomain,
    metrics: OnceLock<StoreMetrics>,
}

/// A cheap handle on the database. Methods fail with [`StoreError`]; times are Unix seconds.
#[derive(Clone)]
pub struct Store(Arc<Shared>);

impl Store {
    /// Opens the database, creates or migrates its schema, and starts the writer, which ends with the last handle.
    /// # Errors
    /// [`StoreError::Schema`] for SPIRE's own database, a newer schema, and entries of another trust domain.
    pub async fn open(config: &StoreConfig, trust_domain: &TrustDomain) -> Result<Self, StoreError> {
        let Opened { conn, writes, reads, pool } = schema::open(config, trust_domain).await?;
        let (jobs, queue) = mpsc::channel(QUEUE);
        let committed = watch::Sender::new(0);
        tokio::spawn(Writer::new(writes, conn, queue, committed.clone()).run());
        let shared = Shared {
            jobs,
            attestations: Attestations::default(),
            reads: Readers::new(reads.clone(), pool),
            connector: reads,
            follower: Mutex::new(None),
            committed,
            applied: watch::Sender::new(None),
            trust_domain: trust_domain.clone(),
            metrics: OnceLock::new(),
        };
        let shared = Arc::new(shared);
        if let Connector::Postgres(postgres) = &shared.connector {
            tokio::spawn(listen::run(postgres.clone(), Arc::downgrade(&shared)));
        }
        Ok(Self(shared))
    }

    /// SPIRE's name of this kind of database: `sqlite3` or `postgres`.
    pub fn kind(&self) -> &'static str {
        match self.0.connector {
            Connector::Sqlite(_) => "sqlite3",
            Connector::Postgres(_) => "postgres",
        }
    }

    /// The database's clock, in Unix seconds.
    /// # Errors
    /// Only the database's.
    pub async fn now(&self) -> Result<i64, StoreError> {
        let sql = Sql::each("SELECT unixepoch()", "SELECT extract(epoch FROM clock_timestamp())::bigint");
        let row = self.fetch_optional(sql, &[]).await?;
        row.ok_or_else(|| StoreError::corrupt("clock", "no answer"))?.get(0)
    }

    /// True answer from the database, for health checks.
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.head().await.map(drop)
    }

    /// Commits one request and waits until the directory, if there is one, shows it.
    async fn write<W: Write>(&self, op: W) -> Result<W::Out, StoreError> {
        let (job, answer) = Queued::queue(op);
        self.0.jobs.send(job).await.map_err(|_| StoreError::Closed)?;
        let Committed { out, seq } = answer.await.map_err(|_| StoreError::Closed)??;
        if seq > 0 {
            self.wait_applied(seq).await;
        }
        Ok(out)
    }

    /// Reads at most one row outside of any transaction.
    async fn fetch_optional(
        &self,
        sql: impl Into<Sql>,
        args: &[Value<'_>],
    ) -> Result<Option<Row>, StoreError> {
        let mut reader = self.0.reads.get().await?;
        let row = self.0.connector.limit(reader.conn.fetch_optional(sql, args)).await?;
        reader.done();
        Ok(row)
    }

    /// A directory that does not keep up delays the answer and nothing more: the write is durable.
    async fn wait_applied(&self, seq: u64) {
        if tokio::time::timeout(APPLY_TIMEOUT, self.applied_through(seq)).await.is_err() {
            tracing::warn!(seq, "The directory did not apply a committed change in time");
        }
    }

    /// Waits until the directory has applied this line; for ever if it does not.
    pub(crate) async fn applied_through(&self, seq: u64) {
        let mut applied = self.0.applied.subscribe();
        // The sender is in `self`, so waiting ends with the value only.
        let _ = applied.wait_for(|applied| applied.is_none_or(|applied| applied >= seq)).await;
    }

    /// The directory reports what it applied.
    pub(crate) fn set_applied(&self, seq: u64) {
        self.0.applied.send_replace(Some(seq));
    }

    /// Wakes the directory after each commit of this process.
    pub(crate) fn committed(&self) -> watch::Receiver<u64> {
        self.0.committed.subscribe()
    }

    // ---- entries

    /// Creates entries; one result per item, in order. Similar entries are not created twice.
    pub async fn create_entries(
        &self,
        items: Vec<CreateEntry>,
        now: i64,
    ) -> Vec<Result<Created, StoreError>> {
        let work = async {
            let count = items.len();
            let prepared: Result<Arc<[Prepared]>, _> =
                items.into_iter().map(|item| Prepared::new(item, now)).collect();
            let outcome = match &prepared {
                Ok(prepared) => self.write(entries::CreateEntries(prepared.clone())).await,
                Err(error) => Err(error.clone()),
            };
            match (outcome, prepared) {
                (Ok(outcomes), Ok(prepared)) => outcomes
                    .into_iter()
                    .zip(prepared.iter())
                    .map(|(outcome, item)| Outcome::into_result(outcome, item))
                    .collect(),
                (Err(error), _) | (_, Err(error)) => vec![Err(error); count],
            }
        };
        self.counted_each(Operation::EntryCreate, work).await
    }

    /// Changes entries; one result per item, in order. The revision grows even if nothing else changes, as in SPIRE.
    pub async fn update_entries(&self, items: Vec<UpdateEntry>) -> Vec<Result<Entry, StoreError>> {
        let work = async {
            let count = items.len();
            let op = entries::UpdateEntries { items, trust_domain: self.0.trust_domain.clone() };
            self.write(op).await.unwrap_or_else(|error| vec![Err(error); count])
        };
        self.counted_each(Operation::EntryUpdate, work).await
    }

    /// Deletes entries; one result per item, in order.
    pub async fn delete_entries(&self, ids: Vec<EntryId>) -> Vec<Result<(), StoreError>> {
        let work = async {
            let count = ids.len();
            self.write(entries::DeleteEntries(ids)).await.unwrap_or_else(|error| vec![Err(error); count])
        };
        self.counted_each(Operation::EntryDelete, work).await
    }

    // ---- the log

    /// The end of the change log.
    /// # Errors
    /// Only the database's.
    pub async fn head(&self) -> Result<Position, StoreError> {
        let mut reader = self.0.reads.get().await?;
        let position = self.0.connector.limit(log::position(&mut reader.conn)).await?;
        reader.done();
        Ok(position)
    }

    /// Reads the whole state into `sink`.
    /// # Errors
    /// The database's, and [`StoreError::Corrupt`].
    pub async fn load(&self, sink: &mut dyn LoadSink) -> Result<Cursor, StoreError> {
        let mut reader = self.0.reads.get().await?;
        self.0.connector.limit(reader.conn.begin_read()).await?;
        let cursor = log::load(&mut reader.conn, sink).await?;
        self.0.connector.limit(reader.conn.commit()).await?;
        reader.done();
        Ok(cursor)
    }

    /// Reads what follows `cursor` in the log.
    /// # Errors
    /// The database's, and [`StoreError::Corrupt`].
    pub async fn changes_after(&self, cursor: Cursor) -> Result<Changes, StoreError> {
        let mut follower = self.0.follower.lock().await;
        // Taken out, so that a read that failed or was given up leaves nothing behind: the next one connects anew.
        if let Some(mut conn) = follower.take() {
            match self.0.connector.limit(log::changes_after(&mut conn, cursor)).await {
                Ok(changes) => {
                    *follower = Some(conn);
                    return Ok(changes);
                }
                // It may have died while nobody looked; a fresh one has no such excuse.
                Err(error) if self.0.connector.hangs_up() && error.lost_connection() => {}
                Err(error) => return Err(error),
            }
        }
        let mut conn = self.0.connector.connect().await?;
        let changes = self.0.connector.limit(log::changes_after(&mut conn, cursor)).await?;
        *follower = Some(conn);
        Ok(changes)
    }

    /// Notes a new history, after the database turned out to hold another than before (a restored copy).
    pub(crate) async fn new_epoch(&self, old: [u8; 16]) -> Result<(), StoreError> {
        self.write(schema::NewEpoch { old }).await
    }

    // ---- housekeeping

    /// Deletes entries that ended before a moment; returns how many.
    /// # Errors
    /// Only the database's.
    pub async fn prune_entries(&self, expired_before: i64) -> Result<u64, StoreError> {
        self.counted(Operation::EntryPrune, self.in_chunks(|| entries::PruneEntries { expired_before })).await
    }

    /// Deletes join tokens that ended before a moment; returns how many.
    /// # Errors
    /// Only the database's.
    pub async fn prune_join_tokens(&self, expired_before: i64) -> Result<u64, StoreError> {
        self.counted(Operation::TokenPrune, self.in_chunks(|| nodes::PruneTokens { expired_before })).await
    }

    /// Deletes one batch of expired nodes; returns how many.
    /// # Errors
    /// Only the database's.
    pub async fn prune_nodes(&self, which: PruneNodes) -> Result<u64, StoreError> {
        self.counted(Operation::NodePrune, self.write(which)).await
    }

    /// Deletes old lines of the change log, keeping an hour and 100,000 lines; returns how many.
    /// # Errors
    /// Only the database's.
    pub async fn prune_log(&self, now: i64) -> Result<u64, StoreError> {
        self.in_chunks(|| housekeeping::PruneLog { now }).await
    }

    /// Many short transactions instead of a long one, so that other writers get in between.
    async fn in_chunks<W: Write<Out = u64>>(&self, chunk: impl Fn() -> W) -> Result<u64, StoreError> {
        let mut total = 0;
        loop {
            match self.write(chunk()).await? {
                0 => return Ok(total),
                gone => total += gone,
            }
        }
    }
}
