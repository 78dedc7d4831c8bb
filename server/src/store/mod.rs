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

use svid_core::bundle::{Bundle, JwtAuthority, X509Authority};
use svid_core::entry::{Entry, EntryId};
use svid_core::id::{SpiffeId, TrustDomain};
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

use answers::{MarkUsed, SuspectClone};
use attest_batch::Attestations;
use bundles::{Expect, Put};
use codec::{node_columns, node_from_row};
use db::{Conn, Connector, Row, Sql, Value, args};
use entries::{Outcome, Prepared};
use metrics::{Operation, StoreMetrics};
use nodes::{Attest, ChangeNode, NodeChange};
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

    // ---- nodes

    /// Creates a join token, good until `expires_at`, and its alias entry in one transaction.
    /// # Errors
    /// [`StoreError::AlreadyExists`] for the token or the entry.
    pub async fn create_join_token(
        &self,
        token: &str,
        expires_at: i64,
        alias: Option<CreateEntry>,
        now: i64,
    ) -> Result<(), StoreError> {
        let work = async {
            let alias = alias.map(|item| Prepared::new(item, now)).transpose()?;
            self.write(nodes::CreateToken { token: token.to_owned(), expires_at, alias }).await?
        };
        self.counted(Operation::TokenCreate, work).await
    }

    /// Creates the node and consumes the token in one transaction: of many callers with one token, one succeeds, and may
    /// ask again for its answer.
    /// # Errors
    /// [`StoreError::TokenUnknown`], [`StoreError::TokenExpired`], [`StoreError::Banned`]; the token is kept.
    pub async fn attest_with_join_token(
        &self,
        token: &str,
        node: NewNode,
        now: i64,
    ) -> Result<Admitted, StoreError> {
        let work = self.attest(Attest { node, token: Some(token.to_owned()), now });
        // Consuming the token and creating the node is one transaction here, two calls in SPIRE's numbers.
        self.counted(Operation::NodeCreate, self.counted(Operation::TokenDelete, work)).await
    }

    /// Creates the node, or gives one that attests again its new certificate and selectors.
    /// # Errors
    /// [`StoreError::Banned`]; [`StoreError::CannotReattest`] for a known node whose proof is good for one use.
    pub async fn attest_node(&self, node: NewNode, now: i64) -> Result<Admitted, StoreError> {
        self.counted(Operation::NodeCreate, self.attest(Attest { node, token: None, now })).await
    }

    /// Attestations that wait together share a statement, not only a transaction.
    async fn attest(&self, op: Attest) -> Result<Admitted, StoreError> {
        let (job, answer) = self.0.attestations.queue(op);
        if let Some(job) = job {
            self.send_for_all(job);
        }
        let Committed { out, seq } = answer.await.map_err(|_| StoreError::Closed)??;
        if seq > 0 {
            self.wait_applied(seq).await;
        }
        out
    }

    /// Sends a job that others wait for as well, whether or not this caller stays.
    fn send_for_all(&self, job: Box<dyn writer::Job>) {
        let shared = self.0.clone();
        match shared.jobs.try_send(job) {
            // One that cannot be sent tells those who wait.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(job)) => {
                tokio::spawn(async move { drop(shared.jobs.send(job).await) });
            }
        }
    }

    /// Notes a renewal that was asked for with the certificate `caller`, which stays good until the new one is first
    /// seen. `seen` is the node's next serial number when the call came in, or empty: in its place, and no other's, the
    /// new one comes.
    /// # Errors
    /// [`StoreError::NotFound`] if the node is gone or banned, or `caller` is not one of its certificates any more;
    /// [`StoreError::Overtaken`] if another renewal was answered meanwhile.
    pub async fn renew_node(
        &self,
        id: &SpiffeId,
        caller: &str,
        seen: &str,
        serial: &str,
        expires_at: i64,
    ) -> Result<(), StoreError> {
        let change = NodeChange::Renew {
            caller: caller.to_owned(),
            seen: seen.to_owned(),
            serial: serial.to_owned(),
            ends: expires_at,
        };
        let work = async {
            if self.write(ChangeNode { id: id.clone(), change }).await? {
                return Ok(());
            }
            match self.node(id).await?.map(|node| node.serial) {
                Some(Serial::Active { current, .. }) if current == caller => Err(StoreError::Overtaken),
                _ => Err(StoreError::NotFound("agent")),
            }
        };
        self.counted(Operation::NodeUpdate, work).await
    }

    /// Notes that certificates were seen in use, by IDs and serial numbers; those that are not current any more are
    /// left out.
    /// # Errors
    /// Only the database's.
    pub async fn mark_used(&self, seen: Vec<(SpiffeId, String)>) -> Result<(), StoreError> {
        self.write(MarkUsed(seen)).await
    }

    /// Notes that a certificate of a node showed up that is neither its current nor its next one, if the current one was
    /// in use before. `is_known`: this process saw it in use. False if it was not, and for a banned node.
    /// # Errors
    /// Only the database's.
    pub async fn suspect_clone(
        &self,
        id: &SpiffeId,
        serial: &str,
        is_known: bool,
        now: i64,
    ) -> Result<bool, StoreError> {
        self.write(SuspectClone { id: id.clone(), serial: serial.to_owned(), is_known, now }).await
    }

    /// The next serial number becomes the current one, if it still is the next. True if it did.
    /// # Errors
    /// Only the database's.
    pub async fn activate_serial(&self, id: &SpiffeId, serial: &str) -> Result<bool, StoreError> {
        self.counted(
            Operation::NodeUpdate,
            self.write(ChangeNode { id: id.clone(), change: NodeChange::Activate(serial.to_owned()) }),
        )
        .await
    }

    /// A node that came back with a backup takes a certificate that was issued after it and ends at `expires_at` in place
    /// of those that the backup knows. False if the node is gone or banned, took another one before, has renewed or
    /// attested since.
    /// # Errors
    /// Only the database's.
    pub async fn adopt_serial(
        &self,
        id: &SpiffeId,
        serial: &str,
        expires_at: i64,
    ) -> Result<bool, StoreError> {
        let change = NodeChange::Adopt { serial: serial.to_owned(), ends: expires_at };
        self.counted(Operation::NodeUpdate, self.write(ChangeNode { id: id.clone(), change })).await
    }

    /// Bans a node until it is deleted.
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn ban_node(&self, id: &SpiffeId) -> Result<(), StoreError> {
        self.counted(Operation::NodeUpdate, self.require_node(id, NodeChange::Ban)).await
    }

    /// Notes what the agent says it runs.
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn set_agent_version(&self, id: &SpiffeId, version: &str) -> Result<(), StoreError> {
        self.counted(
            Operation::NodeUpdate,
            self.require_node(id, NodeChange::AgentVersion(version.to_owned())),
        )
        .await
    }

    async fn require_node(&self, id: &SpiffeId, change: NodeChange) -> Result<(), StoreError> {
        match self.write(ChangeNode { id: id.clone(), change }).await? {
            true => Ok(()),
            false => Err(StoreError::NotFound("agent")),
        }
    }

    /// Deletes a node and the alias entry that came with its join token. Returns the node as it was.
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn delete_node(&self, id: &SpiffeId) -> Result<Node, StoreError> {
        let work =
            async { self.write(nodes::DeleteNode(id.clone())).await?.ok_or(StoreError::NotFound("agent")) };
        self.counted(Operation::NodeDelete, work).await
    }

    /// Reads a node from the database (the directory has it in memory).
    /// # Errors
    /// Only the database's.
    pub async fn node(&self, id: &SpiffeId) -> Result<Option<Node>, StoreError> {
        let work = async {
            let sql = concat!("SELECT ", node_columns!(), " FROM svid_nodes WHERE spiffe_id = $1");
            let row = self.fetch_optional(sql, args![id.as_str()]).await?;
            row.as_ref().map(node_from_row).transpose()
        };
        self.counted(Operation::NodeFetch, work).await
    }

    // ---- bundles

    /// Reads a bundle from the database (the directory has it in memory).
    /// # Errors
    /// Only the database's.
    pub async fn bundle(&self, trust_domain: &TrustDomain) -> Result<Option<Bundle>, StoreError> {
        let work = async {
            let mut reader = self.0.reads.get().await?;
            let read = bundles::read(&mut reader.conn, trust_domain.as_str());
            let bundle = self.0.connector.limit(read).await?;
            reader.done();
            Ok(bundle)
        };
        self.counted(Operation::BundleFetch, work).await
    }

    /// Adds authorities to a bundle, which is created if need be. What is there already stays as it is.
    /// # Errors
    /// Only the database's.
    pub async fn append_bundle(
        &self,
        trust_domain: &TrustDomain,
        x509: Vec<X509Authority>,
        jwt: Vec<JwtAuthority>,
    ) -> Result<Bundle, StoreError> {
        self.counted(Operation::BundleAppend, async {
            self.write(bundles::Append { trust_domain: trust_domain.clone(), x509, jwt }).await?
        })
        .await
    }

    /// Creates a bundle.
    /// # Errors
    /// [`StoreError::AlreadyExists`].
    pub async fn create_bundle(&self, bundle: Bundle) -> Result<Bundle, StoreError> {
        self.counted(Operation::BundleCreate, async {
            self.write(Put { bundle, mask: BundleMask::ALL, expect: Expect::Absent }).await?
        })
        .await
    }

    /// Replaces parts of a bundle.
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn update_bundle(&self, bundle: Bundle, mask: BundleMask) -> Result<Bundle, StoreError> {
        self.counted(Operation::BundleUpdate, async {
            self.write(Put { bundle, mask, expect: Expect::Present }).await?
        })
        .await
    }

    /// Creates or replaces a bundle.
    /// # Errors
    /// Only the database's.
    pub async fn set_bundle(&self, bundle: Bundle) -> Result<Bundle, StoreError> {
        self.counted(Operation::BundleSet, async {
            self.write(Put { bundle, mask: BundleMask::ALL, expect: Expect::Any }).await?
        })
        .await
    }

    /// Deletes a bundle.
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::BundleInUse`] in restrict mode.
    pub async fn delete_bundle(
        &self,
        trust_domain: &TrustDomain,
        mode: DeleteMode,
    ) -> Result<(), StoreError> {
        self.counted(Operation::BundleDelete, async {
            self.write(bundles::Delete { trust_domain: trust_domain.clone(), mode }).await?
        })
        .await
    }

    /// Marks an authority as no longer to be used.
    /// # Errors
    /// [`StoreError::NotFound`] for the bundle or the authority; [`StoreError::Conflict`] if it is marked already.
    pub async fn taint_authority(
        &self,
        trust_domain: &TrustDomain,
        authority: AuthorityRef,
    ) -> Result<Bundle, StoreError> {
        let operation = match &authority {
            AuthorityRef::X509(_) => Operation::X509Taint,
            AuthorityRef::Jwt(_) => Operation::JwtTaint,
        };
        let work = async {
            self.write(bundles::Discredit { trust_domain: trust_domain.clone(), authority, revoke: false })
                .await?
        };
        self.counted(operation, work).await
    }

    /// Removes a tainted authority.
    /// # Errors
    /// [`StoreError::NotFound`] for the bundle or the authority; [`StoreError::Conflict`] if it is not tainted.
    pub async fn revoke_authority(
        &self,
        trust_domain: &TrustDomain,
        authority: AuthorityRef,
    ) -> Result<Bundle, StoreError> {
        let operation = match &authority {
            AuthorityRef::X509(_) => Operation::X509Revoke,
            AuthorityRef::Jwt(_) => Operation::JwtRevoke,
        };
        self.counted(operation, async {
            self.write(bundles::Discredit { trust_domain: trust_domain.clone(), authority, revoke: true })
                .await?
        })
        .await
    }

    /// Removes authorities that ended before a moment; true if something went.
    /// # Errors
    /// [`StoreError::Conflict`] if all that could go is the whole of the X.509 or of the JWT authorities.
    pub async fn prune_bundle(
        &self,
        trust_domain: &TrustDomain,
        ended_before: i64,
    ) -> Result<bool, StoreError> {
        self.counted(Operation::BundlePrune, async {
            self.write(bundles::Prune { trust_domain: trust_domain.clone(), ended_before }).await?
        })
        .await
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
