//! The entries this agent may serve, as the server lists them.

use std::collections::HashMap;
use std::collections::HashSet;

use svid_core::entry::EntryId;
use svid_core::id::TrustDomain;
use svid_proto::convert::{id_from_wire, selectors_from_wire};
use svid_proto::spire::api::server::entry::v1::entry_client::EntryClient;
use svid_proto::spire::api::server::entry::v1::{
    GetAuthorizedEntriesRequest, SyncAuthorizedEntriesRequest, SyncAuthorizedEntriesResponse,
};
use svid_proto::spire::api::types::{Entry, EntryMask};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};
use tracing::warn;

use crate::cache::AgentEntry;

/// What is known of each entry: revision and creation time.
pub(super) type Held = HashMap<EntryId, (i64, i64)>;

/// What the server's list means for the cache.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) upserts: Vec<AgentEntry>,
    pub(super) removed: Vec<EntryId>,
    /// Entries that were named and not sent; they went away in between.
    pub(super) missing: usize,
    /// How many entries there are in all.
    pub(super) total: usize,
    /// Held entries that had another revision.
    pub(super) stale: usize,
}

/// The fields an agent needs. Source: SPIRE.
fn mask() -> EntryMask {
    EntryMask {
        spiffe_id: true,
        selectors: true,
        federates_with: true,
        admin: true,
        downstream: true,
        revision_number: true,
        store_svid: true,
        hint: true,
        created_at: true,
        additional_attributes: true,
        ..EntryMask::default()
    }
}

/// `GetAuthorizedEntries`, for servers from before the other way.
pub(super) async fn get_all(channel: Channel, held: &Held) -> Result<Changes, Status> {
    let request = GetAuthorizedEntriesRequest { output_mask: Some(mask()) };
    let answer = EntryClient::new(channel).get_authorized_entries(request).await?;
    Ok(complete(&answer.into_inner().entries, held))
}

/// `SyncAuthorizedEntries`: the whole list when it is short, else revisions first and then what differs.
pub(super) async fn sync(channel: Channel, held: &Held) -> Result<Changes, Status> {
    let (requests, stream) = mpsc::channel(1);
    let first = SyncAuthorizedEntriesRequest { output_mask: Some(mask()), ids: Vec::new() };
    // There is room for one, and the receiver is alive.
    let _ = requests.send(first).await;
    let answer = EntryClient::new(channel).sync_authorized_entries(ReceiverStream::new(stream)).await?;
    let mut answers = answer.into_inner();
    let mut page = next(&mut answers).await?;
    if page.entry_revisions.is_empty() {
        return Ok(complete(&page.entries, held));
    }
    let page_size = page.entry_revisions.len();
    let mut revisions = page.entry_revisions;
    while page.more {
        page = next(&mut answers).await?;
        revisions.extend(page.entry_revisions);
    }
    let rows = revisions.iter().map(|row| (row.id.as_str(), row.revision_number, row.created_at));
    let (needed, mut changes) = compare(rows, held);
    for ids in needed.chunks(page_size) {
        let request = SyncAuthorizedEntriesRequest { output_mask: None, ids: ids.to_vec() };
        if requests.send(request).await.is_err() {
            return Err(Status::unavailable("the server closed the stream"));
        }
        loop {
            let page = next(&mut answers).await?;
            changes.upserts.extend(page.entries.iter().filter_map(read));
            if !page.more {
                break;
            }
        }
    }
    changes.missing = needed.len().saturating_sub(changes.upserts.len());
    Ok(changes)
}

async fn next(
    answers: &mut Streaming<SyncAuthorizedEntriesResponse>,
) -> Result<SyncAuthorizedEntriesResponse, Status> {
    answers.message().await?.ok_or_else(|| Status::unavailable("the server closed the stream"))
}

fn complete(entries: &[Entry], held: &Held) -> Changes {
    let upserts: Vec<AgentEntry> = entries.iter().filter_map(read).collect();
    let listed: HashSet<&EntryId> = upserts.iter().map(|entry| &entry.id).collect();
    let removed = held.keys().filter(|id| !listed.contains(id)).cloned().collect();
    Changes { removed, total: entries.len(), ..Changes { upserts, ..Changes::default() } }
}

/// Which entries to ask for, sorted, and which held ones are gone.
pub(super) fn compare<'a>(
    rows: impl Iterator<Item = (&'a str, i64, i64)>,
    held: &Held,
) -> (Vec<String>, Changes) {
    let mut changes = Changes::default();
    let mut listed: HashSet<EntryId> = HashSet::new();
    let mut needed = Vec::new();
    for (id, revision, created_at) in rows {
        changes.total += 1;
        let Ok(entry_id) = id.parse::<EntryId>() else { continue };
        let known = held.get(&entry_id);
        let is_current = known.is_some_and(|(held_revision, held_created)| {
            *held_revision == revision && (created_at == 0 || *held_created == created_at)
        });
        if !is_current {
            changes.stale += usize::from(known.is_some());
            needed.push(id.to_owned());
        }
        listed.insert(entry_id);
    }
    needed.sort_unstable();
    changes.removed = held.keys().filter(|id| !listed.contains(*id)).cloned().collect();
    (needed, changes)
}

/// An entry from the wire; a malformed one is logged and left out.
pub(super) fn read(entry: &Entry) -> Option<AgentEntry> {
    convert(entry)
        .inspect_err(|error| {
            warn!(
                entry = %entry.id,
                error = %error,
                "Received malformed entry from SPIRE server; are the server and agent versions compatible?"
            );
        })
        .ok()
}

fn convert(entry: &Entry) -> Result<AgentEntry, String> {
    let federates_with = entry.federates_with.iter().map(|name| TrustDomain::from_name_or_id(name));
    let selectors = selectors_from_wire(&entry.selectors).map_err(|error| error.to_string())?;
    if selectors.is_empty() {
        return Err("missing selectors".into());
    }
    Ok(AgentEntry {
        id: entry.id.parse().map_err(|error: svid_core::entry::EntryError| error.to_string())?,
        spiffe_id: id_from_wire(entry.spiffe_id.as_ref()).map_err(|error| error.to_string())?,
        selectors,
        federates_with: federates_with.collect::<Result<_, _>>().map_err(|error| error.to_string())?,
        admin: entry.admin,
        downstream: entry.downstream,
        store_svid: entry.store_svid,
        hint: entry.hint.clone(),
        revision: entry.revision_number,
        created_at: entry.created_at,
        disable_x509_svid_prefetch: entry
            .additional_attributes
            .as_ref()
            .is_some_and(|attributes| attributes.disable_x509_svid_prefetch),
    })
}
