//! One request, from its head to its answer: *sanitise → place → admit → route → filter → send → finish*.
//!
//! The order is fixed, whatever the order of what users wrote. Each phase is one call: it takes values, and either goes
//! on or ends the request with a [`Reply`].

mod copies;

use std::borrow::Cow;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use http::header::UPGRADE;
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::{Body, Incoming};
use tulle_model::request::{Scheme, Source};
use tulle_model::waypoint::FrontOf;
use tulle_model::{Reason, RequestHead};

use super::aim::{Aim, Draws};
use super::body::{RequestBody, ResponseBody};
use super::cut::Cut;
use super::hygiene::encode::REQUEST_ID;
use super::hygiene::{self, Admitted, Bounds, Terms};
use super::record::{Ending, Record};
use super::respond::{self, Caller, Reply};
use super::routing::{self, Drawn, Way};
use super::send::{Sending, Wants};
use super::session::Session;
use super::tries::Tries;
use super::wire::Aside;
use crate::buffers;
use crate::clock::Time;
use crate::context::Waypoint;
use crate::listener::arrival::Arrival;
use crate::policy;
use crate::policy::engine::{Asking, Passed};
use crate::policy::live::{self, Behind, Held, Open};
use crate::snapshot::{FrontState, PortState, Snapshot};
use crate::spare;
use crate::telemetry::request_id::fresh;
use crate::upstream::backend::{Backend, BackendKey};
use crate::upstream::connect;
use crate::upstream::timeout::Deadline;

/// Bytes of a request's state while it waits for its answer: what a stream of HTTP/2 costs most.
const STATE_MAX: usize = 8 * 1024;

/// Longest id of a request that is kept as the client says it.
const REQUEST_ID_BYTES_MAX: usize = 128;

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

/// A request that may go on.
#[derive(Debug)]
struct Begun<'a> {
    place: Place,
    way: Way,
    /// Who asks.
    source: Cow<'a, Source>,
    admitted: Admitted,
}

/// Whose answer a request gets.
enum Taken {
    /// One of our own.
    Own(Response<ResponseBody>),
    /// That of the backend which was drawn, after these policies have let the request pass.
    Sent(Response<ResponseBody>, Drawn, live::Passed),
}

/// Serves one request.
pub async fn exchange(session: Session, mut request: Request<Incoming>) -> Response<ResponseBody> {
    let client = hyper::upgrade::on(&mut request);
    let by_connect = request.method() == http::Method::CONNECT;
    let asked = request.version() == http::Version::HTTP_11 && request.headers().contains_key(UPGRADE);
    let bytes = session.bytes();
    let aside = bytes.map(|bytes| &bytes.aside);
    let owed = aside.map(Aside::begin);
    let fault = bytes.and_then(|bytes| bytes.heads.lock().serve());
    let id = request_id(request.headers().get(REQUEST_ID));
    let unfinished = by_connect || asked || !request.body().is_end_stream();
    let (running, turn) = session.pace().request(unfinished);
    let record = Record::begin(&session, turn, &request, &id, is_grpc(&request));
    let record = Arc::new(record);
    let mut ending = Ending::new(&record, running, owed);
    let mut response = answering(session.clone(), Arc::clone(&record), id, fault, request).await;
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
                session.refuse(client);
            }
            response.map(|body| body.ending_with(ending))
        }
    }
}

/// Answers one request in a state elsewhere, which is large: idle connections have none. Not an async function, whose own
/// state would have room for it.
fn answering(
    session: Session,
    record: Arc<Record>,
    id: HeaderValue,
    fault: Option<Reason>,
    request: Request<Incoming>,
) -> impl Future<Output = Response<ResponseBody>> + Send {
    let answering = answer(session, record, id, fault, request);
    debug_assert!(
        size_of_val(&answering) <= STATE_MAX,
        "{}",
        size_of_val(&answering)
    );
    spare::run(answering)
}

/// The answer to one request, whoever gives it.
async fn answer(
    session: Session,
    record: Arc<Record>,
    id: HeaderValue,
    fault: Option<Reason>,
    request: Request<Incoming>,
) -> Response<ResponseBody> {
    let aside = session.bytes().map(|bytes| &bytes.aside);
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
    let (mut begun, body) = match exchange.begin(request) {
        Ok(begun) => begun,
        Err(reply) => return exchange.reply(reply),
    };
    let taken = exchange.take(&mut begun, body).await;
    exchange.finish(begun, taken)
}

impl<'a> Exchange<'a> {
    /// What is fixed for everything in the stream.
    pub(super) fn arrival(&self) -> &'a Arrival {
        self.arrival
    }

    /// Everything up to the route. Nobody waits here, so that what was read has no place in what waits.
    fn begin(&self, request: Request<Incoming>) -> Result<(Begun<'a>, Incoming), Reply> {
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
        let begun = Begun {
            place,
            way,
            source: self.arrival.source_of(admitted.remote_ip),
            admitted,
        };
        Ok((begun, body))
    }

    /// What the client gets, of whoever answers.
    fn finish(&self, begun: Begun<'_>, taken: Result<Taken, Reply>) -> Response<ResponseBody> {
        let Begun {
            way,
            source,
            admitted,
            ..
        } = begun;
        match taken {
            Ok(Taken::Sent(mut answer, drawn, passed)) => {
                way.finish(Some(&drawn), answer.headers_mut());
                let open = Open {
                    front: self.arrival.front.clone(),
                    route: way.name().cloned(),
                    source: source.into_owned(),
                    destination: self.arrival.destination,
                    head: Some(admitted.head),
                    sni: None,
                    id: self.id.clone(),
                    hops: connect::hops(self.arrival),
                    passed,
                };
                // It ends when policies deny it while it is on its way.
                answer.map(|body| body.cut_by(Cut::of(self.record, open)))
            }
            // Answers of our own pass the rule's filters for answers, too.
            Ok(Taken::Own(mut answer)) => {
                way.finish(None, answer.headers_mut());
                answer
            }
            Err(reply) => {
                let mut answer = self.reply(reply);
                way.finish(None, answer.headers_mut());
                answer
            }
        }
    }

    /// Everything between route and answer.
    async fn take(&self, begun: &mut Begun<'_>, body: Incoming) -> Result<Taken, Reply> {
        let Begun {
            place,
            way,
            source,
            admitted,
        } = begun;
        if let Some(answer) = way.preflight(&admitted.head) {
            return Ok(Taken::Own(self.own(answer)));
        }
        let idle = place.snapshot.settings.limits.body_idle;
        let mut body = RequestBody::of(body, self.record, idle);
        let deadline = way.tries().deadline(&admitted.head, self.start);
        let policing = self.police(place, way, source, &mut admitted.head, &mut body);
        let passed = timed(self, &deadline, policing).await?;
        if let Some(policy) = &passed.delayed_by {
            self.record.ended_by(Reason::FaultDelay, Some(policy));
        }
        let port = self.arrival.destination.address.port();
        if let Some(answer) = way.redirect(&admitted.head, port)? {
            return Ok(Taken::Own(self.own(answer)));
        }
        let parent = way.parent(&place.port);
        let draws = Draws {
            exchange: self,
            place,
            way,
            asked: &admitted.head,
            source,
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
        let body = self.mirror(&draws, admitted, body);
        let sending = Sending {
            wants,
            ..self.sending(place, way.tries(), parent, deadline)
        };
        let mut answer = sending.run(&mut aim, body).await?;
        aim.passed().change_response(answer.headers_mut());
        let drawn = aim.drawn().clone();
        let passed = aim.let_pass(&draws);
        Ok(Taken::Sent(answer, drawn, passed))
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
        source: &Source,
        head: &mut RequestHead,
        body: &mut RequestBody,
    ) -> Result<Passed, Reply> {
        let route = way.name().map(|name| &**name);
        let (rules, of) = (place.port.policies_of(route), self.asking(place, source, route));
        let engine = &self.waypoint.policies;
        engine.judge(rules, &**self.waypoint, head, body, of).await
    }

    /// Whose security policies guard a backend that is not what was asked for. Where this waypoint does not stand in front
    /// of it, they are enforced by whoever does.
    pub(super) fn guarding<'p>(
        &self,
        place: &'p Place,
        backend: &Backend,
    ) -> Result<Option<&'p PortState>, Reply> {
        let BackendKey::Service(service, port) = &backend.key else {
            return Ok(None);
        };
        let of = FrontOf::Service(service.clone());
        let Some(front) = place.snapshot.front(&of).filter(|_| of != self.arrival.front) else {
            return Ok(None);
        };
        self.record.guarded_by(front, front.port(*port));
        policy::admit(front)?;
        Ok(front.port(*port).map(|port| &**port))
    }

    /// What the security policies say that guard a backend, with the same source.
    pub(super) async fn police_backend(
        &self,
        draws: &Draws<'_>,
        (key, port): (&BackendKey, &PortState),
        (head, body): (&mut RequestHead, &mut RequestBody),
        passed: &mut Passed,
    ) -> Result<(), Reply> {
        let engine = &self.waypoint.policies;
        let (rules, ask) = (port.policies_as_backend(), &**self.waypoint);
        let claims = passed.claims.clone();
        let mut of = self.asking(draws.place, draws.source, None);
        of.held.route = draws.way.name().map(|name| &**name);
        of.held.backend = Some(Behind {
            key,
            claims: claims.as_deref(),
        });
        engine.judge_security(rules, ask, head, body, of, passed).await
    }

    /// The id of the request.
    pub(super) fn id(&self) -> &'a HeaderValue {
        self.record.id()
    }

    /// What everything shares.
    pub(super) fn waypoint(&self) -> &'a Arc<Waypoint> {
        self.waypoint
    }

    fn asking<'s>(&'s self, place: &'s Place, source: &'s Source, route: Option<&'s str>) -> Asking<'s> {
        Asking {
            held: Held {
                view: &self.waypoint.view,
                by: &place.snapshot,
                front: &self.arrival.front,
                route,
                backend: None,
            },
            source,
            destination: self.arrival.destination,
            route,
            id: self.id.to_str().unwrap_or_default(),
            on_trial: self.record.on_trial(),
            hops: connect::hops(self.arrival),
        }
    }

    /// Reads a request into its canonical form.
    fn read(&self, parts: http::request::Parts, place: &Place) -> Result<Admitted, Reply> {
        let settings = &place.snapshot.settings;
        let is_http1 = parts.version < http::Version::HTTP_2;
        // Stands in for a host; nearly every request has one.
        let has_host = parts.uri.authority().is_some() || parts.headers.contains_key(http::header::HOST);
        let asked = Some(self.arrival.destination.address).filter(|_| !has_host);
        let authority = asked.map(|asked| asked.to_string()).unwrap_or_default();
        let terms = Terms {
            bounds: Bounds::of(&settings.limits),
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
        if !front.is_visible_from(&self.arrival.source) {
            return Err(Reason::NotVisible.into());
        }
        let port = front.port(self.arrival.destination.address.port());
        let (port, front) = (Arc::clone(port.ok_or(Reason::NotFronted)?), Arc::clone(front));
        Ok(Place {
            snapshot,
            front,
            port,
        })
    }

    fn reply(&self, reply: Reply) -> Response<ResponseBody> {
        let reason = reply.reason;
        self.waypoint.metrics.replied(reason);
        self.record.ended_by(reason, reply.because.as_ref());
        tracing::debug!(code = reason.code(), token = reason.token(), source = %self.arrival.peer, "local reply");
        let caller = Caller {
            grpc: self.grpc,
            id: &self.id,
            detail: self
                .waypoint
                .detail_for(&self.arrival.peer, self.arrival.is_gateway),
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
    let mut doing = pin!(doing);
    // Most of it waits for nobody, and needs no timer.
    if let Poll::Ready(done) = poll_fn(|cx| Poll::Ready(doing.as_mut().poll(cx))).await {
        return done;
    }
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
