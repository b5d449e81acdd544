//! Where tunnels come in: connections are accepted, streams in them checked, and bytes handed to who reads them.

pub mod arrival;
pub mod hbone;
pub mod limits;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tulle_model::Reason;
use tulle_runtime::{limits as process, tasks};

use crate::context::Waypoint;

/// Pause after an accept that failed for want of something, such as descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Descriptors that tunnels leave to connections of requests, to files and to the admin pages; half of them where there are
/// few.
const DESCRIPTORS_LEFT: u64 = 256;
/// Connections that the kernel queues until they are accepted.
const BACKLOG: i32 = 1024;

/// Opens the socket that tunnels come in by. Without IPv6, an unspecified address means that of IPv4.
///
/// # Errors
/// The address is taken, or not ours.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let wildcard = address.ip().is_unspecified() && address.is_ipv6();
    match open(address) {
        Err(_) if wildcard => open(SocketAddr::from(([0, 0, 0, 0], address.port()))),
        opened => opened,
    }
}

fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = tokio::net::TcpSocket::new_v4();
    let socket = if address.is_ipv6() {
        tokio::net::TcpSocket::new_v6()
    } else {
        socket
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG.unsigned_abs())
}

/// Accepts connections and serves each in a task of its own, until the process drains. Where descriptors are short, a
/// new one is closed at once, so that its caller can go elsewhere; those that are open live.
pub async fn accept(waypoint: Arc<Waypoint>, listener: TcpListener) {
    let max = process::max_descriptors();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = waypoint.drain.signaled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, peer)) if is_short(socket.as_raw_fd(), max) => {
                waypoint.metrics.replied(Reason::Overload);
                tracing::info!(%peer, max, "tunnel connection refused: descriptors are short");
            }
            Ok((socket, peer)) => {
                let guard = waypoint.drain.guard();
                let serving = hbone::serve(Arc::clone(&waypoint), socket, peer);
                drop(tasks::spawn("tunnel", async move {
                    let _guard = guard;
                    serving.await;
                }));
            }
            Err(error) => pause_after(&error).await,
        }
    }
}

/// Whether a new descriptor is one of the last: the kernel gives the lowest number that is free. A limit of 0 is one that
/// nobody knows.
fn is_short(descriptor: RawFd, max: u64) -> bool {
    let left = DESCRIPTORS_LEFT.min(max / 2);
    max > 0 && u64::try_from(descriptor).is_ok_and(|descriptor| descriptor >= max - left)
}

/// A connection that died in the queue is nothing to wait for; a lack of descriptors is.
async fn pause_after(error: &io::Error) {
    let gone = [io::ErrorKind::ConnectionAborted, io::ErrorKind::ConnectionReset];
    if !gone.contains(&error.kind()) {
        tracing::warn!(%error, "cannot accept");
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_descriptors_are_not_for_tunnels() {
        assert!(!is_short(767, 1024) && is_short(768, 1024));
        assert!(!is_short(49, 100) && is_short(50, 100), "half of few");
        assert!(!is_short(9, 0) && !is_short(9, u64::MAX));
    }
}
