//! One connection to either database, and the arguments and rows that both understand.
//!
//! Each database keeps its own driver and prepared statements. A statement is one text where both agree on it (they
//! both take `$1`), and a [`Sql::each`] where they do not.

mod args;
mod postgres;
mod row;
mod sqlite;

use std::time::Duration;

use futures_util::TryStreamExt as _;
use futures_util::stream::BoxStream;
use sqlx::{Connection as _, PgConnection, SqlSafeStr, SqliteConnection};

use super::StoreError;
pub(super) use args::{Value, args};
pub(super) use postgres::PgConnector;
pub(super) use row::{Column, Row};
pub(super) use sqlite::{BUSY_TIMEOUT, SqliteConnector};

/// A statement.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sql {
    sqlite: &'static str,
    postgres: &'static str,
}

impl Sql {
    /// A statement that the databases write differently.
    pub(super) const fn each(sqlite: &'static str, postgres: &'static str) -> Self {
        Self { sqlite, postgres }
    }
}

impl From<&'static str> for Sql {
    fn from(both: &'static str) -> Self {
        Self { sqlite: both, postgres: both }
    }
}

/// How to reach the database.
#[derive(Clone)]
#[allow(clippy::large_enum_variant)] // two of them in a process
pub(super) enum Connector {
    Sqlite(SqliteConnector),
    Postgres(PgConnector),
}

impl Connector {
    pub(super) async fn connect(&self) -> Result<Conn, StoreError> {
        Ok(match self {
            Self::Sqlite(sqlite) => Conn::Sqlite(sqlite.connect().await?),
            Self::Postgres(postgres) => Conn::Postgres(postgres.connect().await?),
        })
    }

    /// Ends work that a network swallowed; a file answers or fails by itself.
    pub(super) async fn limit<T>(
        &self,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        match self {
            Self::Sqlite(_) => work.await,
            Self::Postgres(_) => postgres::limit(postgres::ATTEMPT, work).await,
        }
    }

    /// True if a connection may be dead although nothing was said on it.
    pub(super) fn hangs_up(&self) -> bool {
        matches!(self, Self::Postgres(_))
    }
}

/// An open connection.
pub(super) enum Conn {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

impl Conn {
    /// Runs a statement to its end; returns how many rows it changed.
    pub(super) async fn execute(
        &mut self,
        sql: impl Into<Sql>,
        args: &[Value<'_>],
    ) -> Result<u64, StoreError> {
        let sql = sql.into();
        Ok(match self {
            Self::Sqlite(conn) => sqlite::query(sql.sqlite, args).execute(conn).await?.rows_affected(),
            Self::Postgres(conn) => postgres::query(sql.postgres, args).execute(conn).await?.rows_affected(),
        })
    }

    /// Runs a statement to its end; returns its rows.
    pub(super) async fn fetch_all(
        &mut self,
        sql: impl Into<Sql>,
        args: &[Value<'_>],
    ) -> Result<Vec<Row>, StoreError> {
        let sql = sql.into();
        Ok(match self {
            Self::Sqlite(conn) => {
                let rows = sqlite::query(sql.sqlite, args).fetch_all(conn).await?;
                rows.into_iter().map(Row::Sqlite).collect()
            }
            Self::Postgres(conn) => {
                let rows = postgres::query(sql.postgres, args).fetch_all(conn).await?;
                rows.into_iter().map(Row::Postgres).collect()
            }
        })
    }

    /// The first row, if there is one.
    pub(super) async fn fetch_optional(
        &mut self,
        sql: impl Into<Sql>,
        args: &[Value<'_>],
    ) -> Result<Option<Row>, StoreError> {
        let sql = sql.into();
        Ok(match self {
            Self::Sqlite(conn) => {
                sqlite::query(sql.sqlite, args).fetch_optional(conn).await?.map(Row::Sqlite)
            }
            Self::Postgres(conn) => {
                postgres::query(sql.postgres, args).fetch_optional(conn).await?.map(Row::Postgres)
            }
        })
    }

    /// The first row of a statement that always has one.
    pub(super) async fn fetch_one(
        &mut self,
        sql: impl Into<Sql>,
        args: &[Value<'_>],
    ) -> Result<Row, StoreError> {
        let row = self.fetch_optional(sql, args).await?;
        row.ok_or_else(|| StoreError::corrupt("answer", "a row is missing"))
    }

    /// The first column of every row.
    pub(super) async fn fetch_column<T: for<'r> Column<'r>>(
        &mut self,
        sql: impl Into<Sql>,
        args: &[Value<'_>],
    ) -> Result<Vec<T>, StoreError> {
        self.fetch_all(sql, args).await?.iter().map(|row| row.get(0)).collect()
    }

    /// The rows one by one, for answers that should not stand in memory whole.
    pub(super) fn stream(&mut self, sql: impl Into<Sql>) -> BoxStream<'_, Result<Row, StoreError>> {
        let sql = sql.into();
        match self {
            Self::Sqlite(conn) => {
                let rows = sqlx::query(sql.sqlite).fetch(conn);
                Box::pin(rows.map_ok(Row::Sqlite).map_err(StoreError::from))
            }
            Self::Postgres(conn) => {
                let rows = sqlx::query(sql.postgres).fetch(conn);
                Box::pin(postgres::in_time(rows.map_ok(Row::Postgres).map_err(StoreError::from)))
            }
        }
    }

    /// Runs statements that return nothing, in one round trip.
    pub(super) async fn batch(&mut self, sql: impl SqlSafeStr) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(conn) => sqlx::raw_sql(sql).execute(conn).await.map(|_| ())?,
            Self::Postgres(conn) => sqlx::raw_sql(sql).execute(conn).await.map(|_| ())?,
        }
        Ok(())
    }

    /// Begins a transaction that excludes every other writer of this database.
    pub(super) async fn begin_write(&mut self) -> Result<(), StoreError> {
        self.control("BEGIN IMMEDIATE", postgres::BEGIN_WRITE).await
    }

    /// Begins a transaction whose reads are all of one moment.
    pub(super) async fn begin_read(&mut self) -> Result<(), StoreError> {
        self.control("BEGIN", postgres::BEGIN_READ).await
    }

    pub(super) async fn commit(&mut self) -> Result<(), StoreError> {
        self.control("COMMIT", "COMMIT").await
    }

    pub(super) async fn rollback(&mut self) -> Result<(), StoreError> {
        self.control("ROLLBACK", "ROLLBACK").await
    }

    /// SQLite keeps even these prepared; PostgreSQL takes several at once only where they are not.
    async fn control(&mut self, sqlite: &'static str, postgres: &'static str) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(conn) => sqlx::query(sqlite).execute(conn).await.map(|_| ())?,
            Self::Postgres(conn) => sqlx::raw_sql(postgres).execute(conn).await.map(|_| ())?,
        }
        Ok(())
    }

    /// True if the other end answers.
    pub(super) async fn answers(&mut self) -> bool {
        match self {
            Self::Sqlite(_) => true,
            Self::Postgres(conn) => {
                matches!(tokio::time::timeout(Duration::from_secs(2), conn.ping()).await, Ok(Ok(())))
            }
        }
    }

    pub(super) async fn close(self) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(conn) => conn.close().await?,
            Self::Postgres(conn) => conn.close().await?,
        }
        Ok(())
    }
}
