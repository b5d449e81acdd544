//! The byte stream under HTTP/2, watched.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::liveness::Vitals;
use super::watch::Watch;

pin_project_lite::pin_project! {
    /// A byte stream that is watched.
    #[derive(Debug)]
    pub(super) struct Watched<S> {
        #[pin]
        inner: S,
        watch: Watch,
        // A failed write has waited for what the peer has to say of it.
        write_failed: bool,
    }
}

impl<S> Watched<S> {
    /// The server's end, which first reads the client's preface.
    pub(super) fn server(inner: S, vitals: Arc<Vitals>) -> Self {
        Self {
            inner,
            watch: Watch::server(vitals),
            write_failed: false,
        }
    }

    /// The client's end.
    pub(super) fn client(inner: S, vitals: Arc<Vitals>) -> Self {
        Self {
            inner,
            watch: Watch::client(vitals),
            write_failed: false,
        }
    }
}

impl<S: AsyncRead> AsyncRead for Watched<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.project();
        if this.watch.rests() {
            // Whoever reads the streams was woken, and waits for this task to let go.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        if let Err(error) = ready!(this.inner.poll_read(cx, buffer)) {
            this.watch.failed(&error);
            return Poll::Ready(Err(error));
        }
        Poll::Ready(this.watch.arrived(&buffer.filled()[before..], Instant::now()))
    }
}

impl<S: AsyncRead> Watched<S> {
    /// A peer that refused our certificate has closed by the time we write. What it said still waits to be read, or
    /// will be there in a moment: a failed socket is always readable.
    fn explained<T>(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        result: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let this = self.project();
        this.watch.blocked(result.is_pending());
        if !matches!(result, Poll::Ready(Err(_))) {
            return result;
        }
        let mut byte = [0];
        match this.inner.poll_read(cx, &mut ReadBuf::new(&mut byte)) {
            Poll::Ready(Err(error)) => this.watch.failed(&error),
            Poll::Pending if !std::mem::replace(this.write_failed, true) => return Poll::Pending,
            _ => {}
        }
        result
    }
}

impl<S: AsyncWrite> Watched<S> {
    /// Writes for whoever reads on when that fails, and so hears why.
    pub(super) fn poll_send(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.project();
        let result = this.inner.poll_write_vectored(cx, slices);
        this.watch.blocked(result.is_pending());
        result
    }
}

/// For a library that ends with the first write that fails.
impl<S: AsyncRead + AsyncWrite> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = self.as_mut().project().inner.poll_write(cx, bytes);
        self.explained(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = self.as_mut().project().inner.poll_write_vectored(cx, slices);
        self.explained(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = self.as_mut().project().inner.poll_flush(cx);
        self.explained(cx, result)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().inner.poll_shutdown(cx)
    }
}
