//! What a driver moves bytes over: batches out, chunks in.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

use super::core::Outbox;
use crate::copy::buffers::{Buffer, Size};
use crate::hbone::watched::Watched;

/// The way to the peer, and back.
pub(super) trait Link: Send {
    /// Writes all of a batch, and flushes it. What was taken off the batch before this is ready is on its way.
    fn poll_write(&mut self, cx: &mut Context<'_>, out: &mut Outbox) -> Poll<io::Result<()>>;

    /// Reads once, and appends what has come to `chunks`; 0 at the end. No buffer is held while nothing comes. `held`
    /// bytes of what was read before are still needed.
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        held: usize,
        chunks: &mut Vec<Bytes>,
    ) -> Poll<io::Result<usize>>;

    /// Ends this side's direction, all being written.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

/// Bytes as they are: over memory, or over a TLS library.
#[derive(Debug)]
pub(super) struct Plain<S> {
    stream: Watched<S>,
    /// Something was written and not flushed.
    unflushed: bool,
}

impl<S> Plain<S> {
    pub(super) fn new(stream: Watched<S>) -> Self {
        Self {
            stream,
            unflushed: false,
        }
    }
}

impl<S> Link for Plain<S>
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    fn poll_write(&mut self, cx: &mut Context<'_>, out: &mut Outbox) -> Poll<io::Result<()>> {
        while !out.is_empty() {
            let (slices, count) = out.slices();
            let written = ready!(Pin::new(&mut self.stream).poll_send(cx, &slices[..count]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            out.advance(written);
            self.unflushed = true;
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        _: usize,
        chunks: &mut Vec<Bytes>,
    ) -> Poll<io::Result<usize>> {
        let mut buffer = Buffer::lend(Size::Medium);
        let read = ready!(buffer.poll_read(Pin::new(&mut self.stream), cx))?;
        if read > 0 {
            chunks.push(buffer.take().0);
        }
        Poll::Ready(Ok(read))
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
