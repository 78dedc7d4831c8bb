//! Writes down what changes in the cache, and gives it back to the next process.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use svid_core::clock::{Clock, unix_seconds};
use svid_core::id::{SpiffeId, TrustDomain};
use svid_daemon::metrics::Metrics;
use svid_plugin_api::KeyManager;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};
use zeroize::Zeroizing;

use super::clock::behind;
use super::disk::{Dir, Log, Stamp};
use super::frames::FrameKey;
use super::head::{DataKeys, Head};
use super::machine::Machine;
use super::mirror::Mirror;
use super::restore::{Restored, at};
use crate::cache::{Cache, Snapshot};
use crate::client::ServerClient;

/// The first change after a pause is written at once, the next ones together.
const PAUSE: Duration = Duration::from_secs(2);
/// How often the time is written down when nothing else is.
const STAMP: Duration = Duration::from_secs(60);
/// Pause after a failed write.
const RETRY: Duration = Duration::from_secs(60);
/// What the wrapped key is for.
const CONTEXT: &[u8] = b"svid-agent svid-cache";

/// What a keeper is made with.
pub struct KeeperOptions {
    /// The agent's data directory.
    pub data_dir: PathBuf,
    /// Stands for `/etc/machine-id`.
    pub machine_id_path: Option<PathBuf>,
    /// Write SVIDs down at all.
    pub enabled: bool,
    /// The own trust domain.
    pub trust_domain: TrustDomain,
    /// Who the agent is.
    pub agent_id: SpiffeId,
    /// Wraps the key of what is written.
    pub keys: Arc<dyn KeyManager>,
    /// Where now comes from.
    pub clock: Clock,
    /// Counts what was not used.
    pub metrics: Metrics,
}

/// What an earlier process left behind.
#[derive(Debug)]
pub enum Stored {
    /// Nothing that can be used.
    Nothing,
    /// Good to serve.
    Ready(Box<Restored>),
    /// Not before the clock is right again.
    ClockBehind {
        /// By how much.
        by: Duration,
    },
}

#[derive(Default)]
struct State {
    log: Option<Log>,
    mirror: Mirror,
    /// Nothing is written from the moment the server puts the agent out.
    blocked: bool,
}

struct Inner {
    dir: Dir,
    options: KeeperOptions,
    machine: Machine,
    state: Mutex<State>,
}

/// Keeps the stored state of one agent. Clones share it.
#[derive(Clone)]
pub struct Keeper(Arc<Inner>);

impl Keeper {
    /// For the agent that `options` speak of.
    pub fn new(options: KeeperOptions) -> Self {
        let machine = Machine::read(options.machine_id_path.as_deref());
        Self(Arc::new(Inner { dir: Dir::new(&options.data_dir), options, machine, state: Mutex::default() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic in between leaves a log that no head speaks of, and the next write begins another.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self) -> String {
        self.0.dir.path().display().to_string()
    }

    /// Reads what is there. Whatever cannot be used is left alone, said once, and replaced with the next write.
    pub async fn load(&self) -> Stored {
        if !self.0.options.enabled {
            return Stored::Nothing;
        }
        match self.try_load().await {
            Ok(Stored::ClockBehind { by }) => {
                error!(path = self.path(), behind = ?by, "The clock is behind the time at which the stored SVIDs were last seen; they are not served until it is right");
                self.count("clock_behind");
                Stored::ClockBehind { by }
            }
            Ok(stored) => stored,
            Err(Unusable::Clone(fact)) => {
                error!(
                    path = self.path(),
                    fact,
                    "The stored SVIDs were written on another machine: this disk is a copy, or the machine's identity changed. They are not served"
                );
                self.count("other_machine");
                Stored::Nothing
            }
            Err(Unusable::Other(reason)) => {
                warn!(path = self.path(), reason, "The stored SVIDs cannot be used and are ignored");
                self.count("unusable");
                Stored::Nothing
            }
        }
    }

    fn count(&self, reason: &str) {
        self.0.options.metrics.incr_counter(&["stored_svids", "ignored"], 1, &[("reason", reason)]);
    }

    async fn try_load(&self) -> Result<Stored, Unusable> {
        let failed = |error: std::io::Error| Unusable::Other(error.to_string());
        let Some(bytes) = self.0.dir.read_head().map_err(failed)? else { return Ok(Stored::Nothing) };
        let head = Head::decode(&bytes).map_err(|error| Unusable::Other(error.to_string()))?;
        let options = &self.0.options;
        if head.trust_domain != options.trust_domain.as_str() || head.agent_id != options.agent_id.as_str() {
            return Err(Unusable::Other(format!("they are those of {:.200}", head.agent_id)));
        }
        if let Some(fact) = self.0.machine.mismatch(&head.salt, &head.machine) {
            return Err(Unusable::Clone(fact.to_owned()));
        }
        let secret = options.keys.unwrap_secret(&head.wrapped, CONTEXT).await;
        let secret = secret.map_err(|error| Unusable::Other(error.to_string()))?;
        let keys = DataKeys::derive(&secret, &head);
        if !Head::is_authentic(&bytes, &keys) {
            return Err(Unusable::Other("the head was changed since it was written".into()));
        }
        let now = options.clock.now();
        if let Some(by) = at(head.last_seen).and_then(|seen| behind(now, seen)) {
            return Ok(Stored::ClockBehind { by });
        }
        let inner = Arc::clone(&self.0);
        let read = move || {
            let log = inner.dir.read_log(&head).map_err(failed)?;
            let records = FrameKey::new(&keys.log).open(&log, head.frames);
            let records = records.map_err(|_| Unusable::Other("the log is damaged".into()))?;
            let mut restored = Restored::replay(records, now);
            restored.last_contact = at(head.last_contact);
            Ok(Stored::Ready(Box::new(restored)))
        };
        tokio::task::spawn_blocking(read).await.map_err(|error| Unusable::Other(error.to_string()))?
    }

    /// Waits until the clock is right, for as long as it takes.
    pub async fn wait_for_clock(&self) -> Box<Restored> {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            match self.try_load().await {
                Ok(Stored::Ready(restored)) => {
                    info!("The clock is right again");
                    return restored;
                }
                Ok(Stored::ClockBehind { .. }) => {}
                Ok(Stored::Nothing) | Err(_) => return std::future::pending().await,
            }
        }
    }

    /// The server put the agent out: everything goes at once, and nothing is written until [`Keeper::go_on`].
    pub fn wipe(&self) {
        let mut state = self.state();
        *state = State { blocked: true, ..State::default() };
        match self.0.dir.wipe() {
            Ok(()) => debug!(path = self.path(), "Removed the stored SVIDs"),
            Err(failure) => {
                error!(path = self.path(), error = %failure, "Failed to remove the stored SVIDs; remove them by hand");
            }
        }
    }

    /// The agent is welcome again.
    pub fn go_on(&self) {
        self.state().blocked = false;
    }

    /// Why nothing is written, if that is so.
    pub async fn refusal(&self) -> Option<String> {
        if !self.0.options.enabled {
            return Some("persist_svids = false".to_owned());
        }
        if self.0.machine.is_unknown() {
            return Some(
                "neither /etc/machine-id nor the firmware's product_uuid can be read, so they could not be bound to this machine; set experimental.machine_id_path".into(),
            );
        }
        match self.0.options.keys.wrap_secret(&[0; 32], CONTEXT).await {
            Ok(Some(_)) => None,
            Ok(None) => Some("the key manager keeps nothing beyond this process".to_owned()),
            Err(error) => Some(error.to_string()),
        }
    }

    /// Writes down what changes, without an end.
    pub async fn run(&self, cache: &Cache, client: &ServerClient) {
        if let Some(reason) = self.refusal().await {
            info!(reason, "SVIDs are not stored on the disk: after a restart workloads wait for the server");
            // What an earlier configuration left behind is of no use any more.
            self.0.dir.wipe().unwrap_or_else(|error| warn!(%error, "Failed to remove the stored SVIDs"));
            return std::future::pending().await;
        }
        let mut stamped = Instant::now();
        loop {
            tokio::select! {
                () = cache.wait_changed() => {}
                () = tokio::time::sleep_until(stamped + STAMP) => {}
            }
            let pause = match self.save(cache, client).await {
                Ok(()) => PAUSE,
                Err(failure) => {
                    warn!(
                        path = self.path(),
                        error = failure,
                        "Cannot store SVIDs; after a restart without a server some would be missing"
                    );
                    RETRY
                }
            };
            stamped = Instant::now();
            tokio::time::sleep(pause).await;
        }
    }

    /// Writes down what changed since the last time, and the time.
    /// # Errors
    /// What went wrong, in words; the next time everything is written anew.
    pub async fn save(&self, cache: &Cache, client: &ServerClient) -> Result<(), String> {
        let is_new = self.state().log.as_ref().is_none_or(Log::is_wasteful);
        let fresh = match is_new {
            true => Some(self.fresh_head().await?),
            false => None,
        };
        let snapshot = cache.snapshot();
        let contact = client.last_contact().map_or(0, unix_seconds);
        let stamp = Stamp { seen: unix_seconds(self.0.options.clock.now()), contact };
        let keeper = self.clone();
        let written = tokio::task::spawn_blocking(move || keeper.write(snapshot, fresh, stamp)).await;
        written.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }

    fn write(
        &self,
        snapshot: Snapshot,
        fresh: Option<(Head, Zeroizing<[u8; 32]>)>,
        stamp: Stamp,
    ) -> std::io::Result<()> {
        let mut state = self.state();
        if state.blocked {
            return Ok(());
        }
        let dir = &self.0.dir;
        let (svids, jwts) =
            (snapshot.entries.iter().filter(|(_, svid)| svid.is_some()).count(), snapshot.jwts.len());
        let written = match (fresh, state.log.take()) {
            (None, Some(mut log)) => {
                let records = state.mirror.advance(snapshot);
                let done = match records.is_empty() {
                    true => dir.stamp(&mut log, stamp),
                    false => dir.append(&mut log, &records, stamp),
                };
                done.map(|()| Some(log))
            }
            (Some((head, secret)), _) => {
                state.mirror = Mirror::default();
                let records = state.mirror.advance(snapshot);
                dir.begin(head, secret.as_slice(), &records, stamp).map(Some)
            }
            // Wiped between the look and now: the next look begins anew.
            (None, None) => Ok(None),
        };
        // After a failure there is no log, and the next one begins with everything.
        state.log = written?;
        debug!(stored_svids = svids, stored_jwts = jwts, "Stored SVIDs");
        Ok(())
    }

    async fn fresh_head(&self) -> Result<(Head, Zeroizing<[u8; 32]>), String> {
        let (mut secret, mut salt) = (Zeroizing::new([0u8; 32]), [0u8; 16]);
        let random = |bytes: &mut [u8]| aws_lc_rs::rand::fill(bytes).map_err(|error| error.to_string());
        random(secret.as_mut_slice())?;
        random(&mut salt)?;
        let options = &self.0.options;
        let wrapped = options.keys.wrap_secret(secret.as_slice(), CONTEXT).await;
        let wrapped = wrapped.map_err(|error| error.to_string())?.ok_or("the key manager does not wrap")?;
        let head = Head {
            trust_domain: options.trust_domain.as_str().to_owned(),
            agent_id: options.agent_id.as_str().to_owned(),
            machine: self.0.machine.digests(&salt),
            salt,
            wrapped,
            length: 0,
            frames: 0,
            last_seen: 0,
            last_contact: 0,
        };
        Ok((head, secret))
    }
}

/// Removes what is stored in `data_dir`, whoever's it is: the server refuses this node.
pub fn forget(data_dir: &Path) {
    if let Err(failure) = Dir::new(data_dir).wipe() {
        error!(error = %failure, "Failed to remove the stored SVIDs; remove them by hand");
    }
}

/// Why what is there cannot be used.
enum Unusable {
    /// It is another machine's: this fact does not hold here.
    Clone(String),
    /// Anything else, in words.
    Other(String),
}
