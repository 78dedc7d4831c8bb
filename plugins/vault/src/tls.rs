//! TLS to Vault: which roots count, and what we show.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use svid_core::pem::{parse_certs_pem, parse_key_pem};

use crate::config::{Auth, Connection};
use crate::error::VaultError;
use crate::files;

/// The configuration for one client. Files are read here and nowhere else, so that a new client sees new files.
pub(crate) fn client_config(connection: &Connection) -> Result<ClientConfig, VaultError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| VaultError::File(format!("TLS: {error}")))?;
    let builder = if connection.insecure_skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
    } else {
        builder.with_root_certificates(roots(connection.ca_cert_path.as_deref())?)
    };
    Ok(match &connection.auth {
        Auth::Cert { cert_path, key_path, .. } => builder
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity(cert_path, key_path)?))),
        _ => builder.with_no_client_auth(),
    })
}

/// Only what the file holds, if there is one; what the operating system trusts otherwise.
fn roots(ca_cert_path: Option<&Path>) -> Result<RootCertStore, VaultError> {
    let mut store = RootCertStore::empty();
    let Some(path) = ca_cert_path else {
        store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return Ok(store);
    };
    let words = |error: &dyn std::fmt::Display| VaultError::File(format!("ca_cert_path {path:?}: {error}"));
    let certs = parse_certs_pem(&*files::read("ca_cert_path", path)?).map_err(|error| words(&error))?;
    for der in certs {
        store.add(CertificateDer::from(der)).map_err(|error| words(&error))?;
    }
    Ok(store)
}

fn identity(cert_path: &Path, key_path: &Path) -> Result<CertifiedKey, VaultError> {
    let words = |what: &str, path: &Path, error: &dyn std::fmt::Display| {
        VaultError::File(format!("{what} {path:?}: failed to parse client cert and private-key: {error}"))
    };
    let certs = parse_certs_pem(&*files::read("client_cert_path", cert_path)?)
        .map_err(|error| words("client_cert_path", cert_path, &error))?;
    let key = parse_key_pem(&*files::read("client_key_path", key_path)?)
        .map_err(|error| words("client_key_path", key_path, &error))?;
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.secret_bytes()));
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&der)
        .map_err(|error| words("client_key_path", key_path, &error))?;
    let identity = CertifiedKey::new(certs.into_iter().map(CertificateDer::from).collect(), key);
    identity.keys_match().map_err(|error| words("client_key_path", key_path, &error))?;
    Ok(identity)
}

/// Believes any certificate, as `insecure_skip_verify` asks; the handshake's own signatures still count.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
