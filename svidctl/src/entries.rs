//! `entry list` and `entry show`.

use serde::Serialize;
use serde_json::Value;
use svid_proto::spire::api::server::entry::v1::entry_client::EntryClient;
use svid_proto::spire::api::server::entry::v1::{GetEntryRequest, ListEntriesRequest};
use svid_proto::spire::api::types::{Entry, Selector, Spiffeid};
use tonic::Code;
use tonic::transport::Channel;

use crate::args::{Args, EntryCommand};
use crate::connect::{self, Failure, MAX_ANSWER_BYTES, Who};
use crate::render::{self, Screen, facts, left, table};

const PAGE_SIZE: i32 = 500;

pub async fn run(args: &Args, command: &EntryCommand, screen: &mut Screen) -> Result<(), Failure> {
    let channel = connect::dial(Who::Server, &args.server_socket).await?;
    match command {
        EntryCommand::List => {
            let mut entries = list(channel).await?;
            entries.sort_by_cached_key(|entry| (id(entry.spiffe_id.as_ref()), entry.id.clone()));
            let report = List { entries: entries.iter().map(json).collect::<Result<_, _>>()? };
            screen.print(&report, |_, _| list_text(&entries, render::now()))
        }
        EntryCommand::Show { id } => {
            let entry = get(channel, id).await?;
            screen.print(&One { entry: json(&entry)? }, |_, _| one_text(&entry, render::now()))
        }
    }
}

#[derive(Serialize)]
struct List {
    entries: Vec<Value>,
}

#[derive(Serialize)]
struct One {
    entry: Value,
}

/// An entry as SPIRE's command line prints it in JSON.
pub fn json(entry: &Entry) -> Result<Value, Failure> {
    svid_proto::json::to_json("spire.api.types.Entry", entry).map_err(Failure::new)
}

/// Every entry of the server.
///
/// # Errors
/// What the server says.
pub async fn list(channel: Channel) -> Result<Vec<Entry>, Failure> {
    let mut client = EntryClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES);
    let mut entries = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListEntriesRequest { page_size: PAGE_SIZE, page_token, ..Default::default() };
        let answer =
            client.list_entries(request).await.map_err(|status| connect::rpc(Who::Server, &status))?;
        let answer = answer.into_inner();
        entries.extend(answer.entries);
        page_token = answer.next_page_token;
        if page_token.is_empty() {
            return Ok(entries);
        }
    }
}

async fn get(channel: Channel, id: &str) -> Result<Entry, Failure> {
    let request = GetEntryRequest { id: id.into(), output_mask: None };
    EntryClient::new(channel).get_entry(request).await.map(tonic::Response::into_inner).map_err(|status| {
        match status.code() {
            Code::NotFound => Failure::new(format!("there is no entry with the id {id}"))
                .advise("`svidctl entry list` shows the ids."),
            _ => connect::rpc(Who::Server, &status),
        }
    })
}

/// A SPIFFE ID as text; empty when absent.
pub fn id(id: Option<&Spiffeid>) -> String {
    id.map(|id| format!("spiffe://{}{}", id.trust_domain, id.path)).unwrap_or_default()
}

/// Selectors as they are written on a command line.
pub fn selectors(selectors: &[Selector]) -> Vec<String> {
    selectors.iter().map(|one| format!("{}:{}", one.r#type, one.value)).collect()
}

/// What is special about an entry, for a narrow column.
pub fn marks(entry: &Entry, now: i64) -> String {
    let mut marks = Vec::new();
    for (is_set, word) in
        [(entry.admin, "admin"), (entry.downstream, "downstream"), (entry.store_svid, "store")]
    {
        if is_set {
            marks.push(word.to_owned());
        }
    }
    if entry.expires_at != 0 {
        let end = left(entry.expires_at, now);
        marks.push(if entry.expires_at <= now { format!("expired, {end}") } else { end });
    }
    marks.join(", ")
}

fn list_text(entries: &[Entry], now: i64) -> String {
    if entries.is_empty() {
        return "There are no entries. `svid-server entry create` makes one.\n".into();
    }
    let row = |entry: &Entry| {
        vec![
            id(entry.spiffe_id.as_ref()),
            id(entry.parent_id.as_ref()),
            selectors(&entry.selectors).join(" "),
            marks(entry, now),
            entry.id.clone(),
        ]
    };
    table(&["SPIFFE ID", "PARENT", "SELECTORS", "NOTES", "ENTRY"], entries.iter().map(row))
}

fn one_text(entry: &Entry, now: i64) -> String {
    let ttl = |seconds: i32| match seconds {
        0 => "the server's default".to_owned(),
        seconds => render::span(seconds.into()),
    };
    let none_or = |list: Vec<String>| if list.is_empty() { "none".into() } else { list.join(", ") };
    let attributes = entry.additional_attributes.unwrap_or_default();
    let yes = |is_set: bool| if is_set { "yes" } else { "no" }.to_owned();
    let mut rows = vec![
        ("Entry", entry.id.clone()),
        ("SPIFFE ID", id(entry.spiffe_id.as_ref())),
        ("Parent", id(entry.parent_id.as_ref())),
        ("Selectors", none_or(selectors(&entry.selectors))),
        ("X509-SVIDs live", ttl(entry.x509_svid_ttl)),
        ("JWT-SVIDs live", ttl(entry.jwt_svid_ttl)),
        ("DNS names", none_or(entry.dns_names.clone())),
        ("Federates with", none_or(entry.federates_with.clone())),
        ("Admin", yes(entry.admin)),
        ("Downstream", yes(entry.downstream)),
        ("Stored by the agent", yes(entry.store_svid)),
        ("Revision", entry.revision_number.to_string()),
        ("Created", render::time(entry.created_at)),
    ];
    if !entry.hint.is_empty() {
        rows.push(("Hint", entry.hint.clone()));
    }
    if attributes.disable_x509_svid_prefetch {
        rows.push(("Prefetched", "no".into()));
    }
    if attributes.jwt_svid_include_jti {
        rows.push(("JWT-SVIDs have a jti", "yes".into()));
    }
    if entry.expires_at != 0 {
        rows.push((
            "Expires",
            format!("{} ({})", render::time(entry.expires_at), left(entry.expires_at, now)),
        ));
    }
    facts("", &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        let id = |path: &str| Some(Spiffeid { trust_domain: "example.org".into(), path: path.into() });
        Entry {
            id: "e1".into(),
            spiffe_id: id("/web"),
            parent_id: id("/node"),
            selectors: vec![Selector { r#type: "unix".into(), value: "uid:1000".into() }],
            admin: true,
            expires_at: 1_060,
            ..Entry::default()
        }
    }

    #[test]
    fn entries_in_a_table() {
        assert_eq!(
            list_text(&[entry()], 1_000),
            "SPIFFE ID                 PARENT                     SELECTORS      NOTES                 ENTRY\n\
             spiffe://example.org/web  spiffe://example.org/node  unix:uid:1000  admin, 1m 0s left     e1\n"
                .replace("NOTES                 ENTRY", "NOTES              ENTRY")
                .replace("left     e1", "left  e1")
        );
        assert!(list_text(&[], 0).contains("entry create"));
        assert_eq!(marks(&entry(), 1_090), "admin, expired, over for 30s");
    }

    #[test]
    fn one_entry() {
        let text = one_text(&entry(), 1_000);
        for line in [
            "SPIFFE ID:            spiffe://example.org/web\n",
            "X509-SVIDs live:      the server's default\n",
            "Expires:              1970-01-01T00:17:40Z (1m 0s left)\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}
