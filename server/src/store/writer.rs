//! The one task that writes. Requests that wait together share a transaction, each with its own result.
//!
//! SQLite flushes once per commit, so a hundred writers cost one flush. The change log's counter is taken last and
//! once per transaction, which makes commit order sequence order.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, SqliteConnection};
use tokio::sync::{mpsc, oneshot, watch};

use super::codec::json;
use super::{Kind, StoreError};

/// Most requests in one transaction: bounds how long the first of them waits.
const MAX_BATCH: usize = 256;

/// How long a transaction waits for company after one that had some.
const COMPANY: Duration = Duration::from_millis(1);

/// One write request. It may run more than once (a transaction that fails is taken apart), so it keeps no state.
#[async_trait]
pub(super) trait Write: Send + Sync + 'static {
    /// The answer. Where it says that a request was refused, nothing was written for it.
    type Out: Send + 'static;
    /// Does the work inside the transaction.
    /// # Errors
    /// Only faults of the database, which roll the transaction back.
    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Out, StoreError>;
}

/// The transaction under way.
pub(super) struct Tx<'c> {
    pub(super) conn: &'c mut SqliteConnection,
    lines: Vec<(Kind, String)>,
}

impl Tx<'_> {
    /// Notes that something changed, for the change log.
    pub(super) fn log(&mut self, kind: Kind, key: impl Into<String>) {
        self.lines.push((kind, key.into()));
    }
}

/// A committed answer, and the log position that a reader of it must have reached (0: nothing was logged).
pub(super) struct Committed<T> {
    pub(super) out: T,
    pub(super) seq: u64,
}

type Answer<W> = Result<Committed<<W as Write>::Out>, StoreError>;

#[async_trait]
pub(super) trait Job: Send {
    async fn run(&mut self, tx: &mut Tx<'_>) -> Result<(), StoreError>;
    fn finish(self: Box<Self>, outcome: Result<u64, StoreError>);
}

pub(super) struct Queued<W: Write> {
    op: W,
    out: Option<W::Out>,
    reply: oneshot::Sender<Answer<W>>,
}

impl<W: Write> Queued<W> {
    /// The request as a job, and where its answer arrives.
    pub(super) fn queue(op: W) -> (Box<dyn Job>, oneshot::Receiver<Answer<W>>) {
        let (reply, answer) = oneshot::channel();
        (Box::new(Self { op, out: None, reply }), answer)
    }
}

#[async_trait]
impl<W: Write> Job for Queued<W> {
    async fn run(&mut self, tx: &mut Tx<'_>) -> Result<(), StoreError> {
        self.out = Some(self.op.run(tx).await?);
        Ok(())
    }

    fn finish(self: Box<Self>, outcome: Result<u64, StoreError>) {
        let answer = match (outcome, self.out) {
            (Ok(seq), Some(out)) => Ok(Committed { out, seq }),
            (Ok(_), None) => Err(StoreError::Closed),
            (Err(error), _) => Err(error),
        };
        // The caller may have gone away; what is committed stays.
        let _ = self.reply.send(answer);
    }
}

pub(super) struct Writer {
    options: SqliteConnectOptions,
    conn: Option<SqliteConnection>,
    jobs: mpsc::Receiver<Box<dyn Job>>,
    committed: watch::Sender<u64>,
}

impl Writer {
    pub(super) fn new(
        options: SqliteConnectOptions,
        conn: SqliteConnection,
        jobs: mpsc::Receiver<Box<dyn Job>>,
        committed: watch::Sender<u64>,
    ) -> Self {
        Self { options, conn: Some(conn), jobs, committed }
    }

    /// Runs until every handle is gone.
    pub(super) async fn run(mut self) {
        let mut batch = Vec::with_capacity(MAX_BATCH);
        while self.jobs.recv_many(&mut batch, MAX_BATCH).await > 0 {
            let mut crowded = batch.len() > 1;
            self.commit(std::mem::take(&mut batch)).await;
            // Where many write, most of the cost is the transaction's and the flush's: let more of them share one.
            while crowded {
                tokio::time::sleep(COMPANY).await;
                while batch.len() < MAX_BATCH
                    && let Ok(job) = self.jobs.try_recv()
                {
                    batch.push(job);
                }
                crowded = batch.len() > 1;
                if !batch.is_empty() {
                    self.commit(std::mem::take(&mut batch)).await;
                }
            }
        }
        if let Some(conn) = self.conn.take()
            && let Err(error) = conn.close().await
        {
            tracing::warn!(%error, "Closing the database failed");
        }
    }

    async fn commit(&mut self, mut batch: Vec<Box<dyn Job>>) {
        match self.attempt(&mut batch).await {
            Err(error) if batch.len() > 1 && !error.is_unavailable() => {
                // One request spoiled the transaction for all: give each its own.
                for job in batch {
                    let mut alone = vec![job];
                    let outcome = self.attempt(&mut alone).await;
                    finish(alone, &outcome);
                }
            }
            outcome => finish(batch, &outcome),
        }
    }

    async fn attempt(&mut self, batch: &mut [Box<dyn Job>]) -> Result<u64, StoreError> {
        let mut conn = match self.conn.take() {
            Some(conn) => conn,
            None => self.options.connect().await?,
        };
        match transact(&mut conn, batch).await {
            Ok(seq) => {
                self.conn = Some(conn);
                if seq > 0 {
                    self.committed.send_replace(seq);
                }
                Ok(seq)
            }
            Err(error) => {
                // A connection that cannot even roll back is not used again; neither is one of a database that is away.
                let rolled_back = sqlx::query("ROLLBACK").execute(&mut conn).await.is_ok();
                if rolled_back && !error.is_unavailable() {
                    self.conn = Some(conn);
                }
                Err(error)
            }
        }
    }
}

fn finish(batch: Vec<Box<dyn Job>>, outcome: &Result<u64, StoreError>) {
    for job in batch {
        job.finish(outcome.clone());
    }
}

/// All of `batch` in one transaction. Returns the last line's number, 0 if nothing was logged.
async fn transact(conn: &mut SqliteConnection, batch: &mut [Box<dyn Job>]) -> Result<u64, StoreError> {
    sqlx::query("BEGIN IMMEDIATE").execute(&mut *conn).await?;
    let mut tx = Tx { conn, lines: Vec::new() };
    for job in batch {
        job.run(&mut tx).await?;
    }
    if tx.lines.is_empty() {
        sqlx::query("COMMIT").execute(&mut *tx.conn).await?;
        return Ok(0);
    }
    commit_with_lines(&mut tx).await
}

/// Takes the numbers, writes the lines and commits: in one go, because each trip to SQLite's thread and back costs
/// more than what SQLite does meanwhile.
async fn commit_with_lines(tx: &mut Tx<'_>) -> Result<u64, StoreError> {
    let rows: Vec<(i64, &str)> = tx.lines.iter().map(|(kind, key)| (kind.code(), key.as_str())).collect();
    let ended = sqlx::query_scalar(
        "UPDATE svid_log_counter SET seq = seq + ?2;
         INSERT INTO svid_log (seq, tag, kind, key, at)
         SELECT (SELECT seq FROM svid_log_counter) - ?2 + key + 1, random(), value ->> 0, value ->> 1, unixepoch()
         FROM json_each(?1);
         SELECT seq FROM svid_log_counter;
         COMMIT",
    )
    .bind(json(&rows)?)
    .bind(rows.len() as i64)
    .fetch_all(&mut *tx.conn) // to the end: anything that stops at the first row would not commit
    .await?;
    let seq: i64 =
        ended.first().copied().ok_or_else(|| StoreError::corrupt("change log counter", "no row"))?;
    Ok(seq.unsigned_abs())
}
