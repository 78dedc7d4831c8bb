//! Keeps the agent's own SVID fresh.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use svid_core::clock::Clock;
use svid_core::x509::csr::make_csr;
use svid_daemon::metrics::Metrics;
use svid_plugin_api::{AgentNodeAttestor, KeyManager};
use tokio::time::Instant;
use tracing::{debug, error, info};

use crate::attest::{Store, StoreError, attest_over, identity_of, next_key};
use crate::backoff::{Backoff, jitter};
use crate::cache::{Cache, chains_to, renewal_draw};
use crate::client::{AgentIdentity, AttestChannel, ClientError, ServerClient};

/// How often to look. Source: SPIRE.
const INTERVAL: Duration = Duration::from_secs(5);
const BACKOFF_MAX: Duration = Duration::from_secs(120);

/// Why the agent cannot go on with its identity.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    /// The server told the agent to attest again or to stop.
    #[error(transparent)]
    Denied(ClientError),
    /// The SVID ended before a new one was had.
    #[error("current SVID has already expired and {what} failed: {source}")]
    Expired {
        /// `rotate agent SVID` or `reattest agent`.
        what: &'static str,
        /// Why the last attempt failed.
        source: RenewError,
    },
}

/// Why one attempt failed.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// The exchange with the server.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The new SVID could not be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl RenewError {
    /// The server answered and said no: it will say so again.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Client(ClientError::Denied { .. }))
    }
}

/// Renews the agent's SVID. Clones share everything.
#[derive(Clone)]
pub struct Rotator {
    /// The connection whose identity is renewed.
    pub client: ServerClient,
    /// The tainted authorities are in its bundles.
    pub cache: Cache,
    /// Where the agent's key lives.
    pub keys: Arc<dyn KeyManager>,
    /// How the node proves what it is.
    pub plugin: Arc<dyn AgentNodeAttestor>,
    /// `agent-data.json`.
    pub store: Store,
    /// How much validity should be left.
    pub availability_target: Option<Duration>,
    /// Where now comes from.
    pub clock: Clock,
    /// Counts renewals.
    pub metrics: Metrics,
}

impl Rotator {
    /// Looks every few seconds, and when a bundle changed, whether it is time, and renews.
    /// # Errors
    /// [`RotateError`] when the agent cannot go on; everything else is tried again.
    pub async fn run(&self) -> Result<(), RotateError> {
        let mut backoff = Backoff::new(INTERVAL, BACKOFF_MAX);
        let mut bundles = self.cache.bundles();
        loop {
            bundles.borrow_and_update();
            match self.rotate_if_due().await? {
                true => {
                    backoff.reset();
                    // A tainted authority may be revoked soon, and then this agent could not ask any more.
                    tokio::select! {
                        () = tokio::time::sleep(jitter(INTERVAL)) => {}
                        _ = bundles.changed() => {}
                    }
                }
                false => self.wait(backoff.next_pause()).await,
            }
        }
    }

    /// After a failure. After an outage there may be little time left, so the first answer to anything ends the pause.
    async fn wait(&self, pause: Duration) {
        let first = pause.min(INTERVAL);
        tokio::time::sleep(first).await;
        tokio::select! {
            () = tokio::time::sleep(pause - first) => {}
            () = self.client.answered() => {}
        }
    }

    /// `false` if an attempt failed.
    async fn rotate_if_due(&self) -> Result<bool, RotateError> {
        let identity = self.client.current_identity();
        let tainted = self.is_tainted(&identity);
        if !tainted && self.renew_at(&identity) > self.clock.now() {
            return Ok(true);
        }
        let Err(failure) = self.renew(&identity).await else { return Ok(true) };
        let what = if identity.reattestable { "reattest agent" } else { "rotate agent SVID" };
        error!(error = %failure, "Could not {what}");
        match failure {
            RenewError::Client(denied) if denied.deny_reason().is_some() => Err(RotateError::Denied(denied)),
            // Ending here would only take the workloads what they still have.
            RenewError::Client(error) if error.is_unreachable() => Ok(false),
            source if identity.svid.life().is_over(self.clock.now()) => {
                Err(RotateError::Expired { what, source })
            }
            _ => Ok(false),
        }
    }

    fn renew_at(&self, identity: &AgentIdentity) -> SystemTime {
        identity.svid.life().renew_at_with_target(renewal_draw(&identity.svid), self.availability_target)
    }

    fn is_tainted(&self, identity: &AgentIdentity) -> bool {
        let bundles = self.cache.bundles();
        let bundle = Arc::clone(&bundles.borrow().own);
        let tainted = bundle.x509_authorities.iter().filter(|authority| authority.tainted);
        let keys: Vec<String> = tainted.filter_map(|root| root.parsed().subject_key_id_hex()).collect();
        // An SVID from an untainted authority under the same root cannot be told apart, and SPIRE does not try.
        let hit = !keys.is_empty() && chains_to(&identity.svid, |id| keys.iter().any(|key| *key == id));
        if hit {
            info!("Agent SVID is tainted by a root authority, forcing rotation");
        }
        hit
    }

    async fn renew(&self, identity: &AgentIdentity) -> Result<(), RenewError> {
        let begun = Instant::now();
        let result = match identity.reattestable {
            true => self.reattest().await,
            false => self.renew_over_mtls(identity).await,
        };
        let status = if result.is_ok() { "OK" } else { "Unknown" };
        let key: &[&str] =
            if identity.reattestable { &["node", "attest"] } else { &["agent_svid", "rotate"] };
        self.metrics.measure_call(key, status, begun.elapsed(), &[]);
        result
    }

    async fn renew_over_mtls(&self, identity: &AgentIdentity) -> Result<(), RenewError> {
        debug!("Rotating agent SVID");
        let signer = next_key(&*self.keys, Some(&*identity.signer)).await.map_err(ClientError::from)?;
        let csr = make_csr(&*signer, None, &[]).map_err(ClientError::from)?;
        let svid = self.client.renew_agent(csr).await?;
        let renewed = identity_of(svid, signer, identity.reattestable, self.client.dialer().trust_domain())?;
        self.adopt(renewed, "Successfully rotated agent SVID")
    }

    /// Attests again over a connection of its own and goes on with what comes out.
    /// # Errors
    /// [`RenewError`].
    pub async fn reattest(&self) -> Result<(), RenewError> {
        debug!("Reattesting node");
        let current = self.client.current_identity();
        let channel = AttestChannel::connect(self.client.dialer(), Some(self.client.roots())).await?;
        let renewed = attest_over(&channel, &*self.keys, &*self.plugin, Some(&*current.signer)).await?;
        self.adopt(renewed, "Successfully reattested node")
    }

    fn adopt(&self, renewed: AgentIdentity, message: &str) -> Result<(), RenewError> {
        self.store.update(|data| {
            data.svid = Some(renewed.svid.clone());
            data.reattestable = renewed.reattestable;
        })?;
        info!(spiffe_id = %renewed.svid.id(), "{message}");
        self.client.replace_identity(renewed);
        Ok(())
    }
}
