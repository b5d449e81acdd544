//! The task of one pod: performs what its machine asks for. It alone touches the pod's namespace.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep_until};
use tulle_runtime::backoff;

use super::{Action, Degradation, Event, Goal, Machine, State, Step};
use crate::board::Board;
use crate::capture::Capture;
use crate::error::CaptureError;
use crate::metrics::{Metrics, RepairLabels};
use crate::netns::{self, Located};
use crate::pods::Pod;
use crate::repair::{self, Check, Held};
use crate::rules::Comparison;
use crate::rules::plan::{HBONE_PORT, INBOUND_PORT, OUTBOUND_PORT};
use crate::sockets::Listeners;
use crate::zds::{Announcement, Hub, Proxies};

/// How long a pod may be without a proxy before that counts.
pub(crate) const PROXY_GRACE: Duration = Duration::from_secs(10);

/// How long a pod's task takes for what is not a matter of steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How often a captured pod is verified, ±20 %.
    pub verify_interval: Duration,
    /// How long a leaving pod stays captured, so that other nodes learn of it first.
    pub leave_notice: Duration,
    /// How long a leaving pod's connections may take to end.
    pub leave_deadline: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            verify_interval: Duration::from_secs(30),
            leave_notice: Duration::from_secs(2),
            leave_deadline: Duration::from_secs(10),
        }
    }
}

/// What is wanted of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its newest description.
    pub pod: Pod,
    /// Where it should get.
    pub goal: Goal,
    /// Leave without giving other nodes time to learn of it.
    pub at_once: bool,
}

/// What every pod's task shares.
#[derive(Debug, Clone)]
pub struct Shared {
    /// How pods are captured.
    pub capture: Capture,
    /// Proxies and what is announced to them.
    pub hub: Hub,
    /// Where states are shown.
    pub board: Board,
    /// What is counted.
    pub metrics: Metrics,
    /// Where named namespaces are.
    pub netns_dir: Arc<std::path::Path>,
    /// Inode of the node's own namespace.
    pub host_inode: u64,
    /// Capture DNS.
    pub dns: bool,
    /// Bounds joins at a time.
    pub joins: Arc<Semaphore>,
    /// How long things take.
    pub timing: Timing,
}

/// Runs a pod until it is forgotten.
pub async fn run(shared: Shared, mut wanted: watch::Receiver<Wanted>) {
    let first = wanted.borrow_and_update().clone();
    shared.board.show(&first.pod, State::Locating);
    let mut task = PodTask {
        proxies: shared.hub.watch(),
        shared,
        pod: first.pod,
        located: None,
        wanted_since: None,
    };
    let captured = first.goal == Goal::Released && task.holds_rules().await;
    let mut machine = Machine::new(first.goal, captured);
    loop {
        task.enter(&machine);
        let event = match machine.action() {
            Action::End => break,
            Action::Idle => task.goal(&mut wanted).await,
            Action::Perform(step) => task.perform(step, &mut wanted).await,
            Action::Wait => task.wait(&machine, &mut wanted).await,
            Action::Watch => task.watch(&machine, &mut wanted).await,
        };
        machine.on(event, Instant::now());
        task.learn(&mut machine, &mut wanted);
    }
    task.shared.board.remove(&task.pod.uid);
}

struct PodTask {
    shared: Shared,
    pod: Pod,
    proxies: watch::Receiver<Proxies>,
    located: Option<Located>,
    /// Since when the pod is on its way in.
    wanted_since: Option<Instant>,
}

impl PodTask {
    /// Shows the state and keeps the books that go with entering it.
    fn enter(&mut self, machine: &Machine) {
        let state = machine.state();
        tracing::debug!(uid = %self.pod.uid, ?state, "pod");
        self.shared.board.show(&self.pod, state);
        match state {
            State::Locating => {
                self.wanted_since.get_or_insert_with(Instant::now);
                self.shared.hub.keep(&self.pod.uid);
            }
            State::In => {
                if let Some(since) = self.wanted_since.take() {
                    self.shared.metrics.joins.observe(since.elapsed().as_secs_f64());
                    tracing::info!(uid = %self.pod.uid, took_ms = since.elapsed().as_millis(), "pod is captured");
                }
            }
            State::Out => {
                self.located = None;
                self.wanted_since = None;
                self.shared.hub.forget(&self.pod.uid);
            }
            _ => {}
        }
        let inode = self.located.as_ref().map(|located| located.netns.inode());
        let owner = |pod: Arc<Announcement>| if pod.listeners.is_some() { "agent" } else { "proxy" };
        self.shared.board.holds(
            &self.pod.uid,
            inode,
            self.shared.hub.announced(&self.pod.uid).map(owner),
        );
    }

    /// Takes over a goal that changed while a step was performed.
    fn learn(&mut self, machine: &mut Machine, wanted: &mut watch::Receiver<Wanted>) {
        let changed = wanted.has_changed().unwrap_or(machine.goal() != Goal::Forgotten);
        if changed {
            let event = self.read(wanted);
            machine.on(event, Instant::now());
        }
    }

    async fn goal(&mut self, wanted: &mut watch::Receiver<Wanted>) -> Event {
        if wanted.changed().await.is_err() {
            return Event::Goal(Goal::Forgotten);
        }
        self.read(wanted)
    }

    fn read(&mut self, wanted: &mut watch::Receiver<Wanted>) -> Event {
        if wanted.has_changed().is_err() {
            return Event::Goal(Goal::Forgotten);
        }
        let newest = wanted.borrow_and_update().clone();
        self.pod = newest.pod;
        Event::Goal(newest.goal)
    }

    async fn perform(&mut self, step: Step, wanted: &mut watch::Receiver<Wanted>) -> Event {
        let done = match step {
            Step::Locate => self.locate().await,
            Step::Announce => self.announce().await,
            Step::Capture => self.capture().await,
            Step::Leave => self.leave(wanted).await,
            Step::Forget => {
                self.forget().await;
                Ok(())
            }
        };
        match done {
            Ok(()) => Event::Done,
            Err(error) => {
                tracing::warn!(uid = %self.pod.uid, ?step, code = error.reason().code(), %error, "a step failed");
                self.shared.board.failed(&self.pod.uid, &error);
                Event::Failed
            }
        }
    }

    /// Waits before another attempt; a proxy that connects, or another goal, ends the wait.
    async fn wait(&mut self, machine: &Machine, wanted: &mut watch::Receiver<Wanted>) -> Event {
        let wait = machine.retry_after(rand::random());
        let alone = self.proxies.borrow_and_update().connected.is_empty();
        let mut proxies = self.proxies.clone();
        let connected = async move {
            if !alone
                || proxies
                    .wait_for(|proxies| !proxies.connected.is_empty())
                    .await
                    .is_err()
            {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            event = self.goal(wanted) => event,
            () = tokio::time::sleep(wait) => Event::RetryDue,
            () = connected => Event::RetryDue,
        }
    }

    /// Watches over a captured pod until something happens.
    async fn watch(&mut self, machine: &Machine, wanted: &mut watch::Receiver<Wanted>) -> Event {
        let verify_at = Instant::now() + backoff::jittered(self.shared.timing.verify_interval);
        let without_proxy = machine.state() == State::Degraded(Degradation::NoProxy);
        let mut proxies = self.proxies.clone();
        tokio::select! {
            event = self.goal(wanted) => event,
            event = proxy_moved(&mut proxies, without_proxy) => event,
            () = sleep_until(verify_at) => self.verify().await,
        }
    }

    async fn locate(&mut self) -> Result<(), CaptureError> {
        let name = self.pod.netns.as_ref().ok_or(CaptureError::NetnsUnknown)?;
        let path = name.within(&self.shared.netns_dir);
        self.located = Some(netns::locate(path, &self.pod.addresses, self.shared.host_inode).await?);
        Ok(())
    }

    /// Whether an earlier run of the agent left rules in the pod's namespace.
    async fn holds_rules(&mut self) -> bool {
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

    /// Opens the listeners, or takes them back, and announces the pod. From its success on the listeners exist.
    async fn announce(&mut self) -> Result<(), CaptureError> {
        let _permit = self.shared.joins.acquire().await.ok();
        let located = self.located()?;
        let newest = self.shared.hub.newest().ok_or(CaptureError::ProxyNotConnected)?;
        let listeners = if newest.takes_sockets {
            Some(self.listeners(&located).await?)
        } else {
            None
        };
        let announcement = Announcement {
            uid: self.pod.uid.clone(),
            name: self.pod.name.clone(),
            namespace: self.pod.namespace.clone(),
            service_account: self.pod.service_account.clone(),
            netns: located.netns.clone(),
            listeners,
        };
        let announced = self.shared.hub.announce(announcement).await;
        if announced.is_err()
            && !self
                .shared
                .capture
                .holds_rules(&located.netns)
                .await
                .unwrap_or(true)
        {
            self.shared.hub.withdraw(&self.pod.uid).await;
            self.shared.hub.keep(&self.pod.uid);
        }
        announced
    }

    /// The listeners that are announced already, new ones, or those that a proxy kept through our restart.
    async fn listeners(&self, located: &Located) -> Result<Arc<Listeners>, CaptureError> {
        let announced = self
            .shared
            .hub
            .announced(&self.pod.uid)
            .filter(|pod| pod.netns == located.netns);
        if let Some(held) = announced
            .and_then(|pod| pod.listeners.clone())
            .filter(|held| held.are_listening())
        {
            return Ok(held);
        }
        match Listeners::open(&located.netns, self.shared.dns).await {
            Err(CaptureError::PortTaken { port }) => {
                let returned = self.shared.hub.return_sockets(&self.pod.uid).await;
                let returned = returned.ok_or(CaptureError::PortTaken { port })?;
                tracing::info!(uid = %self.pod.uid, listeners = returned.len(), "the proxy gave the listeners back");
                Listeners::adopt(returned, self.shared.dns).map(Arc::new)
            }
            opened => opened.map(Arc::new),
        }
    }

    async fn capture(&mut self) -> Result<(), CaptureError> {
        let _permit = self.shared.joins.acquire().await.ok();
        let located = self.located()?;
        let installed = match self.shared.capture.install(&located).await {
            Ok(()) => self.confirm(&located).await,
            Err(error) => Err(error),
        };
        if installed.is_err()
            && !self
                .shared
                .capture
                .holds_rules(&located.netns)
                .await
                .unwrap_or(true)
        {
            self.shared.hub.withdraw(&self.pod.uid).await;
            self.shared.hub.keep(&self.pod.uid);
        }
        installed
    }

    /// Step 7 of joining: what was done is what the kernel has.
    async fn confirm(&self, located: &Located) -> Result<(), CaptureError> {
        match self.deviations(located).await?.first() {
            None => Ok(()),
            Some(check) => Err(CaptureError::RulesRefused(format!(
                "{check} is not as planned after joining"
            ))),
        }
    }

    async fn deviations(&self, located: &Located) -> Result<Vec<Check>, CaptureError> {
        let observed = self.shared.capture.observe(located).await?;
        if let Comparison::Different { diff } = &observed.rules {
            tracing::warn!(uid = %self.pod.uid, ?diff, "the packet rules are not as planned");
        }
        let held = Held {
            listeners: self.listeners_listen(located).await?,
            announced: self.shared.hub.is_accepted(&self.pod.uid),
        };
        Ok(repair::deviations(&observed, held))
    }

    /// Ours by what they are; the proxy's own by a look at the namespace.
    async fn listeners_listen(&self, located: &Located) -> Result<bool, CaptureError> {
        let Some(announced) = self.shared.hub.announced(&self.pod.uid) else {
            return Ok(false);
        };
        if let Some(listeners) = &announced.listeners {
            return Ok(listeners.are_listening());
        }
        if self.shared.hub.newest().is_none() {
            // They are the proxy's to open; nothing can be repaired until one is there.
            return Ok(true);
        }
        let sockets = crate::sock_diag::marked_sockets(&located.netns)
            .await
            .map_err(CaptureError::kernel("list the sockets of the pod's namespace"))?;
        let listens = |port| {
            sockets
                .iter()
                .any(|socket| socket.listening && socket.port == port)
        };
        Ok([OUTBOUND_PORT, INBOUND_PORT, HBONE_PORT].into_iter().all(listens))
    }

    /// Compares the pod with its plan and puts right what is not as planned.
    async fn verify(&mut self) -> Event {
        let Some(located) = self.located.clone() else {
            return Event::NetnsLost;
        };
        if !located.is_still_there() {
            tracing::info!(uid = %self.pod.uid, "the pod's network namespace is gone");
            return Event::NetnsLost;
        }
        let repaired = match self.deviations(&located).await {
            Ok(deviations) if deviations.is_empty() => return Event::Verified,
            Ok(deviations) => self.repair(&located, &deviations).await,
            Err(error) => Err(error),
        };
        if let Err(error) = repaired {
            tracing::warn!(uid = %self.pod.uid, code = error.reason().code(), %error, "cannot verify or repair a pod");
            self.shared.board.failed(&self.pod.uid, &error);
        }
        Event::Repaired
    }

    async fn repair(&self, located: &Located, deviations: &[Check]) -> Result<(), CaptureError> {
        for check in deviations {
            tracing::warn!(uid = %self.pod.uid, %check, "a captured pod is not as planned; repairing");
            self.shared
                .metrics
                .repairs
                .get_or_create(&RepairLabels { check: *check })
                .inc();
            match check {
                Check::rules => self.shared.capture.repair_rules(located).await?,
                Check::routes => self.shared.capture.repair_routes(located).await?,
                Check::tcp_loose => self.shared.capture.forbid_mid_stream(&located.netns).await?,
                Check::listeners | Check::proxy => self.announce_anew(located).await?,
            }
        }
        Ok(())
    }

    /// As in joining, for a pod that is captured: nothing is taken back on failure.
    async fn announce_anew(&self, located: &Located) -> Result<(), CaptureError> {
        let Some(newest) = self.shared.hub.newest() else {
            return Ok(());
        };
        let listeners = if newest.takes_sockets {
            Some(self.listeners(located).await?)
        } else {
            None
        };
        let Some(announced) = self.shared.hub.announced(&self.pod.uid) else {
            return Ok(());
        };
        let announcement = Announcement {
            listeners,
            ..announced.as_ref().clone()
        };
        drop(announced);
        self.shared.hub.announce(announcement).await
    }

    async fn leave(&mut self, wanted: &mut watch::Receiver<Wanted>) -> Result<(), CaptureError> {
        let Ok(located) = self.located() else {
            return Ok(());
        };
        if !wanted.borrow().at_once {
            tokio::time::sleep(self.shared.timing.leave_notice).await;
        }
        let capture = &self.shared.capture;
        capture.drain(&located).await?;
        self.shared.hub.withdraw(&self.pod.uid).await;
        let left = capture
            .wait_for_proxy_to_leave(&located, self.shared.timing.leave_deadline)
            .await?;
        if left > 0 {
            tracing::warn!(uid = %self.pod.uid, sockets = left, "a pod left before its captured connections ended");
        }
        capture.remove(&located).await?;
        self.located = None;
        tracing::info!(uid = %self.pod.uid, "pod has left");
        Ok(())
    }

    /// The rules of a pod that ended stay until its namespace goes, so that its last packets never go out in clear.
    async fn forget(&mut self) {
        self.shared.hub.withdraw(&self.pod.uid).await;
        self.located = None;
    }
}

/// Waits until the pod has been without a proxy for too long, or, if it was, has one again.
async fn proxy_moved(proxies: &mut watch::Receiver<Proxies>, without_proxy: bool) -> Event {
    loop {
        let (connected, alone_since) = {
            let seen = proxies.borrow_and_update();
            (!seen.connected.is_empty(), seen.alone_since)
        };
        let changed = async {
            if proxies.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        match (connected, without_proxy) {
            (true, true) => return Event::ProxyBack,
            (false, false) => tokio::select! {
                () = changed => {}
                () = sleep_until(alone_since + PROXY_GRACE) => return Event::ProxyLost,
            },
            _ => changed.await,
        }
    }
}
