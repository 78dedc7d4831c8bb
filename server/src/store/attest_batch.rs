//! Attestations that wait together are one statement, because each trip to the database costs more than what it does
//! for one of them. Who was not let in that way gets the long way, which says why.

use std::collections::HashSet;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::sync::oneshot;

use super::answers::ANSWER_SECONDS;
use super::codec::{json, selectors_json};
use super::db::{Sql, args};
use super::nodes::Attest;
use super::writer::{Committed, Job, Tx, Write};
use super::{Admitted, Kind, StoreError};

type Out = Result<Admitted, StoreError>;
type Answer = Result<Committed<Out>, StoreError>;
type Reply = oneshot::Sender<Answer>;

struct Waiting {
    op: Attest,
    reply: Reply,
}

/// Attestations for which a job is on its way to the writer.
#[derive(Clone, Default)]
pub(super) struct Attestations(Arc<Mutex<Vec<Waiting>>>);

impl Attestations {
    fn lock(&self) -> MutexGuard<'_, Vec<Waiting>> {
        // Nothing under this lock leaves the list half changed when it panics.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues an attestation. With the first of several comes the job for all, which has to reach the writer.
    pub(super) fn queue(&self, op: Attest) -> (Option<Box<dyn Job>>, oneshot::Receiver<Answer>) {
        let (reply, answer) = oneshot::channel();
        let mut waiting = self.lock();
        waiting.push(Waiting { op, reply });
        let job: Option<Box<dyn Job>> = (waiting.len() == 1).then(|| {
            Box::new(Batch { queue: self.clone(), is_taken: false, items: Vec::new(), outs: Vec::new() }) as _
        });
        (job, answer)
    }

    fn take(&self) -> Vec<Waiting> {
        mem::take(&mut *self.lock())
    }
}

struct Batch {
    queue: Attestations,
    /// `items` were taken out of the queue, as happens when the job first runs; it may run more than once.
    is_taken: bool,
    items: Vec<Waiting>,
    outs: Vec<Out>,
}

impl Batch {
    fn take(&mut self) {
        if !mem::replace(&mut self.is_taken, true) {
            self.items = self.queue.take();
        }
    }
}

/// A job that ends before it ran, since the writer is gone, leaves nobody waiting for it.
impl Drop for Batch {
    fn drop(&mut self) {
        self.take();
    }
}

#[async_trait]
impl Job for Batch {
    async fn run(&mut self, tx: &mut Tx<'_>) -> Result<(), StoreError> {
        self.take();
        let saved = save_new(tx, &self.items).await?;
        self.outs.clear();
        for Waiting { op, .. } in &self.items {
            let out = if saved.contains(&op.node.serial) {
                tx.log(Kind::Node, op.node.id.as_str());
                Ok(Admitted::New)
            } else {
                op.run(tx).await?
            };
            self.outs.push(out);
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>, outcome: Result<u64, StoreError>) {
        self.take(); // it may not have got as far as to run
        let mut outs = mem::take(&mut self.outs).into_iter();
        for Waiting { reply, .. } in mem::take(&mut self.items) {
            let answer = match (&outcome, outs.next()) {
                (Ok(seq), Some(out)) => Ok(Committed { out, seq: *seq }),
                (Ok(_), None) => Err(StoreError::Closed),
                (Err(error), _) => Err(error.clone()),
            };
            // The caller may have gone away; what is committed stays.
            let _ = reply.send(answer);
        }
    }
}

/// Nodes that nobody knows yet. Where there is a token it has to be good; of several attestations with one token, one
/// is saved.
const SAVE_NEW: Sql = Sql::each(
    "INSERT INTO svid_nodes (spiffe_id, attestation_type, serial, expires_at, can_reattest, selectors,
         answer_key, answer_serial, answered_at, answer_until, alias_entry)
     SELECT a.value ->> 0, a.value ->> 1, a.value ->> 2, a.value ->> 3, a.value ->> 4, a.value ->> 5,
         a.value ->> 6, a.value ->> 2, a.value ->> 7,
         min(a.value ->> 8, coalesce(token.expires_at, a.value ->> 8)), token.alias_entry
     FROM json_each($1) AS a LEFT JOIN svid_join_tokens AS token
         ON token.token = a.value ->> 9 AND token.expires_at > a.value ->> 7
     WHERE a.value ->> 9 IS NULL OR token.token IS NOT NULL
     ON CONFLICT (spiffe_id) DO NOTHING RETURNING serial",
    "INSERT INTO svid_nodes (spiffe_id, attestation_type, serial, expires_at, can_reattest, selectors,
         answer_key, answer_serial, answered_at, answer_until, alias_entry)
     SELECT a.value ->> 0, a.value ->> 1, a.value ->> 2, (a.value ->> 3)::bigint, (a.value ->> 4)::boolean,
         a.value ->> 5, a.value ->> 6, a.value ->> 2, (a.value ->> 7)::bigint,
         least((a.value ->> 8)::bigint, token.expires_at), token.alias_entry
     FROM jsonb_array_elements($1::jsonb) AS a LEFT JOIN svid_join_tokens AS token
         ON token.token = a.value ->> 9 AND token.expires_at > (a.value ->> 7)::bigint
     WHERE a.value ->> 9 IS NULL OR token.token IS NOT NULL
     ON CONFLICT (spiffe_id) DO NOTHING RETURNING serial",
);

const CONSUME: Sql = Sql::each(
    "DELETE FROM svid_join_tokens WHERE token IN (SELECT value FROM json_each($1))",
    "DELETE FROM svid_join_tokens WHERE token IN (SELECT jsonb_array_elements_text($1::jsonb))",
);

/// Saves what is new, and consumes its tokens. Returns the serial numbers that were saved.
async fn save_new(tx: &mut Tx<'_>, items: &[Waiting]) -> Result<HashSet<String>, StoreError> {
    let mut rows = Vec::with_capacity(items.len());
    for Waiting { op, .. } in items {
        let node = &op.node;
        rows.push((
            node.id.as_str(),
            &node.attestation_type,
            &node.serial,
            node.expires_at,
            node.can_reattest,
            selectors_json(&node.selectors)?,
            hex::encode(node.key_hash),
            op.now,
            op.now.saturating_add(ANSWER_SECONDS),
            op.token.as_deref(),
        ));
    }
    let saved: Vec<String> = tx.conn.fetch_column(SAVE_NEW, args![&json(&rows)?]).await?;
    let saved: HashSet<String> = saved.into_iter().collect();
    let tokens: Vec<&str> = (items.iter())
        .filter(|waiting| saved.contains(&waiting.op.node.serial))
        .filter_map(|waiting| waiting.op.token.as_deref())
        .collect();
    if !tokens.is_empty() {
        tx.conn.execute(CONSUME, args![&json(&tokens)?]).await?;
    }
    Ok(saved)
}
