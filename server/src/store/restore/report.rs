//! What a restore does or would do, for people and programs.

use serde::Serialize;

/// Items that a list names; it counts all.
const NAMED: usize = 100;

/// The whole report. Times are Unix seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)] // the names say it, and are what programs read
pub struct Report {
    pub backup: BackupFacts,
    pub database: DatabaseFacts,
    pub tables: Vec<Table>,
    /// What is over in the database and would be good again.
    pub comes_back: Vec<List>,
    /// What the database has and the backup has not.
    pub lost: Vec<List>,
    /// What a restore does not undo, whatever was accepted.
    pub stays: Vec<List>,
    /// Sentences that refuse nothing.
    pub notes: Vec<String>,
    /// Why nothing may be restored; empty if it may.
    pub refusals: Vec<String>,
    /// No refusals.
    pub accepted: bool,
    /// The database was written.
    pub restored: bool,
}

/// Which backup it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct BackupFacts {
    pub file: String,
    pub size: u64,
    pub trust_domain: String,
    pub taken_at: i64,
    pub age_s: i64,
    pub server_id: String,
    pub server_version: String,
    pub epoch: String,
    pub seq: u64,
}

/// Which database it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct DatabaseFacts {
    /// `sqlite3` or `postgres`.
    pub kind: String,
    /// Holds neither entries, nor agents, nor bundles.
    pub is_empty: bool,
    pub seq: u64,
}

/// Rows of one table: those of backup and database, and what becomes of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Table {
    pub table: &'static str,
    pub backup: u64,
    pub database: u64,
    pub same: u64,
    pub changed: u64,
    pub added: u64,
    pub removed: u64,
    /// Only in the database, and staying there.
    pub kept: u64,
}

/// Things of one kind with one fate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct List {
    /// What they are and why they are listed.
    pub what: &'static str,
    /// How many.
    pub count: u64,
    /// The first of them.
    pub items: Vec<String>,
}

impl List {
    pub(super) fn new(what: &'static str) -> Self {
        Self { what, count: 0, items: Vec::new() }
    }

    /// One more.
    pub(super) fn add(&mut self, item: impl FnOnce() -> String) {
        self.count += 1;
        if self.items.len() < NAMED {
            self.items.push(item());
        }
    }
}

/// The lists that are not empty.
pub(super) fn filled(lists: impl IntoIterator<Item = List>) -> Vec<List> {
    lists.into_iter().filter(|list| list.count > 0).collect()
}
