//! Who is announced and who is connected, behind one handle.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tulle_linux::NetNs;
use tulle_model::Str;
use tulle_proto::convert::zds::{Added, Answer, Request};
use tulle_proto::zds::Abilities;
use tulle_proto::zds::sockets::Kind;

use crate::error::CaptureError;
use crate::sockets::Listeners;

/// Requests that may wait for one proxy.
const QUEUE_REQUESTS_MAX: usize = 1024;

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
    /// Its listeners; `None` when the proxy opens them itself.
    pub listeners: Option<Arc<Listeners>>,
}

/// Who is connected, as others watch it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxies {
    /// Connected proxies, the newest last.
    pub connected: Vec<ProxyInfo>,
    /// When the last one left, or the agent started; meaningful while none is connected.
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
}

/// Announced pods and connected proxies. Clones share them.
#[derive(Debug, Clone)]
pub struct Hub {
    state: Arc<Mutex<State>>,
    proxies: Arc<watch::Sender<Proxies>>,
    complete: Arc<watch::Sender<bool>>,
}

#[derive(Debug, Default)]
struct State {
    pods: BTreeMap<Str, Option<Announced>>,
    proxies: Vec<Proxy>,
    next_id: u64,
}

#[derive(Debug)]
struct Announced {
    pod: Arc<Announcement>,
    /// The proxy that accepted it last.
    accepted_by: Option<u64>,
}

#[derive(Debug)]
struct Proxy {
    info: ProxyInfo,
    queue: mpsc::Sender<Command>,
    /// Pods it was given and not told to hand over.
    serves: BTreeSet<Str>,
    /// It has answered its whole snapshot.
    caught_up: bool,
}

/// A request on its way to one proxy.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) request: Request,
    /// Keeps the descriptors of an `add` open until it was sent.
    pub(super) pod: Option<Arc<Announcement>>,
    pub(super) reply: oneshot::Sender<(Answer, Vec<OwnedFd>)>,
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
            alone_since: Instant::now(),
        };
        Self {
            state: Arc::default(),
            proxies: Arc::new(watch::Sender::new(alone)),
            complete: Arc::new(watch::Sender::new(false)),
        }
    }

    /// Snapshots may be sent: every pod of the node that a proxy may still serve is known here.
    pub fn complete(&self) {
        self.complete.send_replace(true);
    }

    /// Waits until snapshots may be sent.
    pub(super) async fn until_complete(&self) {
        let waited = self
            .complete
            .subscribe()
            .wait_for(|complete| *complete)
            .await
            .map(|_| ());
        waited.expect("the hub itself holds the sender, so the channel is open");
    }

    /// Who is connected, now and later.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Proxies> {
        self.proxies.subscribe()
    }

    /// The newest proxy.
    #[must_use]
    pub fn newest(&self) -> Option<ProxyInfo> {
        self.state.lock().proxies.last().map(|proxy| proxy.info.clone())
    }

    /// A pod that is not announced yet and that proxies keep if they serve it.
    pub fn keep(&self, uid: &Str) {
        self.state.lock().pods.entry(uid.clone()).or_default();
    }

    /// A pod that is no longer wanted before it was announced: snapshots do not mention it.
    pub fn forget(&self, uid: &Str) {
        self.state.lock().pods.remove(uid);
    }

    /// Announces a pod to the newest proxy and waits until it is accepted.
    ///
    /// # Errors
    /// When no proxy is connected, it refuses, or it goes away. Proxies that come later still get the pod.
    pub async fn announce(&self, pod: Announcement) -> Result<(), CaptureError> {
        let uid = pod.uid.clone();
        let pod = Arc::new(pod);
        let announced = Announced {
            pod: Arc::clone(&pod),
            accepted_by: None,
        };
        self.state.lock().pods.insert(uid.clone(), Some(announced));
        let newest = self.queue_of_newest().ok_or(CaptureError::ProxyNotConnected)?;
        let (answer, _) = ask(&newest.1, add(&pod, newest.2), Some(pod))
            .await
            .ok_or(CaptureError::ProxyLost)?;
        self.answered(&uid, newest.0, answer)
    }

    /// Takes a pod away from every proxy and waits for their answers. Its listeners are closed here.
    pub async fn withdraw(&self, uid: &Str) {
        let queues = {
            let mut state = self.state.lock();
            state.pods.remove(uid);
            state.proxies.iter_mut().for_each(|proxy| {
                proxy.serves.remove(uid);
            });
            state
                .proxies
                .iter()
                .map(|proxy| proxy.queue.clone())
                .collect::<Vec<_>>()
        };
        let deletions = queues
            .iter()
            .map(|queue| ask(queue, Request::Delete { uid: uid.clone() }, None));
        for (answer, _) in futures_util::future::join_all(deletions)
            .await
            .into_iter()
            .flatten()
        {
            if let Some(error) = answer.error {
                tracing::warn!(%uid, error, "a proxy answered a removal with an error");
            }
        }
    }

    /// Asks the newest proxy to let go of a pod's listeners and keep its connections, so that it takes others.
    pub async fn hand_over(&self, uid: &Str) {
        if let Some((_, queue, true)) = self.queue_of_newest() {
            // Its answer to the listeners that follow is the one that counts.
            let _ = ask(&queue, Request::HandOver { uid: uid.clone() }, None).await;
        }
    }

    /// Asks the newest proxy for the listeners of a pod that it has from an earlier agent.
    pub async fn return_sockets(&self, uid: &Str) -> Option<Vec<(Kind, OwnedFd)>> {
        let (_, queue, takes_sockets) = self.queue_of_newest()?;
        if !takes_sockets {
            return None;
        }
        let (answer, fds) = ask(&queue, Request::ReturnSockets { uid: uid.clone() }, None).await?;
        if let Some(error) = answer.error {
            tracing::debug!(%uid, error, "the proxy has no listeners to give back");
            return None;
        }
        Some(answer.sockets?.kinds.into_iter().zip(fds).collect())
    }

    /// What is announced under a uid.
    #[must_use]
    pub fn announced(&self, uid: &Str) -> Option<Arc<Announcement>> {
        let state = self.state.lock();
        state
            .pods
            .get(uid)?
            .as_ref()
            .map(|announced| Arc::clone(&announced.pod))
    }

    /// Whether the newest proxy accepted the pod; true while none is connected or its snapshot is under way.
    #[must_use]
    pub fn is_accepted(&self, uid: &Str) -> bool {
        let state = self.state.lock();
        let Some(newest) = state.proxies.last().filter(|newest| newest.caught_up) else {
            return true;
        };
        let accepted = state
            .pods
            .get(uid)
            .and_then(Option::as_ref)
            .and_then(|announced| announced.accepted_by);
        accepted == Some(newest.info.id)
    }

    /// Every announced pod.
    pub(crate) fn announcements(&self) -> Vec<Arc<Announcement>> {
        self.state
            .lock()
            .pods
            .values()
            .flatten()
            .map(|announced| Arc::clone(&announced.pod))
            .collect()
    }

    fn queue_of_newest(&self) -> Option<(u64, mpsc::Sender<Command>, bool)> {
        let state = self.state.lock();
        let newest = state.proxies.last()?;
        Some((newest.info.id, newest.queue.clone(), newest.info.takes_sockets))
    }

    /// A proxy introduced itself: it is the newest from now on. Returns its number, its requests, and what its
    /// snapshot is made of.
    pub(super) fn connect(&self, abilities: Option<Abilities>) -> Connected {
        let (queue, requests) = mpsc::channel(QUEUE_REQUESTS_MAX);
        let mut state = self.state.lock();
        state.next_id += 1;
        let info = ProxyInfo {
            id: state.next_id,
            generation: abilities
                .as_ref()
                .map(|abilities| abilities.generation.clone())
                .unwrap_or_default(),
            takes_sockets: abilities.is_some_and(|abilities| abilities.sockets),
        };
        state.proxies.push(Proxy {
            info: info.clone(),
            queue,
            serves: BTreeSet::new(),
            caught_up: false,
        });
        self.publish(&state);
        Connected { info, requests }
    }

    /// The requests of a proxy's snapshot, without its end.
    pub(super) fn snapshot(&self, info: &ProxyInfo) -> Vec<(Request, Option<Arc<Announcement>>)> {
        let state = self.state.lock();
        let request = |(uid, announced): (&Str, &Option<Announced>)| match announced {
            Some(announced) => (
                add(&announced.pod, info.takes_sockets),
                Some(Arc::clone(&announced.pod)),
            ),
            None => (Request::Keep { uid: uid.clone() }, None),
        };
        state.pods.iter().map(request).collect()
    }

    /// A proxy answered an `add`.
    pub(super) fn answered(&self, uid: &Str, proxy: u64, answer: Answer) -> Result<(), CaptureError> {
        if let Some(error) = answer.error {
            return Err(CaptureError::ProxyRefused(error));
        }
        let older = {
            let mut state = self.state.lock();
            if let Some(announced) = state.pods.get_mut(uid).and_then(Option::as_mut) {
                announced.accepted_by = Some(proxy);
            }
            state.take_over(uid, proxy)
        };
        for queue in older {
            let (reply, _) = oneshot::channel();
            let command = Command {
                request: Request::HandOver { uid: uid.clone() },
                pod: None,
                reply,
            };
            // A full or closed queue belongs to a proxy that is about to go anyway.
            let _ = queue.try_send(command);
        }
        Ok(())
    }

    /// A proxy answered its whole snapshot.
    pub(super) fn caught_up(&self, id: u64) {
        let mut state = self.state.lock();
        if let Some(proxy) = state.proxies.iter_mut().find(|proxy| proxy.info.id == id) {
            proxy.caught_up = true;
        }
    }

    /// A proxy's connection ended.
    pub(super) fn disconnect(&self, id: u64) {
        let mut state = self.state.lock();
        state.proxies.retain(|proxy| proxy.info.id != id);
        self.publish(&state);
    }

    fn publish(&self, state: &State) {
        let connected: Vec<_> = state.proxies.iter().map(|proxy| proxy.info.clone()).collect();
        self.proxies.send_modify(|proxies| {
            if connected.is_empty() && !proxies.connected.is_empty() {
                proxies.alone_since = Instant::now();
            }
            proxies.connected = connected;
        });
    }
}

impl State {
    /// The pod is served by `proxy` now; queues of those that served it before and can hand over.
    fn take_over(&mut self, uid: &Str, proxy: u64) -> Vec<mpsc::Sender<Command>> {
        let generation = self.proxies.iter().find(|known| known.info.id == proxy);
        let generation = generation
            .map(|known| known.info.generation.clone())
            .unwrap_or_default();
        let mut older = Vec::new();
        for known in &mut self.proxies {
            if known.info.id == proxy {
                known.serves.insert(uid.clone());
            } else if known.info.id < proxy && known.serves.remove(uid) {
                // The same generation on an older connection is the same process, which has dialled again.
                let differs = known.info.takes_sockets && known.info.generation != generation;
                older.extend(differs.then(|| known.queue.clone()));
            }
        }
        older
    }
}

/// A proxy that was just registered.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) info: ProxyInfo,
    pub(super) requests: mpsc::Receiver<Command>,
}

fn add(pod: &Announcement, with_sockets: bool) -> Request {
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
        dns: None,
        sockets,
    })
}

async fn ask(
    queue: &mpsc::Sender<Command>,
    request: Request,
    pod: Option<Arc<Announcement>>,
) -> Option<(Answer, Vec<OwnedFd>)> {
    let (reply, replied) = oneshot::channel();
    queue.send(Command { request, pod, reply }).await.ok()?;
    replied.await.ok()
}
