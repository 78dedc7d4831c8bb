//! An agent's old certificate that shows up after its successor was used: a copy of the agent's data may exist.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use svid_core::clock::Clock;
use svid_core::id::SpiffeId;
use svid_daemon::metrics::{Counter, Metrics};

use crate::api::caller::PeerCert;
use crate::directory::Directory;
use crate::store::{Serial, Store, StoreError};

/// A suspected clone is written down and logged this often, however often it calls.
const TELL_AGAIN: Duration = Duration::from_secs(60);
/// The database is asked this often about an agent whose old certificate turned out to be no sign of a clone.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Agents that are remembered at a time. Beyond them nothing is asked, so that a crowd costs no memory.
const MAX_REMEMBERED: usize = 4096;

/// What was found out about an agent, and when.
#[derive(Clone, Copy)]
struct Found {
    at: Instant,
    /// `None` while the database is being asked.
    clone: Option<bool>,
}

/// Watches for clones of agents.
#[derive(Clone)]
pub struct Clones {
    store: Store,
    directory: Directory,
    clock: Clock,
    counter: Counter,
    recent: Arc<Mutex<HashMap<SpiffeId, Found>>>,
}

/// What to do about a call.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Ask,
    Count,
    Nothing,
}

impl Clones {
    /// Counts into `<prefix>.agent.suspected_clone`.
    pub fn new(store: Store, directory: Directory, clock: Clock, metrics: &Metrics) -> Self {
        let counter = metrics.counter(&["agent", "suspected_clone"], &[]);
        Self { store, directory, clock, counter, recent: Arc::default() }
    }

    /// A call was refused because the number of its certificate is neither the agent's current nor its next one. The
    /// caller has proved that it holds the certificate's key, so this is no stranger's claim. Returns at once.
    pub fn refused(&self, cert: &PeerCert, address: Option<SocketAddr>) {
        match self.next(&cert.id, Instant::now()) {
            Next::Nothing => {}
            Next::Count => self.counter.add(1),
            Next::Ask => {
                let (clones, cert) = (self.clone(), cert.clone());
                tokio::spawn(async move { clones.ask(&cert, address).await });
            }
        }
    }

    fn next(&self, agent: &SpiffeId, now: Instant) -> Next {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        match recent.get(agent) {
            Some(Found { clone: None, .. }) => return Next::Nothing,
            Some(Found { clone: Some(true), at }) if now < *at + TELL_AGAIN => return Next::Count,
            Some(Found { clone: Some(false), at }) if now < *at + ASK_AGAIN => return Next::Nothing,
            _ => {}
        }
        if recent.len() >= MAX_REMEMBERED {
            recent.retain(|_, found| found.clone.is_none() || now < found.at + TELL_AGAIN);
        }
        if recent.len() >= MAX_REMEMBERED && !recent.contains_key(agent) {
            return Next::Nothing;
        }
        recent.insert(agent.clone(), Found { at: now, clone: None });
        Next::Ask
    }

    async fn ask(&self, cert: &PeerCert, address: Option<SocketAddr>) {
        let asked = self.is_clone(cert).await;
        let current = asked.unwrap_or_else(|error| {
            tracing::warn!(%error, agent_id = %cert.id, "A suspected clone cannot be looked up");
            None
        });
        let found = Found { at: Instant::now(), clone: Some(current.is_some()) };
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).insert(cert.id.clone(), found);
        let Some(current) = current else { return };
        self.counter.add(1);
        tracing::warn!(
            agent_id = %cert.id,
            svid_serial_num = %cert.serial,
            current_serial_num = %current,
            caller_addr = address.map(tracing::field::display),
            "Suspected clone: an old agent SVID was used after its successor. A copy of the agent's data may exist; \
             ban or evict the agent"
        );
    }

    /// The agent's current serial number if that one was in use before `cert` was. Memory was brought up to date when
    /// the call was refused; that another server saw the current one in use only the database knows.
    async fn is_clone(&self, cert: &PeerCert) -> Result<Option<String>, StoreError> {
        let Some(node) = self.directory.node(&cert.id) else { return Ok(None) };
        let Serial::Active { current, .. } = node.serial else { return Ok(None) };
        let noted = self.store.suspect_clone(&cert.id, &cert.serial, node.used, self.clock.unix()).await?;
        Ok(noted.then_some(current))
    }
}
