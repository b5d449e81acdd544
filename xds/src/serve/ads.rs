//! The delta-ADS service: authenticates a stream by its headers, then lets a session talk over it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tonic::{Request, Status, Streaming};
use tulle_identity::PeerInfo;
use tulle_model::Str;
use tulle_proto::discovery::DeltaDiscoveryRequest;
use tulle_runtime::drain::DrainWatcher;
use tulle_runtime::tasks;

use crate::ca::limit::Holds;
use crate::metrics::{Metrics, ReasonLabel};
use crate::serve::admission::Admission;
use crate::serve::authenticate::{Authenticator, Unauthenticated};
use crate::serve::connection::Closing;
use crate::serve::frame::{self, Encoding, Message};
use crate::serve::pace::BATCH_APART;
use crate::serve::viewer::Features;
use crate::snapshot::Snapshot;
use crate::status::{Clients, STREAMS_PER_CLIENT_MAX};

mod grpc;
#[cfg(test)]
mod pair;
#[cfg(test)]
mod returns;
mod stream;
mod wire;

/// Streams of all clients that have not said yet what they are.
const OPENINGS_MAX: usize = 10_000;
/// Largest request taken from an authenticated client.
pub const REQUEST_BYTES_MAX: usize = 64 << 20;

/// How streams are kept.
#[derive(Debug, Clone)]
pub struct AdsOptions {
    /// A client that does not read for this long is cut off.
    pub write_stall_max: Duration,
    /// How long a client may take to send its first request.
    pub first_request_wait: Duration,
    /// Age at which a connection and its streams are ended, so that clients spread over replicas; varied by a quarter.
    /// `None`: never.
    pub age_max: Option<Duration>,
    /// Least time between two batches of changes while many come.
    pub batch_interval: Duration,
    /// Cluster that clients must belong to, if they name one.
    pub cluster_id: Str,
    /// What clients may take of the machine by what they are told first.
    pub admission: Admission,
    /// Nodes on which a workload waits for its certificate: they go first.
    pub waiting: Holds,
}

impl Default for AdsOptions {
    fn default() -> Self {
        Self {
            write_stall_max: Duration::from_secs(20),
            first_request_wait: Duration::from_secs(30),
            age_max: Some(Duration::from_secs(30 * 60)),
            batch_interval: BATCH_APART,
            cluster_id: "Kubernetes".into(),
            admission: Admission::default(),
            waiting: Holds::default(),
        }
    }
}

/// The service. Clones share everything.
#[derive(Debug, Clone)]
pub struct Ads {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    authenticator: Authenticator,
    clients: Clients,
    metrics: Metrics,
    drain: DrainWatcher,
    options: AdsOptions,
    /// Streams of which nothing was read yet, by who opened them: what is read first may be large.
    openings: Holds,
    /// What streams at the same place are sent.
    frames: frame::Shared,
    /// Makes nonces of this process unlike those of any other.
    epoch: u64,
}

impl Ads {
    /// A service that serves what the engine publishes.
    #[must_use]
    pub fn new(
        snapshots: watch::Receiver<Arc<Snapshot>>,
        authenticator: Authenticator,
        clients: Clients,
        metrics: Metrics,
        drain: DrainWatcher,
        options: AdsOptions,
    ) -> Self {
        let shared = Shared {
            snapshots,
            authenticator,
            clients,
            metrics,
            drain,
            options,
            openings: Holds::bounded(STREAMS_PER_CLIENT_MAX, OPENINGS_MAX),
            frames: frame::Shared::default(),
            epoch: rand::random(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }
}

impl Ads {
    /// Knows when what a client has shown has ended.
    #[must_use]
    pub(super) fn authenticator(&self) -> &Authenticator {
        &self.shared.authenticator
    }

    /// Age at which connections are ended.
    #[must_use]
    pub(super) fn age_max(&self) -> Option<Duration> {
        self.shared.options.age_max
    }
}

impl Shared {
    fn refused(&self, reason: &'static str, status: Status) -> Status {
        self.metrics.refused.get_or_create(&ReasonLabel { reason }).inc();
        tracing::info!(reason, status = status.message(), "stream refused");
        status
    }

    /// Only who has proven something is told why it is not let in.
    fn unauthenticated(&self, error: &Unauthenticated) -> Status {
        tracing::debug!(%error, "unauthenticated stream");
        let unknown = || Status::unauthenticated("credentials are missing or not known");
        let (reason, status) = match error {
            Unauthenticated::NoSuchPod(_) => (
                "pod_uid_mismatch",
                Status::permission_denied(format!("POD_UID_MISMATCH: {error}")),
            ),
            Unauthenticated::OtherNode { .. } => (
                "node_not_trusted",
                Status::permission_denied(format!("NODE_NOT_TRUSTED: {error}")),
            ),
            Unauthenticated::NotSynced => ("not_synced", Status::unavailable(error.to_string())),
            _ => ("unauthenticated", unknown()),
        };
        self.refused(reason, status)
    }
}

impl Ads {
    /// Opens a stream: the caller is known before a message of it is read.
    async fn open(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
        best: Encoding,
    ) -> Result<mpsc::Receiver<Sent>, Status> {
        let shared = &self.shared;
        let caller = shared
            .authenticator
            .authenticate(request.extensions().get::<PeerInfo>(), request.metadata())
            .await
            .map_err(|error| shared.unauthenticated(&error))?;
        if !shared.snapshots.borrow().synced() {
            let status = Status::unavailable("the configuration is still being read");
            return Err(shared.refused("not_synced", status));
        }
        let opening = shared.openings.enter(&caller.name()).ok_or_else(|| {
            let status = Status::resource_exhausted("too many streams of this client have sent nothing yet");
            shared.refused("too_many_openings", status)
        })?;
        let address = request
            .extensions()
            .get::<PeerInfo>()
            .and_then(|peer| peer.remote);
        let closing = request.extensions().get::<Closing>().cloned();
        // One response waits in the channel at most: what is newer accumulates in the snapshot.
        let (responses, messages) = mpsc::channel(1);
        let stream_task = stream::Stream {
            shared: shared.clone(),
            caller,
            opening: Some(opening),
            address,
            closing,
            best,
            requests: request.into_inner(),
            responses,
        };
        tasks::spawn("ads stream", stream_task.run());
        Ok(messages)
    }
}

/// A response, or how the stream ends. Boxed, as a channel has room for 32 of them, however many may wait.
type Sent = Result<Box<Message>, Box<Status>>;

/// What this server knows beyond the usual types.
const FEATURES: &str = "trust,dry-run";

/// What the first message of a stream says about the client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct NodeFacts {
    id: String,
    node_name: Option<String>,
    cluster_id: Option<String>,
    namespace: Option<String>,
    service_account: Option<String>,
    version: Str,
    features: Features,
}
