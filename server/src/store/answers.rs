//! Which certificates of a node were seen in use, and the answers to attestations that may have got lost.

use async_trait::async_trait;
use svid_core::id::SpiffeId;

use super::codec::json;
use super::db::{Sql, args};
use super::writer::{Tx, Write};
use super::{Kind, NewNode, StoreError};

/// How long after an attestation its answer is given again, in seconds.
pub(super) const ANSWER_SECONDS: i64 = 300;

/// What came of an attestation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admitted {
    /// The node was saved.
    New,
    /// The same key asked again for an answer that nobody used yet. Nothing was written.
    Again(Answered),
}

/// The certificate of an attestation, to be signed once more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// Its serial number, decimal.
    pub serial: String,
    /// Unix seconds: when it was given.
    pub answered_at: i64,
    /// Unix seconds: its end.
    pub expires_at: i64,
}

const ANSWERED: &str = "SELECT serial, answered_at, expires_at FROM svid_nodes
     WHERE spiffe_id = $1 AND attestation_type = $2 AND NOT can_reattest AND answer_key = $3
         AND serial != '' AND serial = answer_serial AND serial != used_serial AND new_serial = ''
         AND answer_until > $4 AND expires_at > $4";

/// The answer that a key got to an attestation of `node` whose proof is used up: good for as long as it was said, until
/// its certificate is first used, and while the node is neither banned nor gone.
pub(super) async fn answered(
    tx: &mut Tx<'_>,
    node: &NewNode,
    now: i64,
) -> Result<Option<Answered>, StoreError> {
    let key = hex::encode(node.key_hash);
    let args = args![node.id.as_str(), &node.attestation_type, &key, now];
    let Some(row) = tx.conn.fetch_optional(ANSWERED, args).await? else { return Ok(None) };
    Ok(Some(Answered { serial: row.get(0)?, answered_at: row.get(1)?, expires_at: row.get(2)? }))
}

const MARK_USED: Sql = Sql::each(
    "UPDATE svid_nodes SET used_serial = serial FROM json_each($1) AS seen
     WHERE spiffe_id = seen.value ->> 0 AND serial = seen.value ->> 1",
    "UPDATE svid_nodes SET used_serial = serial FROM jsonb_array_elements($1::jsonb) AS seen
     WHERE spiffe_id = seen.value ->> 0 AND serial = seen.value ->> 1",
);

/// Notes that certificates were seen in use: IDs and serial numbers. The change log says nothing of it: each server
/// notices by itself, and the database is asked where it matters.
pub(super) struct MarkUsed(pub(super) Vec<(SpiffeId, String)>);

#[async_trait]
impl Write for MarkUsed {
    type Out = ();
    async fn run(&self, tx: &mut Tx<'_>) -> Result<(), StoreError> {
        let used: Vec<(&str, &str)> =
            self.0.iter().map(|(id, serial)| (id.as_str(), serial.as_str())).collect();
        tx.conn.execute(MARK_USED, args![&json(&used)?]).await.map(drop)
    }
}

/// Notes that a certificate with the number `serial` showed up after its successor was used. False if that is not so.
pub(super) struct SuspectClone {
    pub(super) id: SpiffeId,
    pub(super) serial: String,
    /// The directory saw the current certificate in use, whether or not that was written already.
    pub(super) is_known: bool,
    pub(super) now: i64,
}

const SUSPECT: &str = "UPDATE svid_nodes SET suspected_at = $3
     WHERE spiffe_id = $1 AND serial != ''
         AND ($4 OR (serial = used_serial AND $2 NOT IN (serial, new_serial)))";

#[async_trait]
impl Write for SuspectClone {
    type Out = bool;
    async fn run(&self, tx: &mut Tx<'_>) -> Result<bool, StoreError> {
        let args = args![self.id.as_str(), &self.serial, self.now, self.is_known];
        let noted = tx.conn.execute(SUSPECT, args).await? > 0;
        if noted {
            tx.log(Kind::Node, self.id.as_str());
        }
        Ok(noted)
    }
}
