//! What can go wrong in the database, in words that the API turns into SPIRE's codes.

use std::sync::Arc;

use sqlx::postgres::PgDatabaseError;
use sqlx::sqlite::SqliteError;
use svid_core::entry::EntryError;
use svid_core::id::TrustDomain;

/// Why a read or a write did not happen. A write that is refused has changed nothing.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The row does not exist. The text says which kind of row, as in `record not found`.
    #[error("{0} not found")]
    NotFound(&'static str),
    /// A row with this key exists.
    #[error("{0} already exists")]
    AlreadyExists(&'static str),
    /// The change contradicts what is stored (revoking an authority that is not tainted, for example).
    #[error("{0}")]
    Conflict(&'static str),
    /// After the change the entry would break a rule.
    #[error("{0}")]
    Invalid(#[from] EntryError),
    /// An entry federates with a trust domain that has no bundle.
    #[error("unable to find federated bundle \"spiffe://{0}\"")]
    FederatedBundleMissing(TrustDomain),
    /// A bundle cannot be deleted in restrict mode while entries federate with it. Holds their number.
    #[error("datastore-sql: cannot delete bundle; federated with {0} registration entries")]
    BundleInUse(u64),
    /// The join token is unknown or was used before.
    #[error("join token does not exist or has already been used")]
    TokenUnknown,
    /// The join token's time is over.
    #[error("join token expired")]
    TokenExpired,
    /// The node is banned: it may neither attest nor renew.
    #[error("agent is banned")]
    Banned,
    /// Another renewal of the node was answered while this one waited.
    #[error("another renewal of the agent overtook this one")]
    Overtaken,
    /// The node is attested already, and its attestor trusts only the first use of its proof.
    #[error("attestation data has already been used to attest an agent")]
    CannotReattest,
    /// Another living server holds this server id.
    #[error("server id {0} is in use by another running server")]
    ServerIdHeld(String),
    /// The database is of another making or of a later version. The text says what to do.
    #[error("{0}")]
    Schema(String),
    /// The connection string or another setting cannot be used.
    #[error("{0}")]
    Config(String),
    /// The database cannot be reached, is locked or full: try again later.
    #[error("the database is not available{}", known_reason(.0))]
    Unavailable(#[source] Arc<sqlx::Error>),
    /// The writer has stopped: the server is shutting down.
    #[error("the database is closed")]
    Closed,
    /// A stored row cannot be understood.
    #[error("stored {what} cannot be read: {why}")]
    Corrupt {
        /// Which row.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Anything else the database said.
    #[error("the database refused a statement")]
    Internal(#[source] Arc<sqlx::Error>),
}

impl StoreError {
    /// A row that does not decode.
    pub(crate) fn corrupt(what: &'static str, why: impl std::fmt::Display) -> Self {
        Self::Corrupt { what, why: why.to_string() }
    }

    /// True if the connection turned out to be dead, as one that was not used for a while may be. Silence is another
    /// matter: a fresh connection would meet the same.
    pub(crate) fn lost_connection(&self) -> bool {
        let Self::Unavailable(error) = self else { return false };
        match &**error {
            sqlx::Error::Io(error) => error.kind() != std::io::ErrorKind::TimedOut,
            error => {
                postgres_code(error).is_some_and(|code| code.starts_with("08") || code.starts_with("57P"))
            }
        }
    }

    /// True if another transaction got in the way and the same one may be tried at once.
    pub(crate) fn is_collision(&self) -> bool {
        let (Self::Unavailable(error) | Self::Internal(error)) = self else { return false };
        let sqlx::Error::Database(database) = &**error else { return false };
        matches!(database.code().as_deref(), Some("40001" | "40P01"))
    }

    /// True if the same call may succeed later without a change to it.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Closed)
    }
}

/// What the database says in words that tell an operator what to do. Nothing else of the error goes to callers.
fn known_reason(error: &sqlx::Error) -> &'static str {
    if let Some(code) = postgres_code(error) {
        return postgres_reason(&code);
    }
    match sqlite_code(error) {
        Some(8) => ": it is read-only",
        Some(10) => ": its disk fails",
        Some(13) => ": its disk is full",
        Some(26) => ": the file is no database",
        _ => "",
    }
}

/// SQLite's primary result code.
fn sqlite_code(error: &sqlx::Error) -> Option<i32> {
    let sqlx::Error::Database(database) = error else { return None };
    database.try_downcast_ref::<SqliteError>()?;
    database.code().and_then(|code| code.parse::<i32>().ok()).map(|code| code & 0xff)
}

/// PostgreSQL's SQLSTATE.
fn postgres_code(error: &sqlx::Error) -> Option<String> {
    let sqlx::Error::Database(database) = error else { return None };
    Some(database.try_downcast_ref::<PgDatabaseError>()?.code().to_owned())
}

/// SQLite's primary result codes that mean "not now": busy, locked, out of memory, read only, I/O, full,
/// cannot open, and a file that is no database (a half-restored copy).
const NOT_NOW: [i32; 8] = [5, 6, 7, 8, 10, 13, 14, 26];

/// What to do about a SQLSTATE.
/// Source: PostgreSQL's manual, appendix A.
fn postgres_reason(code: &str) -> &'static str {
    match code {
        "25006" => ": it is read-only (a standby?)",
        "28P01" | "28000" => {
            ": it refuses this server's user, password or address (connection_string, pg_hba.conf)"
        }
        "3D000" => ": it has no database of that name (dbname in connection_string)",
        "42501" => ": this server's database user lacks a privilege",
        "53100" => ": its disk is full",
        "53200" => ": it is out of memory",
        "53300" => ": it has no connection left (max_connections)",
        "55P03" => ": another server holds its lock for too long",
        "57014" => ": a statement took too long",
        "57P01" | "57P02" => ": it was shut down",
        "57P03" => ": it is starting up or shutting down",
        "25P03" => ": this server paused in the middle of a change",
        _ if code.starts_with("58") => ": its disk fails",
        _ => "",
    }
}

/// Those that another attempt may not meet: lost connections, roles, resources, shutdowns, collisions, and what an
/// operator mends outside of this server.
fn postgres_not_now(code: &str) -> bool {
    ["08", "53", "57", "58"].iter().any(|class| code.starts_with(class)) || !postgres_reason(code).is_empty()
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let not_now = match (&error, postgres_code(&error)) {
            // Text with a NUL character, which PostgreSQL cannot hold.
            (_, Some(code)) if code == "22021" || code == "22P05" => {
                return Self::Conflict("PostgreSQL cannot store text with a NUL character");
            }
            (_, Some(code)) => postgres_not_now(&code),
            (sqlx::Error::Database(_), None) => {
                sqlite_code(&error).is_some_and(|code| NOT_NOW.contains(&code))
            }
            (
                sqlx::Error::Io(_)
                | sqlx::Error::Tls(_)
                | sqlx::Error::Protocol(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::WorkerCrashed,
                None,
            ) => true,
            _ => false,
        };
        if not_now { Self::Unavailable(Arc::new(error)) } else { Self::Internal(Arc::new(error)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_operator_mends_is_not_now() {
        for (code, not_now) in [
            ("08006", true),
            ("57P01", true),
            ("57P03", true),
            ("25006", true),
            ("53100", true),
            ("28P01", true),
            ("23505", false),
            ("42P01", false),
        ] {
            assert_eq!(postgres_not_now(code), not_now, "{code}");
        }
    }
}
