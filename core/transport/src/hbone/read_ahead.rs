//! Ciphertext read in large pieces: TLS asks for 4 KiB at a time, and a system call for each would cost more than
//! opening the record.
//!
//! While little arrives, reads go straight through. A read that fills what TLS offered shows that more is there; then
//! a lent buffer is filled at once and handed out in parts. It is given back when it is empty.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

use crate::copy::buffers::{Buffer, Size};

/// A stream whose reads are gathered while much arrives.
#[derive(Debug)]
pub(super) struct ReadAhead<S> {
    inner: S,
    /// What was read and not handed out, and how much of it was.
    ahead: Option<(Buffer, usize)>,
    /// How much to read ahead next.
    next: Option<Size>,
}

impl<S> ReadAhead<S> {
    pub(super) fn new(inner: S) -> Self {
        Self {
            inner,
            ahead: None,
            next: None,
        }
    }
}

impl<S: AsyncRead + Unpin> ReadAhead<S> {
    /// Straight through; notes whether there is likely more.
    fn poll_through(&mut self, cx: &mut Context<'_>, target: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let offered = target.remaining();
        ready!(Pin::new(&mut self.inner).poll_read(cx, target))?;
        let filled = target.remaining() == 0 && offered > 0;
        self.next = filled.then_some(Size::Medium);
        Poll::Ready(Ok(()))
    }

    /// Fills a buffer. An end of the stream leaves it empty.
    fn poll_ahead(&mut self, cx: &mut Context<'_>, size: Size) -> Poll<io::Result<Buffer>> {
        let mut buffer = Buffer::lend(size);
        let read = poll_read_buf(Pin::new(&mut self.inner), cx, &mut buffer.room());
        let read = ready!(read.inspect_pending(|| self.next = None))?;
        self.next = match read {
            read if read >= size.bytes() => Some(Size::Large),
            read if read < Size::Medium.bytes() => None,
            _ => Some(size),
        };
        Poll::Ready(Ok(buffer))
    }
}

/// Notes that nothing was there.
trait InspectPending {
    fn inspect_pending(self, note: impl FnOnce()) -> Self;
}

impl<T> InspectPending for Poll<T> {
    fn inspect_pending(self, note: impl FnOnce()) -> Self {
        if self.is_pending() {
            note();
        }
        self
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        target: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let (buffer, taken) = match (this.ahead.take(), this.next) {
            (Some(ahead), _) => ahead,
            (None, Some(size)) => (ready!(this.poll_ahead(cx, size))?, 0),
            (None, None) => return this.poll_through(cx, target),
        };
        let left = &buffer.as_ref()[taken..];
        let part = left.len().min(target.remaining());
        target.put_slice(&left[..part]);
        if part < left.len() {
            this.ahead = Some((buffer, taken + part));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadAhead<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    proptest! {
        #[test]
        fn bytes_arrive_as_they_were_sent(
            writes in proptest::collection::vec(1usize..300_000, 1..12),
            reads in proptest::collection::vec(1usize..20_000, 1..12),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let sent: Vec<u8> = (0..251).cycle().take(writes.iter().sum()).collect();
            let (mut near, far) = duplex(100_000);
            let mut far = ReadAhead::new(far);
            let sending = async {
                let mut rest = &sent[..];
                for write in writes {
                    near.write_all(&rest[..write]).await.unwrap();
                    rest = &rest[write..];
                }
                drop(near);
            };
            let receiving = async {
                let mut received: Vec<u8> = Vec::new();
                for read in reads.into_iter().cycle() {
                    let mut part = vec![0; read];
                    match far.read(&mut part).await.unwrap() {
                        0 => break,
                        length => received.extend(&part[..length]),
                    }
                }
                received
            };
            let ((), received) = runtime.block_on(async { tokio::join!(sending, receiving) });
            prop_assert!(received == sent);
            prop_assert!(far.ahead.is_none(), "an idle stream holds no buffer");
        }
    }
}
