//! What the agent may serve: entries, their SVIDs and the bundles; who waits for what.
//!
//! One lock guards all of it and is never held across an `.await`; what a workload sees is built whole and handed
//! out through a `watch` channel that all callers with the same selectors share.

mod groups;
mod jwt;
mod metrics;
mod records;
mod stored;
mod subscription;
mod taint;
mod types;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use futures_util::FutureExt as _;
use futures_util::future::WeakShared;
use svid_core::bundle::Bundle;
use svid_core::clock::Clock;
use svid_core::entry::EntryId;
use svid_core::id::TrustDomain;
use svid_core::selector::SelectorSet;
use svid_daemon::metrics::Metrics;
use svid_proto::svid::sync::v1::Position;
use tokio::sync::{Notify, watch};
use tracing::{debug, info, warn};

use groups::Groups;
pub use jwt::KeptJwt;
use jwt::{Fetch, Flight, JwtCache, JwtKey, Lookup};
use metrics::{CacheMetrics, EntryCounters, amount};
use records::Records;
use taint::Taints;

pub use records::{Minted, renewal_draw};
pub use stored::Snapshot;
pub use subscription::Subscription;
pub(crate) use taint::chains_to;
pub use types::{
    AgentEntry, Bundles, CacheStats, Identity, JwtFetchError, JwtSvid, WorkloadUpdate, X509Identity,
};

/// How long a JWT-SVID request may take when nothing is cached.
const JWT_TIMEOUT: Duration = Duration::from_secs(30);

/// Where JWT-SVIDs come from.
#[async_trait]
pub trait JwtSource: Send + Sync {
    /// Asks the server; repeats what may succeed later, for as long as the caller waits.
    /// # Errors
    /// [`JwtFetchError`] if repeating makes no sense.
    async fn fetch(&self, entry: &EntryId, audience: &[String]) -> Result<JwtSvid, JwtFetchError>;
    /// Whether asking is likely to bring an answer. If not, a token that is still valid is given without trying.
    fn is_reachable(&self) -> bool {
        true
    }
}

/// What a cache is made with.
#[derive(Clone, Debug)]
pub struct CacheOptions {
    /// Soft limit: SVIDs with a subscriber are never evicted.
    pub x509_svid_cache_max_size: usize,
    /// Hard limit.
    pub jwt_svid_cache_max_size: usize,
    /// How much validity should always be left.
    pub availability_target: Option<Duration>,
    /// How long to wait for the server when an unexpired token is cached.
    pub jwt_svid_cache_hit_timeout: Duration,
    /// Where now comes from.
    pub clock: Clock,
    /// Counts what comes and goes.
    pub metrics: Metrics,
}

impl Default for CacheOptions {
    fn default() -> Self {
        Self {
            x509_svid_cache_max_size: 1000,
            jwt_svid_cache_max_size: 1000,
            availability_target: None,
            jwt_svid_cache_hit_timeout: JWT_TIMEOUT,
            clock: Clock::system(),
            metrics: Metrics::disabled(),
        }
    }
}

struct State {
    records: Records,
    groups: Groups,
    bundles: Arc<Bundles>,
    taints: Taints,
    tick: u64,
}

struct Inner {
    options: CacheOptions,
    state: Mutex<State>,
    jwt: Mutex<JwtCache>,
    /// JWT-SVIDs being fetched. They end with the last caller who waits.
    flights: Mutex<HashMap<JwtKey, WeakShared<Fetch>>>,
    jwt_source: OnceLock<Arc<dyn JwtSource>>,
    bundles: watch::Sender<Arc<Bundles>>,
    wanted: Notify,
    /// Something changed that outlives the process.
    changed: Notify,
    position: Mutex<Option<Position>>,
    metrics: CacheMetrics,
}

/// The agent's cache. Clones share it.
#[derive(Clone)]
pub struct Cache(Arc<Inner>);

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl Cache {
    /// An empty cache that knows the own trust domain's bundle.
    pub fn new(own: Arc<Bundle>, options: CacheOptions) -> Self {
        let bundles = Arc::new(Bundles { own, federated: BTreeMap::new() });
        let mut taints = Taints::default();
        taints.learn(&bundles.own, &bundles.own);
        let state = State {
            records: Records::counting(EntryCounters::new(&options.metrics)),
            groups: Groups::default(),
            bundles: Arc::clone(&bundles),
            taints,
            tick: 0,
        };
        Self(Arc::new(Inner {
            jwt: Mutex::new(JwtCache::new(options.jwt_svid_cache_max_size)),
            flights: Mutex::default(),
            metrics: CacheMetrics::new(&options.metrics),
            options,
            state: Mutex::new(state),
            jwt_source: OnceLock::new(),
            bundles: watch::Sender::new(bundles),
            wanted: Notify::new(),
            changed: Notify::new(),
            position: Mutex::default(),
        }))
    }

    /// What the cache counts into.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.0.options.metrics
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic under the lock leaves at worst a stale mark behind, which the next reconciliation repairs.
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.tick += 1;
        state
    }

    fn jwt_cache(&self) -> MutexGuard<'_, JwtCache> {
        self.0.jwt.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows what a workload with `selectors` is given.
    pub fn subscribe(&self, selectors: Arc<SelectorSet>) -> Subscription {
        let now = self.0.options.clock.now();
        let (receiver, fetch) = {
            let mut state = self.state();
            let State { records, groups, bundles, tick, .. } = &mut *state;
            groups.join(&selectors, records, bundles, now, *tick)
        };
        if fetch {
            self.0.wanted.notify_one();
        }
        if !receiver.borrow().complete {
            debug!("Waiting for SVID to get cached");
        }
        Subscription::new(self.clone(), selectors, receiver)
    }

    fn leave(&self, selectors: &SelectorSet) {
        let mut state = self.state();
        let State { records, groups, .. } = &mut *state;
        groups.leave(selectors, records);
    }

    /// What a workload with `selectors` gets right now, without waiting for what is missing.
    pub fn current(&self, selectors: &SelectorSet) -> Arc<WorkloadUpdate> {
        let now = self.0.options.clock.now();
        let mut state = self.state();
        let State { records, groups, bundles, .. } = &mut *state;
        groups.current(selectors, records, bundles, now)
    }

    /// The entries that apply to a workload with `selectors`, by id ascending; none of those for SVID stores.
    pub fn matching_entries(&self, selectors: &SelectorSet) -> Vec<Arc<AgentEntry>> {
        let state = self.state();
        let ids = state.records.matching(selectors);
        ids.iter().filter_map(|id| Some(Arc::clone(&state.records.get(id)?.entry))).collect()
    }

    /// All bundles, now and whenever one changes.
    pub fn bundles(&self) -> watch::Receiver<Arc<Bundles>> {
        self.0.bundles.subscribe()
    }

    /// How full the caches are.
    pub fn stats(&self) -> CacheStats {
        let (entries, x509_svids) = {
            let state = self.state();
            (state.records.workload_entries(), state.records.svids())
        };
        CacheStats { entries, x509_svids, jwt_svids: self.jwt_cache().len(), store_svids: 0 }
    }
}

/// The half for the tasks that talk to the server.
impl Cache {
    /// Sets where JWT-SVIDs come from; the first call counts.
    pub fn set_jwt_source(&self, source: Arc<dyn JwtSource>) {
        // A second source would be a second server connection; there is one per process.
        let _ = self.0.jwt_source.set(source);
    }

    /// What is known of each entry: id, revision, creation time.
    pub fn revisions(&self) -> Vec<(EntryId, i64, i64)> {
        let state = self.state();
        let row = |entry: &AgentEntry| (entry.id.clone(), entry.revision, entry.created_at);
        state.records.iter().map(|record| row(&record.entry)).collect()
    }

    /// The trust domains that some entry federates with, each once.
    pub fn federated_names(&self) -> Vec<TrustDomain> {
        self.state().records.federated_names().into_iter().cloned().collect()
    }

    /// Takes in entries that came or changed, and forgets those that went.
    pub fn apply(&self, upserts: Vec<AgentEntry>, removed: &[EntryId]) {
        let now = self.0.options.clock.now();
        let mut state = self.state();
        let State { records, groups, bundles, tick, .. } = &mut *state;
        let mut changed: Vec<SelectorSet> = Vec::new();
        let stays = |id: &EntryId| upserts.iter().any(|entry| entry.id == *id);
        for id in removed.iter().filter(|id| !stays(id)) {
            changed.extend(records.remove(id));
        }
        for entry in upserts {
            changed.extend(records.upsert(entry));
        }
        if !changed.is_empty() && drop_unasked(bundles, records) {
            self.0.bundles.send_replace(Arc::clone(bundles));
        }
        groups.entries_changed(&changed, records, bundles, now, *tick);
        records.prefetch(self.0.options.x509_svid_cache_max_size);
        let outdated = records.take_outdated();
        if outdated > 0 {
            self.0.metrics.outdated.sample(amount(outdated));
        }
        self.0.metrics.sizes(records);
        drop(state);
        self.0.wanted.notify_one();
        self.0.changed.notify_one();
    }

    /// Sets the own bundle, changes federated ones and withdraws some; those that no entry asks for go as well. What
    /// a tainted authority issued is to be replaced from now on.
    pub fn set_bundles(&self, own: Option<Bundle>, federated: Vec<Bundle>, withdrawn: &[TrustDomain]) {
        let now = self.0.options.clock.now();
        let mut state = self.state();
        let names = state.records.federated_names();
        let mut next = Bundles::clone(&state.bundles);
        if let Some(own) = own.filter(|own| is_another(own, &next.own)) {
            next.own = Arc::new(own);
        }
        for bundle in federated {
            let known = next.federated.get(&bundle.trust_domain);
            if known.is_none_or(|known| is_another(&bundle, known)) {
                next.federated.insert(bundle.trust_domain.clone(), Arc::new(bundle));
            }
        }
        next.federated.retain(|name, _| names.contains(name) && !withdrawn.contains(name));
        if next == *state.bundles {
            return;
        }
        let before = std::mem::replace(&mut state.bundles, Arc::new(next));
        let State { records, groups, bundles, taints, .. } = &mut *state;
        let news = taints.learn(&before.own, &bundles.own);
        self.replace_tainted(taints, &news.x509, records, now);
        groups.bundles_changed(records, bundles, now);
        self.0.bundles.send_replace(Arc::clone(bundles));
        drop(state);
        self.drop_tainted_tokens(&news.jwt);
        self.0.wanted.notify_one();
        self.0.changed.notify_one();
    }

    fn replace_tainted(&self, taints: &Taints, x509: &[String], records: &mut Records, now: SystemTime) {
        let begun = Instant::now();
        let tainted = taints.schedule(x509, records, now);
        if !tainted.is_empty() {
            self.0.metrics.tainted_x509.sample(amount(tainted.len()));
            self.0.metrics.process_tainted_x509.done("OK", begun.elapsed());
        }
    }

    fn drop_tainted_tokens(&self, kids: &[String]) {
        if kids.is_empty() {
            return;
        }
        let begun = Instant::now();
        let dropped = {
            let mut cache = self.jwt_cache();
            let dropped = cache.remove_by_kid(|kid| kids.iter().any(|tainted| tainted == kid));
            self.0.metrics.jwt_svids.set(amount(cache.len()));
            dropped
        };
        self.0.metrics.tainted_jwt.sample(amount(dropped));
        self.0.metrics.process_tainted_jwt.done("OK", begun.elapsed());
        if dropped > 0 {
            info!(
                jwt_authority_key_ids = %kids.join(","),
                tainted_jwt_svids = dropped,
                "JWT-SVIDs were removed from the JWT cache because they were issued by a tainted authority"
            );
        }
    }

    /// Completes when something may have to be fetched.
    pub async fn wait_wanted(&self) {
        self.0.wanted.notified().await;
    }

    /// When something has to be fetched or renewed next.
    pub fn next_due(&self) -> Option<SystemTime> {
        let now = self.0.options.clock.now();
        self.state().records.next_due(now)
    }

    /// Up to `limit` entries to fetch SVIDs for, the most urgent first. They stay wanted until [`Cache::store`].
    pub fn wanted(&self, limit: usize) -> Vec<Arc<AgentEntry>> {
        let now = self.0.options.clock.now();
        let mut state = self.state();
        let expiring = state.records.mark_due(now);
        if expiring > 0 {
            self.0.metrics.expiring.sample(amount(expiring));
        }
        state.records.wanted(now, limit)
    }

    /// When the SVID held for an entry ends; tells a renewal from a first SVID in the log.
    pub fn svid_end(&self, id: &EntryId) -> Option<SystemTime> {
        Some(self.state().records.get(id)?.svid.as_ref()?.svid.not_after())
    }

    /// Takes in what came of fetching.
    pub fn store(&self, minted: Vec<Minted>) {
        let now = self.0.options.clock.now();
        let target = self.0.options.availability_target;
        let mut state = self.state();
        let State { records, groups, bundles, taints, tick, .. } = &mut *state;
        let mut ids = Vec::with_capacity(minted.len());
        for one in minted {
            let id = one.entry.id.clone();
            let is_hit = one.identity.as_ref().is_some_and(|identity| taints.is_hit(&identity.svid));
            if records.store(one, now, *tick, target, is_hit) {
                ids.push(id);
            }
        }
        groups.svids_changed(&ids, records, bundles, now);
        self.0.metrics.sizes(records);
        drop(state);
        self.0.changed.notify_one();
    }

    /// Drops what is over and evicts what is too much. To be called every few seconds.
    pub fn maintain(&self) {
        let now = self.0.options.clock.now();
        let max = self.0.options.x509_svid_cache_max_size;
        let mut state = self.state();
        let State { records, groups, bundles, .. } = &mut *state;
        let mut gone = records.drop_expired(now);
        gone.extend(records.evict(max));
        groups.svids_changed(&gone, records, bundles, now);
        let fetch = records.prefetch(max) || !gone.is_empty();
        self.0.metrics.sizes(records);
        drop(state);
        if fetch {
            self.0.wanted.notify_one();
        }
    }
}

/// JWT-SVIDs.
impl Cache {
    /// A JWT-SVID of `entry` for `audience`, from the cache or the server.
    /// # Errors
    /// [`JwtFetchError`] if the server gave none and no unexpired one is cached.
    pub async fn jwt_svid(&self, entry: &AgentEntry, audience: &[String]) -> Result<JwtSvid, JwtFetchError> {
        let key = JwtKey::new(&entry.spiffe_id, audience);
        let cached = match self.jwt_cache().get(&key, self.0.options.clock.now()) {
            Lookup::Fresh(svid) => return Ok(svid),
            Lookup::Ageing(svid) => Some(svid),
            Lookup::Missing => None,
        };
        let source = self.0.jwt_source.get();
        if let Some(svid) = &cached
            && source.is_some_and(|source| !source.is_reachable())
        {
            return Ok(svid.clone());
        }
        let timeout = match cached {
            Some(_) => self.0.options.jwt_svid_cache_hit_timeout.min(JWT_TIMEOUT),
            None => JWT_TIMEOUT,
        };
        let expired = || JwtFetchError::Server {
            code: tonic::Code::DeadlineExceeded,
            message: "the server did not answer in time".into(),
        };
        let fetched = tokio::time::timeout(timeout, self.flight(key, &entry.id, audience)).await;
        fetched.unwrap_or_else(|_| Err(expired())).or_else(|error| {
            cached
                .inspect(|_| {
                    warn!(error = %error, spiffe_id = %entry.spiffe_id, "Unable to renew JWT-SVID; returning the cached copy");
                })
                .ok_or(error)
        })
    }

    /// The fetch that is under way for this identity and audience, or a new one: however many ask at once, the server
    /// is asked once.
    fn flight(&self, key: JwtKey, entry: &EntryId, audience: &[String]) -> Flight {
        let mut flights = self.0.flights.lock().unwrap_or_else(PoisonError::into_inner);
        let under_way = flights.get(&key).and_then(WeakShared::upgrade);
        if let Some(flight) = under_way.filter(|flight| flight.peek().is_none()) {
            return flight;
        }
        flights.retain(|_, flight| flight.upgrade().is_some());
        let (cache, id, audience) = (self.clone(), entry.clone(), audience.to_vec());
        let fetch: Fetch = async move { cache.fetch_jwt(&id, &audience).await }.boxed();
        let flight = fetch.shared();
        flights.extend(flight.downgrade().map(|weak| (key, weak)));
        flight
    }

    async fn fetch_jwt(&self, entry: &EntryId, audience: &[String]) -> Result<JwtSvid, JwtFetchError> {
        let source = self.0.jwt_source.get().ok_or(JwtFetchError::NotReady)?;
        let svid = source.fetch(entry, audience).await?;
        // The server's word counts for whose token this is, as in SPIRE.
        let kept = KeptJwt { entry: entry.clone(), audience: audience.to_vec(), svid: svid.clone() };
        self.keep_jwt(Arc::new(kept));
        self.0.changed.notify_one();
        Ok(svid)
    }
}

/// Forgets the bundles that no entry asks for any more, so that an old one cannot come back. True if there were some.
fn drop_unasked(bundles: &mut Arc<Bundles>, records: &Records) -> bool {
    if bundles.federated.is_empty() {
        return false;
    }
    let names = records.federated_names();
    if bundles.federated.keys().all(|name| names.contains(name)) {
        return false;
    }
    Arc::make_mut(bundles).federated.retain(|name, _| names.contains(name));
    true
}

/// The sequence number alone is no difference that anybody could see.
fn is_another(new: &Bundle, old: &Bundle) -> bool {
    new.x509_authorities != old.x509_authorities
        || new.jwt_authorities != old.jwt_authorities
        || new.refresh_hint != old.refresh_hint
}

#[cfg(test)]
mod tests;
