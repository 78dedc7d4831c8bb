//! UpstreamAuthority `disk`: signs CAs with a CA key kept in files.

mod load;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use svid_core::bundle::X509Authority;
use svid_core::clock::Clock;
use svid_core::id::TrustDomain;
use svid_core::x509::ca::sign_ca;
use svid_core::x509::{CaTemplate, VerifiedCsr};
use svid_plugin_api::{MintedCa, PluginError, UpstreamAuthority};
use tokio::sync::watch;

use load::Loaded;

/// Life of a CA when none is asked for.
const DEFAULT_TTL: Duration = Duration::from_secs(3600);

/// Where the upstream CA lies. Field names are SPIRE's configuration keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskConfig {
    /// The CA's certificate in PEM, then its intermediates.
    pub cert_file_path: PathBuf,
    /// The CA's key in PEM.
    pub key_file_path: PathBuf,
    /// The roots in PEM. Needed unless the certificate is self-signed.
    pub bundle_file_path: Option<PathBuf>,
}

/// The plugin. Files are read again for each CA, so that they can be replaced while it runs.
pub struct UpstreamDisk {
    config: DiskConfig,
    trust_domain: TrustDomain,
    clock: Clock,
    last_good: Mutex<Arc<Loaded>>,
    roots: watch::Sender<Arc<[X509Authority]>>,
}

impl UpstreamDisk {
    /// Reads the files and checks that they belong together.
    /// # Errors
    /// A file is missing or malformed, the key is of another certificate, the certificate is no CA, or it does not
    /// lead to the bundle.
    pub fn open(config: DiskConfig, trust_domain: TrustDomain, clock: Clock) -> Result<Self, PluginError> {
        let loaded = Arc::new(load::load(&config, &trust_domain, clock.now())?);
        let roots = watch::Sender::new(loaded.roots.clone());
        Ok(Self { config, trust_domain, clock, last_good: Mutex::new(loaded), roots })
    }

    /// What the files say now or, if they cannot be used, what they said last.
    fn reload(&self) -> Arc<Loaded> {
        let mut last_good = self.last_good.lock().unwrap_or_else(PoisonError::into_inner);
        match load::load(&self.config, &self.trust_domain, self.clock.now()) {
            Ok(loaded) => *last_good = Arc::new(loaded),
            Err(error) => {
                tracing::warn!(%error, "Upstream CA files cannot be used; going on with what was read before");
            }
        }
        last_good.clone()
    }
}

impl fmt::Debug for UpstreamDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamDisk").field("config", &self.config).finish_non_exhaustive()
    }
}

#[async_trait]
impl UpstreamAuthority for UpstreamDisk {
    fn name(&self) -> &str {
        "disk"
    }

    async fn mint_x509_ca(&self, csr: &[u8], ttl: Duration) -> Result<MintedCa, PluginError> {
        let loaded = self.reload();
        let sign = || {
            let csr = VerifiedCsr::from_der(csr).map_err(|error| error.to_string())?;
            let subject = csr.subject_der().to_vec();
            let ttl = if ttl.is_zero() { DEFAULT_TTL } else { ttl };
            let template =
                CaTemplate::from_csr(csr, &self.trust_domain, ttl).map_err(|error| error.to_string())?;
            sign_ca(&loaded.ca_cert, &*loaded.signer, &template, &subject, self.clock.now())
                .map_err(|error| error.to_string())
        };
        let cert = sign().map_err(|error| PluginError::internal(format!("unable to sign CSR: {error}")))?;
        self.roots.send_if_modified(|roots| {
            let changed = **roots != *loaded.roots;
            *roots = loaded.roots.clone();
            changed
        });
        let chain = std::iter::once(cert).chain(loaded.intermediates.iter().cloned()).collect();
        Ok(MintedCa { chain, roots: loaded.roots.to_vec() })
    }

    fn roots(&self) -> watch::Receiver<Arc<[X509Authority]>> {
        self.roots.subscribe()
    }
}

#[cfg(test)]
mod tests;
