//! A request on its way to endpoints: *draw → pick → breaker → timer → upstream*, again where that is allowed.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use http::header::{HeaderName, SEC_WEBSOCKET_KEY, SET_COOKIE};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Body as _;
use hyper::body::Incoming;
use smallvec::SmallVec;
use tokio::time::{Instant, sleep, timeout};
use tulle_model::request::Protocol;
use tulle_model::route::{Route, Timeouts};
use tulle_model::service::AppProtocol;
use tulle_model::{Reason, RequestHead};

use super::body::{RequestBody, ResponseBody};
use super::hygiene;
use super::hygiene::Upgrade;
use super::hygiene::encode::{self, ClientCert, Telling};
use super::interim::Interims;
use super::record::Record;
use super::respond::{Own, Reply};
use super::routing;
use super::upgrade;
use super::wire::Aside;
use crate::clock::Time;
use crate::context::Waypoint;
use crate::listener::arrival::Arrival;
use crate::snapshot::{PortState, Snapshot};
use crate::upstream::backend::Backend;
use crate::upstream::breaker::Guard;
use crate::upstream::cluster::{Ask, Pick};
use crate::upstream::connect::{self, Behalf};
use crate::upstream::endpoint::EndpointState;
use crate::upstream::hash;
use crate::upstream::outcome::{Answer, Outcome, Unsent};
use crate::upstream::pool::{Key, Lease, SendFailed, Version};
use crate::upstream::retry::replay::Replay;
use crate::upstream::retry::{Decision, RetryPolicy, Tried, look_ahead, retry_after};
use crate::upstream::session::{SessionPolicy, Token};
use crate::upstream::timeout::{self as limits, Deadline, TryLimit};

/// A waypoint tells its clients when it was its breaker that refused.
const OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");

/// What a rule says of tries.
#[derive(Debug, Clone)]
pub struct Tries {
    retry: RetryPolicy,
    timeouts: Timeouts,
    session: Option<SessionPolicy>,
}

static PLAIN: LazyLock<Tries> = LazyLock::new(|| Tries {
    retry: RetryPolicy::new(None),
    timeouts: Timeouts::default(),
    session: None,
});

impl Tries {
    /// What a route's rule says.
    #[must_use]
    pub fn of(route: &Route) -> Self {
        Self {
            retry: RetryPolicy::new(route.retry.as_ref()),
            timeouts: route.timeouts.clone(),
            session: route.session.as_ref().and_then(SessionPolicy::new),
        }
    }

    /// The endpoint that a request's session is with, as far as the rule or the backend that is asked for keeps one.
    #[must_use]
    pub fn session_of(&self, backend: &Backend, head: &RequestHead) -> Option<u128> {
        let policy = self.session.clone().or_else(|| backend.session())?;
        let token = policy.read(&head.headers, unix_now())?;
        Some(token.fingerprint)
    }

    /// What holds where no rule says anything.
    #[must_use]
    pub fn plain() -> &'static Self {
        &PLAIN
    }
}

/// What a client wants beside its answer.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Wants<'a> {
    /// Trailers.
    pub(super) trailers: bool,
    /// To be told when its body is wanted.
    pub(super) word: bool,
    /// To go on as a stream of bytes.
    pub(super) upgrade: Option<Upgrade>,
    /// Where it is told of interim answers, if it can be.
    pub(super) aside: Option<&'a Arc<Aside>>,
}

/// What one request is sent by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sending<'a> {
    pub(super) waypoint: &'a Arc<Waypoint>,
    pub(super) arrival: &'a Arrival,
    pub(super) snapshot: &'a Snapshot,
    pub(super) port: &'a PortState,
    pub(super) id: &'a HeaderValue,
    pub(super) wants: Wants<'a>,
    pub(super) tries: &'a Tries,
    /// Whether another try may be made at all; copies have one.
    pub(super) once: bool,
    /// When the head of the request was read.
    pub(super) start: Time,
    /// What it is told by; copies have none.
    pub(super) record: Option<&'a Record>,
}

/// What a try brought.
struct Brought {
    outcome: Outcome,
    /// The answer, if there is one.
    response: Option<Response<ResponseBody>>,
    /// Why there is none.
    reason: Reason,
    /// The whole request is out of time, not this try alone.
    over: bool,
}

/// What the tries of one request share.
struct State {
    replay: Replay<RequestBody>,
    tried: SmallVec<[Arc<EndpointState>; 3]>,
    deadline: Deadline,
    token: Option<Token>,
    number: u32,
    /// The span of the try.
    span: u64,
    /// When the try began.
    started: SystemTime,
    /// Held by the try that is one too many for nobody.
    retrying: Option<Guard>,
}

impl Sending<'_> {
    /// Sends a request to a backend. Its policies were judged for this one, so that every try goes there.
    pub(super) async fn run(
        &self,
        head: &RequestHead,
        body: RequestBody,
        backend: &Arc<Backend>,
    ) -> Result<Response<ResponseBody>, Reply> {
        let parent = &self.port.backend;
        if !self.once {
            parent.count_request();
        }
        let grpc = head
            .is_grpc()
            .then(|| limits::grpc_timeout(&head.headers))
            .flatten();
        let session = self.tries.session.clone().or_else(|| parent.session());
        let mut state = State {
            replay: Replay::new(body, self.tries.retry.retries() && !self.once),
            tried: SmallVec::new(),
            deadline: Deadline::new(&self.tries.timeouts, grpc, self.start),
            token: session
                .as_ref()
                .and_then(|policy| policy.read(&head.headers, unix_now())),
            number: 1,
            span: 0,
            started: SystemTime::now(),
            retrying: None,
        };
        self.note(|record| record.sent_to(backend));
        loop {
            let brought = self.one(&mut state, head, backend, session.as_ref()).await?;
            let again = self.again(&mut state, head, &brought, backend)?;
            let Some(wait) = again else {
                state.replay.commit();
                return match brought.response {
                    Some(response) => Ok(response),
                    None => Err(brought.reason.into()),
                };
            };
            // What came is dropped, and its connection with it, before the wait.
            drop(brought);
            sleep(wait).await;
            state.number += 1;
        }
    }

    /// How long to wait before another try; `None` if there is none.
    fn again(
        &self,
        state: &mut State,
        head: &RequestHead,
        brought: &Brought,
        backend: &Arc<Backend>,
    ) -> Result<Option<Duration>, Reply> {
        state.retrying = None;
        if self.once || brought.over {
            return Ok(None);
        }
        let tried = Tried {
            number: state.number,
            outcome: &brought.outcome,
            method: &head.method,
            replayable: state.replay.is_replayable(),
            left: state.deadline.left(self.port.backend.now()),
            random: rand::random(),
        };
        let wait = match self.tries.retry.decide(&tried) {
            Decision::Retry(wait) => wait,
            Decision::Exhausted => {
                self.note(|record| record.ended_by(Reason::RetriesExhausted, None));
                return Ok(None);
            }
            Decision::Pass => return Ok(None),
        };
        let metrics = &self.waypoint.metrics;
        if !self.port.backend.may_retry() {
            metrics.retried("over_budget");
            return Err(Reason::RetryBudgetSpent.into());
        }
        let Some(cluster) = backend.cluster() else {
            return Ok(None);
        };
        match cluster.state().breaker.retry(cluster.policy().limits) {
            Ok(guard) => state.retrying = Some(guard),
            Err(_) => {
                metrics.retried("overflow");
                return Ok(None);
            }
        }
        metrics.retried("made");
        Ok(Some(wait))
    }

    /// One try, from the pick of its endpoint to the head of its answer.
    async fn one(
        &self,
        state: &mut State,
        head: &RequestHead,
        backend: &Arc<Backend>,
        session: Option<&SessionPolicy>,
    ) -> Result<Brought, Reply> {
        let Some(cluster) = backend.cluster() else {
            return Err(Reason::BackendInvalid.into());
        };
        let hashed = hash::of(cluster.hash_keys(), head, &self.arrival.source, rand::random());
        let now = backend.now();
        let ask = Ask {
            now,
            hash: hashed.hash,
            session: state.token.map(|token| token.fingerprint),
            tried: &state.tried,
            address: Some(self.arrival.destination.address.ip()),
        };
        let Some(mut pick) = backend.pick(&ask) else {
            return Err(Reason::NoHealthyEndpoint.into());
        };
        let breaker = &cluster.state().breaker;
        let guard = breaker.request(cluster.policy().limits).map_err(|_| overflow())?;
        state.tried.push(Arc::clone(&pick.endpoint().state));
        let cookies = self.cookies(state, &pick, session, hashed.set_cookie);
        let limit = limits::of_try(&self.tries.timeouts, &state.deadline, self.port.backend.now());
        let ends = limit.limit().map(|limit| Instant::now() + limit);
        (state.span, state.started) = (rand::random::<u64>().max(1), SystemTime::now());
        let trying = self.attempt(state, head, backend, &pick);
        let brought = match limit.limit() {
            Some(limit) => timeout(limit, trying).await,
            None => Ok(trying.await),
        };
        let mut brought = brought.unwrap_or_else(|_| late(limit));
        pick.settle(&brought.outcome, backend.now());
        self.note(|record| brought.tell(record, state));
        let took = backend.now().since(now);
        if let Some(response) = &mut brought.response {
            self.note(|record| record.answered_after(took));
            for (name, value) in cookies {
                response.headers_mut().append(name, value);
            }
            let held = (pick, guard, state.retrying.take());
            response.body_mut().hold(Box::new(held), ends);
        }
        Ok(brought)
    }

    fn note(&self, note: impl FnOnce(&Record)) {
        if let Some(record) = self.record {
            note(record);
        }
    }

    /// What the client is told so that it comes back to the same endpoint.
    fn cookies(
        &self,
        state: &State,
        pick: &Pick,
        session: Option<&SessionPolicy>,
        hashed: Option<HeaderValue>,
    ) -> SmallVec<[(HeaderName, HeaderValue); 2]> {
        let secure = self.arrival.is_gateway;
        let session =
            session.and_then(|policy| policy.write(state.token, pick.fingerprint(), unix_now(), secure));
        let hashed = hashed.map(|cookie| (SET_COOKIE, cookie));
        session.into_iter().chain(hashed).collect()
    }

    async fn attempt(
        &self,
        state: &State,
        head: &RequestHead,
        backend: &Arc<Backend>,
        pick: &Pick,
    ) -> Brought {
        let endpoint = pick.endpoint();
        let Some(address) = endpoint.address(self.arrival.destination.address) else {
            return Brought::failed(Outcome::Unsent(Unsent::Connect), Reason::NoHealthyEndpoint);
        };
        self.note(|record| record.tried(state.number, endpoint, address));
        let version = upstream_version(
            routing::spoken(backend, self.port.protocol),
            head,
            self.wants.upgrade,
        );
        let interims = Interims::new(self.wants.aside.cloned());
        let request = match self.request(state, head, version, &interims) {
            Ok(request) => request,
            Err(reason) => return Brought::failed(Outcome::ClientGone, reason),
        };
        let key = Key {
            workload: endpoint.workload.uid.clone(),
            address,
            expected: endpoint.proven(),
            source: connect::told_source(self.arrival, self.snapshot),
            version,
        };
        let open = || async {
            let behalf = Behalf::of(self.arrival, self.snapshot);
            connect::open(self.waypoint, endpoint, address, &behalf).await
        };
        let lease = match self.waypoint.upstreams.http.lease(&key, open).await {
            Ok(lease) => lease,
            Err(error) => {
                tracing::debug!(%error, %address, "an endpoint was not reached");
                self.note(|record| record.not_reached(&error));
                return Brought::failed(connect::outcome_of(&error), connect::reason(&error));
            }
        };
        self.over(lease, (state, head, version), request, &interims).await
    }

    /// Sends the request of a try over a connection, and reads the head of its answer.
    async fn over(
        &self,
        mut lease: Lease,
        (state, head, version): (&State, &RequestHead, Version),
        request: Request<RequestBody>,
        interims: &Interims,
    ) -> Brought {
        let broken = |reason| Brought::failed(Outcome::Malformed, reason);
        let asks = self.wants.upgrade.is_some();
        if asks && !lease.takes_upgrades().await {
            return broken(Reason::UpstreamProtocol);
        }
        let key = request.headers().get(SEC_WEBSOCKET_KEY).filter(|_| asks).cloned();
        let sent = tokio::select! {
            sent = lease.send(request) => sent,
            () = interims.too_many() => return broken(Reason::UpstreamProtocol),
        };
        let error = match sent {
            Ok(response) => {
                let asked = upgrade::Asked {
                    head,
                    key: key.as_ref(),
                    over: version,
                };
                let waiting = self.wants.word.then(|| interims.clone());
                return match self.read(response, lease, &asked, waiting) {
                    Ok(response) => self.answered(state, head, response).await,
                    Err(reason) => broken(reason),
                };
            }
            Err(error) => error,
        };
        tracing::debug!(error = %error.error, "no answer");
        if let Some(reason) = self.record.and_then(Record::body_failure) {
            return Brought::failed(Outcome::ClientGone, reason);
        }
        let outcome = ended(&error, lease.reused && !state.replay.has_started(), version);
        Brought::failed(outcome, outcome.reason().unwrap_or(Reason::UpstreamReset))
    }

    /// Checks and cleans the head of an answer, and says what follows it: a body, or a stream of bytes.
    fn read(
        &self,
        mut response: Response<Incoming>,
        mut lease: Lease,
        asked: &upgrade::Asked<'_>,
        waiting: Option<Interims>,
    ) -> Result<Response<ResponseBody>, Reason> {
        let upstream = self.wants.upgrade.map(|_| hyper::upgrade::on(&mut response));
        let (mut parts, body) = response.into_parts();
        let connection = hygiene::answer::clean(&mut parts, upstream.is_some())?;
        parts.extensions.clear();
        // Which version the endpoint speaks is of this hop.
        parts.version = http::Version::HTTP_11;
        if connection == hygiene::answer::Connection::Close {
            lease.spoil();
        }
        let agreed = upstream.is_some() && upgrade::settle(&mut parts, asked)?;
        let body = match upstream.filter(|_| agreed) {
            Some(upstream) => ResponseBody::switched(upstream, lease),
            None => ResponseBody::upstream(body, lease, waiting),
        };
        Ok(Response::from_parts(parts, body))
    }

    fn request(
        &self,
        state: &State,
        head: &RequestHead,
        version: Version,
        interims: &Interims,
    ) -> Result<Request<RequestBody>, Reason> {
        // Over HTTP/2 the word would not be heard, and a body that has begun is wanted already.
        let word = self.wants.word && version == Version::Http1 && !state.replay.has_started();
        let told = self.snapshot.settings.forward_client_cert;
        let cert = told.then(|| (self.arrival.peer.to_string(), self.waypoint.identity.to_string()));
        let telling = Telling {
            request_id: self.id,
            source_ip: self.arrival.source.ip,
            attempt: state.number,
            client_cert: cert.as_ref().map(|(source, own)| ClientCert {
                source,
                destination: own,
            }),
            upgrade: self.wants.upgrade,
            takes_trailers: self.wants.trailers,
            expects_continue: word,
        };
        let written = match version {
            Version::Http1 => http::Version::HTTP_11,
            Version::Http2 => http::Version::HTTP_2,
        };
        let mut parts = encode::encode(head, &telling, written).map_err(|_| Reason::BadPath)?;
        if let Some(left) = state
            .deadline
            .left(self.port.backend.now())
            .filter(|_| head.is_grpc())
        {
            parts.headers.insert(limits::GRPC_TIMEOUT, limits::header(left));
        }
        self.note(|record| record.pass_trace(&mut parts.headers, state.span));
        let body = RequestBody::of_try(state.replay.next_try());
        let body = if word {
            RequestBody::gated(interims.gate(body))
        } else {
            body
        };
        let mut request = Request::from_parts(parts, body);
        if version == Version::Http1 {
            interims.listen(&mut request);
        }
        Ok(request)
    }

    /// Reads what the head of an answer says, and where that may decide, its trailers.
    async fn answered(&self, state: &State, head: &RequestHead, response: Response<ResponseBody>) -> Brought {
        let (parts, mut body) = response.into_parts();
        let (status, wall) = (parts.status.as_u16(), SystemTime::now());
        let is_grpc = head.is_grpc();
        let mut grpc = is_grpc.then(|| look_ahead::grpc_status(&parts.headers)).flatten();
        let mut hint = retry_after::hint(status, &parts.headers, wall);
        if is_grpc
            && grpc.is_none()
            && self.tries.retry.reads_trailers()
            // A client that still sends may wait for this head before it goes on.
            && state.replay.has_ended()
            && !self.once
            && !body.is_end_stream()
        {
            let seen = look_ahead::look(body).await;
            if seen.is_broken() {
                return Brought::failed(Outcome::Reset, Reason::UpstreamReset);
            }
            if let Some(trailers) = seen.trailers() {
                grpc = look_ahead::grpc_status(trailers);
                hint = hint.or_else(|| retry_after::hint(status, trailers, wall));
            }
            body = ResponseBody::seen(seen);
        }
        Brought {
            outcome: Outcome::Answered(Answer { status, grpc, hint }),
            response: Some(Response::from_parts(parts, body)),
            reason: Reason::UpstreamReset,
            over: false,
        }
    }
}

impl Brought {
    /// Tells the span of the try.
    fn tell(&self, record: &Record, state: &State) {
        let (status, grpc) = match &self.outcome {
            Outcome::Answered(answer) => (answer.status, answer.grpc),
            _ => (0, None),
        };
        let reason = self.response.is_none().then_some(self.reason);
        record.tried_span(state.span, state.started, (status, grpc, reason));
    }

    fn failed(outcome: Outcome, reason: Reason) -> Self {
        Self {
            outcome,
            response: None,
            reason,
            over: false,
        }
    }
}

fn late(limit: TryLimit) -> Brought {
    match limit {
        TryLimit::Request(_) => Brought {
            over: true,
            ..Brought::failed(Outcome::TimedOut, Reason::RequestTimeout)
        },
        TryLimit::Try(_) | TryLimit::None => Brought::failed(Outcome::TimedOut, Reason::BackendTimeout),
    }
}

fn overflow() -> Reply {
    let headers = HeaderMap::from_iter([(OVERLOADED, HeaderValue::from_static("true"))]);
    Reply {
        own: Some(Box::new(Own {
            headers,
            ..Own::default()
        })),
        ..Reason::Overflow.into()
    }
}

/// How a request ended that got no answer. `untouched` says that it went over a kept connection and that none of its
/// body was read.
fn ended(failed: &SendFailed, untouched: bool, version: Version) -> Outcome {
    let error = &failed.error;
    let closed = error.is_incomplete_message() || error.is_closed() || error.is_canceled();
    match version {
        _ if failed.unsent.is_some() => Outcome::Unsent(Unsent::Stale),
        _ if error.is_parse() => Outcome::Malformed,
        Version::Http1 if untouched && closed => Outcome::Unsent(Unsent::Stale),
        Version::Http1 | Version::Http2 => Outcome::Reset,
    }
}

/// What is declared for HTTP/2 is spoken to in HTTP/2; else what the client speaks. Never less, but for WebSockets: few
/// servers take them over HTTP/2 that do not say so.
fn upstream_version(declared: AppProtocol, head: &RequestHead, upgrade: Option<Upgrade>) -> Version {
    match (declared, head.protocol) {
        (AppProtocol::Http2 | AppProtocol::Grpc, _) => Version::Http2,
        (_, Protocol::Http2) if upgrade.is_none() => Version::Http2,
        _ => Version::Http1,
    }
}

fn unix_now() -> u32 {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
}
