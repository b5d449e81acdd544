//! What is done in a pod's namespace to join and to leave, in the order that breaks no connection.
//!
//! The order is the point: listeners before rules, the conntrack setting before the table, stale entries before
//! capture. Every step can be repeated.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tulle_linux::NetNs;

use crate::conntrack::{self, Select};
use crate::error::CaptureError;
use crate::netns::Located;
use crate::repair::Observed;
use crate::rules::plan::{self, ProxyMark, TABLE, Table};
use crate::rules::table::NOT_PROXY_CHAIN;
use crate::rules::{Comparison, Rules, legacy};
use crate::sock_diag::MarkedSocket;
use crate::variant::Existing;
use crate::{routes, sock_diag, sysctl};

/// How long handshakes that were under way when the rules changed may take to reach a listener.
const HANDSHAKE_GRACE: Duration = Duration::from_millis(100);
/// How long the proxy may take to accept what waits in a leaving pod's listeners.
const QUEUE_WAIT_MAX: Duration = Duration::from_secs(1);
/// How long the proxy may take to close its sockets after it was told to.
const CLOSE_WAIT_MAX: Duration = Duration::from_secs(10);
/// First and longest time between two looks for sockets of the proxy in a leaving pod's namespace: connections may go on
/// for an hour.
const LEAVE_POLL_MIN: Duration = Duration::from_millis(50);
const LEAVE_POLL_MAX: Duration = Duration::from_secs(1);

/// Captures pods, each by its own table.
#[derive(Debug, Clone)]
pub struct Capture {
    rules: Arc<dyn Rules>,
    mark: ProxyMark,
}

impl Capture {
    /// Captures with these rules; sockets of the proxy carry this mark.
    #[must_use]
    pub fn new(rules: Arc<dyn Rules>, mark: ProxyMark) -> Self {
        Self { rules, mark }
    }

    /// Steps 2 to 6 of joining; the listeners must exist. A failure is undone, unless rules of ours stood already:
    /// then the pod stays closed.
    ///
    /// # Errors
    /// The first step that failed.
    pub async fn install(
        &self,
        pod: &Located,
        table: &Table,
        existing: Existing,
    ) -> Result<(), CaptureError> {
        let before = self.holds_rules(&pod.netns).await?;
        let installed = self.install_steps(pod, table, before).await;
        if installed.is_err() && !before {
            // The failure that counts is the one that is returned.
            let _ = self.remove(pod).await;
        }
        installed?;
        if existing == Existing::Reset && !before {
            let reset = sock_diag::reset_connections(&pod.netns, self.mark).await;
            let reset = reset.map_err(CaptureError::kernel("reset the pod's old connections"))?;
            tracing::info!(
                reset,
                inode = pod.netns.inode(),
                "connections older than the capture were reset"
            );
        }
        Ok(())
    }

    async fn install_steps(&self, pod: &Located, table: &Table, standing: bool) -> Result<(), CaptureError> {
        self.forbid_mid_stream(&pod.netns).await?;
        // Under rules that stand, from before this agent started, captured entries are those of live connections;
        // without rules they are left over and would break a connection that uses their ports again.
        let stale = if standing {
            &[Select::Dns][..]
        } else {
            &[Select::Captured, Select::Dns]
        };
        delete(&pod.netns, stale).await?;
        routes::install(&pod.netns, pod.ipv6).await?;
        self.rules.take_over(&pod.netns, table).await?;
        delete(&pod.netns, &[Select::Dns]).await
    }

    /// Steps 2 and 3 of leaving: nothing new is captured, what is captured goes on.
    ///
    /// # Errors
    /// The first step that failed.
    pub async fn drain(&self, pod: &Located) -> Result<(), CaptureError> {
        self.rules.apply(&pod.netns, &plan::drain(self.mark)).await?;
        delete(&pod.netns, &[Select::CapturedUdp]).await
    }

    /// Step 4 of leaving: waits until no connection of the proxy is left, at most until the deadline. Returns how many
    /// were left.
    ///
    /// # Errors
    /// When the sockets cannot be listed.
    pub async fn wait_for_connections_to_end(
        &self,
        pod: &Located,
        deadline: Duration,
    ) -> Result<usize, CaptureError> {
        self.wait_until(pod, deadline, |socket| !socket.listening).await
    }

    /// Step 5 of leaving: waits until no socket of the proxy is left, for as long as closing them may take. Returns how
    /// many were left.
    ///
    /// # Errors
    /// When the sockets cannot be listed.
    pub async fn wait_for_proxy_to_leave(&self, pod: &Located) -> Result<usize, CaptureError> {
        self.wait_until(pod, CLOSE_WAIT_MAX, |_| true).await
    }

    /// Waits until no TCP connection is left in a pod that has done its work, the proxy's and the application's own, for
    /// as long as closing them may take; says whether that came. What is only remembered (TIME_WAIT) does not count.
    ///
    /// # Errors
    /// When the sockets cannot be listed.
    pub async fn wait_for_silence(&self, pod: &Located) -> Result<bool, CaptureError> {
        let deadline = Instant::now() + CLOSE_WAIT_MAX;
        loop {
            let open = sock_diag::open_connections(&pod.netns)
                .await
                .map_err(CaptureError::kernel("list sockets"))?;
            if open == 0 || Instant::now() >= deadline {
                return Ok(open == 0);
            }
            tokio::time::sleep(LEAVE_POLL_MIN).await;
        }
    }

    /// Between steps 3 and 4 of leaving: connections that were captured just before the rules changed have reached
    /// the proxy, so that none is left in a queue when the listeners close.
    ///
    /// # Errors
    /// When the sockets cannot be listed.
    pub async fn wait_for_queues_to_empty(&self, pod: &Located) -> Result<(), CaptureError> {
        tokio::time::sleep(HANDSHAKE_GRACE).await;
        let filled = |socket: &MarkedSocket| socket.listening && socket.waiting > 0;
        self.wait_until(pod, QUEUE_WAIT_MAX, filled).await.map(drop)
    }

    /// Waits until the proxy has no socket of this kind in the pod; returns how many were left after `wait`.
    async fn wait_until(
        &self,
        pod: &Located,
        wait: Duration,
        kind: impl Fn(&MarkedSocket) -> bool,
    ) -> Result<usize, CaptureError> {
        let deadline = Instant::now() + wait;
        let mut pause = LEAVE_POLL_MIN;
        loop {
            let sockets = self.marked_sockets(&pod.netns).await?;
            let left = sockets.iter().filter(|socket| kind(socket)).count();
            if left == 0 || Instant::now() >= deadline {
                return Ok(left);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LEAVE_POLL_MAX);
        }
    }

    /// Steps 6 and 7 of leaving: nothing of ours remains.
    ///
    /// # Errors
    /// The first step that failed.
    pub async fn remove(&self, pod: &Located) -> Result<(), CaptureError> {
        self.rules.remove(&pod.netns, TABLE).await?;
        routes::remove(&pod.netns).await?;
        sysctl::set_tcp_loose(&pod.netns, true)
            .await
            .map_err(CaptureError::kernel("set nf_conntrack_tcp_loose"))?;
        delete(&pod.netns, &[Select::Captured, Select::Transparent]).await
    }

    /// Whether a table of ours is in the namespace, in whatever form.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn holds_rules(&self, netns: &NetNs) -> Result<bool, CaptureError> {
        let some_table = plan::drain(self.mark);
        Ok(self.rules.compare(netns, &some_table).await? != Comparison::Missing)
    }

    /// What the kernel has for a captured pod.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn observe(&self, pod: &Located, table: &Table) -> Result<Observed, CaptureError> {
        let tcp_loose = sysctl::tcp_loose(&pod.netns).await;
        Ok(Observed {
            rules: self.rules.compare(&pod.netns, table).await?,
            routes: routes::present(&pod.netns, pod.ipv6).await?,
            strict_conntrack: tcp_loose.is_ok_and(|loose| !loose),
        })
    }

    /// Puts the table back.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn repair_rules(&self, pod: &Located, table: &Table) -> Result<(), CaptureError> {
        self.rules.take_over(&pod.netns, table).await
    }

    /// Puts another table in the place of the pod's; names are asked for by the new way at once.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn replan(&self, pod: &Located, table: &Table) -> Result<(), CaptureError> {
        self.rules.take_over(&pod.netns, table).await?;
        delete(&pod.netns, &[Select::Dns]).await
    }

    /// Whether rules of the pod's own would break its old connections once it is captured: they drop what conntrack
    /// does not know.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn would_lose_old_connections(&self, netns: &NetNs) -> Result<bool, CaptureError> {
        self.rules.drops_what_is_unknown(netns).await
    }

    /// Whether another capture may stand in the namespace that cannot be taken away.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub async fn is_redirected_by_legacy_rules(&self, netns: &NetNs) -> Result<bool, CaptureError> {
        let redirects = legacy::redirects(netns).await;
        redirects.map_err(CaptureError::kernel(
            "look for legacy iptables in the pod's namespace",
        ))
    }

    /// How many packets carried the proxy's mark and were not the proxy's, since the table was put in place.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn forged_marks(&self, netns: &NetNs) -> Result<u64, CaptureError> {
        self.rules.counted(netns, TABLE, NOT_PROXY_CHAIN).await
    }

    /// Sockets with the proxy's mark in the namespace, whoever owns them.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn marked_sockets(&self, netns: &NetNs) -> Result<Vec<MarkedSocket>, CaptureError> {
        sock_diag::marked_sockets(netns, self.mark)
            .await
            .map_err(CaptureError::kernel("list the sockets of the pod's namespace"))
    }

    /// Puts route and rule back.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn repair_routes(&self, pod: &Located) -> Result<(), CaptureError> {
        routes::install(&pod.netns, pod.ipv6).await
    }

    /// Keeps conntrack from taking up connections in mid-stream.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn forbid_mid_stream(&self, netns: &NetNs) -> Result<(), CaptureError> {
        sysctl::set_tcp_loose(netns, false)
            .await
            .map_err(CaptureError::kernel("set nf_conntrack_tcp_loose"))
    }
}

async fn delete(netns: &NetNs, selected: &'static [Select]) -> Result<(), CaptureError> {
    let deleted = conntrack::delete(netns, selected)
        .await
        .map_err(CaptureError::kernel(
            "delete conntrack entries of the pod's namespace",
        ))?;
    if deleted > 0 {
        tracing::debug!(
            deleted,
            ?selected,
            inode = netns.inode(),
            "conntrack entries deleted"
        );
    }
    Ok(())
}
