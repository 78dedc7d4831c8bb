//! The accept loop of the TCP port.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::gather::Gather;
use super::preface::{Progress, Until};
use crate::caps::{Caps, Slot};
use crate::tls::VerifiedPeer;

const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections that finished their handshake and wait for tonic to take them.
const READY: usize = 64;

/// Limits of the port.
#[derive(Clone, Copy, Debug)]
pub struct TcpOptions {
    /// Time for the TLS handshake, and again for what has to follow it: the HTTP/2 preface from peers with a
    /// certificate, the headers of a first request from others.
    pub deadline: Duration,
    /// Connections without a verified certificate at once from one address (an IPv6 /64 counts as one).
    pub max_unauthenticated_per_address: usize,
}

impl Default for TcpOptions {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(10), max_unauthenticated_per_address: 512 }
    }
}

/// Who is at the other end of a TCP connection. Handlers find `Arc<TcpPeer>` in the extensions of requests.
#[derive(Clone, Debug)]
pub struct TcpPeer {
    /// Address of the socket.
    pub remote_addr: SocketAddr,
    /// The presented chain in DER, leaf first; empty without a client certificate.
    pub chain: Vec<Vec<u8>>,
    /// What the leaf says, verified in the handshake; `None` without a client certificate.
    pub peer: Option<VerifiedPeer>,
}

/// A connection after its handshake.
#[derive(Debug)]
pub struct TlsConn {
    stream: Gather<TlsStream<TcpStream>>,
    peer: Arc<TcpPeer>,
    waiting: Option<(Progress, Pin<Box<Sleep>>)>,
    _slot: Option<Slot<IpAddr>>,
}

/// Accepts connections and shakes hands, many at once, with the configuration that `config` gives at that
/// moment (a rotation takes effect with the next connection); `None` refuses. Failed handshakes only end their
/// own connection. The loop ends when the returned stream is dropped.
pub fn incoming(
    listener: TcpListener,
    options: TcpOptions,
    config: impl Fn() -> Option<Arc<ServerConfig>> + Send + Sync + 'static,
) -> impl Stream<Item = io::Result<TlsConn>> + Send {
    let (ready, conns) = mpsc::channel(READY);
    tokio::spawn(accept_loop(listener, options, config, ready));
    ReceiverStream::new(conns)
}

async fn accept_loop(
    listener: TcpListener,
    options: TcpOptions,
    config: impl Fn() -> Option<Arc<ServerConfig>> + Send + Sync + 'static,
    ready: mpsc::Sender<io::Result<TlsConn>>,
) {
    let caps = Caps::new(options.max_unauthenticated_per_address);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = ready.closed() => return,
        };
        let (stream, remote_addr) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(error = %error, "Failed to accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(slot) = caps.acquire(source_of(remote_addr.ip())) else {
            tracing::debug!(address = %remote_addr, "Connection refused: too many of one address");
            continue;
        };
        let Some(config) = config() else { continue };
        let ready = ready.clone();
        tokio::spawn(async move {
            match tokio::time::timeout(options.deadline, handshake(stream, remote_addr, config)).await {
                Ok(Ok((stream, peer))) => {
                    let conn = TlsConn::new(stream, peer, slot, options.deadline);
                    // The server may have stopped meanwhile.
                    let _ = ready.send(Ok(conn)).await;
                }
                Ok(Err(error)) => {
                    tracing::debug!(address = %remote_addr, error = %error, "TLS handshake failed")
                }
                Err(_) => tracing::debug!(address = %remote_addr, "TLS handshake timed out"),
            }
        });
    }
}

async fn handshake(
    stream: TcpStream,
    remote_addr: SocketAddr,
    config: Arc<ServerConfig>,
) -> io::Result<(TlsStream<TcpStream>, TcpPeer)> {
    stream.set_nodelay(true)?;
    let stream = TlsAcceptor::from(config).accept(stream).await?;
    let (_, connection) = stream.get_ref();
    if connection.alpn_protocol() != Some(b"h2") {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the peer did not ask for HTTP/2"));
    }
    let chain: Vec<Vec<u8>> =
        connection.peer_certificates().unwrap_or_default().iter().map(|der| der.to_vec()).collect();
    let leaf =
        chain.first().map(|leaf| VerifiedPeer::from_leaf(leaf)).transpose().map_err(io::Error::other)?;
    Ok((stream, TcpPeer { remote_addr, chain, peer: leaf }))
}

/// Hosts own whole /64 networks, so the lower half of an IPv6 address is no limit.
fn source_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

impl TlsConn {
    fn new(stream: TlsStream<TcpStream>, peer: TcpPeer, slot: Slot<IpAddr>, deadline: Duration) -> Self {
        let known = peer.peer.is_some();
        let until = if known { Until::Preface } else { Until::FirstRequest };
        let sleep = Box::pin(tokio::time::sleep_until(Instant::now() + deadline));
        let waiting = Some((Progress::new(until), sleep));
        Self { stream: Gather::new(stream), peer: Arc::new(peer), waiting, _slot: (!known).then_some(slot) }
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &Arc<TcpPeer> {
        &self.peer
    }
}

impl Connected for TlsConn {
    type ConnectInfo = Arc<TcpPeer>;

    fn connect_info(&self) -> Self::ConnectInfo {
        Arc::clone(&self.peer)
    }
}

impl AsyncRead for TlsConn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        let Some((progress, deadline)) = &mut this.waiting else { return read };
        if progress.feed(&buf.filled()[before..]) {
            this.waiting = None;
        } else if deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "no request before the deadline",
            )));
        }
        read
    }
}

impl AsyncWrite for TlsConn {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::source_of;

    #[test]
    fn one_network_is_one_source() {
        for (address, source) in [
            ("10.0.0.1", "10.0.0.1"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ] {
            assert_eq!(source_of(address.parse().unwrap()), source.parse::<std::net::IpAddr>().unwrap());
        }
    }
}
