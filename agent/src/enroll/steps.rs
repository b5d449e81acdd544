//! The steps of joining and leaving, each performed whole and repeatable.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::Goal;
use super::task::{PodTask, Wanted, pids_of};
use crate::cgroup;
use crate::error::CaptureError;
use crate::netns::Located;
use crate::pods::Process;
use crate::resolver::{self, Resolver};
use crate::rules::plan::{self, Cgroup, Table};
use crate::sockets::Listeners;
use crate::sysctl;
use crate::variant::{Existing, MarkGuard};
use crate::zds::Announcement;

/// Longest time that connections of pods may take to end when the agent itself waits to end.
const LEAVE_AT_ONCE_MAX: Duration = Duration::from_secs(10);

impl PodTask {
    /// Finds the namespace and proves that it is the pod's.
    pub(super) async fn locate(&mut self) -> Result<(), CaptureError> {
        self.sandbox = self.recorded();
        if self.is_starting() {
            self.fresh = true;
            self.guarded = true;
            self.shared.host.wait(&self.pod.uid, &self.pod.addresses);
            self.shared.host.settle().await?;
        }
        let located = self.shared.locator.locate(&self.pod).await?;
        self.sandbox = self.recorded();
        self.located = Some(located);
        Ok(())
    }

    /// Whether an earlier run of the agent left rules in the pod's namespace.
    pub(super) async fn holds_rules(&mut self) -> bool {
        if self.locate().await.is_err() {
            return false;
        }
        let Some(located) = &self.located else {
            return false;
        };
        self.shared
            .capture
            .holds_rules(&located.netns)
            .await
            .unwrap_or(false)
    }

    fn located(&self) -> Result<Located, CaptureError> {
        self.located.clone().ok_or(CaptureError::NetnsUnknown)
    }

    /// Whether names of the pod are to be asked for through the proxy.
    pub(super) fn wants_dns(&self) -> bool {
        self.shared.settings.dns_of(&self.pod.wishes)
    }

    /// What happens to connections older than the capture; a pod that was just made has none.
    fn existing(&self) -> Existing {
        if self.fresh {
            Existing::Keep
        } else {
            self.shared.settings.existing_of(&self.pod.wishes)
        }
    }

    /// A running pod whose own rules would cut its old connections is not captured, unless they may be cut; nor one
    /// in which another capture may stand that cannot be removed.
    async fn refuse_what_would_break(&self, located: &Located) -> Result<(), CaptureError> {
        let capture = &self.shared.capture;
        if self.fresh || capture.holds_rules(&located.netns).await? {
            return Ok(());
        }
        if capture.is_redirected_by_legacy_rules(&located.netns).await? {
            return Err(CaptureError::LegacyRules);
        }
        if self.existing() == Existing::Reset {
            return Ok(());
        }
        if capture.would_lose_old_connections(&located.netns).await? {
            return Err(CaptureError::ForeignRules);
        }
        Ok(())
    }

    /// The table of the pod, for the listeners that it has.
    pub(super) async fn table(&mut self, located: &Located) -> Result<Table, CaptureError> {
        let announced = self.shared.hub.announced(&self.pod.uid);
        let owned = announced.and_then(|pod| pod.listeners.clone());
        let dns = match &owned {
            Some(listeners) => self.wants_dns() && listeners.serve_dns(),
            // A proxy that opens its own answers names only if it was told to.
            None => self.wants_dns() && self.proxy_serves_dns(located).await?,
        };
        // A proxy that opens its own may be of any make: which sockets are its own is not known.
        let proxies = if owned.is_some() {
            self.groups_that_may_mark()
        } else {
            Vec::new()
        };
        let settings = &self.shared.settings;
        Ok(plan::capture(&settings.variant(&self.pod.wishes, dns, proxies)))
    }

    /// Processes of the connected proxies.
    pub(super) fn proxy_pids(&self) -> Vec<Option<i32>> {
        pids_of(&self.proxies.borrow())
    }

    /// Groups of the connected proxies, or of those that were connected last: their sockets live on. Nothing where one
    /// is not known, for its sockets would lose their mark.
    fn groups_that_may_mark(&mut self) -> Vec<Cgroup> {
        let pids = self.proxy_pids();
        if self.shared.settings.mark_guard == MarkGuard::Cgroup && !pids.is_empty() {
            let groups = pids.into_iter().map(|pid| cgroup::of_process(pid?).ok()?);
            let groups: Option<BTreeSet<_>> = groups.collect();
            self.groups = groups.unwrap_or_default().into_iter().collect();
        }
        self.groups.clone()
    }

    /// What the pod would ask without the mesh, if names are captured.
    fn resolver(&self) -> Option<Resolver> {
        if !self.wants_dns() {
            return None;
        }
        if let Some(Process::Netns(name)) = &self.pod.process {
            return resolver::of_namespace(&self.shared.resolver_dir, &name.to_string());
        }
        let records = self.shared.locator.records();
        let record = records.of(&self.pod.namespace, &self.pod.name)?;
        self.pod.is(&record.pod).then_some(record.resolver)?
    }

    async fn proxy_serves_dns(&self, located: &Located) -> Result<bool, CaptureError> {
        let sockets = self.shared.capture.marked_sockets(&located.netns).await?;
        Ok(sockets
            .iter()
            .any(|socket| socket.listening && socket.port == plan::DNS_PORT))
    }

    /// Opens the listeners, or takes them back, and announces the pod. From its success on the listeners exist.
    pub(super) async fn announce(&mut self) -> Result<(), CaptureError> {
        let _permit = self.shared.joins.acquire().await.ok();
        let located = self.located()?;
        self.refuse_what_would_break(&located).await?;
        self.shared.host.settle().await?;
        self.proxies.mark_unchanged();
        let takes_sockets = match self.shared.hub.newest() {
            Some(newest) => newest.takes_sockets,
            None if self.may_start_without_proxy() => true,
            None => return Err(CaptureError::ProxyNotConnected),
        };
        let listeners = if takes_sockets {
            Some(self.listeners(&located).await?)
        } else {
            sysctl::let_requests_migrate(&located.netns)
                .await
                .map_err(CaptureError::kernel("set tcp_migrate_req"))?;
            None
        };
        let announcement = Announcement {
            uid: self.pod.uid.clone(),
            name: self.pod.name.clone(),
            namespace: self.pod.namespace.clone(),
            service_account: self.pod.service_account.clone(),
            netns: located.netns.clone(),
            dns: self.resolver(),
            listeners,
        };
        let announced = match self.shared.hub.announce(announcement).await {
            // What connects waits in our listeners; the next proxy gets them with its snapshot.
            Err(CaptureError::ProxyNotConnected) if self.may_start_without_proxy() => Ok(()),
            announced => announced,
        };
        if announced.is_err() {
            self.undo_announcement(&located).await;
        }
        announced
    }

    /// A pod that starts while the proxy is being replaced does not wait for the new one, if that one will take our
    /// listeners.
    fn may_start_without_proxy(&self) -> bool {
        self.is_starting() && self.shared.grace.lasts(&self.proxies.borrow())
    }

    /// The pod is being made: its runtime waits for it to be captured.
    fn is_starting(&self) -> bool {
        let records = self.shared.locator.records();
        records.is_starting(&self.pod.namespace, &self.pod.name)
    }

    /// The listeners that are announced already, new ones, or those that a proxy kept through our restart.
    pub(super) async fn listeners(&self, located: &Located) -> Result<Arc<Listeners>, CaptureError> {
        let announced = self
            .shared
            .hub
            .announced(&self.pod.uid)
            .filter(|pod| pod.netns == located.netns);
        if let Some(held) = announced.and_then(|pod| pod.listeners.clone()) {
            return if held.are_listening() && held.serve_dns() == self.wants_dns() {
                Ok(held)
            } else {
                // Those that still listen hold their ports, and what waits in their queues.
                held.reopen(&located.netns, self.wants_dns()).await.map(Arc::new)
            };
        }
        let (dns, mark) = (self.wants_dns(), self.shared.settings.mark);
        match Listeners::open(&located.netns, dns, mark).await {
            Err(taken @ CaptureError::PortTaken { .. }) => {
                let returned = self.shared.hub.return_sockets(&self.pod.uid).await;
                let returned = returned.ok_or(taken)?;
                tracing::info!(uid = %self.pod.uid, listeners = returned.len(), "the proxy gave the listeners back");
                let adopted = Listeners::adopt(returned, mark)?;
                if adopted.serve_dns() == dns {
                    Ok(Arc::new(adopted))
                } else {
                    adopted.reopen(&located.netns, dns).await.map(Arc::new)
                }
            }
            opened => opened.map(Arc::new),
        }
    }

    /// Takes the announcement back; but a pod that holds rules of ours, from before, stays closed and announced.
    async fn undo_announcement(&self, located: &Located) {
        if !self
            .shared
            .capture
            .holds_rules(&located.netns)
            .await
            .unwrap_or(true)
        {
            self.shared.hub.withdraw(&self.pod.uid).await;
            self.shared.hub.keep(&self.pod.uid);
        }
    }

    /// Steps 2 to 7 of joining.
    pub(super) async fn capture(&mut self) -> Result<(), CaptureError> {
        let joins = Arc::clone(&self.shared.joins);
        let _permit = joins.acquire().await.ok();
        let located = self.located()?;
        let table = self.table(&located).await?;
        let existing = self.existing();
        let installed = match self.shared.capture.install(&located, &table, existing).await {
            Ok(()) => self.confirm(&located).await,
            Err(error) => Err(error),
        };
        match &installed {
            Ok(()) => (self.planned, self.forged) = (Some(table), 0),
            Err(_) => self.undo_announcement(&located).await,
        }
        installed
    }

    /// Leaves in the order that breaks no connection. A pod that is wanted again before anything was taken back
    /// simply stays.
    pub(super) async fn leave(&mut self, wanted: &watch::Receiver<Wanted>) -> Result<(), CaptureError> {
        let Ok(located) = self.located() else {
            return Ok(());
        };
        if self.is_wanted_again(wanted.clone()).await {
            return Ok(());
        }
        let (capture, timing) = (&self.shared.capture, self.shared.timing);
        capture.drain(&located).await?;
        capture.wait_for_queues_to_empty(&located).await?;
        self.shared.hub.leave(&self.pod.uid).await;
        let deadline = if wanted.borrow().at_once {
            timing.leave_deadline.min(LEAVE_AT_ONCE_MAX)
        } else {
            timing.leave_deadline
        };
        let left = tokio::select! {
            left = capture.wait_for_connections_to_end(&located, deadline) => left?,
            // Wanted again, and it stays as it is; or it ended, and is forgotten.
            () = is_decided_otherwise(wanted.clone()) => return Ok(()),
        };
        self.shared.hub.withdraw(&self.pod.uid).await;
        if left > 0 {
            tracing::warn!(uid = %self.pod.uid, connections = left, "captured connections of a leaving pod were cut at the deadline");
        }
        let open = capture.wait_for_proxy_to_leave(&located).await?;
        if open > 0 {
            tracing::warn!(uid = %self.pod.uid, sockets = open, "the proxy has not closed its sockets of a pod in time");
        }
        capture.remove(&located).await?;
        self.located = None;
        tracing::info!(uid = %self.pod.uid, "pod has left");
        Ok(())
    }

    /// Gives other nodes time to learn that the pod leaves.
    async fn is_wanted_again(&self, mut wanted: watch::Receiver<Wanted>) -> bool {
        let decided = wanted.wait_for(|wanted| wanted.at_once || wanted.goal == Goal::Captured);
        match tokio::time::timeout(self.shared.timing.leave_notice, decided).await {
            Ok(Ok(decided)) => decided.goal == Goal::Captured,
            Ok(Err(_)) | Err(_) => false,
        }
    }

    /// The rules of a pod that ended stay until its namespace goes, so that its last packets never go out in clear. Of
    /// a pod that has done its work (phase Succeeded or Failed) the sandbox may stand for long: its rules go once
    /// nothing in it can send any more.
    pub(super) async fn forget(&mut self) {
        self.shared.hub.withdraw(&self.pod.uid).await;
        let Some(located) = self.located.take() else {
            return;
        };
        if self.recorded() != Some(located.netns.inode()) {
            // Its runtime has ended the sandbox, or there never was one.
            return;
        }
        match self.take_rules_from_the_idle(&located).await {
            Ok(true) => tracing::info!(uid = %self.pod.uid, "a pod has done its work; its rules are removed"),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(uid = %self.pod.uid, %error, "the rules of a pod that has done its work stay");
            }
        }
    }

    /// Removes the rules of a sandbox in which nothing runs and no connection is left; says whether that was so.
    async fn take_rules_from_the_idle(&self, located: &Located) -> Result<bool, CaptureError> {
        let capture = &self.shared.capture;
        let idle = !self.shared.locator.is_running_in(located.netns.inode()).await
            && capture.wait_for_silence(located).await?;
        if idle && capture.holds_rules(&located.netns).await? {
            capture.remove(located).await?;
            return Ok(true);
        }
        Ok(false)
    }
}

/// Waits until a pod is no longer to be left alone.
async fn is_decided_otherwise(mut wanted: watch::Receiver<Wanted>) {
    // Nobody decides any more: the fleet is gone.
    let _ = wanted.wait_for(|wanted| wanted.goal != Goal::Released).await;
}
