//! TLS of the metrics listener, from files or with the daemon's own SVID, kept up to date while it runs.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::pki_types::CertificateDer;
use rustls::server::{ClientCertVerifierBuilder, NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use svid_core::id::SpiffeId;
use svid_core::pem::{PemError, parse_certs_pem, parse_key_pem};

use super::{BundleSource, Identity, SpiffeClientVerifier, TlsError, TlsPolicy};
use crate::config::PrometheusTls;

/// Files are read again this often, and a renewed SVID is picked up within it. Source: SPIRE.
const REFRESH: Duration = Duration::from_secs(5);

/// The TLS configuration in force.
pub type CurrentTls = Arc<ArcSwap<ServerConfig>>;

/// Why the metrics listener has no TLS configuration.
#[derive(Debug, thiserror::Error)]
pub enum ScrapeTlsError {
    /// A file cannot be read.
    #[error("cannot read {0}")]
    Read(String, #[source] std::io::Error),
    /// A file does not hold what it should.
    #[error("cannot use {0}")]
    Pem(String, #[source] PemError),
    /// Certificates or key do not fit.
    #[error("TLS of the metrics listener cannot be set up")]
    Tls(#[from] TlsError),
    /// The authorities in `client_ca_file` cannot be used.
    #[error("cannot use the authorities of {0}")]
    ClientCa(String, #[source] rustls::server::VerifierBuilderError),
}

/// What the daemon itself can put in.
pub struct OwnSvid {
    /// The SVID as it is now.
    pub identity: Box<dyn Fn() -> Result<Identity, TlsError> + Send + Sync>,
    /// The bundles that scrapers' SVIDs are checked against.
    pub bundles: Arc<dyn BundleSource>,
}

/// The configuration now, and the task that replaces it when a file or the SVID changed.
/// # Errors
/// [`ScrapeTlsError`] for the first one; later the last good one stays.
pub fn scrape_tls(
    tls: PrometheusTls,
    policy: TlsPolicy,
    own: OwnSvid,
) -> Result<(CurrentTls, impl Future<Output = ()> + Send), ScrapeTlsError> {
    let current = Arc::new(ArcSwap::new(build(&tls, policy, &own)?));
    let swap = Arc::clone(&current);
    let refresh = async move {
        let mut failed = false;
        loop {
            tokio::time::sleep(REFRESH).await;
            match build(&tls, policy, &own) {
                Ok(next) => {
                    failed = false;
                    swap.store(next);
                }
                Err(error) if !failed => {
                    failed = true;
                    let error = crate::log::chain(&error);
                    tracing::error!(error, "The metrics listener goes on with its last TLS configuration");
                }
                Err(_) => {}
            }
        }
    };
    Ok((current, refresh))
}

fn build(tls: &PrometheusTls, policy: TlsPolicy, own: &OwnSvid) -> Result<Arc<ServerConfig>, ScrapeTlsError> {
    let identity = match tls.use_spire_svid {
        true => (own.identity)()?,
        false => from_files(&tls.cert_file, &tls.key_file)?,
    };
    let builder = ServerConfig::builder_with_provider(policy.provider());
    let builder = builder.with_protocol_versions(policy.versions()).map_err(TlsError::from)?;
    let builder = if !tls.client_ca_file.is_empty() {
        let authorities = client_ca(&tls.client_ca_file, policy)?;
        let unusable = |error| ScrapeTlsError::ClientCa(tls.client_ca_file.clone(), error);
        builder.with_client_cert_verifier(authorities.build().map_err(unusable)?)
    } else if !tls.authorized_spiffe_ids.is_empty() {
        let ids: Result<Vec<SpiffeId>, _> = tls.authorized_spiffe_ids.iter().map(|id| id.parse()).collect();
        let verifier = SpiffeClientVerifier::exactly(ids.map_err(TlsError::from)?, Arc::clone(&own.bundles));
        builder.with_client_cert_verifier(Arc::new(verifier))
    } else {
        builder.with_no_client_auth()
    };
    let mut config = builder.with_cert_resolver(identity.resolver());
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn read(path: &str) -> Result<zeroize::Zeroizing<Vec<u8>>, ScrapeTlsError> {
    let bytes = std::fs::read(path).map_err(|error| ScrapeTlsError::Read(path.to_owned(), error))?;
    Ok(zeroize::Zeroizing::new(bytes))
}

fn from_files(cert: &str, key: &str) -> Result<Identity, ScrapeTlsError> {
    let chain =
        parse_certs_pem(&*read(cert)?).map_err(|error| ScrapeTlsError::Pem(cert.to_owned(), error))?;
    let key = parse_key_pem(&*read(key)?).map_err(|error| ScrapeTlsError::Pem(key.to_owned(), error))?;
    Ok(Identity::from_pkcs8(chain.iter().map(Vec::as_slice), key.secret_bytes())?)
}

fn client_ca(path: &str, policy: TlsPolicy) -> Result<ClientCertVerifierBuilder, ScrapeTlsError> {
    let ders = parse_certs_pem(&*read(path)?).map_err(|error| ScrapeTlsError::Pem(path.to_owned(), error))?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(ders.into_iter().map(CertificateDer::from));
    Ok(WebPkiClientVerifier::builder_with_provider(Arc::new(roots), policy.provider()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::tests::{TestCa, handshake, td};
    use super::super::{ServerTrust, SpiffeServerVerifier, client_config};
    use super::*;

    fn client(ca: &TestCa, identity: Option<&Identity>) -> Arc<rustls::ClientConfig> {
        let verifier =
            SpiffeServerVerifier::new(td("example.org"), ServerTrust::Bundle(ca.bundles("example.org")));
        let config = client_config(identity, Arc::new(verifier), TlsPolicy::default()).unwrap();
        let mut config = Arc::unwrap_or_clone(config);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Arc::new(config)
    }

    #[test]
    fn only_the_listed_ids_may_scrape() {
        let ca = TestCa::new("example.org");
        let server = ca.issue(&["spiffe://example.org/spire/server"]);
        let own =
            OwnSvid { identity: Box::new(move || Ok(server.clone())), bundles: ca.bundles("example.org") };
        let tls = PrometheusTls {
            use_spire_svid: true,
            authorized_spiffe_ids: vec!["spiffe://example.org/prometheus".into()],
            ..PrometheusTls::default()
        };
        let check = |id: Option<&str>, want: bool| {
            let config = build(&tls, TlsPolicy::default(), &own).unwrap();
            let identity = id.map(|id| ca.issue(&[id]));
            assert_eq!(handshake(client(&ca, identity.as_ref()), config).is_ok(), want, "{id:?}");
        };
        check(Some("spiffe://example.org/prometheus"), true);
        check(Some("spiffe://example.org/other"), false);
        check(None, false);
    }

    #[test]
    fn files_that_are_missing_are_named() {
        let own = OwnSvid {
            identity: Box::new(|| Err(TlsError::NoAuthority)),
            bundles: Arc::new(|_: &svid_core::id::TrustDomain| None),
        };
        let tls = PrometheusTls {
            cert_file: "/nowhere/cert.pem".into(),
            key_file: "/nowhere/key.pem".into(),
            ..PrometheusTls::default()
        };
        let error = build(&tls, TlsPolicy::default(), &own).unwrap_err();
        assert_eq!(error.to_string(), "cannot read /nowhere/cert.pem");
    }
}
