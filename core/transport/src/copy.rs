//! Both directions of a connection, from socket to tunnel or socket to socket.
//!
//! One future moves both directions, so that what ends one side is known to the other at once. Bytes are read into a
//! buffer whose size follows the traffic and are handed on without being copied; an idle connection holds no buffer. What
//! goes from one socket to another in bulk does not pass through this process at all.

use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::sleep;
use tulle_model::Reason;

mod backlog;
pub(crate) mod buffers;
mod direction;
mod pipe;
#[cfg(test)]
mod tests;
mod wire;

use self::direction::{Direction, Fault, Side};
use self::wire::{TcpWire, TunnelWire, Wire};
use crate::hbone::{HboneStream, ResetCode, StreamError};
use crate::socket::{Closed, Keepalive};

/// How long a connection may be half-closed before its keepalive tightens. Most are for a moment only.
const HALF_CLOSED_GRACE: Duration = Duration::from_secs(1);

/// What a connection has moved, and the way to end it from elsewhere. Shared with whoever lists connections.
///
/// *Sent* and *received* are seen from the first of the two ends, the local application.
#[derive(Debug, Default)]
pub struct Transfer {
    sent: AtomicU64,
    received: AtomicU64,
    half_closed: AtomicBool,
    aborted: OnceLock<Reason>,
    wake: Notify,
}

impl Transfer {
    /// Nothing moved yet.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Bytes that the local application sent and the other end took.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Bytes that the local application was given.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Counts what somebody else has moved.
    pub fn moved(&self, sent: usize, received: usize) {
        self.sent.fetch_add(sent as u64, Ordering::Relaxed);
        self.received.fetch_add(received as u64, Ordering::Relaxed);
    }

    /// Whether one side has finished and the other has not.
    #[must_use]
    pub fn is_half_closed(&self) -> bool {
        self.half_closed.load(Ordering::Relaxed)
    }

    /// Resets both ends. The first reason stays. May be called before the copy begins.
    pub fn abort(&self, reason: Reason) {
        let _ = self.aborted.set(reason);
        self.wake.notify_waiters();
    }

    /// Waits for [`Self::abort`].
    pub async fn aborted(&self) -> Reason {
        loop {
            let woken = self.wake.notified();
            if let Some(reason) = self.aborted.get() {
                return *reason;
            }
            woken.await;
        }
    }
}

/// One of the two ends of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    /// The first argument: the local application.
    Local,
    /// The second argument: the tunnel, or the other socket.
    Remote,
}

/// How a connection ended other than by both sides finishing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CopyError {
    /// A socket was reset, timed out or failed.
    #[error("{end:?} socket: {closed:?}")]
    Socket {
        /// Whose.
        end: End,
        /// How.
        closed: Closed,
    },
    /// The tunnel was reset, or its connection lost.
    #[error("tunnel: {0}")]
    Tunnel(StreamError),
    /// [`Transfer::abort`] was called.
    #[error("ended by this proxy: {0}")]
    Aborted(Reason),
}

/// What a finished connection did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyResult {
    /// Bytes that the local application sent and the other end took.
    pub sent: u64,
    /// Bytes that the local application was given.
    pub received: u64,
    /// How it ended, if not by both sides finishing.
    pub error: Option<CopyError>,
}

impl CopyError {
    /// The stable reason, if the end was not an ordinary one for a TCP connection.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Aborted(reason) => Some(*reason),
            Self::Tunnel(StreamError::Lost(_)) => Some(Reason::PeerLost),
            Self::Tunnel(StreamError::Cut(reason)) => Some(*reason),
            Self::Tunnel(_) | Self::Socket { .. } => None,
        }
    }
}

/// Bytes of all buffers that are lent to copies now, in this process; an idle connection holds none.
#[must_use]
pub fn buffer_bytes() -> usize {
    buffers::lent() + crate::records::buffer::lent()
}

/// Frees the buffers that are kept for the next one who needs some, as far as nobody did since the last call. To be
/// called every few seconds: a busy hour is not to be remembered.
pub fn trim_buffers() {
    buffers::trim();
    crate::records::buffer::trim();
}

/// One end of a copy: a TCP socket or a tunnel.
pub struct Endpoint(Box<dyn Wire>);

impl From<TcpStream> for Endpoint {
    fn from(stream: TcpStream) -> Self {
        Self::watched(stream, Keepalive::HALF_CLOSED)
    }
}

impl Endpoint {
    /// A socket that has [`set_rst`](crate::socket::set_rst) already, or from its listener.
    #[must_use]
    pub fn resetting(stream: TcpStream) -> Self {
        Self(Box::new(TcpWire::resetting(stream, Keepalive::HALF_CLOSED)))
    }

    /// A socket whose peer is asked for in this way, whether it is still there, once the connection stays half-closed.
    #[must_use]
    pub fn watched(stream: TcpStream, half_closed: Keepalive) -> Self {
        Self(Box::new(TcpWire::new(stream, half_closed)))
    }
}

impl From<HboneStream> for Endpoint {
    fn from(stream: HboneStream) -> Self {
        Self(Box::new(TunnelWire::new(stream)))
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Endpoint")
    }
}

/// Moves bytes both ways until both sides have finished, one is reset, or the transfer is aborted.
///
/// FIN is carried as FIN and RST as RST. Dropping the future resets both ends.
pub async fn bidirectional(
    local: impl Into<Endpoint>,
    remote: impl Into<Endpoint>,
    transfer: &Transfer,
) -> CopyResult {
    let mut ends = Ends {
        local: local.into().0,
        remote: remote.into().0,
        closed: false,
    };
    let error = ends.run(transfer).await.err();
    match &error {
        None => ends.close(),
        Some(CopyError::Aborted(_)) => ends.reset(ResetCode::Cancel),
        Some(CopyError::Socket { .. } | CopyError::Tunnel(_)) => ends.reset(ResetCode::Connect),
    }
    CopyResult {
        sent: transfer.sent(),
        received: transfer.received(),
        error,
    }
}

/// Both ends. Unless closed on purpose they are reset, so that a cancelled copy never looks like a finished one.
struct Ends {
    local: Box<dyn Wire>,
    remote: Box<dyn Wire>,
    closed: bool,
}

impl Ends {
    async fn run(&mut self, transfer: &Transfer) -> Result<(), CopyError> {
        let mut directions = (Direction::new(&transfer.sent), Direction::new(&transfer.received));
        let mut aborted = pin!(transfer.aborted());
        let mut grace = None;
        poll_fn(|cx| {
            if let Poll::Ready(reason) = aborted.as_mut().poll(cx) {
                return Poll::Ready(Err(CopyError::Aborted(reason)));
            }
            let result = self.poll(cx, &mut directions);
            if result.is_pending() && directions.0.is_finished() != directions.1.is_finished() {
                transfer.half_closed.store(true, Ordering::Relaxed);
                let grace = grace.get_or_insert_with(|| Some(Box::pin(sleep(HALF_CLOSED_GRACE))));
                if grace
                    .as_mut()
                    .is_some_and(|grace| grace.as_mut().poll(cx).is_ready())
                {
                    *grace = None;
                    self.local.half_closed();
                    self.remote.half_closed();
                }
            }
            result
        })
        .await
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        (up, down): &mut (Direction<'_>, Direction<'_>),
    ) -> Poll<Result<(), CopyError>> {
        let upwards = up.poll(cx, &mut *self.local, &mut *self.remote);
        let downwards = down.poll(cx, &mut *self.remote, &mut *self.local);
        for (result, from, to) in [
            (upwards, End::Local, End::Remote),
            (downwards, End::Remote, End::Local),
        ] {
            if let Poll::Ready(Err((side, fault))) = result {
                return Poll::Ready(Err(fault.at(if side == Side::Source { from } else { to })));
            }
        }
        // An end that is no longer read would not be heard to be reset.
        if up.is_read_to_end() && !down.is_finished() {
            match self.local.poll_fault(cx) {
                Poll::Ready(Fault::Finished) => down.stop(),
                Poll::Ready(fault) => return Poll::Ready(Err(fault.at(End::Local))),
                Poll::Pending => {}
            }
        }
        if down.is_read_to_end() && !up.is_finished() {
            match self.remote.poll_fault(cx) {
                Poll::Ready(Fault::Finished) => up.stop(),
                Poll::Ready(fault) => return Poll::Ready(Err(fault.at(End::Remote))),
                Poll::Pending => {}
            }
        }
        if up.is_finished() && down.is_finished() {
            Poll::Ready(Ok(()))
        } else {
            Poll::Pending
        }
    }

    fn close(&mut self) {
        self.closed = true;
        self.local.close();
        self.remote.close();
    }

    fn reset(&mut self, code: ResetCode) {
        self.closed = true;
        self.local.reset(code);
        self.remote.reset(code);
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        if !self.closed {
            self.reset(ResetCode::Cancel);
        }
    }
}

impl Fault {
    /// The fault in terms of the connection.
    fn at(self, end: End) -> CopyError {
        match self {
            Self::Socket(closed) => CopyError::Socket { end, closed },
            Self::Tunnel(error) => CopyError::Tunnel(error),
            Self::Finished => CopyError::Tunnel(StreamError::Closed),
        }
    }
}
