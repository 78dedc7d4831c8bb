//! The one writer of the CA's state: prepares and activates authorities, and publishes whole states.
//!
//! Order of every change, so that a kill between any two of these leaves a usable or a clean state: the key is durable,
//! the CSR is journaled if an upstream signs, the bundle row is committed, the journal is saved, and only then does
//! anything see the authority.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use svid_core::bundle::X509Authority;
use svid_core::clock::Clock;
use svid_plugin_api::{KeyManager, UpstreamAuthority};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::journal::Journal;
use super::load::Loader;
use super::metrics::CaMetrics;
use super::mint::{Answer, Asking, Request, Waiter};
use super::retry::Backoff;
use super::rotation::{Step, next_step};
use super::slots::{AuthorityInfo, AuthorityKind};
use super::spread::Spreading;
use super::{CaConfig, CaError, CaSnapshot, CaStore, log};

/// Nothing of this kind is due before something else wakes the task.
const FAR: Duration = Duration::from_secs(3600);

pub(super) struct Manager {
    pub(super) config: Arc<CaConfig>,
    pub(super) keys: Arc<dyn KeyManager>,
    pub(super) upstream: Option<Arc<dyn UpstreamAuthority>>,
    pub(super) store: Arc<dyn CaStore>,
    pub(super) clock: Clock,
    pub(super) last_prune: Option<Instant>,
    pub(super) journal: Journal,
    pub(super) state: CaSnapshot,
    pub(super) spreading: Spreading,
    published: watch::Sender<Arc<CaSnapshot>>,
    pub(super) metrics: Arc<CaMetrics>,
    /// The CSR that stands in the journal, as far as it can be sent.
    pub(super) request: Option<Request>,
    /// Set while it is with the upstream authority.
    pub(super) asking: Option<Asking>,
    pub(super) answers: JoinSet<Answer>,
    pub(super) waiters: Vec<Waiter>,
    pub(super) backoff: Backoff,
    pub(super) roots: RootsSeen,
}

/// What this process saw of roots. Those of before its start count as seen at its start.
#[derive(Default)]
pub(super) struct RootsSeen {
    /// Since when each root (DER) stands in the bundle.
    pub(super) published: BTreeMap<Vec<u8>, Instant>,
    /// Since when each tainted root (subject key ID) is tainted.
    pub(super) tainted: BTreeMap<String, Instant>,
    /// Tainted upstream, and not in the bundle yet: the active authority has to leave them first.
    pub(super) condemned: BTreeSet<String>,
    /// Every root that the upstream authority named.
    pub(super) of_upstream: BTreeSet<String>,
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
            request: None,
            asking: None,
            answers: JoinSet::new(),
            waiters: Vec::new(),
            backoff: Backoff::default(),
            roots: RootsSeen::default(),
        };
        if let Some(bundle) = &bundle {
            manager.note_published(&bundle.x509_authorities);
            manager.note_taints(bundle).await;
        }
        manager.log_loaded(now);
        // Nobody knows how long before the restart these were published.
        for kind in manager.kinds() {
            if manager.state.state(*kind).prepared.is_some() {
                manager.spread(*kind, Instant::now()).await;
            }
        }
        manager.take_up_request().await?;
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

    pub(super) fn show_active(&self, kind: AuthorityKind, info: &AuthorityInfo, now: SystemTime) {
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
        // With an authority the server starts without waiting for the next one.
        if self.is_asking() && self.state.x509.active().is_none() {
            let answer = self.answered().await;
            self.take_answer(answer).await?;
            self.rotate(AuthorityKind::X509).await?;
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

    /// Notes that the prepared authority stands in the bundle since then.
    pub(super) async fn spread(&mut self, kind: AuthorityKind, since: Instant) {
        let wait = if self.has_audience().await { self.config.spread } else { Duration::ZERO };
        self.spreading.begin(kind, wait.saturating_sub(since.elapsed()));
    }

    /// In doubt there is somebody.
    pub(super) async fn has_audience(&self) -> bool {
        self.store.has_audience().await.unwrap_or(true)
    }

    /// One check of everything. Gives the moment of the next rotation, none after a failure.
    pub(super) async fn pass(&mut self) -> Option<SystemTime> {
        self.prune().await;
        self.look_at_bundle().await;
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
        // What the upstream authority failed to do is noted when it fails, until it succeeds.
        if error.is_some() || !self.backoff.is_failing() {
            self.record(error.as_ref());
        }
        self.taint_condemned().await;
        if error.is_some() { None } else { due }
    }

    pub(super) fn record(&mut self, error: Option<&CaError>) {
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
        let is_upstream = kind == AuthorityKind::X509 && self.upstream.is_some();
        let mut has_prepared = false;
        loop {
            let now = self.clock.now();
            match self.next_step(kind, now) {
                Step::SleepUntil(due) if is_upstream && self.has_request() => {
                    return Ok(self.ask_if_due(now).await?.min(due));
                }
                Step::SleepUntil(due) => return Ok(due),
                Step::Activate if !self.spreading.left(kind).is_zero() => {
                    return Ok(now + self.spreading.left(kind));
                }
                Step::Activate => drop(self.activate(kind).await?),
                Step::Prepare if is_upstream => return self.ask_if_due(now).await,
                // An upstream that gives CAs whose end is near would be asked without end.
                Step::Prepare if has_prepared => return Ok(now),
                Step::Prepare => {
                    self.prepare(kind).await?;
                    has_prepared = true;
                }
            }
        }
    }

    /// Asks the upstream authority unless that is under way, or it failed a short while ago.
    async fn ask_if_due(&mut self, now: SystemTime) -> Result<SystemTime, CaError> {
        let left = self.backoff.left();
        if !self.is_asking() && left.is_zero() {
            self.ask_upstream().await?;
        }
        Ok(now + if left.is_zero() { FAR } else { left })
    }

    fn next_step(&self, kind: AuthorityKind, now: SystemTime) -> Step {
        let state = self.state.state(kind);
        let (Some(active), true) = (&state.active, kind == AuthorityKind::X509 && self.upstream.is_some())
        else {
            return next_step(state.active.map(|info| info.span()), state.prepared.is_some(), now);
        };
        // A prepared authority that leads to a tainted root is as good as none, except near the end.
        let is_late = now > active.span().activate_at();
        let is_good =
            |info: &AuthorityInfo| is_late || !self.is_any_tainted(&self.journal.issuers(&info.authority_id));
        let is_prepared = state.prepared.as_ref().is_some_and(is_good);
        match (self.is_active_tainted(), is_prepared) {
            (true, true) => Step::Activate,
            (true, false) => Step::Prepare,
            (false, is_prepared) => next_step(Some(active.span()), is_prepared, now),
        }
    }
}

/// Journal and bundle hold whole seconds: an authority is the same before and after a restart.
pub(super) fn whole_seconds(at: SystemTime) -> SystemTime {
    let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn report(kind: AuthorityKind, error: &CaError) {
    match kind {
        AuthorityKind::X509 => tracing::error!(%error, "Unable to rotate X509 CA"),
        AuthorityKind::Jwt => tracing::error!(%error, "Unable to rotate JWT key"),
    }
}
