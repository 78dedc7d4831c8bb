//! HTTP/2 connections without the reconnecting and queueing of a tonic channel: a caller that measures wants one
//! connection, now, and as little work of its own as can be.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Uri;
use hyper::body::Incoming;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tonic::body::Body;
use tower::Service;

use crate::stats::Failure;

/// One connection, closed when the last clone goes.
#[derive(Clone)]
pub struct Http2 {
    requests: SendRequest<Body>,
    _connection: Arc<Closing>,
}

struct Closing(JoinHandle<()>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Scheme and authority of requests. No server of ours or SPIRE's looks at them.
pub fn origin() -> Uri {
    Uri::from_static("http://localhost")
}

impl Http2 {
    /// Connects to a Unix socket.
    /// # Errors
    /// A [`Failure`] of code `Connect` or `Http2`.
    pub async fn unix(path: &Path) -> Result<Self, Failure> {
        let stream = UnixStream::connect(path).await;
        let stream =
            stream.map_err(|error| Failure::new("Connect", format!("{}: {error}", path.display())))?;
        Self::over(stream).await
    }

    /// Connects to `server` (`host:port`) over TLS.
    /// # Errors
    /// A [`Failure`] of code `Connect`, `Tls` or `Http2`.
    pub async fn tls(server: &str, config: Arc<ClientConfig>) -> Result<Self, Failure> {
        let tcp = TcpStream::connect(server).await;
        let tcp = tcp.map_err(|error| Failure::new("Connect", format!("{server}: {error}")))?;
        Self::over_tls(tcp, config).await
    }

    /// As [`Self::tls`], to an address, from another address of this machine if need be.
    /// # Errors
    /// As [`Self::tls`].
    pub async fn tls_from(
        source: Option<IpAddr>,
        server: SocketAddr,
        config: Arc<ClientConfig>,
    ) -> Result<Self, Failure> {
        let connect = |error| Failure::new("Connect", format!("{server}: {error}"));
        let tcp = match (source, server) {
            (Some(source), SocketAddr::V4(_)) => {
                let socket = TcpSocket::new_v4().map_err(connect)?;
                socket.bind(SocketAddr::new(source, 0)).map_err(connect)?;
                socket.connect(server).await
            }
            _ => TcpStream::connect(server).await,
        };
        Self::over_tls(tcp.map_err(connect)?, config).await
    }

    async fn over_tls(tcp: TcpStream, config: Arc<ClientConfig>) -> Result<Self, Failure> {
        tcp.set_nodelay(true).map_err(|error| Failure::new("Connect", error))?;
        let name = ServerName::try_from("spire-server").map_err(|error| Failure::new("Tls", error))?;
        let tls = TlsConnector::from(config).connect(name, tcp).await;
        Self::over(tls.map_err(|error| Failure::new("Tls", error))?).await
    }

    /// True once the connection takes no more requests.
    pub fn is_closed(&self) -> bool {
        self.requests.is_closed()
    }

    async fn over(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Result<Self, Failure> {
        let started = handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (requests, connection) = started.map_err(|error| Failure::new("Http2", error))?;
        let task = tokio::spawn(async move {
            let _ = connection.await; // requests in flight tell the error
        });
        Ok(Self { requests, _connection: Arc::new(Closing(task)) })
    }
}

impl Service<http::Request<Body>> for Http2 {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.requests.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.requests.send_request(request))
    }
}
