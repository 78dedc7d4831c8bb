//! The accept loop of a Unix socket, for `serve_with_incoming`.

use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tonic::transport::server::Connected;

use super::CallerProcess;
use crate::caps::{Caps, Slot};
use crate::log::chain;

/// Pause after a failed accept, so that a process out of descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Limits of one socket.
#[derive(Clone, Copy, Debug)]
pub struct PeerOptions {
    /// Connections of one user at once.
    pub max_per_uid: usize,
}

impl Default for PeerOptions {
    fn default() -> Self {
        Self { max_per_uid: 4096 }
    }
}

/// A connection whose other end is known. `ConnectInfo` is `Arc<CallerProcess>`: handlers find it in the
/// extensions of their requests.
#[derive(Debug)]
pub struct UnixConn {
    stream: UnixStream,
    caller: Arc<CallerProcess>,
    _slot: Slot<u32>,
}

impl UnixConn {
    /// Who is at the other end.
    pub fn caller(&self) -> &Arc<CallerProcess> {
        &self.caller
    }
}

/// Accepts and identifies callers. A caller that cannot be identified loses its connection and nothing else
/// happens; the stream itself never fails and never ends.
pub fn incoming(
    listener: UnixListener,
    options: PeerOptions,
) -> impl Stream<Item = io::Result<UnixConn>> + Send {
    let caps = Caps::new(options.max_per_uid);
    futures_util::stream::unfold((listener, caps), |(listener, caps)| async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    if let Some(conn) = admit(stream, &caps) {
                        return Some((Ok(conn), (listener, caps)));
                    }
                }
                Err(error) => {
                    tracing::warn!(error = %error, "Failed to accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}

fn admit(stream: UnixStream, caps: &Caps<u32>) -> Option<UnixConn> {
    let caller = match CallerProcess::identify(stream.as_fd()) {
        Ok(caller) => caller,
        Err(error) => {
            tracing::warn!(error = %chain(&error), "Connection refused: caller could not be identified");
            return None;
        }
    };
    let Some(slot) = caps.acquire(caller.uid()) else {
        tracing::warn!(
            caller_uid = caller.uid(),
            caller_pid = caller.pid(),
            "Connection refused: too many of one user"
        );
        return None;
    };
    Some(UnixConn { stream, caller: Arc::new(caller), _slot: slot })
}

impl Connected for UnixConn {
    type ConnectInfo = Arc<CallerProcess>;

    fn connect_info(&self) -> Self::ConnectInfo {
        Arc::clone(&self.caller)
    }
}

impl AsyncRead for UnixConn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for UnixConn {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
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
