//! The half for what outlives the process, and for what is done ahead of an outage.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt as _;
use svid_core::bundle::Bundle;
use svid_proto::svid::sync::v1::Position;
use tracing::debug;

use super::jwt::{JwtKey, KeptJwt, kid};
use super::metrics::amount;
use super::{AgentEntry, Bundles, Cache, Minted, State, X509Identity};
use crate::stored::Restored;

/// JWT-SVIDs that are renewed at the same time.
const JWT_WORKERS: usize = 8;
/// How long a renewal ahead may take, and the pause after one that failed.
const JWT_RETRY: Duration = Duration::from_secs(5);
/// How often to look at least and at most.
const JWT_LOOK: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// All that a process leaves to the next, shared with the cache.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Entries and their X509-SVIDs.
    pub entries: Vec<(Arc<AgentEntry>, Option<Arc<X509Identity>>)>,
    /// JWT-SVIDs.
    pub jwts: Vec<Arc<KeptJwt>>,
    /// All bundles.
    pub bundles: Arc<Bundles>,
    /// How far the server was followed; what is above may be newer.
    pub position: Option<Position>,
}

impl Cache {
    /// Completes when something changed that [`Cache::snapshot`] shows.
    pub async fn wait_changed(&self) {
        self.0.changed.notified().await;
    }

    /// What there is to leave behind.
    pub fn snapshot(&self) -> Snapshot {
        // First: an older position only repeats what is known, a newer one would skip what is not.
        let position = self.position();
        let jwts = self.jwt_cache().all();
        let state = self.state();
        let entries = state.records.iter().map(|record| (Arc::clone(&record.entry), record.svid.clone()));
        Snapshot { entries: entries.collect(), jwts, bundles: Arc::clone(&state.bundles), position }
    }

    /// Takes in what an earlier process left behind.
    pub fn restore(&self, restored: Restored) {
        let now = self.0.options.clock.now();
        let (entries, svids): (Vec<_>, Vec<_>) = restored
            .entries
            .into_iter()
            .map(|(id, (entry, svid))| (Arc::unwrap_or_clone(entry), svid.map(|svid| (id, svid))))
            .unzip();
        self.apply(entries, &[]);
        let own = restored.own.map(|stored| join(&self.bundles().borrow().own, &stored));
        self.set_bundles(own, restored.federated.into_values().map(Arc::unwrap_or_clone).collect(), &[]);
        let minted: Vec<Minted> = {
            let state = self.state();
            let svids = svids.into_iter().flatten();
            let minted = svids.filter_map(|(id, svid)| {
                let entry = Arc::clone(&state.records.get(&id)?.entry);
                Some(Minted { entry, identity: Some(Arc::into_inner(svid)?) })
            });
            minted.filter(|minted| !minted.is_over(now)).collect()
        };
        self.store(minted);
        self.retaint();
        restored.jwts.into_values().for_each(|jwt| self.keep_jwt(jwt));
        self.set_position(restored.position);
    }

    /// What was stored before its authority was tainted is to be replaced as well.
    fn retaint(&self) {
        let now = self.0.options.clock.now();
        let mut state = self.state();
        let State { records, groups, bundles, taints, .. } = &mut *state;
        self.replace_tainted(taints, &taints.x509(), records, now);
        groups.bundles_changed(records, bundles, now);
    }

    pub(super) fn keep_jwt(&self, jwt: Arc<KeptJwt>) {
        // It was under way while its key was tainted.
        if kid(&jwt.svid.token).is_some_and(|kid| self.state().taints.has_kid(&kid)) {
            return;
        }
        let now = self.0.options.clock.now();
        let mut cache = self.jwt_cache();
        cache.insert(jwt, now);
        self.0.metrics.jwt_svids.set(amount(cache.len()));
    }

    /// How far the server was followed.
    pub fn position(&self) -> Option<Position> {
        self.0.position.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes how far the server was followed, once what came until then is in the cache.
    pub fn set_position(&self, position: Option<Position>) {
        *self.0.position.lock().unwrap_or_else(PoisonError::into_inner) = position;
        self.0.changed.notify_one();
    }

    /// When the first X509-SVID of a workload ends; `None` without one.
    pub fn first_end(&self) -> Option<SystemTime> {
        let state = self.state();
        state.records.iter().filter_map(|record| Some(record.svid.as_ref()?.svid.not_after())).min()
    }

    /// Renews the JWT-SVIDs in use ahead of their end, without an end.
    pub async fn renew_jwts(&self) {
        loop {
            let now = self.0.options.clock.now();
            let due = self.jwt_cache().next_due(now);
            let pause = due.map_or(JWT_LOOK.1, |due| due.duration_since(now).unwrap_or_default());
            tokio::time::sleep(pause.clamp(JWT_LOOK.0, JWT_LOOK.1)).await;
            self.renew_due_jwts().await;
        }
    }

    async fn renew_due_jwts(&self) {
        // Without a server there is nothing to be had, and the tokens stay due.
        if !self.0.jwt_source.get().is_some_and(|source| source.is_reachable()) {
            return;
        }
        let now = self.0.options.clock.now();
        let due = self.jwt_cache().take_due(now, now + JWT_RETRY);
        let authorized = |jwt: &Arc<KeptJwt>| self.state().records.get(&jwt.entry).is_some();
        let due: Vec<_> = due.into_iter().filter(authorized).collect();
        let renewals = due.into_iter().map(|jwt| async move {
            let key = JwtKey::new(&jwt.svid.id, &jwt.audience);
            let flight = self.flight(key, &jwt.entry, &jwt.audience);
            if let Ok(Err(error)) = tokio::time::timeout(JWT_RETRY, flight).await {
                debug!(%error, spiffe_id = %jwt.svid.id, "Unable to renew a JWT-SVID ahead");
            }
        });
        futures_util::stream::iter(renewals).buffer_unordered(JWT_WORKERS).collect::<()>().await;
    }
}

/// The stored bundle under the authorities that the agent knows now: those were written down at once, the stored ones
/// a moment later.
fn join(now: &Bundle, stored: &Bundle) -> Bundle {
    let mut joined = stored.clone();
    joined.x509_authorities = now.x509_authorities.clone();
    for authority in &mut joined.x509_authorities {
        let is_same = |other: &&svid_core::bundle::X509Authority| other.der() == authority.der();
        authority.tainted |= stored.x509_authorities.iter().find(is_same).is_some_and(|other| other.tainted);
    }
    joined
}
