//! The task of one pod: performs what its machine asks for. It alone touches the pod's namespace.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tulle_runtime::backoff;

use super::{Action, Degradation, Event, Goal, Machine, State, Step};
use crate::board::Board;
use crate::capture::Capture;
use crate::grace::Grace;
use crate::host::Host;
use crate::locate::Locator;
use crate::metrics::Metrics;
use crate::netns::Located;
use crate::pods::Pod;
use crate::probe::{Probes, Question};
use crate::rules::plan::{Cgroup, Table};
use crate::variant::Settings;
use crate::zds::{Announcement, Hub, Proxies};

/// How long a pod may be without a proxy before that counts.
pub(crate) const PROXY_GRACE: Duration = Duration::from_secs(10);

/// How long captured connections of a pod that leaves may go on, by default.
pub(crate) const LEAVE_DEADLINE: Duration = Duration::from_secs(3600);

/// How long a pod's task takes for what is not a matter of steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How often a captured pod is verified, ±20 %.
    pub verify_interval: Duration,
    /// How long a leaving pod stays captured, so that other nodes learn of it first.
    pub leave_notice: Duration,
    /// How long captured connections of a leaving pod may go on.
    pub leave_deadline: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            verify_interval: Duration::from_secs(30),
            leave_notice: Duration::from_secs(2),
            leave_deadline: LEAVE_DEADLINE,
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
    /// It was just made: it has no connections to lose, and stays mute until it is captured.
    pub fresh: bool,
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
    /// Where the resolver settings of named namespaces are.
    pub resolver_dir: Arc<std::path::Path>,
    /// How pods are found.
    pub locator: Locator,
    /// Whether a new pod may start without a proxy.
    pub grace: Grace,
    /// Whom to ask for a look at a captured pod.
    pub probes: Probes,
    /// What the node was told about capture.
    pub settings: Settings,
    /// The node's own tables.
    pub host: Host,
    /// Bounds joins at a time.
    pub joins: Arc<Semaphore>,
    /// How long things take.
    pub timing: Timing,
}

/// Runs a pod until it is forgotten.
pub async fn run(shared: Shared, mut wanted: watch::Receiver<Wanted>) {
    let first = wanted.borrow_and_update().clone();
    shared.board.show(&first.pod, State::Locating);
    let shared_guards = shared.host.guards_ranges();
    let questions = shared.probes.register(&first.pod.uid);
    let mut task = PodTask {
        proxies: shared.hub.watch(),
        shared,
        // A pod that is found while ranges are guarded may be new; it stays mute until it has been looked at.
        fresh: first.fresh,
        guarded: first.fresh || shared_guards,
        pod: first.pod,
        located: None,
        sandbox: None,
        questions,
        wanted_since: None,
        look_now: false,
        planned: None,
        groups: Vec::new(),
        forged: 0,
    };
    let captured = first.goal == Goal::Released && task.holds_rules().await;
    let mut machine = Machine::new(first.goal, captured);
    loop {
        task.enter(&machine);
        task.keep_tables(machine.state()).await;
        let event = match machine.action() {
            Action::End => break,
            Action::Idle => task.goal(&mut wanted).await,
            Action::Perform(step) => task.perform(step, &wanted).await,
            Action::Wait => task.wait(&machine, &mut wanted).await,
            Action::Watch => task.watch(&machine, &mut wanted).await,
        };
        machine.on(event, Instant::now());
        task.learn(&mut machine, &mut wanted);
    }
    task.shared.board.remove(&task.pod.uid);
    drop(task.questions);
    task.shared.probes.forget();
}

/// A pod and what is held for it.
pub(super) struct PodTask {
    pub(super) shared: Shared,
    pub(super) pod: Pod,
    pub(super) proxies: watch::Receiver<Proxies>,
    pub(super) located: Option<Located>,
    /// Inode of the sandbox on record when the pod was looked for.
    pub(super) sandbox: Option<u64>,
    /// Who wants to know whether the captured pod is as planned.
    questions: mpsc::Receiver<Question>,
    /// Since when the pod is on its way in.
    wanted_since: Option<Instant>,
    /// It was just made: it has no connections to lose.
    pub(super) fresh: bool,
    /// It stays mute until it is captured, or found to be none of ours.
    pub(super) guarded: bool,
    /// Something changed: verify at once.
    look_now: bool,
    /// The table that was put in place last.
    pub(super) planned: Option<Table>,
    /// Groups of the proxies that were seen last.
    pub(super) groups: Vec<Cgroup>,
    /// Forged marks that were counted already.
    pub(super) forged: u64,
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

    /// Keeps the node's own tables as the pod's state asks.
    async fn keep_tables(&mut self, state: State) {
        let (host, uid, addresses) = (&self.shared.host, &self.pod.uid, &self.pod.addresses);
        match state {
            State::Locating if self.guarded => host.wait(uid, addresses),
            State::Announcing | State::Capturing | State::Leaving => host.claim(uid, addresses),
            State::In | State::Degraded(_) => {
                self.guarded = false;
                self.fresh = false;
                host.claim(uid, addresses);
                host.pass(uid, addresses);
            }
            State::Out => {
                self.guarded = false;
                host.release(uid);
                host.pass(uid, addresses);
            }
            State::Gone => host.forget(uid),
            State::Locating | State::Retry(_) => {}
        }
        if let Err(error) = host.settle().await {
            // The next look at the node tries again; a step that depends on it asks for itself.
            tracing::warn!(%uid, %error, "the node's own tables cannot be changed");
        }
    }

    /// Takes over a goal that changed while a step was performed.
    fn learn(&mut self, machine: &mut Machine, wanted: &mut watch::Receiver<Wanted>) {
        let changed = wanted
            .has_changed()
            .unwrap_or_else(|_| machine.goal() != Goal::Forgotten);
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
        self.look_now |= newest.pod != self.pod;
        self.pod = newest.pod;
        let Pod {
            uid,
            name,
            namespace,
            service_account,
            ..
        } = &self.pod;
        self.shared.hub.rename(uid, name, namespace, service_account);
        Event::Goal(newest.goal)
    }

    async fn perform(&mut self, step: Step, wanted: &watch::Receiver<Wanted>) -> Event {
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

    /// Inode of the sandbox that is on record for the pod.
    pub(super) fn recorded(&self) -> Option<u64> {
        let record = self
            .shared
            .locator
            .records()
            .of(&self.pod.namespace, &self.pod.name);
        record
            .filter(|record| self.pod.is(&record.pod))
            .map(|record| record.inode)
    }

    /// Waits until the record of the pod's sandbox says something else than when the pod was looked for.
    fn sandbox_moved(&self) -> impl Future<Output = ()> + use<> {
        let (records, pod, before) = (
            self.shared.locator.records().clone(),
            self.pod.clone(),
            self.sandbox,
        );
        async move {
            let mut moved = records.subscribe();
            loop {
                let record = records
                    .of(&pod.namespace, &pod.name)
                    .filter(|record| pod.is(&record.pod));
                if record.map(|record| record.inode) != before {
                    return;
                }
                // The handle itself holds the sender, so the channel is open.
                let _ = moved.changed().await;
            }
        }
    }

    /// Waits before another attempt; a proxy that connects, or another goal, ends the wait.
    async fn wait(&mut self, machine: &Machine, wanted: &mut watch::Receiver<Wanted>) -> Event {
        let wait = machine.retry_after(rand::random());
        // What was seen when the step began does not count: a proxy that came since then does.
        let mut proxies = self.proxies.clone();
        let connected = async move {
            while proxies.changed().await.is_ok() {
                if !proxies.borrow_and_update().connected.is_empty() {
                    return;
                }
            }
            std::future::pending::<()>().await;
        };
        let moved = self.sandbox_moved();
        tokio::select! {
            event = self.goal(wanted) => event,
            () = tokio::time::sleep(wait) => Event::RetryDue,
            () = connected => Event::RetryDue,
            () = moved => Event::RetryDue,
        }
    }

    /// Watches over a captured pod until something happens.
    async fn watch(&mut self, machine: &Machine, wanted: &mut watch::Receiver<Wanted>) -> Event {
        let verify_at = if std::mem::take(&mut self.look_now) {
            Instant::now()
        } else {
            Instant::now() + backoff::jittered(self.shared.timing.verify_interval)
        };
        let without_proxy = machine.state() == State::Degraded(Degradation::NoProxy);
        let mut proxies = self.proxies.clone();
        let mut generations = self.proxies.clone();
        let pids = self.proxy_pids();
        let replaced = async move {
            let moved = generations.wait_for(|now| pids_of(now) != pids).await.is_ok();
            if !moved {
                std::future::pending::<()>().await;
            }
        };
        let moved = self.sandbox_moved();
        tokio::select! {
            changed = wanted.changed() => match changed {
                Ok(()) => self.read(wanted),
                Err(_) => Event::Goal(Goal::Forgotten),
            },
            () = moved => Event::NetnsLost,
            Some(question) = self.questions.recv() => self.look(question).await,
            event = proxy_moved(&mut proxies, without_proxy) => event,
            () = sleep_until(verify_at) => self.verify().await,
            // Whose sockets may carry the mark changes with them.
            () = replaced => self.verify().await,
        }
    }
}

/// The processes of the proxies, as far as they are known.
pub(super) fn pids_of(proxies: &Proxies) -> Vec<Option<i32>> {
    let all = proxies.connected.iter().chain(&proxies.lingering);
    all.map(|proxy| proxy.pid).collect()
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
