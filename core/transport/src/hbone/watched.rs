//! The byte stream under HTTP/2, watched: when the peer was heard, floods, GOAWAY, and what TLS says when it fails.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::frames::{Frames, PREFACE_LENGTH, Part};
use super::liveness::Vitals;

pin_project_lite::pin_project! {
    /// A byte stream that is watched.
    #[derive(Debug)]
    pub(super) struct Watched<S> {
        #[pin]
        inner: S,
        vitals: Arc<Vitals>,
        frames: Frames,
        // Heads of the peer open streams.
        server: bool,
        write_failed: bool,
        write_blocked: bool,
        owed: Option<u64>,
    }
}

impl<S> Watched<S> {
    /// The server's end, which first reads the client's preface.
    pub(super) fn server(inner: S, vitals: Arc<Vitals>) -> Self {
        Self {
            inner,
            vitals,
            frames: Frames::new(PREFACE_LENGTH, Instant::now()),
            server: true,
            write_failed: false,
            write_blocked: false,
            owed: None,
        }
    }

    /// The client's end.
    pub(super) fn client(inner: S, vitals: Arc<Vitals>) -> Self {
        Self {
            inner,
            vitals,
            frames: Frames::new(0, Instant::now()),
            server: false,
            write_failed: false,
            write_blocked: false,
            owed: None,
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
        if this.frames.rests() {
            // Whoever reads the streams was woken, and waits for this task to let go.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        if let Err(error) = ready!(this.inner.poll_read(cx, buffer)) {
            this.vitals.failed(&error);
            return Poll::Ready(Err(error));
        }
        let arrived = &buffer.filled()[before..];
        if !arrived.is_empty() {
            let now = Instant::now();
            this.vitals.heard(now);
            let (held, server, mut too_much) = (this.vitals.held(), *this.server, Ok(()));
            let each = |part, stream, length| match part {
                Part::Head if server => held.head(stream),
                Part::Head => {}
                Part::Data => {
                    let counted = held.arrived(stream, length);
                    too_much = too_much.and(counted);
                }
            };
            this.frames.see(arrived, now, each).map_err(io::Error::other)?;
            if let Err(too_much) = too_much {
                this.vitals.cut(tulle_model::Reason::Overload);
                return Poll::Ready(Err(io::Error::other(too_much)));
            }
            let owed = this.frames.owed();
            if std::mem::replace(this.owed, owed) != owed {
                this.vitals.owes(owed.map(|_| now));
            }
            if this.frames.going_away() {
                // Streams that the peer took go on; no other is to be tried here.
                this.vitals.retire();
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead> Watched<S> {
    /// Keeps count of how long the peer takes nothing.
    fn note(self: Pin<&mut Self>, blocked: bool) {
        let this = self.project();
        if std::mem::replace(this.write_blocked, blocked) != blocked {
            let (traffic, now) = (this.vitals.traffic(), Instant::now());
            if blocked {
                traffic.write_blocked(now);
            } else {
                traffic.write_resumed(now);
            }
        }
    }

    /// A peer that refused our certificate has closed by the time we write. What it said still waits to be read, or
    /// will be there in a moment: a failed socket is always readable.
    fn explained<T>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        result: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        self.as_mut().note(result.is_pending());
        if !matches!(result, Poll::Ready(Err(_))) {
            return result;
        }
        let this = self.project();
        let mut byte = [0];
        match this.inner.poll_read(cx, &mut ReadBuf::new(&mut byte)) {
            Poll::Ready(Err(error)) => this.vitals.failed(&error),
            Poll::Pending if !std::mem::replace(this.write_failed, true) => return Poll::Pending,
            _ => {}
        }
        result
    }
}

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
