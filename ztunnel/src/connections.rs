//! The open connections of this process, found by local workload, and judged again whenever policy moves.

mod rejudge;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::Notify;
use tulle_model::authz::DenyBecause;
use tulle_model::mesh::{PolicySet, Snapshot};
use tulle_model::reason::ResponseFlag;
use tulle_model::{Connection, Reason, Verdict, Workload, WorkloadUid};
use tulle_transport::Transfer;

use crate::config::WorkloadName;
use crate::error::Error;
use crate::metrics::Metrics;
use crate::metrics::labels::{Direction, DirectionLabel, TrafficLabels};
use crate::record::{Bytes, ConnectionId, Story};

pub use self::rejudge::run as run_rejudge;

/// Handle on the index; clones share it.
#[derive(Debug, Clone)]
pub struct Connections {
    index: Arc<Mutex<Index>>,
    /// Wakes whoever looks after [`Index::pending`].
    wake: Arc<Notify>,
    metrics: Metrics,
}

#[derive(Debug, Default)]
struct Index {
    all: HashMap<ConnectionId, Arc<Live>>,
    by_workload: HashMap<WorkloadUid, HashSet<ConnectionId>>,
    /// Workloads with a connection that came in while a policy went missing; bounded by the workloads served here.
    pending: HashSet<WorkloadUid>,
}

/// What an inbound connection was judged on, and will be again.
#[derive(Debug, Clone)]
pub struct Judged {
    /// The local workload as it was; used while the control plane does not describe it.
    pub workload: Arc<Workload>,
    /// The facts of the connection.
    pub connection: Connection,
    /// Generation of the configuration the verdict was made on.
    pub generation: u64,
}

/// One open connection.
#[derive(Debug)]
pub struct Live {
    /// What is known of it.
    pub story: Story,
    /// When it opened, for people.
    pub since: SystemTime,
    judged: Option<Judged>,
    /// Why a changed policy denies it; set before the transfer is aborted.
    denial: OnceLock<DenyBecause>,
    transfer: Arc<Transfer>,
    /// What it was counted under when it opened.
    labels: Arc<TrafficLabels>,
    from_client: Series,
    to_client: Series,
}

/// The series that the bytes of one direction of one connection belong to.
#[derive(Debug)]
struct Series {
    counters: Vec<Counter>,
    passed_on: AtomicU64,
}

impl Series {
    fn new(counters: Vec<Counter>) -> Self {
        Self {
            counters,
            passed_on: AtomicU64::new(0),
        }
    }

    /// Adds what came since the last time.
    fn pass_on(&self, bytes: u64) {
        let before = self.passed_on.fetch_max(bytes, Ordering::Relaxed);
        for counter in &self.counters {
            counter.inc_by(bytes.saturating_sub(before));
        }
    }
}

impl Live {
    /// Bytes so far.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        // The transfer counts as the local application sees it: it is the client outbound, the server inbound.
        let (sent, received) = (self.transfer.sent(), self.transfer.received());
        match self.story.direction {
            Direction::Outbound => Bytes {
                from_client: sent,
                to_client: received,
            },
            Direction::Inbound => Bytes {
                from_client: received,
                to_client: sent,
            },
        }
    }

    fn pass_on(&self) -> Bytes {
        let bytes = self.bytes();
        self.from_client.pass_on(bytes.from_client);
        self.to_client.pass_on(bytes.to_client);
        bytes
    }

    fn deny(&self, because: DenyBecause) {
        if self.denial.set(because).is_ok() {
            self.transfer.abort(Reason::PolicyChanged);
        }
    }

    /// Whether it is a connection of this local workload, and in this direction.
    #[must_use]
    pub fn is_of(&self, name: &WorkloadName, direction: Direction) -> bool {
        let local = match direction {
            Direction::Inbound => &self.story.destination,
            Direction::Outbound => &self.story.source,
        };
        self.story.direction == direction
            && local.pod.as_ref() == Some(&name.name)
            && local.namespace.as_ref() == Some(&name.namespace)
    }

    /// One of the two ends is not believed any more.
    pub(crate) fn revoke(&self) {
        self.transfer.abort(Reason::CertRevoked);
    }

    /// The verdict on this connection now; `None` if it is not one that is judged.
    fn judge(&self, snapshot: &Snapshot) -> Option<Verdict> {
        let workload = snapshot.workload(&self.judged.as_ref()?.workload.uid);
        let policies = workload.map(|workload| snapshot.policies_for(workload));
        self.judge_by(snapshot, policies.as_ref())
    }

    /// The same by the policies of its workload; where that is gone, by those of what it was.
    fn judge_by(&self, snapshot: &Snapshot, policies: Option<&PolicySet>) -> Option<Verdict> {
        let judged = self.judged.as_ref()?;
        let check = |policies: &PolicySet| policies.check(&judged.connection);
        Some(policies.map_or_else(|| check(&snapshot.policies_for(&judged.workload)), check))
    }
}

/// A connection that is in the index until it ends.
#[derive(Debug)]
pub struct Tracked {
    live: Arc<Live>,
    connections: Connections,
    ended: bool,
}

impl Connections {
    /// An empty index.
    #[must_use]
    pub fn new(metrics: Metrics) -> Self {
        Self {
            index: Arc::default(),
            wake: Arc::default(),
            metrics,
        }
    }

    /// Takes an open connection into the index. Give what it was judged on, and it is judged again on changes;
    /// `newest` is called after the entry, so that a change between verdict and entry is not missed.
    #[must_use]
    pub fn open(
        &self,
        story: Story,
        judged: Option<Judged>,
        newest: impl FnOnce() -> Arc<Snapshot>,
    ) -> Tracked {
        let labels = self.metrics.count_opened(story.labels(ResponseFlag::None));
        let (from_client, to_client) = self.series(&story, &labels);
        let live = Arc::new(Live {
            story,
            since: SystemTime::now(),
            judged,
            denial: OnceLock::new(),
            transfer: Transfer::new(),
            labels,
            from_client,
            to_client,
        });
        live.story.opened(&self.metrics);
        self.insert(&live);
        self.judge_if_stale(&live, &newest());
        Tracked {
            live,
            connections: self.clone(),
            ended: false,
        }
    }

    /// Every open connection.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Live>> {
        self.index.lock().all.values().cloned().collect()
    }

    /// How many are open.
    #[must_use]
    pub fn len(&self) -> usize {
        self.index.lock().all.len()
    }

    /// Whether none is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Passes the bytes of all open connections on to their series.
    pub fn pass_on(&self) {
        for live in self.list() {
            live.pass_on();
        }
    }

    fn of_workload(&self, uid: &WorkloadUid) -> Vec<Arc<Live>> {
        let index = self.index.lock();
        let ids = index.by_workload.get(uid).into_iter().flatten();
        ids.filter_map(|id| index.all.get(id).cloned()).collect()
    }

    fn judged_workloads(&self) -> Vec<WorkloadUid> {
        self.index.lock().by_workload.keys().cloned().collect()
    }

    /// Waits for workloads that have to be walked once more after the wait for a missing policy.
    async fn pending(&self) -> HashSet<WorkloadUid> {
        self.wake.notified().await;
        std::mem::take(&mut self.index.lock().pending)
    }

    fn series(&self, story: &Story, labels: &TrafficLabels) -> (Series, Series) {
        let mut received = vec![self.metrics.received.get_or_create_owned(labels)];
        let mut sent = vec![self.metrics.sent.get_or_create_owned(labels)];
        if !story.mutual_tls {
            let direction = DirectionLabel::from(story.direction);
            self.metrics.plaintext_connections.get_or_create(&direction).inc();
            let bytes = self.metrics.plaintext_bytes.get_or_create_owned(&direction);
            received.push(bytes.clone());
            sent.push(bytes);
        }
        (Series::new(received), Series::new(sent))
    }

    fn insert(&self, live: &Arc<Live>) {
        let mut index = self.index.lock();
        index.all.insert(live.story.id, live.clone());
        if let Some(judged) = &live.judged {
            index
                .by_workload
                .entry(judged.workload.uid.clone())
                .or_default()
                .insert(live.story.id);
        }
    }

    fn remove(&self, live: &Live) {
        let mut index = self.index.lock();
        index.all.remove(&live.story.id);
        let Some(judged) = &live.judged else { return };
        if let Some(ids) = index.by_workload.get_mut(&judged.workload.uid) {
            ids.remove(&live.story.id);
            if ids.is_empty() {
                index.by_workload.remove(&judged.workload.uid);
            }
        }
    }

    /// A change that was applied after the verdict and walked before the entry would be missed without this.
    fn judge_if_stale(&self, live: &Live, snapshot: &Snapshot) {
        let Some(judged) = &live.judged else { return };
        if judged.generation == snapshot.generation() {
            return;
        }
        match live.judge(snapshot) {
            None | Some(Verdict::Allow { .. }) => {}
            Some(Verdict::Deny {
                because: DenyBecause::PolicyPending { .. },
            }) => {
                self.index.lock().pending.insert(judged.workload.uid.clone());
                self.wake.notify_one();
            }
            Some(Verdict::Deny { because }) => live.deny(because),
        }
    }
}

impl Tracked {
    /// The entry.
    pub(crate) fn live(&self) -> &Live {
        &self.live
    }

    /// What the copier counts with and is ended by.
    #[must_use]
    pub fn transfer(&self) -> Arc<Transfer> {
        Arc::clone(&self.live.transfer)
    }

    /// Why the copy was aborted by a changed policy, if it was.
    #[must_use]
    pub fn denial(&self) -> Option<Error> {
        self.live.denial.get().cloned().map(Error::PolicyChanged)
    }

    /// The end: the connection leaves the index, one line is written.
    pub fn end(mut self, outcome: Result<(), Error>) {
        self.finish(outcome.err().as_ref());
    }

    fn finish(&mut self, error: Option<&Error>) {
        self.ended = true;
        self.connections.remove(&self.live);
        let bytes = self.live.pass_on();
        let metrics = &self.connections.metrics;
        let flag = error.map_or(ResponseFlag::None, Error::flag);
        metrics.count_closed(&self.live.labels, flag);
        self.live.story.complete(metrics, bytes, error);
    }
}

impl Drop for Tracked {
    /// A task that is ended from outside still writes its line.
    fn drop(&mut self) {
        if !self.ended {
            self.finish(Some(&Error::Drained));
        }
    }
}

/// A line of `/connections`.
#[derive(Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionDump {
    id: String,
    direction: &'static str,
    src: String,
    dst: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    authority: Option<String>,
    source_workload: Option<String>,
    source_namespace: Option<String>,
    source_identity: Option<String>,
    destination_workload: Option<String>,
    destination_namespace: Option<String>,
    destination_identity: Option<String>,
    service: Option<String>,
    mutual_tls: bool,
    bytes_sent: u64,
    bytes_recv: u64,
    open_ms: u128,
}

impl From<&Live> for ConnectionDump {
    fn from(live: &Live) -> Self {
        let story = &live.story;
        let bytes = live.bytes();
        let (sent, received) = match story.direction {
            Direction::Outbound => (bytes.from_client, bytes.to_client),
            Direction::Inbound => (bytes.to_client, bytes.from_client),
        };
        let text = |text: &Option<tulle_model::Str>| text.as_ref().map(ToString::to_string);
        Self {
            id: story.id.to_string(),
            direction: story.direction.as_str(),
            src: story.source_address.to_string(),
            dst: story.destination_address.to_string(),
            authority: story.authority.clone(),
            source_workload: text(&story.source.pod),
            source_namespace: text(&story.source.namespace),
            source_identity: story.source.principal.as_ref().map(ToString::to_string),
            destination_workload: text(&story.destination.pod),
            destination_namespace: text(&story.destination.namespace),
            destination_identity: story.destination.principal.as_ref().map(ToString::to_string),
            service: text(&story.service.hostname),
            mutual_tls: story.mutual_tls,
            bytes_sent: sent,
            bytes_recv: received,
            open_ms: story.started.elapsed().as_millis(),
        }
    }
}
