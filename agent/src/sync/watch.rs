//! Our push stream: the server says what changed, as it changes.

use std::time::Duration;

use svid_core::entry::EntryId;
use svid_core::id::TrustDomain;
use svid_proto::svid::sync::v1::sync_client::SyncClient;
use svid_proto::svid::sync::v1::{Position, WatchRequest, WatchResponse};
use tracing::{debug, info};

use super::entries::{self, Held};
use super::{SyncError, Synchronizer};
use crate::backoff::Backoff;
use crate::client::ClientError;

const RECONNECT: Duration = Duration::from_millis(50);
const RECONNECT_MAX: Duration = Duration::from_secs(5);
/// How long a server without the stream is left alone; it may have been upgraded meanwhile.
const ASK_AGAIN: Duration = Duration::from_secs(300);

/// One step of the stream, put together from its messages.
#[derive(Default)]
struct Step {
    position: Option<Position>,
    snapshot: bool,
    message: WatchResponse,
}

impl Step {
    /// Adds a message; true once the step is whole.
    fn add(&mut self, message: WatchResponse) -> bool {
        self.snapshot |= message.snapshot;
        self.message.upserts.extend(message.upserts);
        self.message.removed_ids.extend(message.removed_ids);
        self.message.revisions.extend(message.revisions);
        self.message.bundles_changed.extend(message.bundles_changed);
        self.position = message.position;
        !message.more
    }
}

impl Synchronizer {
    /// Follows the stream, again and again.
    /// # Errors
    /// [`SyncError`] when the server denies the agent for good.
    pub(super) async fn watch(&self) -> Result<(), SyncError> {
        let mut position = self.cache.position();
        let mut backoff = Backoff::new(RECONNECT, RECONNECT_MAX);
        loop {
            let error = self.watch_once(&mut position, &mut backoff).await;
            self.status.set_watching(false);
            match error {
                ClientError::Unimplemented(_) => {
                    debug!("The server does not push changes; polling it");
                    tokio::time::sleep(ASK_AGAIN).await;
                }
                ClientError::Superseded => {}
                error if error.deny_reason().is_some() => return Err(SyncError::Denied(error)),
                error => {
                    debug!(error = %error, "Lost the stream of changes");
                    // What was missed meanwhile comes with the position; whether the agent is still welcome does not.
                    self.poke.notify_one();
                    backoff.wait().await;
                }
            }
        }
    }

    /// Follows one stream to its end.
    async fn watch_once(&self, position: &mut Option<Position>, backoff: &mut Backoff) -> ClientError {
        let request = WatchRequest { position: position.clone(), page_size: 0 };
        let opened =
            self.client.open(|channel| async move { SyncClient::new(channel).watch(request).await }).await;
        let (answer, judge) = match opened {
            Ok(opened) => opened,
            Err(error) => return error,
        };
        let mut messages = answer.into_inner();
        let mut step = Step::default();
        loop {
            let message = match messages.message().await {
                Ok(Some(message)) => message,
                Ok(None) => return ClientError::Malformed("the stream of changes ended".into()),
                Err(status) => return judge.judge(&status),
            };
            self.client.note_contact();
            if !step.add(message) {
                continue;
            }
            let whole = std::mem::take(&mut step);
            let next = whole.position.clone();
            if let Err(error) = self.apply_step(whole).await {
                return error;
            }
            self.cache.set_position(next.clone());
            *position = next;
            backoff.reset();
            if self.status.set_watching(true) {
                info!("Changes are pushed by the server");
            }
            self.status.succeeded(self.clock.now());
        }
    }

    async fn apply_step(&self, step: Step) -> Result<(), ClientError> {
        let message = step.message;
        if step.snapshot && self.differs(&message) {
            return self.pass().await;
        }
        let _turn = self.turn.lock().await;
        let upserts: Vec<_> = message.upserts.iter().filter_map(entries::read).collect();
        let removed: Vec<EntryId> = message.removed_ids.iter().filter_map(|id| id.parse().ok()).collect();
        let known = self.cache.federated_names();
        if !upserts.is_empty() || !removed.is_empty() {
            self.cache.apply(upserts, &removed);
        }
        let mut changed: Vec<TrustDomain> = message
            .bundles_changed
            .iter()
            .filter_map(|name| TrustDomain::from_name_or_id(name).ok())
            .collect();
        changed.extend(self.cache.federated_names().into_iter().filter(|name| !known.contains(name)));
        let own = changed.contains(&self.trust_domain);
        changed.retain(|name| *name != self.trust_domain);
        if own || !changed.is_empty() {
            self.fetch_bundles(own, changed).await?;
        }
        Ok(())
    }

    /// Whether a snapshot lists anything but what the cache holds and the message brings.
    fn differs(&self, message: &WatchResponse) -> bool {
        let mut held: Held = self.held();
        for entry in message.upserts.iter().filter_map(entries::read) {
            held.insert(entry.id, (entry.revision, entry.created_at));
        }
        let rows = message.revisions.iter();
        let rows = rows.map(|row| (row.id.as_str(), row.revision_number, row.created_at));
        let (needed, changes) = entries::compare(rows, &held);
        !message.upserts.is_empty() || !needed.is_empty() || !changes.removed.is_empty()
    }
}
