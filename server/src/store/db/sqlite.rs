//! SQLite's connections.

use std::path::Path;
use std::time::Duration;

use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Sqlite, SqliteConnection};

use super::Value;
use super::args::bind;
use crate::store::StoreError;

/// How long a statement waits for another process's lock.
pub(in super::super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens connections to one file.
#[derive(Clone)]
pub(in super::super) struct SqliteConnector(SqliteConnectOptions);

impl SqliteConnector {
    /// Settings of every connection. `synchronous=FULL`: acknowledged means durable.
    pub(in super::super) fn new(path: &Path) -> Self {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .foreign_keys(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT)
            .statement_cache_capacity(64)
            .row_buffer_size(256);
        Self(options)
    }

    /// The same file, for reading.
    pub(in super::super) fn read_only(&self) -> Self {
        Self(self.0.clone().read_only(true))
    }

    pub(in super::super) async fn connect(&self) -> Result<SqliteConnection, StoreError> {
        Ok(self.0.connect().await?)
    }
}

pub(super) fn query<'q>(sql: &'static str, args: &[Value<'_>]) -> Query<'q, Sqlite, SqliteArguments> {
    bind!(sqlx::query(sql), args)
}
