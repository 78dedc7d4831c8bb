//! Opening a database: its schema brought up to date, and the databases that are refused.

mod postgres;
mod sqlite;

use async_trait::async_trait;
use sqlx::migrate::Migrator;
use svid_core::id::{SpiffeId, TrustDomain};

use super::db::{Conn, Connector, args};
use super::readers::PoolLimits;
use super::writer::{Tx, Write};
use super::{Database, StoreConfig, StoreError};

/// A database that is ready to be used.
pub(super) struct Opened {
    /// For the writer.
    pub(super) conn: Conn,
    pub(super) writes: Connector,
    pub(super) reads: Connector,
    pub(super) pool: PoolLimits,
}

/// Opens a connection for writing and brings the schema up to date.
/// # Errors
/// [`StoreError::Schema`] for SPIRE's own database and for one that a later version wrote; neither is touched.
pub(super) async fn open(config: &StoreConfig, trust_domain: &TrustDomain) -> Result<Opened, StoreError> {
    let mut opened = match &config.database {
        Database::Sqlite(path) => sqlite::open(path, config.migrate).await?,
        Database::Postgres(settings) => postgres::open(settings, config.migrate).await?,
    };
    check_trust_domain(&mut opened.conn, trust_domain).await?;
    if matches!(opened.conn, Conn::Sqlite(_)) {
        // One server writes this file, so nobody follows its log across our start: a new epoch makes agents that saw
        // another history (a file restored from a copy) take a snapshot.
        let sql = "UPDATE svid_log_counter SET epoch = $1";
        opened.conn.execute(sql, args![uuid::Uuid::new_v4().as_bytes()]).await?;
    }
    Ok(opened)
}

/// A connection that only reads, to a database that holds our schema; nothing is made, migrated or written. `None` for
/// a database that nobody has used yet.
/// # Errors
/// [`StoreError::Schema`] as for [`open`].
pub(super) async fn look(config: &StoreConfig) -> Result<Option<Conn>, StoreError> {
    let found = match &config.database {
        Database::Sqlite(path) => sqlite::existing(path).await?,
        Database::Postgres(settings) => postgres::existing(settings).await?,
    };
    let Some((mut conn, wanted)) = found else { return Ok(None) };
    let version = conn.fetch_one("SELECT coalesce(max(version), 0) FROM svid_migrations", &[]).await?;
    match version.get(0)? {
        0 => Ok(None),
        version if version > wanted => Err(refuse_newer(version)),
        _ => Ok(Some(conn)),
    }
}

/// The last version that this server knows.
fn latest(migrations: &Migrator) -> i64 {
    migrations.iter().map(|migration| migration.version).max().unwrap_or_default()
}

fn refuse_newer(version: i64) -> StoreError {
    StoreError::Schema(format!(
        "the database has schema version {version}, which is newer than this server knows: run the newer server, \
         or restore a copy from before its start"
    ))
}

fn refuse_older(found: i64, wanted: i64) -> StoreError {
    StoreError::Schema(format!(
        "the database has schema version {found}, this server needs {wanted}, and disable_migration is set: start it \
         once without"
    ))
}

/// A server that was renamed would sign nothing for its old entries; SPIRE refuses to start and so do we.
async fn check_trust_domain(conn: &mut Conn, trust_domain: &TrustDomain) -> Result<(), StoreError> {
    let first = conn.fetch_optional("SELECT spiffe_id FROM svid_entries ORDER BY row LIMIT 1", &[]).await?;
    let Some(first) = first else { return Ok(()) };
    let id: SpiffeId = first.get::<&str>(0)?.parse().map_err(|e| StoreError::corrupt("entry", e))?;
    if id.is_member_of(trust_domain) {
        return Ok(());
    }
    Err(StoreError::Schema(format!(
        "the database holds entries of trust domain {:?}, but the configuration says {:?}",
        id.trust_domain_name(),
        trust_domain.as_str()
    )))
}

/// Gives the change log a new epoch in place of this one, unless somebody else has done so.
pub(super) struct NewEpoch {
    pub(super) old: [u8; 16],
}

#[async_trait]
impl Write for NewEpoch {
    type Out = ();
    async fn run(&self, tx: &mut Tx<'_>) -> Result<(), StoreError> {
        let sql = "UPDATE svid_log_counter SET epoch = $1 WHERE epoch = $2";
        tx.conn.execute(sql, args![uuid::Uuid::new_v4().as_bytes(), &self.old]).await.map(drop)
    }
}
