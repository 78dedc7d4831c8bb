//! The bundle endpoint's certificate: the server's SVID as it is, or files that are read again when they change.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use svid_core::pem::{PemError, parse_certs_pem, parse_key_pem};
use svid_daemon::tls::{Identity, TlsError, TlsPolicy, https_server_config};
use zeroize::Zeroizing;

use super::config::ServingFiles;

/// The TLS configuration in force.
pub type Current = Arc<ArcSwap<ServerConfig>>;

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ServingError {
    /// A file cannot be read.
    #[error("failed to load certificate: {key}: cannot read {path}")]
    Read {
        /// The configuration's key.
        key: &'static str,
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file holds something else.
    #[error("failed to load certificate: {key}: cannot use {path}")]
    Pem {
        /// The configuration's key.
        key: &'static str,
        /// The file.
        path: String,
        /// What is wrong with it.
        source: PemError,
    },
    /// Certificate and key do not belong together.
    #[error("failed to load certificate: cert_file_path and key_file_path")]
    Tls(#[from] TlsError),
}

/// When each of the files was last changed.
type Stamps = (Option<SystemTime>, Option<SystemTime>);

fn stamps(files: &ServingFiles) -> Stamps {
    let of = |path: &Path| fs::metadata(path).and_then(|facts| facts.modified()).ok();
    (of(&files.cert), of(&files.key))
}

/// The configuration from files, and the task that reads them again when they changed.
/// # Errors
/// [`ServingError`] for the first reading; later the last good certificate stays.
pub fn from_files(
    files: ServingFiles,
    policy: TlsPolicy,
) -> Result<(Current, impl Future<Output = ()> + Send), ServingError> {
    let mut known = stamps(&files);
    let current = Arc::new(ArcSwap::new(load(&files, policy)?));
    let swap = current.clone();
    let watch = async move {
        tracing::info!(interval = ?files.interval, "Started watching certificate files");
        loop {
            tokio::time::sleep(files.interval).await;
            let found = stamps(&files);
            if found == known {
                continue;
            }
            tracing::info!("File change detected, reloading certificate and key...");
            match load(&files, policy) {
                Ok(next) => {
                    swap.store(next);
                    known = found;
                    tracing::info!("Loaded provided certificate with success");
                }
                // Looked at again after the interval: the other file may be on its way.
                Err(error) => {
                    tracing::error!(error = %svid_daemon::log::chain(&error), "Failed to load certificate")
                }
            }
        }
    };
    Ok((current, watch))
}

fn read(key: &'static str, path: &Path) -> Result<Zeroizing<Vec<u8>>, ServingError> {
    let unreadable = |source| ServingError::Read { key, path: path.display().to_string(), source };
    fs::read(path).map(Zeroizing::new).map_err(unreadable)
}

fn load(files: &ServingFiles, policy: TlsPolicy) -> Result<Arc<ServerConfig>, ServingError> {
    let bad = |key, path: &Path| {
        let path = path.display().to_string();
        move |source| ServingError::Pem { key, path, source }
    };
    let (cert, key) = (("cert_file_path", files.cert.as_path()), ("key_file_path", files.key.as_path()));
    let chain = parse_certs_pem(&read(cert.0, cert.1)?).map_err(bad(cert.0, cert.1))?;
    let secret = parse_key_pem(&read(key.0, key.1)?).map_err(bad(key.0, key.1))?;
    let identity = Identity::from_pkcs8(chain.iter().map(Vec::as_slice), secret.secret_bytes())?;
    Ok(https_server_config(&identity, policy)?)
}
