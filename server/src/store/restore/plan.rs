//! What a restore would do to a database, worked out without writing.

use std::collections::{BTreeMap, HashSet};

use svid_core::federation::Relationship;

use super::compare::{Agents, Entries};
use super::dump::Dump;
use super::report::{BackupFacts, DatabaseFacts, List, Report, Table, filled};
use super::trust::{Known, Trust};
use super::{RestoreError, Terms};
use crate::store::backup::{NodeRow, node_page, read_bundles, read_journals, read_relationships};
use crate::store::codec::{entry_columns, entry_from_row};
use crate::store::db::{Conn, args};
use crate::store::{StoreError, log};

/// Entries of the database that are in memory at once.
const PAGE: i64 = 1000;

/// A plan, and the report about it.
pub(super) struct Plan {
    pub(super) report: Report,
    pub(super) trust: Trust,
    pub(super) entries: Entries,
    pub(super) agents: Agents,
    /// Relationships that only the backup has.
    pub(super) relationships: Vec<Relationship>,
    /// Servers whose journal only the backup has.
    pub(super) journals: Vec<String>,
    /// Journals of the database and those of the backup that it gets.
    pub(super) all_journals: BTreeMap<String, Vec<u8>>,
    /// The change log's number afterwards: beyond every number that anybody saw.
    pub(super) seq: u64,
    /// The backup's moment, if it was accepted that nobody knows what happened since; 0 otherwise.
    pub(super) adopt_from: i64,
}

/// What the database holds, without its entries.
#[derive(Default)]
struct Held {
    seq: u64,
    journals: BTreeMap<String, Vec<u8>>,
    nodes: BTreeMap<String, NodeRow>,
    /// Entries that go with an agent or a token.
    aliases: HashSet<String>,
    /// Servers that gave a sign of life lately: host and seconds since.
    servers: Vec<(String, i64)>,
}

impl Plan {
    /// Compares. `conn` is inside a transaction; `None` stands for a database that was never used.
    pub(super) async fn make(
        conn: Option<&mut Conn>,
        kind: &str,
        dump: &Dump,
        terms: &Terms,
    ) -> Result<Self, RestoreError> {
        let mut entries = Entries::new(dump);
        let (mut held, mut bundles, mut related) = (Held::default(), Vec::new(), Vec::new());
        if let Some(conn) = conn {
            held = Held::read(conn, terms).await?;
            bundles = read_bundles(conn).await?;
            related = read_relationships(conn).await?;
            compare_entries(conn, dump, &held, &mut entries).await?;
        }
        let is_empty = bundles.is_empty() && held.nodes.is_empty() && entries.table.database == 0;
        let known = Known::from_journals(held.journals.values());
        let own = terms.trust_domain.clone();
        let trust = Trust::merge(&own, bundles, &dump.bundles, &known, terms.now);
        let agents = Agents::compare(dump, &held.nodes, terms.now);
        let lists = entries.finish(dump, is_empty, terms.now)?;
        let seq = held.seq.max(dump.position.seq).saturating_add(1);
        let mut plan = Self {
            report: Report {
                backup: backup_facts(dump, terms),
                database: DatabaseFacts { kind: kind.to_owned(), is_empty, seq: held.seq },
                ..Report::default()
            },
            trust,
            entries,
            agents,
            relationships: Vec::new(),
            journals: Vec::new(),
            all_journals: BTreeMap::new(),
            seq,
            adopt_from: if terms.accept_rollback { dump.header.taken_at.max(0) } else { 0 },
        };
        let (relationships, back) = plan.merge_relationships(dump, &related);
        let journals = plan.merge_journals(dump, std::mem::take(&mut held.journals));
        plan.fill(lists, [relationships, journals], back);
        plan.judge(&held, terms);
        Ok(plan)
    }

    /// A journal of the database is newer than the backup's: its server wrote it.
    fn merge_journals(&mut self, dump: &Dump, held: BTreeMap<String, Vec<u8>>) -> Table {
        let mut table = Table {
            table: "journals",
            backup: dump.counts.journals,
            database: held.len() as u64,
            ..Table::default()
        };
        table.kept = held.keys().filter(|id| !dump.journals.contains_key(*id)).count() as u64;
        table.same = table.database - table.kept;
        self.all_journals = held;
        for (id, journal) in &dump.journals {
            if !self.all_journals.contains_key(id) {
                table.added += 1;
                self.journals.push(id.clone());
                self.all_journals.insert(id.clone(), journal.clone());
            }
        }
        table
    }

    /// A relationship of the database stays as it is. One that only the backup has may have been ended on purpose.
    fn merge_relationships(&mut self, dump: &Dump, held: &[Relationship]) -> (Table, List) {
        let mut table = Table {
            table: "relationships",
            backup: dump.counts.relationships,
            database: held.len() as u64,
            ..Table::default()
        };
        let mut back =
            List::new("relationships with other trust domains that the database does not have (any more)");
        let names: HashSet<_> = held.iter().map(|one| &one.trust_domain).collect();
        for theirs in dump.relationships.values() {
            if held.contains(theirs) {
                table.same += 1;
            } else if !names.contains(&theirs.trust_domain) {
                table.added += 1;
                back.add(|| format!("{} ({})", theirs.trust_domain, theirs.url));
                self.relationships.push(theirs.clone());
            }
        }
        table.kept = table.database - table.same;
        (table, back)
    }

    fn fill(&mut self, lists: [List; 4], [relationships, journals]: [Table; 2], related: List) {
        let Self { report, trust, entries, agents, .. } = self;
        report.tables = vec![
            entries.table.clone(),
            agents.table.clone(),
            trust.bundles.clone(),
            trust.authorities.clone(),
            relationships,
            journals,
        ];
        let [deleted, changed, lost, keeps] = lists;
        if !report.database.is_empty {
            let back = [&agents.back, &trust.back_authorities, &trust.back_bundles].map(Clone::clone);
            report.comes_back = filled([deleted, changed].into_iter().chain(back).chain([related]));
            report.lost = filled([lost]);
        }
        let stays = [&agents.stay_banned, &agents.get_banned, &trust.stay_revoked, &trust.stay_tainted];
        let newer = [agents.newer.clone(), keeps];
        report.stays = filled(stays.map(Clone::clone).into_iter().chain(newer));
    }

    fn judge(&mut self, held: &Held, terms: &Terms) {
        let report = &mut self.report;
        for (host, since) in &held.servers {
            let alive = format!("a server wrote to this database {since} seconds ago ({host})");
            match terms.rehearsal {
                true => {
                    report.notes.push(format!("{alive}: before a restore every server has to be stopped"))
                }
                false => report.refusals.push(format!(
                    "{alive}: stop every server first; one that crashed counts as gone after {} seconds",
                    terms.lease
                )),
            }
        }
        if !terms.accept_rollback {
            report.refusals.extend(rollback(report));
        }
        report.accepted = report.refusals.is_empty();
    }
}

/// Why the restore would be a step back in time, if it would be one.
fn rollback(report: &Report) -> Option<String> {
    if report.database.is_empty {
        return Some(format!(
            "the database is empty, so nothing can tell what happened since this backup was taken {} ago: whoever was \
             banned or evicted, and whatever was deleted or revoked since then would be trusted again. With \
             --accept-rollback it is restored all the same; do again what you know of",
            age(report.backup.age_s)
        ));
    }
    let [back, lost] = [&report.comes_back, &report.lost].map(|lists| !lists.is_empty());
    let what = match (back, lost) {
        (false, false) => return None,
        (true, false) => "what is listed as coming back was deleted, evicted or revoked on purpose since",
        (false, true) => "what is listed as lost was made after the backup",
        (true, true) => "what is listed as coming back and as lost was changed since",
    };
    Some(format!(
        "{what} the backup was taken {} ago; --accept-rollback restores it all the same",
        age(report.backup.age_s)
    ))
}

/// A length of time in words.
fn age(seconds: i64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match seconds {
        86_400.. => format!("{days}d {hours}h"),
        3_600.. => format!("{hours}h {minutes}m"),
        _ => format!("{minutes}m {}s", seconds.max(0) % 60),
    }
}

fn backup_facts(dump: &Dump, terms: &Terms) -> BackupFacts {
    BackupFacts {
        file: dump.path().display().to_string(),
        size: dump.size,
        trust_domain: dump.header.trust_domain.clone(),
        taken_at: dump.header.taken_at,
        age_s: terms.now.saturating_sub(dump.header.taken_at),
        server_id: dump.header.server_id.clone(),
        server_version: dump.header.server_version.clone(),
        epoch: hex::encode(dump.position.epoch),
        seq: dump.position.seq,
    }
}

impl Held {
    async fn read(conn: &mut Conn, terms: &Terms) -> Result<Self, StoreError> {
        let mut held = Self { seq: log::position(conn).await?.seq, ..Self::default() };
        held.journals = read_journals(conn).await?.into_iter().collect();
        let sql = "SELECT alias_entry FROM svid_join_tokens WHERE alias_entry IS NOT NULL";
        held.aliases = conn.fetch_column::<String>(sql, &[]).await?.into_iter().collect();
        let mut after = 0;
        loop {
            let page = node_page(conn, after).await?;
            let Some(last) = page.last() else { break };
            after = last.node.row.cast_signed();
            for row in page {
                held.aliases.extend(row.alias_entry.clone());
                held.nodes.insert(row.node.id.to_string(), row);
            }
        }
        held.servers = servers(conn, terms).await?;
        Ok(held)
    }
}

/// Servers whose claim holds, besides the one whose data directory is locked by us.
async fn servers(conn: &mut Conn, terms: &Terms) -> Result<Vec<(String, i64)>, StoreError> {
    let sql =
        "SELECT host, heartbeat_at FROM svid_servers WHERE heartbeat_at > $1 AND holder != '' ORDER BY host";
    let rows = conn.fetch_all(sql, args![terms.now.saturating_sub(terms.lease)]).await?;
    let mut servers = Vec::new();
    for row in &rows {
        let host: String = row.get(0)?;
        if terms.locked_host.as_ref() != Some(&host) {
            servers.push((host, terms.now.saturating_sub(row.get(1)?).max(0)));
        }
    }
    Ok(servers)
}

async fn compare_entries(
    conn: &mut Conn,
    dump: &Dump,
    held: &Held,
    entries: &mut Entries,
) -> Result<(), StoreError> {
    let sql = concat!("SELECT ", entry_columns!(), " FROM svid_entries WHERE row > $1 ORDER BY row LIMIT $2");
    let mut after: i64 = 0;
    loop {
        let page = conn.fetch_all(sql, args![after, PAGE]).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = last.get(0)?;
        for row in &page {
            let entry = entry_from_row(row)?.entry;
            entries.take(dump, &entry, held.aliases.contains(entry.id.as_str()));
        }
    }
}
