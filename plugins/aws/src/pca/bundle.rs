//! The supplemental bundle: roots beside that of the CA, from a file that may change.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use svid_core::bundle::X509Authority;
use svid_core::pem::parse_certs_pem;
use svid_plugin_api::PluginError;
use tokio::sync::watch;

/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Largest file that is read, in bytes.
const MAX_BYTES: u64 = 4 * 1024 * 1024;

type RootSet = Arc<[X509Authority]>;

/// The upstream roots: that of the CA once a certificate showed it, and the supplemental ones.
pub(super) struct RootSets {
    parts: Mutex<Parts>,
    whole: watch::Sender<RootSet>,
}

struct Parts {
    ca: Option<X509Authority>,
    supplemental: Vec<X509Authority>,
}

impl RootSets {
    pub(super) fn new(supplemental: Vec<X509Authority>) -> Arc<Self> {
        // Published before the CA's root is known: what is new in the file at a start must not wait for the next CA.
        let whole = watch::Sender::new(Arc::from(supplemental.as_slice()));
        Arc::new(Self { parts: Mutex::new(Parts { ca: None, supplemental }), whole })
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<RootSet> {
        self.whole.subscribe()
    }

    pub(super) fn supplemental(&self) -> Vec<X509Authority> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).supplemental.clone()
    }

    /// Takes in the CA's root, and gives all.
    pub(super) fn with_root(&self, root: X509Authority) -> Vec<X509Authority> {
        self.change(|parts| parts.ca = Some(root))
    }

    fn change(&self, change: impl FnOnce(&mut Parts)) -> Vec<X509Authority> {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut parts);
        let mut all: Vec<X509Authority> = Vec::new();
        for root in parts.ca.iter().chain(&parts.supplemental) {
            if !all.iter().any(|known| known.der() == root.der()) {
                all.push(root.clone());
            }
        }
        self.whole.send_if_modified(|known| {
            let changed = **known != *all;
            if changed {
                *known = all.as_slice().into();
            }
            changed
        });
        all
    }
}

/// Reads the file.
/// # Errors
/// It cannot be read, is too large, or does not hold certificates of CAs in PEM.
pub(super) fn load(path: &Path) -> Result<Vec<X509Authority>, PluginError> {
    let failed = |reason: String| {
        PluginError::invalid(format!("failed to load supplemental bundle: {}: {reason}", path.display()))
    };
    let size = std::fs::metadata(path).map_err(|error| failed(error.to_string()))?.len();
    if size > MAX_BYTES {
        return Err(failed("it is larger than 4 MiB".to_owned()));
    }
    let text = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    let certs = parse_certs_pem(&text).map_err(|error| failed(error.to_string()))?;
    if certs.is_empty() {
        return Err(failed("no certificate in it".to_owned()));
    }
    let roots = certs.iter().map(|der| X509Authority::from_der(der));
    roots.collect::<Result<_, _>>().map_err(|error| failed(error.to_string()))
}

/// Follows the file. What cannot be read leaves the last good set in place.
pub(super) async fn follow(path: PathBuf, roots: Arc<RootSets>) {
    let mut last_error = None;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        match load(&path) {
            Ok(found) => {
                last_error = None;
                if found != roots.supplemental() {
                    tracing::info!(
                        supplemental_bundle_path = %path.display(),
                        certificates = found.len(),
                        "The supplemental bundle has changed"
                    );
                    roots.change(|parts| parts.supplemental = found);
                }
            }
            Err(error) if last_error.as_ref() != Some(&error) => {
                tracing::warn!(%error, "The supplemental bundle cannot be used; going on with what was read before");
                last_error = Some(error);
            }
            Err(_) => {}
        }
    }
}
