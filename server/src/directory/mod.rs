//! The whole authorisation state in memory, updated by deltas of the change log and never rebuilt.
//!
//! Look-ups take a short read lock and never wait for the database. Expiry is checked at each look-up; a timer tells
//! watching agents of it.

mod apply;
mod contact;
mod federation;
mod follow;
mod intern;
mod list;
mod packed;
#[cfg(test)]
mod several_tests;
mod state;
#[cfg(test)]
mod tests;
mod types;
mod walk;
mod watch;

use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use svid_core::bundle::Bundle;
use svid_core::clock::Clock;
use svid_core::entry::Entry;
use svid_core::id::{SpiffeId, TrustDomain};
use tokio::sync::{Notify, watch as latest};

pub use follow::DirectoryTask;
pub use types::*;
pub use watch::AgentWatch;

use crate::store::{Position, Serial, Store, StoreError};
use contact::{Begun, Contact};
use packed::Key;
use state::State;
use watch::Watches;

/// How long a caller waits for memory to reach the end of the log.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(5);

/// How far a certificate's beginning may lie before its issuance, in seconds.
const MAX_BACK_DATE: i64 = svid_core::rotation::MAX_BACK_DATE.as_secs().cast_signed();

struct Shared {
    store: Store,
    trust_domain: TrustDomain,
    clock: Clock,
    state: RwLock<State>,
    /// Locked after `state`, never before it.
    watches: Mutex<Watches>,
    /// A promotion waits to be written.
    promotions: Notify,
    /// Told of every change to bundles and relationships.
    federation: latest::Sender<()>,
    /// When the log was last read to its end.
    contact: Contact,
}

impl Shared {
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A cheap handle on the directory. Times are Unix seconds.
#[derive(Clone)]
pub struct Directory(Arc<Shared>);

impl Directory {
    /// Loads everything. From here on the store's writes wait until the task, which the caller spawns at once, has
    /// applied them.
    /// # Errors
    /// The database's, and [`StoreError::Corrupt`].
    pub async fn start(
        store: Store,
        trust_domain: &TrustDomain,
        clock: Clock,
    ) -> Result<(Self, DirectoryTask), StoreError> {
        let committed = store.committed();
        let mut state = State::new(trust_domain);
        let begun = Begun::now(clock.now());
        let cursor = store.load(&mut state).await?;
        state.loaded(cursor);
        store.set_applied(cursor.position.seq);
        let shared = Arc::new(Shared {
            store,
            trust_domain: trust_domain.clone(),
            clock,
            state: RwLock::new(state),
            watches: Mutex::default(),
            promotions: Notify::new(),
            federation: latest::Sender::new(()),
            contact: Contact::new(begun),
        });
        Ok((Self(shared.clone()), DirectoryTask { shared, committed }))
    }

    /// The last line of the log that memory has.
    pub fn position(&self) -> Position {
        self.0.read().cursor.position
    }

    /// How old memory is: when the last reading of the log to its end began. What `max_stale` limits.
    pub fn staleness(&self) -> Duration {
        self.0.contact.staleness(self.0.clock.now())
    }

    /// Waits until memory is older than this.
    pub async fn stale_for(&self, limit: Duration) {
        loop {
            let left = limit.saturating_sub(self.staleness());
            if left.is_zero() && self.staleness() > limit {
                return;
            }
            // Suspended machines and set clocks are noticed within the minute.
            tokio::time::sleep(left.clamp(Duration::from_millis(10), Duration::from_secs(60))).await;
        }
    }

    /// False while the log cannot be read: what is answered comes from memory alone.
    pub fn has_database(&self) -> bool {
        self.0.contact.is_well()
    }

    /// Waits until memory has everything that was committed before the call.
    /// # Errors
    /// [`Unavailable`] if the database does not say so in time.
    pub async fn caught_up(&self) -> Result<(), Unavailable> {
        let next = self.0.contact.next();
        tokio::time::timeout(CATCH_UP_TIMEOUT, next).await.unwrap_or(Err(Unavailable::Behind))
    }

    // ---- entries

    /// The entry with this ID, expired or not.
    pub fn entry(&self, id: &str) -> Option<Entry> {
        let state = self.0.read();
        state.handle(&Key::new(id)).map(|handle| state.unpack(handle))
    }

    /// How many entries match.
    pub fn count_entries(&self, filter: &EntryFilter) -> usize {
        self.0.read().count_entries(filter)
    }

    /// A page of the entries that match.
    pub fn list_entries(&self, filter: &EntryFilter, page: Page) -> Listing<Entry> {
        self.0.read().list_entries(filter, page)
    }

    /// Entries with this SPIFFE ID that are not expired: what makes a caller an admin or a downstream server.
    pub fn entries_with_spiffe_id(&self, id: &SpiffeId, now: i64) -> Vec<Entry> {
        let state = self.0.read();
        let Some(number) = state.ids.find(id) else { return Vec::new() };
        let holders = state.ids.get(number).holders.as_slice().iter();
        holders
            .filter(|handle| !state.packed(**handle).is_expired(now))
            .map(|handle| state.unpack(*handle))
            .collect()
    }

    /// Everything the agent may have, in no order.
    pub fn authorized_entries(&self, agent: &SpiffeId, now: i64) -> Vec<Entry> {
        let state = self.0.read();
        state.authorized(agent, now).into_iter().map(|handle| state.unpack(handle)).collect()
    }

    /// The same as a list of revisions.
    pub fn authorized_revisions(&self, agent: &SpiffeId, now: i64) -> Vec<EntryRevision> {
        let state = self.0.read();
        state.authorized(agent, now).into_iter().map(|handle| state.revision(handle)).collect()
    }

    /// One entry, if the agent may have it and is neither banned nor gone: its call may have waited in line since it
    /// was let in.
    pub fn authorized_entry(&self, agent: &SpiffeId, entry_id: &str, now: i64) -> Option<Entry> {
        let state = self.0.read();
        if state.end_reason(agent).is_some() {
            return None;
        }
        let handle = state.handle(&Key::new(entry_id))?;
        state.is_authorized(agent, handle, now).then(|| state.unpack(handle))
    }

    // ---- nodes

    /// A node.
    pub fn node(&self, id: &SpiffeId) -> Option<NodeView> {
        self.0.read().node(id)
    }

    /// Nodes of which a copy may exist and that are not banned, in order of attestation.
    pub fn suspected_nodes(&self) -> Vec<NodeView> {
        let state = self.0.read();
        let suspected = state.nodes_by_row.values().filter(|id| {
            state.nodes.get(*id).is_some_and(|node| node.suspected_at > 0 && node.serial != Serial::Banned)
        });
        suspected.filter_map(|id| state.node(id)).collect()
    }

    /// How many nodes match.
    pub fn count_nodes(&self, filter: &NodeFilter) -> usize {
        self.0.read().count_nodes(filter)
    }

    /// A page of the nodes that match.
    pub fn list_nodes(&self, filter: &NodeFilter, page: Page) -> Listing<NodeView> {
        self.0.read().list_nodes(filter, page)
    }

    /// Checks an agent's certificate against memory alone. A next serial number becomes the current one at once; that
    /// is written behind. `not_after` is the certificate's.
    /// # Errors
    /// Why not. A caller that passes on anything but [`AgentDenied::Expired`] uses [`Self::verify_agent`] instead,
    /// since agents drop their identity over it.
    pub fn check_agent(
        &self,
        id: &SpiffeId,
        serial: &str,
        not_after: i64,
        now: i64,
    ) -> Result<AgentOk, AgentDenied> {
        if not_after < now {
            return Err(AgentDenied::Expired);
        }
        let (is_next, used) = {
            let state = self.0.read();
            let node = state.nodes.get(id).ok_or(AgentDenied::NotAttested)?;
            match &node.serial {
                Serial::Banned => return Err(AgentDenied::Banned),
                Serial::Active { current, .. } if current == serial => {
                    (false, Some((node.used, node.can_reattest)))
                }
                Serial::Active { next, .. } => (next.as_ref().is_some_and(|(next, _)| next == serial), None),
            }
        };
        match used {
            None if is_next => self.promote(id, serial),
            None => Err(AgentDenied::NotActive),
            Some((is_used, can_reattest)) => {
                if !is_used {
                    self.note_use(id, serial);
                }
                Ok(AgentOk { can_reattest, promoted: false })
            }
        }
    }

    /// The first call with a certificate: from now on its answer is not given again, and older ones are suspicious.
    fn note_use(&self, id: &SpiffeId, serial: &str) {
        let mut state = self.0.write();
        let Some(node) = state.nodes.get_mut(id).filter(|node| node.is_current(serial) && !node.used) else {
            return;
        };
        node.used = true;
        state.used.insert(id.clone(), serial.to_owned());
        drop(state);
        self.0.promotions.notify_one();
    }

    /// Between the two locks the node may have changed, so everything is asked again.
    fn promote(&self, id: &SpiffeId, serial: &str) -> Result<AgentOk, AgentDenied> {
        let mut state = self.0.write();
        let node = state.nodes.get_mut(id).ok_or(AgentDenied::NotAttested)?;
        let can_reattest = node.can_reattest;
        if node.promote(serial) {
            state.promoted.insert(id.clone(), serial.to_owned());
            drop(state);
            self.0.promotions.notify_one();
            return Ok(AgentOk { can_reattest, promoted: true });
        }
        match &node.serial {
            Serial::Banned => Err(AgentDenied::Banned),
            Serial::Active { current, .. } if current == serial => {
                Ok(AgentOk { can_reattest, promoted: false })
            }
            Serial::Active { .. } => Err(AgentDenied::NotActive),
        }
    }

    /// As [`Self::check_agent`], but a denial that makes an agent drop its identity is never given from stale memory:
    /// the log is read to its end first.
    /// # Errors
    /// The denial, or that it cannot be told for sure.
    pub async fn verify_agent(
        &self,
        id: &SpiffeId,
        serial: &str,
        not_after: i64,
        now: i64,
    ) -> Result<AgentOk, AgentRefusal> {
        match self.check_agent(id, serial, not_after, now) {
            Ok(ok) => return Ok(ok),
            Err(AgentDenied::Expired) => return Err(AgentRefusal::Denied(AgentDenied::Expired)),
            Err(_) => {}
        }
        self.caught_up().await.map_err(AgentRefusal::Unavailable)?;
        self.check_agent(id, serial, not_after, now).map_err(AgentRefusal::Denied)
    }

    /// As [`Self::verify_agent`], for the call with which a certificate that verified is shown: a node that came back with
    /// a backup takes the first one that was issued after it, since its agent may have renewed meanwhile. That is
    /// in the database before the call goes on.
    /// # Errors
    /// The denial, or that it cannot be told for sure.
    pub async fn admit_agent(&self, cert: &AgentCert<'_>, now: i64) -> Result<AgentOk, AgentRefusal> {
        let AgentCert { id, serial, not_before, not_after } = *cert;
        let checked = self.verify_agent(id, serial, not_after, now).await;
        if !matches!(checked, Err(AgentRefusal::Denied(AgentDenied::NotActive)))
            || !self.may_adopt(id, not_before)
        {
            return checked;
        }
        let adopted = self.0.store.adopt_serial(id, serial, not_after).await;
        if adopted.map_err(|error| AgentRefusal::Unavailable(error.into()))? {
            tracing::info!(
                agent_id = %id,
                svid_serial_num = %serial,
                "Agent goes on with a certificate that was issued after the restored backup"
            );
        }
        // Whoever was first, here or on another server: memory knows it now.
        self.verify_agent(id, serial, not_after, now).await
    }

    /// Whether the node waits for a certificate that was issued after the backup from which it came back.
    fn may_adopt(&self, id: &SpiffeId, not_before: i64) -> bool {
        let from = self.0.read().nodes.get(id).map_or(0, |node| node.adopt_from);
        from > 0 && not_before >= from.saturating_sub(MAX_BACK_DATE)
    }

    // ---- bundles

    /// A trust domain's bundle.
    pub fn bundle(&self, trust_domain: &TrustDomain) -> Option<Arc<Bundle>> {
        self.0.read().bundles.get(trust_domain).cloned()
    }

    /// All bundles in order of the trust domain's name, the own one included.
    pub fn list_bundles(&self) -> Vec<Arc<Bundle>> {
        self.0.read().bundles.values().cloned().collect()
    }

    // ---- watches

    /// Follows what changes for an agent. `since`: what it has; without it the first delta is a snapshot.
    pub fn watch_agent(&self, agent: &SpiffeId, since: Option<Position>) -> AgentWatch {
        AgentWatch::open(&self.0, agent, since)
    }

    /// Ends all open watches, for a server that stops: agents come back somewhere else.
    pub fn end_watches(&self) {
        watch::lock(&self.0.watches).all().for_each(|watch| watch.end(EndReason::Closed));
    }
}
