//! Federation: bundles of other trust domains are fetched, and our own is served to them.
//!
//! Every relationship has a task of its own and shares no turn, lock or connection with another: a partner that is dead,
//! slow, huge or lying delays nobody, and its last good bundle stays.

pub mod config;
pub mod endpoint;
mod fetch;
mod schedule;
pub mod serving;
mod web_roots;
mod worker;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use svid_core::clock::Clock;
use svid_core::federation::Relationship;
use svid_core::id::TrustDomain;
use svid_daemon::metrics::Metrics;
use svid_daemon::tls::{BundleSource, TlsPolicy};
use tokio_util::sync::CancellationToken;

use crate::directory::{Directory, Page};
use crate::store::{Store, StoreError};
use fetch::Fetcher;
use worker::Worker;

pub use fetch::{DEADLINE, FetchError, MAX_FETCHED_BYTES};
pub use worker::Progress;

/// Where a relationship comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// This server's configuration.
    Static,
    /// The database.
    Dynamic,
}

/// What a refresh did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refreshed {
    /// Nothing: the bundle is the stored one.
    Unchanged,
    /// A new bundle is in use.
    Replaced,
}

/// Why a refresh brought no bundle; what is stored stays.
#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    /// There is nobody to ask.
    #[error("no relationship with trust domain \"{0}\"")]
    NoRelationship(TrustDomain),
    /// There is no bundle to be had.
    #[error("failed to fetch federated bundle from endpoint")]
    Fetch(#[from] FetchError),
    /// It cannot be stored.
    #[error("failed to store fetched federated bundle")]
    Store(#[from] StoreError),
    /// The endpoint gave a newer one before.
    #[error(
        "the endpoint's bundle is older than the stored one (sequence number {offered}, before {known}), which stays; if \
         the partner means it, take it with `svidctl federation refresh --accept-older`"
    )]
    Older {
        /// The offered bundle's sequence number.
        offered: u64,
        /// The last one's.
        known: u64,
    },
    /// Somebody was faster.
    #[error("the relationship was changed or ended meanwhile")]
    Ended,
}

/// What workers share.
struct Shared {
    store: Store,
    directory: Directory,
    clock: Clock,
    metrics: Metrics,
    fetcher: Fetcher,
}

struct Inner {
    shared: Arc<Shared>,
    /// The configuration's relationships. They go before stored ones of the same name, as in SPIRE.
    fixed: BTreeMap<TrustDomain, Relationship>,
    workers: Mutex<BTreeMap<TrustDomain, Arc<Worker>>>,
    stop: CancellationToken,
}

/// What federation works with.
pub struct Parts {
    /// The database.
    pub store: Store,
    /// The view of it in memory.
    pub directory: Directory,
    /// Now.
    pub clock: Clock,
    /// Counts attempts.
    pub metrics: Metrics,
    /// What servers with SVIDs are checked against.
    pub bundles: Arc<dyn BundleSource>,
    /// What TLS negotiates.
    pub policy: TlsPolicy,
    /// The configuration's relationships.
    pub relationships: Vec<Relationship>,
    /// Ends everything.
    pub stop: CancellationToken,
}

/// A cheap handle on what is fetched.
#[derive(Clone)]
pub struct Federation(Arc<Inner>);

/// A relationship that is followed, and how it goes.
pub struct Followed {
    /// The relationship.
    pub relationship: Relationship,
    /// Where it comes from.
    pub source: Source,
    /// There is a stored one of the same name, which is not followed.
    pub hides_stored: bool,
    /// How it goes.
    pub progress: Progress,
}

impl Federation {
    /// Nothing is fetched before [`Federation::run`].
    pub fn new(parts: Parts) -> Self {
        let Parts { store, directory, clock, metrics, bundles, policy, relationships, stop } = parts;
        let fetcher = Fetcher::new(bundles, policy);
        let fixed = relationships.into_iter().map(|one| (one.trust_domain.clone(), one)).collect();
        let shared = Arc::new(Shared { store, directory, clock, metrics, fetcher });
        Self(Arc::new(Inner { shared, fixed, workers: Mutex::default(), stop }))
    }

    /// Follows what the log says until told to stop.
    pub async fn run(self) {
        let mut changes = self.0.shared.directory.federation_changes();
        let mut is_start = true;
        loop {
            changes.borrow_and_update();
            self.reconcile(std::mem::take(&mut is_start));
            // The sender lives in the directory, which `self` holds.
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// True if the configuration has a relationship with this trust domain.
    pub fn is_static(&self, trust_domain: &TrustDomain) -> bool {
        self.0.fixed.contains_key(trust_domain)
    }

    /// Fetches a bundle now. With `accept_older` one is taken that has a smaller sequence number than the last.
    /// # Errors
    /// [`RefreshError`].
    pub async fn refresh(
        &self,
        trust_domain: &TrustDomain,
        accept_older: bool,
    ) -> Result<Refreshed, RefreshError> {
        // A relationship that was made a moment ago counts.
        self.reconcile(false);
        let worker = self.workers().get(trust_domain).cloned();
        let worker = worker.ok_or_else(|| RefreshError::NoRelationship(trust_domain.clone()))?;
        worker.refresh(accept_older).await
    }

    /// What is followed, by trust domain.
    pub fn list(&self) -> Vec<Followed> {
        self.reconcile(false);
        let workers: Vec<_> = self.workers().values().cloned().collect();
        workers.into_iter().map(|worker| self.followed(&worker)).collect()
    }

    fn followed(&self, worker: &Worker) -> Followed {
        let relationship = worker.relationship.clone();
        let is_stored = self.0.shared.directory.relationship(&relationship.trust_domain).is_some();
        Followed {
            hides_stored: worker.source == Source::Static && is_stored,
            source: worker.source,
            progress: worker.progress(),
            relationship,
        }
    }

    fn workers(&self) -> std::sync::MutexGuard<'_, BTreeMap<TrustDomain, Arc<Worker>>> {
        self.0.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What should be followed.
    fn wanted(&self) -> BTreeMap<TrustDomain, (Source, Relationship)> {
        let stored = self.0.shared.directory.list_relationships(Page::default()).items;
        let stored = stored.into_iter().map(|one| (Source::Dynamic, one));
        let fixed = self.0.fixed.values().map(|one| (Source::Static, one.clone()));
        stored.chain(fixed).map(|(source, one)| (one.trust_domain.clone(), (source, one))).collect()
    }

    /// Starts and stops workers until they are those that should be.
    fn reconcile(&self, is_start: bool) {
        let mut workers = self.workers();
        // Read under the lock: a later list never loses against an earlier one.
        let mut wanted = self.wanted();
        workers.retain(|trust_domain, worker| {
            let kept = wanted.get(trust_domain).is_some_and(|(source, relationship)| {
                *source == worker.source && *relationship == worker.relationship
            });
            if kept {
                wanted.remove(trust_domain);
            } else {
                worker.stop.cancel();
                if !wanted.contains_key(trust_domain) {
                    tracing::info!(subsystem_name = SUBSYSTEM, trust_domain = %trust_domain, "Trust domain no longer managed");
                }
            }
            kept || wanted.contains_key(trust_domain)
        });
        let crowd = wanted.len();
        for (trust_domain, (source, relationship)) in wanted {
            let is_new = !workers.contains_key(&trust_domain);
            let what = if is_new {
                "Trust domain is now managed"
            } else {
                "Updated configuration for managed trust domain"
            };
            tracing::info!(
                subsystem_name = SUBSYSTEM,
                trust_domain = %trust_domain,
                bundle_endpoint_url = %relationship.url,
                bundle_endpoint_profile = relationship.profile.name(),
                "{what}"
            );
            let worker = Worker::new(relationship, source, self.0.shared.clone(), self.0.stop.child_token());
            let after = if is_start { start_delay(crowd) } else { Duration::ZERO };
            tokio::spawn(worker.clone().run(after));
            workers.insert(trust_domain, worker);
        }
    }
}

/// SPIRE's name for the part that fetches.
const SUBSYSTEM: &str = "bundle_client";
/// How many fetches a start begins in a second.
const STARTS_PER_SECOND: u32 = 20;

/// A server that starts with many relationships does not ask everybody in one moment.
fn start_delay(crowd: usize) -> Duration {
    let spread = Duration::from_secs(1) * u32::try_from(crowd).unwrap_or(u32::MAX) / STARTS_PER_SECOND;
    spread.min(Duration::from_secs(30)) * u32::from(random()) / 255
}

fn random() -> u8 {
    uuid::Uuid::new_v4().as_bytes()[0]
}
