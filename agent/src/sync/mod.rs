//! Keeps the cache in step with the server: pushed changes where the server has them, and a poll that reconciles.

mod entries;
mod status;
mod svids;
mod watch;

use std::collections::HashMap;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use svid_core::clock::Clock;
use svid_core::id::TrustDomain;
use svid_daemon::metrics::{Metrics, code_name};
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::attest::{BootstrapUse, Store, StoreError, show_bootstrap, waited_for_rebootstrap};
use crate::backoff::{Backoff, jitter};
use crate::cache::Cache;
use crate::client::{ClientError, FederatedBundle, ServerClient};
use crate::config::{Rebootstrap, RebootstrapMode};

use entries::{Changes, Held};
pub use status::SyncStatus;
pub use svids::SvidFetcher;

/// Longest pause between polls that fail. Source: SPIRE.
const MAX_INTERVAL: Duration = Duration::from_secs(8 * 60);
const MAX_INTERVAL_MULTIPLE: u32 = 48;
/// The first poll, and polls while nothing is cached, come at least this often. Source: SPIRE.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(5);
/// How often to reconcile while the server pushes.
const RECONCILE: Duration = Duration::from_secs(60);
/// Federated bundles asked for at the same time. Source: SPIRE.
const BUNDLE_WORKERS: usize = 10;

/// Why synchronising ends.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The server told the agent to attest again or to stop.
    #[error("failed to sync with SPIRE Server: {0}")]
    Denied(ClientError),
    /// The server's authority is unknown and no other bundle may be looked for.
    #[error("failed to sync with SPIRE Server: {0}")]
    UnknownAuthority(ClientError),
    /// The agent has to start from the configured bundle.
    #[error("shutting down for rebootstrapping")]
    Rebootstrap,
    /// What is on the disk cannot be changed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What synchronising needs.
pub struct SyncOptions {
    /// How often to poll a server that does not push.
    pub interval: Duration,
    /// `SyncAuthorizedEntries` rather than `GetAuthorizedEntries`.
    pub use_sync_authorized_entries: bool,
    /// When to look for another bundle.
    pub rebootstrap: Rebootstrap,
    /// `agent-data.json`.
    pub store: Store,
    /// Where now comes from.
    pub clock: Clock,
    /// Counts entries and calls.
    pub metrics: Metrics,
}

/// Keeps one cache in step with one server.
pub struct Synchronizer {
    client: ServerClient,
    cache: Cache,
    trust_domain: TrustDomain,
    interval: Duration,
    use_sync: bool,
    rebootstrap: Rebootstrap,
    store: Store,
    clock: Clock,
    metrics: Metrics,
    status: SyncStatus,
    /// Held while a list or a change is taken over: an older list must not undo a newer change.
    turn: tokio::sync::Mutex<()>,
    poke: Notify,
}

impl Synchronizer {
    /// Synchronises `cache` over `client`.
    pub fn new(client: ServerClient, cache: Cache, status: SyncStatus, options: SyncOptions) -> Self {
        Self {
            trust_domain: client.dialer().trust_domain().clone(),
            client,
            cache,
            interval: options.interval,
            use_sync: options.use_sync_authorized_entries,
            rebootstrap: options.rebootstrap,
            store: options.store,
            clock: options.clock,
            metrics: options.metrics,
            status,
            turn: tokio::sync::Mutex::new(()),
            poke: Notify::new(),
        }
    }

    /// One whole pass: entries, then bundles.
    /// # Errors
    /// [`ClientError`]; what was taken over until then stays.
    pub async fn pass(&self) -> Result<(), ClientError> {
        let begun = Instant::now();
        let _turn = self.turn.lock().await;
        let result = self.pass_in_turn().await;
        let status = result.as_ref().err().map_or("OK", |error| code_name(error.code()));
        let key = &["manager", "sync", "fetch_entries_updates"];
        self.metrics.measure_call(key, status, begun.elapsed(), &[]);
        result?;
        self.status.succeeded(self.clock.now());
        Ok(())
    }

    async fn pass_in_turn(&self) -> Result<(), ClientError> {
        let held = self.held();
        let use_sync = self.use_sync;
        let changes = self.client.call(|channel| async move {
            if use_sync {
                entries::sync(channel, &held).await
            } else {
                entries::get_all(channel, &held).await
            }
        });
        let changes = changes.await.map_err(in_fetch)?;
        self.count(&changes);
        self.cache.apply(changes.upserts, &changes.removed);
        self.fetch_bundles(true, self.cache.federated_names()).await
    }

    fn count(&self, changes: &Changes) {
        #[allow(clippy::cast_precision_loss)]
        let gauge = |key: &str, value: usize| self.metrics.set_gauge(&[key], value as f64, &[]);
        gauge("sync_entries_total", changes.total);
        gauge("sync_entries_missing", changes.missing);
        gauge("sync_entries_stale", changes.stale);
        gauge("sync_entries_dropped", changes.removed.len());
    }

    fn held(&self) -> Held {
        let rows = self.cache.revisions().into_iter();
        rows.map(|(id, revision, created_at)| (id, (revision, created_at))).collect::<HashMap<_, _>>()
    }

    /// Fetches the own bundle if asked to, and those of `federated`, and takes them over.
    async fn fetch_bundles(&self, own: bool, federated: Vec<TrustDomain>) -> Result<(), ClientError> {
        let own = match own {
            true => Some(self.client.bundle().await?),
            false => None,
        };
        let fetches = federated.into_iter().map(|name| {
            let client = self.client.clone();
            async move { client.federated_bundle(&name).await.map(|answer| (name, answer)) }
        });
        let answers: Vec<_> =
            futures_util::stream::iter(fetches).buffer_unordered(BUNDLE_WORKERS).try_collect().await?;
        let (mut federated, mut withdrawn) = (Vec::new(), Vec::new());
        for (name, answer) in answers {
            match answer {
                FederatedBundle::Present(bundle) => federated.push(bundle),
                FederatedBundle::Absent => withdrawn.push(name),
                FederatedBundle::Malformed => {}
            }
        }
        #[allow(clippy::cast_precision_loss)]
        self.metrics.set_gauge(&["sync_bundles_total"], (federated.len() + 1) as f64, &[]);
        if let Some(own) = &own {
            if own.trust_domain != self.trust_domain || own.x509_authorities.is_empty() {
                return Err(ClientError::Malformed(
                    "the own bundle is of another trust domain or empty".into(),
                ));
            }
            self.client.roots().set(own);
            self.remember(own)?;
        }
        self.cache.set_bundles(own, federated, &withdrawn);
        Ok(())
    }

    /// Writes the own bundle down when it changed.
    fn remember(&self, own: &svid_core::bundle::Bundle) -> Result<(), ClientError> {
        let ders: Vec<Vec<u8>> = own.x509_authorities.iter().map(|root| root.der().to_vec()).collect();
        if self.store.data().bundle == ders {
            return Ok(());
        }
        self.store.update(|data| data.bundle = ders).unwrap_or_else(|error| {
            error!(error = %error, "Could not store bundle");
        });
        Ok(())
    }

    /// Polls and follows until the agent cannot go on.
    /// # Errors
    /// [`SyncError`].
    pub async fn run(&self) -> Result<(), SyncError> {
        tokio::try_join!(self.poll(), self.watch())?;
        Ok(())
    }

    /// Asks for the next poll to come now.
    pub fn poke(&self) {
        self.poke.notify_one();
    }

    async fn poll(&self) -> Result<(), SyncError> {
        let max = MAX_INTERVAL.min(self.interval.saturating_mul(MAX_INTERVAL_MULTIPLE));
        let mut backoff = Backoff::new(self.interval, max);
        let mut pause = jitter(self.interval.min(DEFAULT_INTERVAL));
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.poke.notified() => {}
            }
            pause = match self.pass().await {
                Ok(()) => {
                    self.forget_search()?;
                    backoff.reset();
                    self.next_poll()
                }
                Err(ClientError::Superseded) => Duration::ZERO,
                Err(error @ ClientError::UnknownAuthority(_)) => {
                    self.unknown_authority(error)?;
                    backoff.reset();
                    backoff.next_pause().min(DEFAULT_INTERVAL)
                }
                Err(error) => {
                    error!(error = %error, "Synchronize failed");
                    if error.deny_reason().is_some() {
                        return Err(SyncError::Denied(error));
                    }
                    backoff.next_pause()
                }
            };
        }
    }

    fn next_poll(&self) -> Duration {
        let interval = if self.status.is_watching() { self.interval.max(RECONCILE) } else { self.interval };
        match self.cache.stats().x509_svids {
            0 if !self.status.is_watching() => jitter(interval.min(DEFAULT_INTERVAL)),
            _ => jitter(interval),
        }
    }

    /// The server is known again: a search for another bundle that had begun is over.
    fn forget_search(&self) -> Result<(), StoreError> {
        let data = self.store.data();
        if data.bootstrap_start.is_none() && data.connection_attempts == 0 {
            return Ok(());
        }
        self.store.update(|data| {
            data.bootstrap_use = BootstrapUse::Rebootstrap;
            data.bootstrap_start = None;
            data.connection_attempts = 0;
        })?;
        show_bootstrap(&self.store, &self.metrics);
        Ok(())
    }

    fn unknown_authority(&self, failure: ClientError) -> Result<(), SyncError> {
        if self.rebootstrap.mode == RebootstrapMode::Never {
            info!(error = %failure, "Synchronize failed, non-recoverable error");
            return Err(SyncError::UnknownAuthority(failure));
        }
        if let Some(left) = waited_for_rebootstrap(&self.store, self.rebootstrap.delay, self.clock.now())? {
            info!(time_left = ?left, "Trust Bundle and Server don't agree, ignoring for now");
            return Ok(());
        }
        warn!("Trust Bundle and Server don't agree, rebootstrapping");
        force_rebootstrap(&self.store, &self.clock)?;
        Err(SyncError::Rebootstrap)
    }
}

/// Forgets identity and bundle, so that the next start begins with the configured bundle.
/// # Errors
/// [`StoreError`].
pub fn force_rebootstrap(store: &Store, clock: &Clock) -> Result<(), StoreError> {
    let now = clock.now();
    store.update(|data| {
        data.svid = None;
        data.bundle.clear();
        data.bootstrap_use = BootstrapUse::Rebootstrap;
        data.bootstrap_start = Some(now);
        data.connection_attempts = 0;
    })
}

/// SPIRE's words around a failed listing, which scripts look for.
fn in_fetch(error: ClientError) -> ClientError {
    match error {
        ClientError::Denied { reason, message } => {
            ClientError::Denied { reason, message: format!("failed to fetch authorized entries: {message}") }
        }
        ClientError::Status { code, message } => {
            ClientError::Status { code, message: format!("failed to fetch authorized entries: {message}") }
        }
        other => other,
    }
}
