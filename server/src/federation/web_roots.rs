//! The CA certificates of the system, as every other program on it trusts them.

use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// They are read again after this time: an operator may have added or removed one.
const KEEP: Duration = Duration::from_secs(600);

/// Why there are none.
#[derive(Debug, thiserror::Error)]
pub enum WebRootsError {
    /// None was found.
    #[error(
        "no CA certificate was found: install the system's ca-certificates, or name a file in SSL_CERT_FILE{0}"
    )]
    None(String),
    /// The thread that reads them died.
    #[error("reading the CA certificates failed")]
    Thread(#[from] tokio::task::JoinError),
}

/// The certificates, read when they are needed.
#[derive(Default)]
pub struct WebRoots(Mutex<Option<(Instant, Arc<RootCertStore>)>>);

impl WebRoots {
    /// As they are now, to ten minutes.
    /// # Errors
    /// [`WebRootsError`] where there is none.
    pub async fn current(&self) -> Result<Arc<RootCertStore>, WebRootsError> {
        let mut kept = self.0.lock().await;
        if let Some((since, roots)) = &*kept
            && since.elapsed() < KEEP
        {
            return Ok(roots.clone());
        }
        let roots = tokio::task::spawn_blocking(load).await??;
        *kept = Some((Instant::now(), roots.clone()));
        Ok(roots)
    }
}

fn load() -> Result<Arc<RootCertStore>, WebRootsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        let why = found.errors.first().map(|error| format!(" ({error})")).unwrap_or_default();
        return Err(WebRootsError::None(why));
    }
    Ok(Arc::new(roots))
}
