//! The accept loop that all listeners share.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use nix::errno::Errno;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tulle_runtime::tasks;

use crate::carry;
use crate::error::Error;
use crate::metrics::labels::Direction;
use crate::pod::Pod;
use crate::record::Story;

/// Pause after an accept that failed for want of something, such as descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Whether a pod's listeners accept. Dropping the sender changes nothing.
#[derive(Debug, Clone)]
pub struct Accepting {
    handed_over: watch::Receiver<bool>,
    own_queue: bool,
}

impl Accepting {
    /// Accept until `handed_over` turns true, or the pod drains. With `own_queue` the connections that the kernel
    /// has queued by then are accepted first; without it they belong to whoever else holds the sockets.
    #[must_use]
    pub fn new(handed_over: watch::Receiver<bool>, own_queue: bool) -> Self {
        Self {
            handed_over,
            own_queue,
        }
    }

    /// Waits until accepting stops.
    pub async fn stopped(&mut self, pod: &Pod) {
        let handed_over = async {
            if self
                .handed_over
                .wait_for(|handed_over| *handed_over)
                .await
                .is_err()
            {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = handed_over => {}
            _ = pod.drain.signaled() => {}
        }
    }
}

/// Accepts connections and serves each in a task of its own, until accepting stops.
pub async fn accept<F>(
    listener: TcpListener,
    pod: Arc<Pod>,
    mut accepting: Accepting,
    task: &'static str,
    serve: fn(Arc<Pod>, TcpStream, SocketAddr) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let start = |(stream, peer): (TcpStream, SocketAddr)| {
        // Guards are waited for by the drain, so take one before the task gets its turn.
        let guard = pod.drain.guard();
        let serving = serve(Arc::clone(&pod), stream, tulle_model::network::canonical(peer));
        tasks::spawn_holding(task, guard, serving);
    };
    let own_queue = accepting.own_queue;
    // One wait for all: to begin and end it with each connection would cost more than the accept.
    let mut stopped = std::pin::pin!(accepting.stopped(&pod));
    loop {
        tokio::select! {
            biased;
            () = &mut stopped => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => start(accepted),
                Err(error) if no_descriptor_left(&error) => {
                    if !turn_away(&listener, &pod) {
                        pause_after(&error).await;
                    }
                }
                Err(error) => pause_after(&error).await,
            },
        }
    }
    if own_queue {
        while let Some(Ok(accepted)) = listener.accept().now_or_never() {
            start(accepted);
        }
    }
}

fn no_descriptor_left(error: &io::Error) -> bool {
    [Errno::EMFILE, Errno::ENFILE]
        .map(|errno| Some(errno as i32))
        .contains(&error.raw_os_error())
}

/// Resets one connection that waits, with the descriptor that is kept for this: callers are refused at once, and do not
/// fill a queue that would have to be worked off once there are descriptors again. Whether there was one.
fn turn_away(listener: &TcpListener, pod: &Pod) -> bool {
    let Some(_spare) = pod.node.shedder.spare() else {
        return false;
    };
    let Some(Ok((stream, peer))) = listener.accept().now_or_never() else {
        return false;
    };
    pod.node.shedder.turned_away();
    let peer = tulle_model::network::canonical(peer);
    let local = stream.local_addr().map_or(peer, tulle_model::network::canonical);
    let error = Error::Overload("no descriptor is left");
    Story::begin(direction_of(local.port(), pod), peer, local).fail(&pod.node.metrics, &error);
    carry::reset(stream);
    true
}

fn direction_of(port: u16, pod: &Pod) -> Direction {
    let ports = &pod.node.config.ports;
    if port == ports.inbound_plain || port == ports.inbound_hbone {
        Direction::Inbound
    } else {
        Direction::Outbound
    }
}

/// A connection that died in the queue is nothing to wait for; a lack of descriptors is.
pub(crate) async fn pause_after(error: &io::Error) {
    let gone = [io::ErrorKind::ConnectionAborted, io::ErrorKind::ConnectionReset];
    if !gone.contains(&error.kind()) {
        tracing::warn!(%error, "cannot accept");
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}
