//! From nothing, or from what is on the disk, to an agent with an SVID and a bundle.

mod keys;
mod source;
mod store;
mod token;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use svid_core::bundle::{Bundle, X509Authority};
use svid_core::clock::Clock;
use svid_core::id::TrustDomain;
use svid_core::key::Signer;
use svid_core::x509::csr::make_csr;
use svid_core::x509::{CertError, X509Svid};
use svid_daemon::metrics::{Metrics, code_name};
use svid_plugin_api::{AgentNodeAttestor, KeyManager, PluginError};
use tracing::{info, warn};

use crate::backoff::Backoff;
use crate::client::{AgentIdentity, AttestChannel, ClientError, Dialer, SharedRoots};
use crate::config::{Bootstrap, Rebootstrap, RebootstrapMode};

pub use keys::next_key;
pub use source::{SourceContext, SourceError};
pub use store::{AgentData, BootstrapUse, Store, StoreError};
pub use token::JoinTokenAttestor;

/// First pause between attempts. SPIRE starts with five seconds; a server that is being started next to the agent
/// is there sooner.
const BACKOFF_START: Duration = Duration::from_millis(250);
/// Longest pause. Source: SPIRE, 24 times its start.
const BACKOFF_MAX: Duration = Duration::from_secs(120);
/// How long to try. Source: SPIRE.
const GIVE_UP: Duration = Duration::from_secs(60);
/// How long to try when another bundle may be found.
const GIVE_UP_REBOOTSTRAPPING: Duration = Duration::from_secs(24 * 3600);
/// An SVID that ends sooner than this is as good as over.
const EXPIRY_SKEW: Duration = Duration::from_secs(1);

/// Why the agent has no identity.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// The exchange with the server failed.
    #[error("failed to attest: {0}")]
    Client(#[from] ClientError),
    /// What is on the disk cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The source of the trust bundle failed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A certificate of a bundle cannot be used.
    #[error("trust bundle: {0}")]
    Bundle(#[from] CertError),
    /// The key manager refused.
    #[error("unable to access key manager: {0}")]
    Key(#[from] PluginError),
    /// An identity without anything to check the server with.
    #[error("SVID loaded but no bundle in cache")]
    NoBundle,
    /// `rebootstrap_mode = "always"` on a node that cannot attest again.
    #[error(
        "you have requested rebootstrap support but the NodeAttestor plugin or the spire server configuration is not allowing it"
    )]
    NotReattestable,
}

/// What the agent starts its work with.
#[derive(Clone, Debug)]
pub struct Attestation {
    /// Who the agent is.
    pub identity: AgentIdentity,
    /// What it checks the server with.
    pub bundle: Bundle,
}

/// Everything an attestation needs.
pub struct Attestor {
    /// The way to the server.
    pub dialer: Dialer,
    /// Host and port for the helper on a Unix socket.
    pub server: (String, u16),
    /// `agent-data.json`.
    pub store: Store,
    /// Where the agent's key lives.
    pub keys: Arc<dyn KeyManager>,
    /// How the node proves what it is.
    pub plugin: Arc<dyn AgentNodeAttestor>,
    /// Where the first bundle comes from.
    pub bootstrap: Bootstrap,
    /// When to look for another bundle.
    pub rebootstrap: Rebootstrap,
    /// Where now comes from.
    pub clock: Clock,
    /// Shows the search for a bundle.
    pub metrics: Metrics,
}

impl Attestor {
    /// Reads the state of the search for a bundle; a file from before there was one is completed.
    /// # Errors
    /// [`AttestError::Store`], and [`AttestError::NotReattestable`] if the configuration asks for what this node
    /// cannot do.
    pub fn prepare(&mut self) -> Result<(), AttestError> {
        let data = self.store.data();
        if data.bootstrap_use == BootstrapUse::Unspecified && !data.bundle.is_empty() {
            self.store.update(|data| data.bootstrap_use = BootstrapUse::Rebootstrap)?;
        }
        if data.svid.is_some() {
            self.check_rebootstrap(data.reattestable)?;
        }
        Ok(())
    }

    /// A node that cannot attest again cannot look for another bundle either.
    /// # Errors
    /// [`AttestError::NotReattestable`].
    pub fn check_rebootstrap(&mut self, reattestable: bool) -> Result<(), AttestError> {
        match self.rebootstrap.mode {
            _ if reattestable => Ok(()),
            RebootstrapMode::Never => Ok(()),
            RebootstrapMode::Always => Err(AttestError::NotReattestable),
            RebootstrapMode::Auto => {
                warn!("NodeAttestor is not rebootstrappable, rebootstrapping is disabled");
                self.rebootstrap.mode = RebootstrapMode::Never;
                Ok(())
            }
        }
    }

    /// Tries until it works, the server refuses for good, or it has been too long.
    /// # Errors
    /// The last attempt's [`AttestError`].
    pub async fn run(&self) -> Result<Attestation, AttestError> {
        let give_up = match self.rebootstrap.mode {
            RebootstrapMode::Never => GIVE_UP,
            _ => GIVE_UP_REBOOTSTRAPPING,
        };
        let started = tokio::time::Instant::now();
        let mut backoff = Backoff::new(BACKOFF_START, BACKOFF_MAX);
        show_bootstrap(&self.store, &self.metrics);
        let mut key = None;
        loop {
            let error = match self.attempt(&mut key).await {
                Ok(attestation) => return Ok(attestation),
                Err(error) => error,
            };
            if matches!(error, AttestError::Client(ClientError::Denied { .. })) {
                return Err(error);
            }
            if matches!(error, AttestError::Client(ClientError::UnknownAuthority(_))) {
                self.unknown_authority()?;
            }
            let pause = backoff.next_pause();
            if started.elapsed() + pause > give_up {
                return Err(error);
            }
            warn!(error = %error, retry_interval = ?pause, "Failed to retrieve attestation result");
            tokio::time::sleep(pause).await;
        }
    }

    fn unknown_authority(&self) -> Result<(), AttestError> {
        if self.store.data().bootstrap_use != BootstrapUse::Rebootstrap {
            info!("Trust Bundle and Server don't agree, bootstrapping again");
            return Ok(());
        }
        if self.rebootstrap.mode == RebootstrapMode::Never {
            return Ok(());
        }
        match waited_for_rebootstrap(&self.store, self.rebootstrap.delay, self.clock.now())? {
            Some(left) => info!(time_left = ?left, "Trust Bundle and Server don't agree, ignoring for now"),
            None => {
                warn!("Trust Bundle and Server don't agree, rebootstrapping");
                self.store.update(|data| data.bundle.clear())?;
            }
        }
        Ok(())
    }

    /// `key`: the one of an attempt whose answer may have got lost, which the server gives to no other.
    async fn attempt(&self, key: &mut Option<Arc<dyn Signer>>) -> Result<Attestation, AttestError> {
        let data = self.store.data();
        let roots = match data.bundle.is_empty() {
            false => Some(data.bundle.clone()),
            true => self.ask_source().await?,
        };
        match roots {
            Some(_) => info!("Bundle loaded"),
            None => info!("Bundle is not found"),
        }
        let bundle = roots.map(|ders| self.bundle(&ders)).transpose()?;
        if let Some(identity) = self.stored_identity(&data).await? {
            let bundle = bundle.ok_or(AttestError::NoBundle)?;
            info!(spiffe_id = %identity.svid.id(), "SVID loaded");
            return Ok(Attestation { identity, bundle });
        }
        info!("SVID is not found. Starting node attestation");
        let attestation = self.attest_anew(bundle.as_ref(), key).await?;
        let identity = &attestation.identity;
        info!(
            spiffe_id = %identity.svid.id(),
            reattestable = identity.reattestable,
            "Node attestation was successful"
        );
        Ok(attestation)
    }

    async fn ask_source(&self) -> Result<Option<Vec<Vec<u8>>>, AttestError> {
        let now = self.clock.now();
        self.store.update(|data| {
            if data.bootstrap_use == BootstrapUse::Unspecified {
                data.bootstrap_use = BootstrapUse::Bootstrap;
            }
            data.connection_attempts += 1;
            data.bootstrap_start.get_or_insert(now);
        })?;
        let data = self.store.data();
        let context = SourceContext {
            trust_domain: self.dialer.trust_domain().clone(),
            server_address: self.server.0.clone(),
            server_port: self.server.1,
            rebootstrap: data.bootstrap_use == BootstrapUse::Rebootstrap,
            attempts: data.connection_attempts,
            start: data.bootstrap_start.unwrap_or(now),
        };
        show_bootstrap(&self.store, &self.metrics);
        Ok(source::fetch(&self.bootstrap, &context).await?)
    }

    fn bundle(&self, ders: &[Vec<u8>]) -> Result<Bundle, CertError> {
        let mut bundle = Bundle::empty(self.dialer.trust_domain().clone());
        bundle.x509_authorities =
            ders.iter().map(|der| X509Authority::from_der(der)).collect::<Result<_, _>>()?;
        Ok(bundle)
    }

    /// The identity on the disk, if its key is there and it is not over.
    async fn stored_identity(&self, data: &AgentData) -> Result<Option<AgentIdentity>, AttestError> {
        let found = keys::find(&*self.keys, data.svid.as_ref()).await?;
        let Some(svid) = data.svid.clone() else {
            if matches!(found, keys::Found::OtherKeys) {
                warn!("Keys recovered, but no SVID found. Generating new keypair");
            }
            return Ok(None);
        };
        match found {
            keys::Found::Key(_) if svid.life().is_over(self.clock.now() + EXPIRY_SKEW) => {
                warn!("SVID key recovered, but SVID is expired. Generating new keypair");
                Ok(None)
            }
            keys::Found::Key(signer) => {
                Ok(Some(AgentIdentity { svid, signer, reattestable: data.reattestable }))
            }
            keys::Found::NoKeys => {
                warn!("SVID recovered, but no keys found. Generating new keypair");
                Ok(None)
            }
            keys::Found::OtherKeys => {
                warn!("SVID recovered, but no SVID key found. Generating new keypair");
                Ok(None)
            }
        }
    }

    async fn attest_anew(
        &self,
        bundle: Option<&Bundle>,
        key: &mut Option<Arc<dyn Signer>>,
    ) -> Result<Attestation, AttestError> {
        let roots = SharedRoots::default();
        if let Some(bundle) = bundle {
            roots.set(bundle);
        } else {
            warn!("Insecure bootstrap enabled; skipping server certificate verification");
        }
        let channel = AttestChannel::connect(&self.dialer, bundle.map(|_| &roots)).await?;
        let signer = match key {
            Some(signer) => signer.clone(),
            None => key.insert(next_key(&*self.keys, None).await?).clone(),
        };
        let begun = tokio::time::Instant::now();
        let attested = attest_with(&channel, signer, &*self.plugin).await;
        let status = attested.as_ref().map_or_else(|error| code_name(error.code()), |_| "OK");
        let labels = [("attestor_type", self.plugin.name())];
        self.metrics.measure_call(&["node", "attestor", "new_svid"], status, begun.elapsed(), &labels);
        let identity = attested?;
        let bundle = channel.bundle().await?;
        let ders = bundle.x509_authorities.iter().map(|authority| authority.der().to_vec()).collect();
        // On the disk before anything is done with it: a join token buys one SVID.
        self.store.update(|data| {
            data.svid = Some(identity.svid.clone());
            data.reattestable = identity.reattestable;
            data.bundle = ders;
            data.bootstrap_use = BootstrapUse::Rebootstrap;
            data.bootstrap_start = None;
            data.connection_attempts = 0;
        })?;
        show_bootstrap(&self.store, &self.metrics);
        Ok(Attestation { identity, bundle })
    }
}

/// Shows where the agent stands in the search for a bundle, under SPIRE's names.
pub(crate) fn show_bootstrap(store: &Store, metrics: &Metrics) {
    if !metrics.is_enabled() {
        return;
    }
    let data = store.data();
    let rebootstrap = data.bootstrap_use == BootstrapUse::Rebootstrap;
    let mode = [("mode", if rebootstrap { "rebootstrap" } else { "bootstrap" })];
    let start = data.bootstrap_start.map_or(0, svid_core::clock::unix_seconds);
    metrics.set_gauge(&["bootstrapped"], if data.bootstrap_start.is_none() { 1.0 } else { 0.0 }, &[]);
    #[allow(clippy::cast_precision_loss)] // seconds since 1970
    metrics.set_gauge(&["bootstrap_seconds"], start as f64, &mode);
    metrics.set_gauge(&["bootstrap_attempts"], f64::from(data.connection_attempts), &mode);
}

/// One attestation with a new key in the slot that `current` is not in.
/// # Errors
/// [`ClientError`].
pub async fn attest_over(
    channel: &AttestChannel,
    keys: &dyn KeyManager,
    plugin: &dyn AgentNodeAttestor,
    current: Option<&dyn Signer>,
) -> Result<AgentIdentity, ClientError> {
    attest_with(channel, next_key(keys, current).await?, plugin).await
}

async fn attest_with(
    channel: &AttestChannel,
    signer: Arc<dyn Signer>,
    plugin: &dyn AgentNodeAttestor,
) -> Result<AgentIdentity, ClientError> {
    let csr = make_csr(&*signer, None, &[])?;
    let attested = channel.attest(plugin, csr).await?;
    identity_of(attested.svid, signer, attested.reattestable, channel.trust_domain())
}

/// Puts SVID and key together, if they belong together and the SVID is that of an agent of `trust_domain`.
/// # Errors
/// [`ClientError::Malformed`].
pub fn identity_of(
    svid: X509Svid,
    signer: Arc<dyn Signer>,
    reattestable: bool,
    trust_domain: &TrustDomain,
) -> Result<AgentIdentity, ClientError> {
    let agent = svid.id().require_agent(trust_domain);
    agent.map_err(|error| ClientError::Malformed(format!("the agent's SVID: {error}")))?;
    if svid.leaf().public_key_der() != signer.public_key_der() {
        return Err(ClientError::Malformed("the agent's SVID is for another key".into()));
    }
    Ok(AgentIdentity { svid, signer, reattestable })
}

/// How long the server's authority still has to be unknown before the bundle is given up; `None` once it was long
/// enough. Begins the wait if it has not begun.
/// # Errors
/// [`StoreError`].
pub fn waited_for_rebootstrap(
    store: &Store,
    delay: Duration,
    now: SystemTime,
) -> Result<Option<Duration>, StoreError> {
    let Some(start) = store.data().bootstrap_start else {
        store.update(|data| data.bootstrap_start = Some(now))?;
        return Ok(Some(delay));
    };
    Ok(delay.checked_sub(store::since(start, now)).filter(|left| !left.is_zero()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use svid_core::key::{KeyType, LocalKey};
    use svid_core::x509::{PublicKey, Subject};

    use super::*;
    use crate::testing::TestCa;

    #[test]
    fn only_an_agent_of_the_own_trust_domain() {
        let rows = [
            ("example.org", "spiffe://example.org/spire/agent/join_token/x", None),
            ("example.org", "spiffe://example.org/web", Some("the agent's SVID: ")),
            ("other.org", "spiffe://other.org/spire/agent/join_token/x", Some("the agent's SVID: ")),
        ];
        let own: TrustDomain = "example.org".parse().unwrap();
        for (issuer, id, want) in rows {
            let key = LocalKey::generate(KeyType::EcP256).unwrap();
            let public_key = PublicKey::of(&key).unwrap();
            let ttl = Duration::from_secs(3600);
            let id = id.parse().unwrap();
            let svid = TestCa::new(issuer).sign(&id, public_key, ttl, Subject::Spire, SystemTime::now());
            match (identity_of(svid, key.into_signer(), false, &own), want) {
                (Ok(identity), None) => assert_eq!(*identity.svid.id(), id),
                (Err(ClientError::Malformed(message)), Some(part)) => {
                    assert!(message.starts_with(part), "{message}");
                }
                (other, _) => panic!("{id}: {:?}", other.err()),
            }
        }
    }
}
