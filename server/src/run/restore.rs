//! Restoring a backup for the server of a configuration: what is to be known of it besides the database.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use svid_core::clock::Clock;
use svid_core::key::Signer;
use svid_daemon::harden::{DataDirLock, check_private_dir, harden, lock_data_dir};
use svid_daemon::metrics::Metrics;

use super::RunError;
use super::identity::Place;
use super::parts;
use crate::ca::{Usable, usable_authorities};
use crate::config::{KeyManagerChoice, ServerConfig};
use crate::store::SERVER_LEASE;
use crate::store::restore::{Backup, Outlook, Report, RestoreError, Terms};

/// Why nothing is restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreFailure {
    /// This process, its directories or its keys cannot be used.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The backup or the database cannot be used.
    #[error(transparent)]
    Restore(#[from] RestoreError),
}

const X509: &str = "X.509";
const NO_KEY: &str = "this server's data_dir has the key of no X.509 authority of the backup, so it would make a new CA, \
                      which agents and workloads that hold the old one do not trust: put its data_dir (server-id and \
                      keys) back first; --accept-new-ca restores all the same, which is right where another server \
                      has its keys";

/// A report with what it means for this server.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)] // the names say it, and are what programs read
pub struct Told {
    #[serde(flatten)]
    pub report: Report,
    pub authorities: Vec<AuthorityLine>,
    pub next_start: String,
}

/// An authority of the own bundle after the restore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct AuthorityLine {
    /// `X.509` or `JWT`.
    pub kind: &'static str,
    pub authority_id: String,
    /// Unix seconds, 0 when unknown.
    pub not_after: i64,
    pub tainted: bool,
    /// This server has the key and can go on signing with it.
    pub key_is_here: bool,
}

/// What an operator says on the command line.
#[derive(Clone, Copy, Debug, Default)]
pub struct Consent {
    /// Nothing is to be written.
    pub rehearsal: bool,
    /// What came after the backup may be undone.
    pub rollback: bool,
    /// A new CA may follow, which nobody trusts yet.
    pub new_ca: bool,
}

/// A backup, and the server whose database it is for.
pub struct Restore {
    config: ServerConfig,
    backup: Backup,
    terms: Terms,
    /// That this server has no key for any authority of the backup is meant.
    accept_new_ca: bool,
    clock: Clock,
    /// Held until the end: no server starts on this data directory meanwhile.
    _lock: Option<DataDirLock>,
}

impl Restore {
    /// Reads the backup. Unless it is a rehearsal, the server must not run.
    /// # Errors
    /// [`RestoreFailure`], also for a data directory that is in use or that another user owns.
    pub fn prepare(config: ServerConfig, file: &Path, consent: Consent) -> Result<Self, RestoreFailure> {
        harden().map_err(RunError::from)?;
        let mut lock = None;
        if !consent.rehearsal {
            lock = Some(lock_data_dir(&config.data_dir).map_err(RunError::from)?);
        } else if config.data_dir.exists() {
            // Files that another user's process leaves beside the database would stop its server.
            check_private_dir(&config.data_dir).map_err(RunError::from)?;
        }
        let clock = Clock::system();
        let backup = Backup::read(file, &config.trust_domain)?;
        let terms = Terms {
            trust_domain: config.trust_domain.clone(),
            now: clock.unix(),
            accept_rollback: consent.rollback,
            rehearsal: consent.rehearsal,
            lease: SERVER_LEASE,
            locked_host: lock.is_some().then(|| Place::of(&config.data_dir).shown),
        };
        Ok(Self { config, backup, terms, accept_new_ca: consent.new_ca, clock, _lock: lock })
    }

    /// Tells what a restore would do; writes nothing.
    /// # Errors
    /// [`RestoreFailure`].
    pub async fn rehearse(&self) -> Result<Told, RestoreFailure> {
        let outlook = self.backup.rehearse(&self.config.plugins.data_store, &self.terms).await?;
        let mut told = self.tell(outlook).await?;
        if self.begins_anew(&told) && !self.accept_new_ca {
            told.report.refusals.push(NO_KEY.into());
            told.report.accepted = false;
        }
        Ok(told)
    }

    /// Whether this server would make a CA that nobody knows, although there are some that are trusted. Below an
    /// upstream authority a new CA leads to known roots, and keys in memory are gone after every stop.
    fn begins_anew(&self, told: &Told) -> bool {
        let plugins = &self.config.plugins;
        let is_alive = |line: &AuthorityLine| line.kind == X509 && line.not_after > self.terms.now;
        plugins.upstream.is_none()
            && !matches!(plugins.key_manager, KeyManagerChoice::Memory)
            && told.authorities.iter().any(is_alive)
            && !told.authorities.iter().any(|line| line.kind == X509 && line.key_is_here)
    }

    /// Restores, if the terms allow it.
    /// # Errors
    /// [`RestoreFailure`].
    pub async fn run(&self) -> Result<Told, RestoreFailure> {
        let outlook = self.backup.restore(&self.config.plugins.data_store, &self.terms).await?;
        self.tell(outlook).await
    }

    async fn tell(&self, outlook: Outlook) -> Result<Told, RestoreFailure> {
        let keys = self.keys().await?;
        let journal = self.server_id().and_then(|id| outlook.journals.get(&id)).cloned();
        let has_upstream = self.config.plugins.upstream.is_some();
        let bundle = outlook.bundle.as_ref();
        let now = self.clock.now();
        let usable =
            usable_authorities(&keys, journal.as_deref().unwrap_or_default(), bundle, has_upstream, now);
        let next_start = next_start(&usable, self.config.ca.disable_jwt_svids);
        Ok(Told { authorities: authorities(&outlook, &usable), report: outlook.report, next_start })
    }

    /// The keys of this server; none where there cannot be any yet, or keys die with the process.
    async fn keys(&self) -> Result<BTreeMap<String, Arc<dyn Signer>>, RunError> {
        let choice = &self.config.plugins.key_manager;
        match choice {
            KeyManagerChoice::Memory => return Ok(BTreeMap::new()),
            KeyManagerChoice::Disk { keys_path } if !keys_path.exists() => return Ok(BTreeMap::new()),
            #[cfg(feature = "aws")]
            KeyManagerChoice::AwsKms(kms) if kms.identifier.is_new() => return Ok(BTreeMap::new()),
            _ => {}
        }
        let clock = Clock::system();
        let keys = parts::key_manager(&self.config, &Metrics::disabled(), &clock).await?;
        let listed = keys.list().await;
        let failed = |source| RunError::Plugin { kind: "KeyManager", name: choice.name(), source };
        Ok(listed.map_err(failed)?.into_iter().collect())
    }

    fn server_id(&self) -> Option<String> {
        let text = std::fs::read_to_string(self.config.data_dir.join("server-id")).ok()?;
        Some(text.trim().parse::<uuid::Uuid>().ok()?.to_string())
    }
}

fn authorities(outlook: &Outlook, usable: &[Usable]) -> Vec<AuthorityLine> {
    let Some(bundle) = &outlook.bundle else { return Vec::new() };
    let line = |kind, authority_id: String, not_after, tainted| AuthorityLine {
        kind,
        not_after,
        tainted,
        key_is_here: usable.iter().any(|usable| usable.kind == kind && usable.authority_id == authority_id),
        authority_id,
    };
    let x509 = bundle.x509_authorities.iter().map(|authority| {
        let cert = authority.parsed();
        let id = cert.subject_key_id_hex().map(|id| id.to_string()).unwrap_or_default();
        line(X509, id, svid_core::clock::unix_seconds(cert.life().not_after), authority.tainted)
    });
    let jwt =
        bundle.jwt_authorities.iter().map(|key| line("JWT", key.key_id.clone(), key.expires_at, key.tainted));
    x509.chain(jwt).collect()
}

fn next_start(usable: &[Usable], no_jwt: bool) -> String {
    let has = |kind| usable.iter().any(|usable| usable.kind == kind);
    let text = match (has(X509), has("JWT") || no_jwt) {
        (true, true) => "this server goes on with the authorities whose keys it has",
        (true, false) => "this server makes a new JWT key, because it has the key of none that is restored",
        (false, _) => "this server makes a new CA, because it has the key of none that is restored",
    };
    text.into()
}
