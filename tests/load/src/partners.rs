//! Other trust domains, as far as a server sees of them: a bundle endpoint each, of which some are dead.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use svid_core::bundle::{Bundle, X509Authority};
use svid_core::id::{SpiffeId, TrustDomain};
use svid_core::key::{KeyType, LocalKey};
use svid_core::x509::ca::self_signed_ca;
use svid_core::x509::{Authority, CaSubject, LeafTemplate, PublicKey, Subject};
use svid_proto::convert::bundle_to_wire;
use svid_proto::spire::api::types;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

const LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
/// As SPIRE's servers say.
const REFRESH_HINT: Duration = Duration::from_secs(300);
/// Longest request that is read.
const MAX_REQUEST: usize = 16 * 1024;

/// How an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Alive,
    /// Takes connections and says nothing.
    Silent,
    /// Nobody listens.
    Closed,
}

/// Endpoints that end with it.
pub struct Partners {
    /// How each is followed.
    pub relationships: Vec<types::FederationRelationship>,
    _endpoints: JoinSet<()>,
}

impl Partners {
    /// `count` trust domains, of which the first `dead` do not answer: every other one is silent, the rest closed.
    /// # Errors
    /// If a port or a certificate cannot be had.
    pub async fn start(count: usize, dead: usize) -> Result<Self> {
        let mut partners = Self { relationships: Vec::with_capacity(count), _endpoints: JoinSet::new() };
        for number in 0..count {
            let health = match number {
                n if n >= dead => Health::Alive,
                n if n % 2 == 0 => Health::Silent,
                _ => Health::Closed,
            };
            partners.add(&format!("p{number}.test"), health).await?;
        }
        Ok(partners)
    }

    async fn add(&mut self, name: &str, health: Health) -> Result<()> {
        let trust_domain: TrustDomain = name.parse()?;
        let id: SpiffeId = format!("spiffe://{name}/spire/server").parse()?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("https://{}/", listener.local_addr()?);
        let (bundle, tls) = identity(&trust_domain, &id)?;
        let document = bundle.to_document();
        match health {
            Health::Closed => drop(listener),
            health => {
                self._endpoints.spawn(serve(
                    listener,
                    (health == Health::Alive).then_some(tls),
                    document.into(),
                ));
            }
        }
        let profile = types::HttpsspiffeProfile { endpoint_spiffe_id: id.to_string() };
        self.relationships.push(types::FederationRelationship {
            trust_domain: name.to_owned(),
            bundle_endpoint_url: url,
            trust_domain_bundle: Some(bundle_to_wire(&bundle)),
            bundle_endpoint_profile: Some(
                types::federation_relationship::BundleEndpointProfile::HttpsSpiffe(profile),
            ),
        });
        Ok(())
    }
}

/// A trust domain's bundle, and its endpoint's side of TLS.
fn identity(trust_domain: &TrustDomain, id: &SpiffeId) -> Result<(Bundle, TlsAcceptor)> {
    let now = SystemTime::now();
    let signer = LocalKey::generate(KeyType::EcP256)?.into_signer();
    let root = self_signed_ca(trust_domain, &CaSubject::default(), LIFE, &*signer, now)?;
    let mut bundle = Bundle::empty(trust_domain.clone());
    bundle.x509_authorities.push(X509Authority::from_der(&root)?);
    bundle.refresh_hint = REFRESH_HINT;
    bundle.sequence_number = 1;
    let key = LocalKey::generate(KeyType::EcP256)?;
    let template = LeafTemplate {
        id: id.clone(),
        public_key: PublicKey::of(&key)?,
        ttl: LIFE,
        dns_names: Vec::new(),
        subject: Subject::Spire,
        not_after_limit: None,
    };
    let svid = Authority::new(&root, Vec::new(), signer)?.prepare(template, now)?.sign()?;
    let chain = svid.chain().iter().map(|der| CertificateDer::from(der.to_vec())).collect();
    let key = PrivateKeyDer::Pkcs8(key.private_key().secret_bytes().to_vec().into());
    let config = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key);
    Ok((bundle, TlsAcceptor::from(Arc::new(config.context("an endpoint's certificate")?))))
}

async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, document: Arc<str>) {
    let mut open = Vec::new();
    while let Ok((tcp, _)) = listener.accept().await {
        match &tls {
            // A failed answer is the asker's business.
            Some(tls) => drop(tokio::spawn(answer(tcp, tls.clone(), document.clone()))),
            None => open.push(tcp),
        }
    }
}

async fn answer(tcp: TcpStream, tls: TlsAcceptor, document: Arc<str>) -> std::io::Result<()> {
    let mut stream = tls.accept(tcp).await?;
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") && request.len() < MAX_REQUEST {
        request.push(stream.read_u8().await?);
    }
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        document.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(document.as_bytes()).await?;
    stream.shutdown().await
}
