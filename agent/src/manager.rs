//! The agent's work once it has an identity: what keeps it in step with the server, and what happens when the
//! server no longer wants it.

use std::time::Duration;

use svid_core::clock::Clock;
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::attest::{Store, StoreError, waited_for_rebootstrap};
use crate::backoff::Backoff;
use crate::cache::Cache;
use crate::client::{ClientError, DenyReason, ServerClient};
use crate::config::{Rebootstrap, RebootstrapMode};
use crate::rotate::{RotateError, Rotator};
use crate::stored::{Keeper, Stored};
use crate::sync::{SvidFetcher, SyncError, Synchronizer, force_rebootstrap};

const BACKOFF_START: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(120);
/// How long a server may take to answer before what is stored is served without it.
const FIRST_TRY: Duration = Duration::from_secs(1);
const GIVE_UP: Duration = Duration::from_secs(60);
const GIVE_UP_REBOOTSTRAPPING: Duration = Duration::from_secs(24 * 3600);
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Why the agent ends.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// The server denied the agent, or synchronising cannot go on.
    #[error(transparent)]
    Sync(#[from] SyncError),
    /// The agent's SVID cannot be renewed.
    #[error(transparent)]
    Rotate(#[from] RotateError),
    /// The first synchronisation failed for too long or for good.
    #[error("failed to initialize manager: {0}")]
    Initialize(ClientError),
    /// The bundle on the disk is of no use any more.
    #[error("Agent needs to rebootstrap. shutting down")]
    Rebootstrap,
    /// The disk failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The server put the agent out, and starting again does not help.
    #[error(transparent)]
    PutOut(Box<ManagerError>),
}

impl ManagerError {
    /// Says that starting again does not help.
    fn for_good(self) -> Self {
        Self::PutOut(Box::new(self))
    }

    fn denial(&self) -> Option<&ClientError> {
        match self {
            Self::Sync(SyncError::Denied(error)) | Self::Rotate(RotateError::Denied(error)) => Some(error),
            _ => None,
        }
    }
}

/// All tasks that talk to the server.
pub struct Manager {
    /// The connection.
    pub client: ServerClient,
    /// Entries and bundles.
    pub synchronizer: Synchronizer,
    /// Workloads' SVIDs.
    pub fetcher: SvidFetcher,
    /// The agent's own SVID.
    pub rotator: Rotator,
    /// `agent-data.json`.
    pub store: Store,
    /// When to look for another bundle.
    pub rebootstrap: Rebootstrap,
    /// Where now comes from.
    pub clock: Clock,
    /// What outlives the process.
    pub keeper: Keeper,
    /// What is served.
    pub cache: Cache,
}

impl Manager {
    /// What comes before the APIs are served: the first synchronisation or, if no server answers it, what an earlier
    /// process left behind.
    /// # Errors
    /// [`ManagerError`] when the server denies the agent, or when there is nothing stored and it took too long.
    pub async fn begin(&self) -> Result<(), ManagerError> {
        let restored = match self.keeper.load().await {
            Stored::Nothing => return self.initialize().await,
            Stored::Ready(restored) => restored,
            Stored::ClockBehind { .. } => tokio::select! {
                result = self.initialize() => return result,
                restored = self.keeper.wait_for_clock() => restored,
            },
        };
        let (entries, svids) = (restored.entries.len(), restored.svids());
        if let Some(at) = restored.last_contact {
            self.client.remember_contact(at);
        }
        self.cache.restore(*restored);
        // What was deleted or banned meanwhile is only learned from a server, so one that is there is asked first.
        let failure = match tokio::time::timeout(FIRST_TRY, self.try_initialize()).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(failure)) => failure,
            Err(_) => ClientError::Timeout(FIRST_TRY),
        };
        self.judge_initial(&failure)?;
        if let Some(reason) = failure.deny_reason() {
            return Err(self.initial_denial(reason, failure));
        }
        warn!(error = %failure, entries, svids, "No server answers; serving what was stored before the restart");
        Ok(())
    }

    fn initial_denial(&self, reason: DenyReason, failure: ClientError) -> ManagerError {
        let for_good = reason == DenyReason::Banned || !self.client.current_identity().reattestable;
        let failure = ManagerError::Initialize(failure);
        if for_good { failure.for_good() } else { failure }
    }

    /// The first synchronisation, as often as it takes.
    /// # Errors
    /// [`ManagerError`] when the server denies the agent or it took too long.
    pub async fn initialize(&self) -> Result<(), ManagerError> {
        let give_up = match self.rebootstrap.mode {
            RebootstrapMode::Never => GIVE_UP,
            _ => GIVE_UP_REBOOTSTRAPPING,
        };
        let started = Instant::now();
        let mut backoff = Backoff::new(BACKOFF_START, BACKOFF_MAX);
        loop {
            let Err(failure) = self.try_initialize().await else { return Ok(()) };
            self.judge_initial(&failure)?;
            let pause = backoff.next_pause();
            if let Some(reason) = failure.deny_reason() {
                return Err(self.initial_denial(reason, failure));
            }
            if started.elapsed() + pause > give_up {
                return Err(ManagerError::Initialize(failure));
            }
            warn!(error = %failure, retry_interval = ?pause, "Failed to initialize manager");
            tokio::time::sleep(pause).await;
        }
    }

    async fn try_initialize(&self) -> Result<(), ClientError> {
        if let Err(failure) = self.client.post_status(VERSION).await {
            // A server that is too old for this RPC, or refuses more than that: the next call tells.
            error!(agent_version = VERSION, error = %failure, "Failed to post agent status");
        }
        self.synchronizer.pass().await
    }

    /// Draws the consequences that cannot wait for the next attempt.
    fn judge_initial(&self, failure: &ClientError) -> Result<(), ManagerError> {
        match failure.deny_reason() {
            Some(DenyReason::Reattest) => {
                error!(error = %failure, "Agent needs to re-attest: removing SVID and shutting down");
                self.delete_svid();
            }
            Some(DenyReason::Banned) => {
                error!(error = %failure, "Agent is banned: removing SVID and shutting down");
                self.delete_svid();
            }
            None if matches!(failure, ClientError::UnknownAuthority(_)) => self.unknown_authority()?,
            None => {}
        }
        Ok(())
    }

    fn unknown_authority(&self) -> Result<(), ManagerError> {
        if self.rebootstrap.mode == RebootstrapMode::Never {
            return Ok(());
        }
        if let Some(left) = waited_for_rebootstrap(&self.store, self.rebootstrap.delay, self.clock.now())? {
            info!(time_left = ?left, "Trust Bundle and Server don't agree, ignoring for now");
            return Ok(());
        }
        info!("Trust Bundle and Server don't agree, rebootstrapping");
        self.keeper.wipe();
        force_rebootstrap(&self.store, &self.clock)?;
        Err(ManagerError::Rebootstrap)
    }

    /// Works until the agent cannot go on; attests again in place where that helps.
    /// # Errors
    /// [`ManagerError`], already logged.
    pub async fn run(&self) -> Result<(), ManagerError> {
        loop {
            let Err(failure) = self.work().await else { return Ok(()) };
            if matches!(failure, ManagerError::Sync(SyncError::Rebootstrap)) {
                self.keeper.wipe();
            }
            match failure.denial().and_then(ClientError::deny_reason) {
                Some(DenyReason::Reattest) => self.reattest(failure).await?,
                Some(DenyReason::Banned) => {
                    warn!(error = %failure, "Agent is banned: removing SVID and shutting down");
                    self.delete_svid();
                    return Err(failure.for_good());
                }
                None => {
                    error!(error = %failure, "Cache manager crashed");
                    return Err(failure);
                }
            }
        }
    }

    async fn work(&self) -> Result<(), ManagerError> {
        // The synchroniser and the rotator decide what a refusal means; the fetcher only makes them look.
        let fetch = self.fetcher.run(|_| self.synchronizer.poke());
        tokio::select! {
            () = self.keeper.run(&self.cache, &self.client) => Ok(()),
            () = self.cache.renew_jwts() => Ok(()),
            result = self.synchronizer.run() => Ok(result?),
            result = self.rotator.run() => Ok(result?),
            () = fetch => Ok(()),
        }
    }

    async fn reattest(&self, failure: ManagerError) -> Result<(), ManagerError> {
        // Until the server says otherwise: a process that starts in between must not serve what it finds.
        self.keeper.wipe();
        warn!(error = %failure, "Agent needs to re-attest; will attempt to re-attest");
        let (reason, for_good) = match self.client.current_identity().reattestable {
            false => ("attestation method is not re-attestable".to_owned(), true),
            true => match self.rotator.reattest().await {
                Ok(()) => {
                    self.keeper.go_on();
                    return Ok(());
                }
                Err(reason) => (reason.to_string(), reason.is_refusal()),
            },
        };
        error!(error = %reason, "Agent failed re-attestation; removing SVID and shutting down");
        self.delete_svid();
        Err(if for_good { failure.for_good() } else { failure })
    }

    /// The stored SVIDs go first: the agent's own is of no use to a process that finds none of them.
    fn delete_svid(&self) {
        self.keeper.wipe();
        let deleted = self.store.update(|data| {
            data.svid = None;
            data.reattestable = false;
        });
        if let Err(failure) = deleted {
            error!(error = %failure, "Failed to remove SVID");
        }
    }
}

#[cfg(test)]
mod tests;
