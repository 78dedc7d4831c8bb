//! Keeping up with the mount's root, so that a new one reaches agents before anything is signed below it.

use std::sync::Arc;
use std::time::Duration;

use svid_core::bundle::X509Authority;
use svid_plugin_api::PluginError;
use tokio::sync::{Notify, watch};
use vaultrs::api::pki::requests::ReadIssuerCertificateRequest;

use super::UpstreamConfig;
use crate::answer;
use crate::chain::root_above;
use crate::error::VaultError;
use crate::session::Vault;

/// How soon again after a failure, if that is sooner.
const AFTER_FAILURE: Duration = Duration::from_secs(60);

pub(super) struct RootReader {
    pub(super) config: UpstreamConfig,
    pub(super) vault: Arc<Vault>,
    pub(super) roots: Arc<watch::Sender<Arc<[X509Authority]>>>,
    pub(super) interval: Duration,
}

impl RootReader {
    /// Reads at once, after each CA that was minted, and at each interval.
    pub(super) async fn run(self, minted: Arc<Notify>) {
        let mut last_error = None;
        loop {
            let pause = match self.read().await {
                Ok(roots) => {
                    last_error = None;
                    self.publish(roots);
                    self.interval
                }
                Err(error) => {
                    if last_error.as_ref() != Some(&error) {
                        let mount = &self.config.pki_mount_point;
                        tracing::warn!(%error, mount, "Cannot read the root of the Vault mount; going on with what is known");
                    }
                    last_error = Some(error);
                    AFTER_FAILURE.min(self.interval)
                }
            };
            tokio::select! {
                () = minted.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn publish(&self, roots: Vec<X509Authority>) {
        let is_news = self.roots.send_if_modified(|known| {
            let is_new = **known != *roots;
            if is_new {
                *known = roots.into();
            }
            is_new
        });
        if is_news {
            tracing::info!(mount = self.config.pki_mount_point, "The root of the Vault mount is new");
        }
    }

    /// The root above the issuer that signs for us, and the configured ones. Vault gives issuers to whoever asks.
    async fn read(&self) -> Result<Vec<X509Authority>, VaultError> {
        let anchors = self.config.read_root_bundle()?;
        let issuer = self.config.issuer_ref.clone().unwrap_or_else(|| "default".into());
        let request = ReadIssuerCertificateRequest { mount: self.config.pki_mount_point.clone(), issuer };
        let certs = answer::issuer(&self.vault.ask(&request).await?.body)?;
        let [issuer, pool @ ..] = certs.as_slice() else {
            return Err(VaultError::Answer("it holds no certificate".into()));
        };
        let root = root_above(issuer, pool, &anchors);
        if root.is_none() && anchors.is_empty() {
            return Err(VaultError::Answer(
                "the mount does not know its root; import it or set root_bundle_path".into(),
            ));
        }
        let roots = authorities(root.into_iter().chain(anchors));
        roots.map_err(|error| VaultError::Answer(error.to_string()))
    }
}

/// Roots without repetitions.
pub(super) fn authorities(ders: impl Iterator<Item = Vec<u8>>) -> Result<Vec<X509Authority>, PluginError> {
    let mut roots: Vec<X509Authority> = Vec::new();
    for der in ders {
        let root = X509Authority::from_der(&der).map_err(|error| PluginError::internal(error.to_string()))?;
        if !roots.iter().any(|known| known.der() == root.der()) {
            roots.push(root);
        }
    }
    Ok(roots)
}
