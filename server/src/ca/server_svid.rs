//! The server's own SVID: its key never leaves memory, and it is replaced long before it ends.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use svid_core::key::LocalKey;
use svid_core::x509::{IssueError, LeafTemplate, PublicKey, Subject, X509Svid};
use tokio::sync::watch;

use super::journal::issuers;
use super::metrics::{CaMetrics, outcome};
use super::{CaConfig, CaError, CaSnapshot, SPREAD};

/// After an authority was prepared, agents get this long to learn of it before the server shows itself with it: longer
/// than before it signs for others, because an agent that missed it here could not ask any more.
/// Matters when an operator prepares and activates at once; a scheduled rotation leaves hours.
const SHOW_AFTER: Duration = SPREAD.saturating_mul(3);

/// The SVID the TCP port is served with.
pub struct ServerIdentity {
    /// `spiffe://<trust domain>/spire/server`, with its chain.
    pub svid: X509Svid,
    /// Its key.
    pub key: LocalKey,
    /// The X.509 authority that signed it.
    pub authority_id: String,
}

impl ServerIdentity {
    /// True if its chain leads to a tainted authority, its own one or one above.
    fn is_tainted(&self, snapshot: &CaSnapshot) -> bool {
        issuers(self.svid.chain().leaf(), self.svid.chain().rest()).iter().any(|id| snapshot.is_tainted(id))
    }
}

impl fmt::Debug for ServerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerIdentity")
            .field("id", self.svid.id())
            .field("authority_id", &self.authority_id)
            .finish_non_exhaustive()
    }
}

/// Replaces the identity when it is due.
pub(super) struct Rotator {
    config: Arc<CaConfig>,
    snapshots: watch::Receiver<Arc<CaSnapshot>>,
    identity: watch::Sender<Arc<ServerIdentity>>,
    metrics: Arc<CaMetrics>,
}

/// The first identity, and what replaces it.
pub(super) async fn start(
    config: Arc<CaConfig>,
    snapshots: watch::Receiver<Arc<CaSnapshot>>,
    metrics: Arc<CaMetrics>,
    now: SystemTime,
) -> Result<(Rotator, watch::Receiver<Arc<ServerIdentity>>), CaError> {
    let snapshot = snapshots.borrow().clone();
    let first = make(&config, &snapshot, now).await?;
    let (identity, receiver) = watch::channel(Arc::new(first));
    metrics.x509_svid.add(1);
    Ok((Rotator { config, snapshots, identity, metrics }, receiver))
}

impl Rotator {
    /// Replaces the identity if that is due. Gives the moment when it will be due next.
    pub(super) async fn turn(&mut self, now: SystemTime) -> Option<SystemTime> {
        let snapshot = self.snapshots.borrow().clone();
        let due = due_at(&self.identity.borrow(), &snapshot, now);
        if due > now {
            return Some(due);
        }
        let identity = self.identity.borrow().clone();
        if identity.is_tainted(&snapshot) {
            tracing::info!(
                "Server SVID signed using a tainted authority, forcing rotation of the Server SVID"
            );
        }
        tracing::debug!("Rotating server SVID");
        let begun = Instant::now();
        let made = make(&self.config, &snapshot, now).await;
        self.metrics.rotate_svid.done(outcome(&made), begun.elapsed());
        match made {
            Ok(next) => {
                self.metrics.x509_svid.add(1);
                let due = due_at(&next, &snapshot, now);
                self.identity.send_replace(Arc::new(next));
                Some(due)
            }
            Err(error) => {
                tracing::error!(%error, "Could not rotate server SVID");
                None
            }
        }
    }
}

async fn make(config: &CaConfig, snapshot: &CaSnapshot, now: SystemTime) -> Result<ServerIdentity, CaError> {
    let authority = snapshot.x509_authority(now)?;
    let key = LocalKey::generate(config.ca_key_type)?;
    let template = LeafTemplate {
        id: config.trust_domain.server_id(),
        public_key: PublicKey::of(&key).map_err(IssueError::from)?,
        ttl: config.default_x509_svid_ttl,
        dns_names: Vec::new(),
        subject: Subject::Spire,
        not_after_limit: None,
    };
    let svid = authority.prepare(template, now)?.sign_awaited().await?;
    tracing::debug!(
        spiffe_id = %svid.id(),
        serial_num = svid.serial_decimal(),
        local_authority_id = authority.id_hex(),
        "Signed X509 SVID"
    );
    Ok(ServerIdentity { svid, key, authority_id: authority.id_hex() })
}

/// When an identity has to be replaced: around half of its life; once another authority took over also soon after
/// that one was prepared, or at once if the identity's own authority is tainted.
fn due_at(identity: &ServerIdentity, snapshot: &CaSnapshot, now: SystemTime) -> SystemTime {
    let half = identity.svid.life().half(draw(&identity.svid));
    match snapshot.x509.active() {
        Some(active) if active.info.authority_id == identity.authority_id => half,
        Some(_) if identity.is_tainted(snapshot) => now,
        Some(active) => half.min(active.info.issued_at + SHOW_AFTER),
        None => half,
    }
}

/// A number in 0..=1 that stays with an SVID, from its random serial.
fn draw(svid: &X509Svid) -> f64 {
    svid.leaf().serial().last().map_or(0.5, |byte| f64::from(*byte) / 255.0)
}
