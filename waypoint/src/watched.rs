//! The bytes of a connection, looked at as they move: below the HTTP library, or below a copy.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Looks at what moves.
pub(crate) trait Look: Unpin {
    /// Bytes have arrived.
    ///
    /// # Errors
    /// The connection is to end.
    fn look(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// So many bytes have been taken for sending.
    fn sent(&mut self, _: usize) {}
}

/// A connection that is looked at.
#[derive(Debug)]
pub(crate) struct Watched<S, L> {
    pub(crate) stream: S,
    pub(crate) look: L,
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
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.look.sent(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, slices))?;
        self.look.sent(written);
        Poll::Ready(Ok(written))
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
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Counts, and has enough after some bytes.
    #[derive(Debug, Default)]
    struct Seen {
        arrived: usize,
        sent: usize,
    }

    impl Look for Seen {
        fn look(&mut self, bytes: &[u8]) -> io::Result<()> {
            self.arrived += bytes.len();
            if self.arrived > 8 {
                return Err(io::ErrorKind::InvalidData.into());
            }
            Ok(())
        }

        fn sent(&mut self, count: usize) {
            self.sent += count;
        }
    }

    #[tokio::test]
    async fn both_directions_are_seen_and_who_looks_may_end_it() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut watched = Watched {
            stream: near,
            look: Seen::default(),
        };
        watched.write_all(b"there").await.unwrap();
        far.write_all(b"back").await.unwrap();
        let mut answer = [0; 4];
        watched.read_exact(&mut answer).await.unwrap();
        assert_eq!((watched.look.sent, watched.look.arrived), (5, 4));
        far.write_all(b"and more").await.unwrap();
        let error = watched.read(&mut [0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
