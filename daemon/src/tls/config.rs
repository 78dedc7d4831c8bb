//! TLS configurations from an identity and a verifier.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SigningKey, SingleCertAndKey};
use rustls::{CipherSuite, ClientConfig, ServerConfig, SupportedProtocolVersion};

use super::{SpiffeClientVerifier, SpiffeServerVerifier, TlsError};

/// What is negotiated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TlsPolicy {
    /// `require_pq_kem`: only hybrid post-quantum key exchange, which implies TLS 1.3.
    pub require_pq_kem: bool,
}

impl TlsPolicy {
    pub(super) fn provider(self) -> Arc<CryptoProvider> {
        let mut provider = aws_lc_rs::default_provider();
        // As Go orders them where AES is in hardware: its key schedule hashes with SHA-256, which is in hardware too.
        provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
        if self.require_pq_kem {
            provider.kx_groups =
                vec![aws_lc_rs::kx_group::X25519MLKEM768, aws_lc_rs::kx_group::SECP256R1MLKEM768];
        }
        Arc::new(provider)
    }

    pub(super) fn versions(self) -> &'static [&'static SupportedProtocolVersion] {
        static TLS13_ONLY: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS13];
        if self.require_pq_kem { &TLS13_ONLY } else { rustls::ALL_VERSIONS }
    }
}

/// A certificate chain, leaf first, and its key.
#[derive(Clone, Debug)]
pub struct Identity(pub(super) Arc<CertifiedKey>);

impl Identity {
    /// From DER: the chain without the root, and a PKCS#8 key, of which rustls keeps its own form.
    ///
    /// # Errors
    /// [`TlsError::Config`] when the key cannot be read or does not belong to the leaf.
    pub fn from_pkcs8<'a>(chain: impl IntoIterator<Item = &'a [u8]>, pkcs8: &[u8]) -> Result<Self, TlsError> {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8));
        let key = aws_lc_rs::sign::any_supported_type(&key)?;
        Self::from_signing_key(chain, key)
    }

    /// From a key that stays where it is.
    ///
    /// # Errors
    /// [`TlsError::Config`] when the key does not belong to the leaf.
    pub fn from_signing_key<'a>(
        chain: impl IntoIterator<Item = &'a [u8]>,
        key: Arc<dyn SigningKey>,
    ) -> Result<Self, TlsError> {
        let chain = chain.into_iter().map(|der| CertificateDer::from(der.to_vec())).collect();
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {
                Ok(Self(Arc::new(certified)))
            }
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn resolver(&self) -> Arc<SingleCertAndKey> {
        Arc::new(SingleCertAndKey::from(Arc::clone(&self.0)))
    }
}

/// The server's configuration for HTTP/2. Neither tickets nor session ids nor early data are offered.
///
/// # Errors
/// [`TlsError::Config`].
pub fn server_config(
    identity: &Identity,
    verifier: Arc<SpiffeClientVerifier>,
    policy: TlsPolicy,
) -> Result<Arc<ServerConfig>, TlsError> {
    let builder = ServerConfig::builder_with_provider(policy.provider());
    let builder = builder.with_protocol_versions(policy.versions())?;
    let mut config = builder.with_client_cert_verifier(verifier).with_cert_resolver(identity.resolver());
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// A client's configuration for HTTP/2; `identity` is `None` before attestation.
///
/// # Errors
/// [`TlsError::Config`].
pub fn client_config(
    identity: Option<&Identity>,
    verifier: Arc<SpiffeServerVerifier>,
    policy: TlsPolicy,
) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(policy.provider());
    let builder = builder.with_protocol_versions(policy.versions())?;
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        Some(identity) => builder.with_client_cert_resolver(identity.resolver()),
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config.enable_early_data = false;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}
