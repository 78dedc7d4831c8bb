//! The trust domain's authority: keys in slots, their rotation, and everything that is signed with them.
//!
//! [`Ca`] is the handle that requests use; [`CaTask`] the one task that changes state. Between them stand snapshots:
//! a request signs with the state it found, whole, and a failed rotation leaves the last good state in place.
//! Knows nothing of gRPC and nothing of SQL: see [`CaStore`].

mod config;
mod error;
mod issue;
mod journal;
mod load;
mod log;
mod make;
mod manager;
mod metrics;
mod mint;
mod operate;
mod outlook;
mod prepare;
mod retry;
mod roots;
mod rotation;
mod server_svid;
mod slots;
mod snapshot;
mod spread;
mod store;
mod store_adapter;
mod task;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use svid_core::clock::Clock;
use svid_plugin_api::{KeyManager, UpstreamAuthority};
use tokio::sync::{mpsc, oneshot, watch};

pub use config::{CaConfig, CaSubject, DEFAULT_CA_TTL, DEFAULT_JWT_SVID_TTL, DEFAULT_X509_SVID_TTL};
pub use error::CaError;
pub use issue::{DownstreamCa, JwtSvidRequest, X509SvidRequest};
pub use outlook::{Usable, usable_authorities};
pub use prepare::UpstreamFault;
pub use server_svid::ServerIdentity;
pub use slots::{AuthorityInfo, AuthorityKind, Held, SlotId, Slots, Status};
pub use snapshot::{AuthorityState, CaSnapshot, RotationHealth, UNHEALTHY_FAILURES};
pub use spread::SPREAD;
pub use store::{CaStore, CaStoreError};
pub use store_adapter::StoredCa;

use manager::Manager;
use metrics::CaMetrics;
use operate::{Command, Operation, Wish};

/// The rotation task: runs until dropped, and loses nothing when it is.
pub type CaTask = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The trust domain's authority, as requests see it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Ca {
    config: Arc<CaConfig>,
    snapshots: watch::Receiver<Arc<CaSnapshot>>,
    identity: watch::Receiver<Arc<ServerIdentity>>,
    commands: mpsc::Sender<Command>,
    metrics: Arc<CaMetrics>,
    has_upstream: bool,
}

impl Ca {
    /// Loads what the journal and the key manager hold, rotates once, and gives the handle together with the task
    /// that goes on rotating. When this returns an authority of each kind is active and in the bundle; where others go by
    /// that bundle already, new authorities were in it for [`SPREAD`].
    /// # Errors
    /// Whatever keeps the first authority from being loaded or made.
    pub async fn start(
        config: CaConfig,
        keys: Arc<dyn KeyManager>,
        upstream: Option<Arc<dyn UpstreamAuthority>>,
        store: Arc<dyn CaStore>,
        clock: Clock,
    ) -> Result<(Self, CaTask), CaError> {
        for warning in config.ttl_warnings() {
            tracing::warn!("{warning}");
        }
        let config = Arc::new(config);
        let (commands, inbox) = mpsc::channel(16);
        let has_upstream = upstream.is_some();
        let mut manager = Manager::load(config.clone(), keys, upstream, store, clock.clone()).await?;
        let metrics = manager.metrics.clone();
        manager.first_rotation().await?;
        let snapshots = manager.subscribe();
        let (rotator, identity) =
            server_svid::start(config.clone(), snapshots.clone(), metrics.clone(), clock.now()).await?;
        let task: CaTask = Box::pin(task::run(manager, rotator, inbox));
        Ok((Self { config, snapshots, identity, commands, metrics, has_upstream }, task))
    }

    /// True if another authority signs this one's CA.
    pub fn has_upstream(&self) -> bool {
        self.has_upstream
    }

    /// The settings.
    pub fn config(&self) -> &CaConfig {
        &self.config
    }

    /// The state now. Hold it for as long as a request lasts, so that it signs with one authority.
    pub fn snapshot(&self) -> Arc<CaSnapshot> {
        self.snapshots.borrow().clone()
    }

    /// States as they come.
    pub fn snapshots(&self) -> watch::Receiver<Arc<CaSnapshot>> {
        self.snapshots.clone()
    }

    /// The server's own SVID with its key, replaced at half of its life and when its authority goes.
    pub fn server_identity(&self) -> watch::Receiver<Arc<ServerIdentity>> {
        self.identity.clone()
    }

    /// The authorities of a kind.
    /// # Errors
    /// [`CaError::JwtDisabled`] for JWT when `disable_jwt_svids` is set.
    pub fn state(&self, kind: AuthorityKind) -> Result<AuthorityState, CaError> {
        self.require_enabled(kind)?;
        Ok(self.snapshot().state(kind))
    }

    /// How the rotation fares.
    pub fn rotation_health(&self) -> RotationHealth {
        self.snapshots.borrow().rotation.clone()
    }

    /// Looks at once whether something is to be rotated, instead of at the next check (each 10 s).
    pub async fn poke(&self) {
        // A task that has ended rotates nothing any more; the server is about to end as well.
        let _ = self.commands.send(Command::Poke).await;
    }

    /// Prepares an authority now, replacing one that stood ready. It is in the bundle when this returns.
    /// # Errors
    /// [`CaError`] of whatever failed; the state is as before, except that nothing may stand ready any more.
    pub async fn prepare(&self, kind: AuthorityKind) -> Result<AuthorityInfo, CaError> {
        self.operate(kind, Operation::Prepare).await
    }

    /// Lets the prepared authority take over, once it has been in the bundle for [`SPREAD`].
    /// # Errors
    /// [`CaError::AuthorityIdMissing`], [`CaError::AuthorityIdUnexpected`] or [`CaError::NotPrepared`].
    pub async fn activate(&self, kind: AuthorityKind, authority_id: &str) -> Result<AuthorityInfo, CaError> {
        self.operate(kind, Operation::Activate(authority_id.to_owned())).await
    }

    /// Marks the old authority as tainted. Its holders then replace what it signed.
    /// # Errors
    /// [`CaError::HasUpstream`], [`CaError::TaintCurrent`], [`CaError::AuthorityIdUnexpected`] or [`CaError::NotOld`].
    pub async fn taint(&self, kind: AuthorityKind, authority_id: &str) -> Result<AuthorityInfo, CaError> {
        self.operate(kind, Operation::Taint(authority_id.to_owned())).await
    }

    /// Removes the old, tainted authority from the bundle. One that was tainted a moment ago is removed a little later, so
    /// that holders have the time to replace what it signed.
    /// # Errors
    /// As [`Ca::taint`], and the store's refusal when it is not tainted.
    pub async fn revoke(&self, kind: AuthorityKind, authority_id: &str) -> Result<AuthorityInfo, CaError> {
        self.operate(kind, Operation::Revoke(authority_id.to_owned())).await
    }

    /// Marks the upstream root that signed the old authority, and not the active one, as tainted.
    /// # Errors
    /// [`CaError::NoUpstream`], [`CaError::SubjectKeyIdMissing`], [`CaError::UpstreamCurrent`],
    /// [`CaError::UpstreamUnknown`] or [`CaError::UpstreamPrepared`].
    pub async fn taint_upstream(&self, subject_key_id: &str) -> Result<(), CaError> {
        let operation = Operation::TaintUpstream(subject_key_id.to_owned());
        self.operate(AuthorityKind::X509, operation).await.map(drop)
    }

    /// Removes a tainted upstream root from the bundle, as [`Ca::revoke`]. It does not come back while the upstream
    /// authority still names it.
    /// # Errors
    /// As [`Ca::taint_upstream`], and the store's refusal when it is not tainted.
    pub async fn revoke_upstream(&self, subject_key_id: &str) -> Result<(), CaError> {
        let operation = Operation::RevokeUpstream(subject_key_id.to_owned());
        self.operate(AuthorityKind::X509, operation).await.map(drop)
    }

    async fn operate(&self, kind: AuthorityKind, operation: Operation) -> Result<AuthorityInfo, CaError> {
        self.require_enabled(kind)?;
        let (answer, answered) = oneshot::channel();
        let command = Command::Operate(Wish { kind, operation, answer });
        self.commands.send(command).await.map_err(|_| CaError::Stopped)?;
        answered.await.map_err(|_| CaError::Stopped)?
    }

    fn require_enabled(&self, kind: AuthorityKind) -> Result<(), CaError> {
        match kind {
            AuthorityKind::Jwt if self.config.disable_jwt_svids => Err(CaError::JwtDisabled),
            _ => Ok(()),
        }
    }
}
