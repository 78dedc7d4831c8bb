//! The task behind one relationship.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use svid_core::bundle::Bundle;
use svid_core::federation::{EndpointProfile, Relationship};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::schedule::{jittered, pause};
use super::{RefreshError, Refreshed, SUBSYSTEM, Shared, Source, random};
use crate::store::{FetchedBundle, Stored};

/// How often it is noted in the database that nothing changed.
const CONFIRM_EVERY: Duration = Duration::from_secs(600);

/// How a relationship goes. Times are Unix seconds, 0 for never.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// When the last attempt began.
    pub last_attempt_at: i64,
    /// When the endpoint last gave a bundle that is in use.
    pub last_success_at: i64,
    /// Why the last attempt failed; empty if it did not.
    pub last_error: String,
    /// Failures since the last success.
    pub failures: u32,
    /// When it is tried next.
    pub next_at: i64,
    /// An attempt is under way.
    pub is_fetching: bool,
}

struct State {
    progress: Progress,
    due: Instant,
    confirmed: Option<Instant>,
    /// The bundle that the endpoint's server was last checked against.
    tried_with: Option<Arc<Bundle>>,
}

/// Fetches one bundle, again and again.
pub struct Worker {
    pub(super) relationship: Relationship,
    pub(super) source: Source,
    pub(super) stop: CancellationToken,
    shared: Arc<Shared>,
    state: Mutex<State>,
    /// One attempt at a time.
    turn: tokio::sync::Mutex<()>,
    /// The next attempt is due at another time than before.
    rescheduled: Notify,
}

impl Worker {
    pub(super) fn new(
        relationship: Relationship,
        source: Source,
        shared: Arc<Shared>,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let state =
            State { progress: Progress::default(), due: Instant::now(), confirmed: None, tried_with: None };
        let (state, turn, rescheduled) = (Mutex::new(state), tokio::sync::Mutex::default(), Notify::new());
        Arc::new(Self { relationship, source, stop, shared, state, turn, rescheduled })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How it goes.
    pub(super) fn progress(&self) -> Progress {
        Progress { is_fetching: self.turn.try_lock().is_err(), ..self.state().progress.clone() }
    }

    /// Runs until the relationship ends; the first attempt is made after `delay`.
    pub(super) async fn run(self: Arc<Self>, delay: Duration) {
        self.state().due = Instant::now() + delay;
        let stop = self.stop.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.follow() => {}
        }
        tracing::info!(
            subsystem_name = SUBSYSTEM,
            trust_domain = %self.relationship.trust_domain,
            "No longer polling for updates"
        );
    }

    async fn follow(&self) {
        let mut changes = self.shared.directory.federation_changes();
        loop {
            let due = self.state().due;
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                () = self.rescheduled.notified() => continue,
                _ = changes.changed() => {
                    if !self.has_new_hope() {
                        continue;
                    }
                }
            }
            // It is in the log and in the state.
            let _ = self.refresh(false).await;
        }
    }

    /// The endpoint's server was not believed, and there is another bundle now to check it against.
    fn has_new_hope(&self) -> bool {
        let state = self.state();
        let is = |bundle: &Option<Arc<Bundle>>| bundle.as_ref().map(Arc::as_ptr);
        state.progress.failures > 0 && is(&self.endpoint_bundle()) != is(&state.tried_with)
    }

    /// What the endpoint's server is checked against.
    fn endpoint_bundle(&self) -> Option<Arc<Bundle>> {
        match &self.relationship.profile {
            EndpointProfile::Web => None,
            EndpointProfile::Spiffe(id) => self.shared.directory.bundle(&id.trust_domain()),
        }
    }

    /// Makes an attempt now, or right after the one that is under way.
    pub(super) async fn refresh(&self, accept_older: bool) -> Result<Refreshed, RefreshError> {
        let _turn = self.turn.lock().await;
        let name = self.relationship.trust_domain.as_str();
        tracing::debug!(subsystem_name = SUBSYSTEM, trust_domain = name, "Polling for bundle update");
        let begun = std::time::Instant::now();
        {
            let mut state = self.state();
            state.progress.last_attempt_at = self.shared.clock.unix();
            state.tried_with = self.endpoint_bundle();
        }
        let done = self.attempt(accept_older).await;
        let status = if done.is_ok() { "OK" } else { "Unknown" };
        let labels = [("trust_domain_id", name)];
        let key = ["bundle_manager", "fetch", "federated_bundle"];
        self.shared.metrics.measure_call(&key, status, begun.elapsed(), &labels);
        self.settle(&done);
        done
    }

    async fn attempt(&self, accept_older: bool) -> Result<Refreshed, RefreshError> {
        let document = self.shared.fetcher.fetch(&self.relationship).await?;
        let trust_domain = &self.relationship.trust_domain;
        let stored = self.shared.directory.bundle(trust_domain);
        let is_known = self.state().confirmed.is_some();
        if is_known && stored.is_some_and(|stored| stored.has_same_content(&document.bundle)) {
            self.confirm().await;
            return Ok(Refreshed::Unchanged);
        }
        let is_empty =
            document.bundle.x509_authorities.is_empty() && document.bundle.jwt_authorities.is_empty();
        let stored = self.shared.store.store_fetched(FetchedBundle {
            bundle: document.bundle,
            has_sequence: document.has_sequence,
            fetched_for: (self.source == Source::Dynamic).then(|| self.relationship.clone()),
            force: accept_older,
            now: self.shared.clock.unix(),
        });
        match stored.await? {
            Stored::Older { offered, known } => return Err(RefreshError::Older { offered, known }),
            Stored::Ended => return Err(RefreshError::Ended),
            Stored::Unchanged => self.state().confirmed = Some(Instant::now()),
            Stored::Replaced { same_sequence } => {
                self.state().confirmed = Some(Instant::now());
                self.tell_replaced(same_sequence, is_empty);
                return Ok(Refreshed::Replaced);
            }
        }
        Ok(Refreshed::Unchanged)
    }

    fn tell_replaced(&self, same_sequence: bool, is_empty: bool) {
        let name = self.relationship.trust_domain.as_str();
        self.shared.metrics.incr_counter(
            &["bundle_manager", "update", "federated_bundle"],
            1,
            &[("trust_domain_id", name)],
        );
        if same_sequence {
            tracing::warn!(
                subsystem_name = SUBSYSTEM,
                trust_domain = name,
                "The bundle changed and its sequence number did not; the new one is used"
            );
        }
        if is_empty {
            tracing::warn!(
                subsystem_name = SUBSYSTEM,
                trust_domain = name,
                "The trust domain's bundle has no authorities any more: none of its identities is trusted"
            );
        }
        tracing::info!(subsystem_name = SUBSYSTEM, trust_domain = name, "Bundle refreshed");
    }

    /// Notes now and then that the stored bundle is still the endpoint's, for its age after a restart.
    async fn confirm(&self) {
        let is_due = self.state().confirmed.is_none_or(|since| since.elapsed() >= CONFIRM_EVERY);
        if !is_due {
            return;
        }
        let now = self.shared.clock.unix();
        match self.shared.store.confirm_fetched(&self.relationship.trust_domain, now).await {
            // What was fetched was set by hand since: the next attempt writes down again what the partner says.
            Ok(is_recorded) => self.state().confirmed = is_recorded.then(Instant::now),
            // The bundle is what it was; this can wait.
            Err(error) => tracing::debug!(error = %svid_daemon::log::chain(&error), "A fetch was not noted"),
        }
    }

    /// Writes down what came of an attempt, and when the next one is due.
    fn settle(&self, done: &Result<Refreshed, RefreshError>) {
        let trust_domain = &self.relationship.trust_domain;
        let bundle = self.shared.directory.bundle(trust_domain);
        let now = self.shared.clock.unix();
        let mut state = self.state();
        let progress = &mut state.progress;
        match done {
            Ok(_) => {
                progress.last_success_at = now;
                progress.last_error.clear();
                progress.failures = 0;
            }
            Err(error) => {
                progress.last_error = svid_daemon::log::chain(error);
                progress.failures = progress.failures.saturating_add(1);
                tracing::error!(
                    subsystem_name = SUBSYSTEM,
                    trust_domain = %trust_domain,
                    bundle_endpoint_url = %self.relationship.url,
                    failures = progress.failures,
                    error = %progress.last_error,
                    "Error updating bundle"
                );
            }
        }
        let pause = jittered(pause(bundle.as_deref(), progress.failures), random());
        progress.next_at = now.saturating_add(i64::try_from(pause.as_secs()).unwrap_or(i64::MAX));
        let at = jiff::Timestamp::from_second(progress.next_at).map(|at| at.to_string()).unwrap_or_default();
        state.due = Instant::now() + pause;
        drop(state);
        self.rescheduled.notify_one();
        tracing::debug!(subsystem_name = SUBSYSTEM, trust_domain = %trust_domain, at, "Scheduling next bundle refresh");
    }
}
