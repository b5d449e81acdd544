//! What everyone may know of each pod: the page `/pods`, the counts by state, and readiness' first look around.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::watch;
use tulle_model::Str;

use crate::enroll::{Degradation, State};
use crate::error::CaptureError;
use crate::events::{Event, Events, Kind};
use crate::metrics::{FailureLabels, Metrics, StateLabels};
use crate::pods::Pod;
use crate::repair::Check;

/// Every state's name, so that a state without pods counts 0 and is not missing.
const STATES: [&str; 9] = [
    "Out",
    "Locating",
    "Announcing",
    "Capturing",
    "In",
    "Degraded",
    "Retry",
    "Leaving",
    "Gone",
];

/// Something about the node that an operator should know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Note {
    /// What it is, in a word that stays.
    pub token: &'static str,
    /// What it is.
    pub message: String,
    /// What to do about it.
    pub fix: &'static str,
}

/// Notes that are kept.
const NOTES_MAX: usize = 16;

/// The state of every pod. Clones share it.
#[derive(Debug, Clone)]
pub struct Board {
    notes: Arc<Mutex<Vec<Note>>>,
    entries: Arc<Mutex<BTreeMap<Str, Entry>>>,
    events: Events,
    moved: Arc<watch::Sender<()>>,
    metrics: Metrics,
}

/// One pod on the page.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Its uid.
    pub uid: Str,
    /// Its name.
    pub name: Str,
    /// Its namespace.
    pub namespace: Str,
    /// Its service account.
    pub service_account: Str,
    /// Whether the control plane wants it captured.
    pub enrolled: bool,
    /// Its state.
    pub state: &'static str,
    /// What the state is about, if it says more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<&'static str>,
    /// Since when it is in this state (RFC 3339).
    pub since: String,
    /// Inode of its network namespace, once it is found.
    pub netns: Option<u64>,
    /// Who owns its listeners: `agent` or `proxy`; nothing while it is not announced.
    pub listeners: Option<&'static str>,
    /// The last failure; gone once the pod is where it should be.
    pub error: Option<EntryError>,
    /// Steps that failed so far.
    #[serde(skip)]
    pub failures: u64,
}

/// A failure on the page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EntryError {
    /// The stable code.
    pub code: &'static str,
    /// The stable token.
    pub token: &'static str,
    /// What happened.
    pub message: String,
    /// What to do about it.
    pub fix: &'static str,
    /// When it happened (RFC 3339).
    pub at: String,
}

impl Board {
    /// An empty board.
    #[must_use]
    pub fn new(metrics: Metrics) -> Self {
        Self {
            notes: Arc::default(),
            entries: Arc::default(),
            events: Events::default(),
            moved: Arc::new(watch::Sender::new(())),
            metrics,
        }
    }

    /// Notes about the node.
    #[must_use]
    pub fn notes(&self) -> Vec<Note> {
        self.notes.lock().clone()
    }

    /// Notes something about the node; the same again is noted once.
    pub fn note(&self, note: Note) {
        let mut notes = self.notes.lock();
        if notes.len() < NOTES_MAX && !notes.contains(&note) {
            tracing::warn!(token = note.token, fix = note.fix, "{}", note.message);
            notes.push(note);
        }
    }

    /// What happened to pods.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.events.list()
    }

    fn happened(&self, entry: &Entry, kind: Kind, reason: &'static str, message: String) {
        let at = now();
        self.events.add(Event {
            uid: entry.uid.clone(),
            namespace: entry.namespace.clone(),
            name: entry.name.clone(),
            kind,
            reason,
            message,
            count: 1,
            first: at.clone(),
            last: at,
        });
    }

    /// Every pod, by uid.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        self.entries.lock().values().cloned().collect()
    }

    /// A pod's state, goal or description changed.
    pub fn show(&self, pod: &Pod, state: State) {
        let (name, detail) = describe(state);
        let mut entries = self.entries.lock();
        let entry = entries
            .entry(pod.uid.clone())
            .or_insert_with(|| Entry::new(pod, name));
        entry.enrolled = pod.enrolled;
        entry.detail = detail;
        if entry.state != name {
            let before = std::mem::replace(&mut entry.state, name);
            entry.since = now();
            if let Some((kind, reason, message)) = told(state, before) {
                self.happened(entry, kind, reason, message.to_owned());
            }
            if matches!(state, State::In | State::Out) {
                entry.error = None;
            }
        }
        self.count(&entries);
    }

    /// A step of a pod failed.
    pub fn failed(&self, uid: &Str, error: &CaptureError) {
        let reason = error.reason();
        self.metrics
            .failures
            .get_or_create(&FailureLabels { code: reason.code() })
            .inc();
        if let Some(entry) = self.entries.lock().get_mut(uid) {
            entry.failures += 1;
            let message = format!("{error}; {}", error.fix());
            self.happened(entry, Kind::Warning, reason.token(), message);
            entry.error = Some(EntryError {
                code: reason.code(),
                token: reason.token(),
                message: error.to_string(),
                fix: error.fix(),
                at: now(),
            });
        }
    }

    /// What a captured pod lacked is put back.
    pub fn repaired(&self, uid: &Str, check: Check) {
        if let Some(entry) = self.entries.lock().get(uid) {
            let message = format!("{check} was not as planned and is put back");
            self.happened(entry, Kind::Warning, check.reason().token(), message);
        }
    }

    /// A pod was verified: what failed before is over.
    pub fn recovered(&self, uid: &Str) {
        if let Some(entry) = self.entries.lock().get_mut(uid) {
            entry.error = None;
        }
    }

    /// What is held for a pod changed.
    pub fn holds(&self, uid: &Str, netns: Option<u64>, listeners: Option<&'static str>) {
        if let Some(entry) = self.entries.lock().get_mut(uid) {
            entry.netns = netns;
            entry.listeners = listeners;
        }
        self.moved.send_replace(());
    }

    /// A pod ended.
    pub fn remove(&self, uid: &Str) {
        let mut entries = self.entries.lock();
        entries.remove(uid);
        self.count(&entries);
    }

    /// Waits until every pod has come somewhere: captured, out, or failed. Call it when every pod is shown.
    pub async fn until_settled(&self) {
        let under_way =
            |entry: &Entry| matches!(entry.state, "Locating" | "Announcing" | "Capturing" | "Leaving");
        self.until(|entries| !entries.values().any(under_way)).await;
    }

    /// Waits until nothing of ours is left in these pods.
    pub async fn until_out(&self, uids: &[Str]) {
        let is_in = |entry: &Entry| !matches!(entry.state, "Out" | "Gone");
        self.until(|entries| !uids.iter().filter_map(|uid| entries.get(uid)).any(is_in))
            .await;
    }

    async fn until(&self, reached: impl Fn(&BTreeMap<Str, Entry>) -> bool) {
        self.until_some(|entries| reached(entries).then_some(())).await;
    }

    /// Waits until `find` finds something on the board.
    pub async fn until_some<T>(&self, find: impl Fn(&BTreeMap<Str, Entry>) -> Option<T>) -> T {
        let mut moved = self.moved.subscribe();
        loop {
            if let Some(found) = find(&self.entries.lock()) {
                return found;
            }
            // The board itself holds the sender, so the channel is open.
            let _ = moved.changed().await;
        }
    }

    fn count(&self, entries: &BTreeMap<Str, Entry>) {
        for state in STATES {
            let pods = entries.values().filter(|entry| entry.state == state).count();
            let gauge = self.metrics.pods.get_or_create(&StateLabels { state });
            gauge.set(i64::try_from(pods).unwrap_or(i64::MAX));
        }
        self.moved.send_replace(());
    }
}

impl Entry {
    fn new(pod: &Pod, state: &'static str) -> Self {
        Self {
            uid: pod.uid.clone(),
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
            service_account: pod.service_account.clone(),
            enrolled: pod.enrolled,
            state,
            detail: None,
            since: now(),
            netns: None,
            listeners: None,
            error: None,
            failures: 0,
        }
    }
}

fn now() -> String {
    jiff::Timestamp::now().to_string()
}

/// What a new state tells of a pod that was in another one.
fn told(state: State, before: &str) -> Option<(Kind, &'static str, &'static str)> {
    match state {
        State::In if before == "Degraded" => Some((Kind::Normal, "captured", "its capture is sound again")),
        State::In => Some((Kind::Normal, "captured", "its traffic goes through the mesh")),
        State::Out if before == "Leaving" => {
            Some((Kind::Normal, "released", "its traffic goes past the mesh again"))
        }
        State::Degraded(_) => describe(state)
            .1
            .map(|detail| (Kind::Warning, "degraded", detail)),
        _ => None,
    }
}

/// A state's name, and what it is about.
fn describe(state: State) -> (&'static str, Option<&'static str>) {
    match state {
        State::Out => ("Out", None),
        State::Locating => ("Locating", None),
        State::Announcing => ("Announcing", None),
        State::Capturing => ("Capturing", None),
        State::In => ("In", None),
        State::Degraded(Degradation::Repairs) => ("Degraded", Some("something in the pod changes its rules")),
        State::Degraded(Degradation::NoProxy) => ("Degraded", Some("no node proxy is connected")),
        State::Retry(_) => ("Retry", Some("a step failed and is tried again")),
        State::Leaving => ("Leaving", None),
        State::Gone => ("Gone", None),
    }
}
