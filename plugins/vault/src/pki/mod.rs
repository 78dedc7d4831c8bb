//! UpstreamAuthority `vault`: a PKI engine signs the server's CA.

mod config;
mod request;
mod roots;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use rustify::endpoint::Endpoint as _;
use svid_core::bundle::X509Authority;
use svid_core::x509::ParsedCert;
use svid_plugin_api::{MintedCa, PluginCode, PluginError, UpstreamAuthority};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

pub use config::UpstreamConfig;

use crate::answer::{self, SignedCa};
use crate::error::Doing;
use crate::session::Vault;
use request::SignIntermediate;
use roots::RootReader;

/// How often the mount is asked for its root.
const ROOT_INTERVAL: Duration = Duration::from_secs(600);
/// A CA that ends so much sooner than asked is worth a word; clocks differ by less.
const NOTABLE: Duration = Duration::from_secs(60);

/// The plugin.
pub struct UpstreamVault {
    config: UpstreamConfig,
    vault: Arc<Vault>,
    roots: Arc<watch::Sender<Arc<[X509Authority]>>>,
    minted: Arc<Notify>,
    refresh: JoinHandle<()>,
}

impl Drop for UpstreamVault {
    fn drop(&mut self) {
        self.refresh.abort();
    }
}

impl fmt::Debug for UpstreamVault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamVault").field("config", &self.config).finish_non_exhaustive()
    }
}

impl UpstreamVault {
    /// Starts to watch the mount's root in the background. The first login comes with the first CA.
    /// # Errors
    /// `root_bundle_path` cannot be used.
    pub fn open(config: UpstreamConfig) -> Result<Self, PluginError> {
        Self::open_reading_roots_every(ROOT_INTERVAL, config)
    }

    /// As [`UpstreamVault::open`], with another interval than ten minutes between looks at the mount's root.
    /// # Errors
    /// As [`UpstreamVault::open`].
    pub fn open_reading_roots_every(interval: Duration, config: UpstreamConfig) -> Result<Self, PluginError> {
        config.read_root_bundle().map_err(|error| PluginError::invalid(error.to_string()))?;
        let vault = Arc::new(Vault::new(config.connection.clone()));
        let (roots, minted) = (Arc::new(watch::Sender::new(Arc::default())), Arc::new(Notify::new()));
        let reader =
            RootReader { config: config.clone(), vault: vault.clone(), roots: roots.clone(), interval };
        let refresh = tokio::spawn(reader.run(minted.clone()));
        Ok(Self { config, vault, roots, minted, refresh })
    }

    async fn sign(&self, csr: &[u8], ttl: Duration) -> Result<SignedCa, PluginError> {
        let request = SignIntermediate::new(&self.config, csr, ttl)?;
        let path = request.path();
        let doing = Doing {
            what: "sign intermediate",
            path: &path,
            capability: "update",
            mount: ("pki_mount_point", &self.config.pki_mount_point),
            place: self.vault.place(),
        };
        let answer = self.vault.call(&request).await.map_err(|error| doing.refused(&error))?;
        let signed = answer::signed_ca(&answer.body).map_err(|error| doing.refused(&error))?;
        for warning in &signed.warnings {
            let warning = self.vault.presentable(warning).await;
            tracing::warn!(%warning, mount = self.config.pki_mount_point, "Vault signed the CA with a warning");
        }
        Ok(signed)
    }

    /// The certificate is for the CSR's key, and how long it lives is no surprise.
    fn look_at(&self, cert: &[u8], csr: &[u8], ttl: Duration) -> Result<(), PluginError> {
        let cert = ParsedCert::from_der(cert).map_err(|error| PluginError::internal(error.to_string()))?;
        if !request::has_key(csr, cert.public_key_der()) {
            return Err(PluginError::internal(
                "Vault signed a certificate for another key than that of the CSR",
            ));
        }
        let left = cert.life().not_after.duration_since(SystemTime::now()).unwrap_or_default();
        if left + NOTABLE < ttl {
            tracing::warn!(
                asked_s = ttl.as_secs(),
                given_s = left.as_secs(),
                mount = self.config.pki_mount_point,
                "The mount signed the CA for a shorter time than ca_ttl: raise its max_lease_ttl or lower ca_ttl. The CA \
                 rotates accordingly sooner"
            );
        }
        Ok(())
    }
}

#[async_trait]
impl UpstreamAuthority for UpstreamVault {
    fn name(&self) -> &str {
        "vault"
    }

    async fn mint_x509_ca(&self, csr: &[u8], ttl: Duration) -> Result<MintedCa, PluginError> {
        let signed = self.sign(csr, ttl).await?;
        self.look_at(&signed.cert, csr, ttl)?;
        let anchors =
            self.config.read_root_bundle().map_err(|error| PluginError::invalid(error.to_string()))?;
        let path = crate::chain::walk(&signed.cert, &signed.issuers, &anchors).ok_or_else(|| {
            let mount = &self.config.pki_mount_point;
            PluginError::new(
                PluginCode::FailedPrecondition,
                format!("vault mount {mount} does not know its root; import it or set root_bundle_path"),
            )
        })?;
        let roots = roots::authorities(std::iter::once(path.root).chain(anchors))?;
        let chain = std::iter::once(signed.cert).chain(path.intermediates).collect();
        self.roots.send_if_modified(|known| {
            let is_new = **known != *roots;
            *known = roots.clone().into();
            is_new
        });
        self.minted.notify_one();
        Ok(MintedCa { chain, roots })
    }

    fn roots(&self) -> watch::Receiver<Arc<[X509Authority]>> {
        self.roots.subscribe()
    }
}
