//! One open stream: reads requests, watches for new cuts, and writes one response at a time.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};
use tonic::{Status, Streaming};
use tulle_model::Str;
use tulle_proto::discovery::DeltaDiscoveryRequest;

use super::{NodeFacts, Sent, Shared, wire};
use crate::ca::limit::Held;
use crate::metrics::OutcomeLabel;
use crate::serve::admission::TooMany;
use crate::serve::admit::{Claimed, NotAdmitted, admit};
use crate::serve::authenticate::Caller;
use crate::serve::connection::Closing;
use crate::serve::frame::{Encoding, Message};
use crate::serve::pace::Pace;
use crate::serve::session::{End, Session};
use crate::serve::viewer::Viewer;
use crate::snapshot::{ResourceType, Snapshot};
use crate::status::{ClientStatus, Connected};

pub(super) struct Stream {
    pub(super) shared: Arc<Shared>,
    pub(super) caller: Caller,
    /// Its place among the streams that have sent nothing yet.
    pub(super) opening: Option<Held>,
    pub(super) address: Option<SocketAddr>,
    /// Tells the end of its connection.
    pub(super) closing: Option<Closing>,
    /// How what is large is compressed for this client.
    pub(super) best: Encoding,
    pub(super) requests: Streaming<DeltaDiscoveryRequest>,
    pub(super) responses: mpsc::Sender<Sent>,
}

/// Why a stream ended. `Ok` ends go without a status.
enum Ended {
    /// The client closed it, or is gone.
    ByClient,
    /// The server drains, or the connection is old enough; the client connects again.
    ByAge,
    /// The client did not read.
    Stalled,
    /// The server refuses to go on.
    Refused(&'static str, Status),
}

impl Stream {
    pub(super) async fn run(mut self) {
        let ended = self.serve().await;
        let node = self.caller.name();
        match ended {
            Ended::ByClient => tracing::debug!(%node, "stream closed by the client"),
            Ended::ByAge => tracing::debug!(%node, "stream ended"),
            Ended::Stalled => {
                self.shared.metrics.write_timeouts.inc();
                tracing::warn!(%node, "stream closed: the client did not read");
            }
            Ended::Refused(reason, status) => {
                let status = self.shared.refused(reason, status);
                // The client may be gone; then nobody needs the status.
                let _ = timeout(
                    self.shared.options.write_stall_max,
                    self.responses.send(Err(Box::new(status))),
                )
                .await;
            }
        }
    }

    async fn serve(&mut self) -> Ended {
        let first = match timeout(self.shared.options.first_request_wait, self.requests.message()).await {
            Ok(Ok(Some(first))) => first,
            Ok(_) => return Ended::ByClient,
            Err(_) => {
                let status = Status::deadline_exceeded("no request came on the stream");
                return Ended::Refused("no_request", status);
            }
        };
        let facts = first.node.as_ref().map(wire::node_facts).unwrap_or_default();
        let (connected, viewer) = match self.admit(&facts) {
            Ok(admitted) => admitted,
            Err(ended) => return ended,
        };
        // From here on it counts among the streams of its kind.
        self.opening = None;
        self.shared.metrics.streams.inc();
        let ended = self.converse(first, viewer, &connected).await;
        self.shared.metrics.streams.dec();
        ended
    }

    fn admit(&self, facts: &NodeFacts) -> Result<(Connected, Viewer), Ended> {
        let claimed = Claimed {
            id: &facts.id,
            node: facts.node_name.as_deref(),
            cluster: facts.cluster_id.as_deref(),
            account: facts.namespace.as_deref().zip(facts.service_account.as_deref()),
        };
        let snapshot = self.shared.snapshots.borrow().clone();
        let admitted = admit(&self.caller, &claimed, &self.shared.options.cluster_id, &snapshot);
        let (kind, viewer) = admitted.map_err(|error| {
            let status = match &error {
                NotAdmitted::NoNodeName => Status::invalid_argument(error.to_string()),
                _ => Status::permission_denied(error.to_string()),
            };
            Ended::Refused("not_admitted", status)
        })?;
        let viewer = viewer.with(facts.features);
        let name = viewer.waypoint().map_or_else(|| self.caller.name(), Str::from);
        tracing::info!(node = %name, ?kind, version = %facts.version, "client connected");
        let status = ClientStatus {
            identity: self.shared.clients.identity_of(&self.caller),
            version: facts.version.clone(),
            address: self.address,
            ..ClientStatus::new(name, kind, facts.features)
        };
        let connected = self.shared.clients.connect(status);
        let connected = connected.map_err(|error| {
            Ended::Refused("too_many_streams", Status::resource_exhausted(error.to_string()))
        });
        connected.map(|connected| (connected, viewer))
    }

    fn conversation(&self, viewer: Viewer, head: Arc<Snapshot>) -> Conversation {
        Conversation {
            session: Session::new(self.shared.epoch, viewer, head.clone()),
            head,
            waiting: None,
            since: Instant::now(),
            made: Instant::now(),
            began: Instant::now(),
            pace: Pace::default(),
            best: self.best,
            gate: None,
            node: self.caller.name(),
        }
    }

    async fn converse(
        &mut self,
        first: DeltaDiscoveryRequest,
        viewer: Viewer,
        connected: &Connected,
    ) -> Ended {
        let mut snapshots = self.shared.snapshots.clone();
        let head = snapshots.borrow_and_update().clone();
        let mut conversation = self.conversation(viewer, head);
        if let Err(end) = conversation.take(first, &self.shared) {
            return refusal(end);
        }
        // What hardly ever happens is waited for once, and looked at when it has something to say, not at each turn: a turn
        // is taken by thousands at once.
        let mut over = FuturesUnordered::from_iter([over(
            self.shared.clone(),
            self.caller.clone(),
            self.closing.clone(),
            self.responses.clone(),
        )]);
        let mut head = std::pin::pin!(newer(snapshots));
        let mut stall = std::pin::pin!(Stall::new(self.shared.options.write_stall_max));
        loop {
            if let Err(ended) = self.hand_over(&mut conversation) {
                return ended;
            }
            connected.update(&conversation.session, &conversation.head);
            let untaken = self.responses.capacity() == 0;
            let waiting = conversation.waiting.is_some() && conversation.gate.is_none();
            let paused = conversation.paused(&self.shared);
            tokio::select! {
                permit = self.responses.reserve(), if waiting => {
                    let (Ok(permit), Some(response)) = (permit, conversation.waiting.take()) else {
                        return Ended::ByClient;
                    };
                    permit.send(Ok(Box::new(response)));
                    conversation.handed_over(&self.shared);
                }
                room = admitted(&mut conversation.gate) => {
                    conversation.gate = None;
                    if let Err(many) = room {
                        return Ended::Refused("too_many_at_once", come_back(many));
                    }
                }
                () = stall.as_mut().since(conversation.since), if untaken => {
                    // It may have been taken meanwhile: that wakes nobody here.
                    if self.responses.capacity() == 0 {
                        return Ended::Stalled;
                    }
                }
                () = until(paused), if paused.is_some() => {}
                request = self.requests.message() => match request {
                    Ok(Some(request)) => {
                        if let Err(end) = conversation.take(request, &self.shared) {
                            return refusal(end);
                        }
                    }
                    Ok(None) | Err(_) => return Ended::ByClient,
                },
                came = &mut head => match came {
                    Some((came, snapshots)) => {
                        conversation.newer(came);
                        head.set(newer(snapshots));
                    }
                    // The engine is gone: the process is ending.
                    None => return Ended::ByAge,
                },
                Some(ended) = over.next() => return ended,
            }
        }
    }

    /// Makes responses for as long as the connection takes them.
    fn hand_over(&self, conversation: &mut Conversation) -> Result<(), Ended> {
        loop {
            conversation.prepare(&self.shared);
            if conversation.gate.is_some() || conversation.waiting.is_none() {
                return Ok(());
            }
            let permit = match self.responses.try_reserve() {
                Ok(permit) => permit,
                Err(TrySendError::Full(())) => return Ok(()),
                Err(TrySendError::Closed(())) => return Err(Ended::ByClient),
            };
            if let Some(response) = conversation.waiting.take() {
                permit.send(Ok(Box::new(response)));
                conversation.handed_over(&self.shared);
            }
        }
    }
}

/// Waits for what ends a stream from outside: the age of its connection, the end of the process, the deny-list, the end of what
/// the client has shown, a client that is gone.
async fn over(
    shared: Arc<Shared>,
    caller: Caller,
    closing: Option<Closing>,
    responses: mpsc::Sender<Sent>,
) -> Ended {
    let mut denied = shared.authenticator.deny_list().subscribe();
    let denial = async {
        while shared.authenticator.denial(&caller).is_none() {
            if denied.changed().await.is_err() {
                std::future::pending().await
            }
        }
    };
    let closing = async {
        match closing {
            Some(closing) => closing.begun().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = denial => {
            let status = Status::permission_denied("the credential is on the deny-list");
            Ended::Refused("denied", status)
        }
        () = responses.closed() => Ended::ByClient,
        _ = shared.drain.signaled() => Ended::ByAge,
        () = shared.authenticator.ended(caller.until) => outlived(),
        () = closing => match shared.authenticator.has_ended(&caller) {
            true => outlived(),
            false => Ended::ByAge,
        },
    }
}

/// The stream is older than the credential it was opened with may be.
fn outlived() -> Ended {
    let status =
        Status::unauthenticated("the client certificate has ended; come with the one that follows it");
    Ended::Refused("certificate_ended", status)
}

/// Waits until something has gone untaken for long. The timer is set when it fires, not at each response.
struct Stall {
    max: Duration,
    timer: Pin<Box<Sleep>>,
}

impl Stall {
    fn new(max: Duration) -> Self {
        Self {
            max,
            timer: Box::pin(sleep(max)),
        }
    }

    async fn since(self: Pin<&mut Self>, since: Instant) {
        let this = self.get_mut();
        let end = since + this.max;
        loop {
            if end <= Instant::now() {
                return;
            }
            if this.timer.is_elapsed() {
                this.timer.as_mut().reset(end);
            }
            this.timer.as_mut().await;
        }
    }
}

/// The session with what is at hand around it.
struct Conversation {
    session: Session<Arc<Snapshot>>,
    head: Arc<Snapshot>,
    /// The response that waits for room in the connection.
    waiting: Option<Message>,
    /// When the response before it was handed to the connection.
    since: Instant,
    /// When the one that waits was made.
    made: Instant,
    /// When the stream began.
    began: Instant,
    pace: Pace,
    best: Encoding,
    /// What waits is part of what the client is told first: it goes out once there is room for it.
    gate: Option<Gate>,
    node: Str,
}

type Gate = Pin<Box<dyn Future<Output = Result<(), TooMany>> + Send>>;

/// Waits for room; for ever where none is needed.
async fn admitted(gate: &mut Option<Gate>) -> Result<(), TooMany> {
    match gate {
        Some(gate) => gate.await,
        None => std::future::pending().await,
    }
}

impl Conversation {
    fn take(&mut self, request: DeltaDiscoveryRequest, shared: &Shared) -> Result<(), End> {
        let request = wire::request(request);
        let rejected = request.error.is_some();
        let (before, acks, opened) = (self.stale_nonces(), self.acks(), self.session.openings().count());
        let answered = self.session.cut().published();
        self.session.on_request(&request, &self.head)?;
        self.session.look(&self.head, Instant::now().into_std());
        if self.acks() > acks {
            self.converged(answered, shared);
        }
        if self.session.openings().count() > opened {
            self.count_opening(&request.type_url, shared);
        }
        let stale = self.stale_nonces() > before;
        if stale {
            shared.metrics.expired_nonces.inc();
        }
        if let (true, false, Some(ty)) = (rejected, stale, ResourceType::from_type_url(&request.type_url)) {
            shared.metrics.rejects.get_or_create(&ty.into()).inc();
            shared.metrics.nacks.get_or_create(&ty.into()).inc();
            tracing::warn!(
                r#type = ty.type_url(),
                "a client rejected resources; see /status for which and why"
            );
        }
        Ok(())
    }

    fn acks(&self) -> u64 {
        self.session
            .deliveries()
            .map(|(_, _, delivery)| delivery.acks())
            .sum()
    }

    /// Measures from a cut to its answer; what a new stream is told first says nothing of that.
    fn converged(&self, published: Option<std::time::Instant>, shared: &Shared) {
        let published = published.filter(|published| *published > self.began.into_std());
        if let Some(published) = published {
            shared
                .metrics
                .stream
                .convergence
                .observe(published.elapsed().as_secs_f64());
        }
    }

    fn count_opening(&self, type_url: &str, shared: &Shared) {
        let opened = self.session.openings().find(|(ty, _)| ty.type_url() == type_url);
        if let Some((_, opened)) = opened {
            let outcome = OutcomeLabel {
                outcome: opened.as_str(),
            };
            shared.metrics.stream.resume.get_or_create(&outcome).inc();
        }
    }

    fn stale_nonces(&self) -> u64 {
        self.session
            .deliveries()
            .map(|(_, _, delivery)| delivery.stale_nonces())
            .sum()
    }

    /// Notes that the connection took what waited.
    fn handed_over(&mut self, shared: &Shared) {
        shared
            .metrics
            .stream
            .send
            .observe(self.made.elapsed().as_secs_f64());
        self.since = Instant::now();
    }

    fn newer(&mut self, head: Arc<Snapshot>) {
        let now = Instant::now().into_std();
        self.head = head;
        self.session.look(&self.head, now);
        self.pace.on_cut(now);
    }

    /// Until when changes are gathered instead of sent.
    fn paused(&self, shared: &Shared) -> Option<Instant> {
        self.pace
            .wait_until(Instant::now().into_std(), shared.options.batch_interval)
            .map(Instant::from_std)
    }

    /// Makes the next response, if none waits and there is one.
    fn prepare(&mut self, shared: &Shared) {
        if self.waiting.is_some() || self.paused(shared).is_some() {
            return;
        }
        let (begin, from) = (Instant::now(), self.session.cut().sequence());
        let response = self.session.poll_send(&self.head, begin.into_std());
        let cut = self.session.cut();
        if cut.sequence() > from && cut.has_forgotten(from) {
            shared.metrics.stream.overruns.inc();
        }
        let Some(response) = response else {
            return;
        };
        if let Some(ty) = ResourceType::from_type_url(&response.type_url) {
            shared.metrics.pushes.get_or_create(&ty.into()).inc();
        }
        self.pace.on_sent(Instant::now().into_std());
        let payload = shared.frames.payload(&response);
        let message = payload.message(&response.type_url, response.cut, &response.nonce, self.best);
        if response.chunk.is_some() {
            shared
                .metrics
                .snapshot_bytes
                .get_or_create(&message.encoding.into())
                .inc_by(message.len() as u64);
        }
        if response.is_opening {
            let urgent = shared.options.waiting.waits(&self.node);
            self.gate = Some(Box::pin(
                shared.options.admission.clone().enter(message.len(), urgent),
            ));
        }
        let written = u64::try_from(message.len()).unwrap_or(u64::MAX);
        shared
            .metrics
            .response_bytes
            .get_or_create(&message.encoding.into())
            .inc_by(written);
        shared.metrics.stream.size.observe(message.len() as f64);
        shared.metrics.stream.push.observe(begin.elapsed().as_secs_f64());
        self.made = Instant::now();
        self.waiting = Some(message);
    }
}

type Snapshots = watch::Receiver<Arc<Snapshot>>;

/// The newest cut, once there is a newer one.
async fn newer(mut snapshots: Snapshots) -> Option<(Arc<Snapshot>, Snapshots)> {
    snapshots.changed().await.ok()?;
    let head = snapshots.borrow_and_update().clone();
    Some((head, snapshots))
}

/// Waits until an instant, if there is one.
async fn until(instant: Option<Instant>) {
    if let Some(instant) = instant {
        sleep_until(instant).await;
    }
}

/// Header by which gRPC servers say when to try again.
const PUSHBACK: &str = "grpc-retry-pushback-ms";

fn come_back(many: TooMany) -> Status {
    let mut status = Status::resource_exhausted(many.to_string());
    if let Ok(text) = many.retry_after.as_millis().to_string().parse() {
        status.metadata_mut().insert(PUSHBACK, text);
    }
    status
}

fn refusal(end: End) -> Ended {
    let text = end.to_string();
    match end {
        End::Unimplemented(_) => Ended::Refused("unknown_type", Status::unimplemented(text)),
        End::TooManyNames | End::TooManyTypes => Ended::Refused("too_much", Status::resource_exhausted(text)),
    }
}
