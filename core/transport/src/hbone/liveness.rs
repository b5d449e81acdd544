//! Whether a tunnel connection lives and is used: open streams, last sign of the peer, PING, idleness.
//!
//! ```text
//!            stream opens              5 s without a byte            5 s without an answer
//!   unused ───────────────▶ watched ───────────────────────▶ asked ───────────────────────▶ lost
//!      ▲                     │    ▲                             │
//!      └── last one closes ──┘    └───── anything arrives ──────┘
//! ```

use std::future::pending;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use std::{future::poll_fn, io};

use h2::{Ping, PingPong};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tulle_identity::HandshakeError;

use super::error::StreamError;
use super::settings::Settings;
use super::window::Window;

/// Set in [`Vitals::streams`] once no further stream may open.
const RETIRED: u32 = 1 << 31;

/// What the driver of a connection, its streams and the pool know in common.
#[derive(Debug)]
pub(super) struct Vitals {
    /// Open streams, and [`RETIRED`].
    streams: AtomicU32,
    /// Streams that may be open at once.
    limit: AtomicU32,
    busy: watch::Sender<bool>,
    gone: CancellationToken,
    epoch: Instant,
    /// When the peer was last heard, in milliseconds after `epoch`.
    heard_ms: AtomicU64,
    lost: OnceLock<Arc<str>>,
    refused: OnceLock<Arc<HandshakeError>>,
    window: Window,
}

impl Vitals {
    pub(super) fn new(settings: &Settings) -> Arc<Self> {
        Arc::new(Self {
            streams: AtomicU32::new(0),
            limit: AtomicU32::new(settings.streams_max.max(1)),
            busy: watch::Sender::new(false),
            gone: CancellationToken::new(),
            epoch: Instant::now(),
            heard_ms: AtomicU64::new(0),
            lost: OnceLock::new(),
            refused: OnceLock::new(),
            window: Window::new(settings.connection_window),
        })
    }

    /// Takes a place for one stream, if there is one.
    pub(super) fn acquire(self: &Arc<Self>) -> Option<Slot> {
        let limit = self.limit();
        let free = |streams: u32| (streams & RETIRED == 0 && streams < limit).then_some(streams + 1);
        self.streams
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, free)
            .ok()?;
        Some(self.occupied())
    }

    /// Takes a place for a stream that is already there: a peer's, who was told the limit.
    pub(super) fn occupy(self: &Arc<Self>) -> Slot {
        self.streams.fetch_add(1, Ordering::AcqRel);
        self.occupied()
    }

    fn occupied(self: &Arc<Self>) -> Slot {
        self.announce();
        Slot(Arc::clone(self))
    }

    /// Tells the watchers whether streams are open. Read under the channel's lock, so the last word is true.
    fn announce(&self) {
        self.busy.send_if_modified(|busy| {
            let now = self.active() > 0;
            std::mem::replace(busy, now) != now
        });
    }

    pub(super) fn active(&self) -> u32 {
        self.streams.load(Ordering::Acquire) & !RETIRED
    }

    pub(super) fn limit(&self) -> u32 {
        self.limit.load(Ordering::Relaxed)
    }

    pub(super) fn set_limit(&self, limit: u32) {
        self.limit.store(limit.max(1), Ordering::Relaxed);
    }

    /// No further stream opens here; those that are open go on.
    pub(super) fn retire(&self) {
        self.streams.fetch_or(RETIRED, Ordering::AcqRel);
        self.gone.cancel();
    }

    /// Retires only if no stream is open.
    fn retire_unused(&self) -> bool {
        let unused = self
            .streams
            .compare_exchange(0, RETIRED, Ordering::AcqRel, Ordering::Acquire)
            .is_ok();
        if unused {
            self.gone.cancel();
        }
        unused
    }

    pub(super) fn is_retired(&self) -> bool {
        self.streams.load(Ordering::Acquire) & RETIRED != 0
    }

    /// Waits until no further stream can open here.
    pub(super) async fn gone(&self) {
        self.gone.cancelled().await;
    }

    /// The connection is no more, for this reason.
    pub(super) fn lose(&self, why: &str) {
        let _ = self.lost.set(why.into());
        self.retire();
    }

    pub(super) fn lost(&self) -> Option<&Arc<str>> {
        self.lost.get()
    }

    /// What TLS said after the handshake: a client learns only then that its certificate was refused.
    pub(super) fn refused(&self) -> Option<&Arc<HandshakeError>> {
        self.refused.get()
    }

    pub(super) fn window(&self) -> &Window {
        &self.window
    }

    fn heard(&self) {
        let elapsed = Instant::now().duration_since(self.epoch).as_millis();
        self.heard_ms
            .store(u64::try_from(elapsed).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn last_heard(&self) -> Instant {
        self.epoch + Duration::from_millis(self.heard_ms.load(Ordering::Relaxed))
    }

    fn failed(&self, error: &io::Error) {
        if let Some(tls) = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>())
        {
            let _ = self.refused.set(Arc::new(tls.clone().into()));
        }
    }
}

/// A place for one stream; given back when dropped.
#[derive(Debug)]
pub(super) struct Slot(Arc<Vitals>);

impl Slot {
    pub(super) fn window(&self) -> &Window {
        self.0.window()
    }

    /// Says how a stream ended in terms of the seam.
    pub(super) fn explain(&self, error: &h2::Error) -> StreamError {
        match error.reason() {
            Some(reason) if error.is_reset() => self.reset_or_lost(reason),
            _ => StreamError::Lost(self.0.lost().cloned().unwrap_or_else(|| error.to_string().into())),
        }
    }

    pub(super) fn reset_or_lost(&self, reason: h2::Reason) -> StreamError {
        match self.0.lost() {
            Some(why) => StreamError::Lost(Arc::clone(why)),
            None => StreamError::Reset(reason.into()),
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::AcqRel);
        self.0.announce();
    }
}

/// Ends when the peer stopped answering while streams were open.
pub(super) async fn peer_lost(mut ping: PingPong, vitals: Arc<Vitals>, settings: Settings) {
    let mut busy = vitals.busy.subscribe();
    let mut asked = false;
    loop {
        if busy.wait_for(|busy| *busy).await.is_err() {
            return pending().await;
        }
        let due = vitals.last_heard() + settings.ping_after;
        if Instant::now() < due {
            sleep_until(due).await;
            continue;
        }
        if !asked && ping.send_ping(Ping::opaque()).is_err() {
            // The connection is ending by itself.
            return pending().await;
        }
        asked = true;
        let since = Instant::now();
        match timeout(settings.ping_timeout, poll_fn(|cx| ping.poll_pong(cx))).await {
            Ok(Ok(_)) => asked = false,
            Ok(Err(_)) => return pending().await,
            Err(_) if vitals.last_heard() <= since => return,
            // Not an answer, but a sign of life.
            Err(_) => {}
        }
    }
}

/// Ends when no stream was open for `after`, with the connection retired.
pub(super) async fn unused(vitals: Arc<Vitals>, after: Duration) {
    let mut busy = vitals.busy.subscribe();
    loop {
        if busy.wait_for(|busy| !*busy).await.is_err() {
            return pending().await;
        }
        tokio::select! {
            () = sleep(after) => {
                if vitals.retire_unused() || vitals.is_retired() {
                    return;
                }
            }
            _ = busy.wait_for(|busy| *busy) => {}
        }
    }
}

pin_project_lite::pin_project! {
    /// A byte stream that notes when the peer was heard, and what TLS says when it fails.
    #[derive(Debug)]
    pub(super) struct Watched<S> {
        #[pin]
        inner: S,
        vitals: Arc<Vitals>,
        write_failed: bool,
    }
}

impl<S> Watched<S> {
    pub(super) fn new(inner: S, vitals: Arc<Vitals>) -> Self {
        Self {
            inner,
            vitals,
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
        let before = buffer.filled().len();
        let result = ready!(this.inner.poll_read(cx, buffer));
        match &result {
            Ok(()) if buffer.filled().len() > before => this.vitals.heard(),
            Ok(()) => {}
            Err(error) => this.vitals.failed(error),
        }
        Poll::Ready(result)
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
