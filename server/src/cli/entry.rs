//! `entry create`, `update` and `delete`.

use svid_core::id::TrustDomain;
use svid_daemon::cli::{CliError, Command};
use svid_daemon::flags::{FlagSet, Parsed};
use svid_proto::spire::api::server::entry::v1::entry_client::EntryClient;
use svid_proto::spire::api::server::entry::v1::{
    BatchCreateEntryRequest, BatchDeleteEntryRequest, BatchDeleteEntryResponse, BatchUpdateEntryRequest,
    GetEntryRequest,
};
use svid_proto::spire::api::types::{self, Entry, entry::AdditionalAttributes};
use svid_proto::{json, spire::common};
use tonic::transport::Channel;

use super::client::MAX_ANSWER_BYTES;
use super::entry_print::{print_entry, print_results};
use super::session::{Session, code_name, item_status, parse_id, parse_selector, rpc, rpc_error};
use super::{Handler, Outcome, command, entry_show, flags};

/// Path of the server's own ID, which is the parent of node entries.
const SERVER_PATH: &str = "/spire/server";

pub fn commands() -> Vec<Command<Handler>> {
    let mut all = vec![
        command("entry create", "Creates registration entries", create_flags(), |s, f| {
            Box::pin(create(s, f))
        }),
        command("entry update", "Updates registration entries", write_flags("entry update"), |s, f| {
            Box::pin(update(s, f))
        }),
        command("entry delete", "Deletes registration entries", delete_flags(), |s, f| {
            Box::pin(delete(s, f))
        }),
    ];
    all.extend(entry_show::commands());
    all
}

pub fn client(channel: Channel) -> EntryClient<Channel> {
    EntryClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES)
}

fn write_flags(name: &'static str) -> FlagSet {
    let flags = flags(name)
        .string("parentID", "", "The SPIFFE ID of this record's parent")
        .string("spiffeID", "", "The SPIFFE ID that this record represents")
        .int("x509SVIDTTL", 0, "The lifetime, in seconds, for x509-SVIDs issued based on this registration entry.")
        .int("jwtSVIDTTL", 0, "The lifetime, in seconds, for JWT-SVIDs issued based on this registration entry.")
        .string(
            "data",
            "",
            "Path to a file containing registration JSON (optional). If set to '-', read the JSON from stdin.",
        )
        .strings("selector", "A colon-delimited type:value selector. Can be used more than once")
        .strings("federatesWith", "SPIFFE ID of a trust domain to federate with. Can be used more than once")
        .bool(
            "admin",
            "If set, the SPIFFE ID in this entry will be granted access to the SPIRE Server's management APIs",
        )
        .bool(
            "storeSVID",
            "A boolean value that, when set, indicates that the resulting issued SVID from this entry must be stored \
             through an SVIDStore plugin",
        )
        .bool("downstream", entry_show::DOWNSTREAM_HELP)
        .int("entryExpiry", 0, "An expiry, from epoch in seconds, for the resulting registration entry to be pruned")
        .strings(
            "dns",
            "A DNS name that will be included in SVIDs issued based on this entry, where appropriate. Can be used \
             more than once",
        )
        .string("hint", "", "The entry hint, used to disambiguate entries with the same SPIFFE ID");
    flags
        .string("entryID", "", "The Registration Entry ID of the record to update")
        .bool(
            "disableX509SVIDPrefetch",
            "A boolean value that, when set, disables prefetching X509 SVID for this entry",
        )
        .bool(
            "jwtSVIDIncludeJTI",
            "A boolean value that, when set, includes a unique 'jti' claim in JWT-SVIDs issued for this entry and \
             bypasses the agent JWT-SVID cache",
        )
}

fn create_flags() -> FlagSet {
    write_flags("entry create")
        .string(
            "entryID",
            "",
            "A custom ID for this registration entry (optional). If not set, a new entry ID will be generated",
        )
        .bool("node", "If set, this entry will be applied to matching nodes rather than workloads")
}

async fn create(session: &mut Session<'_>, flags: &Parsed) -> Outcome {
    let entries = match flags.str("data") {
        "" => {
            check_create(flags)?;
            vec![from_flags(flags, flags.bool("node"))?]
        }
        path => from_file(&session.read_text(path)?)?,
    };
    let mut entry_client = client(session.server().await?);
    let request = BatchCreateEntryRequest { entries: entries.clone(), output_mask: None };
    let mut response = entry_client.batch_create_entry(request).await.map_err(rpc_error)?.into_inner();
    // The server leaves refused entries out of its answer; the reader wants to see which they were.
    for (result, asked) in response.results.iter_mut().zip(entries) {
        if item_status(result.status.as_ref()).0 != 0 {
            result.entry = Some(asked);
        }
    }
    session.print(flags, "spire.api.server.entry.v1.BatchCreateEntryResponse", &response, |session| {
        let results = response.results.iter().map(|one| (one.status.as_ref(), one.entry.as_ref()));
        print_results(session, results, "create")
    })
}

fn check_create(flags: &Parsed) -> Outcome {
    let node = flags.bool("node");
    if flags.strings("selector").is_empty() {
        return Err(CliError::new("at least one selector is required"));
    }
    if node && !flags.strings("federatesWith").is_empty() {
        return Err(CliError::new("node entries can not federate"));
    }
    if flags.str("parentID").is_empty() && !node {
        return Err(CliError::new("a parent ID is required if the node flag is not set"));
    }
    check_id_and_ttls(flags)
}

async fn update(session: &mut Session<'_>, flags: &Parsed) -> Outcome {
    let mut entries = match flags.str("data") {
        "" => {
            check_update(flags)?;
            vec![from_flags(flags, false)?]
        }
        path => from_file(&session.read_text(path)?)?,
    };
    let mut entry_client = client(session.server().await?);
    if let [entry] = entries.as_mut_slice()
        && flags.str("data").is_empty()
        && entry.additional_attributes.is_some()
    {
        keep_other_attributes(&mut entry_client, entry, flags).await?;
    }
    let request = BatchUpdateEntryRequest { entries: entries.clone(), input_mask: None, output_mask: None };
    let mut response = entry_client.batch_update_entry(request).await.map_err(rpc_error)?.into_inner();
    for (result, asked) in response.results.iter_mut().zip(entries) {
        if item_status(result.status.as_ref()).0 != 0 {
            result.entry = Some(asked);
        }
    }
    session.print(flags, "spire.api.server.entry.v1.BatchUpdateEntryResponse", &response, |session| {
        let results = response.results.iter().map(|one| (one.status.as_ref(), one.entry.as_ref()));
        print_results(session, results, "update")
    })
}

/// The attributes are replaced as one field, so those that no flag names are taken over from the stored entry.
async fn keep_other_attributes(
    client: &mut EntryClient<Channel>,
    entry: &mut Entry,
    flags: &Parsed,
) -> Outcome {
    let request = GetEntryRequest { id: entry.id.clone(), output_mask: None };
    let stored = client.get_entry(request).await.map_err(|status| {
        CliError::new(format!(
            "failed to fetch existing entry to merge additional attributes: {}",
            rpc(&status)
        ))
    })?;
    let mut merged = stored.into_inner().additional_attributes.unwrap_or_default();
    if flags.is_set("disableX509SVIDPrefetch") {
        merged.disable_x509_svid_prefetch = flags.bool("disableX509SVIDPrefetch");
    }
    if flags.is_set("jwtSVIDIncludeJTI") {
        merged.jwt_svid_include_jti = flags.bool("jwtSVIDIncludeJTI");
    }
    entry.additional_attributes = Some(merged);
    Ok(())
}

fn check_update(flags: &Parsed) -> Outcome {
    if flags.str("entryID").is_empty() {
        return Err(CliError::new("entry ID is required"));
    }
    if flags.strings("selector").is_empty() {
        return Err(CliError::new("at least one selector is required"));
    }
    if flags.str("parentID").is_empty() {
        return Err(CliError::new("a parent ID is required"));
    }
    check_id_and_ttls(flags)
}

fn check_id_and_ttls(flags: &Parsed) -> Outcome {
    if flags.str("spiffeID").is_empty() {
        return Err(CliError::new("a SPIFFE ID is required"));
    }
    if flags.int("x509SVIDTTL") < 0 {
        return Err(CliError::new("a positive x509-SVID TTL is required"));
    }
    if flags.int("jwtSVIDTTL") < 0 {
        return Err(CliError::new("a positive JWT-SVID TTL is required"));
    }
    Ok(())
}

fn from_flags(flags: &Parsed, node: bool) -> Result<Entry, CliError> {
    let spiffe_id = parse_id(flags.str("spiffeID")).map_err(CliError::new)?;
    let parent_id = match node {
        true => types::Spiffeid { trust_domain: spiffe_id.trust_domain.clone(), path: SERVER_PATH.into() },
        false => parse_id(flags.str("parentID")).map_err(CliError::new)?,
    };
    let attributes = ["disableX509SVIDPrefetch", "jwtSVIDIncludeJTI"].iter().any(|name| flags.is_set(name));
    Ok(Entry {
        id: flags.str("entryID").into(),
        spiffe_id: Some(spiffe_id),
        parent_id: Some(parent_id),
        selectors: flags
            .strings("selector")
            .iter()
            .map(|text| parse_selector(text))
            .collect::<Result<_, _>>()?,
        x509_svid_ttl: seconds(flags.int("x509SVIDTTL"), "X509 SVID TTL")?,
        jwt_svid_ttl: seconds(flags.int("jwtSVIDTTL"), "JWT SVID TTL")?,
        federates_with: flags.strings("federatesWith").to_vec(),
        admin: flags.bool("admin"),
        downstream: flags.bool("downstream"),
        expires_at: flags.int("entryExpiry"),
        dns_names: flags.strings("dns").to_vec(),
        store_svid: flags.bool("storeSVID"),
        hint: flags.str("hint").into(),
        additional_attributes: attributes.then(|| AdditionalAttributes {
            disable_x509_svid_prefetch: flags.bool("disableX509SVIDPrefetch"),
            jwt_svid_include_jti: flags.bool("jwtSVIDIncludeJTI"),
        }),
        ..Entry::default()
    })
}

fn seconds(value: i64, what: &str) -> Result<i32, CliError> {
    i32::try_from(value).map_err(|_| {
        CliError::new(format!("invalid value for {what}: overflow converting int({value}) to int32"))
    })
}

/// Reads the older JSON form that SPIRE's batch files have.
fn from_file(text: &str) -> Result<Vec<Entry>, CliError> {
    let file: common::RegistrationEntries = read_json("spire.common.RegistrationEntries", text)?;
    file.entries.into_iter().map(from_common).collect()
}

fn read_json<M: prost::Message + Default>(name: &str, text: &str) -> Result<M, CliError> {
    json::from_json(name, text).map_err(|error| match &error {
        json::JsonError::Json(cause) => CliError::new(format!("{error}: {cause}")),
        _ => CliError::new(error),
    })
}

fn from_common(entry: common::RegistrationEntry) -> Result<Entry, CliError> {
    let id =
        |what: &str, text: &str| parse_id(text).map_err(|e| CliError::new(format!("invalid {what}: {e}")));
    let trust_domain = |text: String| {
        TrustDomain::from_name_or_id(&text)
            .map(|name| name.as_str().to_owned())
            .map_err(|error| CliError::new(format!("invalid federated trust domain: {error}")))
    };
    Ok(Entry {
        spiffe_id: Some(id("SPIFFE ID", &entry.spiffe_id)?),
        parent_id: Some(id("parent ID", &entry.parent_id)?),
        id: entry.entry_id,
        selectors: (entry.selectors.into_iter())
            .map(|one| types::Selector { r#type: one.r#type, value: one.value })
            .collect(),
        x509_svid_ttl: entry.x509_svid_ttl,
        federates_with: entry.federates_with.into_iter().map(trust_domain).collect::<Result<_, _>>()?,
        admin: entry.admin,
        downstream: entry.downstream,
        expires_at: entry.entry_expiry,
        dns_names: entry.dns_names,
        revision_number: entry.revision_number,
        store_svid: entry.store_svid,
        jwt_svid_ttl: entry.jwt_svid_ttl,
        hint: entry.hint,
        created_at: entry.created_at,
        additional_attributes: entry.additional_attributes.map(|one| AdditionalAttributes {
            disable_x509_svid_prefetch: one.disable_x509_svid_prefetch,
            jwt_svid_include_jti: one.jwt_svid_include_jti,
        }),
    })
}

fn delete_flags() -> FlagSet {
    flags("entry delete").string("entryID", "", "The Registration Entry ID of the record to delete.").string(
        "file",
        "",
        "Path to a file containing a JSON structure for batch deletion (optional). If set to '-', read from \
             stdin.",
    )
}

async fn delete(session: &mut Session<'_>, flags: &Parsed) -> Outcome {
    let request = match (flags.str("file"), flags.str("entryID")) {
        ("", "") => return Err(CliError::new("an entry ID is required")),
        ("", id) => BatchDeleteEntryRequest { ids: vec![id.into()] },
        (path, _) => {
            let text = session.read_text(path)?;
            read_json("spire.api.server.entry.v1.BatchDeleteEntryRequest", &text)?
        }
    };
    let mut client = client(session.server().await?);
    let response = client.batch_delete_entry(request).await.map_err(rpc_error)?.into_inner();
    session.print(flags, "spire.api.server.entry.v1.BatchDeleteEntryResponse", &response, |session| {
        print_deleted(session, &response)
    })
}

/// The summary has no line feed, as in SPIRE.
fn print_deleted(session: &mut Session<'_>, response: &BatchDeleteEntryResponse) -> Outcome {
    let failed = |one: &&svid_proto::spire::api::server::entry::v1::batch_delete_entry_response::Result| {
        item_status(one.status.as_ref()).0 != 0
    };
    let failures = response.results.iter().filter(failed).count();
    let successes = response.results.len() - failures;
    for result in response.results.iter().filter(|one| !failed(one)) {
        writeln!(session.out, "Deleted entry with ID: {}", result.id)?;
    }
    if successes > 0 {
        write!(session.out, "\n\n")?;
    }
    for result in response.results.iter().filter(failed) {
        let (code, message) = item_status(result.status.as_ref());
        let code = code_name(code);
        writeln!(
            session.err,
            "Failed to delete entry with ID {} (code: {code}, msg: {message:?})",
            result.id
        )?;
    }
    if failures == 0 {
        write!(session.out, "Deleted {successes} entries successfully")?;
        return Ok(());
    }
    match successes {
        0 => write!(session.out, "\n\nFailed to delete {failures} entries")?,
        _ => write!(
            session.out,
            "\n\nDeleted {successes} entries successfully, but failed to delete {failures} entries"
        )?,
    }
    Err(CliError::new("failed to delete one or more entries"))
}

/// Writes entries for people; used by the commands that show them.
pub fn print_all(session: &mut Session<'_>, entries: &[Entry]) -> Outcome {
    entries.iter().try_for_each(|entry| Ok(print_entry(session.out, entry)?))
}
