//! What the directory is asked and what it answers.

use svid_core::entry::{Entry, EntryId};
use svid_core::id::{SpiffeId, TrustDomain};
use svid_core::selector::{SelectorSet, SetMatch};

use crate::store::{Node, Position};

/// Which entries a listing wants. Fields that are `None` let everything through.
#[derive(Clone, Debug, Default)]
pub struct EntryFilter {
    /// Exactly this SPIFFE ID.
    pub spiffe_id: Option<SpiffeId>,
    /// Exactly this parent.
    pub parent_id: Option<SpiffeId>,
    /// Selectors in this relation.
    pub selectors: Option<(SelectorSet, SetMatch)>,
    /// Trust domains to federate with in this relation.
    pub federates_with: Option<(Vec<TrustDomain>, SetMatch)>,
    /// Exactly this hint.
    pub hint: Option<String>,
    /// Downstream or not.
    pub downstream: Option<bool>,
}

/// Which nodes a listing wants. Fields that are `None` let everything through.
#[derive(Clone, Debug, Default)]
pub struct NodeFilter {
    /// Exactly this attestor.
    pub attestation_type: Option<String>,
    /// Selectors in this relation.
    pub selectors: Option<(SelectorSet, SetMatch)>,
    /// Banned or not.
    pub banned: Option<bool>,
    /// May attest again or not.
    pub can_reattest: Option<bool>,
    /// The certificate ends before this moment (Unix seconds).
    pub expires_before: Option<i64>,
}

/// A part of a listing, in order of creation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Begin after this row; 0 begins at the start.
    pub after: u64,
    /// At most so many; 0 for all.
    pub size: usize,
}

/// One page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing<T> {
    /// The items.
    pub items: Vec<T>,
    /// Where the next page begins; `None` if this one is empty or was not limited.
    pub next: Option<u64>,
}

/// A node as the directory holds it.
pub type NodeView = Node;

/// An agent's certificate, after its chain and its life were checked. Times are Unix seconds.
#[derive(Clone, Copy, Debug)]
pub struct AgentCert<'a> {
    /// The agent's ID.
    pub id: &'a SpiffeId,
    /// Decimal, as node rows hold it.
    pub serial: &'a str,
    /// Its beginning, which is back-dated.
    pub not_before: i64,
    /// Its end.
    pub not_after: i64,
}

/// An agent that may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AgentOk {
    /// The node must attest again instead of renewing.
    pub can_reattest: bool,
    /// This call was the first with a renewed certificate.
    pub promoted: bool,
}

/// Why an agent may not call. The agent acts on it: see `spire-server.md`, 2.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AgentDenied {
    /// The certificate is over.
    #[error("agent SVID is expired")]
    Expired,
    /// There is no such node.
    #[error("agent is not attested")]
    NotAttested,
    /// The certificate's serial number is neither the current nor the next one.
    #[error("agent SVID is not active")]
    NotActive,
    /// An operator banned the node.
    #[error("agent is banned")]
    Banned,
}

/// Why [`Directory::verify_agent`](super::Directory::verify_agent) did not let an agent through.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AgentRefusal {
    /// It is denied, and memory was up to date when that was found.
    #[error(transparent)]
    Denied(AgentDenied),
    /// Memory alone says no and the database cannot be asked: the agent shall try again.
    #[error("the authorization state cannot be brought up to date")]
    Unavailable(#[source] Unavailable),
}

/// Memory could not be brought up to the log.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Unavailable {
    /// The database cannot be asked.
    #[error("the database cannot be asked")]
    Store(#[from] crate::store::StoreError),
    /// The database answered, and the log was not applied in time.
    #[error("the change log was not applied in time")]
    Behind,
}

/// Enough to see that a cached entry is out of date.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryRevision {
    /// The entry.
    pub id: EntryId,
    /// Its revision.
    pub revision: i64,
    /// Unix seconds; tells apart two entries that had the same ID.
    pub created_at: i64,
}

/// What changed for an agent.
#[derive(Clone, Debug)]
pub struct Delta {
    /// Where the agent stands once it has applied this.
    pub position: Position,
    /// `revisions` is the whole authorised list.
    pub snapshot: bool,
    /// Entries that became authorised or changed.
    pub upserts: Vec<Entry>,
    /// Entries that are gone or no longer authorised.
    pub removed: Vec<EntryId>,
    /// Only with `snapshot`.
    pub revisions: Vec<EntryRevision>,
    /// Trust domains whose bundle changed.
    pub bundles_changed: Vec<TrustDomain>,
}

/// Why a watch ended: the agent's authorisation did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// The node was banned.
    Banned,
    /// The node was deleted.
    Evicted,
    /// The node's certificate is over.
    Expired,
    /// The directory is gone: the server is shutting down.
    Closed,
}
