//! One request, from its head to its answer: *sanitise → place → admit → route → filter → send → finish*.
//!
//! The order is fixed, whatever the order of what users wrote. Each phase is one call: it takes values, and either goes
//! on or ends the request with a [`Reply`].

use std::sync::Arc;

use http::header::UPGRADE;
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tokio_util::task::TaskTracker;
use tulle_model::request::Scheme;
use tulle_model::route::Timeouts;
use tulle_model::waypoint::FrontOf;
use tulle_model::{Reason, RequestHead};

use super::aim::{Aim, Draws};
use super::body::{RequestBody, ResponseBody};
use super::heads::Heads;
use super::hygiene::encode::REQUEST_ID;
use super::hygiene::{self, Admitted, Bounds, Terms};
use super::pace::Pace;
use super::record::{Ending, Record};
use super::respond::{self, Caller, Reply};
use super::routing::{self, Drawn, Way};
use super::send::{Sending, Wants};
use super::tries::Tries;
use super::upgrade::{self, Switched};
use super::wire::Aside;
use crate::buffers::{self, Carried};
use crate::clock::Time;
use crate::context::Waypoint;
use crate::filter::mirror;
use crate::listener::arrival::Arrival;
use crate::policy;
use crate::policy::engine::{Asking, Passed};
use crate::policy::live::Open;
use crate::snapshot::{FrontState, PortState, Snapshot};
use crate::telemetry::party::Party;
use crate::telemetry::request_id::fresh;
use crate::upstream::backend::{Backend, BackendKey};
use crate::upstream::timeout::Deadline;

/// Longest id of a request that is kept as the client says it.
const REQUEST_ID_BYTES_MAX: usize = 128;

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

    /// Lets a request go on as a stream of bytes.
    fn switch(&self, client: OnUpgrade, switched: Switched, ending: Ending) {
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

/// Where a request stands: the newest snapshot, and the front and port in it that its connection asked for.
#[derive(Debug)]
pub struct Place {
    /// The snapshot everything of this request is decided by.
    pub snapshot: Arc<Snapshot>,
    /// What was asked for.
    pub front: Arc<FrontState>,
    /// The port of it.
    pub port: Arc<PortState>,
}

/// One request on its way.
#[derive(Debug)]
pub(super) struct Exchange<'a> {
    waypoint: &'a Arc<Waypoint>,
    arrival: &'a Arrival,
    id: HeaderValue,
    grpc: bool,
    /// What it is counted and told by.
    record: &'a Arc<Record>,
    /// Where the client is told of interim answers, if it can be.
    aside: Option<&'a Arc<Aside>>,
    /// When its head was read.
    start: Time,
    /// Why it is refused for what its bytes say.
    fault: Option<Reason>,
}

/// Serves one request.
pub async fn exchange(session: Session, mut request: Request<Incoming>) -> Response<ResponseBody> {
    let client = hyper::upgrade::on(&mut request);
    let by_connect = request.method() == http::Method::CONNECT;
    let asked = request.version() == http::Version::HTTP_11 && request.headers().contains_key(UPGRADE);
    let bytes = session.shared.bytes.as_ref();
    let aside = bytes.map(|bytes| &bytes.aside);
    let owed = aside.map(Aside::begin);
    let fault = bytes.and_then(|bytes| bytes.heads.lock().serve());
    let id = request_id(request.headers().get(REQUEST_ID));
    let record = Arc::new(Record::begin(&session, &request, &id, is_grpc(&request)));
    let mut ending = Ending::new(&record, session.shared.pace.request(), owed);
    let exchange = Exchange {
        waypoint: session.waypoint(),
        arrival: session.arrival(),
        id,
        grpc: record.is_grpc(),
        record: &record,
        // HTTP/1.0 knows of none.
        aside: aside.filter(|_| request.version() == http::Version::HTTP_11),
        start: session.waypoint().clock.now(),
        fault,
    };
    // Boxed: the state of a request is large, and idle connections have none.
    let answer = Box::pin(exchange.run(request)).await;
    let mut response = answer.unwrap_or_else(|reply| exchange.reply(reply));
    aside.inspect(|aside| aside.answered());
    let switched = response.body_mut().take_switched();
    // To who asks by CONNECT any success is an agreement, and this is none.
    if by_connect && switched.is_none() && response.status().is_success() {
        *response.status_mut() = StatusCode::FORBIDDEN;
    }
    ending.answered(&response);
    match switched {
        Some(switched) => {
            session.switch(client, switched, ending);
            response
        }
        None => {
            if asked {
                *session.shared.refused.lock() = Some(client);
            }
            response.map(|body| body.ending_with(ending))
        }
    }
}

impl Exchange<'_> {
    async fn run(&self, request: Request<Incoming>) -> Result<Response<ResponseBody>, Reply> {
        let (parts, body) = request.into_parts();
        let place = self.place()?;
        self.record.placed(&place);
        if let Some(reason) = self.fault {
            return Err(closing(reason));
        }
        let admitted = self.read(parts, &place)?;
        if buffers::is_short() {
            return Err(Reason::Overload.into());
        }
        policy::admit(&place.front)?;
        let source = self.arrival.source.identity.as_ref();
        let namespace = source.map(|identity| &*identity.namespace);
        let way = routing::choose(&place.port.rules, namespace, &admitted.head)?;
        self.record.routed(way.name());
        // Answers of our own pass the rule's filters for answers, too.
        match self.take(&place, &way, admitted, body).await {
            Ok((mut answer, drawn)) => {
                way.finish(drawn.as_ref(), answer.headers_mut());
                Ok(answer)
            }
            Err(reply) => {
                let mut answer = self.reply(reply);
                way.finish(None, answer.headers_mut());
                Ok(answer)
            }
        }
    }

    /// Everything between route and answer.
    async fn take(
        &self,
        place: &Place,
        way: &Way,
        mut admitted: Admitted,
        body: Incoming,
    ) -> Result<(Response<ResponseBody>, Option<Drawn>), Reply> {
        if let Some(answer) = way.preflight(&admitted.head) {
            return Ok((self.own(answer), None));
        }
        let idle = place.snapshot.settings.limits.body_idle;
        let mut body = RequestBody::of(body, self.record, idle);
        let deadline = way.tries().deadline(&admitted.head, self.start);
        let policing = self.police(place, way, &mut admitted.head, &mut body);
        let passed = timed(self, &deadline, policing).await?;
        if let Some(policy) = &passed.delayed_by {
            self.record.ended_by(Reason::FaultDelay, Some(policy));
        }
        let port = self.arrival.destination.address.port();
        if let Some(answer) = way.redirect(&admitted.head, port)? {
            return Ok((self.own(answer), None));
        }
        let parent = way.parent(&place.port);
        let draws = Draws {
            exchange: self,
            place,
            way,
            asked: &admitted.head,
            passed: &passed,
            session: way.tries().session_of(parent, &admitted.head),
        };
        let mut aim = timed(self, &deadline, Aim::draw(draws, &mut body)).await?;
        let wants = Wants {
            trailers: admitted.takes_trailers,
            word: admitted.expects_continue && body.is_untouched(),
            upgrade: admitted.upgrade,
            aside: self.aside,
        };
        let body = self.mirror(place, way, aim.head(), &admitted, body);
        let sending = Sending {
            wants,
            ..self.sending(place, way.tries(), parent, deadline)
        };
        let mut answer = sending.run(&mut aim, body).await?;
        aim.passed().change_response(answer.headers_mut());
        let (drawn, passed) = (aim.drawn().clone(), aim.passed().clone());
        let answer = self.watched(answer, place, way, admitted.head, passed);
        Ok((answer, Some(drawn)))
    }

    /// How a request is sent.
    fn sending<'s>(
        &'s self,
        place: &'s Place,
        tries: &'s Tries,
        parent: &'s Arc<Backend>,
        deadline: Deadline,
    ) -> Sending<'s> {
        Sending {
            waypoint: self.waypoint,
            arrival: self.arrival,
            snapshot: &place.snapshot,
            port: &place.port,
            parent,
            id: &self.id,
            wants: Wants::default(),
            tries,
            once: false,
            deadline,
            record: Some(self.record),
        }
    }

    /// What policies say of a request that takes this route: limits, tokens, authorizers, authorization, faults.
    async fn police(
        &self,
        place: &Place,
        way: &Way,
        head: &mut RequestHead,
        body: &mut RequestBody,
    ) -> Result<Passed, Reply> {
        let rules = place.port.policies_of(way.name());
        let of = self.asking(way.name());
        let engine = &self.waypoint.policies;
        engine.judge(rules, &**self.waypoint, head, body, of).await
    }

    /// What the security policies of a backend say that is not what was asked for, with the same source. Where this
    /// waypoint does not stand in front of it, they are enforced by whoever does.
    pub(super) async fn police_backend(
        &self,
        place: &Place,
        backend: &Backend,
        (head, body): (&mut RequestHead, &mut RequestBody),
        passed: &mut Passed,
    ) -> Result<(), Reply> {
        let BackendKey::Service(service, port) = &backend.key else {
            return Ok(());
        };
        let of = FrontOf::Service(service.clone());
        let Some(front) = place.snapshot.front(&of).filter(|_| of != self.arrival.front) else {
            return Ok(());
        };
        policy::admit(front)?;
        let Some(port) = front.port(*port) else {
            return Ok(());
        };
        let engine = &self.waypoint.policies;
        let (rules, ask) = (port.policies_as_backend(), &**self.waypoint);
        engine
            .judge_security(rules, ask, head, body, self.asking(None), passed)
            .await
    }

    fn asking<'a>(&'a self, route: Option<&'a str>) -> Asking<'a> {
        Asking {
            source: &self.arrival.source,
            destination: self.arrival.destination,
            route,
            id: self.id.to_str().unwrap_or_default(),
        }
    }

    /// Lets the answer end when policies deny the request while it is on its way.
    fn watched(
        &self,
        answer: Response<ResponseBody>,
        place: &Place,
        way: &Way,
        head: RequestHead,
        passed: Passed,
    ) -> Response<ResponseBody> {
        let open = Open {
            front: self.arrival.front.clone(),
            route: way.rule.as_ref().map(|rule| rule.name.clone()),
            source: self.arrival.source.clone(),
            destination: self.arrival.destination,
            head: Some(head),
            claims: passed.claims,
            sni: None,
            rules: Arc::clone(place.port.policies_of(way.name())),
        };
        let (waypoint, id) = (Arc::clone(self.waypoint), self.id.clone());
        let cut = async move {
            let ended = open.ended(Arc::clone(&waypoint)).await;
            let reason = Reason::PolicyChanged;
            waypoint.metrics.replied(reason);
            let (code, token) = (reason.code(), reason.token());
            tracing::info!(?id, ?ended, code, token, "answer cut");
        };
        answer.map(|body| body.cut_by(cut))
    }

    /// Reads a request into its canonical form.
    fn read(&self, parts: http::request::Parts, place: &Place) -> Result<Admitted, Reply> {
        let settings = &place.snapshot.settings;
        let bounds = Bounds {
            bytes: settings
                .limits
                .header_bytes
                .map_or_else(|| Bounds::default().bytes, |bytes| bytes as usize),
            ..Bounds::default()
        };
        let is_http1 = parts.version < http::Version::HTTP_2;
        let authority = self.arrival.destination.address.to_string();
        let terms = Terms {
            bounds,
            paths: settings.path_normalization,
            scheme: Scheme::Http,
            gateway: self.arrival.is_gateway,
            authority: &authority,
        };
        hygiene::admit(parts, &terms).map_err(|rejection| {
            if rejection.close && is_http1 {
                closing(rejection.reason)
            } else {
                rejection.reason.into()
            }
        })
    }

    /// An answer that no endpoint gave.
    fn own(&self, mut answer: Response<ResponseBody>) -> Response<ResponseBody> {
        answer.headers_mut().insert(REQUEST_ID, self.id.clone());
        answer
    }

    /// Finds front and port as they are now: they may have changed since the connection came in.
    fn place(&self) -> Result<Place, Reply> {
        let snapshot = self.waypoint.view.load();
        let front = snapshot.front(&self.arrival.front).ok_or(Reason::NotFronted)?;
        let port = front.port(self.arrival.destination.address.port());
        let (port, front) = (Arc::clone(port.ok_or(Reason::NotFronted)?), Arc::clone(front));
        Ok(Place {
            snapshot,
            front,
            port,
        })
    }

    /// Sends copies where the rule says, and hands the body back that feeds them. Nobody waits for a copy.
    fn mirror(
        &self,
        place: &Place,
        way: &Way,
        head: &RequestHead,
        admitted: &Admitted,
        incoming: RequestBody,
    ) -> RequestBody {
        let mirrors = way.rule.iter().flat_map(|rule| &rule.mirrors);
        let drawn = mirrors.filter(|mirror| mirror.share.draws(rand::random()));
        let wanted: Vec<_> = drawn.filter_map(|mirror| mirror.backend.clone()).collect();
        // A stream of bytes has two ends and no copies.
        if wanted.is_empty() || admitted.upgrade.is_some() {
            return incoming;
        }
        let (body, copies) = incoming.teed(wanted.len());
        for (backend, copy) in wanted.into_iter().zip(copies) {
            let Ok(permit) = Arc::clone(&self.waypoint.mirrors).try_acquire_owned() else {
                self.waypoint.metrics.mirrored("dropped");
                continue;
            };
            let head = RequestHead {
                authority: mirror::shadow(&head.authority),
                ..head.clone()
            };
            let place = Place {
                snapshot: Arc::clone(&place.snapshot),
                front: Arc::clone(&place.front),
                port: Arc::clone(&place.port),
            };
            let (waypoint, arrival) = (Arc::clone(self.waypoint), self.arrival.clone());
            let record = Arc::clone(self.record);
            let (id, grpc, takes_trailers) = (self.id.clone(), self.grpc, admitted.takes_trailers);
            tulle_runtime::tasks::spawn("mirror", async move {
                let _permit = permit;
                let exchange = Exchange {
                    waypoint: &waypoint,
                    arrival: &arrival,
                    id,
                    grpc,
                    record: &record,
                    aside: None,
                    start: waypoint.clock.now(),
                    fault: None,
                };
                let copying = async {
                    let (tries, parent) = (Tries::plain(), &place.port.backend);
                    let deadline = Deadline::new(&Timeouts::default(), None, exchange.start);
                    let wants = Wants {
                        trailers: takes_trailers,
                        ..Wants::default()
                    };
                    let sending = Sending {
                        once: true,
                        record: None,
                        wants,
                        ..exchange.sending(&place, tries, parent, deadline)
                    };
                    let answer = sending.run(&mut Aim::at(backend, head), copy).await?;
                    http_body_util::BodyExt::collect(answer.into_body())
                        .await
                        .map_err(|_| Reason::UpstreamReset)?;
                    Ok::<_, Reply>(())
                };
                let outcome = match tokio::time::timeout(mirror::LIFE_MAX, copying).await {
                    Ok(Ok(())) => "sent",
                    Ok(Err(_)) => "failed",
                    Err(_) => "timeout",
                };
                waypoint.metrics.mirrored(outcome);
            });
        }
        body
    }

    fn reply(&self, reply: Reply) -> Response<ResponseBody> {
        let reason = reply.reason;
        self.waypoint.metrics.replied(reason);
        self.record.ended_by(reason, reply.because.as_ref());
        tracing::debug!(code = reason.code(), token = reason.token(), source = %self.arrival.peer, "local reply");
        let caller = Caller {
            grpc: self.grpc,
            id: &self.id,
            detail: self.waypoint.config.reason_detail,
        };
        respond::reply(reply, caller)
    }
}

/// A reply after which the connection carries no other request.
fn closing(reason: Reason) -> Reply {
    let mut reply = Reply::from(reason);
    let headers = &mut reply.own.get_or_insert_default().headers;
    headers.insert(http::header::CONNECTION, HeaderValue::from_static("close"));
    reply
}

/// What is done before the request is sent counts in its time, too.
async fn timed<T>(
    exchange: &Exchange<'_>,
    deadline: &Deadline,
    doing: impl Future<Output = Result<T, Reply>>,
) -> Result<T, Reply> {
    match deadline.left(exchange.waypoint.clock.now()) {
        Some(left) => tokio::time::timeout(left, doing)
            .await
            .unwrap_or_else(|_| Err(Reason::RequestTimeout.into())),
        None => doing.await,
    }
}

fn is_grpc(request: &Request<Incoming>) -> bool {
    let content_type = request.headers().get(http::header::CONTENT_TYPE);
    request.method() == http::Method::POST
        && content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// The client's id, or a new one.
fn request_id(given: Option<&HeaderValue>) -> HeaderValue {
    let usable = |value: &&HeaderValue| {
        let bytes = value.as_bytes();
        (1..=REQUEST_ID_BYTES_MAX).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
    };
    let kept = given.filter(usable).cloned();
    kept.unwrap_or_else(|| fresh(rand::random()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_of_the_client_is_kept_if_it_can_be_shown() {
        let kept = HeaderValue::from_static("abc-1");
        assert_eq!(request_id(Some(&kept)), kept);
        for bad in ["", "a b", &"x".repeat(129)] {
            let made = request_id(Some(&HeaderValue::from_str(bad).unwrap()));
            let made = made.to_str().unwrap();
            assert_eq!((made.len(), &made[14..15]), (36, "4"), "{bad}");
        }
    }
}
