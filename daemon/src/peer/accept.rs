//! The accept loop of a Unix socket, for `serve_with_incoming`.

use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use nix::sys::resource::{Resource, getrlimit};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tonic::transport::server::Connected;

use super::CallerProcess;
use super::authority::AuthorityMend;
use crate::caps::{Caps, Slot};
use crate::log::chain;

/// Pause after a failed accept, so that a process out of descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Most connections of one user.
const MAX_PER_UID: usize = 4096;
/// All callers together get this part of the descriptors that the process may have: each costs up to three.
const PART_OF_DESCRIPTORS: u64 = 4;
/// What the system allows where it does not say.
const USUAL_DESCRIPTORS: u64 = 1024;

/// Limits of one socket.
#[derive(Clone, Copy, Debug)]
pub struct PeerOptions {
    /// Connections of one user at once.
    pub max_per_uid: usize,
    /// Connections of all users at once.
    pub max_total: usize,
    /// How many of `max_total` only root and this process's own user get.
    pub reserved: usize,
}

impl Default for PeerOptions {
    /// A quarter of the open files that the process may have now, half of that for one user, a sixteenth reserved.
    fn default() -> Self {
        let descriptors = getrlimit(Resource::RLIMIT_NOFILE).map_or(USUAL_DESCRIPTORS, |(soft, _)| soft);
        let max_total = usize::try_from(descriptors / PART_OF_DESCRIPTORS).unwrap_or(usize::MAX);
        Self { max_per_uid: MAX_PER_UID.min(max_total / 2).max(1), max_total, reserved: max_total / 16 }
    }
}

/// A connection whose other end is known. `ConnectInfo` is `Arc<CallerProcess>`: handlers find it in the
/// extensions of their requests.
#[derive(Debug)]
pub struct UnixConn {
    stream: UnixStream,
    caller: Arc<CallerProcess>,
    authority: AuthorityMend,
    _slots: (Slot<u32>, Slot<()>),
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
    let door = Door::new(options);
    futures_util::stream::unfold((listener, door), |(listener, door)| async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    if let Some(conn) = door.admit(stream) {
                        return Some((Ok(conn), (listener, door)));
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

/// Counts who is in.
#[derive(Debug)]
struct Door {
    by_uid: Caps<u32>,
    total: Caps<()>,
    reserved: usize,
    own_uid: u32,
}

impl Door {
    fn new(options: PeerOptions) -> Self {
        Self {
            by_uid: Caps::new(options.max_per_uid),
            total: Caps::new(options.max_total),
            reserved: options.reserved,
            own_uid: nix::unistd::geteuid().as_raw(),
        }
    }

    fn admit(&self, stream: UnixStream) -> Option<UnixConn> {
        let caller = match CallerProcess::identify(stream.as_fd()) {
            Ok(caller) => caller,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "Connection refused: caller could not be identified");
                return None;
            }
        };
        match self.slots(caller.uid()) {
            Ok(slots) => Some(UnixConn {
                stream,
                caller: Arc::new(caller),
                authority: AuthorityMend::new(),
                _slots: slots,
            }),
            Err(full) => {
                tracing::warn!(
                    caller_uid = caller.uid(),
                    caller_pid = caller.pid(),
                    "Connection refused: {full}"
                );
                None
            }
        }
    }

    /// A place for one more connection of this user, or what there are too many of.
    fn slots(&self, uid: u32) -> Result<(Slot<u32>, Slot<()>), &'static str> {
        let of_user = self.by_uid.acquire(uid).ok_or("too many of one user")?;
        let reserved = if uid == 0 || uid == self.own_uid { 0 } else { self.reserved };
        let of_all = self.total.acquire_leaving((), reserved).ok_or("too many of all users")?;
        Ok((of_user, of_all))
    }
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
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.authority.mend(&mut buf.filled_mut()[before..]);
        read
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{Door, PeerOptions};

    #[test]
    fn many_users_leave_places_for_root_and_the_own_user() {
        let door =
            Door { own_uid: 7, ..Door::new(PeerOptions { max_per_uid: 1, max_total: 4, reserved: 2 }) };
        let first = door.slots(1001).unwrap();
        assert_eq!(door.slots(1001).unwrap_err(), "too many of one user");
        let _second = door.slots(1002).unwrap();
        assert_eq!(door.slots(1003).unwrap_err(), "too many of all users");
        let _root = door.slots(0).unwrap();
        let _own = door.slots(7).unwrap();
        drop(first);
        // One place is free, and it is reserved.
        assert!(door.slots(1003).is_err());
    }

    #[test]
    fn the_usual_limits() {
        let options = PeerOptions::default();
        assert!(options.max_total > options.reserved && options.max_per_uid > 0, "{options:?}");
    }
}
