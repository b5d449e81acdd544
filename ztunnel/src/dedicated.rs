//! Dedicated mode: one workload, served in the network namespace this process runs in. No agent.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tulle_runtime::drain::{self, DrainTrigger, DrainWatcher};
use tulle_runtime::ready::BlockReady;
use tulle_runtime::tasks;
use tulle_transport::socket::CurrentNamespace;

use crate::accept::Accepting;
use crate::config::WorkloadName;
use crate::fleet::open_options;
use crate::pod::{Node, Pod};
use crate::proxy;
use crate::sockets::PodSockets;

/// Time between the end of the proxy by a fault and its next start.
const FAULT_PAUSE: Duration = Duration::from_millis(200);

/// The one workload of a dedicated proxy.
#[derive(Debug)]
pub struct Dedicated {
    pod: Arc<Pod>,
    sockets: PodSockets,
    drain: DrainTrigger,
}

impl Dedicated {
    /// Opens the listeners.
    ///
    /// # Errors
    /// When a port is taken.
    pub async fn open(node: Arc<Node>, name: WorkloadName) -> io::Result<Self> {
        let sockets = PodSockets::open(None, open_options(&node)).await?;
        let (drain, watcher) = drain::new();
        let pod = Arc::new(Pod::new(name, node, Arc::new(CurrentNamespace), None, watcher));
        Ok(Self { pod, sockets, drain })
    }

    /// The workload's shared state.
    #[must_use]
    pub fn pod(&self) -> &Arc<Pod> {
        &self.pod
    }

    /// The listeners.
    #[must_use]
    pub fn sockets(&self) -> &PodSockets {
        &self.sockets
    }

    /// Serves until the process drains, then drains; returns how many connections were open at the deadline.
    pub async fn run(self, ready: BlockReady, process: DrainWatcher) -> usize {
        let deadline = self.pod.node.config.drain_deadline;
        let mut ready = Some(ready);
        tasks::spawn("pod-certificate", Arc::clone(&self.pod).keep_certificate());
        let (_handed_over, receiver) = watch::channel(false);
        let accepting = Accepting::new(receiver, true);
        loop {
            let task = match proxy::start(&self.pod, &self.sockets, &accepting) {
                Ok(proxy) => tasks::spawn("dedicated-proxy", proxy),
                Err(error) => {
                    tracing::error!(%error, "the listeners cannot be used");
                    return 0;
                }
            };
            ready.take();
            self.pod.node.metrics.proxies_active.set(1);
            tokio::select! {
                _ = process.signaled() => return self.drain.drain_and_wait(deadline).await,
                ended = task => tracing::error!(panicked = ended.is_err(), "the proxy ended by a fault"),
            }
            self.pod.node.metrics.proxy_restarts.inc();
            tokio::time::sleep(FAULT_PAUSE).await;
        }
    }
}
