//! Restoring a backup: into the database with every server stopped, in one transaction, and never so that what was
//! banned, consumed or revoked after the backup comes back unnoticed.
//!
//! The database is the later witness. Its agents (whose certificates are in use), its journals, and whatever it has in
//! its bundles stay; bans and taints of either side hold; entries become those of the backup. What only the backup has
//! is added, and told, because somebody may have taken it away on purpose.

mod apply;
mod compare;
mod dump;
mod error;
mod plan;
mod report;
#[cfg(test)]
mod tests;
mod trust;

use std::collections::BTreeMap;
use std::path::Path;

use svid_core::bundle::Bundle;
use svid_core::id::TrustDomain;

use super::db::{Conn, Sql};
use super::{Database, StoreConfig, schema};
pub use error::RestoreError;
pub use report::{BackupFacts, DatabaseFacts, List, Report, Table};

use dump::Dump;
use plan::Plan;

/// On which terms a backup is restored. Times are in seconds.
#[derive(Clone, Debug)]
pub struct Terms {
    /// The configuration's.
    pub trust_domain: TrustDomain,
    /// Unix time.
    pub now: i64,
    /// What came after the backup may be undone.
    pub accept_rollback: bool,
    /// Nothing will be written: a running server is no obstacle.
    pub rehearsal: bool,
    /// A server that was not heard of for this long is gone.
    pub lease: i64,
    /// The host of a server that is known not to run, because its data directory is locked by this process.
    pub locked_host: Option<String>,
}

/// A report, and what a server would find at its next start.
pub struct Outlook {
    /// What is or would be done.
    pub report: Report,
    /// The trust domain's own bundle.
    pub bundle: Option<Bundle>,
    /// Journals by server.
    pub journals: BTreeMap<String, Vec<u8>>,
}

impl From<Plan> for Outlook {
    fn from(plan: Plan) -> Self {
        Self { report: plan.report, bundle: plan.trust.own, journals: plan.all_journals }
    }
}

/// A backup that was read and checked.
pub struct Backup(Dump);

impl Backup {
    /// Reads all of the file, which may take minutes; entries stay in it.
    /// # Errors
    /// [`RestoreError`] for a file that is not whole, was altered, or is another trust domain's.
    pub fn read(path: &Path, trust_domain: &TrustDomain) -> Result<Self, RestoreError> {
        Dump::read(path, trust_domain).map(Self)
    }

    /// Tells what a restore would do. Writes nothing, and makes no database where there is none.
    /// # Errors
    /// A database that cannot be read or is not ours.
    pub async fn rehearse(&self, config: &StoreConfig, terms: &Terms) -> Result<Outlook, RestoreError> {
        let Some(mut conn) = schema::look(config).await? else {
            return Ok(Plan::make(None, config.kind(), &self.0, terms).await?.into());
        };
        conn.begin_read().await?;
        let plan = Plan::make(Some(&mut conn), config.kind(), &self.0, terms).await;
        conn.rollback().await?;
        conn.close().await?;
        Ok(plan?.into())
    }

    /// Restores if the terms allow it, in one transaction: until it is committed, the database is as it was.
    /// # Errors
    /// A database that cannot be written or is not ours, and a file that is not what was read.
    pub async fn restore(&self, config: &StoreConfig, terms: &Terms) -> Result<Outlook, RestoreError> {
        let mut conn = schema::open(config, &terms.trust_domain).await?.conn;
        conn.begin_write().await?;
        unbound(&mut conn).await?;
        let mut plan = Plan::make(Some(&mut conn), config.kind(), &self.0, terms).await?;
        if !plan.report.accepted {
            conn.rollback().await?;
            return Ok(plan.into());
        }
        apply::apply(&mut conn, &plan, &self.0, terms.now).await?;
        conn.commit().await?;
        plan.report.restored = true;
        close(conn).await;
        Ok(plan.into())
    }
}

/// A million rows take longer than any write of a server.
async fn unbound(conn: &mut Conn) -> Result<(), RestoreError> {
    for sql in [
        Sql::each("SELECT 1", "SET LOCAL statement_timeout = 0"),
        Sql::each("SELECT 1", "SET LOCAL idle_in_transaction_session_timeout = '300s'"),
    ] {
        conn.execute(sql, &[]).await?;
    }
    Ok(())
}

/// What is committed stays, whatever closing says.
async fn close(conn: Conn) {
    if let Err(error) = conn.close().await {
        tracing::warn!(error = %svid_daemon::log::chain(&error), "Closing the database failed");
    }
}

impl StoreConfig {
    /// SPIRE's word for the kind of database.
    fn kind(&self) -> &'static str {
        match &self.database {
            Database::Sqlite(_) => "sqlite3",
            Database::Postgres(_) => "postgres",
        }
    }
}
