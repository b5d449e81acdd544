//! The pods of this node and their running proxies.
//!
//! ```text
//!            add                 started
//!  unknown ───────▶ Pending ───────────────▶ Running ◀──add, hand over──▶ Running, not accepting
//!                    │   ▲ failed: in 5 s      │   ▲ ended by a fault: in 0.2 s
//!                    ▼   └───┘                 ▼   └───┘
//!                forgotten ◀──────── del ── reset, drained
//! ```

mod prepare;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{FuturesUnordered, StreamExt};
use futures_util::{FutureExt, future};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tulle_linux::NetNs;
use tulle_runtime::drain::{self, DrainMode, DrainTrigger};
use tulle_runtime::ready::{BlockReady, Ready};
use tulle_runtime::tasks;

use crate::accept::Accepting;
use crate::config::WorkloadName;
use crate::dns::resolv_conf::ResolvConf;
use crate::inpod::PodUid;
use crate::inpod::netns::NetnsSockets;
use crate::pod::{Node, Pod};
use crate::proxy;
use crate::sockets::{Kind, OpenOptions, PodSockets};

/// Time between attempts to start a proxy.
const RETRY: Duration = Duration::from_secs(5);

/// Time between the end of a proxy by a fault and its next start; connects wait in the kernel meanwhile.
const FAULT_PAUSE: Duration = Duration::from_millis(200);

/// Time a deleted pod's connections have to be reset and said goodbye to.
const DELETE_WAIT: Duration = Duration::from_secs(1);

/// Why a proxy could not be started.
#[derive(Debug, thiserror::Error)]
#[error("the proxy of {name} cannot be started: {source}")]
pub struct StartError {
    name: WorkloadName,
    source: io::Error,
}

/// The proxies of this node.
#[derive(Debug)]
pub struct Fleet {
    node: Arc<Node>,
    ready: Ready,
    pods: HashMap<PodUid, Entry>,
    /// Pods that an earlier generation serves on because this one is not prepared for them.
    left: HashMap<PodUid, BlockReady>,
    ends: FuturesUnordered<End>,
    /// Tells the runs of one pod apart.
    runs: u64,
    draining: tasks::Scope,
    view: FleetView,
}

/// Says which run of which pod ended, and whether by a panic.
type End = Pin<Box<dyn Future<Output = (PodUid, u64, bool)> + Send + Sync>>;

/// What is kept of one pod.
#[derive(Debug)]
struct Entry {
    name: WorkloadName,
    netns: NetNs,
    /// What the agent says of its name servers.
    resolver: Option<ResolvConf>,
    /// The agent's listeners, or our own; `None` after they were handed over.
    sockets: Option<Arc<PodSockets>>,
    agent_owns: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    Running(Running),
    Pending {
        retry_at: Instant,
        _not_ready: BlockReady,
    },
}

#[derive(Debug)]
struct Running {
    pod: Arc<Pod>,
    drain: DrainTrigger,
    /// Which task accepts now.
    run: u64,
    handed_over: watch::Sender<bool>,
    /// Set while nobody accepts because of a fault.
    accept_at: Option<Instant>,
}

/// What dumps show of the fleet. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct FleetView(Arc<Mutex<BTreeMap<String, PodView>>>);

/// One pod in a dump.
#[derive(Debug, Clone, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodView {
    /// `Up`, `Pending` or `HandedOver`, as ztunnel's dump says it.
    pub state: &'static str,
    /// The workload.
    pub info: WorkloadName,
    /// Inode of its network namespace.
    pub netns: u64,
    /// Whether the agent owns the listeners.
    pub agent_sockets: bool,
}

impl FleetView {
    /// Every pod by its uid.
    #[must_use]
    pub fn list(&self) -> BTreeMap<String, PodView> {
        self.0.lock().clone()
    }
}

impl Fleet {
    /// An empty fleet.
    #[must_use]
    pub fn new(node: Arc<Node>, ready: Ready) -> Self {
        Self {
            node,
            ready,
            pods: HashMap::new(),
            left: HashMap::new(),
            ends: FuturesUnordered::new(),
            runs: 0,
            draining: tasks::Scope::new(),
            view: FleetView::default(),
        }
    }

    /// What dumps show.
    #[must_use]
    pub fn view(&self) -> FleetView {
        self.view.clone()
    }

    /// Serves a pod. The same uid in the same namespace is nothing new, unless listeners come that are needed.
    ///
    /// # Errors
    /// When its proxy cannot be started now; it is tried again until [`Self::remove`].
    pub async fn add(
        &mut self,
        uid: PodUid,
        name: WorkloadName,
        netns: NetNs,
        sockets: Option<PodSockets>,
        resolver: Option<ResolvConf>,
    ) -> Result<(), StartError> {
        self.left.remove(&uid);
        let mut sockets = sockets.map(Arc::new);
        let agent_owns = sockets.is_some();
        match self.pods.get_mut(&uid) {
            Some(known) if known.netns == netns && known.name == name && known.is_running() => {
                if known.is_accepting_from(sockets.as_deref()) {
                    return Ok(());
                }
                // Handed over before, and ours again, or other listeners: the connections that stayed live on.
                known.stop_accepting();
                (known.agent_owns, known.sockets) = (agent_owns, sockets);
                return self.try_start(&uid).await;
            }
            Some(known) => {
                // Another account in the same namespace: what is open belongs to the old one and ends, the
                // listeners stay.
                if known.netns == netns && sockets.is_none() {
                    sockets.clone_from(&known.sockets);
                }
                self.remove(&uid);
            }
            None => {}
        }
        tracing::info!(%uid, workload = %name, ?netns, agent_sockets = agent_owns, "pod added");
        let entry = Entry {
            name,
            netns,
            resolver,
            agent_owns,
            sockets,
            state: self.pending(&uid, Instant::now()),
        };
        self.pods.insert(uid.clone(), entry);
        self.try_start(&uid).await
    }

    /// Stops serving a pod: its connections are reset, its tunnels closed, its namespace let go.
    pub fn remove(&mut self, uid: &PodUid) {
        self.left.remove(uid);
        let Some(entry) = self.pods.remove(uid) else {
            return;
        };
        tracing::info!(%uid, workload = %entry.name, "pod removed");
        if let State::Running(running) = entry.state {
            self.node.metrics.proxies_stopped.inc();
            let held = entry.netns;
            running.drain.start(DrainMode::Immediate);
            self.draining.spawn("pod-drain", async move {
                running.drain.wait(DELETE_WAIT).await;
                drop(held);
            });
        }
        self.publish();
    }

    /// Stops serving every pod that is not in `mentioned`.
    pub fn retain(&mut self, mentioned: &HashSet<PodUid>) {
        self.left.retain(|uid, _| mentioned.contains(uid));
        let gone: Vec<_> = self
            .pods
            .keys()
            .filter(|uid| !mentioned.contains(*uid))
            .cloned()
            .collect();
        for uid in gone {
            self.remove(&uid);
        }
    }

    /// Stops accepting for a pod and closes our copies of its listeners; its connections live on.
    pub fn hand_over(&mut self, uid: &PodUid) {
        let Some(entry) = self.pods.get_mut(uid) else {
            return;
        };
        tracing::info!(%uid, workload = %entry.name, "pod handed over");
        entry.stop_accepting();
        if !entry.is_running() {
            // Nothing of it was ever started here, so nothing of it lives on.
            self.pods.remove(uid);
        }
        self.publish();
    }

    /// Stops accepting for every pod and says goodbye to peers; what is open lives on.
    pub fn start_drain(&mut self) {
        self.left.clear();
        self.pods.retain(|_, entry| entry.is_running());
        for entry in self.pods.values_mut() {
            if let State::Running(running) = &entry.state {
                running.drain.start(DrainMode::Graceful);
            }
            entry.sockets = None;
        }
        self.publish();
    }

    /// Waits until no connection is open any more, of the pods that are here now.
    pub fn idle(&self) -> impl Future<Output = ()> + Send + use<> {
        let running = self.pods.values().filter_map(|entry| match &entry.state {
            State::Running(running) => Some(running.drain.watcher()),
            State::Pending { .. } => None,
        });
        let idle = running.map(|watcher| async move { watcher.idle().await });
        let idle = join_all(idle.collect::<Vec<_>>());
        async move {
            idle.await;
        }
    }

    /// Copies of a pod's listeners, if the agent handed them to us.
    ///
    /// # Errors
    /// When no descriptor is free.
    pub fn copies(&self, uid: &PodUid) -> io::Result<Vec<(Kind, OwnedFd)>> {
        let entry = self.pods.get(uid).filter(|entry| entry.agent_owns);
        let sockets = entry.and_then(|entry| entry.sockets.as_ref());
        sockets.map_or(Ok(Vec::new()), |sockets| sockets.copies())
    }

    /// Waits until a proxy ended, or a start is due again, and does what follows from it. Dropping the future
    /// before it is done loses nothing.
    pub async fn supervise(&mut self) {
        let due = self.pods.values().filter_map(Entry::due_at).min();
        let due = due.map_or_else(
            || future::pending().boxed(),
            |at| tokio::time::sleep_until(at).boxed(),
        );
        tokio::select! {
            Some((uid, run, panicked)) = self.ends.next() => self.ended(&uid, run, panicked),
            () = due => {}
        }
        let now = Instant::now();
        let is_due = |entry: &Entry| entry.due_at().is_some_and(|at| at <= now);
        let due: Vec<_> = self
            .pods
            .iter()
            .filter(|(_, entry)| is_due(entry))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in due {
            if let Err(error) = self.try_start(&uid).await {
                tracing::warn!(%uid, %error, "proxy not started, trying again");
            }
        }
    }

    /// Ends every pod in order; returns how many connections were open when the deadline passed.
    pub async fn drain(mut self, deadline: Duration) -> usize {
        let running = self.pods.drain().filter_map(|(_, entry)| match entry.state {
            State::Running(running) => Some(running.drain.drain_and_wait(deadline)),
            State::Pending { .. } => None,
        });
        let remaining = join_all(running.collect::<Vec<_>>()).await;
        self.draining.close();
        // What was deleted just before has its own, shorter bound.
        let _ = tokio::time::timeout(DELETE_WAIT, self.draining.wait()).await;
        remaining.into_iter().sum()
    }

    fn pending(&self, uid: &PodUid, retry_at: Instant) -> State {
        State::Pending {
            retry_at,
            _not_ready: self.ready.register(format!("proxy of {uid}")),
        }
    }

    async fn try_start(&mut self, uid: &PodUid) -> Result<(), StartError> {
        let Some(entry) = self.pods.get_mut(uid) else {
            return Ok(());
        };
        self.runs += 1;
        let outcome = match entry.start(&self.node, self.runs).await {
            Ok(task) => {
                self.node.metrics.proxies_started.inc();
                self.ends.push(watch_end(uid.clone(), self.runs, task));
                Ok(())
            }
            Err(source) => {
                entry.due_again(Instant::now() + RETRY);
                Err(StartError {
                    name: entry.name.clone(),
                    source,
                })
            }
        };
        self.publish();
        outcome
    }

    /// A proxy ended. By hand-over or drain that is in order; else it is a fault, and accepting starts again.
    fn ended(&mut self, uid: &PodUid, run: u64, panicked: bool) {
        let Some(entry) = self.pods.get_mut(uid) else {
            return;
        };
        let State::Running(running) = &mut entry.state else {
            return;
        };
        if running.run != run || entry.sockets.is_none() || running.pod.drain.is_draining() {
            return;
        }
        tracing::error!(%uid, workload = %entry.name, panicked, "the proxy of a pod ended by a fault");
        self.node.metrics.proxy_restarts.inc();
        running.accept_at = Some(Instant::now() + FAULT_PAUSE);
    }

    fn publish(&self) {
        let view: BTreeMap<_, _> = self
            .pods
            .iter()
            .map(|(uid, entry)| (uid.to_string(), entry.view()))
            .collect();
        let pending = self.pods.values().filter(|entry| !entry.is_running()).count();
        let active = self.pods.len() - pending;
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.node.metrics.proxies_pending.set(gauge(pending));
        self.node.metrics.proxies_active.set(gauge(active));
        *self.view.0.lock() = view;
    }
}

fn watch_end(uid: PodUid, run: u64, task: JoinHandle<()>) -> End {
    Box::pin(async move { (uid, run, task.await.is_err()) })
}

impl Entry {
    /// Opens listeners where the agent brought none, and starts to accept.
    async fn start(&mut self, node: &Arc<Node>, run: u64) -> io::Result<JoinHandle<()>> {
        let sockets = match &self.sockets {
            Some(sockets) => Arc::clone(sockets),
            None => Arc::new(PodSockets::open(Some(&self.netns), open_options(node)).await?),
        };
        if self.agent_owns {
            node.mark.adopt(sockets.mark());
        }
        self.sockets = Some(Arc::clone(&sockets));
        if let State::Pending { .. } = self.state {
            self.state = State::Running(self.first_run(node));
        }
        let agent_owns = self.agent_owns;
        let State::Running(running) = &mut self.state else {
            return Err(io::ErrorKind::Other.into());
        };
        let (handed_over, receiver) = watch::channel(false);
        let proxy = proxy::start(&running.pod, &sockets, &Accepting::new(receiver, !agent_owns))?;
        running.run = run;
        running.pod.handed_over.send_replace(false);
        running.pod.pool.keep_idle(true);
        running.handed_over = handed_over;
        running.accept_at = None;
        Ok(tasks::spawn("pod-proxy", proxy))
    }

    fn first_run(&self, node: &Arc<Node>) -> Running {
        let (drain, watcher) = drain::new();
        let factory = Arc::new(NetnsSockets::new(self.netns.clone()));
        let pod = Arc::new(Pod::new(
            self.name.clone(),
            Arc::clone(node),
            factory,
            self.resolver.clone(),
            watcher,
        ));
        tasks::spawn("pod-certificate", Arc::clone(&pod).keep_certificate());
        Running {
            pod,
            drain,
            run: 0,
            handed_over: watch::Sender::new(false),
            accept_at: None,
        }
    }

    /// Says when starting is tried next.
    fn due_again(&mut self, at: Instant) {
        match &mut self.state {
            State::Running(running) => running.accept_at = Some(at),
            State::Pending { retry_at, .. } => *retry_at = at,
        }
    }

    fn due_at(&self) -> Option<Instant> {
        match &self.state {
            State::Running(running) => running.accept_at,
            State::Pending { retry_at, .. } => Some(*retry_at),
        }
    }

    fn is_running(&self) -> bool {
        matches!(&self.state, State::Running(_))
    }

    /// Whether it accepts from these listeners; from any, if none are named.
    fn is_accepting_from(&self, sockets: Option<&PodSockets>) -> bool {
        let State::Running(running) = &self.state else {
            return false;
        };
        let held = self.sockets.as_deref();
        let same = sockets.is_none_or(|new| held.is_some_and(|held| held.are(new)));
        !*running.handed_over.borrow() && same
    }

    fn stop_accepting(&mut self) {
        self.sockets = None;
        if let State::Running(running) = &mut self.state {
            running.accept_at = None;
            running.handed_over.send_replace(true);
            running.pod.handed_over.send_replace(true);
            // Tunnels without a stream would be held open for the next, which comes elsewhere.
            running.pod.pool.keep_idle(false);
        }
    }

    fn view(&self) -> PodView {
        let state = match &self.state {
            State::Running(_) if self.sockets.is_none() => "HandedOver",
            State::Running(_) => "Up",
            State::Pending { .. } => "Pending",
        };
        PodView {
            state,
            info: self.name.clone(),
            netns: self.netns.inode(),
            agent_sockets: self.agent_owns,
        }
    }
}

/// How this process opens listeners.
#[must_use]
pub fn open_options(node: &Node) -> OpenOptions {
    OpenOptions {
        traffic: node.config.proxy,
        ports: node.config.ports,
        ipv6: node.config.ipv6,
        dns: node.config.dns.listen,
        reuse_port: node.config.inpod.port_reuse,
        mark: node.config.packet_mark,
    }
}

#[cfg(test)]
mod tests;
