//! Whether a caller's certificate still leads to an authority of its trust domain's bundle.
//!
//! A handshake proves that once, and a connection or stream may last longer than the authority: revoking it takes it out
//! of the bundle. A tainted authority still vouches; its holders are told to renew and go on meanwhile, as in SPIRE.

use std::sync::Arc;

use svid_core::clock::Clock;
use svid_daemon::tls::BundleSource;
use tonic::Status;

use super::caller::PeerCert;

/// Answers for the chain behind a certificate.
#[derive(Clone)]
pub struct Vouch(Arc<dyn Fn(&PeerCert) -> bool + Send + Sync>);

impl Vouch {
    /// From the bundles as they are at each call.
    pub fn by(bundles: Arc<dyn BundleSource>, clock: Clock) -> Self {
        Self::from_fn(move |cert| {
            let Some(connection) = &cert.connection else { return false };
            let roots = bundles.roots(&cert.id.trust_domain());
            roots.is_some_and(|roots| connection.is_vouched_for(&roots, clock.now()))
        })
    }

    /// From a rule.
    pub fn from_fn(rule: impl Fn(&PeerCert) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(rule))
    }

    /// Refuses a certificate whose authority is gone.
    /// # Errors
    /// `Unauthenticated`, as a handshake would refuse it: not one of the denials over which an agent drops its identity.
    pub fn require(&self, cert: &PeerCert) -> Result<(), Status> {
        if (self.0)(cert) {
            return Ok(());
        }
        tracing::warn!(caller_id = %cert.id, serial_num = %cert.serial, "Caller refused: the authority of its SVID was revoked");
        Err(Status::unauthenticated(
            "the authority that signed this certificate is not in the bundle any more",
        ))
    }
}

impl std::fmt::Debug for Vouch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Vouch")
    }
}
