//! Entries for people.

use std::io::{self, Write};

use svid_daemon::cli::CliError;
use svid_proto::spire::api::types::{self, Entry};

use super::Outcome;
use super::session::{Session, code_name, id_text, item_status, utc};

fn line(out: &mut dyn Write, label: &str, value: impl std::fmt::Display) -> io::Result<()> {
    writeln!(out, "{label:<24}: {value}")
}

fn ttl(seconds: i32) -> String {
    if seconds == 0 { "default".into() } else { seconds.to_string() }
}

/// One entry in SPIRE's layout and an empty line. Fields that say nothing are left out.
pub fn print_entry(out: &mut dyn Write, entry: &Entry) -> io::Result<()> {
    let id = if entry.id.is_empty() { "(none)" } else { &entry.id };
    line(out, "Entry ID", id)?;
    line(out, "SPIFFE ID", id_text(entry.spiffe_id.as_ref()))?;
    line(out, "Parent ID", id_text(entry.parent_id.as_ref()))?;
    line(out, "Revision", entry.revision_number)?;
    if entry.downstream {
        line(out, "Downstream", true)?;
    }
    line(out, "X509-SVID TTL", ttl(entry.x509_svid_ttl))?;
    line(out, "JWT-SVID TTL", ttl(entry.jwt_svid_ttl))?;
    if entry.expires_at != 0 {
        line(out, "Expiration time", utc(entry.expires_at))?;
    }
    for selector in &entry.selectors {
        line(out, "Selector", format_args!("{}:{}", selector.r#type, selector.value))?;
    }
    for name in &entry.federates_with {
        line(out, "FederatesWith", name)?;
    }
    for name in &entry.dns_names {
        line(out, "DNS name", name)?;
    }
    let attributes = entry.additional_attributes.unwrap_or_default();
    for (label, is_set) in [("Admin", entry.admin), ("StoreSvid", entry.store_svid)] {
        if is_set {
            line(out, label, true)?;
        }
    }
    if !entry.hint.is_empty() {
        line(out, "Hint", &entry.hint)?;
    }
    for (label, is_set) in [
        ("DisableX509SvidPrefetch", attributes.disable_x509_svid_prefetch),
        ("JwtSvidIncludeJti", attributes.jwt_svid_include_jti),
    ] {
        if is_set {
            line(out, label, true)?;
        }
    }
    writeln!(out)
}

/// What became of a batch: entries that were written to standard output, refused ones to standard error.
///
/// # Errors
/// When one was refused.
pub fn print_results<'e>(
    session: &mut Session<'_>,
    results: impl Iterator<Item = (Option<&'e types::Status>, Option<&'e Entry>)> + Clone,
    verb: &str,
) -> Outcome {
    let absent = Entry::default();
    let mut failed = false;
    for (status, entry) in results.clone() {
        if item_status(status).0 == 0 {
            print_entry(session.out, entry.unwrap_or(&absent))?;
        }
    }
    for (status, entry) in results {
        let (code, message) = item_status(status);
        if code != 0 {
            failed = true;
            let code = code_name(code);
            writeln!(session.err, "Failed to {verb} the following entry (code: {code}, msg: {message:?}):")?;
            print_entry(session.err, entry.unwrap_or(&absent))?;
        }
    }
    match failed {
        true => Err(CliError::new(format!("failed to {verb} one or more entries"))),
        false => Ok(()),
    }
}
