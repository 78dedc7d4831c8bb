//! UpstreamAuthority `disk`: signs CAs with a CA key kept in files.

mod load;
mod watch;

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
use tokio::sync::watch::{Receiver, Sender};

use load::Loaded;
use watch::Stamps;

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

/// What the files said last, as far as it could be used.
struct LastGood {
    loaded: Arc<Loaded>,
    /// What the files looked like before they were read; nothing if they were bad then.
    stamps: Option<Stamps>,
}

/// The plugin. Files can be replaced while it runs: they are read again for each CA, and when they change
/// ([`UpstreamDisk::follow`]).
pub struct UpstreamDisk(Arc<Files>);

struct Files {
    config: DiskConfig,
    trust_domain: TrustDomain,
    clock: Clock,
    last_good: Mutex<LastGood>,
    roots: Sender<Arc<[X509Authority]>>,
}

impl UpstreamDisk {
    /// Reads the files and checks that they belong together.
    /// # Errors
    /// A file is missing or malformed, the key is of another certificate, the certificate is no CA, or it does not
    /// lead to the bundle.
    pub fn open(config: DiskConfig, trust_domain: TrustDomain, clock: Clock) -> Result<Self, PluginError> {
        let stamps = Some(Stamps::of(&config));
        let loaded = Arc::new(load::load(&config, &trust_domain, clock.now())?);
        let roots = Sender::new(loaded.roots.clone());
        let last_good = Mutex::new(LastGood { loaded, stamps });
        Ok(Self(Arc::new(Files { config, trust_domain, clock, last_good, roots })))
    }
}

impl Files {
    /// What the files say now or, if they cannot be used, what they said last.
    fn reload(&self) -> Arc<Loaded> {
        let mut last_good = self.last_good.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = self.read(&mut last_good) {
            tracing::warn!(%error, "Upstream CA files cannot be used; going on with what was read before");
        }
        last_good.loaded.clone()
    }

    /// Reads the files again if they changed since they were last read, or could not be used then.
    fn look(&self) -> Result<(), PluginError> {
        let mut last_good = self.last_good.lock().unwrap_or_else(PoisonError::into_inner);
        if last_good.stamps.as_ref() == Some(&Stamps::of(&self.config)) {
            return Ok(());
        }
        self.read(&mut last_good)
    }

    fn read(&self, last_good: &mut LastGood) -> Result<(), PluginError> {
        // Taken first: what is written while they are read is read once more.
        let stamps = Stamps::of(&self.config);
        last_good.stamps = None;
        let loaded = load::load(&self.config, &self.trust_domain, self.clock.now())?;
        *last_good = LastGood { loaded: Arc::new(loaded), stamps: Some(stamps) };
        let current = last_good.loaded.roots.clone();
        let published = self.roots.send_if_modified(|roots| {
            let changed = **roots != *current;
            *roots = current;
            changed
        });
        if published {
            tracing::info!("Upstream CA files changed, and other roots with them");
        }
        Ok(())
    }
}

impl Files {
    fn mint(&self, csr: &[u8], ttl: Duration) -> Result<MintedCa, PluginError> {
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
        let chain = std::iter::once(cert).chain(loaded.intermediates.iter().cloned()).collect();
        Ok(MintedCa { chain, roots: loaded.roots.to_vec() })
    }
}

impl fmt::Debug for UpstreamDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamDisk").field("config", &self.0.config).finish_non_exhaustive()
    }
}

#[async_trait]
impl UpstreamAuthority for UpstreamDisk {
    fn name(&self) -> &str {
        "disk"
    }

    async fn mint_x509_ca(&self, csr: &[u8], ttl: Duration) -> Result<MintedCa, PluginError> {
        // Files may lie on a network file system that hangs.
        let (files, csr) = (self.0.clone(), csr.to_vec());
        let minted = tokio::task::spawn_blocking(move || files.mint(&csr, ttl)).await;
        minted.map_err(|_| PluginError::internal("unable to sign CSR: the process is ending"))?
    }

    fn roots(&self) -> Receiver<Arc<[X509Authority]>> {
        self.0.roots.subscribe()
    }
}

#[cfg(test)]
mod tests;
