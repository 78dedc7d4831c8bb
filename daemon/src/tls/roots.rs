//! Bundles in the form that verification wants.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use svid_core::id::TrustDomain;
use svid_core::x509::ParsedCert;
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::TlsError;

/// X.509 authorities of one trust domain.
#[derive(Debug)]
pub struct Roots {
    roots: Vec<Root>,
}

#[derive(Debug)]
struct Root {
    anchor: TrustAnchor<'static>,
    not_before: i64,
    not_after: i64,
}

/// Where the current bundle of a trust domain comes from. Asked in every handshake, so it must not block.
pub trait BundleSource: Send + Sync {
    /// The bundle, or `None` when the trust domain is not known here.
    fn roots(&self, trust_domain: &TrustDomain) -> Option<Arc<Roots>>;
}

impl<F> BundleSource for F
where
    F: Fn(&TrustDomain) -> Option<Arc<Roots>> + Send + Sync,
{
    fn roots(&self, trust_domain: &TrustDomain) -> Option<Arc<Roots>> {
        self(trust_domain)
    }
}

impl Roots {
    /// Reads DER certificates; those that cannot be trust anchors are left out.
    ///
    /// # Errors
    /// [`TlsError::NoAuthority`] when none remains.
    pub fn from_ders<'a>(ders: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, TlsError> {
        let roots: Vec<_> = ders.into_iter().filter_map(Root::from_der).collect();
        if roots.is_empty() { Err(TlsError::NoAuthority) } else { Ok(Self { roots }) }
    }

    /// Checks a client's chain, leaf first, anew: the bundle may be another one than in the handshake.
    pub(crate) fn vouch_for(&self, chain: &[Vec<u8>], now: SystemTime) -> Result<(), TlsError> {
        let (leaf, rest) =
            chain.split_first().ok_or_else(|| TlsError::Malformed("there is no certificate".into()))?;
        let rest: Vec<_> = rest.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = UnixTime::since_unix_epoch(since);
        self.verify(&CertificateDer::from(leaf.as_slice()), &rest, now, KeyUsage::client_auth())
    }

    /// Checks that `leaf` chains to one of these authorities at `now`, every signature and life included.
    /// An authority past its own life counts as unknown, as it does for Go's verifier.
    pub(super) fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<(), TlsError> {
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let alive = self.roots.iter().filter(|root| (root.not_before..=root.not_after).contains(&seconds));
        let anchors: Vec<_> = alive.map(|root| root.anchor.clone()).collect();
        let leaf = EndEntityCert::try_from(leaf).map_err(|error| TlsError::Malformed(error.to_string()))?;
        let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
        leaf.verify_for_usage(
            algorithms.all,
            &anchors,
            intermediates,
            now,
            usage,
            None,
            Some(&signers_may_sign),
        )
        .map(|_| ())
        .map_err(|error| match error {
            // A signature that does not fit means that another key was behind the same name.
            webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
                TlsError::UnknownAuthority
            }
            other => TlsError::Chain(other.to_string()),
        })
    }
}

/// webpki does not look at KeyUsage: a certificate that may not sign certificates is no link of a path.
fn signers_may_sign(path: &VerifiedPath<'_>) -> Result<(), webpki::Error> {
    for cert in path.intermediate_certificates() {
        let facts = ParsedCert::from_der(&cert.der()).map_err(|_| webpki::Error::BadDer)?;
        if facts.key_usage().is_some_and(|usage| !usage.key_cert_sign()) {
            return Err(webpki::Error::EndEntityUsedAsCa);
        }
    }
    Ok(())
}

impl Root {
    /// `None` also for a certificate that is no CA: it vouches for nobody, and webpki does not ask.
    fn from_der(der: &[u8]) -> Option<Self> {
        if !ParsedCert::from_der(der).ok()?.is_ca() {
            return None;
        }
        let owned = CertificateDer::from(der.to_vec());
        let anchor = webpki::anchor_from_trusted_cert(&owned).ok()?.to_owned();
        let (_, cert) = X509Certificate::from_der(der).ok()?;
        let validity = cert.validity();
        Some(Self {
            anchor,
            not_before: validity.not_before.timestamp(),
            not_after: validity.not_after.timestamp(),
        })
    }
}
