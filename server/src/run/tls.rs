//! TLS of the TCP port: always the newest server SVID, always the bundle as the directory has it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use rustls::ServerConfig as TlsConfig;
use svid_core::bundle::Bundle;
use svid_core::id::TrustDomain;
use svid_daemon::tls::{
    BundleSource, Identity, OwnSvid, Roots, SpiffeClientVerifier, TlsError, TlsPolicy, server_config,
};
use tokio_util::sync::CancellationToken;

use super::spawn;
use crate::api::Context;
use crate::ca::ServerIdentity;
use crate::config::ServerConfig;
use crate::directory::Directory;

/// Bundles and what was made of them.
type Kept = HashMap<TrustDomain, (Arc<Bundle>, Arc<Roots>)>;

/// Roots as verification wants them, kept for as long as the directory has the same bundle.
pub(super) struct DirectoryRoots {
    directory: Directory,
    kept: Mutex<Kept>,
}

impl BundleSource for DirectoryRoots {
    fn roots(&self, trust_domain: &TrustDomain) -> Option<Arc<Roots>> {
        let bundle = self.directory.bundle(trust_domain)?;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, roots)) = kept.get(trust_domain)
            && Arc::ptr_eq(of, &bundle)
        {
            return Some(roots.clone());
        }
        let ders = bundle.x509_authorities.iter().map(|authority| authority.der());
        let roots = Arc::new(Roots::from_ders(ders).ok()?);
        kept.insert(trust_domain.clone(), (bundle, roots.clone()));
        Some(roots)
    }
}

impl DirectoryRoots {
    pub(super) fn new(directory: Directory) -> Self {
        Self { directory, kept: Mutex::default() }
    }
}

/// For the metrics listener: the server's SVID and the bundles it knows.
pub(super) fn own_svid(context: &Context) -> OwnSvid {
    let identities = context.ca.server_identity();
    OwnSvid {
        identity: Box::new(move || certified(&identities.borrow().clone())),
        bundles: Arc::new(DirectoryRoots::new(context.directory.clone())),
    }
}

pub(super) fn certified(identity: &ServerIdentity) -> Result<Identity, TlsError> {
    let key = identity.key.private_key().secret_bytes();
    Identity::from_pkcs8(identity.svid.chain().iter(), key)
}

fn build(
    identity: &ServerIdentity,
    verifier: &Arc<SpiffeClientVerifier>,
    policy: TlsPolicy,
) -> Result<Arc<TlsConfig>, TlsError> {
    server_config(&certified(identity)?, verifier.clone(), policy)
}

/// A configuration that is replaced whenever the server's SVID is.
pub(super) fn follow(
    config: &ServerConfig,
    context: &Arc<Context>,
    roots: Arc<DirectoryRoots>,
    stop: &CancellationToken,
) -> Result<Arc<ArcSwap<TlsConfig>>, TlsError> {
    let admins = config.admin_ids.iter().cloned();
    let verifier = Arc::new(SpiffeClientVerifier::new(config.trust_domain.clone(), admins, roots));
    let policy = TlsPolicy { require_pq_kem: config.require_pq_kem };
    let mut identities = context.ca.server_identity();
    let first = identities.borrow_and_update().clone();
    let current = Arc::new(ArcSwap::new(build(&first, &verifier, policy)?));
    let swap = current.clone();
    spawn("the server SVID", stop, async move {
        while identities.changed().await.is_ok() {
            let identity = identities.borrow_and_update().clone();
            match build(&identity, &verifier, policy) {
                Ok(built) => swap.store(built),
                Err(error) => tracing::error!(%error, "Unable to use the new server SVID; the old one stays"),
            }
        }
    });
    Ok(current)
}
