//! SyncAuthorizedEntries: all entries when they are few, else their revisions and then what the agent asks for.
//! Source: `spire-server.md`, 3.6.

use std::sync::Arc;

use futures_util::Stream;
use svid_core::entry::Entry;
use svid_proto::convert::{apply_entry_mask, entry_to_wire};
use svid_proto::spire::api::server::entry::v1 as wire;
use svid_proto::spire::api::types;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::Context;
use super::caller::{Call, PeerCert};
use super::status::invalid_argument;
use super::sync::still_agent;

/// Entries or revisions in one message.
const PAGE: usize = 500;

type Answer = Result<wire::SyncAuthorizedEntriesResponse, Status>;

/// Dialogues of one agent at once that hold a list of more than a page. Agents have one at a time.
const MAX_PER_AGENT: usize = 16;

/// The stream of answers to the messages of `requests`.
/// # Errors
/// `ResourceExhausted` for an agent with too many of them: each keeps its list for as long as the agent likes.
pub(super) fn serve(
    context: Arc<Context>,
    call: Arc<Call>,
    agent: PeerCert,
    entries: Vec<Entry>,
    requests: Streaming<wire::SyncAuthorizedEntriesRequest>,
) -> Result<impl Stream<Item = Answer> + use<>, Status> {
    let place = match entries.len() > PAGE {
        true => {
            let place = context.syncs.enter(&agent.id, MAX_PER_AGENT);
            Some(place.ok_or_else(|| Status::resource_exhausted("too many sync streams of this agent"))?)
        }
        false => None,
    };
    // One message waits while one is on its way: a slow reader holds no more than that.
    let (answers, stream) = mpsc::channel(1);
    tokio::spawn(async move {
        let _place = place;
        match dialogue(&context, &agent, entries, requests, &answers).await {
            Ok(()) => call.audit_end(Code::Ok, ""),
            Err(status) => {
                call.audit_end(status.code(), status.message());
                let _ = answers.send(Err(status)).await; // the agent may be gone
            }
        }
    });
    Ok(ReceiverStream::new(stream))
}

async fn dialogue(
    context: &Context,
    agent: &PeerCert,
    mut entries: Vec<Entry>,
    mut requests: Streaming<wire::SyncAuthorizedEntriesRequest>,
    answers: &mpsc::Sender<Answer>,
) -> Result<(), Status> {
    let Some(first) = requests.message().await? else { return Ok(()) };
    let mask = first_mask(first)?;
    if entries.len() <= PAGE {
        let entries = entries.iter().map(|entry| masked(entry, mask.as_ref())).collect();
        send(answers, wire::SyncAuthorizedEntriesResponse { entries, ..Default::default() }).await;
        return Ok(());
    }
    entries.sort_unstable_by(|a, b| a.id.cmp(&b.id));
    send_revisions(&entries, answers).await;
    while let Some(request) = next(&mut requests).await? {
        // It may have taken its time, and what it may have it may have no longer.
        still_agent(context, agent).await?;
        if !send_entries(&entries, request.ids, mask.as_ref(), answers).await {
            break;
        }
    }
    Ok(())
}

/// The next request; the end of the stream and a cancelled one are the same.
async fn next(
    requests: &mut Streaming<wire::SyncAuthorizedEntriesRequest>,
) -> Result<Option<wire::SyncAuthorizedEntriesRequest>, Status> {
    match requests.message().await {
        Err(status) if status.code() == Code::Cancelled => Ok(None),
        other => other,
    }
}

fn first_mask(first: wire::SyncAuthorizedEntriesRequest) -> Result<Option<types::EntryMask>, Status> {
    if !first.ids.is_empty() {
        return Err(invalid_argument("specifying IDs on initial request is not supported"));
    }
    if first.output_mask.as_ref().is_some_and(|mask| !mask.revision_number) {
        return Err(invalid_argument("revision number cannot be masked"));
    }
    Ok(first.output_mask)
}

fn masked(entry: &Entry, mask: Option<&types::EntryMask>) -> types::Entry {
    let mut entry = entry_to_wire(entry);
    apply_entry_mask(&mut entry, mask);
    entry
}

/// False once the agent is gone.
async fn send(answers: &mpsc::Sender<Answer>, answer: wire::SyncAuthorizedEntriesResponse) -> bool {
    answers.send(Ok(answer)).await.is_ok()
}

async fn send_revisions(entries: &[Entry], answers: &mpsc::Sender<Answer>) {
    let mut pages = entries.chunks(PAGE).peekable();
    while let Some(page) = pages.next() {
        let revision = |entry: &Entry| wire::EntryRevision {
            id: entry.id.as_str().to_owned(),
            revision_number: entry.revision,
            created_at: entry.created_at,
        };
        let entry_revisions = page.iter().map(revision).collect();
        let more = pages.peek().is_some();
        let answer = wire::SyncAuthorizedEntriesResponse { entry_revisions, more, ..Default::default() };
        if !send(answers, answer).await {
            return;
        }
    }
}

/// The entries of `ids` in pages; unknown ids are left out. At least one answer, however many are known.
async fn send_entries(
    entries: &[Entry],
    mut ids: Vec<String>,
    mask: Option<&types::EntryMask>,
    answers: &mpsc::Sender<Answer>,
) -> bool {
    ids.sort_unstable();
    ids.dedup();
    let find = |id: &String| entries.binary_search_by(|entry| entry.id.as_str().cmp(id)).ok();
    let found: Vec<usize> = ids.iter().filter_map(find).collect();
    let mut pages = found.chunks(PAGE).peekable();
    loop {
        let page = pages.next().unwrap_or_default();
        let more = pages.peek().is_some();
        let entries = page.iter().map(|at| masked(&entries[*at], mask)).collect();
        if !send(answers, wire::SyncAuthorizedEntriesResponse { entries, more, ..Default::default() }).await {
            return false;
        }
        if !more {
            return true;
        }
    }
}
