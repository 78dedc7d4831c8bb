//! SQLite: a file that is made private, migrated, or refused.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, SqliteConnection};

use super::{Opened, latest, refuse_newer, refuse_older};
use crate::store::StoreError;
use crate::store::db::{BUSY_TIMEOUT, Conn, Connector, SqliteConnector};
use crate::store::readers::PoolLimits;

static MIGRATIONS: Migrator = sqlx::migrate!("../migrations/sqlite");

/// Connections for reading.
const READERS: usize = 3;

pub(super) async fn open(path: &Path, migrate: bool) -> Result<Opened, StoreError> {
    refuse_foreign(path).await?;
    create_private(path)?;
    let connector = SqliteConnector::new(path);
    let mut conn = connector.connect().await?;
    if !migrate {
        require_current(&mut conn).await?;
    }
    let mut migrator = Migrator { migrations: MIGRATIONS.migrations.clone(), ..Migrator::DEFAULT };
    migrator.dangerous_set_table_name("svid_migrations");
    migrator.set_locking(false);
    migrator.run_direct(None, &mut conn, false).await.map_err(refusal)?;
    Ok(Opened {
        conn: Conn::Sqlite(conn),
        reads: Connector::Sqlite(connector.read_only()),
        writes: Connector::Sqlite(connector),
        pool: PoolLimits { open: READERS, idle: READERS, lifetime: None },
    })
}

/// A reading connection and the version that this server knows, if the file holds our schema.
pub(super) async fn existing(path: &Path) -> Result<Option<(Conn, i64)>, StoreError> {
    refuse_foreign(path).await?;
    // An empty file is as good as none, and does not take our settings when it is only read.
    if !std::fs::metadata(path).is_ok_and(|facts| facts.len() > 0) {
        return Ok(None);
    }
    let mut conn = SqliteConnector::new(path).read_only().connect().await?;
    let known: i64 = sqlx::query_scalar("SELECT count(*) FROM sqlite_schema WHERE name = 'svid_migrations'")
        .fetch_one(&mut conn)
        .await?;
    Ok((known > 0).then(|| (Conn::Sqlite(conn), latest(&MIGRATIONS))))
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
async fn require_current(conn: &mut SqliteConnection) -> Result<(), StoreError> {
    let known: i64 = sqlx::query_scalar("SELECT count(*) FROM sqlite_schema WHERE name = 'svid_migrations'")
        .fetch_one(&mut *conn)
        .await?;
    if known == 0 {
        return Ok(());
    }
    let found: Option<i64> =
        sqlx::query_scalar("SELECT max(version) FROM svid_migrations").fetch_one(&mut *conn).await?;
    let (found, wanted) = (found.unwrap_or_default(), latest(&MIGRATIONS));
    if found >= wanted { Ok(()) } else { Err(refuse_older(found, wanted)) }
}

/// Looks at an existing file without changing anything, not even its journal mode.
async fn refuse_foreign(path: &Path) -> Result<(), StoreError> {
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
        MigrateError::VersionMissing(version) => refuse_newer(version),
        other => StoreError::Schema(format!("the database's schema cannot be brought up to date: {other}")),
    }
}
