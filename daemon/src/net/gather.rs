//! Gathers what HTTP/2 writes piecemeal: head, data and trailers of one answer, and the answers of calls that end
//! together, share a TLS record and a system call. A call's writes were more expensive than its signature.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// As much as fits into one TLS record.
const CAPACITY: usize = 16 * 1024;

/// A stream whose writes wait for a flush, and whose flushes wait until nothing is added any more.
#[derive(Debug)]
pub(super) struct Gather<S> {
    pub(super) stream: S,
    /// Written by the layers above; the first `sent` bytes have gone.
    held: Vec<u8>,
    sent: usize,
    /// Whether there were writes since the last flush was asked for.
    added: bool,
}

impl<S: AsyncWrite + Unpin> Gather<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, held: Vec::new(), sent: 0, added: false }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.held.len() {
            let sent = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.held[self.sent..]))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += sent;
        }
        // Given back, since most connections of a fleet are idle.
        self.held = Vec::new();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gather<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gather<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let total: usize = bufs.iter().map(|buf| buf.len()).sum();
        if this.held.len() + total > CAPACITY {
            ready!(this.poll_send(cx))?;
            if total > CAPACITY {
                return Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
            }
        }
        bufs.iter().for_each(|buf| this.held.extend_from_slice(buf));
        this.added |= total > 0;
        Poll::Ready(Ok(total))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if std::mem::take(&mut this.added) {
            // The task goes behind those that are ready to run, and they may have more for this connection.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn writes_leave_together_and_in_order() {
        let (near, mut far) = tokio::io::duplex(64 * 1024);
        let mut near = Gather::new(near);
        let mut got = [0; 64];
        near.write_all(b"head").await.unwrap();
        near.write_all(b"data").await.unwrap();
        assert_eq!(near.held, b"headdata", "nothing leaves before a flush");
        near.flush().await.unwrap();
        assert_eq!(far.read(&mut got).await.unwrap(), 8);
        assert_eq!(&got[..8], b"headdata");
        assert_eq!(near.held.capacity(), 0, "an idle connection holds no memory");
    }

    #[tokio::test]
    async fn what_is_long_does_not_wait() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut near = Gather::new(near);
        let writer = tokio::spawn(async move {
            near.write_all(b"<").await.unwrap();
            near.write_all(&vec![7; 3 * CAPACITY]).await.unwrap();
            near.write_all(b">").await.unwrap();
            near.shutdown().await.unwrap();
        });
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.unwrap();
        writer.await.unwrap();
        assert_eq!(got.len(), 3 * CAPACITY + 2);
        assert!(got.starts_with(b"<\x07") && got.ends_with(b"\x07>"));
    }
}
