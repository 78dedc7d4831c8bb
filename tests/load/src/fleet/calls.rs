//! What an agent asks of a server, and what it remembers of the answers.

use std::collections::HashMap;

use svid_proto::spire::api::server::bundle::v1::{GetBundleRequest, bundle_client::BundleClient};
use svid_proto::spire::api::server::entry::v1 as entry;
use svid_proto::spire::api::server::svid::v1::{
    BatchNewX509svidRequest, NewX509svidParams, svid_client::SvidClient,
};
use svid_proto::spire::api::types::{self, EntryMask};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use entry::entry_client::EntryClient;

use crate::conn::{Http2, origin};
use crate::site::BATCH;
use crate::stats::Failure;

/// What a stock agent wants to know of an entry.
pub const AGENT_MASK: EntryMask = EntryMask {
    spiffe_id: true,
    parent_id: false,
    selectors: true,
    x509_svid_ttl: false,
    federates_with: true,
    admin: true,
    downstream: true,
    expires_at: false,
    dns_names: false,
    revision_number: true,
    store_svid: true,
    jwt_svid_ttl: false,
    hint: true,
    created_at: true,
    additional_attributes: true,
};

/// Answers to listings may be large.
const MAX_ANSWER: usize = 64 << 20;

/// What an agent remembers of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// The entry's revision.
    pub revision: i64,
    /// When its X.509-SVID has to be renewed, in Unix seconds; 0 without one.
    pub renew_at: i64,
}

/// An agent's entries by ID.
#[derive(Debug, Default)]
pub struct Held(HashMap<Box<str>, Known>);

impl Held {
    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Takes an entry over; true if it was not known in this revision.
    pub fn put(&mut self, id: &str, revision: i64) -> bool {
        match self.0.get_mut(id) {
            Some(known) if known.revision == revision => false,
            Some(known) => {
                *known = Known { revision, renew_at: 0 };
                true
            }
            None => {
                self.0.insert(id.into(), Known { revision, renew_at: 0 });
                true
            }
        }
    }

    /// Forgets an entry.
    pub fn remove(&mut self, id: &str) {
        self.0.remove(id);
    }

    /// True if `revisions` is not what is held, all of it.
    pub fn differs<'a>(&self, revisions: impl ExactSizeIterator<Item = (&'a str, i64)>) -> bool {
        let count = revisions.len();
        count != self.0.len() || self.missing(revisions).next().is_some()
    }

    fn missing<'a>(&self, revisions: impl Iterator<Item = (&'a str, i64)>) -> impl Iterator<Item = &'a str> {
        revisions
            .filter(|(id, revision)| self.0.get(*id).is_none_or(|known| known.revision != *revision))
            .map(|(id, _)| id)
    }

    /// Forgets what is not in `ids`, the whole list.
    fn keep<'a>(&mut self, ids: impl ExactSizeIterator<Item = &'a str> + Clone) {
        if ids.len() == self.0.len() && ids.clone().all(|id| self.0.contains_key(id)) {
            return; // as almost always
        }
        let ids: std::collections::HashSet<&str> = ids.collect();
        self.0.retain(|id, _| ids.contains(&**id));
    }

    /// IDs of entries whose X.509-SVID is missing or old.
    fn stale(&self, now: i64) -> Vec<String> {
        self.0.iter().filter(|(_, known)| known.renew_at <= now).map(|(id, _)| id.to_string()).collect()
    }
}

type Answers = Streaming<entry::SyncAuthorizedEntriesResponse>;

async fn answer(answers: &mut Answers) -> Result<entry::SyncAuthorizedEntriesResponse, Failure> {
    answers.message().await?.ok_or_else(|| Failure::new("BadAnswer", "the stream ended"))
}

/// SyncAuthorizedEntries; tells each entry that is new to `held`.
/// # Errors
/// The server's.
pub async fn sync(http: &Http2, held: &mut Held, mut told: impl FnMut(&types::Entry)) -> Result<(), Failure> {
    let mut client = EntryClient::with_origin(http.clone(), origin()).max_decoding_message_size(MAX_ANSWER);
    let (requests, stream) = mpsc::channel(1);
    let first = entry::SyncAuthorizedEntriesRequest { output_mask: Some(AGENT_MASK), ids: Vec::new() };
    let gone = |_| Failure::new("BadAnswer", "the stream ended");
    requests.try_send(first).map_err(|_| Failure::new("BadAnswer", "no room"))?;
    let mut answers = client.sync_authorized_entries(ReceiverStream::new(stream)).await?.into_inner();
    let mut page = answer(&mut answers).await?;
    if page.entry_revisions.is_empty() {
        take(held, &page.entries, &mut told);
        held.keep(page.entries.iter().map(|entry| entry.id.as_str()));
        return Ok(());
    }
    let size = page.entry_revisions.len();
    let mut revisions = std::mem::take(&mut page.entry_revisions);
    while page.more {
        page = answer(&mut answers).await?;
        revisions.append(&mut page.entry_revisions);
    }
    let listed = revisions.iter().map(|row| (row.id.as_str(), row.revision_number));
    let mut needed: Vec<String> = held.missing(listed).map(str::to_owned).collect();
    needed.sort_unstable();
    for ids in needed.chunks(size) {
        let request = entry::SyncAuthorizedEntriesRequest { output_mask: None, ids: ids.to_vec() };
        requests.send(request).await.map_err(gone)?;
        loop {
            let page = answer(&mut answers).await?;
            take(held, &page.entries, &mut told);
            if !page.more {
                break;
            }
        }
    }
    held.keep(revisions.iter().map(|row| row.id.as_str()));
    Ok(())
}

fn take(held: &mut Held, entries: &[types::Entry], told: &mut impl FnMut(&types::Entry)) {
    for entry in entries {
        if held.put(&entry.id, entry.revision_number) {
            told(entry);
        }
    }
}

/// GetAuthorizedEntries; as [`sync`].
/// # Errors
/// The server's.
pub async fn get(http: &Http2, held: &mut Held, mut told: impl FnMut(&types::Entry)) -> Result<(), Failure> {
    let mut client = EntryClient::with_origin(http.clone(), origin()).max_decoding_message_size(MAX_ANSWER);
    let request = entry::GetAuthorizedEntriesRequest { output_mask: Some(AGENT_MASK) };
    let entries = client.get_authorized_entries(request).await?.into_inner().entries;
    take(held, &entries, &mut told);
    held.keep(entries.iter().map(|entry| entry.id.as_str()));
    Ok(())
}

/// GetBundle.
/// # Errors
/// The server's.
pub async fn bundle(http: &Http2) -> Result<(), Failure> {
    let mut client = BundleClient::with_origin(http.clone(), origin());
    client.get_bundle(GetBundleRequest { output_mask: None }).await?;
    Ok(())
}

/// BatchNewX509SVID for each entry whose SVID is missing or past half of its life at `now`.
/// # Errors
/// The server's, also for one entry.
pub async fn svids(http: &Http2, held: &mut Held, csr: &[u8], now: i64) -> Result<(), Failure> {
    let stale = held.stale(now);
    for ids in stale.chunks(BATCH) {
        let params = ids.iter().map(|id| NewX509svidParams { entry_id: id.clone(), csr: csr.to_vec() });
        let request = BatchNewX509svidRequest { params: params.collect() };
        let mut client =
            SvidClient::with_origin(http.clone(), origin()).max_decoding_message_size(MAX_ANSWER);
        let results = client.batch_new_x509svid(request).await?.into_inner().results;
        for (id, result) in ids.iter().zip(results) {
            if let Some(failure) = Failure::of_item(result.status.as_ref()) {
                return Err(failure);
            }
            let expires_at = result.svid.map(|svid| svid.expires_at).unwrap_or_default();
            if let Some(known) = held.0.get_mut(id.as_str()) {
                known.renew_at = now + (expires_at - now) / 2;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held() {
        let mut held = Held::default();
        assert!(held.put("a", 0) && held.put("b", 0) && !held.put("a", 0) && held.put("a", 1));
        assert!(!held.differs([("a", 1), ("b", 0)].into_iter()));
        for other in [vec![("a", 1)], vec![("a", 1), ("c", 0)], vec![("a", 2), ("b", 0)]] {
            assert!(held.differs(other.into_iter()));
        }
        assert_eq!(held.missing([("a", 1), ("b", 7), ("c", 0)].into_iter()).collect::<Vec<_>>(), ["b", "c"]);
        held.put("c", 0);
        held.keep(["a", "c"].into_iter());
        assert_eq!(held.len(), 2);
        held.remove("c");
        assert_eq!(held.stale(10), ["a"]);
    }
}
