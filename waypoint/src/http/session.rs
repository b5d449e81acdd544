//! A connection of a client: who asks, by which stream, and what its requests share.

use std::sync::Arc;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tokio_util::task::TaskTracker;
use tulle_model::Reason;

use super::heads::Heads;
use super::pace::Pace;
use super::record::Ending;
use super::upgrade::{self, Switched};
use super::wire::Aside;
use crate::buffers::Carried;
use crate::context::Waypoint;
use crate::listener::arrival::Arrival;
use crate::telemetry::party::Party;

/// The bytes of a connection of HTTP/1, beside what the library makes of them. Clones share them.
#[derive(Debug, Clone)]
pub struct Http1Bytes {
    /// Where clients are told of interim answers.
    pub aside: Arc<Aside>,
    /// What heads of requests say that the library drops.
    pub heads: Arc<Mutex<Heads>>,
}

/// The connection a request came in by. Clones share it.
#[derive(Debug, Clone)]
pub struct Session {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    waypoint: Arc<Waypoint>,
    arrival: Arrival,
    source: Arc<Party>,
    pace: Arc<Pace>,
    /// What is known of its bytes, if it speaks HTTP/1.
    bytes: Option<Http1Bytes>,
    /// Requests that became streams of bytes.
    streams: TaskTracker,
    /// What the last request that was refused to become one would have gone on with.
    refused: Mutex<Option<OnUpgrade>>,
}

impl Session {
    /// A connection inside of a stream that was let in.
    #[must_use]
    pub fn new(
        waypoint: Arc<Waypoint>,
        arrival: Arrival,
        pace: &Arc<Pace>,
        bytes: Option<Http1Bytes>,
    ) -> Self {
        let identity = arrival.source.identity.as_ref();
        Self {
            shared: Arc::new(Shared {
                source: Arc::new(Party::new(arrival.workload.as_deref(), identity)),
                waypoint,
                arrival,
                pace: Arc::clone(pace),
                bytes,
                streams: TaskTracker::new(),
                refused: Mutex::default(),
            }),
        }
    }

    /// What everything shares.
    #[must_use]
    pub fn waypoint(&self) -> &Arc<Waypoint> {
        &self.shared.waypoint
    }

    /// What the library holds of it.
    #[must_use]
    pub fn carried(&self) -> &Carried {
        self.shared.pace.carried()
    }

    /// The stream it came in by.
    #[must_use]
    pub fn arrival(&self) -> &Arrival {
        &self.shared.arrival
    }

    /// How metrics know who asks.
    #[must_use]
    pub fn source(&self) -> &Arc<Party> {
        &self.shared.source
    }

    /// Waits for requests that became streams of bytes, once there is no other.
    pub async fn ended(&self) {
        // The library leaves a connection that somebody might have gone on with to him, its end included.
        let refused = self.shared.refused.lock().take();
        if let Some(refused) = refused
            && let Ok(rest) = refused.await
        {
            let _ = TokioIo::new(rest).shutdown().await;
        }
        self.shared.streams.close();
        self.shared.streams.wait().await;
    }

    /// How its requests follow one another.
    pub(super) fn pace(&self) -> &Arc<Pace> {
        &self.shared.pace
    }

    /// What is known of its bytes, if it speaks HTTP/1.
    pub(super) fn bytes(&self) -> Option<&Http1Bytes> {
        self.shared.bytes.as_ref()
    }

    /// A request was refused to become a stream of bytes: this is what it would have gone on with.
    pub(super) fn refuse(&self, client: OnUpgrade) {
        *self.shared.refused.lock() = Some(client);
    }

    /// Lets a request go on as a stream of bytes.
    pub(super) fn switch(&self, client: OnUpgrade, switched: Switched, ending: Ending) {
        let waypoint = Arc::clone(self.waypoint());
        let carrying = upgrade::relay::carry(waypoint, client, switched, ending);
        let carrying = self.shared.streams.track_future(carrying);
        drop(tulle_runtime::tasks::spawn("websocket", carrying));
    }

    /// Notes why no request could be read.
    pub fn unread(&self, reason: Reason) {
        self.waypoint().metrics.replied(reason);
        let (source, token) = (&self.arrival().peer, reason.token());
        tracing::info!(%source, code = reason.code(), token, "no request could be read");
    }
}
