//! Running servers and their journals.

use async_trait::async_trait;
use sqlx::Row;

use super::writer::{Tx, Write};
use super::{ServerClaim, StoreError};

#[async_trait]
impl Write for ServerClaim {
    /// False if another living server holds the id.
    type Out = bool;
    async fn run(&self, tx: &mut Tx<'_>) -> Result<bool, StoreError> {
        let row = sqlx::query("SELECT host, holder, heartbeat_at FROM svid_servers WHERE server_id = ?1")
            .bind(&self.server_id)
            .fetch_optional(&mut *tx.conn)
            .await?;
        if let Some(row) = row {
            let (host, holder): (String, String) = (row.try_get(0)?, row.try_get(1)?);
            let lives = row.try_get::<i64, _>(2)?.saturating_add(self.lease) > self.now;
            if lives && holder != self.holder && host != self.host {
                return Ok(false);
            }
        }
        sqlx::query("INSERT OR REPLACE INTO svid_servers (server_id, host, holder, heartbeat_at) VALUES (?1, ?2, ?3, ?4)")
            .bind(&self.server_id)
            .bind(&self.host)
            .bind(&self.holder)
            .bind(self.now)
            .execute(&mut *tx.conn)
            .await?;
        Ok(true)
    }
}

pub(super) struct Heartbeat {
    pub(super) server_id: String,
    pub(super) holder: String,
    pub(super) now: i64,
}

#[async_trait]
impl Write for Heartbeat {
    /// False if another server took the id.
    type Out = bool;
    async fn run(&self, tx: &mut Tx<'_>) -> Result<bool, StoreError> {
        let done =
            sqlx::query("UPDATE svid_servers SET heartbeat_at = ?3 WHERE server_id = ?1 AND holder = ?2")
                .bind(&self.server_id)
                .bind(&self.holder)
                .bind(self.now)
                .execute(&mut *tx.conn)
                .await?;
        Ok(done.rows_affected() > 0)
    }
}

pub(super) struct SaveJournal {
    pub(super) server_id: String,
    pub(super) data: Vec<u8>,
}

#[async_trait]
impl Write for SaveJournal {
    type Out = ();
    async fn run(&self, tx: &mut Tx<'_>) -> Result<(), StoreError> {
        sqlx::query("INSERT OR REPLACE INTO svid_journals (server_id, data) VALUES (?1, ?2)")
            .bind(&self.server_id)
            .bind(&self.data)
            .execute(&mut *tx.conn)
            .await?;
        Ok(())
    }
}
