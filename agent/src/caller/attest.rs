//! All workload attestors at once.

use std::sync::Arc;
use std::time::Instant;

use futures_util::future::join_all;
use svid_core::selector::{Selector, SelectorSet};
use svid_daemon::metrics::{Call, Metrics, Timing};
use svid_plugin_api::{PluginError, WorkloadAttestor};

use super::{CallerChanged, Connection};

/// Why a caller has no selectors.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// The process ended, changed its user or ran something else while it was looked at.
    #[error(transparent)]
    Changed(#[from] CallerChanged),
    /// Not one attestor succeeded.
    #[error("all workload attestors failed: {0}")]
    AllFailed(String),
}

/// One attestor and its metric.
#[derive(Clone)]
struct Measured {
    attestor: Arc<dyn WorkloadAttestor>,
    call: Call,
}

/// The configured workload attestors.
#[derive(Clone)]
pub struct Attestors {
    all: Arc<[Measured]>,
    attestation: Call,
    discovered: Timing,
}

impl Attestors {
    /// Takes the attestors.
    pub fn new(attestors: Vec<Arc<dyn WorkloadAttestor>>) -> Self {
        let unmeasured = |attestor| Measured { attestor, call: Call::default() };
        Self {
            all: attestors.into_iter().map(unmeasured).collect(),
            attestation: Call::default(),
            discovered: Timing::default(),
        }
    }

    /// The same attestors, counting into `metrics` under SPIRE's names.
    #[must_use]
    pub fn measured(&self, metrics: &Metrics) -> Self {
        let key = ["workload_api", "workload_attestor"];
        let measured = |one: &Measured| Measured {
            attestor: Arc::clone(&one.attestor),
            call: metrics.call_with(&key, &[("attestor", one.attestor.name())]),
        };
        Self {
            all: self.all.iter().map(measured).collect(),
            attestation: metrics.call(&["workload_api", "workload_attestation"]),
            discovered: metrics.timing(&["workload_api", "discovered_selectors"], &[]),
        }
    }

    /// What all attestors together say about the caller. Some may fail; then the others' selectors are used.
    /// The result holds for the process that connected: it is checked before and after.
    /// # Errors
    /// [`AttestError`].
    pub async fn attest(&self, connection: &Connection) -> Result<Arc<SelectorSet>, AttestError> {
        if !self.attestation.is_enabled() {
            return self.look(connection).await;
        }
        let begun = Instant::now();
        let found = self.look(connection).await;
        // SPIRE's errors carry no code of their own here.
        self.attestation.done(if found.is_ok() { "OK" } else { "Unknown" }, begun.elapsed());
        if let Ok(selectors) = &found {
            #[allow(clippy::cast_precision_loss)] // a count of selectors
            self.discovered.sample(selectors.len() as f64);
        }
        found
    }

    async fn look(&self, connection: &Connection) -> Result<Arc<SelectorSet>, AttestError> {
        connection.check()?;
        let image = connection.process.image().ok();
        if let Some(selectors) = connection.remembered(image) {
            return Ok(selectors);
        }
        let selectors = Arc::new(self.ask_all(connection).await?);
        connection.check()?;
        if connection.process.image().ok() != image {
            return Err(CallerChanged("it runs another file now".into()).into());
        }
        if let Some(image) = image {
            connection.remember(image, Arc::clone(&selectors));
        }
        Ok(selectors)
    }

    async fn ask_all(&self, connection: &Connection) -> Result<SelectorSet, AttestError> {
        let caller = &*connection.process;
        let ask = async |one: &Measured| -> Result<Vec<Selector>, PluginError> {
            let begun = Instant::now();
            let answer = one.attestor.attest(caller).await;
            let status = answer.as_ref().map_or_else(|error| error.code.name(), |_| "OK");
            one.call.done(status, begun.elapsed());
            answer
        };
        let answers = join_all(self.all.iter().map(ask)).await;
        let (mut selectors, mut errors) = (Vec::new(), Vec::new());
        for (one, answer) in self.all.iter().zip(answers) {
            match answer {
                Ok(found) => selectors.extend(found),
                Err(err) => {
                    errors.push(format!("workload attestor {:?} failed: {err}", one.attestor.name()));
                }
            }
        }
        if errors.is_empty() {
            return Ok(selectors.into_iter().collect());
        }
        let text = errors.join("; ");
        tracing::error!(pid = caller.pid(), error = text, "Failed to collect all selectors");
        match errors.len() == self.all.len() {
            true => Err(AttestError::AllFailed(text)),
            false => Ok(selectors.into_iter().collect()),
        }
    }
}
