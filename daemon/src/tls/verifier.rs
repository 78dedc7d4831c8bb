//! The verifiers that rustls asks.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use svid_core::id::{SpiffeId, TrustDomain};
use webpki::KeyUsage;

use super::{BundleSource, TlsError, VerifiedPeer};

fn algorithms() -> WebPkiSupportedAlgorithms {
    rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms
}

/// What an agent believes of its server.
#[derive(Clone)]
pub enum ServerTrust {
    /// The chain has to lead to the bundle of the trust domain.
    Bundle(Arc<dyn BundleSource>),
    /// First contact with `insecure_bootstrap`: only the ID in the certificate and the possession of its key
    /// are checked.
    InsecureBootstrap,
}

/// Client side: accepts exactly one ID, for agents `spiffe://<trust domain>/spire/server`. The host name plays no part.
pub struct SpiffeServerVerifier {
    server_id: SpiffeId,
    trust_domain: TrustDomain,
    trust: ServerTrust,
    algorithms: WebPkiSupportedAlgorithms,
}

impl SpiffeServerVerifier {
    /// A verifier for the servers of `trust_domain`.
    pub fn new(trust_domain: TrustDomain, trust: ServerTrust) -> Self {
        Self { server_id: trust_domain.server_id(), trust_domain, trust, algorithms: algorithms() }
    }

    /// A verifier for the server with this ID, of whatever trust domain; that one's bundle decides.
    pub fn exactly(server_id: SpiffeId, bundles: Arc<dyn BundleSource>) -> Self {
        let trust_domain = server_id.trust_domain();
        Self { server_id, trust_domain, trust: ServerTrust::Bundle(bundles), algorithms: algorithms() }
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), TlsError> {
        let peer = VerifiedPeer::from_leaf(leaf)?;
        if peer.id != self.server_id {
            return Err(TlsError::UnexpectedId(peer.id));
        }
        let ServerTrust::Bundle(bundles) = &self.trust else { return Ok(()) };
        let no_bundle = || TlsError::NoBundle(self.trust_domain.clone());
        let roots = bundles.roots(&self.trust_domain).ok_or_else(no_bundle)?;
        roots.verify(leaf, rest, now, KeyUsage::server_auth())
    }
}

impl fmt::Debug for SpiffeServerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpiffeServerVerifier").field("server_id", &self.server_id).finish_non_exhaustive()
    }
}

impl ServerCertVerifier for SpiffeServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(end_entity, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Server side: a certificate is optional, and decided upon per RPC; one that is presented has to verify, and
/// has to be of this trust domain or one of the configured admins. On other listeners: exactly some IDs.
pub struct SpiffeClientVerifier {
    /// `None`: only the IDs are let in, and a certificate is required.
    trust_domain: Option<TrustDomain>,
    ids: HashSet<SpiffeId>,
    bundles: Arc<dyn BundleSource>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl SpiffeClientVerifier {
    /// A verifier for members of `trust_domain` and `admin_ids` of any trust domain.
    pub fn new(
        trust_domain: TrustDomain,
        admin_ids: impl IntoIterator<Item = SpiffeId>,
        bundles: Arc<dyn BundleSource>,
    ) -> Self {
        let ids = admin_ids.into_iter().collect();
        Self { trust_domain: Some(trust_domain), ids, bundles, algorithms: algorithms() }
    }

    /// A verifier that requires a certificate with one of `ids`, of whatever trust domain.
    pub fn exactly(ids: impl IntoIterator<Item = SpiffeId>, bundles: Arc<dyn BundleSource>) -> Self {
        Self { trust_domain: None, ids: ids.into_iter().collect(), bundles, algorithms: algorithms() }
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), TlsError> {
        let peer = VerifiedPeer::from_leaf(leaf)?;
        let is_member = |trust_domain| peer.id.is_member_of(trust_domain);
        if !self.trust_domain.as_ref().is_some_and(is_member) && !self.ids.contains(&peer.id) {
            return Err(TlsError::UnexpectedId(peer.id));
        }
        let named = peer.id.trust_domain();
        let roots = self.bundles.roots(&named).ok_or(TlsError::NoBundle(named))?;
        roots.verify(leaf, rest, now, KeyUsage::client_auth())
    }
}

impl fmt::Debug for SpiffeClientVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpiffeClientVerifier")
            .field("trust_domain", &self.trust_domain)
            .finish_non_exhaustive()
    }
}

impl ClientCertVerifier for SpiffeClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.trust_domain.is_none()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(end_entity, intermediates, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
