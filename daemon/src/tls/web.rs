//! Servers that prove themselves with a certificate of the web's authorities, and listeners that ask for none.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig, SignatureScheme};
use svid_core::id::SpiffeId;

use super::{Identity, TlsError, TlsPolicy, VerifiedPeer};

/// Why a server was not believed, with a hint where it is one of another profile.
#[derive(Debug, thiserror::Error)]
#[error(
    "the server's certificate is not of the web's authorities for this host, and it holds SPIFFE ID {id:?}: maybe the \
     profile is https_spiffe, not https_web"
)]
struct SpiffeInstead {
    id: SpiffeId,
    source: Error,
}

/// Checks a certificate as browsers do: the chain, its life, and the host's name.
pub struct WebVerifier(Arc<WebPkiServerVerifier>);

impl WebVerifier {
    /// Believes these authorities.
    ///
    /// # Errors
    /// [`TlsError::NoAuthority`] where there is none.
    pub fn new(roots: Arc<RootCertStore>, policy: TlsPolicy) -> Result<Self, TlsError> {
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, policy.provider()).build();
        verifier.map(Self).map_err(|_| TlsError::NoAuthority)
    }
}

impl fmt::Debug for WebVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebVerifier").finish_non_exhaustive()
    }
}

impl ServerCertVerifier for WebVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        verified.map_err(|source| match VerifiedPeer::from_leaf(end_entity) {
            Ok(peer) => {
                let instead = SpiffeInstead { id: peer.id, source };
                rustls::CertificateError::Other(rustls::OtherError(Arc::new(instead))).into()
            }
            Err(_) => source,
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// A client's configuration for HTTP/1.1 that shows no certificate.
///
/// # Errors
/// [`TlsError::Config`].
pub fn https_client_config(
    verifier: Arc<dyn ServerCertVerifier>,
    policy: TlsPolicy,
) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(policy.provider());
    let builder = builder.with_protocol_versions(policy.versions())?;
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = builder.with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// A server's configuration for HTTP/1.1 that asks nobody for a certificate.
///
/// # Errors
/// [`TlsError::Config`].
pub fn https_server_config(identity: &Identity, policy: TlsPolicy) -> Result<Arc<ServerConfig>, TlsError> {
    let builder = ServerConfig::builder_with_provider(policy.provider());
    let builder = builder.with_protocol_versions(policy.versions())?;
    let mut config = builder.with_no_client_auth().with_cert_resolver(identity.resolver());
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
