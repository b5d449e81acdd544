//! Who has to be told what: every pod that is announced, every proxy that is connected, and from the difference the
//! one request that comes next for each proxy. Pure: no sockets, no clock, no tasks.
//!
//! A pod, as one proxy knows it:
//!
//! ```text
//!            Add            Ack                       the newest serves it: HandOver
//!  unknown ──────▶ Adding ───────▶ Serving(version) ─────────────────────────────────▶ HandedOver
//!     │               │ error, 5 s    ▲    │ newer version, other listeners ▲               │
//!     │ Keep          ▼               │    └──────── Add ────────┘          │               │
//!     └──▶ Kept ──▶ Refused ──────────┘◀──────────────── Add, it is the newest again ───────┘
//!                                        any ── withdrawn ──▶ Doomed ── Delete ──▶ unknown
//! ```
//!
//! A pod that leaves capture is handed over to nobody first: whoever accepts for it gets HandOver, keeps its connections,
//! and hears Delete once it is withdrawn. Delete alone means that the pod ended: its connections are reset.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;
use tulle_model::Str;

/// Generations of a node's proxy that may be connected; beyond it the oldest is cut.
pub(super) const GENERATIONS_MAX: usize = 3;
/// How long a pod that a proxy refused waits before it is added again.
pub(super) const RETRY: Duration = Duration::from_secs(5);
/// First letter of a generation whose text sorts by the start of its process.
pub(super) const STARTED: char = 't';
/// Pods whose listeners may be asked back of one proxy at a time.
const RETURNS_MAX: usize = 1024;

/// How a proxy introduced itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Introduction {
    /// Names its process. Empty: not told. What begins with [`STARTED`] tells when the process started, too.
    pub(super) generation: String,
    /// It takes listeners along with a namespace.
    pub(super) takes_sockets: bool,
    /// It takes no pods any more.
    pub(super) lingering: bool,
    /// Its process, if the kernel names one.
    pub(super) pid: Option<i32>,
}

/// The next request for one proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step<P> {
    /// Serve a pod.
    Add(Str, P),
    /// A pod is known and may be served on.
    Keep(Str),
    /// Everything was mentioned.
    SnapshotSent,
    /// A pod ended.
    Delete(Str),
    /// Stop accepting for a pod.
    HandOver(Str),
    /// Give a pod's listeners back.
    Return(Str),
}

/// What a proxy's conversation does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next<P> {
    /// Send this and report the answer.
    Send(Step<P>),
    /// Nothing to say before something changes, or this time comes.
    Wait(Option<Instant>),
    /// Too many generations: end this one's connection.
    Cut,
}

/// How far an announcement has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Progress {
    /// No proxy that takes pods is connected.
    Nobody,
    /// It is on its way.
    Pending,
    /// The newest proxy accepted it.
    Accepted,
    /// The newest proxy refused it, for this reason.
    Refused(String),
}

/// One connected proxy.
#[derive(Debug)]
pub(super) struct Proxy {
    /// Number of its connection.
    pub(super) id: u64,
    /// How it introduced itself.
    pub(super) intro: Introduction,
    phase: Phase,
    pods: BTreeMap<Str, Held>,
    returns: VecDeque<Str>,
    cut: bool,
}

#[derive(Debug)]
enum Phase {
    /// Pods that were mentioned.
    Snapshot(BTreeSet<Str>),
    Live,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Held {
    /// It was mentioned, and may be served from an earlier connection.
    Kept,
    /// It was sent and is not answered.
    Adding(Told),
    Serving(Told),
    Refused {
        told: Told,
        until: Instant,
        error: String,
    },
    HandedOver,
    Doomed,
}

/// What a proxy was told last of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Told {
    version: u64,
    listeners: u64,
}

#[derive(Debug)]
struct Entry<P> {
    pod: Option<P>,
    told: Told,
    /// Nobody is to accept for it any more.
    leaving: bool,
}

/// Announced pods and connected proxies, the newest last.
#[derive(Debug)]
pub(super) struct Book<P> {
    pods: BTreeMap<Str, Entry<P>>,
    proxies: Vec<Proxy>,
    versions: u64,
    complete: bool,
}

impl<P> Default for Book<P> {
    fn default() -> Self {
        Self {
            pods: BTreeMap::new(),
            proxies: Vec::new(),
            versions: 0,
            complete: false,
        }
    }
}

impl<P: Clone> Book<P> {
    /// Snapshots may be sent.
    pub(super) fn complete(&mut self) {
        self.complete = true;
    }

    /// A pod that is known and not announced yet.
    pub(super) fn keep(&mut self, uid: &Str) {
        let told = self.told(None);
        let kept = Entry {
            pod: None,
            told,
            leaving: false,
        };
        self.pods.entry(uid.clone()).or_insert(kept);
    }

    /// A pod that leaves: no proxy accepts for it any more, and each keeps the connections it has until the pod is
    /// withdrawn.
    pub(super) fn leave(&mut self, uid: &Str) {
        let told = self.told(None);
        let leaving = Entry {
            pod: None,
            told,
            leaving: true,
        };
        self.pods.insert(uid.clone(), leaving);
    }

    /// Whether everyone who can be told to stop accepting for a pod that leaves has stopped.
    pub(super) fn has_left(&self, uid: &Str) -> bool {
        !self.proxies.iter().any(|proxy| proxy.accepts(uid))
    }

    /// Announces a pod, anew if it is announced already. `same_listeners` when a proxy that serves it has them.
    pub(super) fn announce(&mut self, uid: &Str, pod: P, same_listeners: bool) {
        let before = self
            .pods
            .get(uid)
            .map(|entry| entry.told)
            .filter(|_| same_listeners);
        let told = self.told(before);
        let announced = Entry {
            pod: Some(pod),
            told,
            leaving: false,
        };
        self.pods.insert(uid.clone(), announced);
    }

    /// A pod ended, or is no longer wanted.
    pub(super) fn withdraw(&mut self, uid: &Str) {
        self.pods.remove(uid);
        for proxy in &mut self.proxies {
            if let Some(held) = proxy.pods.get_mut(uid) {
                *held = Held::Doomed;
            }
        }
    }

    /// What is announced of a pod.
    pub(super) fn announced(&self, uid: &Str) -> Option<&P> {
        self.pods.get(uid)?.pod.as_ref()
    }

    /// Everything that is announced.
    pub(super) fn announcements(&self) -> impl Iterator<Item = &P> {
        self.pods.values().filter_map(|entry| entry.pod.as_ref())
    }

    /// Whether another proxy accepts for a pod, and goes on until this one has taken it.
    pub(super) fn is_served_beside(&self, id: u64, uid: &Str) -> bool {
        let serves = |proxy: &Proxy| {
            let held = proxy.pods.get(uid);
            !proxy.intro.lingering && !proxy.cut && matches!(held, Some(Held::Kept | Held::Serving(_)))
        };
        let mut others = self.proxies.iter().filter(|proxy| proxy.id != id);
        others.any(serves)
    }

    /// Everyone who is connected, the newest last.
    pub(super) fn proxies(&self) -> &[Proxy] {
        &self.proxies
    }

    /// The proxy that new pods go to.
    pub(super) fn newest(&self) -> Option<&Proxy> {
        self.proxies.iter().rev().find(|proxy| !proxy.intro.lingering)
    }

    /// Asks a proxy for a pod's listeners; false when it is not there.
    pub(super) fn ask_back(&mut self, id: u64, uid: &Str) -> bool {
        let proxy = self.proxies.iter_mut().find(|proxy| proxy.id == id);
        let proxy = proxy.filter(|proxy| proxy.returns.len() < RETURNS_MAX);
        proxy.map(|proxy| proxy.returns.push_back(uid.clone())).is_some()
    }

    /// A proxy introduced itself. An earlier connection of the same process is over.
    pub(super) fn connect(&mut self, id: u64, intro: Introduction) {
        if !intro.generation.is_empty() {
            self.proxies
                .retain(|proxy| proxy.intro.generation != intro.generation);
        }
        // Who connects last is the newest, unless both tell when they started: after a restart of the agent an old
        // generation may be the quicker one, or the slower one.
        let later = |proxy: &Proxy| {
            let both = [&proxy.intro, &intro].map(|intro| intro.generation.starts_with(STARTED));
            both == [true, true] && proxy.intro.generation > intro.generation
        };
        let at = self.proxies.iter().position(later).unwrap_or(self.proxies.len());
        let proxy = Proxy {
            id,
            intro,
            phase: Phase::Snapshot(BTreeSet::new()),
            pods: BTreeMap::new(),
            returns: VecDeque::new(),
            cut: false,
        };
        self.proxies.insert(at, proxy);
        let beyond = self.proxies.len().saturating_sub(GENERATIONS_MAX);
        let oldest_first = |proxy: &&mut Proxy| !proxy.intro.lingering;
        let mut order: Vec<_> = self.proxies.iter_mut().collect();
        order.sort_by_key(oldest_first);
        order.into_iter().take(beyond).for_each(|proxy| proxy.cut = true);
    }

    /// A proxy's connection ended.
    pub(super) fn disconnect(&mut self, id: u64) {
        self.proxies.retain(|proxy| proxy.id != id);
    }

    /// Whether every proxy has let go of a pod that was withdrawn.
    pub(super) fn is_gone(&self, uid: &Str) -> bool {
        let doomed = |proxy: &Proxy| proxy.pods.get(uid) == Some(&Held::Doomed);
        !self.proxies.iter().any(doomed)
    }

    /// Whether the newest proxy accepted a pod as it is announced now.
    pub(super) fn progress(&self, uid: &Str) -> Progress {
        let Some(newest) = self.newest() else {
            return Progress::Nobody;
        };
        let Some(entry) = self.pods.get(uid) else {
            return Progress::Pending;
        };
        match newest.pods.get(uid) {
            Some(Held::Serving(told)) if *told == entry.told => Progress::Accepted,
            Some(Held::Refused { told, error, .. }) if *told == entry.told => {
                Progress::Refused(error.clone())
            }
            _ => Progress::Pending,
        }
    }

    /// Whether the newest proxy has answered its whole snapshot.
    pub(super) fn is_caught_up(&self) -> bool {
        self.newest()
            .is_some_and(|newest| matches!(newest.phase, Phase::Live))
    }

    /// What to say to a proxy next. What is returned to be sent must be sent, and its answer reported.
    pub(super) fn next(&mut self, id: u64, now: Instant) -> Next<P> {
        let Some(at) = self.proxies.iter().position(|proxy| proxy.id == id) else {
            return Next::Cut;
        };
        if self.proxies[at].cut {
            return Next::Cut;
        }
        let is_newest = self.newest().is_some_and(|newest| newest.id == id);
        let step = match &self.proxies[at].phase {
            Phase::Snapshot(_) if !self.complete => return Next::Wait(None),
            Phase::Snapshot(mentioned) => self.mention(mentioned, is_newest),
            Phase::Live => match self.change(at, is_newest, now) {
                Ok(step) => step,
                Err(due) => return Next::Wait(due),
            },
        };
        if let Step::Add(uid, _) = &step
            && let Some(entry) = self.pods.get(uid)
        {
            let told = entry.told;
            self.proxies[at].pods.insert(uid.clone(), Held::Adding(told));
        }
        if let Step::Return(_) = &step {
            self.proxies[at].returns.pop_front();
        }
        Next::Send(step)
    }

    /// A proxy answered a step; `refusal` says why it did not do it.
    pub(super) fn answered(&mut self, id: u64, step: &Step<P>, refusal: Option<String>, now: Instant) {
        let Some(proxy) = self.proxies.iter_mut().find(|proxy| proxy.id == id) else {
            return;
        };
        match step {
            Step::Add(uid, _) => {
                proxy.mentioned(uid);
                if let Some(held) = proxy.pods.get_mut(uid)
                    && let Held::Adding(told) = *held
                {
                    *held = refusal.map_or(Held::Serving(told), |error| Held::Refused {
                        told,
                        until: now + RETRY,
                        error,
                    });
                }
            }
            Step::Keep(uid) => {
                proxy.mentioned(uid);
                // Withdrawn while this was on its way: the proxy may serve it and must hear of the end.
                let known = self.pods.contains_key(uid);
                let held = if known { Held::Kept } else { Held::Doomed };
                proxy.pods.insert(uid.clone(), held);
            }
            Step::SnapshotSent => proxy.phase = Phase::Live,
            Step::Delete(uid) => drop(proxy.pods.remove(uid)),
            Step::HandOver(uid) => {
                if let Some(held) = proxy.pods.get_mut(uid)
                    && *held != Held::Doomed
                {
                    *held = Held::HandedOver;
                }
            }
            Step::Return(_) => {}
        }
    }

    fn told(&mut self, before: Option<Told>) -> Told {
        self.versions += 1;
        Told {
            version: self.versions,
            listeners: before.map_or(self.versions, |before| before.listeners),
        }
    }

    /// The next request of a snapshot: pods go to the newest, the others only learn that they are still there.
    fn mention(&self, mentioned: &BTreeSet<Str>, is_newest: bool) -> Step<P> {
        let next = self.pods.iter().find(|(uid, _)| !mentioned.contains(*uid));
        match next {
            Some((uid, Entry { pod: Some(pod), .. })) if is_newest => Step::Add(uid.clone(), pod.clone()),
            Some((uid, _)) => Step::Keep(uid.clone()),
            None => Step::SnapshotSent,
        }
    }

    /// The next request after the snapshot, or when to look again.
    fn change(&self, at: usize, is_newest: bool, now: Instant) -> Result<Step<P>, Option<Instant>> {
        let proxy = &self.proxies[at];
        let doomed = proxy.pods.iter().find(|(_, held)| **held == Held::Doomed);
        if let Some((uid, _)) = doomed {
            return Ok(Step::Delete(uid.clone()));
        }
        if let Some(uid) = proxy.returns.front() {
            return Ok(Step::Return(uid.clone()));
        }
        let leaving = self.pods.iter().filter(|(_, entry)| entry.leaving);
        if let Some((uid, _)) = leaving.into_iter().find(|(uid, _)| proxy.accepts(uid)) {
            return Ok(Step::HandOver(uid.clone()));
        }
        if is_newest {
            return self.addition(proxy, now);
        }
        self.hand_over(proxy).ok_or(None)
    }

    fn addition(&self, proxy: &Proxy, now: Instant) -> Result<Step<P>, Option<Instant>> {
        let mut due: Option<Instant> = None;
        for (uid, entry) in &self.pods {
            let Some(pod) = &entry.pod else { continue };
            let told = match proxy.pods.get(uid) {
                Some(Held::Serving(told)) if *told == entry.told => continue,
                Some(Held::Refused { told, until, .. }) if *told == entry.told && *until > now => {
                    due = Some(due.map_or(*until, |due| due.min(*until)));
                    continue;
                }
                Some(Held::Serving(told)) => Some(told),
                _ => None,
            };
            // Only a proxy that has let go of the old listeners takes the new ones.
            let replaced = told.is_some_and(|told| told.listeners != entry.told.listeners);
            return Ok(if replaced && proxy.intro.takes_sockets {
                Step::HandOver(uid.clone())
            } else {
                Step::Add(uid.clone(), pod.clone())
            });
        }
        Err(due)
    }

    /// A pod that the newest accepted and this one may still accept for.
    fn hand_over(&self, proxy: &Proxy) -> Option<Step<P>> {
        let mut accepting = proxy.pods.keys().filter(|uid| proxy.accepts(uid));
        let uid = accepting.find(|uid| self.progress(uid) == Progress::Accepted)?;
        Some(Step::HandOver(uid.clone()))
    }
}

impl Proxy {
    /// Whether it may accept for a pod, and knows what being told to stop means.
    fn accepts(&self, uid: &Str) -> bool {
        let may = match self.pods.get(uid) {
            Some(Held::Kept | Held::Adding(_) | Held::Serving(_) | Held::Refused { .. }) => true,
            Some(Held::HandedOver | Held::Doomed) | None => false,
        };
        may && self.intro.takes_sockets && !self.intro.lingering
    }

    fn mentioned(&mut self, uid: &Str) {
        if let Phase::Snapshot(mentioned) = &mut self.phase {
            mentioned.insert(uid.clone());
        }
    }
}

#[cfg(test)]
mod tests;
