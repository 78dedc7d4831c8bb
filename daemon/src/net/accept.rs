//! The accept loop of the TCP port.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use futures_util::Stream;
use nix::sys::resource::{Resource, getrlimit};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::gather::Gather;
use super::preface::{Progress, Until};
use crate::caps::{Caps, Slot};
use crate::tls::{Roots, VerifiedPeer};

const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections that finished their handshake and wait for tonic to take them.
const READY: usize = 64;
/// Most connections without a verified certificate, where files are plenty.
const MAX_UNAUTHENTICATED: usize = 4096;
/// A full port is logged at most this often.
const FULL_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Limits of the port.
#[derive(Clone, Copy, Debug)]
pub struct TcpOptions {
    /// Time for the TLS handshake, and again for what has to follow it: the HTTP/2 preface from peers with a
    /// certificate, the headers of a first request from others.
    pub deadline: Duration,
    /// Connections without a verified certificate at once from one address (an IPv6 /64 counts as one).
    pub max_unauthenticated_per_address: usize,
    /// The same from all addresses together; connections beyond are closed at once.
    pub max_unauthenticated: usize,
}

impl Default for TcpOptions {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(10),
            max_unauthenticated_per_address: 512,
            max_unauthenticated: share_of_files(),
        }
    }
}

/// Strangers get a quarter of the open files, so that agents, the database and logs never run out of them.
fn share_of_files() -> usize {
    let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    usize::try_from(files / 4).unwrap_or(usize::MAX).clamp(1, MAX_UNAUTHENTICATED)
}

/// Who is at the other end of a TCP connection. Handlers find `Arc<TcpPeer>` in the extensions of requests.
#[derive(Debug)]
pub struct TcpPeer {
    /// Address of the socket.
    pub remote_addr: SocketAddr,
    /// The presented chain in DER, leaf first; empty without a client certificate.
    pub chain: Vec<Vec<u8>>,
    /// What the leaf says, verified in the handshake; `None` without a client certificate.
    pub peer: Option<VerifiedPeer>,
    /// The roots that vouched for the chain last.
    vouched: Mutex<Weak<Roots>>,
}

impl TcpPeer {
    /// Whether these roots vouch for the chain. A connection may outlive the authority behind its certificate, so this
    /// is asked with each request; as long as the roots are the same, the answer costs nothing.
    pub fn is_vouched_for(&self, roots: &Arc<Roots>, now: SystemTime) -> bool {
        let mut vouched = self.vouched.lock().unwrap_or_else(PoisonError::into_inner);
        if std::ptr::eq(vouched.as_ptr(), Arc::as_ptr(roots)) {
            return true;
        }
        let vouch = roots.vouch_for(&self.chain, now).is_ok();
        if vouch {
            *vouched = Arc::downgrade(roots);
        }
        vouch
    }
}

/// A connection after its handshake.
#[derive(Debug)]
pub struct TlsConn {
    stream: Gather<TlsStream<TcpStream>>,
    peer: Arc<TcpPeer>,
    waiting: Option<(Progress, Pin<Box<Sleep>>)>,
    _place: Option<Place>,
}

/// What a connection without a verified certificate takes up: one of its address and one of all.
#[derive(Debug)]
struct Place {
    _of_address: Slot<IpAddr>,
    _of_all: OwnedSemaphorePermit,
}

/// Hands out places.
struct Places {
    by_address: Caps<IpAddr>,
    all: Arc<Semaphore>,
    logged: Option<Instant>,
}

impl Places {
    fn new(options: &TcpOptions) -> Self {
        Self {
            by_address: Caps::new(options.max_unauthenticated_per_address),
            all: Arc::new(Semaphore::new(options.max_unauthenticated.min(Semaphore::MAX_PERMITS))),
            logged: None,
        }
    }

    fn take(&mut self, remote_addr: SocketAddr) -> Option<Place> {
        let Some(of_address) = self.by_address.acquire(source_of(remote_addr.ip())) else {
            tracing::debug!(address = %remote_addr, "Connection refused: too many of one address");
            return None;
        };
        let Ok(of_all) = Arc::clone(&self.all).try_acquire_owned() else {
            self.log_full(remote_addr);
            return None;
        };
        Some(Place { _of_address: of_address, _of_all: of_all })
    }

    fn log_full(&mut self, remote_addr: SocketAddr) {
        if self.logged.is_none_or(|last| last.elapsed() >= FULL_LOG_INTERVAL) {
            self.logged = Some(Instant::now());
            tracing::warn!(
                address = %remote_addr,
                "Connections refused: too many without a verified certificate"
            );
        }
    }
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
    let mut places = Places::new(&options);
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
        let Some(place) = places.take(remote_addr) else { continue };
        let Some(config) = config() else { continue };
        let ready = ready.clone();
        tokio::spawn(async move {
            match tokio::time::timeout(options.deadline, handshake(stream, remote_addr, config)).await {
                Ok(Ok((stream, peer))) => {
                    let conn = TlsConn::new(stream, peer, place, options.deadline);
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
    Ok((stream, TcpPeer { remote_addr, chain, peer: leaf, vouched: Mutex::default() }))
}

/// Hosts own whole /64 networks, so the lower half of an IPv6 address is no limit.
fn source_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

impl TlsConn {
    fn new(stream: TlsStream<TcpStream>, peer: TcpPeer, place: Place, deadline: Duration) -> Self {
        let known = peer.peer.is_some();
        let until = if known { Until::Preface } else { Until::FirstRequest };
        let sleep = Box::pin(tokio::time::sleep_until(Instant::now() + deadline));
        let waiting = Some((Progress::new(until), sleep));
        Self { stream: Gather::new(stream), peer: Arc::new(peer), waiting, _place: (!known).then_some(place) }
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
    use super::{Places, TcpOptions, source_of};

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

    #[tokio::test]
    async fn strangers_are_counted_over_all_addresses() {
        let options = TcpOptions { max_unauthenticated: 2, ..TcpOptions::default() };
        let mut places = Places::new(&options);
        let first = places.take("10.0.0.1:1".parse().unwrap()).unwrap();
        let _second = places.take("10.0.0.2:1".parse().unwrap()).unwrap();
        assert!(places.take("10.0.0.3:1".parse().unwrap()).is_none());
        drop(first);
        assert!(places.take("10.0.0.3:1".parse().unwrap()).is_some());
    }
}
