//! PostgreSQL: a schema that several servers may want to bring up to date at once.

use sqlx::PgConnection;
use sqlx::migrate::{Migration, Migrator};

use super::{Opened, latest, refuse_newer, refuse_older};
use crate::store::db::{Conn, Connector, PgConnector, args};
use crate::store::readers::PoolLimits;
use crate::store::{PostgresConfig, StoreError};

static MIGRATIONS: Migrator = sqlx::migrate!("../migrations/postgres");

/// Connections for reading.
const MOST_READERS: usize = 3;

/// Everything happens in one transaction under a lock: of two servers that start at once the second finds the work
/// done, and a migration that fails leaves nothing behind. A long migration may keep others waiting.
const BEGIN: &str = "BEGIN; SET LOCAL lock_timeout = '60s'; SET LOCAL statement_timeout = 0;
    SELECT pg_advisory_xact_lock(8391162171410441325)";

/// Whether SPIRE's tables and ours are in the schemas that our statements would find. Other programs have a table named
/// `migrations` too, but not with this column.
const FOUND: &str = "SELECT
    EXISTS (SELECT 1 FROM information_schema.columns WHERE table_schema = ANY (current_schemas(false))
        AND (table_name IN ('registered_entries', 'attested_node_entries')
            OR (table_name = 'migrations' AND column_name = 'code_version'))),
    to_regclass('svid_migrations') IS NOT NULL";

const TABLE: &str = "CREATE TABLE svid_migrations (
    version     BIGINT PRIMARY KEY,
    description TEXT   NOT NULL,
    checksum    BYTEA  NOT NULL,
    applied_at  BIGINT NOT NULL)";

pub(super) async fn open(config: &PostgresConfig, migrate: bool) -> Result<Opened, StoreError> {
    let connector = PgConnector::new(config)?;
    let mut conn = connector.connect().await?;
    look(&mut conn).await?;
    let mut conn = Conn::Postgres(conn);
    bring_up_to_date(&mut conn, migrate).await?;
    Ok(Opened {
        conn,
        reads: Connector::Postgres(connector.clone()),
        writes: Connector::Postgres(connector),
        pool: pool(config),
    })
}

/// A connection and the version that this server knows, if the database holds our schema.
pub(super) async fn existing(config: &PostgresConfig) -> Result<Option<(Conn, i64)>, StoreError> {
    let mut conn = Conn::Postgres(PgConnector::new(config)?.connect().await?);
    let row = conn.fetch_one(FOUND, &[]).await?;
    if row.get(0)? {
        return Err(refuse_foreign());
    }
    Ok(row.get::<bool>(1)?.then(|| (conn, latest(&MIGRATIONS))))
}

fn refuse_foreign() -> StoreError {
    let text = "this is a database of SPIRE, which was left untouched: give connection_string another dbname";
    StoreError::Schema(text.into())
}

/// What of `max_open_conns` is left for reading: one connection writes, one follows the log, one listens.
fn pool(config: &PostgresConfig) -> PoolLimits {
    let open = match config.max_open_conns {
        0 => MOST_READERS,
        limit => (limit as usize).saturating_sub(3).clamp(1, MOST_READERS),
    };
    let idle = match config.max_idle_conns {
        0 => open,
        limit => (limit as usize).min(open),
    };
    PoolLimits { open, idle, lifetime: config.conn_max_lifetime }
}

/// Refuses a database that can hold only some characters, and warns of one that forgets what it acknowledged.
async fn look(conn: &mut PgConnection) -> Result<(), StoreError> {
    let row: (String, String, String) = sqlx::query_as(
        "SELECT current_setting('server_encoding'), current_setting('fsync'), current_setting('synchronous_commit')",
    )
    .fetch_one(&mut *conn)
    .await?;
    let (encoding, fsync, synchronous_commit) = row;
    if encoding != "UTF8" {
        return Err(StoreError::Schema(format!(
            "the database's encoding is {encoding}: create one with ENCODING 'UTF8' (TEMPLATE template0)"
        )));
    }
    if fsync == "off" {
        tracing::warn!("PostgreSQL runs with fsync = off: a crash of its machine loses acknowledged changes");
    }
    if synchronous_commit == "off" {
        tracing::warn!(
            "synchronous_commit is off in this database: this server turns it on for its own changes"
        );
    }
    Ok(())
}

/// Creates or migrates the schema, or refuses what is there.
async fn bring_up_to_date(conn: &mut Conn, migrate: bool) -> Result<(), StoreError> {
    conn.batch(BEGIN).await?;
    let row = conn.fetch_one(FOUND, &[]).await?;
    if row.get(0)? {
        return Err(refuse_foreign());
    }
    let known: bool = row.get(1)?;
    let found: i64 = match known {
        true => conn.fetch_one("SELECT coalesce(max(version), 0) FROM svid_migrations", &[]).await?.get(0)?,
        false => 0,
    };
    let wanted = latest(&MIGRATIONS);
    if found > wanted {
        return Err(refuse_newer(found));
    }
    if known && found < wanted && !migrate {
        return Err(refuse_older(found, wanted));
    }
    if !known {
        conn.execute(TABLE, &[]).await?;
    }
    for migration in MIGRATIONS.iter().filter(|migration| migration.version > found) {
        apply(conn, migration).await?;
    }
    conn.commit().await
}

async fn apply(conn: &mut Conn, migration: &Migration) -> Result<(), StoreError> {
    conn.batch(migration.sql.clone()).await?;
    let sql = "INSERT INTO svid_migrations (version, description, checksum, applied_at)
         VALUES ($1, $2, $3, extract(epoch FROM clock_timestamp())::bigint)";
    let args = args![migration.version, &*migration.description, &*migration.checksum];
    conn.execute(sql, args).await.map(drop)
}
