//! The report of a restore as text.

use std::fmt::Write as _;

use super::session::{count, rfc3339};
use crate::run::restore::{AuthorityLine, Told};
use crate::store::restore::{List, Report, Table};

/// Items of a list that are printed.
const SHOWN: usize = 10;

/// Everything that an operator has to know before he says yes.
pub fn text(told: &Told) -> String {
    let report = &told.report;
    let mut text = head(report);
    text += &table(&report.tables);
    for (title, lists) in [
        ("Comes back", &report.comes_back),
        ("Gets lost", &report.lost),
        ("Stays as the database has it", &report.stays),
    ] {
        if !lists.is_empty() {
            text += &format!("\n{title}:\n");
            lists.iter().for_each(|list| text += &list_text(list));
        }
    }
    text += &authorities(&told.authorities);
    text += &format!("\nNext start: {}.\n", told.next_start);
    for note in &report.notes {
        text += &format!("Note: {note}.\n");
    }
    text.push('\n');
    text += &verdict(report);
    text
}

fn head(report: &Report) -> String {
    let (backup, database) = (&report.backup, &report.database);
    let state = if database.is_empty { "empty".into() } else { format!("at change {}", database.seq) };
    format!(
        "Backup of {} in {} ({} bytes)\n  taken at {} by server {} (release {}), at change {} of epoch {}\nDatabase: {}, \
         {state}\n\n",
        backup.trust_domain,
        backup.file,
        backup.size,
        rfc3339(backup.taken_at),
        backup.server_id,
        backup.server_version,
        backup.seq,
        backup.epoch,
        database.kind,
    )
}

fn table(tables: &[Table]) -> String {
    let mut text = format!(
        "{:12} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}\n",
        "", "BACKUP", "DATABASE", "SAME", "CHANGED", "ADDED", "REMOVED", "KEPT"
    );
    for row in tables {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{:12} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
            row.table, row.backup, row.database, row.same, row.changed, row.added, row.removed, row.kept
        );
    }
    text
}

fn list_text(list: &List) -> String {
    let mut text = format!("  {}: {}\n", list.what, list.count);
    for item in list.items.iter().take(SHOWN) {
        text += &format!("    {item}\n");
    }
    let more = list.count.saturating_sub(list.items.len().min(SHOWN) as u64);
    if more > 0 {
        text += &format!("    and {more} more\n");
    }
    text
}

fn authorities(lines: &[AuthorityLine]) -> String {
    if lines.is_empty() {
        return String::new();
    }
    let mut text =
        format!("\nThe trust domain's bundle then has {}:\n", count(lines.len(), "authority", "authorities"));
    for line in lines {
        let ends = if line.not_after > 0 { rfc3339(line.not_after) } else { "an unknown time".into() };
        let key =
            if line.key_is_here { "this server has its key" } else { "this server does not sign with it" };
        let tainted = if line.tainted { ", tainted" } else { "" };
        text += &format!("  {:5} {} until {ends}{tainted}; {key}\n", line.kind, line.authority_id);
    }
    text
}

fn verdict(report: &Report) -> String {
    if report.restored {
        return "Restored. Start the servers: agents and servers take a new snapshot.\n".into();
    }
    if report.accepted {
        return "This backup can be restored.\n".into();
    }
    let mut text = "This backup is not restored:\n".to_owned();
    report.refusals.iter().for_each(|refusal| text += &format!("- {refusal}\n"));
    text
}
