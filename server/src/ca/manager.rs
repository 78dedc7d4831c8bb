//! The one writer of the CA's state: prepares and activates authorities, and publishes whole states.
//!
//! Order of every change, so that a kill between any two of these leaves a usable or a clean state: the key is
//! durable, the bundle row is committed, the journal is saved, and only then does anything see the authority.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use svid_core::bundle::{JwtAuthority, X509Authority};
use svid_core::clock::{Clock, unix_seconds};
use svid_core::jwt::{JwtSigner, new_kid};
use svid_plugin_api::{KeyManager, UpstreamAuthority};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::journal::Journal;
use super::load::Loader;
use super::metrics::{CaMetrics, outcome};
use super::prepare::{self, Minted};
use super::rotation::{Step, next_step};
use super::slots::{AuthorityInfo, AuthorityKind, Held, SlotId, Status};
use super::spread::Spreading;
use super::{CaConfig, CaError, CaSnapshot, CaStore, log};

/// Expired authorities stay this long in the bundle, for verifiers whose clock lags.
const PRUNE_SAFETY: Duration = Duration::from_secs(24 * 3600);
/// How often expired authorities are looked for.
const PRUNE_INTERVAL: Duration = Duration::from_secs(6 * 3600);

/// What the handle asks of the task.
pub(super) enum Command {
    /// Check now.
    Poke,
    /// A manual operation.
    Operate {
        kind: AuthorityKind,
        operation: Operation,
        answer: oneshot::Sender<Result<AuthorityInfo, CaError>>,
    },
}

/// A manual operation. Strings are authority IDs.
pub(super) enum Operation {
    Prepare,
    Activate(String),
    Taint(String),
    Revoke(String),
}

pub(super) struct Manager {
    pub(super) config: Arc<CaConfig>,
    keys: Arc<dyn KeyManager>,
    upstream: Option<Arc<dyn UpstreamAuthority>>,
    pub(super) store: Arc<dyn CaStore>,
    clock: Clock,
    last_prune: Option<Instant>,
    journal: Journal,
    pub(super) state: CaSnapshot,
    pub(super) spreading: Spreading,
    published: watch::Sender<Arc<CaSnapshot>>,
    pub(super) metrics: Arc<CaMetrics>,
}

impl Manager {
    /// Takes up what the journal says, as far as keys and bundle agree with it.
    pub(super) async fn load(
        config: Arc<CaConfig>,
        keys: Arc<dyn KeyManager>,
        upstream: Option<Arc<dyn UpstreamAuthority>>,
        store: Arc<dyn CaStore>,
        clock: Clock,
    ) -> Result<Self, CaError> {
        let journal = match store.load_journal().await? {
            Some(bytes) => Journal::decode(&bytes)?,
            None => Journal::default(),
        };
        tracing::info!(x509_cas = journal.x509().len(), jwt_keys = journal.jwt().len(), "Journal loaded");
        let (held, bundle) = (keys.list().await?, store.bundle().await?);
        let held: BTreeMap<_, _> = held.into_iter().collect();
        let now = clock.now();
        let loader = Loader {
            keys: &held,
            bundle: bundle.as_ref(),
            has_upstream: upstream.is_some(),
            jwt_issuer: config.jwt_issuer.as_deref(),
            now,
        };
        let mut state = CaSnapshot { x509: loader.x509(&journal), ..CaSnapshot::default() };
        if !config.disable_jwt_svids {
            state.jwt = loader.jwt(&journal);
        }
        state.upstream = upstream.as_ref().map(|upstream| upstream.name().into());
        state.note_tainted(bundle.as_ref());
        let published = watch::Sender::new(Arc::new(state.clone()));
        let metrics = Arc::new(CaMetrics::new(&config.metrics, &config.trust_domain));
        let mut manager = Self {
            config,
            keys,
            upstream,
            store,
            clock,
            last_prune: None,
            journal,
            state,
            spreading: Spreading::default(),
            published,
            metrics,
        };
        manager.log_loaded(now);
        // Nobody knows how long before the restart these were published.
        for kind in manager.kinds() {
            if manager.state.state(*kind).prepared.is_some() {
                manager.spread(*kind).await;
            }
        }
        Ok(manager)
    }

    fn log_loaded(&self, now: SystemTime) {
        for kind in [AuthorityKind::X509, AuthorityKind::Jwt] {
            if let Some(info) = self.state.state(kind).active {
                log::activated(kind, &info, &self.config.trust_domain, now);
                self.show_active(kind, &info, now);
            }
        }
    }

    fn show_active(&self, kind: AuthorityKind, info: &AuthorityInfo, now: SystemTime) {
        if kind == AuthorityKind::X509 {
            self.metrics.shows_active(info, now);
        }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<CaSnapshot>> {
        self.published.subscribe()
    }

    pub(super) fn upstream_roots(&self) -> Option<watch::Receiver<Arc<[X509Authority]>>> {
        self.upstream.as_ref().map(|upstream| upstream.roots())
    }

    pub(super) fn now(&self) -> SystemTime {
        self.clock.now()
    }

    pub(super) fn publish(&self) {
        self.published.send_replace(Arc::new(self.state.clone()));
    }

    fn kinds(&self) -> &'static [AuthorityKind] {
        if self.config.disable_jwt_svids {
            &[AuthorityKind::X509]
        } else {
            &[AuthorityKind::X509, AuthorityKind::Jwt]
        }
    }

    /// Brings every kind of authority up, or says why not. New ones of a trust domain that others know already get
    /// time to spread first.
    pub(super) async fn first_rotation(&mut self) -> Result<(), CaError> {
        for kind in self.kinds() {
            self.rotate(*kind).await?;
        }
        let waits = self.kinds().iter().filter(|kind| self.state.state(**kind).active.is_none());
        let Some(wait) = waits.map(|kind| self.spreading.left(*kind)).max() else { return Ok(()) };
        tracing::info!(
            wait_s = wait.as_secs_f64().ceil(),
            "New authorities are in the bundle; agents and other servers get time to learn of them before anything is \
             signed and the ports open"
        );
        tokio::time::sleep(wait).await;
        for kind in self.kinds() {
            self.rotate(*kind).await?;
        }
        Ok(())
    }

    /// Notes that the prepared authority stands in the bundle since now.
    async fn spread(&mut self, kind: AuthorityKind) {
        // In doubt there is somebody.
        let audience = self.store.has_audience().await.unwrap_or(true);
        self.spreading.begin(kind, if audience { self.config.spread } else { Duration::ZERO });
    }

    /// Waits until the prepared authority had time to spread.
    pub(super) async fn spread_out(&self, kind: AuthorityKind) {
        let left = self.spreading.left(kind);
        if !left.is_zero() {
            tracing::info!(
                wait_s = left.as_secs_f64().ceil(),
                "The new {kind} authority gets time to spread first"
            );
            tokio::time::sleep(left).await;
        }
    }

    /// One check of everything. Gives the moment of the next rotation, none after a failure.
    pub(super) async fn pass(&mut self) -> Option<SystemTime> {
        self.prune().await;
        self.put_back().await;
        let (mut due, mut error) = (None::<SystemTime>, None);
        for kind in self.kinds() {
            match self.rotate(*kind).await {
                Ok(next) => due = Some(due.map_or(next, |due| due.min(next))),
                Err(failure) => {
                    report(*kind, &failure);
                    error = Some(failure);
                    // Without an X.509 authority nothing else can be of use.
                    if self.state.x509.active().is_none() {
                        break;
                    }
                }
            }
        }
        self.record(error.as_ref());
        if error.is_some() { None } else { due }
    }

    fn record(&mut self, error: Option<&CaError>) {
        let before = self.state.rotation.clone();
        let rotation = &mut self.state.rotation;
        rotation.last_error = error.map(|error| error.to_string().into());
        rotation.failures = error.map_or(0, |_| rotation.failures.saturating_add(1));
        if before != self.state.rotation {
            self.publish();
        }
    }

    /// Does what is due for one kind. Gives the moment of its next step.
    async fn rotate(&mut self, kind: AuthorityKind) -> Result<SystemTime, CaError> {
        let mut has_prepared = false;
        loop {
            let now = self.clock.now();
            match self.next_step(kind, now) {
                Step::SleepUntil(due) => return Ok(due),
                Step::Activate if !self.spreading.left(kind).is_zero() => {
                    return Ok(now + self.spreading.left(kind));
                }
                Step::Activate => drop(self.activate(kind).await?),
                // An upstream that gives CAs whose end is near would be asked without end.
                Step::Prepare if has_prepared => return Ok(now),
                Step::Prepare => {
                    self.prepare(kind).await?;
                    has_prepared = true;
                }
            }
        }
    }

    fn next_step(&self, kind: AuthorityKind, now: SystemTime) -> Step {
        let state = self.state.state(kind);
        next_step(state.active.map(|info| info.span()), state.prepared.is_some(), now)
    }

    pub(super) async fn prepare(&mut self, kind: AuthorityKind) -> Result<AuthorityInfo, CaError> {
        let begun = Instant::now();
        let prepared = match kind {
            AuthorityKind::X509 => self.prepare_x509().await,
            AuthorityKind::Jwt => self.prepare_jwt().await,
        };
        self.metrics.prepare(kind).done(outcome(&prepared), begun.elapsed());
        let info = prepared?;
        self.publish();
        log::prepared(kind, &info, self.upstream.is_none());
        Ok(info)
    }

    async fn prepare_x509(&mut self) -> Result<AuthorityInfo, CaError> {
        let (slot, now) = (self.state.x509.free(), whole_seconds(self.clock.now()));
        self.discard_prepared(AuthorityKind::X509);
        tracing::debug!(%slot, "Preparing X509 CA");
        let signer = self.keys.generate(slot.key_id(AuthorityKind::X509), self.config.ca_key_type).await?;
        let Minted { authority, roots } = match &self.upstream {
            None => prepare::self_signed(&self.config, signer, now).await?,
            Some(upstream) => prepare::upstream_signed(&self.config, &**upstream, signer, now).await?,
        };
        self.store.append_to_bundle(&roots, &[]).await?;
        self.spread(AuthorityKind::X509).await;
        let upstream_id = authority.cert().authority_key_id_hex().filter(|_| self.upstream.is_some());
        let info = AuthorityInfo {
            upstream_authority_id: upstream_id.unwrap_or_default(),
            ..new_info(slot, now, authority.life().not_after, authority.id_hex())
        };
        let mut journal = self.journal.clone();
        journal.append_x509(&info, authority.cert_der(), authority.chain());
        self.save(journal).await?;
        self.state.x509.put(Held { info: info.clone(), key: Some(Arc::new(authority)) });
        Ok(info)
    }

    async fn prepare_jwt(&mut self) -> Result<AuthorityInfo, CaError> {
        let (slot, now) = (self.state.jwt.free(), whole_seconds(self.clock.now()));
        self.discard_prepared(AuthorityKind::Jwt);
        tracing::debug!(%slot, "Preparing JWT key");
        let signer = self.keys.generate(slot.key_id(AuthorityKind::Jwt), self.config.jwt_key_type).await?;
        let not_after = now + self.config.ca_ttl;
        let key = JwtSigner::new(new_kid()?, signer, not_after, self.config.jwt_issuer.clone());
        let published = published_key(&key, not_after);
        self.store.append_to_bundle(&[], std::slice::from_ref(&published)).await?;
        self.spread(AuthorityKind::Jwt).await;
        let info = new_info(slot, now, not_after, key.key_id().to_owned());
        let mut journal = self.journal.clone();
        journal.append_jwt(&info, &published.public_key);
        self.save(journal).await?;
        self.state.jwt.put(Held { info: info.clone(), key: Some(Arc::new(key)) });
        Ok(info)
    }

    /// Lets the prepared authority take over.
    pub(super) async fn activate(&mut self, kind: AuthorityKind) -> Result<AuthorityInfo, CaError> {
        let next = self.state.state(kind).prepared.ok_or(CaError::NotPrepared)?;
        if !self.is_published(kind).await? {
            self.discard_prepared(kind);
            return Err(CaError::NotPublished);
        }
        let mut journal = self.journal.clone();
        match kind {
            AuthorityKind::X509 => journal.activate_x509(&next.authority_id),
            AuthorityKind::Jwt => journal.activate_jwt(&next.authority_id),
        }
        self.save(journal).await?;
        let activated = match kind {
            AuthorityKind::X509 => self.state.x509.activate(),
            AuthorityKind::Jwt => self.state.jwt.activate(),
        };
        let info = self.state.state(kind).active.filter(|_| activated).ok_or(CaError::NotPrepared)?;
        self.publish();
        let now = self.clock.now();
        log::activated(kind, &info, &self.config.trust_domain, now);
        self.metrics.activated(kind);
        self.show_active(kind, &info, now);
        Ok(info)
    }

    /// True if the prepared authority is in the bundle still. A database may lose what it had: a restored copy, a
    /// failover to a replica that was behind.
    async fn is_published(&self, kind: AuthorityKind) -> Result<bool, CaError> {
        let bundle = self.store.bundle().await?;
        let Some(bundle) = bundle else { return Ok(false) };
        let prepared = self.state.x509.prepared().and_then(|held| held.key.as_ref());
        Ok(match (kind, prepared) {
            (AuthorityKind::Jwt, _) => {
                let key = self.state.jwt.prepared().and_then(|held| held.key.as_ref());
                key.is_some_and(|key| bundle.jwt_authority(key.key_id()).is_some())
            }
            (AuthorityKind::X509, Some(authority)) if authority.chain().is_empty() => {
                bundle.x509_authorities.iter().any(|root| root.der() == authority.cert_der())
            }
            // Its roots are the upstream's, which are published by themselves.
            (AuthorityKind::X509, prepared) => prepared.is_some(),
        })
    }

    /// Puts authorities that sign back into a bundle that lost them. None of them was revoked: only old ones can be.
    async fn put_back(&self) {
        // Without the database there is nothing to compare with.
        let Ok(Some(bundle)) = self.store.bundle().await else { return };
        let (mut x509, mut jwt) = (Vec::new(), Vec::new());
        if let Some(authority) = self.state.x509.active().and_then(|held| held.key.as_ref())
            && authority.chain().is_empty()
            && !bundle.x509_authorities.iter().any(|root| root.der() == authority.cert_der())
        {
            x509.extend(X509Authority::from_der(authority.cert_der()).ok());
        }
        if let Some(held) = self.state.jwt.active()
            && let Some(key) = &held.key
            && bundle.jwt_authority(key.key_id()).is_none()
        {
            jwt.push(published_key(key, held.info.not_after));
        }
        if x509.is_empty() && jwt.is_empty() {
            return;
        }
        match self.store.append_to_bundle(&x509, &jwt).await {
            Ok(()) => tracing::error!(
                "The bundle had lost the authorities that this server signs with, and has them again: the database went \
                 back to an older state. Agents may have been refused meanwhile"
            ),
            Err(error) => {
                tracing::error!(%error, "The bundle lacks the authorities that this server signs with")
            }
        }
    }

    fn discard_prepared(&mut self, kind: AuthorityKind) {
        match kind {
            AuthorityKind::X509 => self.state.x509.discard_prepared(),
            AuthorityKind::Jwt => self.state.jwt.discard_prepared(),
        }
        self.publish();
    }

    /// Saves a journal, and keeps it once it is saved.
    async fn save(&mut self, journal: Journal) -> Result<(), CaError> {
        self.store.save_journal(&journal.encode()).await?;
        self.journal = journal;
        Ok(())
    }

    /// Adds roots that the upstream has and the bundle does not have yet.
    pub(super) async fn add_upstream_roots(&mut self, roots: &[X509Authority]) {
        if roots.is_empty() {
            return;
        }
        if let Err(error) = self.store.append_to_bundle(roots, &[]).await {
            tracing::error!(%error, "Failed to store X.509 roots received by the upstream authority plugin.");
        }
    }

    async fn prune(&mut self) {
        let now = self.clock.now();
        let is_due = self.last_prune.is_none_or(|last| last.elapsed() >= PRUNE_INTERVAL);
        if !is_due {
            return;
        }
        // The guard has said so.
        if self.config.clock_guard.verdict().is_err() {
            return;
        }
        self.last_prune = Some(Instant::now());
        let Some(before) = now.checked_sub(PRUNE_SAFETY) else { return };
        let begun = Instant::now();
        let pruned = self.store.prune_bundle(before).await;
        let status = if pruned.is_ok() { "OK" } else { "Unknown" };
        self.metrics.prune.done(status, begun.elapsed());
        match pruned {
            Ok(true) => {
                self.metrics.pruned.add(1);
                tracing::debug!("Expired certificates were successfully pruned from bundle");
            }
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "Could not prune CA certificates"),
        }
    }
}

/// Journal and bundle hold whole seconds: an authority is the same before and after a restart.
fn whole_seconds(at: SystemTime) -> SystemTime {
    let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn published_key(key: &JwtSigner, not_after: SystemTime) -> JwtAuthority {
    JwtAuthority {
        key_id: key.key_id().to_owned(),
        public_key: key.public_key_der().into(),
        expires_at: unix_seconds(not_after),
        tainted: false,
    }
}

fn new_info(
    slot: SlotId,
    issued_at: SystemTime,
    not_after: SystemTime,
    authority_id: String,
) -> AuthorityInfo {
    let status = Status::Prepared;
    AuthorityInfo { slot, status, issued_at, not_after, authority_id, upstream_authority_id: String::new() }
}

fn report(kind: AuthorityKind, error: &CaError) {
    match kind {
        AuthorityKind::X509 => tracing::error!(%error, "Unable to rotate X509 CA"),
        AuthorityKind::Jwt => tracing::error!(%error, "Unable to rotate JWT key"),
    }
}
