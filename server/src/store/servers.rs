//! Running servers and their journals.

use async_trait::async_trait;

use super::db::args;
use super::writer::{Tx, Write};
use super::{ServerClaim, StoreError};

#[async_trait]
impl Write for ServerClaim {
    /// False if another living server holds the id.
    type Out = bool;
    async fn run(&self, tx: &mut Tx<'_>) -> Result<bool, StoreError> {
        let sql = "SELECT host, holder, heartbeat_at FROM svid_servers WHERE server_id = $1";
        let row = tx.conn.fetch_optional(sql, args![&self.server_id]).await?;
        if let Some(row) = row {
            let (host, holder): (String, String) = (row.get(0)?, row.get(1)?);
            let lives = row.get::<i64>(2)?.saturating_add(self.lease) > self.now;
            if lives && holder != self.holder && host != self.host {
                return Ok(false);
            }
        }
        let sql = "INSERT INTO svid_servers (server_id, host, holder, heartbeat_at) VALUES ($1, $2, $3, $4)
             ON CONFLICT (server_id) DO UPDATE SET host = $2, holder = $3, heartbeat_at = $4";
        tx.conn.execute(sql, args![&self.server_id, &self.host, &self.holder, self.now]).await?;
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
        let sql = "UPDATE svid_servers SET heartbeat_at = $3 WHERE server_id = $1 AND holder = $2";
        Ok(tx.conn.execute(sql, args![&self.server_id, &self.holder, self.now]).await? > 0)
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
        let sql = "INSERT INTO svid_journals (server_id, data) VALUES ($1, $2)
             ON CONFLICT (server_id) DO UPDATE SET data = $2";
        tx.conn.execute(sql, args![&self.server_id, &self.data]).await?;
        Ok(())
    }
}
