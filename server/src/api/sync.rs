//! Our push protocol: everything that changes what an agent may serve, as it happens. `svid/sync/v1/sync.proto`.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::Stream;
use svid_core::id::SpiffeId;
use svid_proto::convert::entry_to_wire;
use svid_proto::spire::api::types::permission_denied_details::Reason;
use svid_proto::svid::sync::v1::{self as wire, sync_server::Sync};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::authorize::log_denied_agent;
use super::caller::PeerCert;
use super::status::{denial_reason, denied_because, too_stale, unavailable};
use super::table::Method;
use super::{Context, agent_of, call_of, service};
use crate::directory::{AgentDenied, AgentRefusal, AgentWatch, Delta, EndReason};
use crate::store::Position;

service!(SyncApi);

/// Entries or revisions in one message, when the agent leaves it to us and at most.
const PAGE: usize = 500;
/// Streams of one agent at once. One is enough; a second may overlap while a connection is replaced.
const MAX_PER_AGENT: usize = 4;

/// Counts open streams.
#[derive(Clone, Debug, Default)]
pub struct Watchers(Arc<Mutex<HashMap<SpiffeId, usize>>>);

impl Watchers {
    fn lock(&self) -> MutexGuard<'_, HashMap<SpiffeId, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many agents have one.
    pub fn agents(&self) -> usize {
        self.lock().len()
    }

    /// One stream more of this agent; `None` if it has `most` already.
    pub(super) fn enter(&self, agent: &SpiffeId, most: usize) -> Option<Watcher> {
        let mut open = self.lock();
        let count = open.entry(agent.clone()).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Watcher { watchers: self.clone(), agent: agent.clone() })
    }
}

/// One open stream.
pub(super) struct Watcher {
    watchers: Watchers,
    agent: SpiffeId,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let mut open = self.watchers.lock();
        if let Some(count) = open.get_mut(&self.agent) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.agent);
            }
        }
    }
}

type Answer = Result<wire::WatchResponse, Status>;

/// A position on the wire.
pub(super) fn position_to_wire(position: &Position) -> wire::Position {
    wire::Position { epoch: position.epoch.to_vec(), seq: position.seq }
}

/// What the agent holds; a malformed position is as good as none.
fn position_from_wire(position: &wire::Position) -> Option<Position> {
    Some(Position { epoch: position.epoch.as_slice().try_into().ok()?, seq: position.seq })
}

/// The end of a stream is a denial like any other, and searches for it find it in the log.
fn log_ended(method: &Method, agent: &PeerCert, reason: EndReason) {
    let why = match reason {
        EndReason::Banned => AgentDenied::Banned,
        EndReason::Evicted => AgentDenied::NotAttested,
        EndReason::Expired => AgentDenied::Expired,
        EndReason::Closed => return,
    };
    log_denied_agent(method, agent, why);
}

fn ended(reason: EndReason) -> Status {
    match reason {
        EndReason::Banned => denied_because("agent is banned", Reason::AgentBanned),
        EndReason::Evicted => denied_because("agent is not attested", Reason::AgentNotAttested),
        EndReason::Expired => denied_because("agent SVID is expired", Reason::AgentExpired),
        EndReason::Closed => Status::unavailable("the server is shutting down"),
    }
}

/// The caller's own authorisation, asked again before anything is told.
/// # Errors
/// What the call itself would hear now.
pub(super) async fn still_agent(context: &Context, agent: &PeerCert) -> Result<(), Status> {
    if context.directory.staleness() > context.max_stale {
        return Err(too_stale());
    }
    context.vouch.require(agent)?;
    let checked =
        context.directory.verify_agent(&agent.id, &agent.serial, agent.not_after, context.now_unix()).await;
    match checked {
        Ok(_) => Ok(()),
        Err(AgentRefusal::Denied(why)) => Err(denied_because(&why.to_string(), denial_reason(why))),
        Err(AgentRefusal::Unavailable(error)) => Err(unavailable(&error)),
    }
}

/// Follows the directory until the agent leaves or may not stay.
async fn follow(
    context: &Context,
    method: &Method,
    agent: &PeerCert,
    mut watch: AgentWatch,
    page: usize,
    answers: &mpsc::Sender<Answer>,
) -> Result<(), Status> {
    let left = u64::try_from(agent.not_after.saturating_sub(context.now_unix())).unwrap_or_default();
    let expiry = tokio::time::sleep(Duration::from_secs(left));
    tokio::pin!(expiry);
    loop {
        let delta = tokio::select! {
            delta = watch.next() => delta,
            () = &mut expiry => Err(EndReason::Expired),
            () = context.directory.stale_for(context.max_stale) => return Err(too_stale()),
            () = answers.closed() => return Ok(()),
        };
        let delta = delta.map_err(|reason| {
            log_ended(method, agent, reason);
            ended(reason)
        })?;
        still_agent(context, agent).await?;
        for message in messages(delta, page) {
            if answers.send(Ok(message)).await.is_err() {
                return Ok(());
            }
        }
    }
}

/// A delta in messages of bounded size, the last without `more`.
fn messages(delta: Delta, page: usize) -> Vec<wire::WatchResponse> {
    let position = Some(position_to_wire(&delta.position));
    let empty = || wire::WatchResponse {
        position: position.clone(),
        snapshot: delta.snapshot,
        more: true,
        ..Default::default()
    };
    let mut messages = Vec::new();
    for part in delta.revisions.chunks(page) {
        let revisions = part.iter().map(|revision| wire::EntryRevision {
            id: revision.id.as_str().to_owned(),
            revision_number: revision.revision,
            created_at: revision.created_at,
        });
        messages.push(wire::WatchResponse { revisions: revisions.collect(), ..empty() });
    }
    for part in delta.upserts.chunks(page) {
        messages.push(wire::WatchResponse { upserts: part.iter().map(entry_to_wire).collect(), ..empty() });
    }
    for part in delta.removed.chunks(page) {
        let removed_ids = part.iter().map(|id| id.as_str().to_owned()).collect();
        messages.push(wire::WatchResponse { removed_ids, ..empty() });
    }
    let mut last = messages.pop().unwrap_or_else(empty);
    last.more = false;
    last.bundles_changed = delta.bundles_changed.iter().map(|name| name.as_str().to_owned()).collect();
    messages.push(last);
    messages
}

#[tonic::async_trait]
impl Sync for SyncApi {
    type WatchStream = Pin<Box<dyn Stream<Item = Answer> + Send>>;

    async fn watch(
        &self,
        request: Request<wire::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let call = call_of(&request)?;
        let agent = agent_of(&call)?.clone();
        let request = request.into_inner();
        let watcher = self.0.watchers.enter(&agent.id, MAX_PER_AGENT);
        let watcher =
            watcher.ok_or_else(|| Status::resource_exhausted("too many watch streams of this agent"))?;
        let since = request.position.as_ref().and_then(position_from_wire);
        let page = usize::try_from(request.page_size).unwrap_or_default();
        let page = if page == 0 { PAGE } else { page.min(PAGE) };
        let watch = self.0.directory.watch_agent(&agent.id, since);
        let context = self.0.clone();
        let (answers, stream) = mpsc::channel(1);
        tokio::spawn(async move {
            let _open = watcher;
            if let Err(status) = follow(&context, call.method, &agent, watch, page, &answers).await {
                let _ = answers.send(Err(status)).await; // the agent may be gone
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::directory::EntryRevision;

    fn delta(revisions: usize, removed: usize) -> Delta {
        let id = |n: usize| format!("e{n}").parse().unwrap();
        Delta {
            position: Position { epoch: [1; 16], seq: 9 },
            snapshot: revisions > 0,
            upserts: Vec::new(),
            removed: (0..removed).map(id).collect(),
            revisions: (0..revisions)
                .map(|n| EntryRevision { id: id(n), revision: 0, created_at: 1 })
                .collect(),
            bundles_changed: vec!["other.org".parse().unwrap()],
        }
    }

    #[test]
    fn deltas_are_paged() {
        for (revisions, removed, want) in [(0, 0, 1), (2, 0, 1), (5, 0, 3), (5, 3, 5)] {
            let messages = messages(delta(revisions, removed), 2);
            assert_eq!(messages.len(), want);
            let (last, others) = messages.split_last().unwrap();
            assert!(others.iter().all(|message| message.more && message.bundles_changed.is_empty()));
            assert!(!last.more && last.bundles_changed == ["other.org"]);
            assert!(messages.iter().all(|message| message.position.as_ref().unwrap().seq == 9));
        }
    }

    #[test]
    fn streams_of_one_agent_are_counted() {
        let watchers = Watchers::default();
        let agent = "spiffe://example.org/spire/agent/x".parse().unwrap();
        let open: Vec<_> =
            (0..MAX_PER_AGENT).map(|_| watchers.enter(&agent, MAX_PER_AGENT).unwrap()).collect();
        assert!(
            watchers.enter(&agent, MAX_PER_AGENT).is_none()
                && watchers.enter(&agent, MAX_PER_AGENT + 1).is_some()
        );
        assert_eq!(watchers.agents(), 1);
        drop(open);
        assert_eq!(watchers.agents(), 0);
    }
}
