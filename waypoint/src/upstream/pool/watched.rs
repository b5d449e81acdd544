//! The bytes that an endpoint sends, looked at below the HTTP library.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::buffers::Carried;
use crate::http::frames::{DATA, Frames};

/// Looks at what arrives.
pub(super) trait Look: Unpin {
    /// Bytes have arrived.
    ///
    /// # Errors
    /// The connection is to end.
    fn look(&mut self, bytes: &[u8]) -> io::Result<()>;
}

/// A connection that is looked at.
#[derive(Debug)]
pub(super) struct Watched<S, L> {
    pub(super) stream: S,
    pub(super) look: L,
}

/// Counts DATA of HTTP/2.
#[derive(Debug)]
pub(super) struct Data {
    frames: Frames,
    carried: Arc<Carried>,
}

impl Data {
    pub(super) fn new(carried: &Arc<Carried>) -> Self {
        Self {
            frames: Frames::after(0),
            carried: Arc::clone(carried),
        }
    }
}

impl Look for Data {
    fn look(&mut self, bytes: &[u8]) -> io::Result<()> {
        let carried = &self.carried;
        let seen = self.frames.see(bytes, |frame| match frame.kind {
            DATA => carried.arrived(frame.length),
            _ => Ok(()),
        });
        seen.map_err(io::Error::other)
    }
}

impl<S: AsyncRead + Unpin, L: Look> AsyncRead for Watched<S, L> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        Poll::Ready(self.look.look(&buffer.filled()[before..]))
    }
}

impl<S: AsyncWrite + Unpin, L: Look> AsyncWrite for Watched<S, L> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
