//! What is stored, in domain types.

use std::path::PathBuf;

use svid_core::bundle::Bundle;
use svid_core::entry::{Entry, EntryId, EntrySpec};
use svid_core::federation::Relationship;
use svid_core::id::{SpiffeId, TrustDomain};
use svid_core::selector::SelectorSet;

use super::{PostgresConfig, StoreError};

/// Which database, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Database {
    /// A file.
    Sqlite(PathBuf),
    /// A PostgreSQL server.
    Postgres(Box<PostgresConfig>),
}

/// Where the database is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// Which one.
    pub database: Database,
    /// An older schema is brought up to date; else it is refused (`disable_migration`).
    pub migrate: bool,
}

impl StoreConfig {
    /// This SQLite file.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { database: Database::Sqlite(path.into()), migrate: true }
    }

    /// This PostgreSQL database.
    pub fn postgres(config: PostgresConfig) -> Self {
        Self { database: Database::Postgres(Box::new(config)), migrate: true }
    }

    /// Reads SPIRE's `connection_string` for `sqlite3`: a path, or `file:<path>?<options>`. WAL, full synchronisation
    /// and foreign keys are always on, so options are not looked at.
    /// # Errors
    /// [`StoreError::Config`] for another scheme, an empty path, and databases in memory.
    pub fn sqlite(connection_string: &str) -> Result<Self, StoreError> {
        let (text, options) = connection_string.split_once('?').unwrap_or((connection_string, ""));
        let path = match text.split_once(':') {
            Some(("file", path)) => path.strip_prefix("//").unwrap_or(path),
            Some((scheme, _)) if scheme.bytes().all(|b| b.is_ascii_alphanumeric()) && !scheme.is_empty() => {
                return Err(StoreError::Config(format!(
                    "unsupported scheme {scheme:?} in connection_string"
                )));
            }
            _ => text,
        };
        if path.is_empty() {
            return Err(StoreError::Config("connection_string must be set".into()));
        }
        if path.contains(":memory:") || options.split('&').any(|option| option == "mode=memory") {
            return Err(StoreError::Config(
                "connection_string must name a file: a database in memory is lost".into(),
            ));
        }
        Ok(Self::at(path))
    }
}

/// A point in the change log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Random; another one means that history was replaced.
    pub epoch: [u8; 16],
    /// Number of the last change that is included.
    pub seq: u64,
}

/// What a line of the change log is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// An entry; the key is its ID.
    Entry,
    /// A node; the key is its SPIFFE ID.
    Node,
    /// A bundle; the key is the trust domain's name.
    Bundle,
    /// A federation relationship; the key is the trust domain's name.
    Federation,
}

impl Kind {
    pub(crate) fn code(self) -> i64 {
        match self {
            Self::Entry => 1,
            Self::Node => 2,
            Self::Bundle => 3,
            Self::Federation => 4,
        }
    }

    pub(crate) fn from_code(code: i64) -> Result<Self, StoreError> {
        match code {
            1 => Ok(Self::Entry),
            2 => Ok(Self::Node),
            3 => Ok(Self::Bundle),
            4 => Ok(Self::Federation),
            _ => Err(StoreError::corrupt("change log line", format!("kind {code}"))),
        }
    }
}

/// A line of the change log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Position in the log, without gaps.
    pub seq: u64,
    /// Random: tells two histories apart.
    pub tag: i64,
    /// What changed.
    pub kind: Kind,
    /// Which one.
    pub key: String,
}

/// Where a reader of the log stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The last line that was read.
    pub position: Position,
    /// That line's tag; `None` if there was no line.
    pub tag: Option<i64>,
}

/// An entry and its place in listings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEntry {
    /// Grows with creation; page tokens are made of it.
    pub row: u64,
    /// The entry.
    pub entry: Entry,
}

/// The rows behind the lines of one [`Changes::Lines`]; `None` where the row is gone.
#[derive(Debug, Default)]
pub struct Rows {
    /// By entry ID.
    pub entries: Vec<(String, Option<StoredEntry>)>,
    /// By SPIFFE ID.
    pub nodes: Vec<(String, Option<Node>)>,
    /// By trust domain name.
    pub bundles: Vec<(String, Option<Bundle>)>,
    /// By trust domain name.
    pub relationships: Vec<(String, Option<StoredRelationship>)>,
}

/// What a reader of the log finds after its cursor.
#[derive(Debug)]
pub enum Changes {
    /// Lines in order, perhaps none, and the rows they name, all of one snapshot.
    Lines {
        /// Where the reader stands once it has applied them.
        cursor: Cursor,
        /// The lines.
        lines: Vec<Line>,
        /// The rows, each key once.
        rows: Rows,
    },
    /// The lines are not there any more, or history itself is another: load a snapshot.
    Reload(Reload),
}

/// Why a reader has to begin anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// The lines after its cursor are gone, as happens to one that was away for long.
    Pruned,
    /// Somebody noted a new history (a restored copy, or what another server found out).
    OtherEpoch,
    /// The reader's own line is not there or is another, under the same epoch: a database that lost writes, such as a
    /// copy put in place of the original or a standby that was promoted before it had them all.
    Rewritten,
}

/// An entry to be created.
#[derive(Clone, Debug)]
pub struct CreateEntry {
    /// The caller's choice; a random UUID when absent.
    pub id: Option<EntryId>,
    /// What to register, checked.
    pub spec: EntrySpec,
}

/// What came of creating an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Created {
    /// It was created.
    New(Entry),
    /// One with the same SPIFFE ID, parent and selectors was there before. Nothing was written.
    Existing(Entry),
}

/// A change to an entry: fields that are `None` stay.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)] // the fields of `EntrySpec`
pub struct EntryPatch {
    pub spiffe_id: Option<SpiffeId>,
    pub parent_id: Option<SpiffeId>,
    pub selectors: Option<SelectorSet>,
    pub x509_svid_ttl: Option<i32>,
    pub jwt_svid_ttl: Option<i32>,
    pub federates_with: Option<Vec<TrustDomain>>,
    pub admin: Option<bool>,
    pub downstream: Option<bool>,
    pub expires_at: Option<i64>,
    pub dns_names: Option<Vec<String>>,
    pub store_svid: Option<bool>,
    pub hint: Option<String>,
    pub disable_x509_svid_prefetch: Option<bool>,
    pub jwt_svid_include_jti: Option<bool>,
}

impl EntryPatch {
    /// Applies the change.
    pub fn apply(&self, spec: &mut EntrySpec) {
        fn set<T: Clone>(to: &mut T, from: &Option<T>) {
            if let Some(value) = from {
                to.clone_from(value);
            }
        }
        set(&mut spec.spiffe_id, &self.spiffe_id);
        set(&mut spec.parent_id, &self.parent_id);
        set(&mut spec.selectors, &self.selectors);
        set(&mut spec.x509_svid_ttl, &self.x509_svid_ttl);
        set(&mut spec.jwt_svid_ttl, &self.jwt_svid_ttl);
        set(&mut spec.federates_with, &self.federates_with);
        set(&mut spec.admin, &self.admin);
        set(&mut spec.downstream, &self.downstream);
        set(&mut spec.expires_at, &self.expires_at);
        set(&mut spec.dns_names, &self.dns_names);
        set(&mut spec.store_svid, &self.store_svid);
        set(&mut spec.hint, &self.hint);
        set(&mut spec.disable_x509_svid_prefetch, &self.disable_x509_svid_prefetch);
        set(&mut spec.jwt_svid_include_jti, &self.jwt_svid_include_jti);
    }
}

/// A change of every field.
impl From<EntrySpec> for EntryPatch {
    fn from(spec: EntrySpec) -> Self {
        Self {
            spiffe_id: Some(spec.spiffe_id),
            parent_id: Some(spec.parent_id),
            selectors: Some(spec.selectors),
            x509_svid_ttl: Some(spec.x509_svid_ttl),
            jwt_svid_ttl: Some(spec.jwt_svid_ttl),
            federates_with: Some(spec.federates_with),
            admin: Some(spec.admin),
            downstream: Some(spec.downstream),
            expires_at: Some(spec.expires_at),
            dns_names: Some(spec.dns_names),
            store_svid: Some(spec.store_svid),
            hint: Some(spec.hint),
            disable_x509_svid_prefetch: Some(spec.disable_x509_svid_prefetch),
            jwt_svid_include_jti: Some(spec.jwt_svid_include_jti),
        }
    }
}

/// One entry and its change.
#[derive(Clone, Debug)]
pub struct UpdateEntry {
    /// Which entry.
    pub id: EntryId,
    /// What changes.
    pub patch: EntryPatch,
}

/// Which certificates of a node are good. Serial numbers are decimal, as SPIRE writes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Serial {
    /// None, until the node is deleted.
    Banned,
    /// `current`, and `next` if it was issued and not yet seen in use.
    Active {
        /// The serial number in use.
        current: String,
        /// A renewal's serial number and the end of its certificate (Unix seconds).
        next: Option<(String, i64)>,
    },
}

/// An attested node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Grows with attestation; page tokens are made of it.
    pub row: u64,
    /// The agent's ID.
    pub id: SpiffeId,
    /// The node attestor's name, such as `join_token`.
    pub attestation_type: String,
    /// Which certificates are good.
    pub serial: Serial,
    /// Unix seconds: the end of the current certificate.
    pub expires_at: i64,
    /// True if the node must attest again instead of renewing.
    pub can_reattest: bool,
    /// What the agent last said it runs, or empty.
    pub agent_version: String,
    /// Facts the attestor found.
    pub selectors: SelectorSet,
    /// The current certificate was seen in use.
    pub used: bool,
    /// Unix seconds: when an old certificate was last used after its successor, which a copy of the agent's data would
    /// do; 0 for never.
    pub suspected_at: i64,
    /// Unix seconds: the node came back with a backup of this moment and has not renewed since, so its agent may have a
    /// later certificate than the known ones; 0 for any other node.
    pub adopt_from: i64,
}

/// What attestation found out about a node.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // as in `Node`
pub struct NewNode {
    pub id: SpiffeId,
    pub attestation_type: String,
    pub serial: String,
    pub expires_at: i64,
    pub can_reattest: bool,
    pub selectors: SelectorSet,
    /// SHA-256 of the public key in DER: who may ask again for an answer that got lost.
    pub key_hash: [u8; 32],
}

/// What happens to entries that federate with a bundle that is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeleteMode {
    /// The deletion is refused while there are such entries.
    Restrict,
    /// They are deleted.
    Delete,
    /// They stay and federate no more.
    Dissociate,
}

/// Which parts of a bundle an update replaces.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)] // the fields of `Bundle`
pub struct BundleMask {
    pub x509_authorities: bool,
    pub jwt_authorities: bool,
    pub refresh_hint: bool,
    pub sequence_number: bool,
}

impl BundleMask {
    /// Everything.
    pub const ALL: Self =
        Self { x509_authorities: true, jwt_authorities: true, refresh_hint: true, sequence_number: true };
}

/// Names one authority of a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthorityRef {
    /// An X.509 root, by its subject key ID in lower-case hex.
    X509(String),
    /// A JWT key, by its key ID.
    Jwt(String),
}

/// A federation relationship and its place in listings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRelationship {
    /// Grows with creation; page tokens are made of it.
    pub row: u64,
    /// The relationship.
    pub relationship: Relationship,
}

/// Which parts of a relationship an update replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the fields of `Relationship`
pub struct RelationshipMask {
    pub url: bool,
    pub profile: bool,
}

/// What went with a relationship that ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Withdrawn {
    /// The trust domain's bundle was there.
    pub bundle: bool,
    /// Entries that federated with the trust domain, and do no more.
    pub entries: u64,
}

/// A bundle as an endpoint gave it.
#[derive(Clone, Debug)]
pub struct FetchedBundle {
    /// Its content, under the name of the trust domain that was asked for.
    pub bundle: Bundle,
    /// The document states a sequence number.
    pub has_sequence: bool,
    /// The relationship must still be stored like this; `None` for one of the configuration.
    pub fetched_for: Option<Relationship>,
    /// An older bundle than the stored one is taken as well.
    pub force: bool,
    /// Unix seconds.
    pub now: i64,
}

/// What became of a fetched bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// It is what was stored already.
    Unchanged,
    /// It took the place of what was stored.
    Replaced {
        /// Although both have the same number.
        same_sequence: bool,
    },
    /// It is older than what the endpoint gave before: what is stored stays.
    Older {
        /// Its sequence number.
        offered: u64,
        /// The last one.
        known: u64,
    },
    /// The relationship ended or was changed meanwhile.
    Ended,
}

/// Where a stored bundle comes from. Times are Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchRecord {
    /// The document's sequence number; `None` if it states none.
    pub sequence_number: Option<u64>,
    /// When its content was fetched first.
    pub fetched_at: i64,
    /// When the endpoint gave the same again, to ten minutes.
    pub confirmed_at: i64,
}
