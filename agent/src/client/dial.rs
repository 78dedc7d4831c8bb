//! From the server's name to an HTTP/2 connection over TLS.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use svid_core::bundle::Bundle;
use svid_core::id::TrustDomain;
use svid_daemon::tls::{Roots, ServerTrust, SpiffeServerVerifier, TlsPolicy, client_config};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use super::error::ConnectError;
use super::identity::AgentIdentity;

/// One address gets this long to accept.
const TCP_TIMEOUT: Duration = Duration::from_secs(5);
/// Name, TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// A peer that does not acknowledge for this long is gone. Servers of gRPC for Go refuse HTTP/2 pings more often
/// than every five minutes, so the kernel has to notice.
const SILENCE: Duration = Duration::from_secs(30);

/// The own trust domain's authorities, as connections check them. Clones share them.
#[derive(Clone, Default)]
pub struct SharedRoots(Arc<ArcSwapOption<Roots>>);

impl SharedRoots {
    /// New connections trust these from now on. A bundle without a usable authority leaves nothing to trust.
    pub fn set(&self, bundle: &Bundle) {
        let ders = bundle.x509_authorities.iter().map(svid_core::bundle::X509Authority::der);
        self.0.store(Roots::from_ders(ders).ok().map(Arc::new));
    }
}

impl fmt::Debug for SharedRoots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedRoots")
    }
}

/// Knows where the server is and how to check that it is the server.
#[derive(Clone, Debug)]
pub struct Dialer {
    host: Arc<str>,
    port: u16,
    trust_domain: TrustDomain,
    policy: TlsPolicy,
}

/// A connection that repairs itself, and why the last repair failed.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) channel: Channel,
    pub(super) last_error: LastError,
}

#[derive(Clone, Default)]
pub(super) struct LastError(Arc<Mutex<Option<ConnectError>>>);

impl LastError {
    fn set(&self, error: ConnectError) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    pub(super) fn take(&self) -> Option<ConnectError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Dialer {
    /// For the server at `host` (a name or an address) and `port`.
    pub fn new(host: &str, port: u16, trust_domain: TrustDomain, require_pq_kem: bool) -> Self {
        Self { host: host.into(), port, trust_domain, policy: TlsPolicy { require_pq_kem } }
    }

    /// Host and port.
    pub fn target(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    /// The trust domain whose server is expected.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Connects. `roots` of `None` is the first contact of an insecure bootstrap; `identity` of `None` sends no
    /// certificate.
    pub(super) async fn connect(
        &self,
        roots: Option<&SharedRoots>,
        identity: Option<&AgentIdentity>,
    ) -> Result<Connection, ConnectError> {
        let tls = self.tls(roots, identity)?;
        let last_error = LastError::default();
        let (dialer, errors) = (self.clone(), last_error.clone());
        let connector = tower::service_fn(move |_: http::Uri| {
            let (dialer, tls, errors) = (dialer.clone(), tls.clone(), errors.clone());
            async move {
                dialer.open(&tls).await.map(TokioIo::new).map_err(|error| {
                    let message = error.to_string();
                    errors.set(error);
                    io::Error::other(message)
                })
            }
        });
        let http = |message: String| ConnectError::Http { target: self.target(), message };
        let uri = |scheme: &str| {
            format!("{scheme}://{}", self.target())
                .parse::<http::Uri>()
                .map_err(|error| http(error.to_string()))
        };
        // Encryption is the connector's job, so tonic must not see `https`; the peer shall.
        let endpoint = Endpoint::from(uri("http")?).origin(uri("https")?);
        let channel = endpoint.connect_with_connector(connector).await;
        let channel =
            channel.map_err(|error| last_error.take().unwrap_or_else(|| http(error_text(&error))))?;
        Ok(Connection { channel, last_error })
    }

    fn tls(
        &self,
        roots: Option<&SharedRoots>,
        identity: Option<&AgentIdentity>,
    ) -> Result<TlsConnector, ConnectError> {
        let trust = match roots {
            None => ServerTrust::InsecureBootstrap,
            Some(roots) => {
                let (roots, own) = (roots.clone(), self.trust_domain.clone());
                ServerTrust::Bundle(Arc::new(move |asked: &TrustDomain| {
                    (*asked == own).then(|| roots.0.load_full()).flatten()
                }))
            }
        };
        let identity = identity.map(AgentIdentity::for_tls).transpose()?;
        let verifier = Arc::new(SpiffeServerVerifier::new(self.trust_domain.clone(), trust));
        Ok(TlsConnector::from(client_config(identity.as_ref(), verifier, self.policy)?))
    }

    async fn open(&self, tls: &TlsConnector) -> Result<TlsStream<TcpStream>, ConnectError> {
        let timeout = || ConnectError::Timeout { target: self.target() };
        tokio::time::timeout(CONNECT_TIMEOUT, self.open_slowly(tls)).await.map_err(|_| timeout())?
    }

    async fn open_slowly(&self, tls: &TlsConnector) -> Result<TlsStream<TcpStream>, ConnectError> {
        let tcp = self.tcp().await?;
        let failed = |source| ConnectError::Tls { target: self.target(), source };
        let name = ServerName::try_from(self.host.to_string());
        let name = name.map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
        tls.connect(name, tcp).await.map_err(failed)
    }

    async fn tcp(&self) -> Result<TcpStream, ConnectError> {
        let resolve = |source| ConnectError::Resolve { host: self.host.to_string(), source };
        let addresses = tokio::net::lookup_host((&*self.host, self.port)).await.map_err(resolve)?;
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in addresses {
            match tokio::time::timeout(TCP_TIMEOUT, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    watch_over(&stream);
                    return Ok(stream);
                }
                Ok(Err(error)) => last = error,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(ConnectError::Tcp { target: self.target(), source: last })
    }
}

/// Makes the kernel notice a dead peer. A system that lacks an option only notices later.
fn watch_over(stream: &TcpStream) {
    use rustix::net::sockopt;
    let set = || {
        sockopt::set_tcp_nodelay(stream, true)?;
        sockopt::set_socket_keepalive(stream, true)?;
        sockopt::set_tcp_keepidle(stream, SILENCE)?;
        sockopt::set_tcp_keepintvl(stream, SILENCE / 3)?;
        sockopt::set_tcp_keepcnt(stream, 3)?;
        let silence = u32::try_from(SILENCE.as_millis()).unwrap_or(u32::MAX);
        sockopt::set_tcp_user_timeout(stream, silence)
    };
    if let Err(error) = set() {
        tracing::debug!(%error, "cannot set options of the connection to the server");
    }
}

/// An error with its causes; tonic's own texts say little without them.
pub(super) fn error_text(error: &(dyn std::error::Error + 'static)) -> String {
    svid_daemon::log::chain(error)
}
