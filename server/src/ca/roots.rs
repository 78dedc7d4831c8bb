//! The roots in the bundle: which the upstream authority has, which are tainted, and which have to go.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use svid_core::bundle::{Bundle, X509Authority};
use tokio::time::Instant;

use super::manager::Manager;

/// Expired authorities stay this long in the bundle, for verifiers whose clock lags.
const PRUNE_SAFETY: Duration = Duration::from_secs(24 * 3600);
/// How often expired authorities are looked for.
const PRUNE_INTERVAL: Duration = Duration::from_secs(6 * 3600);
/// From tainting to revoking, in times of what a new authority gets to spread: holders have to hear of it first, and then
/// to replace what they have while the old is still believed.
const REVOKE_AFTER: u32 = 2;

fn id_of(root: &X509Authority) -> Option<String> {
    root.parsed().subject_key_id_hex()
}

impl Manager {
    /// Compares the bundle with what this server signs with, and with what the upstream authority says.
    pub(super) async fn look_at_bundle(&mut self) {
        // Without the database there is nothing to compare with.
        let Ok(Some(bundle)) = self.store.bundle().await else { return };
        self.put_back(&bundle).await;
        self.note_published(&bundle.x509_authorities);
        self.note_taints(&bundle).await;
        let roots = self.upstream_roots().map(|roots| roots.borrow().clone());
        if let Some(roots) = roots.filter(|roots| !roots.is_empty()) {
            self.add_missing(&bundle, &roots).await;
            self.note_condemned(&bundle, &roots);
            self.revoke_vanished(&bundle, &roots).await;
        }
    }

    /// These roots stand in the bundle since now, unless they did before.
    pub(super) fn note_published(&mut self, roots: &[X509Authority]) {
        for root in roots {
            self.roots.published.entry(root.der().to_vec()).or_insert_with(Instant::now);
        }
    }

    /// Takes over which roots are tainted, whoever tainted them. A tainted root that is gone was revoked.
    pub(super) async fn note_taints(&mut self, bundle: &Bundle) {
        let stored: BTreeSet<String> = bundle.x509_authorities.iter().filter_map(id_of).collect();
        let marked = bundle.x509_authorities.iter().filter(|root| root.tainted).filter_map(id_of);
        let marked: BTreeSet<String> = marked.collect();
        let gone: Vec<String> =
            self.roots.tainted.keys().filter(|id| !stored.contains(*id)).cloned().collect();
        self.roots.tainted.retain(|id, _| marked.contains(id));
        for id in &marked {
            self.roots.tainted.entry(id.clone()).or_insert_with(Instant::now);
        }
        for id in gone {
            self.note_revoked(&id).await;
        }
        let tainted: Vec<Arc<str>> = marked.iter().map(|id| Arc::from(id.as_str())).collect();
        if self.state.tainted != tainted {
            self.state.tainted = tainted;
            self.publish();
        }
    }

    /// Remembers a revoked upstream root, so that it does not come back while the upstream authority still names it.
    pub(super) async fn note_revoked(&mut self, id: &str) {
        let mut journal = self.journal.clone();
        if self.upstream.is_none() || !journal.note_revoked(id) {
            return;
        }
        if let Err(error) = self.save(journal).await {
            tracing::error!(%error, subject_key_id = id, "Could not write down that an upstream root was revoked");
        }
    }

    pub(super) fn is_revoked(&self, root: &X509Authority) -> bool {
        id_of(root).is_some_and(|id| self.journal.revoked_roots().contains(&id))
    }

    /// True if one of these keys (subject key IDs) is tainted, in the bundle or upstream, or was revoked since.
    pub(super) fn is_any_tainted(&self, ids: &[String]) -> bool {
        let revoked = self.journal.revoked_roots();
        ids.iter()
            .any(|id| self.state.is_tainted(id) || self.roots.condemned.contains(id) || revoked.contains(id))
    }

    /// True if the active X.509 authority was signed by an upstream authority that is tainted.
    pub(super) fn is_active_tainted(&self) -> bool {
        self.upstream.is_some() && self.is_any_tainted(&self.issuers_of_active())
    }

    /// What signed the active X.509 authority. Empty without one.
    pub(super) fn issuers_of_active(&self) -> Vec<String> {
        let active = self.state.x509.active();
        active.map(|active| self.journal.issuers(&active.info.authority_id)).unwrap_or_default()
    }

    /// Adds roots that the upstream has and the bundle does not have.
    async fn add_missing(&mut self, bundle: &Bundle, roots: &[X509Authority]) {
        let now = self.now();
        let is_known = |root: &X509Authority| bundle.x509_authorities.iter().any(|r| r.der() == root.der());
        let is_wanted = |root: &&X509Authority| {
            !is_known(root) && !root.parsed().life().is_over(now) && !self.is_revoked(root)
        };
        let missing: Vec<X509Authority> = roots.iter().filter(is_wanted).cloned().collect();
        if missing.is_empty() {
            return;
        }
        match self.store.append_to_bundle(&missing, &[]).await {
            Ok(()) => {
                let ids: Vec<String> = missing.iter().filter_map(id_of).collect();
                tracing::info!(subject_key_ids = ids.join(","), "Upstream roots added to the bundle");
                self.note_published(&missing);
            }
            Err(error) => {
                tracing::error!(%error, "Failed to store X.509 roots received by the upstream authority plugin.");
            }
        }
    }

    /// Roots that the upstream authority calls tainted, and the bundle does not yet.
    fn note_condemned(&mut self, bundle: &Bundle, roots: &[X509Authority]) {
        self.roots.of_upstream.extend(roots.iter().filter_map(id_of));
        let marked = roots.iter().filter(|root| root.tainted).filter_map(id_of);
        let is_clean = |id: &String| {
            let mut stored = bundle.x509_authorities.iter().filter(|root| id_of(root).as_ref() == Some(id));
            stored.any(|root| !root.tainted)
        };
        let condemned: BTreeSet<String> = marked.filter(is_clean).collect();
        for id in condemned.difference(&self.roots.condemned) {
            tracing::info!(subject_key_id = id, "X.509 authority tainted");
        }
        if !condemned.is_empty() && self.is_any_tainted(&self.issuers_of_active()) {
            tracing::info!("Current root CA is signed by a tainted upstream authority, preparing rotation");
        }
        self.roots.condemned = condemned;
    }

    /// Taints what the upstream authority calls tainted, once the active authority does not lead there any more: holders
    /// replace their SVIDs when they hear of it, and would only get more of the same before.
    pub(super) async fn taint_condemned(&mut self) {
        let active = self.issuers_of_active();
        let ready: Vec<String> =
            self.roots.condemned.iter().filter(|id| !active.contains(id)).cloned().collect();
        for id in ready {
            match self.store.taint_x509(&id).await {
                Ok(()) => self.note_tainted(&id),
                Err(error) => {
                    tracing::error!(%error, subject_key_id = id, "could not taint X509 CA in datastore")
                }
            }
        }
    }

    /// A root is tainted in the bundle since now.
    pub(super) fn note_tainted(&mut self, id: &str) {
        self.roots.condemned.remove(id);
        self.roots.tainted.entry(id.to_owned()).or_insert_with(Instant::now);
        if !self.state.is_tainted(id) {
            self.state.tainted.push(id.into());
        }
        self.publish();
    }

    /// Revokes tainted roots that the upstream authority had and has no more, once nothing needs them.
    async fn revoke_vanished(&mut self, bundle: &Bundle, roots: &[X509Authority]) {
        let named: BTreeSet<String> = roots.iter().filter_map(id_of).collect();
        let tainted = bundle.x509_authorities.iter().filter(|root| root.tainted).filter_map(id_of);
        let vanished: Vec<String> =
            tainted.filter(|id| !named.contains(id) && self.was_upstream(id)).collect();
        for id in vanished {
            if self.is_in_use(&id) || !self.revoke_wait(&id).await.is_zero() {
                continue;
            }
            match self.store.revoke_x509(&id).await {
                Ok(()) => {
                    tracing::info!(subject_key_id = id, "X.509 authority revoked");
                    self.note_revoked(&id).await;
                }
                Err(error) => tracing::error!(%error, subject_key_id = id, "failed to revoke a tainted key"),
            }
        }
    }

    fn was_upstream(&self, id: &str) -> bool {
        let mut journaled = self.journal.x509().iter().map(|entry| self.journal.issuers(&entry.authority_id));
        self.roots.of_upstream.contains(id)
            || journaled.any(|issuers| issuers.iter().any(|known| known == id))
    }

    /// True if an authority that signs, or stands ready to, leads there.
    fn is_in_use(&self, id: &str) -> bool {
        let mut held = self.state.x509.iter().filter(|held| held.key.is_some());
        held.any(|held| self.journal.issuers(&held.info.authority_id).iter().any(|known| known == id))
    }

    /// How long a tainted root stays at least, so that nobody is refused who is about to replace what it vouches for.
    pub(super) async fn revoke_wait(&self, id: &str) -> Duration {
        let Some(since) = self.roots.tainted.get(id) else { return Duration::ZERO };
        let left = (self.config.spread * REVOKE_AFTER).saturating_sub(since.elapsed());
        if left.is_zero() || !self.has_audience().await { Duration::ZERO } else { left }
    }

    pub(super) async fn prune(&mut self) {
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
