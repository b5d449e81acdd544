//! One request, from its head to its answer: *sanitise → place → admit → route → filter → send → finish*.
//!
//! The order is fixed, whatever the order of what users wrote. Each phase is one call: it takes values, and either goes
//! on or ends the request with a [`Reply`].

use std::sync::Arc;

use http::{HeaderValue, Request, Response};
use http_body::Body as _;
use hyper::body::Incoming;
use tulle_model::request::{Protocol, Scheme};
use tulle_model::service::AppProtocol;
use tulle_model::waypoint::FrontOf;
use tulle_model::{Reason, RequestHead};
use tulle_transport::hbone::Retry;

use super::body::{RequestBody, ResponseBody};
use super::hygiene::encode::{self, REQUEST_ID, Telling};
use super::hygiene::{self, Admitted, Bounds, Terms};
use super::pace::{Pace, Running};
use super::respond::{self, Caller, Reply};
use super::routing::{self, Onward, Way};
use crate::context::Waypoint;
use crate::filter::mirror;
use crate::listener::arrival::Arrival;
use crate::policy;
use crate::policy::engine::{Asking, Passed};
use crate::policy::live::Open;
use crate::snapshot::{FrontState, PortState, Snapshot};
use crate::upstream::backend::{Backend, BackendKey};
use crate::upstream::cluster::{Ask, Pick};
use crate::upstream::connect::{self, Behalf};
use crate::upstream::pool::{Key, SendFailed, Version};

/// Tries where no byte of the request can have reached an application: one, and two more.
const TRIES_MAX: u32 = 3;
/// Longest id of a request that is kept as the client says it.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// The connection a request came in by. Clones share it.
#[derive(Debug, Clone)]
pub struct Session {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    waypoint: Arc<Waypoint>,
    arrival: Arrival,
    pace: Arc<Pace>,
}

impl Session {
    /// A connection inside of a stream that was let in.
    #[must_use]
    pub fn new(waypoint: Arc<Waypoint>, arrival: Arrival, pace: &Arc<Pace>) -> Self {
        Self {
            shared: Arc::new(Shared {
                waypoint,
                arrival,
                pace: Arc::clone(pace),
            }),
        }
    }

    /// What everything shares.
    #[must_use]
    pub fn waypoint(&self) -> &Arc<Waypoint> {
        &self.shared.waypoint
    }

    /// The stream it came in by.
    #[must_use]
    pub fn arrival(&self) -> &Arrival {
        &self.shared.arrival
    }

    /// Notes that the head of a request did not arrive in time.
    pub fn head_overdue(&self) {
        self.waypoint().metrics.replied(Reason::HeadTimeout);
        let source = &self.arrival().peer;
        tracing::info!(%source, code = Reason::HeadTimeout.code(), "a head did not arrive in time");
    }
}

/// What lives as long as a request and its answer.
#[derive(Debug)]
pub struct Ending {
    /// The connection is not idle until the answer has ended.
    _running: Running,
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
struct Exchange<'a> {
    waypoint: &'a Arc<Waypoint>,
    arrival: &'a Arrival,
    id: HeaderValue,
    grpc: bool,
}

/// Serves one request.
pub async fn exchange(session: Session, request: Request<Incoming>) -> Response<ResponseBody> {
    let ending = Ending {
        _running: session.shared.pace.request(),
    };
    let exchange = Exchange {
        waypoint: session.waypoint(),
        arrival: session.arrival(),
        id: request_id(request.headers().get(REQUEST_ID)),
        grpc: is_grpc(&request),
    };
    // Boxed: the state of a request is large, and idle connections have none.
    let answer = Box::pin(exchange.run(request)).await;
    let response = answer.unwrap_or_else(|reply| exchange.reply(reply));
    response.map(|body| body.ending_with(ending))
}

impl Exchange<'_> {
    async fn run(&self, request: Request<Incoming>) -> Result<Response<ResponseBody>, Reply> {
        let (parts, body) = request.into_parts();
        let place = self.place()?;
        let admitted = self.read(parts, &place)?;
        policy::admit(&place.front)?;
        let source = self.arrival.source.identity.as_ref();
        let namespace = source.map(|identity| &*identity.namespace);
        let way = routing::choose(&place.port.rules, namespace, &admitted.head)?;
        // Answers of our own pass the rule's filters for answers, too.
        match self.take(&place, &way, admitted, body).await {
            Ok((mut answer, onward)) => {
                way.finish(onward.as_ref(), answer.headers_mut());
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
    ) -> Result<(Response<ResponseBody>, Option<Onward>), Reply> {
        if let Some(answer) = way.preflight(&admitted.head) {
            return Ok((self.own(answer), None));
        }
        let mut body = RequestBody::of(body);
        let mut passed = self.police(place, way, &mut admitted.head, &mut body).await?;
        let port = self.arrival.destination.address.port();
        if let Some(answer) = way.redirect(&admitted.head, port)? {
            return Ok((self.own(answer), None));
        }
        let onward = way.onward(&place.port, &admitted.head)?;
        self.police_backend(
            place,
            &onward.backend,
            (&mut admitted.head, &mut body),
            &mut passed,
        )
        .await?;
        // Filters see what came; what policies change comes on top of what they make of it.
        let mut head = onward.head.as_ref().unwrap_or(&admitted.head).clone();
        passed.change_request(&mut head);
        let body = self.mirror(place, way, &head, &admitted, body);
        let mut answer = self
            .send(place, &onward.backend, &head, admitted.takes_trailers, body)
            .await?;
        passed.change_response(answer.headers_mut());
        let answer = self.watched(answer, place, way, admitted.head, passed);
        Ok((answer, Some(onward)))
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
    async fn police_backend(
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
            let mut reply = Reply::from(rejection.reason);
            if rejection.close && is_http1 {
                let close = HeaderValue::from_static("close");
                reply
                    .own
                    .get_or_insert_default()
                    .headers
                    .insert(http::header::CONNECTION, close);
            }
            reply
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

    /// Tries endpoints until one answers, as long as no byte can have reached an application.
    async fn send(
        &self,
        place: &Place,
        backend: &Backend,
        head: &RequestHead,
        takes_trailers: bool,
        body: RequestBody,
    ) -> Result<Response<ResponseBody>, Reply> {
        let version = upstream_version(routing::spoken(backend, place.port.protocol), head);
        let has_body = !body.is_end_stream();
        let mut body = Some(body);
        let (mut tried, mut last) = (Vec::new(), Reason::NoHealthyEndpoint);
        for attempt in 1..=TRIES_MAX {
            let ask = Ask {
                now: backend.now(),
                tried: &tried,
                address: Some(self.arrival.destination.address.ip()),
                ..Ask::default()
            };
            let Some(pick) = backend.pick(&ask) else {
                break;
            };
            let state = Arc::clone(&pick.endpoint().state);
            let sending = match body.take() {
                Some(body) => body,
                None if !has_body => RequestBody::default(),
                None => break,
            };
            let telling = Telling {
                request_id: &self.id,
                source_ip: self.arrival.source.ip,
                attempt,
                client_cert: None,
                upgrade: None,
                takes_trailers,
            };
            let written = match version {
                Version::Http1 => http::Version::HTTP_11,
                Version::Http2 => http::Version::HTTP_2,
            };
            let parts = encode::encode(head, &telling, written).map_err(|_| Reason::BadPath)?;
            let request = Request::from_parts(parts, sending);
            match self.attempt(place, pick, version, request).await {
                Ok(response) => return Ok(response),
                Err(failed) => {
                    last = failed.reason;
                    if !failed.again {
                        break;
                    }
                    body = failed.body;
                    if failed.elsewhere {
                        tried.push(state);
                    }
                }
            }
        }
        Err(last.into())
    }

    async fn attempt(
        &self,
        place: &Place,
        pick: Pick,
        version: Version,
        request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody>, Failed> {
        let endpoint = pick.endpoint();
        let Some(address) = endpoint.address(self.arrival.destination.address) else {
            return Err(Failed::unsent(Reason::NoHealthyEndpoint, request, true));
        };
        let key = Key {
            workload: endpoint.workload.uid.clone(),
            address,
            expected: endpoint.proven(),
            source: connect::told_source(self.arrival, &place.snapshot),
            version,
        };
        let open = || async {
            let behalf = Behalf::of(self.arrival, &place.snapshot);
            connect::open(self.waypoint, endpoint, address, &behalf).await
        };
        let mut lease = match self.waypoint.upstreams.http.lease(&key, open).await {
            Ok(lease) => lease,
            Err(error) => {
                tracing::debug!(%error, %address, "an endpoint was not reached");
                let again = error.retry() != Retry::Never;
                let failed = Failed::unsent(connect::reason(&error), request, true);
                return Err(Failed { again, ..failed });
            }
        };
        let empty = request.body().is_end_stream();
        match lease.send(request).await {
            Ok(response) => {
                let (mut parts, body) = response.into_parts();
                let answer = |reason| Failed::ended(reason);
                let connection = hygiene::answer::clean(&mut parts, false).map_err(answer)?;
                parts.extensions.clear();
                if connection == hygiene::answer::Connection::Close {
                    lease.spoil();
                }
                let body = ResponseBody::upstream(body, lease, pick);
                Ok(Response::from_parts(parts, body))
            }
            Err(SendFailed {
                unsent: Some(request),
                error,
            }) => {
                tracing::debug!(%error, %address, "a connection was gone before the request was sent");
                // A connection that waited may be gone; a fresh one to the same endpoint need not be.
                Err(Failed::unsent(Reason::UpstreamReset, *request, !lease.reused))
            }
            Err(SendFailed { unsent: None, error }) => {
                tracing::debug!(%error, %address, "no answer");
                let closed = error.is_incomplete_message() || error.is_closed() || error.is_canceled();
                let reason = if error.is_parse() {
                    Reason::UpstreamProtocol
                } else {
                    Reason::UpstreamReset
                };
                Err(Failed {
                    again: lease.reused && empty && closed && version == Version::Http1,
                    ..Failed::ended(reason)
                })
            }
        }
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
        if wanted.is_empty() {
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
            let (id, grpc, takes_trailers) = (self.id.clone(), self.grpc, admitted.takes_trailers);
            tulle_runtime::tasks::spawn("mirror", async move {
                let _permit = permit;
                let exchange = Exchange {
                    waypoint: &waypoint,
                    arrival: &arrival,
                    id,
                    grpc,
                };
                let copying = async {
                    let answer = exchange
                        .send(&place, &backend, &head, takes_trailers, copy)
                        .await?;
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
        tracing::debug!(code = reason.code(), token = reason.token(), source = %self.arrival.peer, "local reply");
        let caller = Caller {
            grpc: self.grpc,
            id: &self.id,
            detail: self.waypoint.config.reason_detail,
        };
        respond::reply(reply, caller)
    }
}

/// A try that failed.
struct Failed {
    reason: Reason,
    /// What was not sent.
    body: Option<RequestBody>,
    /// Whether another try may be made: nothing can have reached the application.
    again: bool,
    /// Whether the same endpoint would fail again.
    elsewhere: bool,
}

impl Failed {
    fn unsent(reason: Reason, request: Request<RequestBody>, elsewhere: bool) -> Self {
        Self {
            reason,
            body: Some(request.into_body()),
            again: true,
            elsewhere,
        }
    }

    fn ended(reason: Reason) -> Self {
        Self {
            reason,
            body: None,
            again: false,
            elsewhere: false,
        }
    }
}

/// What is declared for HTTP/2 is spoken to in HTTP/2; else what the client speaks. Never less.
fn upstream_version(declared: AppProtocol, head: &RequestHead) -> Version {
    match (declared, head.protocol) {
        (AppProtocol::Http2 | AppProtocol::Grpc, _) | (_, Protocol::Http2) => Version::Http2,
        (_, Protocol::Http10 | Protocol::Http11) => Version::Http1,
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
    given.filter(usable).cloned().unwrap_or_else(new_id)
}

/// A random UUID.
fn new_id() -> HeaderValue {
    let mut random: u128 = rand::random();
    // RFC 9562: version 4, variant 10.
    random = random & !(0xf << 76) | (0x4 << 76);
    random = random & !(0x3 << 62) | (0x2 << 62);
    let hex = format!("{random:032x}");
    let text = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-");
    HeaderValue::try_from(text).expect("hexadecimal digits and hyphens are a value")
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
