//! A request on its way to endpoints: *draw → pick → breaker → timer → upstream*, again where that is allowed.

use std::error::Error as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::header::{HeaderName, SEC_WEBSOCKET_KEY, SET_COOKIE};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Body as _;
use hyper::body::Incoming;
use smallvec::SmallVec;
use tokio::time::{Instant, sleep, timeout};
use tulle_model::request::{Protocol, host};
use tulle_model::service::AppProtocol;
use tulle_model::{Reason, RequestHead};

use super::aim::Aim;
use super::body::{RequestBody, ResponseBody};
use super::hygiene;
use super::hygiene::Upgrade;
use super::hygiene::encode::{self, ClientCert, Telling};
use super::interim::Interims;
use super::record::Record;
use super::respond::{Own, Reply};
use super::routing::{self, Drawn};
use super::tries::{Tries, unix_now};
use super::upgrade;
use super::wire::Aside;
use crate::context::Waypoint;
use crate::listener::arrival::Arrival;
use crate::snapshot::{PortState, Snapshot};
use crate::upstream::backend::Backend;
use crate::upstream::breaker::Guard;
use crate::upstream::cluster::{Ask, Pick};
use crate::upstream::connect::{self, Behalf, To};
use crate::upstream::endpoint::{Endpoint, EndpointState};
use crate::upstream::hash;
use crate::upstream::outcome::{Answer, Outcome, Unsent};
use crate::upstream::outside;
use crate::upstream::pool::{Bounds, Key, Lease, LeaseError, SendFailed, Version};
use crate::upstream::retry::replay::Replay;
use crate::upstream::retry::{Decision, Tried, look_ahead, retry_after};
use crate::upstream::session::{SessionPolicy, Token};
use crate::upstream::timeout::{self as limits, Deadline, TryLimit};

/// A waypoint tells its clients when it was its breaker that refused.
const OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");

/// Draws of one retry, until one brings an endpoint that was not tried before.
const REDRAWS_MAX: usize = 5;

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
    /// What was asked for: whose retries count, and who keeps sessions.
    pub(super) parent: &'a Arc<Backend>,
    pub(super) id: &'a HeaderValue,
    pub(super) wants: Wants<'a>,
    pub(super) tries: &'a Tries,
    /// Whether another try may be made at all; copies have one.
    pub(super) once: bool,
    /// When it has to be over.
    pub(super) deadline: Deadline,
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

/// An endpoint for one try.
struct Picked {
    drawn: Drawn,
    pick: Pick,
    /// What a client is told that has no cookie to be hashed by yet.
    set_cookie: Option<HeaderValue>,
}

/// What the tries of one request share.
struct State {
    replay: Replay<RequestBody>,
    tried: SmallVec<[Arc<EndpointState>; 3]>,
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
    /// Sends a request where `aim` points, and where it points for each further try.
    pub(super) async fn run(
        &self,
        aim: &mut Aim<'_>,
        body: RequestBody,
    ) -> Result<Response<ResponseBody>, Reply> {
        if !self.once {
            self.parent.count_request();
        }
        let session = self.tries.session.clone().or_else(|| self.parent.session());
        let mut state = State {
            replay: Replay::new(body, self.tries.retry.retries() && !self.once),
            tried: SmallVec::new(),
            token: session
                .as_ref()
                .and_then(|policy| policy.read(&aim.asked().headers, unix_now())),
            number: 1,
            span: 0,
            started: SystemTime::now(),
            retrying: None,
        };
        loop {
            let brought = self.one(&mut state, aim, session.as_ref()).await?;
            let again = self.again(&mut state, aim, &brought)?;
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
    fn again(&self, state: &mut State, aim: &Aim<'_>, brought: &Brought) -> Result<Option<Duration>, Reply> {
        state.retrying = None;
        if self.once || brought.over {
            return Ok(None);
        }
        let tried = Tried {
            number: state.number,
            outcome: &brought.outcome,
            method: &aim.asked().method,
            replayable: state.replay.is_replayable(),
            left: self.left(),
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
        if !self.parent.may_retry() {
            metrics.retried("over_budget");
            return Err(Reason::RetryBudgetSpent.into());
        }
        // The last answer can still be passed on: that is why the backend counts that gave it.
        let Some(cluster) = aim.drawn().backend.cluster() else {
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
        aim: &mut Aim<'_>,
        session: Option<&SessionPolicy>,
    ) -> Result<Brought, Reply> {
        let mut body = RequestBody::of_try(state.replay.next_try());
        let Picked {
            drawn,
            mut pick,
            set_cookie,
        } = self.pick(state, aim)?;
        if state.number > 1 {
            let turning = aim.turn_to(drawn, &mut body);
            match self.left() {
                Some(left) => timeout(left, turning)
                    .await
                    .map_err(|_| Reason::RequestTimeout)??,
                None => turning.await?,
            }
        }
        let backend = &aim.drawn().backend;
        self.note(|record| record.sent_to(backend));
        let (at, limits) = (backend.now(), pick.cluster().policy().limits);
        let guard = pick
            .cluster()
            .state()
            .breaker
            .request(limits)
            .map_err(|_| overflow())?;
        state.tried.push(Arc::clone(&pick.endpoint().state));
        let cookies = self.cookies(state, &pick, session, set_cookie);
        let limit = limits::of_try(&self.tries.timeouts, &self.deadline, self.waypoint.clock.now());
        let ends = limit.limit().map(|limit| Instant::now() + limit);
        (state.span, state.started) = (rand::random::<u64>().max(1), SystemTime::now());
        let trying = self.attempt(state, aim, body, &pick);
        let brought = match limit.limit() {
            Some(limit) => timeout(limit, trying).await,
            None => Ok(trying.await),
        };
        let mut brought = brought.unwrap_or_else(|_| Ok(late(limit)))?;
        pick.settle(&brought.outcome, backend.now());
        self.note(|record| brought.tell(record, state));
        let took = backend.now().since(at);
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

    /// Draws a backend and picks an endpoint of it that was not tried before, if there is one.
    fn pick(&self, state: &State, aim: &Aim<'_>) -> Result<Picked, Reply> {
        let mut last = None;
        for _ in 0..=REDRAWS_MAX {
            let drawn = if state.number == 1 {
                aim.drawn().clone()
            } else {
                aim.redraw()?
            };
            let Some(cluster) = drawn.backend.cluster() else {
                return Err(Reason::BackendInvalid.into());
            };
            let hashed = hash::of(
                cluster.hash_keys(),
                aim.asked(),
                &self.arrival.source,
                rand::random(),
            );
            let ask = Ask {
                now: drawn.backend.now(),
                hash: hashed.hash,
                session: state.token.map(|token| token.fingerprint),
                tried: &state.tried,
                address: Some(self.arrival.destination.address.ip()),
            };
            let picked = drawn.backend.pick(&ask);
            let is_new = |pick: &Pick| {
                !state
                    .tried
                    .iter()
                    .any(|one| Arc::ptr_eq(one, &pick.endpoint().state))
            };
            let is_good = picked.as_ref().is_some_and(is_new);
            last = picked
                .map(|pick| Picked {
                    drawn,
                    pick,
                    set_cookie: hashed.set_cookie,
                })
                .or(last);
            // Who hashes wants one endpoint for one key, also when it is tried again.
            if is_good || hashed.hash.is_some() || state.number == 1 || !aim.varies() {
                break;
            }
        }
        last.ok_or_else(|| Reason::NoHealthyEndpoint.into())
    }

    /// What is left of the request's time; `None` is without end.
    fn left(&self) -> Option<Duration> {
        self.deadline.left(self.waypoint.clock.now())
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

    /// # Errors
    /// The reply if the backend has as many connections as it may have, and as many requests wait for one.
    async fn attempt(
        &self,
        state: &State,
        aim: &Aim<'_>,
        body: RequestBody,
        pick: &Pick,
    ) -> Result<Brought, Reply> {
        let (head, backend) = (aim.head(), &aim.drawn().backend);
        let failed = |outcome, reason| Ok(Brought::failed(outcome, reason));
        let endpoint = pick.endpoint();
        let (host, asked) = (
            host::without_port(&head.authority),
            self.arrival.destination.address,
        );
        let found = outside::address(self.waypoint, self.snapshot, endpoint, Some(host), asked).await;
        let address = match found {
            Ok(address) => address,
            Err(reason @ Reason::NoHealthyEndpoint) => {
                return failed(Outcome::Unsent(Unsent::Connect), reason);
            }
            Err(reason) => return Err(reason.into()),
        };
        self.note(|record| record.tried(state.number, endpoint, address));
        let version = upstream_version(
            routing::spoken(backend, self.port.protocol),
            head,
            self.wants.upgrade,
        );
        let interims = Interims::new(self.wants.aside.cloned());
        let request = match self.request(state, head, body, (version, endpoint), &interims) {
            Ok(request) => request,
            Err(reason) => return failed(Outcome::ClientGone, reason),
        };
        let tls = pick.cluster().tls_to(endpoint);
        let key = Key {
            workload: endpoint.workload.uid.clone(),
            address,
            expected: endpoint.proven(),
            source: connect::told_source(self.arrival, self.snapshot),
            version,
            tls: tls.map(|tls| Arc::clone(tls.policy())),
        };
        let bounds = Bounds {
            breaker: &pick.cluster().state().breaker,
            limits: pick.cluster().policy().limits,
        };
        let open = || async {
            let behalf = Behalf::of(self.arrival, self.snapshot);
            let to = To {
                endpoint,
                address,
                tls,
                speaks: Some(version),
            };
            connect::open(self.waypoint, to, &behalf, bounds.limits.connect).await
        };
        let lease = match self.waypoint.upstreams.http.lease(&key, bounds, open).await {
            Ok(lease) => lease,
            Err(LeaseError::Overflow(_)) => return Err(overflow()),
            Err(LeaseError::Open(error)) => {
                tracing::debug!(%error, %address, "an endpoint was not reached");
                self.note(|record| record.not_reached(&error));
                return failed(connect::outcome_of(&error), connect::reason(&error));
            }
        };
        Ok(self.over(lease, (state, head, version), request, &interims).await)
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
        if lease.is_malformed() {
            return broken(Reason::UpstreamProtocol);
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
        body: RequestBody,
        (version, endpoint): (Version, &Endpoint),
        interims: &Interims,
    ) -> Result<Request<RequestBody>, Reason> {
        // Over HTTP/2 the word would not be heard, and a body that has begun is wanted already.
        let word = self.wants.word && version == Version::Http1 && !state.replay.has_started();
        let told = self.snapshot.settings.forward_client_cert;
        let source = self.arrival.source.identity.as_ref().filter(|_| told);
        let names = source.map(|source| (source.to_string(), endpoint.workload.identity().to_string()));
        let telling = Telling {
            request_id: self.id,
            source_ip: self.arrival.source.ip,
            attempt: state.number,
            client_cert: names
                .as_ref()
                .map(|(source, destination)| ClientCert { source, destination }),
            upgrade: self.wants.upgrade,
            takes_trailers: self.wants.trailers,
            expects_continue: word,
        };
        let written = match version {
            Version::Http1 => http::Version::HTTP_11,
            Version::Http2 => http::Version::HTTP_2,
        };
        let mut parts = encode::encode(head, &telling, written).map_err(|_| Reason::BadPath)?;
        if let Some(left) = self.left().filter(|_| head.is_grpc()) {
            parts.headers.insert(limits::GRPC_TIMEOUT, limits::header(left));
        }
        self.note(|record| record.pass_trace(&mut parts.headers, state.span));
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
        Version::Http1 => Outcome::Reset,
        Version::Http2 => unprocessed(error).map_or(Outcome::Reset, Outcome::Unsent),
    }
}

/// RFC 9113, 8.7: a stream that was refused, or is above the last that a GOAWAY names, was not processed at all.
fn unprocessed(error: &hyper::Error) -> Option<Unsent> {
    let error = error.source()?.downcast_ref::<h2::Error>()?;
    match error.reason() {
        _ if !error.is_remote() => None,
        Some(h2::Reason::REFUSED_STREAM) if error.is_reset() => Some(Unsent::RefusedStream),
        // Streams below the last one are not told of it.
        _ if error.is_go_away() => Some(Unsent::GoAway),
        _ => None,
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
