//! Who is announced and who is connected, behind one handle: the [`Book`] decides, this waits and wakes.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout};
use tulle_linux::NetNs;
use tulle_model::Str;
use tulle_proto::convert::zds::{Added, Answer, Request};
use tulle_proto::zds::sockets::Kind;
use tulle_proto::zds::{Abilities, PodDns};

use super::book::{self, Book, Introduction, Next, Progress, Step};
use crate::error::CaptureError;
use crate::resolver::Resolver;
use crate::sockets::Listeners;

/// How long an announcement, or a request for listeners, may take with all that waits before it.
const ASK_WAIT: Duration = Duration::from_secs(10);
/// How long proxies may take to let go of a pod that ended.
const WITHDRAW_WAIT: Duration = Duration::from_secs(5);

/// A pod as it is announced to proxies.
#[derive(Debug, Clone)]
pub struct Announcement {
    /// Its uid.
    pub uid: Str,
    /// Its name.
    pub name: Str,
    /// Its namespace.
    pub namespace: Str,
    /// Its service account.
    pub service_account: Str,
    /// Its network namespace.
    pub netns: NetNs,
    /// Its resolver settings, if they are known.
    pub dns: Option<Resolver>,
    /// Its listeners; `None` when the proxy opens them itself.
    pub listeners: Option<Arc<Listeners>>,
}

/// Who is connected, as others watch it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxies {
    /// Connected proxies that take pods, the newest last.
    pub connected: Vec<ProxyInfo>,
    /// Connected proxies that only wait for their last connections to end.
    pub lingering: Vec<ProxyInfo>,
    /// When the last one that takes pods left, or the agent started; meaningful while none is connected.
    pub alone_since: Instant,
}

/// One connected proxy.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxyInfo {
    /// Number of the connection.
    pub id: u64,
    /// What the proxy calls its generation.
    pub generation: String,
    /// Whether it takes listeners along with a namespace.
    pub takes_sockets: bool,
    /// Whether it takes no pods any more.
    pub lingering: bool,
    /// Its process, if the kernel names one.
    pub pid: Option<i32>,
}

/// Announced pods and connected proxies. Clones share them.
#[derive(Debug, Clone)]
pub struct Hub {
    state: Arc<Mutex<State>>,
    proxies: Arc<watch::Sender<Proxies>>,
    moved: Arc<watch::Sender<()>>,
}

type Returned = (Answer, Vec<OwnedFd>);

#[derive(Debug, Default)]
struct State {
    book: Book<Arc<Announcement>>,
    next_id: u64,
    /// Who waits for listeners that were asked back, by connection and pod.
    returns: BTreeMap<(u64, Str), oneshot::Sender<Returned>>,
}

impl Default for Hub {
    fn default() -> Self {
        Self::new()
    }
}

impl Hub {
    /// Nobody announced, nobody connected.
    #[must_use]
    pub fn new() -> Self {
        let alone = Proxies {
            connected: Vec::new(),
            lingering: Vec::new(),
            alone_since: Instant::now(),
        };
        Self {
            state: Arc::default(),
            proxies: Arc::new(watch::Sender::new(alone)),
            moved: Arc::new(watch::Sender::new(())),
        }
    }

    /// Snapshots may be sent: every pod of the node that a proxy may still serve is known here.
    pub fn complete(&self) {
        self.change(|state| state.book.complete());
    }

    /// Who is connected, now and later.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Proxies> {
        self.proxies.subscribe()
    }

    /// The newest proxy that takes pods.
    #[must_use]
    pub fn newest(&self) -> Option<ProxyInfo> {
        self.state.lock().book.newest().map(info)
    }

    /// A pod that is not announced yet and that proxies keep if they serve it.
    pub fn keep(&self, uid: &Str) {
        self.change(|state| state.book.keep(uid));
    }

    /// A pod that is no longer wanted before it was announced: snapshots do not mention it, and a proxy that was
    /// told to keep it is told of its end.
    pub fn forget(&self, uid: &Str) {
        self.change(|state| state.book.withdraw(uid));
    }

    /// Announces a pod to the newest proxy and waits until it is accepted.
    ///
    /// # Errors
    /// When no proxy is connected, it refuses, or it goes away. Proxies that come later still get the pod.
    pub async fn announce(&self, pod: Announcement) -> Result<(), CaptureError> {
        let uid = pod.uid.clone();
        self.change(|state| state.announce(pod));
        let mut connected = false;
        let outcome = timeout(
            ASK_WAIT,
            self.until(|state| match state.book.progress(&uid) {
                Progress::Nobody if connected => Some(Err(CaptureError::ProxyLost)),
                Progress::Nobody => Some(Err(CaptureError::ProxyNotConnected)),
                Progress::Refused(error) => Some(Err(CaptureError::ProxyRefused(error))),
                Progress::Accepted => Some(Ok(())),
                Progress::Pending => {
                    connected = true;
                    None
                }
            }),
        );
        outcome.await.unwrap_or(Err(CaptureError::ProxyLost))
    }

    /// Announces a pod under other names, if it is announced: who it is changed, where it lives did not.
    pub fn rename(&self, uid: &Str, name: &Str, namespace: &Str, service_account: &Str) {
        let Some(before) = self.announced(uid) else { return };
        let after = Announcement {
            name: name.clone(),
            namespace: namespace.clone(),
            service_account: service_account.clone(),
            ..before.as_ref().clone()
        };
        let names = |pod: &Announcement| {
            (
                pod.name.clone(),
                pod.namespace.clone(),
                pod.service_account.clone(),
            )
        };
        if names(&before) != names(&after) {
            tracing::info!(%uid, %service_account, "a pod has another name or service account now");
            self.change(|state| state.announce(after));
        }
    }

    /// Lets proxies stop accepting for a pod that leaves, and waits for their answers; they keep its connections until
    /// it is withdrawn. Its listeners are closed here. One that does not know how to stop goes on until then.
    pub async fn leave(&self, uid: &Str) {
        self.change(|state| state.book.leave(uid));
        let left = self.until(|state| state.book.has_left(uid).then_some(()));
        if timeout(WITHDRAW_WAIT, left).await.is_err() {
            tracing::warn!(%uid, "a proxy has not stopped accepting for a pod in time");
        }
    }

    /// Takes a pod away from every proxy and waits for their answers. Its connections end. Its listeners are closed here.
    pub async fn withdraw(&self, uid: &Str) {
        self.change(|state| state.book.withdraw(uid));
        let gone = self.until(|state| state.book.is_gone(uid).then_some(()));
        if timeout(WITHDRAW_WAIT, gone).await.is_err() {
            tracing::warn!(%uid, "a proxy has not let go of a pod in time");
        }
    }

    /// Asks the newest proxy for the listeners of a pod that it has from an earlier agent.
    pub async fn return_sockets(&self, uid: &Str) -> Option<Vec<(Kind, OwnedFd)>> {
        let (reply, replied) = oneshot::channel();
        self.change(|state| state.ask_back(uid, reply));
        // A proxy that is not there, or takes no sockets, drops the sender at once.
        let (answer, fds) = timeout(ASK_WAIT, replied).await.ok()?.ok()?;
        if let Some(error) = answer.error {
            tracing::debug!(%uid, error, "the proxy has no listeners to give back");
            return None;
        }
        Some(answer.sockets?.kinds.into_iter().zip(fds).collect())
    }

    /// What is announced under a uid.
    #[must_use]
    pub fn announced(&self, uid: &Str) -> Option<Arc<Announcement>> {
        self.state.lock().book.announced(uid).cloned()
    }

    /// Whether the newest proxy accepted the pod; true while none is connected or its snapshot is under way.
    #[must_use]
    pub fn is_accepted(&self, uid: &Str) -> bool {
        let state = self.state.lock();
        !state.book.is_caught_up() || state.book.progress(uid) == Progress::Accepted
    }

    /// Every announced pod.
    pub(crate) fn announcements(&self) -> Vec<Arc<Announcement>> {
        self.state.lock().book.announcements().cloned().collect()
    }

    /// A proxy introduced itself.
    pub(super) fn connect(&self, abilities: Option<Abilities>, pid: Option<i32>) -> ProxyInfo {
        let abilities = abilities.unwrap_or_default();
        let intro = Introduction {
            generation: abilities.generation,
            takes_sockets: abilities.sockets,
            lingering: abilities.lingering,
            pid,
        };
        self.change(|state| {
            state.next_id += 1;
            let id = state.next_id;
            state.book.connect(id, intro.clone());
            ProxyInfo {
                id,
                generation: intro.generation,
                takes_sockets: intro.takes_sockets,
                lingering: intro.lingering,
                pid,
            }
        })
    }

    /// A proxy's connection ended.
    pub(super) fn disconnect(&self, id: u64) {
        self.change(|state| {
            state.book.disconnect(id);
            state.returns.retain(|(proxy, _), _| *proxy != id);
        });
    }

    /// Waits until there is something to say to a proxy; nothing when its connection has to end.
    pub(super) async fn next(&self, id: u64) -> Option<Step<Arc<Announcement>>> {
        let mut moved = self.moved.subscribe();
        loop {
            let next = self.state.lock().book.next(id, Instant::now());
            let due = match next {
                Next::Send(step) => return Some(step),
                Next::Cut => return None,
                Next::Wait(due) => due,
            };
            let due = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // The hub itself holds the sender, so the channel is open.
                _ = moved.changed() => {}
                () = due => {}
            }
        }
    }

    /// Whether another proxy accepts for the pod of a step until this one has taken it.
    pub(super) fn is_served_beside(&self, id: u64, step: &Step<Arc<Announcement>>) -> bool {
        match step {
            Step::Add(uid, _) => self.state.lock().book.is_served_beside(id, uid),
            _ => false,
        }
    }

    /// A proxy answered what [`Self::next`] gave.
    pub(super) fn answered(
        &self,
        id: u64,
        step: &Step<Arc<Announcement>>,
        answer: Answer,
        fds: Vec<OwnedFd>,
    ) {
        self.change(|state| {
            let refusal = answer.error.clone();
            state.book.answered(id, step, refusal, Instant::now());
            if let Step::Return(uid) = step
                && let Some(reply) = state.returns.remove(&(id, uid.clone()))
            {
                // Whoever asked may have given up; the descriptors close then.
                let _ = reply.send((answer, fds));
            }
        });
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = {
            let mut state = self.state.lock();
            let changed = change(&mut state);
            self.publish(&state);
            changed
        };
        self.moved.send_replace(());
        changed
    }

    async fn until<T>(&self, mut reached: impl FnMut(&State) -> Option<T>) -> T {
        let mut moved = self.moved.subscribe();
        loop {
            let found = reached(&self.state.lock());
            if let Some(found) = found {
                return found;
            }
            // The hub itself holds the sender, so the channel is open.
            let _ = moved.changed().await;
        }
    }

    fn publish(&self, state: &State) {
        let (lingering, connected): (Vec<_>, Vec<_>) = state
            .book
            .proxies()
            .iter()
            .map(info)
            .partition(|proxy| proxy.lingering);
        self.proxies.send_if_modified(|proxies| {
            if connected == proxies.connected && lingering == proxies.lingering {
                return false;
            }
            if connected.is_empty() && !proxies.connected.is_empty() {
                proxies.alone_since = Instant::now();
            }
            (proxies.connected, proxies.lingering) = (connected, lingering);
            true
        });
    }
}

impl State {
    fn announce(&mut self, pod: Announcement) {
        let held = |pod: &Announcement| pod.listeners.as_ref().map(Arc::as_ptr);
        let before = self.book.announced(&pod.uid);
        let same_listeners = before.is_some_and(|before| held(before) == held(&pod));
        let uid = pod.uid.clone();
        self.book.announce(&uid, Arc::new(pod), same_listeners);
    }

    fn ask_back(&mut self, uid: &Str, reply: oneshot::Sender<Returned>) {
        let newest = self.book.newest().filter(|newest| newest.intro.takes_sockets);
        let Some(id) = newest.map(|newest| newest.id) else {
            return;
        };
        if self.book.ask_back(id, uid) {
            self.returns.insert((id, uid.clone()), reply);
        }
    }
}

fn info(proxy: &book::Proxy) -> ProxyInfo {
    ProxyInfo {
        id: proxy.id,
        generation: proxy.intro.generation.clone(),
        takes_sockets: proxy.intro.takes_sockets,
        lingering: proxy.intro.lingering,
        pid: proxy.intro.pid,
    }
}

/// A step as the request that asks for it; `served` when another proxy accepts for the pod meanwhile.
pub(super) fn request(step: &Step<Arc<Announcement>>, takes_sockets: bool, served: bool) -> Request {
    match step {
        Step::Add(_, pod) => add(pod, takes_sockets, served),
        Step::Keep(uid) => Request::Keep { uid: uid.clone() },
        Step::SnapshotSent => Request::SnapshotSent,
        Step::Delete(uid) => Request::Delete { uid: uid.clone() },
        Step::HandOver(uid) => Request::HandOver { uid: uid.clone() },
        Step::Return(uid) => Request::ReturnSockets { uid: uid.clone() },
    }
}

fn add(pod: &Announcement, with_sockets: bool, served: bool) -> Request {
    let sockets = pod
        .listeners
        .as_ref()
        .filter(|_| with_sockets)
        .map(|listeners| listeners.announcement());
    Request::Add(Added {
        uid: pod.uid.clone(),
        name: pod.name.clone(),
        namespace: pod.namespace.clone(),
        service_account: pod.service_account.clone(),
        dns: pod.dns.clone().map(|resolver| PodDns {
            nameservers: resolver.nameservers,
            search: resolver.search,
            ndots: resolver.ndots,
        }),
        sockets,
        served,
    })
}
