//! The one task that writes. Requests that wait together share a transaction, each with its own result.
//!
//! A database flushes once per commit, so a hundred writers cost one flush. The change log's counter is taken last and
//! once per transaction, which makes commit order sequence order. Transactions exclude each other, those of other
//! servers included, so an operation may read, decide and write.

use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot, watch};

use super::codec::json;
use super::db::{Conn, Connector, Sql, args};
use super::{Kind, StoreError, log};

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
    pub(super) conn: &'c mut Conn,
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
    connector: Connector,
    conn: Option<Conn>,
    jobs: mpsc::Receiver<Box<dyn Job>>,
    committed: watch::Sender<u64>,
}

impl Writer {
    pub(super) fn new(
        connector: Connector,
        conn: Conn,
        jobs: mpsc::Receiver<Box<dyn Job>>,
        committed: watch::Sender<u64>,
    ) -> Self {
        Self { connector, conn: Some(conn), jobs, committed }
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
        let mut outcome = self.attempt(&mut batch).await;
        if outcome.as_ref().is_err_and(StoreError::is_collision) {
            outcome = self.attempt(&mut batch).await;
        }
        match outcome {
            Err(error) if self.connector.hangs_up() && error.is_unavailable() => {
                // Those that waited meanwhile would wait as long for the same answer.
                while let Ok(job) = self.jobs.try_recv() {
                    batch.push(job);
                }
                finish(batch, &Err(error));
            }
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
        let mut conn = self.begin().await?;
        let mut last = None;
        let done = self.connector.limit(transact(&mut conn, batch, &mut last)).await;
        match (done, last) {
            (Ok(seq), _) => {
                self.conn = Some(conn);
                self.tell(seq);
                Ok(seq)
            }
            (Err(error), Some(last)) if self.connector.hangs_up() && error.is_unavailable() => {
                drop(conn);
                match self.was_committed(last).await {
                    Ok(true) => {
                        self.tell(last.seq);
                        Ok(last.seq)
                    }
                    // What is not known is told as what it looks like: try again.
                    Ok(false) | Err(_) => Err(error),
                }
            }
            (Err(error), _) => {
                // A connection that cannot even roll back is not used again; neither is one of a database that is away.
                if !error.is_unavailable() && self.connector.limit(conn.rollback()).await.is_ok() {
                    self.conn = Some(conn);
                }
                Err(error)
            }
        }
    }

    fn tell(&self, seq: u64) {
        if seq > 0 {
            self.committed.send_replace(seq);
        }
    }

    /// A connection with a transaction begun. The kept one may have died unnoticed; a fresh one has no such excuse.
    async fn begin(&mut self) -> Result<Conn, StoreError> {
        if let Some(mut conn) = self.conn.take() {
            match self.connector.limit(conn.begin_write()).await {
                Ok(()) => return Ok(conn),
                Err(error) if self.connector.hangs_up() && error.lost_connection() => {}
                Err(error) => {
                    if !error.is_unavailable() {
                        self.conn = Some(conn);
                    }
                    return Err(error);
                }
            }
        }
        let mut conn = self.connector.connect().await?;
        self.connector.limit(conn.begin_write()).await?;
        Ok(conn)
    }

    /// After the answer to a commit was lost: whether the change log has the line, and a synchronous standby too. The lock
    /// of all writers is waited for first, so the lost transaction has ended by then, either way.
    async fn was_committed(&mut self, last: LastLine) -> Result<bool, StoreError> {
        let mut conn = self.begin().await?;
        let found = self.connector.limit(confirm(&mut conn, last)).await?;
        self.conn = Some(conn);
        Ok(found)
    }
}

/// Looks for the line. A primary shows what it committed itself even where the wait for its standby was broken off (its
/// sessions were ended, say), so a commit of ours follows: a standby that has this one has all before it.
async fn confirm(conn: &mut Conn, last: LastLine) -> Result<bool, StoreError> {
    if log::tag(conn, last.seq).await? != Some(last.tag) {
        conn.rollback().await?;
        return Ok(false);
    }
    conn.execute("UPDATE svid_log_counter SET pruned_to = pruned_to", &[]).await?;
    conn.commit().await?;
    Ok(true)
}

fn finish(batch: Vec<Box<dyn Job>>, outcome: &Result<u64, StoreError>) {
    for job in batch {
        job.finish(outcome.clone());
    }
}

/// The line by which a transaction is found again.
#[derive(Clone, Copy)]
struct LastLine {
    seq: u64,
    tag: i64,
}

/// All of `batch` in the transaction that `conn` has begun. Returns the last line's number, 0 if nothing was logged.
/// `last` is set before the commit, from when on an error may mean either.
async fn transact(
    conn: &mut Conn,
    batch: &mut [Box<dyn Job>],
    last: &mut Option<LastLine>,
) -> Result<u64, StoreError> {
    let mut tx = Tx { conn, lines: Vec::new() };
    for job in batch {
        job.run(&mut tx).await?;
    }
    if tx.lines.is_empty() {
        tx.conn.commit().await?;
        return Ok(0);
    }
    commit_with_lines(&mut tx, last).await
}

/// Takes the numbers, writes the lines and commits. With SQLite in one go, because each trip to its thread and back
/// costs more than what it does meanwhile.
const LINES: Sql = Sql::each(
    "UPDATE svid_log_counter SET seq = seq + $2;
     INSERT INTO svid_log (seq, tag, kind, key, at)
     SELECT (SELECT seq FROM svid_log_counter) - $2 + key + 1, value ->> 2, value ->> 0, value ->> 1, unixepoch()
     FROM json_each($1);
     SELECT seq FROM svid_log_counter;
     COMMIT",
    "WITH counter AS (UPDATE svid_log_counter SET seq = seq + $2 RETURNING seq),
     line AS (
         INSERT INTO svid_log (seq, tag, kind, key, at)
         SELECT counter.seq - $2 + given.n, (given.value ->> 2)::bigint, (given.value ->> 0)::bigint,
             given.value ->> 1, extract(epoch FROM clock_timestamp())::bigint
         FROM counter, jsonb_array_elements($1::jsonb) WITH ORDINALITY AS given (value, n))
     SELECT seq, pg_notify('svid_log', seq::text)::text FROM counter",
);

async fn commit_with_lines(tx: &mut Tx<'_>, last: &mut Option<LastLine>) -> Result<u64, StoreError> {
    let tags = random_tags(tx.lines.len())?;
    let lines = tx.lines.iter().zip(&tags).map(|((kind, key), tag)| (kind.code(), key.as_str(), *tag));
    let (lines, count) = (json(&lines.collect::<Vec<_>>())?, tags.len() as i64);
    // To the end: anything that stops at the first row would not commit.
    let ended = tx.conn.fetch_all(LINES, args![&lines, count]).await?;
    let row = ended.first().ok_or_else(|| StoreError::corrupt("change log counter", "no row"))?;
    let seq = row.get::<i64>(0)?.unsigned_abs();
    if let Conn::Postgres(_) = tx.conn {
        *last = tags.last().map(|tag| LastLine { seq, tag: *tag });
        tx.conn.commit().await?;
    }
    Ok(seq)
}

fn random_tags(count: usize) -> Result<Vec<i64>, StoreError> {
    let mut bytes = vec![0; count * size_of::<i64>()];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|e| StoreError::corrupt("random numbers", e))?;
    Ok(bytes.as_chunks::<{ size_of::<i64>() }>().0.iter().map(|chunk| i64::from_ne_bytes(*chunk)).collect())
}
