//! This server among the servers of its trust domain: its id is claimed, kept by heartbeats, and given back.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use svid_core::clock::unix_seconds;
use tokio::time::Instant;

use super::RunError;
use super::identity::Place;
use crate::ca::{AuthorityKind, Ca};
use crate::clock_guard::ClockGuard;
use crate::directory::Directory;
use crate::store::{
    AuthorityIds, Claimed, Heartbeat, Holder, SERVER_LEASE, ServerClaim, ServerFacts, Store, StoreError,
};

/// How often this server says that it runs: a sixth of the lease.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How often a holder that may be dead is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Giving the id back takes no longer, or the lease has to run out.
const RELEASE: Duration = Duration::from_secs(2);

/// A held id.
pub(super) struct Presence {
    store: Store,
    server_id: String,
    holder: String,
    facts: ServerFacts,
}

impl Presence {
    /// Claims the id of this data directory. One that another server holds is watched first: a server that was killed on
    /// another machine, or before a reboot, is silent.
    /// # Errors
    /// [`RunError::IdHeld`] if the other one lives.
    pub(super) async fn claim(
        store: &Store,
        server_id: &str,
        data_dir: &Path,
        facts: ServerFacts,
    ) -> Result<Self, RunError> {
        let place = Place::of(data_dir);
        let presence = Self {
            store: store.clone(),
            server_id: server_id.to_owned(),
            holder: uuid::Uuid::new_v4().to_string(),
            facts,
        };
        let lease = Duration::from_secs(SERVER_LEASE.unsigned_abs());
        let mut watched: Option<(Holder, Instant)> = None;
        loop {
            let silent = watched.as_ref().filter(|(_, since)| since.elapsed() >= lease);
            let dead = silent.map(|(holder, _)| holder.clone());
            match store.claim_server(presence.to_claim(&place, store.now().await?, dead)).await? {
                Claimed::Yes => return Ok(presence),
                Claimed::Held(now) => match &watched {
                    Some((before, _)) if *before != now => {
                        return Err(RunError::IdHeld {
                            server_id: server_id.to_owned(),
                            host: now.host,
                            data_dir: data_dir.display().to_string(),
                        });
                    }
                    Some(_) => {}
                    None => {
                        tracing::info!(
                            server_id,
                            host = %now.host,
                            wait_s = SERVER_LEASE,
                            "Another server held this server id a moment ago; waiting to see whether it still runs"
                        );
                        watched = Some((now, Instant::now()));
                    }
                },
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn to_claim(&self, place: &Place, now: i64, watched: Option<Holder>) -> ServerClaim {
        ServerClaim {
            server_id: self.server_id.clone(),
            host: place.shown.clone(),
            place: place.exact.clone(),
            holder: self.holder.clone(),
            now,
            watched,
            facts: self.facts.clone(),
        }
    }

    /// Says again and again that this server runs. A lost database is no reason to stop: memory goes on serving.
    /// Returns when another server has taken the id.
    pub(super) async fn keep(&self, directory: &Directory, ca: &Arc<OnceLock<Ca>>, guard: &ClockGuard) {
        let mut failed = false;
        loop {
            match self.beat(directory, ca.get(), guard).await {
                Ok(()) => failed = false,
                Err(StoreError::ServerIdHeld(_)) => return,
                Err(error) => {
                    if !std::mem::replace(&mut failed, true) {
                        let error = svid_daemon::log::chain(&error);
                        tracing::warn!(%error, "Heartbeats fail");
                    }
                }
            }
            tokio::time::sleep(HEARTBEAT).await;
        }
    }

    async fn beat(
        &self,
        directory: &Directory,
        ca: Option<&Ca>,
        guard: &ClockGuard,
    ) -> Result<(), StoreError> {
        let now = self.store.now().await?;
        guard.saw_database(now);
        let mut facts = self.facts.clone();
        let mut authorities_end = 0;
        if let Some(ca) = ca {
            for (kind, ids) in [(AuthorityKind::X509, &mut facts.x509), (AuthorityKind::Jwt, &mut facts.jwt)]
            {
                let state = ca.snapshot().state(kind);
                let infos = [&state.active, &state.prepared, &state.old];
                let ends = infos.into_iter().flatten().map(|info| unix_seconds(info.not_after));
                authorities_end = ends.fold(authorities_end, i64::max);
                *ids = authority_ids(state);
            }
        }
        let beat = Heartbeat {
            server_id: self.server_id.clone(),
            holder: self.holder.clone(),
            now,
            position: directory.position(),
            authorities_end,
            facts,
        };
        self.store.heartbeat_server(beat).await
    }

    /// Gives the id back, so that nobody waits for the lease to run out.
    pub(super) async fn release(&self) {
        let release = self.store.release_server(&self.server_id, &self.holder);
        if !matches!(tokio::time::timeout(RELEASE, release).await, Ok(Ok(()))) {
            tracing::debug!("The server id was not given back: its lease runs out");
        }
    }
}

fn authority_ids(state: crate::ca::AuthorityState) -> AuthorityIds {
    let id = |info: Option<crate::ca::AuthorityInfo>| info.map(|info| info.authority_id).unwrap_or_default();
    AuthorityIds { active: id(state.active), prepared: id(state.prepared) }
}
