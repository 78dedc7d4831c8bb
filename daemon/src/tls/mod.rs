//! The one verifier of peers, for both halves, and the TLS configurations built around it.
//!
//! Chains are checked with real signatures against the bundle of the trust domain that the leaf names and no
//! other. Sessions are never resumed, because a resumed session would outlive a revocation.

mod config;
mod leaf;
mod roots;
mod scrape;
mod verifier;
mod web;

pub use config::{Identity, TlsPolicy, client_config, server_config};
pub use leaf::VerifiedPeer;
pub use roots::{BundleSource, Roots};
pub use scrape::{CurrentTls, OwnSvid, ScrapeTlsError, scrape_tls};
pub use verifier::{ServerTrust, SpiffeClientVerifier, SpiffeServerVerifier};
pub use web::{WebVerifier, https_client_config, https_server_config};

use rustls::CertificateError;
use svid_core::id::{IdError, SpiffeId, TrustDomain};

/// Why a peer's certificate was refused, or a configuration could not be built.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Not a certificate.
    #[error("the certificate cannot be read: {0}")]
    Malformed(String),
    /// A leaf has exactly one URI SAN.
    #[error("the certificate has {0} URI SANs, an X.509-SVID has exactly one")]
    UriSans(usize),
    /// The URI SAN is not a SPIFFE ID.
    #[error("the URI SAN of the certificate is not a SPIFFE ID")]
    Id(#[from] IdError),
    /// Signing certificates identify nobody.
    #[error("a CA certificate cannot be used as a leaf")]
    CaLeaf,
    /// No bundle for the trust domain that the leaf names.
    #[error("no X.509 bundle for trust domain \"{0}\"")]
    NoBundle(TrustDomain),
    /// Verified or not, this peer has no business here.
    #[error("unexpected ID \"{0}\"")]
    UnexpectedId(SpiffeId),
    /// The chain does not lead to an authority of the bundle.
    #[error("certificate signed by unknown authority")]
    UnknownAuthority,
    /// The chain leads there but something else is wrong with it.
    #[error("certificate verification failed: {0}")]
    Chain(String),
    /// A bundle without a usable authority.
    #[error("the bundle holds no usable X.509 authority")]
    NoAuthority,
    /// rustls refused chain, key or options.
    #[error("TLS configuration refused")]
    Config(#[from] rustls::Error),
}

impl From<TlsError> for rustls::Error {
    fn from(error: TlsError) -> Self {
        Self::InvalidCertificate(match error {
            TlsError::UnknownAuthority => CertificateError::UnknownIssuer,
            other => CertificateError::Other(rustls::OtherError(std::sync::Arc::new(other))),
        })
    }
}

/// Whether `error`, however deeply a transport wrapped it, means that our bundle does not know the peer's
/// authority.
pub fn is_unknown_authority(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let io = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        let tls = io.and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let tls = tls.or_else(|| error.downcast_ref::<rustls::Error>());
        if let Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) = tls {
            return true;
        }
        if matches!(error.downcast_ref::<TlsError>(), Some(TlsError::UnknownAuthority)) {
            return true;
        }
        next = io.map(|inner| inner as &(dyn std::error::Error + 'static)).or_else(|| error.source());
    }
    false
}

/// Why a handshake failed, in the verifier's own words where it was the verifier that refused.
pub fn handshake_failure(error: &std::io::Error) -> String {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(refusal))) => refusal.0.to_string(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
pub(crate) mod tests;
