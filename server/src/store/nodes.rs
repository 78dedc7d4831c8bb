//! Nodes and join tokens.

use async_trait::async_trait;
use svid_core::id::SpiffeId;
use tokio::sync::mpsc;

use super::answers::{self, ANSWER_SECONDS, Admitted, MarkUsed, SuspectClone};
use super::codec::{NODE_COLUMNS, json, node_columns, node_from_row, selectors_json};
use super::db::{Sql, args};
use super::entries::{self, Outcome, Prepared};
use super::metrics::Operation;
use super::writer::{Committed, Job, Tx, Write};
use super::{CreateEntry, Kind, NewNode, Node, Serial, Store, StoreError};

/// A token, and the alias entry that comes with it.
pub(super) struct CreateToken {
    pub(super) token: String,
    pub(super) expires_at: i64,
    pub(super) alias: Option<Prepared>,
}

#[async_trait]
impl Write for CreateToken {
    type Out = Result<(), StoreError>;
    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Out, StoreError> {
        let sql = "SELECT EXISTS (SELECT 1 FROM svid_join_tokens WHERE token = $1)";
        if tx.conn.fetch_one(sql, args![&self.token]).await?.get(0)? {
            return Ok(Err(StoreError::AlreadyExists("join token")));
        }
        if let Some(alias) = &self.alias {
            let outcome = entries::create(tx, std::slice::from_ref(alias)).await?.pop();
            match outcome {
                Some(Outcome::New) => {}
                Some(Outcome::Refused(error)) => return Ok(Err(error)),
                Some(Outcome::Existing(_)) | None => {
                    return Ok(Err(StoreError::AlreadyExists("alias entry")));
                }
            }
        }
        let alias = self.alias.as_ref().map(|alias| alias.entry.id.as_str());
        let sql = "INSERT INTO svid_join_tokens (token, expires_at, alias_entry) VALUES ($1, $2, $3)";
        tx.conn.execute(sql, args![&self.token, self.expires_at, alias]).await?;
        Ok(Ok(()))
    }
}

/// Creates a node, or gives a node that attests again its new certificate.
pub(super) struct Attest {
    pub(super) node: NewNode,
    /// Consumed in the same transaction.
    pub(super) token: Option<String>,
    pub(super) now: i64,
}

/// The columns of a new node and what a known node keeps, around where the alias comes from. A banned node stays.
macro_rules! save_node {
    ($alias:literal, $unless:literal) => {
        concat!(
            "INSERT INTO svid_nodes
                 (spiffe_id, attestation_type, serial, expires_at, can_reattest, selectors, answer_key,
                  answer_serial, answered_at, answer_until, alias_entry)
             SELECT $1, $2, $3, $4, $5, $6, $9, $3, $8, ",
            $alias,
            " ON CONFLICT (spiffe_id) DO UPDATE SET attestation_type = $2, serial = $3, expires_at = $4,
                 new_serial = '', new_expires_at = 0, adopt_from = 0, can_reattest = $5, selectors = $6, answer_key = $9,
                 answer_serial = $3, answered_at = $8, answer_until = excluded.answer_until,
                 alias_entry = coalesce(excluded.alias_entry, svid_nodes.alias_entry)
             WHERE svid_nodes.serial != ''",
            $unless
        )
    };
}

/// Without a token a known node is only saved again if its kind of proof may be given twice.
const SAVE: &str = save_node!("$10, NULL WHERE true", " AND $5");
macro_rules! save_with_token {
    () => {
        save_node!(
            "CASE WHEN expires_at < $10 THEN expires_at ELSE $10 END, alias_entry FROM svid_join_tokens
             WHERE token = $7 AND expires_at > $8",
            ""
        )
    };
}
/// The token goes if and only if the node was saved: of any number of attestations with one token, one sees its row,
/// and a refused attestation costs no token.
const SAVE_AND_CONSUME: Sql = Sql::each(
    concat!(save_with_token!(), "; DELETE FROM svid_join_tokens WHERE token = $7 AND changes() = 1"),
    concat!(
        "WITH saved AS (",
        save_with_token!(),
        " RETURNING 1) DELETE FROM svid_join_tokens WHERE token = $7 AND EXISTS (SELECT 1 FROM saved)"
    ),
);

#[async_trait]
impl Write for Attest {
    type Out = Result<Admitted, StoreError>;
    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Out, StoreError> {
        let replaced = self.replaced_alias(tx).await?;
        let sql = if self.token.is_some() { SAVE_AND_CONSUME } else { SAVE.into() };
        let node = &self.node;
        let (selectors, key) = (selectors_json(&node.selectors)?, hex::encode(node.key_hash));
        let args = args![
            node.id.as_str(),
            &node.attestation_type,
            &node.serial,
            node.expires_at,
            node.can_reattest,
            &selectors,
            self.token.as_deref(),
            self.now,
            &key,
            self.now.saturating_add(ANSWER_SECONDS),
        ];
        if tx.conn.execute(sql, args).await? == 0 {
            return self.not_saved(tx).await;
        }
        tx.log(Kind::Node, self.node.id.as_str());
        if let Some(alias) = replaced {
            entries::delete(tx, &json(&[alias])?).await?;
        }
        Ok(Ok(Admitted::New))
    }
}

impl Attest {
    /// Nothing was saved: the proof is used up. Whoever used it may ask again for an answer that got lost.
    async fn not_saved(&self, tx: &mut Tx<'_>) -> Result<Result<Admitted, StoreError>, StoreError> {
        match self.refusal(tx).await? {
            refusal @ (StoreError::TokenUnknown | StoreError::CannotReattest) => {
                let answered = answers::answered(tx, &self.node, self.now).await?;
                Ok(answered.map(Admitted::Again).ok_or(refusal))
            }
            refusal => Ok(Err(refusal)),
        }
    }

    /// The alias entry of a known node in whose place the token's comes: nothing would delete it with the node.
    async fn replaced_alias(&self, tx: &mut Tx<'_>) -> Result<Option<String>, StoreError> {
        let Some(token) = &self.token else { return Ok(None) };
        let sql = "SELECT node.alias_entry FROM svid_nodes AS node, svid_join_tokens AS token
             WHERE node.spiffe_id = $1 AND token.token = $2 AND node.alias_entry != token.alias_entry";
        let alias = tx.conn.fetch_optional(sql, args![self.node.id.as_str(), token]).await?;
        alias.map(|row| row.get(0)).transpose()
    }

    /// Why nothing was saved.
    async fn refusal(&self, tx: &mut Tx<'_>) -> Result<StoreError, StoreError> {
        let sql = "SELECT (SELECT serial FROM svid_nodes WHERE spiffe_id = $1),
                 EXISTS (SELECT 1 FROM svid_join_tokens WHERE token = $2)";
        let row = tx.conn.fetch_one(sql, args![self.node.id.as_str(), self.token.as_deref()]).await?;
        let serial: Option<&str> = row.get(0)?;
        Ok(match (serial, row.get(1)?) {
            (Some(""), _) => StoreError::Banned,
            (_, true) => StoreError::TokenExpired,
            (_, false) if self.token.is_some() => StoreError::TokenUnknown,
            (_, false) => StoreError::CannotReattest,
        })
    }
}

/// A change to one node's row.
pub(super) struct ChangeNode {
    pub(super) id: SpiffeId,
    pub(super) change: NodeChange,
}

pub(super) enum NodeChange {
    /// The next serial number and the end of its certificate, for who called with `caller`. Refused for a banned node
    /// and for a caller whose certificate another one has replaced meanwhile. A caller with the next certificate has
    /// it in use: it becomes the current one, whether or not that was written before. `seen` was the next one when the
    /// call came in: a call that was held up does not undo a renewal that was answered meanwhile.
    Renew {
        caller: String,
        seen: String,
        serial: String,
        ends: i64,
    },
    /// The next serial number becomes the current one if it still is the next: a ban wins.
    Activate(String),
    /// A certificate that was issued after the backup from which the node came back takes the place of those that the
    /// backup knows. Once for a node, and not if it renewed since, attested again or is banned.
    Adopt {
        serial: String,
        ends: i64,
    },
    Ban,
    AgentVersion(String),
}

const RENEW: &str = "UPDATE svid_nodes SET
         expires_at = CASE WHEN new_serial = $4 THEN new_expires_at ELSE expires_at END,
         serial = $4, used_serial = $4, new_serial = $2, new_expires_at = $3, adopt_from = 0
     WHERE spiffe_id = $1 AND serial != '' AND $4 IN (serial, new_serial) AND new_serial IN ('', $4, $5)";
const ACTIVATE: &str =
    "UPDATE svid_nodes SET serial = new_serial, used_serial = new_serial, expires_at = new_expires_at,
         new_serial = '', new_expires_at = 0, adopt_from = 0
     WHERE spiffe_id = $1 AND new_serial = $2 AND serial != ''";
/// Whoever comes second finds `adopt_from` cleared.
const ADOPT: &str = "UPDATE svid_nodes SET serial = $2, used_serial = $2, expires_at = $3,
         new_serial = '', new_expires_at = 0, adopt_from = 0
     WHERE spiffe_id = $1 AND adopt_from > 0 AND serial != '' AND $2 NOT IN (serial, new_serial)";
const BAN: &str =
    "UPDATE svid_nodes SET serial = '', new_serial = '', new_expires_at = 0 WHERE spiffe_id = $1";
const AGENT_VERSION: &str = "UPDATE svid_nodes SET agent_version = $2 WHERE spiffe_id = $1";

#[async_trait]
impl Write for ChangeNode {
    /// False if the row is not there or does not fit the change's condition.
    type Out = bool;
    async fn run(&self, tx: &mut Tx<'_>) -> Result<bool, StoreError> {
        let id = self.id.as_str();
        let changed = match &self.change {
            NodeChange::Renew { caller, seen, serial, ends } => {
                tx.conn.execute(RENEW, args![id, serial, *ends, caller, seen]).await?
            }
            NodeChange::Activate(serial) => tx.conn.execute(ACTIVATE, args![id, serial]).await?,
            NodeChange::Adopt { serial, ends } => tx.conn.execute(ADOPT, args![id, serial, *ends]).await?,
            NodeChange::Ban => tx.conn.execute(BAN, args![id]).await?,
            NodeChange::AgentVersion(version) => tx.conn.execute(AGENT_VERSION, args![id, version]).await?,
        };
        let changed = changed > 0;
        if changed {
            tx.log(Kind::Node, self.id.as_str());
        }
        Ok(changed)
    }
}

/// Deletes a node with the alias entry of its join token.
pub(super) struct DeleteNode(pub(super) SpiffeId);

#[async_trait]
impl Write for DeleteNode {
    type Out = Option<Node>;
    async fn run(&self, tx: &mut Tx<'_>) -> Result<Option<Node>, StoreError> {
        let sql = concat!(
            "DELETE FROM svid_nodes WHERE spiffe_id = $1 RETURNING ",
            node_columns!(),
            ", alias_entry"
        );
        let Some(row) = tx.conn.fetch_all(sql, args![self.0.as_str()]).await?.pop() else {
            return Ok(None);
        };
        tx.log(Kind::Node, self.0.as_str());
        if let Some(alias) = row.get::<Option<String>>(NODE_COLUMNS)? {
            entries::delete(tx, &json(&[alias])?).await?;
        }
        node_from_row(&row).map(Some)
    }
}

/// Which nodes housekeeping deletes.
#[derive(Clone, Copy, Debug)]
pub struct PruneNodes {
    /// Those whose certificate ended before this moment (Unix seconds). Banned nodes stay.
    pub expired_before: i64,
    /// Also those that cannot attest again by themselves.
    pub include_tofu: bool,
    /// At most so many.
    pub limit: u32,
}

#[async_trait]
impl Write for PruneNodes {
    type Out = u64;
    async fn run(&self, tx: &mut Tx<'_>) -> Result<u64, StoreError> {
        let sql = "DELETE FROM svid_nodes WHERE row IN (
                 SELECT row FROM svid_nodes WHERE expires_at < $1 AND new_expires_at < $1 AND adopt_from < $1 AND serial != ''
                     AND (can_reattest OR $2) ORDER BY expires_at LIMIT $3)
             RETURNING spiffe_id, alias_entry";
        let args = args![self.expired_before, self.include_tofu, i64::from(self.limit)];
        let gone = tx.conn.fetch_all(sql, args).await?;
        let mut aliases: Vec<String> = Vec::new();
        for row in &gone {
            tx.log(Kind::Node, row.get::<&str>(0)?);
            aliases.extend(row.get::<Option<String>>(1)?);
        }
        entries::delete(tx, &json(&aliases)?).await?;
        Ok(gone.len() as u64)
    }
}

/// Deletes at most 500 tokens that ended, with their alias entries, which nobody can reach any more.
pub(super) struct PruneTokens {
    pub(super) expired_before: i64,
}

#[async_trait]
impl Write for PruneTokens {
    type Out = u64;
    async fn run(&self, tx: &mut Tx<'_>) -> Result<u64, StoreError> {
        let sql = "DELETE FROM svid_join_tokens WHERE token IN (
                 SELECT token FROM svid_join_tokens WHERE expires_at < $1 LIMIT 500)
             RETURNING alias_entry";
        let gone: Vec<Option<String>> = tx.conn.fetch_column(sql, args![self.expired_before]).await?;
        let aliases: Vec<&String> = gone.iter().flatten().collect();
        entries::delete(tx, &json(&aliases)?).await?;
        Ok(gone.len() as u64)
    }
}

impl Store {
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
            self.write(CreateToken { token: token.to_owned(), expires_at, alias }).await?
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
    fn send_for_all(&self, job: Box<dyn Job>) {
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
        let work = async { self.write(DeleteNode(id.clone())).await?.ok_or(StoreError::NotFound("agent")) };
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
}
