//! One request as it goes: its phases note what they find, and it is counted and told once, when its answer has ended.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{EXPECT, HOST, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri, Version};
use http_body::{Body as _, Frame};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tulle_model::{Reason, Str};
use tulle_transport::OpenError;

use super::body::{BodyError, ResponseBody};
use super::exchange::Place;
use super::pace::Running;
use super::session::Session;
use super::wire::Owed;
use crate::clock::Time;
use crate::context::Waypoint;
use crate::policy::live::Open;
use crate::snapshot::{FrontState, PortState};
use crate::telemetry::access::Entry;
use crate::telemetry::grpc::Messages;
use crate::telemetry::labels::{Spoken, TrafficLabels};
use crate::telemetry::party::{Party, ServiceLabels, UNKNOWN};
use crate::telemetry::provider;
use crate::telemetry::requests::Sizes;
use crate::telemetry::spans::{Spans, Told};
use crate::telemetry::target::{Secrets, without_user};
use crate::telemetry::trace::{self, Ids, Trace};
use crate::upstream::backend::Backend;
use crate::upstream::endpoint::Endpoint;
use crate::upstream::retry::look_ahead::grpc_status;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// What is known of one request. Its phases share it.
#[derive(Debug)]
pub struct Record {
    session: Session,
    /// Its number among the requests of its connection.
    turn: u64,
    asked: Asked,
    id: HeaderValue,
    is_grpc: bool,
    /// What the client says of its trace.
    incoming: Option<trace::Incoming>,
    tracestate: Option<HeaderValue>,
    started: SystemTime,
    begun: Time,
    received: AtomicU64,
    received_messages: AtomicU64,
    /// Its body is read.
    body_begun: AtomicBool,
    /// Why its body ended before its end, if it did.
    body_failed: OnceLock<Reason>,
    /// The head of its answer is on its way.
    answered: AtomicBool,
    /// A policy on trial would have refused it.
    on_trial: AtomicBool,
    course: Mutex<Course>,
    /// What is judged again when policies change, until somebody watches.
    open: Mutex<Option<Open>>,
}

/// What the client wrote. Nothing of it becomes a label.
#[derive(Debug)]
struct Asked {
    method: Method,
    uri: Uri,
    version: Version,
    host: Option<HeaderValue>,
    forwarded_for: Option<HeaderValue>,
    user_agent: Option<HeaderValue>,
    expects: bool,
}

/// How it went so far.
#[derive(Debug, Default)]
struct Course {
    generation: u64,
    route: Option<Str>,
    service: Option<Arc<ServiceLabels>>,
    backend: Option<Arc<Backend>>,
    endpoint: Option<Reached>,
    attempts: u32,
    upstream_time: Option<Duration>,
    transport_failure: Option<String>,
    reason: Option<Reason>,
    policy: Option<Str>,
    /// What of its query is shown to nobody.
    secrets: Secrets,
    /// Its trace; `None` where nobody takes spans.
    trace: Option<Trace>,
}

/// How a request or a try ended, for its span.
#[derive(Debug, Clone, Copy)]
struct Outcome {
    start: SystemTime,
    status: u16,
    grpc: Option<u32>,
    reason: Option<Reason>,
    attempt: Option<u32>,
}

/// The endpoint of the last try.
#[derive(Debug)]
struct Reached {
    party: Arc<Party>,
    address: SocketAddr,
    local: Option<SocketAddr>,
    is_tunnelled: bool,
}

impl Record {
    /// Begins with what the client wrote.
    #[must_use]
    pub fn begin(
        session: &Session,
        turn: u64,
        request: &Request<Incoming>,
        id: &HeaderValue,
        is_grpc: bool,
    ) -> Self {
        let headers = request.headers();
        Self {
            session: session.clone(),
            turn,
            asked: Asked {
                method: request.method().clone(),
                uri: request.uri().clone(),
                version: request.version(),
                host: headers.get(HOST).cloned(),
                forwarded_for: headers.get(FORWARDED_FOR).cloned(),
                user_agent: headers.get(USER_AGENT).cloned(),
                expects: headers.contains_key(EXPECT),
            },
            id: id.clone(),
            is_grpc,
            incoming: trace::read(headers),
            tracestate: headers.get(trace::TRACESTATE).cloned(),
            started: SystemTime::now(),
            begun: session.waypoint().clock.now(),
            received: AtomicU64::new(0),
            received_messages: AtomicU64::new(0),
            body_begun: AtomicBool::new(false),
            body_failed: OnceLock::new(),
            answered: AtomicBool::new(false),
            on_trial: AtomicBool::new(false),
            course: Mutex::default(),
            open: Mutex::default(),
        }
    }

    /// Policies let it pass as this.
    pub(super) fn passed(&self, open: Open) {
        *self.open.lock() = Some(open);
    }

    /// What is judged again when policies change. It is there once.
    pub(super) fn take_open(&self) -> Option<Open> {
        self.open.lock().take()
    }

    /// What everything shares.
    pub(super) fn waypoint(&self) -> &Arc<Waypoint> {
        self.session.waypoint()
    }

    /// Its id.
    pub(super) fn id(&self) -> &HeaderValue {
        &self.id
    }

    /// Whether it is a call of gRPC.
    #[must_use]
    pub fn is_grpc(&self) -> bool {
        self.is_grpc
    }

    /// So many bytes of its body have come, and so many messages in all.
    pub fn received(&self, bytes: usize, messages: &Messages) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
        self.received_messages.store(messages.count(), Ordering::Relaxed);
        self.session.carried().handed_on(bytes);
    }

    /// Its body is read.
    pub fn body_begins(&self) {
        self.body_begun.store(true, Ordering::Relaxed);
    }

    /// Its body was read to its end.
    pub fn body_ended(&self) {
        if self.asked.version < Version::HTTP_2 {
            self.session.pace().finished(self.turn);
        }
    }

    /// Its body ended before its end, and it was the client that ended it.
    pub fn body_failed(&self, reason: Reason) {
        let _ = self.body_failed.set(reason);
    }

    /// Why its body ended before its end, if the client ended it.
    #[must_use]
    pub fn body_failure(&self) -> Option<Reason> {
        self.body_failed.get().copied()
    }

    /// Whether the head of its answer is on its way.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    /// Whether what is left of its body comes before the next request on the connection. A client that still waits for
    /// `100 Continue` sends none.
    #[must_use]
    pub fn must_read_on(&self) -> bool {
        let waits = self.asked.expects && !self.body_begun.load(Ordering::Relaxed);
        self.asked.version < Version::HTTP_2 && !waits
    }

    /// What it is decided by was found.
    pub fn placed(&self, place: &Place) {
        let mut course = self.course.lock();
        course.generation = place.snapshot.mesh.generation();
        course.service = labels(&place.port.backend);
        if place.front.missing.is_empty() {
            course.secrets = Secrets::Of(Vec::new());
            course.secrets.add(place.port.token_params());
        }
        let telemetry = &place.snapshot.settings.telemetry;
        course.trace = provider::collector(&place.snapshot.settings).map(|_| {
            let sampling = telemetry.sampling_ppm.unwrap_or(trace::SAMPLING_PPM);
            let ids = Ids {
                trace: rand::random(),
                span: rand::random(),
            };
            Trace::begin(self.incoming, sampling, ids, rand::random_range(0..1_000_000))
        });
    }

    /// It goes where another front's policies guard what it asks for.
    pub fn guarded_by(&self, front: &FrontState, port: Option<&Arc<PortState>>) {
        let known = port.filter(|_| front.missing.is_empty());
        let mut course = self.course.lock();
        match known {
            Some(port) => course.secrets.add(port.token_params()),
            None => course.secrets = Secrets::All,
        }
    }

    /// Tells the endpoint the trace, as the child of the span of a try. Without a collector what the client says goes on
    /// as it came: a span that nobody takes would be a hole in the trace.
    pub fn pass_trace(&self, headers: &mut HeaderMap, span: u64) {
        if let Some(trace) = &self.course.lock().trace {
            trace.write(headers, span);
        }
    }

    /// Tells the span of a try that ended with this status, status of gRPC, and reason.
    pub fn tried_span(
        &self,
        span: u64,
        start: SystemTime,
        (status, grpc, reason): (u16, Option<u32>, Option<Reason>),
    ) {
        let course = self.course.lock();
        let outcome = Outcome {
            start,
            status,
            grpc,
            reason,
            attempt: Some(course.attempts),
        };
        self.span(&course, outcome, |spans, trace, told| {
            spans.attempt(trace, span, told)
        });
    }

    fn span(&self, course: &Course, outcome: Outcome, offer: impl FnOnce(&Spans, &Trace, &Told<'_>)) {
        let Some(trace) = course.trace.as_ref().filter(|trace| trace.sampled) else {
            return;
        };
        let backend = course.backend.as_ref().map(|backend| backend.key.told());
        let reached = course.endpoint.as_ref();
        let nobody = Party::nobody();
        let told = Told {
            name: backend.as_deref().unwrap_or(UNKNOWN),
            start: outcome.start,
            end: SystemTime::now(),
            source: self.session.source(),
            destination: reached.map_or(&nobody, |reached| &reached.party),
            route: course.route.as_deref(),
            method: Some(self.asked.method.as_str()),
            status: outcome.status,
            grpc: outcome.grpc,
            reason: outcome.reason,
            request_id: text(&self.id),
            tracestate: self.tracestate.as_ref().and_then(text),
            attempt: outcome.attempt,
        };
        offer(&self.session.waypoint().spans, trace, &told);
    }

    /// Its rule was found.
    pub fn routed(&self, route: Option<&Str>) {
        self.course.lock().route = route.cloned();
    }

    /// It goes to this backend.
    pub fn sent_to(&self, backend: &Arc<Backend>) {
        let mut course = self.course.lock();
        course.service = labels(backend).or_else(|| course.service.take());
        course.backend = Some(Arc::clone(backend));
    }

    /// It is tried with this endpoint.
    pub fn tried(&self, number: u32, endpoint: &Endpoint, address: SocketAddr) {
        let mut course = self.course.lock();
        course.attempts = number;
        course.transport_failure = None;
        course.endpoint = Some(Reached {
            party: Arc::clone(&endpoint.party),
            address,
            local: None,
            is_tunnelled: endpoint.is_tunnelled(),
        });
    }

    /// It goes out from this end of the connection to the endpoint, where that is known.
    pub fn sent_from(&self, local: Option<SocketAddr>) {
        if let Some(reached) = &mut self.course.lock().endpoint {
            reached.local = local;
        }
    }

    /// Is set where a policy on trial would have refused it.
    pub fn on_trial(&self) -> &AtomicBool {
        &self.on_trial
    }

    /// The endpoint was not reached.
    pub fn not_reached(&self, error: &OpenError) {
        self.course.lock().transport_failure = Some(error.to_string());
    }

    /// The endpoint began its answer after this time.
    pub fn answered_after(&self, took: Duration) {
        self.course.lock().upstream_time = Some(took);
    }

    /// It was not, or not only, the application that ended it.
    pub fn ended_by(&self, reason: Reason, because: Option<&Str>) {
        let mut course = self.course.lock();
        course.reason = Some(reason);
        course.policy = because.cloned();
    }

    /// Counts it, and writes its line.
    fn tell(&self, outward: &Outward) {
        let waypoint = self.session.waypoint();
        let now = waypoint.clock.now();
        let course = self.course.lock();
        let reason = outward.broken().or(course.reason);
        let reached = course.endpoint.as_ref();
        let labels = TrafficLabels {
            source: Arc::clone(self.session.source()),
            destination: reached.map_or_else(Party::nobody, |reached| Arc::clone(&reached.party)),
            service: course.service.clone().unwrap_or_else(ServiceLabels::nothing),
            spoken: if self.is_grpc { Spoken::Grpc } else { Spoken::Http },
            code: outward.status.unwrap_or_default(),
            grpc: outward.grpc,
            flags: reason.map_or("-", |reason| reason.answer().flag),
            // Streams come in by tunnels only.
            mutual_tls: reached.is_some_and(|reached| reached.is_tunnelled),
        };
        let sizes = Sizes {
            request_bytes: self.received.load(Ordering::Relaxed),
            response_bytes: outward.bytes,
            request_messages: self.received_messages.load(Ordering::Relaxed),
            response_messages: outward.messages.count(),
        };
        let took = now.since(self.begun);
        waypoint.metrics.traffic.request(&labels, took, &sizes, now);
        let outcome = Outcome {
            start: self.started,
            status: labels.code,
            grpc: labels.grpc,
            reason,
            attempt: None,
        };
        self.span(&course, outcome, |spans, trace, told| spans.request(trace, told));
        self.write(&course, &labels, reason, &sizes, took);
    }

    /// Writes the access line, if the settings want one.
    fn write(
        &self,
        course: &Course,
        labels: &TrafficLabels,
        reason: Option<Reason>,
        sizes: &Sizes,
        took: Duration,
    ) {
        let waypoint = self.session.waypoint();
        let Some(log) = &waypoint.log else { return };
        let settings = Arc::clone(&waypoint.view.load().settings);
        // A client that left has seen no status; the line says what it would have been.
        let unseen = reason.map_or(0, |reason| reason.answer().status);
        let outcome = Entry {
            status: if labels.code == 0 { unseen } else { labels.code },
            grpc: labels.grpc,
            flag: labels.flags,
            reason,
            ..Entry::default()
        };
        if !outcome.is_wanted(settings.telemetry.access_log) {
            return;
        }
        let (asked, arrival) = (&self.asked, self.session.arrival());
        let version = format!("{:?}", asked.version);
        let host = asked.host.as_ref().and_then(text);
        let came = || Some(self.incoming?.ids?.trace);
        let trace = course.trace.map(|trace| trace.id).or_else(came);
        let trace = trace.map(|trace| format!("{trace:032x}"));
        let backend = course.backend.as_ref().map(|backend| backend.key.told());
        let target = asked.uri.path_and_query();
        let target = target.map(|target| course.secrets.blank(target.as_str()));
        let authority = asked.uri.authority().map(|authority| authority.as_str());
        let line = Entry {
            start: Some(self.started),
            method: Some(asked.method.as_str()),
            path: target.as_deref(),
            protocol: Some(&version),
            transport_failure: course.transport_failure.as_deref(),
            received: sizes.request_bytes,
            sent: sizes.response_bytes,
            duration: took,
            upstream_time: course.upstream_time,
            forwarded_for: asked.forwarded_for.as_ref().and_then(text),
            user_agent: asked.user_agent.as_ref().and_then(text),
            request_id: text(&self.id),
            authority: authority.or(host).map(without_user),
            upstream_host: course.endpoint.as_ref().map(|reached| reached.address),
            upstream_cluster: backend.as_deref(),
            upstream_local: course.endpoint.as_ref().and_then(|reached| reached.local),
            dry_run_denied: self.on_trial.load(Ordering::Relaxed),
            downstream_local: Some(arrival.destination.address),
            downstream_remote: Some(SocketAddr::new(arrival.source.ip, arrival.peer_address.port())),
            route: course.route.as_deref(),
            source_principal: Some(&labels.source.principal),
            source_workload: Some(&labels.source.workload),
            source_namespace: Some(&labels.source.namespace),
            policy: course.policy.as_deref(),
            id: text(&self.id),
            generation: course.generation,
            attempts: course.attempts,
            trace_id: trace.as_deref(),
            ..outcome
        };
        log.access(line.line(settings.telemetry.json));
    }
}

/// What lives as long as a request and its answer. When it is dropped, the request is counted.
#[derive(Debug)]
pub struct Ending {
    record: Arc<Record>,
    outward: Outward,
    /// The connection is not idle until the answer has ended.
    _running: Running,
    /// The library has not been handed all of it.
    _owed: Option<Owed>,
}

/// What has gone to the client.
#[derive(Debug, Default)]
struct Outward {
    status: Option<u16>,
    grpc: Option<u32>,
    bytes: u64,
    messages: Messages,
    end: End,
}

/// How far an answer has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum End {
    /// Not to its end: who drops it here, drops it because the client is gone.
    #[default]
    Open,
    Whole,
    Broken(Reason),
}

impl Outward {
    fn broken(&self) -> Option<Reason> {
        match self.end {
            End::Open => Some(Reason::ClientGone),
            End::Whole => None,
            End::Broken(reason) => Some(reason),
        }
    }
}

impl Ending {
    /// Of a request that was begun.
    #[must_use]
    pub fn new(record: &Arc<Record>, running: Running, owed: Option<Owed>) -> Self {
        Self {
            record: Arc::clone(record),
            outward: Outward::default(),
            _running: running,
            _owed: owed,
        }
    }

    /// The head of the answer goes to the client.
    pub fn answered(&mut self, response: &Response<ResponseBody>) {
        let status = response.status();
        self.record.answered.store(true, Ordering::Relaxed);
        self.outward.status = Some(status.as_u16());
        self.outward.grpc = self.grpc(response.headers());
        // Nobody reads the body of an answer that has none.
        let is_empty = self.record.asked.method == Method::HEAD || matches!(status.as_u16(), 204 | 304);
        if is_empty || response.body().is_end_stream() {
            self.outward.end = End::Whole;
        }
    }

    /// The request became a stream of bytes that has ended: so many came from the client, so many went to it, and this is
    /// why, if not because both sides had finished.
    pub fn switched(mut self, received: u64, sent: u64, reason: Option<Reason>) {
        self.record.received.fetch_add(received, Ordering::Relaxed);
        self.outward.bytes = sent;
        self.outward.end = reason.map_or(End::Whole, End::Broken);
    }

    /// A part of the body goes to the client, or its end; `is_over` says that no other part follows.
    pub fn pass(&mut self, frame: Option<&Result<Frame<Bytes>, BodyError>>, is_over: bool) {
        match frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.outward.bytes += data.len() as u64;
                    if self.record.is_grpc {
                        self.outward.messages.feed(data);
                    }
                }
                if let Some(trailers) = frame.trailers_ref() {
                    self.outward.grpc = self.grpc(trailers).or(self.outward.grpc);
                }
                if is_over || frame.is_trailers() {
                    self.outward.end = End::Whole;
                }
            }
            Some(Err(error)) => self.outward.end = End::Broken(broken(error)),
            None if self.outward.end == End::Open => self.outward.end = End::Whole,
            None => {}
        }
    }

    fn grpc(&self, fields: &HeaderMap) -> Option<u32> {
        self.record.is_grpc.then(|| grpc_status(fields)).flatten()
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.record.tell(&self.outward);
    }
}

/// Why an answer ended before its end.
fn broken(error: &BodyError) -> Reason {
    match error {
        BodyError::PolicyChanged => Reason::PolicyChanged,
        BodyError::TimedOut => Reason::RequestTimeout,
        BodyError::Idle => Reason::BodyIdle,
        BodyError::Broken(_) | BodyError::Cut(_) | BodyError::TakenOver | BodyError::Unwanted(_) => {
            Reason::UpstreamReset
        }
    }
}

fn labels(backend: &Backend) -> Option<Arc<ServiceLabels>> {
    Some(Arc::clone(backend.cluster()?.labels()))
}

fn text(value: &HeaderValue) -> Option<&str> {
    value.to_str().ok()
}
