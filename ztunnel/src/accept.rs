//! The accept loop that all listeners share.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tulle_model::reason::Reason;
use tulle_runtime::tasks;

use crate::carry;
use crate::pod::Pod;
use crate::shed::is_lack_of_descriptors;

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
    loop {
        tokio::select! {
            biased;
            () = accepting.stopped(&pod) => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => start(accepted),
                Err(error) => {
                    if is_lack_of_descriptors(&error) {
                        refuse_waiting(&listener, &pod);
                    }
                    pause_after(&error).await;
                }
            },
        }
    }
    if accepting.own_queue {
        while let Some(Ok(accepted)) = listener.accept().now_or_never() {
            start(accepted);
        }
    }
}

/// Resets whoever waits in the queue: a caller that is refused now may try elsewhere, or here again.
fn refuse_waiting(listener: &TcpListener, pod: &Pod) {
    let accept = || Some(listener.accept().now_or_never()?.ok()?.0);
    let refused = pod.node.shedder.refuse_waiting(accept, carry::reset);
    pod.node.metrics.count_turned_away(Reason::Overload, refused);
}

/// A connection that died in the queue is nothing to wait for; a lack of descriptors is.
pub(crate) async fn pause_after(error: &io::Error) {
    let gone = [io::ErrorKind::ConnectionAborted, io::ErrorKind::ConnectionReset];
    if !gone.contains(&error.kind()) {
        tracing::warn!(%error, "cannot accept");
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}
