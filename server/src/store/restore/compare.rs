//! Entries and agents of backup and database side by side.

use std::collections::{BTreeMap, HashMap, HashSet};

use svid_core::entry::Entry;

use super::RestoreError;
use super::dump::{Dump, Mark};
use super::report::{List, Table};
use crate::store::backup::NodeRow;
use crate::store::{Node, Serial};

/// Added to the revision of an entry that the database does not have: agents may have seen later revisions than the
/// backup's, and must not take the next change for one that they know.
const REVISION_JUMP: i64 = 1_000_000;

/// What becomes of an entry that both have.
pub(super) enum Fate {
    Same,
    /// It gets the backup's content under this revision.
    Replaced(i64),
}

/// What becomes of the entries.
pub(super) struct Entries {
    /// Those of the backup that the database has as well. The others are added.
    pub(super) met: HashMap<Box<str>, Fate>,
    /// IDs that are deleted, those that are replaced among them.
    pub(super) delete: Vec<String>,
    pub(super) table: Table,
    back_changed: List,
    lost: List,
    keeps: List,
}

impl Entries {
    pub(super) fn new(dump: &Dump) -> Self {
        Self {
            met: HashMap::new(),
            delete: Vec::new(),
            table: Table { table: "entries", backup: dump.counts.entries, ..Table::default() },
            back_changed: List::new(
                "entries that were changed after the backup get their older content back",
            ),
            lost: List::new("entries that were made after the backup are deleted"),
            keeps: List::new("entries that belong to an agent or a join token newer than the backup stay"),
        }
    }

    /// Takes an entry of the database. `is_alias` if it goes with an agent or token that stays.
    pub(super) fn take(&mut self, dump: &Dump, entry: &Entry, is_alias: bool) {
        self.table.database += 1;
        let named = || format!("{} ({})", entry.id, entry.spec.spiffe_id);
        let Some(theirs) = dump.entries.get(entry.id.as_str()) else {
            if is_alias {
                self.table.kept += 1;
                self.keeps.add(named);
            } else {
                self.table.removed += 1;
                self.lost.add(named);
                self.delete.push(entry.id.to_string());
            }
            return;
        };
        let ours = Mark::of(entry);
        let age = |mark: &Mark| (mark.created_at, mark.revision);
        let fate = if ours.digest == theirs.digest && ours.revision >= theirs.revision {
            self.table.same += 1;
            Fate::Same
        } else {
            self.table.changed += 1;
            // Of two contents the later revision is the newer one; with equal ones they come from two histories.
            if age(theirs) <= age(&ours) {
                self.back_changed.add(named);
            }
            self.delete.push(entry.id.to_string());
            Fate::Replaced(ours.revision.max(theirs.revision).saturating_add(1))
        };
        self.met.insert(entry.id.as_str().into(), fate);
    }

    /// The revision under which an entry of the backup is written; `None` if it is not.
    pub(super) fn revision(&self, entry: &Entry, now: i64) -> Option<i64> {
        match self.met.get(entry.id.as_str()) {
            Some(Fate::Same) => None,
            Some(Fate::Replaced(revision)) => Some(*revision),
            None if is_over(entry.spec.expires_at, now) => None,
            None => Some(entry.revision.saturating_add(REVISION_JUMP)),
        }
    }

    /// The lists, once every entry of the database was taken: what comes back, what is lost, what stays. Into a database
    /// that is empty everything comes back, which needs no names.
    pub(super) fn finish(
        &mut self,
        dump: &Dump,
        is_empty: bool,
        now: i64,
    ) -> Result<[List; 4], RestoreError> {
        let mut back = List::new("entries that were deleted after the backup are there again");
        let mut wanted: HashSet<&str> = HashSet::new();
        for (id, mark) in &dump.entries {
            if !self.met.contains_key(id) && !is_over(mark.expires_at, now) {
                self.table.added += 1;
                back.add(|| {
                    wanted.insert(id);
                    id.to_string()
                });
            }
        }
        if !is_empty && !wanted.is_empty() {
            back.items = names(dump, &wanted)?;
        }
        let take = |list: &mut List| std::mem::replace(list, List::new(""));
        Ok([back, take(&mut self.back_changed), take(&mut self.lost), take(&mut self.keeps)])
    }
}

fn is_over(expires_at: i64, now: i64) -> bool {
    expires_at > 0 && expires_at <= now
}

/// IDs with what they stand for, which only the file has.
fn names(dump: &Dump, wanted: &HashSet<&str>) -> Result<Vec<String>, RestoreError> {
    let mut found = BTreeMap::new();
    let mut batches = dump.batches(1000)?;
    while found.len() < wanted.len() {
        let batch = batches.next_batch()?;
        if batch.is_empty() {
            break;
        }
        for entry in batch.iter().filter(|entry| wanted.contains(entry.id.as_str())) {
            found.insert(entry.id.to_string(), format!("{} ({})", entry.id, entry.spec.spiffe_id));
        }
    }
    Ok(found.into_values().collect())
}

/// What becomes of the agents. The database's rows stay, since they hold the certificates in use.
pub(super) struct Agents {
    /// Only in the backup.
    pub(super) add: Vec<String>,
    /// Active in the database and banned in the backup.
    pub(super) ban: Vec<String>,
    pub(super) table: Table,
    pub(super) back: List,
    pub(super) stay_banned: List,
    pub(super) get_banned: List,
    pub(super) newer: List,
}

impl Agents {
    pub(super) fn compare(dump: &Dump, database: &BTreeMap<String, NodeRow>, now: i64) -> Self {
        let mut agents = Self {
            add: Vec::new(),
            ban: Vec::new(),
            table: Table {
                table: "agents",
                backup: dump.counts.nodes,
                database: database.len() as u64,
                ..Table::default()
            },
            back: List::new("agents that were evicted after the backup would be attested again"),
            stay_banned: List::new("agents that were banned after the backup stay banned"),
            get_banned: List::new(
                "agents that are banned in the backup are banned, although the database has them active",
            ),
            newer: List::new("agents that attested after the backup stay attested"),
        };
        for (id, theirs) in &dump.nodes {
            agents.one(id, theirs, database.get(id), now);
        }
        for id in database.keys().filter(|id| !dump.nodes.contains_key(*id)) {
            agents.table.kept += 1;
            agents.newer.add(|| id.clone());
        }
        agents
    }

    fn one(&mut self, id: &str, theirs: &NodeRow, ours: Option<&NodeRow>, now: i64) {
        let banned = |row: &NodeRow| row.node.serial == Serial::Banned;
        let Some(ours) = ours else {
            self.table.added += 1;
            self.add.push(id.to_owned());
            if is_good(&theirs.node, now) {
                self.back.add(|| id.to_owned());
            }
            return;
        };
        match (banned(ours), banned(theirs)) {
            (false, true) => {
                self.table.changed += 1;
                self.ban.push(id.to_owned());
                self.get_banned.add(|| id.to_owned());
                return;
            }
            (true, false) => self.stay_banned.add(|| id.to_owned()),
            _ => {}
        }
        self.table.same += 1;
    }
}

/// Whether one of the node's certificates would be taken.
fn is_good(node: &Node, now: i64) -> bool {
    match &node.serial {
        Serial::Banned => false,
        Serial::Active { next, .. } => {
            node.expires_at > now || next.as_ref().is_some_and(|(_, ends)| *ends > now)
        }
    }
}
