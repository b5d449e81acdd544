//! Drives a [`Session`] over gRPC: connects, answers, comes back.

use std::collections::BTreeMap;
use std::error::Error as StdErrorTrait;
use std::io;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::codec::CompressionEncoding;
use tonic::codegen::{Body as HttpBody, Bytes, StdError};
use tonic::{Status as GrpcStatus, Streaming};
use tulle_model::{Reason, Str};
use tulle_proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use tulle_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use tulle_proto::names::{FEATURES_HEADER, TRUST_FEATURE};
use tulle_proto::resume::{Layout, RESUME_HEADER};
use tulle_proto::stub::RefusedAddresses;
use tulle_runtime::backoff::Backoff;
use tulle_runtime::drain::DrainWatcher;
use tulle_runtime::ready::{BlockReady, Ready};

use crate::keep::{Keeper, Kept};
use crate::metrics::{Metrics, TerminationReason};
use crate::node::NodeInfo;
use crate::on_demand::{Demand, Wishes};
use crate::resource::ResourceType;
use crate::session::{Outcome, Session};
use crate::state::MeshState;

/// Largest response that is taken.
const RESPONSE_BYTES_MAX: usize = 200 * 1024 * 1024;
/// Answers that may wait for the stream.
const REQUESTS_MAX: usize = 16;
/// First wait before a new attempt.
const BACKOFF_MIN: Duration = Duration::from_millis(10);
/// Longest wait before a new attempt.
const BACKOFF_MAX: Duration = Duration::from_secs(15);
/// Longest wait after an attempt that reached nobody: it cost no server anything, and the network may be back.
const UNREACHED_WAIT_MAX: Duration = Duration::from_millis(500);

/// By which gRPC servers say when to try again, in milliseconds.
const PUSHBACK: &str = "grpc-retry-pushback-ms";
/// Longest wait that a server may ask for.
const PUSHBACK_MAX: Duration = Duration::from_secs(60);
/// How long the server's header is waited for before the first messages go out without it.
const HEADERS_WAIT: Duration = Duration::from_millis(100);

/// Which digests of what is held a server reads, if any.
fn understood(header: &tonic::metadata::MetadataMap) -> Option<Layout> {
    let lines = header.get_all(RESUME_HEADER).iter();
    Layout::best(lines.filter_map(|line| line.to_str().ok()))
}

/// Types beyond the usual ones that a server says it knows, in the header of its stream.
fn offered(header: &tonic::metadata::MetadataMap) -> Vec<ResourceType> {
    let features = header.get(FEATURES_HEADER).and_then(|value| value.to_str().ok());
    let known = |feature: &str| (feature.trim() == TRUST_FEATURE).then_some(ResourceType::Trust);
    features
        .unwrap_or_default()
        .split(',')
        .filter_map(known)
        .take(1)
        .collect()
}

/// Waits for something to ask; for ever where all addresses come by themselves.
async fn wishes(state: &MeshState) -> Wishes {
    match state.demand() {
        Some(demand) => demand.wishes().await,
        None => std::future::pending().await,
    }
}

/// What a response says about names that were asked for.
#[derive(Debug, Default)]
struct Answered {
    found: Vec<String>,
    absent: Vec<String>,
}

impl Answered {
    fn by(response: &DeltaDiscoveryResponse, state: &MeshState) -> Self {
        if state.demand().is_none() || response.type_url != ResourceType::Address.type_url() {
            return Self::default();
        }
        let resources = response.resources.iter();
        let names = resources.flat_map(|resource| std::iter::once(&resource.name).chain(&resource.aliases));
        Self {
            found: names.cloned().collect(),
            absent: response.removed_resources.clone(),
        }
    }

    /// Once what was found can be seen.
    fn tell(self, state: &MeshState) {
        let Some(demand) = state.demand() else { return };
        demand.found(self.found.iter().map(String::as_str));
        demand.absent(self.absent.iter().map(String::as_str));
        if !self.found.is_empty() || !self.absent.is_empty() {
            state.wake();
        }
    }
}

/// How a client behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// Who it is.
    pub node: NodeInfo,
    /// What it asks for, in this order.
    pub types: Vec<ResourceType>,
    /// Ask for addresses one by one, where they are needed.
    pub on_demand: bool,
    /// Ask for addresses beside all that the server tells by itself.
    pub lookups: bool,
    /// Longest wait before a new attempt.
    pub backoff_max: Duration,
}

impl Options {
    /// Everything a node proxy needs, asked for by `node`.
    #[must_use]
    pub fn new(node: NodeInfo) -> Self {
        Self {
            node,
            types: with_trust(&ResourceType::NODE),
            on_demand: false,
            lookups: false,
            backoff_max: BACKOFF_MAX,
        }
    }

    /// Everything a waypoint needs, asked for by `node`.
    #[must_use]
    pub fn waypoint(node: NodeInfo) -> Self {
        Self {
            types: with_trust(&ResourceType::WAYPOINT),
            // Who its callers are, it is told of nobody's accord.
            lookups: true,
            ..Self::new(node)
        }
    }
}

/// Roots and deny-list are asked for first, of who offers them.
fn with_trust(types: &[ResourceType]) -> Vec<ResourceType> {
    [ResourceType::Trust].iter().chain(types).copied().collect()
}

/// Keeps a [`MeshState`] at what the control plane says.
#[derive(Debug)]
pub struct Client {
    session: Session,
    state: MeshState,
    metrics: Metrics,
    /// Dropped at the first ACK of their type.
    blockers: BTreeMap<ResourceType, BlockReady>,
    backoff: Backoff,
    keeper: Option<Keeper>,
}

/// How a stream ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("cannot open a stream: {0}")]
    NotOpened(GrpcStatus),
    #[error("the stream broke: {0}")]
    Broken(GrpcStatus),
    #[error("the server ended the stream")]
    Finished,
    #[error("the digests that the stream began with hid a change; the next one tells longer ones")]
    Misled,
}

/// Whether an error of the socket says that nobody answered.
fn is_nobody(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable, TimedOut};
    [ConnectionRefused, HostUnreachable, NetworkUnreachable, TimedOut].contains(&error.kind())
}

impl End {
    fn reason(&self) -> TerminationReason {
        match self {
            Self::NotOpened(_) => TerminationReason::ConnectionError,
            Self::Broken(_) => TerminationReason::Error,
            Self::Finished | Self::Misled => TerminationReason::Reconnect,
        }
    }
}

impl End {
    /// How long to wait before the next attempt, where `backoff` is what attempts in general wait.
    fn wait(&self, backoff: Duration) -> Duration {
        if self.reached_nobody() {
            backoff.min(UNREACHED_WAIT_MAX)
        } else {
            backoff.max(self.pushback())
        }
    }

    /// Whether TCP found nobody: refused, unreachable, or no answer in time.
    fn reached_nobody(&self) -> bool {
        let Self::NotOpened(status) = self else {
            return false;
        };
        let mut next: Option<&(dyn StdErrorTrait + 'static)> = Some(status);
        while let Some(cause) = next {
            if cause.downcast_ref::<io::Error>().is_some_and(is_nobody) {
                return true;
            }
            next = cause.source();
        }
        false
    }

    /// How long the server asks to be left alone, bounded.
    fn pushback(&self) -> Duration {
        let (Self::NotOpened(status) | Self::Broken(status)) = self else {
            return Duration::ZERO;
        };
        let told = status
            .metadata()
            .get(PUSHBACK)
            .and_then(|text| text.to_str().ok());
        let told = told
            .and_then(|text| text.parse().ok())
            .map_or(Duration::ZERO, Duration::from_millis);
        told.min(PUSHBACK_MAX)
    }
}

impl Client {
    /// A client that has not connected yet. Readiness waits for the first ACK of each type.
    #[must_use]
    pub fn new(options: Options, state: MeshState, metrics: Metrics, ready: &Ready) -> Self {
        let mut session = Session::new(options.node.to_node(), &options.types);
        if options.on_demand {
            session = session.on_demand();
            state.ask_on_demand();
        } else if options.lookups {
            state.ask_beside();
        }
        state.update_status(|status| status.describe(&session));
        let blocker = |kind: &ResourceType| (*kind, ready.register(format!("xds {kind}")));
        Self {
            blockers: options
                .types
                .iter()
                .filter(|kind| **kind != ResourceType::Trust)
                .map(blocker)
                .collect(),
            backoff: Backoff::new(BACKOFF_MIN, options.backoff_max),
            session,
            state,
            metrics,
            keeper: None,
        }
    }

    /// Writes down what is heard from now on.
    #[must_use]
    pub fn keeping(mut self, keeper: Keeper) -> Self {
        self.keeper = Some(keeper);
        self
    }

    /// Starts from what an earlier process has heard, as if it had just been said; the control plane is told what is
    /// known, and corrects it.
    #[must_use]
    pub fn restored(mut self, kept: Kept) -> Self {
        for response in kept.into_responses() {
            self.take(response);
        }
        self.state
            .update_status(|status| status.lost("what an earlier process heard is in force".into()));
        self
    }

    /// Runs until the drain is over: connections that outlive its start still need new policies.
    pub async fn run<C>(mut self, channel: C, drain: DrainWatcher)
    where
        C: GrpcService<Body> + Clone,
        C::Error: Into<StdError>,
        C::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
        <C::ResponseBody as HttpBody>::Error: Into<StdError> + Send,
    {
        loop {
            let end = tokio::select! {
                biased;
                () = drain.over() => break,
                end = self.stream(channel.clone()) => end,
            };
            self.metrics.ended(end.reason());
            self.state.update_status(|status| status.lost(end.to_string()));
            let wait = end.wait(self.backoff.next());
            tracing::warn!(error = %end, retry_in = ?wait, "no stream to the control plane");
            tokio::select! {
                () = drain.over() => break,
                () = tokio::time::sleep(wait) => {}
            }
        }
        self.metrics.ended(TerminationReason::Complete);
        self.state.update_status(|status| status.lost("ended".into()));
    }

    /// One stream, from its first request to its end.
    async fn stream<C>(&mut self, channel: C) -> End
    where
        C: GrpcService<Body>,
        C::Error: Into<StdError>,
        C::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
        <C::ResponseBody as HttpBody>::Error: Into<StdError> + Send,
    {
        self.session.on_close();
        let (answers, outgoing) = mpsc::channel(REQUESTS_MAX);
        let mut client =
            AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(RESPONSE_BYTES_MAX);
        client = client
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Zstd);
        let opening = client.delta_aggregated_resources(ReceiverStream::new(outgoing));
        let mut opening = std::pin::pin!(opening);
        // A server of ours says at once what it understands; others wait for the first message.
        let early = tokio::time::timeout(HEADERS_WAIT, &mut opening).await;
        let resumes = match &early {
            Ok(Ok(response)) => understood(response.metadata()),
            Ok(Err(_)) | Err(_) => None,
        };
        let asked = self.state.demand().map(Demand::all).unwrap_or_default();
        let first = match resumes {
            Some(layout) => self.session.on_resume(&asked, layout),
            None => self.session.on_open_asking(&asked),
        };
        for request in first {
            // The channel holds them all. If nobody takes them, the stream is over already, and says below how.
            let _ = answers.try_send(request);
        }
        let opened = match early {
            Ok(opened) => opened,
            Err(_) => opening.await,
        };
        match opened {
            Err(status) => End::NotOpened(status),
            Ok(response) => {
                tracing::info!(resumes = resumes.is_some(), "connected to the control plane");
                self.state.update_status(crate::Status::heard);
                for kind in offered(response.metadata()) {
                    if let Some(first) = self.session.on_offer(kind) {
                        let _ = answers.try_send(first);
                    }
                }
                self.receive(response.into_inner(), &answers).await
            }
        }
    }

    async fn receive(
        &mut self,
        mut responses: Streaming<DeltaDiscoveryResponse>,
        answers: &mpsc::Sender<DeltaDiscoveryRequest>,
    ) -> End {
        let state = self.state.clone();
        loop {
            let response = tokio::select! {
                response = responses.message() => response,
                wishes = wishes(&state) => {
                    let request = self.session.ask(&wishes.ask, &wishes.forget);
                    if answers.send(request).await.is_err() {
                        return End::Finished;
                    }
                    continue;
                }
            };
            match response {
                Err(status) => return End::Broken(status),
                Ok(None) => return End::Finished,
                Ok(Some(response)) => {
                    let (answer, misled) = self.take(response);
                    if answers.send(answer).await.is_err() {
                        return End::Finished;
                    }
                    if misled {
                        return End::Misled;
                    }
                }
            }
        }
    }

    /// The new state is visible before anyone is woken, and both before the answer goes out. Gives the answer, and whether
    /// digests hid a change.
    fn take(&mut self, mut response: DeltaDiscoveryResponse) -> (DeltaDiscoveryRequest, bool) {
        self.session.name_buckets(&mut response);
        self.metrics.received(&response);
        let answered = Answered::by(&response, &self.state);
        let (resources, removed) = (response.resources.len(), response.removed_resources.len());
        if let Some(keeper) = &self.keeper {
            keeper.take(&response);
        }
        let outcome = self.session.on_response(response);
        self.publish(&outcome);
        let accepted = outcome.accepted();
        let refused = outcome.rejections_changed.then(|| self.refused());
        if let Some(refused) = &refused {
            // What is refused before or after the batch is refused while it is swapped in: no address may be
            // unknown and unrefused for a moment.
            self.state.add_refused(refused);
        }
        let changes = self.state.apply(outcome.updates);
        answered.tell(&self.state);
        if let Some(refused) = refused {
            self.state.set_refused(refused);
        }
        if self.session.synced() {
            self.state.set_synced();
        }
        if let Some(kind) = outcome.first_ack {
            self.blockers.remove(&kind);
        }
        if accepted {
            self.backoff.reset();
        }
        let type_url = outcome.answer.type_url.as_str();
        tracing::debug!(
            type_url,
            resources,
            removed,
            generation = changes.generation,
            accepted,
            "response applied"
        );
        (outcome.answer, outcome.misled)
    }

    fn publish(&self, outcome: &Outcome) {
        if let Some(error) = &outcome.answer.error_detail {
            let (code, type_url) = (Reason::ResourceRejected.code(), outcome.answer.type_url.as_str());
            tracing::warn!(code, type_url, reason = error.message, "resources rejected");
        }
        self.state.update_status(|status| {
            status.heard();
            status.describe(&self.session);
        });
    }

    fn refused(&self) -> BTreeMap<Str, RefusedAddresses> {
        let refused = self
            .session
            .refused()
            .filter(|(_, addresses)| !addresses.is_empty());
        refused
            .map(|(name, addresses)| (name.into(), addresses.clone()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_reached_nobody_tries_again_soon_and_whoever_was_refused_waits() {
        const LONG: Duration = Duration::from_secs(15);
        let not_opened = |kind: io::ErrorKind| {
            End::NotOpened(GrpcStatus::from_error(Box::new(io::Error::from(kind)))).wait(LONG)
        };
        assert_eq!(not_opened(io::ErrorKind::ConnectionRefused), UNREACHED_WAIT_MAX);
        assert_eq!(not_opened(io::ErrorKind::TimedOut), UNREACHED_WAIT_MAX);
        assert_eq!(not_opened(io::ErrorKind::InvalidData), LONG);
        let refused = End::NotOpened(GrpcStatus::unauthenticated("who?"));
        assert_eq!(refused.wait(LONG), LONG);
        assert_eq!(End::Finished.wait(LONG), LONG);
    }

    #[test]
    fn a_server_may_ask_for_a_pause_within_a_bound() {
        let asked = |text: &str| {
            let mut status = GrpcStatus::resource_exhausted("later");
            status.metadata_mut().insert(PUSHBACK, text.parse().unwrap());
            End::Broken(status).pushback()
        };
        assert_eq!(asked("1500"), Duration::from_millis(1500));
        assert_eq!(asked("99999999"), PUSHBACK_MAX);
        assert_eq!(asked("-1"), Duration::ZERO);
        assert_eq!(End::Finished.pushback(), Duration::ZERO);
    }
}
