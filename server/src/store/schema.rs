//! Opening the file: settings, migrations, and the databases that are refused.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, SqliteConnection};
use svid_core::id::{SpiffeId, TrustDomain};

use super::writer::{Tx, Write};
use super::{StoreConfig, StoreError};

static MIGRATIONS: Migrator = sqlx::migrate!("../migrations/sqlite");

/// How long a statement waits for another process's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Settings of every connection. `synchronous=FULL`: acknowledged means durable.
pub(super) fn options(config: &StoreConfig) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(&config.path)
        .foreign_keys(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY_TIMEOUT)
        .statement_cache_capacity(64)
        .row_buffer_size(256)
}

/// Opens the writing connection and brings the schema up to date.
/// # Errors
/// [`StoreError::Schema`] for SPIRE's own database and for one that a later version wrote; neither is touched.
pub(super) async fn open(
    options: &SqliteConnectOptions,
    trust_domain: &TrustDomain,
    migrate: bool,
) -> Result<SqliteConnection, StoreError> {
    refuse_foreign(options).await?;
    create_private(options.get_filename())?;
    let mut conn = options.clone().create_if_missing(true).connect().await?;
    if !migrate {
        refuse_older(&mut conn).await?;
    }
    let mut migrator = Migrator { migrations: MIGRATIONS.migrations.clone(), ..Migrator::DEFAULT };
    migrator.dangerous_set_table_name("svid_migrations");
    migrator.set_locking(false);
    migrator.run_direct(None, &mut conn, false).await.map_err(refusal)?;
    check_trust_domain(&mut conn, trust_domain).await?;
    // One server writes this file, so nobody follows its log across our start: a new epoch makes agents that saw
    // another history (a file restored from a copy) take a snapshot.
    sqlx::query("UPDATE svid_log_counter SET epoch = randomblob(16)").execute(&mut conn).await?;
    Ok(conn)
}

/// Makes a missing file that only its owner can read: SQLite gives its write-ahead log the same mode. A file that is
/// there is not opened, since closing it again would drop the locks that this process has on it.
fn create_private(path: &Path) -> Result<(), StoreError> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(sqlx::Error::Io(error).into()),
        _ => Ok(()),
    }
}

/// `disable_migration`: a database that is there already has to be as this server wants it. A new one is made all the
/// same, as in SPIRE.
async fn refuse_older(conn: &mut SqliteConnection) -> Result<(), StoreError> {
    let known: i64 = sqlx::query_scalar("SELECT count(*) FROM sqlite_schema WHERE name = 'svid_migrations'")
        .fetch_one(&mut *conn)
        .await?;
    if known == 0 {
        return Ok(());
    }
    let found: Option<i64> =
        sqlx::query_scalar("SELECT max(version) FROM svid_migrations").fetch_one(&mut *conn).await?;
    let wanted = MIGRATIONS.iter().map(|migration| migration.version).max();
    if found >= wanted {
        return Ok(());
    }
    Err(StoreError::Schema(format!(
        "the database has schema version {}, this server needs {}, and disable_migration is set: start it once without",
        found.unwrap_or_default(),
        wanted.unwrap_or_default()
    )))
}

/// Looks at an existing file without changing anything, not even its journal mode.
async fn refuse_foreign(options: &SqliteConnectOptions) -> Result<(), StoreError> {
    let path = options.get_filename();
    if !path.exists() {
        return Ok(());
    }
    let mut conn = SqliteConnectOptions::new().filename(path).busy_timeout(BUSY_TIMEOUT).connect().await?;
    let foreign: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM sqlite_schema
         WHERE type = 'table' AND name IN ('registered_entries', 'attested_node_entries', 'migrations')",
    )
    .fetch_one(&mut conn)
    .await?;
    if foreign == 0 {
        return Ok(());
    }
    Err(StoreError::Schema(format!(
        "{} is a database of SPIRE, which was left untouched: give connection_string another file",
        path.display()
    )))
}

fn refusal(error: MigrateError) -> StoreError {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => error.into(),
        MigrateError::VersionMissing(version) => StoreError::Schema(format!(
            "the database has schema version {version}, which is newer than this server knows: run the newer server, \
             or restore a copy from before its start"
        )),
        other => StoreError::Schema(format!("the database's schema cannot be brought up to date: {other}")),
    }
}

/// A server that was renamed would sign nothing for its old entries; SPIRE refuses to start and so do we.
async fn check_trust_domain(
    conn: &mut SqliteConnection,
    trust_domain: &TrustDomain,
) -> Result<(), StoreError> {
    let first: Option<String> = sqlx::query_scalar("SELECT spiffe_id FROM svid_entries ORDER BY row LIMIT 1")
        .fetch_optional(conn)
        .await?;
    let Some(first) = first else { return Ok(()) };
    let id: SpiffeId = first.parse().map_err(|e| StoreError::corrupt("entry", e))?;
    if id.is_member_of(trust_domain) {
        return Ok(());
    }
    Err(StoreError::Schema(format!(
        "the database holds entries of trust domain {:?}, but the configuration says {:?}",
        id.trust_domain_name(),
        trust_domain.as_str()
    )))
}

/// Gives the change log a new epoch.
pub(super) struct NewEpoch;

#[async_trait]
impl Write for NewEpoch {
    type Out = ();
    async fn run(&self, tx: &mut Tx<'_>) -> Result<(), StoreError> {
        sqlx::query("UPDATE svid_log_counter SET epoch = randomblob(16)").execute(&mut *tx.conn).await?;
        Ok(())
    }
}
