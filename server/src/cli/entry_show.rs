//! `entry show` and `count`.

use svid_daemon::cli::{CliError, Command};
use svid_daemon::flags::{FlagSet, Parsed};
use svid_proto::spire::api::server::entry::v1::{
    CountEntriesRequest, GetEntryRequest, ListEntriesRequest, ListEntriesResponse, count_entries_request,
    list_entries_request,
};
use svid_proto::spire::api::types::{Entry, FederatesWithMatch, SelectorMatch};

use super::entry::{client, print_all};
use super::session::{Session, count, parse_id, parse_match, parse_selector, rpc, rpc_context, rpc_error};
use super::{Handler, Outcome, command, flags};

const PAGE_SIZE: i32 = 500;
pub const DOWNSTREAM_HELP: &str =
    "A boolean value that, when set, indicates that the entry describes a downstream SPIRE server";

pub fn commands() -> Vec<Command<Handler>> {
    let show_flags = filter_flags("entry show").string("entryID", "", "The Entry ID of the records to show");
    vec![
        command("entry show", "Displays configured registration entries", show_flags, |s, f| {
            Box::pin(show(s, f))
        }),
        command("entry count", "Count registration entries", filter_flags("entry count"), |s, f| {
            Box::pin(count_entries(s, f))
        }),
    ]
}

fn filter_flags(name: &'static str) -> FlagSet {
    flags(name)
        .string("parentID", "", "The Parent ID of the records")
        .string("spiffeID", "", "The SPIFFE ID of the records")
        .bool("downstream", DOWNSTREAM_HELP)
        .strings("selector", "A colon-delimited type:value selector. Can be used more than once")
        .strings(
            "federatesWith",
            "SPIFFE ID of a trust domain an entry is federate with. Can be used more than once",
        )
        .string(
            "matchFederatesWithOn",
            "superset",
            "The match mode used when filtering by federates with. Options: exact, any, superset and subset",
        )
        .string(
            "matchSelectorsOn",
            "superset",
            "The match mode used when filtering by selectors. Options: exact, any, superset and subset",
        )
        .string("hint", "", "The Hint of the records (optional)")
}

fn match_number(word: &str) -> Result<i32, CliError> {
    parse_match(word).ok_or_else(|| CliError::new(format!("match behavior {word:?} unknown")))
}

fn filter(flags: &Parsed) -> Result<list_entries_request::Filter, CliError> {
    let id = |flag: &str, what: &str| match flags.str(flag) {
        "" => Ok(None),
        text => parse_id(text)
            .map(Some)
            .map_err(|error| CliError::new(format!("error parsing {what} {text:?}: {error}"))),
    };
    let by_parent_id = id("parentID", "parent ID")?;
    let by_spiffe_id = id("spiffeID", "SPIFFE ID")?;
    let mut by_selectors = None;
    if !flags.strings("selector").is_empty() {
        let r#match = match_number(flags.str("matchSelectorsOn"))?;
        let selectors = (flags.strings("selector").iter())
            .map(|text| parse_selector(text))
            .collect::<Result<_, _>>()
            .map_err(|error| CliError::new(format!("error parsing selectors: {error}")))?;
        by_selectors = Some(SelectorMatch { selectors, r#match });
    }
    let mut by_federates_with = None;
    if !flags.strings("federatesWith").is_empty() {
        let r#match = match_number(flags.str("matchFederatesWithOn"))?;
        let trust_domains = flags.strings("federatesWith").to_vec();
        by_federates_with = Some(FederatesWithMatch { trust_domains, r#match });
    }
    Ok(list_entries_request::Filter {
        by_spiffe_id,
        by_parent_id,
        by_selectors,
        by_federates_with,
        by_hint: Some(flags.str("hint").to_owned()).filter(|hint| !hint.is_empty()),
        // Only a flag that was given filters. SPIRE always sends `false` and relies on its server to read
        // that as "all", which its documentation does not promise.
        by_downstream: flags.bool("downstream").then_some(true),
    })
}

async fn show(session: &mut Session<'_>, flags: &Parsed) -> Outcome {
    let combined = !flags.str("parentID").is_empty()
        || !flags.str("spiffeID").is_empty()
        || !flags.strings("selector").is_empty();
    let mut response = match flags.str("entryID") {
        "" => list(session, flags).await?,
        _ if combined => return Err(CliError::new("the -entryID flag can't be combined with others")),
        id => ListEntriesResponse { entries: vec![get(session, id).await?], ..Default::default() },
    };
    sort(&mut response.entries);
    session.print(flags, "spire.api.server.entry.v1.ListEntriesResponse", &response, |session| {
        writeln!(session.out, "Found {}", count(response.entries.len(), "entry", "entries"))?;
        print_all(session, &response.entries)
    })
}

async fn get(session: &Session<'_>, id: &str) -> Result<Entry, CliError> {
    let request = GetEntryRequest { id: id.into(), output_mask: None };
    let answer = client(session.server().await?).get_entry(request).await;
    let failed = |status| CliError::new(format!("error fetching entry ID {id}: {}", rpc(&status)));
    Ok(answer.map_err(failed)?.into_inner())
}

async fn list(session: &Session<'_>, flags: &Parsed) -> Result<ListEntriesResponse, CliError> {
    let filter = filter(flags)?;
    let mut client = client(session.server().await?);
    let mut whole = ListEntriesResponse::default();
    let mut page_token = String::new();
    loop {
        let request = ListEntriesRequest {
            filter: Some(filter.clone()),
            output_mask: None,
            page_size: PAGE_SIZE,
            page_token,
        };
        let answer = client.list_entries(request).await.map_err(rpc_context("error fetching entries"))?;
        let answer = answer.into_inner();
        whole.entries.extend(answer.entries);
        page_token = answer.next_page_token;
        if page_token.is_empty() {
            return Ok(whole);
        }
    }
}

/// SPIRE's order: SPIFFE ID, parent, lifetimes, number of selectors, selectors; those of an entry sorted first.
fn sort(entries: &mut [Entry]) {
    for entry in entries.iter_mut() {
        entry.selectors.sort_by(|a, b| (&a.r#type, &a.value).cmp(&(&b.r#type, &b.value)));
    }
    let id = |id: &Option<svid_proto::spire::api::types::Spiffeid>| {
        id.clone().map(|id| (id.trust_domain, id.path)).unwrap_or_default()
    };
    entries.sort_by_cached_key(|entry| {
        let selectors: Vec<_> =
            entry.selectors.iter().map(|one| (one.r#type.clone(), one.value.clone())).collect();
        let ttls = (entry.x509_svid_ttl, entry.jwt_svid_ttl);
        (id(&entry.spiffe_id), id(&entry.parent_id), ttls, selectors.len(), selectors)
    });
}

async fn count_entries(session: &mut Session<'_>, flags: &Parsed) -> Outcome {
    let filter = filter(flags)?;
    let filter = count_entries_request::Filter {
        by_spiffe_id: filter.by_spiffe_id,
        by_parent_id: filter.by_parent_id,
        by_selectors: filter.by_selectors,
        by_federates_with: filter.by_federates_with,
        by_hint: filter.by_hint,
        by_downstream: filter.by_downstream,
    };
    let request = CountEntriesRequest { filter: Some(filter) };
    let answer =
        client(session.server().await?).count_entries(request).await.map_err(rpc_error)?.into_inner();
    session.print(flags, "spire.api.server.entry.v1.CountEntriesResponse", &answer, |session| {
        let number = usize::try_from(answer.count).unwrap_or_default();
        Ok(writeln!(session.out, "{}", count(number, "registration entry", "registration entries"))?)
    })
}
