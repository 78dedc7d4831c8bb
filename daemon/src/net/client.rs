//! Channels to our servers. Neither asks DNS for more than the address of the host.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// A channel over the Unix socket at `path`. It connects with the first request and again when the connection
/// is lost.
pub fn unix_channel(path: impl Into<PathBuf>) -> Channel {
    let path = path.into();
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    }))
}

/// A channel over TLS to `address` (`host:port`), connected like [`unix_channel`]. `config` is asked for each
/// connection, so that a renewed identity or bundle is used from the next one on.
pub fn tls_channel(
    address: impl Into<String>,
    config: impl Fn() -> Arc<ClientConfig> + Send + Sync + 'static,
) -> Channel {
    let address: Arc<str> = address.into().into();
    // Only the peer verifier decides whom we talk to: this name reaches no one but the HTTP layer.
    Endpoint::from_static("http://spire-server")
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .connect_with_connector_lazy(service_fn(move |_| {
            let (address, config) = (Arc::clone(&address), config());
            async move {
                match tokio::time::timeout(CONNECT_TIMEOUT, connect(&address, config)).await {
                    Ok(connected) => connected.map(TokioIo::new),
                    Err(_) => Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!("connecting to {address} timed out"),
                    )),
                }
            }
        }))
}

async fn connect(
    address: &str,
    config: Arc<ClientConfig>,
) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    // Not sent (SNI is off) and not checked (see SpiffeServerVerifier).
    let name = ServerName::try_from("spire-server").map_err(io::Error::other)?;
    TlsConnector::from(config).connect(name, stream).await
}
