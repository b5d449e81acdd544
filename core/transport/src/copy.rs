//! Both directions of a connection, from socket to tunnel or socket to socket.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::net::TcpStream;
use tokio::sync::Notify;
use tulle_model::Reason;

use crate::hbone::{HboneStream, StreamError};
use crate::socket::Closed;

/// What a connection has moved, and the way to end it from elsewhere. Shared with whoever lists connections.
///
/// *Sent* and *received* are seen from the first of the two ends, the local application.
#[derive(Debug, Default)]
pub struct Transfer {
    sent: AtomicU64,
    received: AtomicU64,
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

/// One end of a copy: a TCP socket or a tunnel.
pub trait Endpoint {}
impl Endpoint for TcpStream {}
impl Endpoint for HboneStream {}

/// Moves bytes both ways until both sides have finished, one is reset, or the transfer is aborted.
///
/// FIN is carried as FIN and RST as RST. Dropping the future resets both ends.
pub async fn bidirectional<L: Endpoint, R: Endpoint>(local: L, remote: R, transfer: &Transfer) -> CopyResult {
    let _ = (local, remote, transfer);
    unimplemented!()
}
