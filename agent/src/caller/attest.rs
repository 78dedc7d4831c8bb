//! All workload attestors at once.

use std::sync::Arc;

use futures_util::future::join_all;
use svid_core::selector::SelectorSet;
use svid_plugin_api::WorkloadAttestor;

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

/// The configured workload attestors.
#[derive(Clone)]
pub struct Attestors(Arc<[Arc<dyn WorkloadAttestor>]>);

impl Attestors {
    /// Takes the attestors.
    pub fn new(attestors: Vec<Arc<dyn WorkloadAttestor>>) -> Self {
        Self(attestors.into())
    }

    /// What all attestors together say about the caller. Some may fail; then the others' selectors are used.
    /// The result holds for the process that connected: it is checked before and after.
    /// # Errors
    /// [`AttestError`].
    pub async fn attest(&self, connection: &Connection) -> Result<Arc<SelectorSet>, AttestError> {
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
        let answers = join_all(self.0.iter().map(|attestor| attestor.attest(caller))).await;
        let (mut selectors, mut errors) = (Vec::new(), Vec::new());
        for (attestor, answer) in self.0.iter().zip(answers) {
            match answer {
                Ok(found) => selectors.extend(found),
                Err(err) => errors.push(format!("workload attestor {:?} failed: {err}", attestor.name())),
            }
        }
        if errors.is_empty() {
            return Ok(selectors.into_iter().collect());
        }
        let text = errors.join("; ");
        tracing::error!(pid = caller.pid(), error = text, "Failed to collect all selectors");
        match errors.len() == self.0.len() {
            true => Err(AttestError::AllFailed(text)),
            false => Ok(selectors.into_iter().collect()),
        }
    }
}
