//! One request, from its head to its answer: *sanitise → place → admit → route → filter → send → finish*.
//!
//! The order is fixed, whatever the order of what users wrote. Each phase is one call: it takes values, and either goes
//! on or ends the request with a [`Reply`].

use std::sync::Arc;

use http::{HeaderValue, Request, Response, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;
use tulle_model::request::Protocol;
use tulle_model::service::AppProtocol;
use tulle_model::{Reason, RequestHead};
use tulle_transport::hbone::Retry;

use super::body::{RequestBody, ResponseBody};
use super::outgoing::{REQUEST_ID, Told};
use super::pace::{Pace, Running};
use super::respond::{self, Caller, Reply};
use super::{canonical, outgoing};
use crate::context::Waypoint;
use crate::listener::arrival::Arrival;
use crate::policy;
use crate::policy::engine::{Asking, Passed};
use crate::policy::live::Open;
use crate::snapshot::{FrontState, PortState, Snapshot};
use crate::upstream::backend::{Backend, Endpoint};
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
        let mut head = canonical::read(parts, self.arrival.is_gateway)?;
        let place = self.place()?;
        policy::admit(&place.front)?;
        let backend = self.route(&place, &head)?;
        let mut body = RequestBody::of(body);
        let passed = self.police(&place, None, &mut head, &mut body).await?;
        let mut upstream = head.clone();
        passed.change_request(&mut upstream);
        let mut answer = self.send(&place, &backend, &upstream, body).await?;
        passed.change_response(answer.headers_mut());
        let open = Open {
            front: self.arrival.front.clone(),
            route: None,
            source: self.arrival.source.clone(),
            destination: self.arrival.destination,
            head: Some(head),
            claims: passed.claims,
            sni: None,
            rules: Arc::clone(place.port.policies_of(None)),
        };
        let (waypoint, id) = (Arc::clone(self.waypoint), self.id.clone());
        let cut = async move {
            let ended = open.ended(Arc::clone(&waypoint)).await;
            let reason = Reason::PolicyChanged;
            waypoint.metrics.replied(reason);
            tracing::info!(
                ?id,
                ?ended,
                code = reason.code(),
                token = reason.token(),
                "answer cut"
            );
        };
        Ok(answer.map(|body| body.cut_by(cut)))
    }

    /// What policies say of a request that takes this route: limits, tokens, authorizers, authorization, faults.
    async fn police(
        &self,
        place: &Place,
        route: Option<&str>,
        head: &mut RequestHead,
        body: &mut RequestBody,
    ) -> Result<Passed, Reply> {
        let of = Asking {
            source: &self.arrival.source,
            destination: self.arrival.destination,
            route,
            id: self.id.to_str().unwrap_or_default(),
        };
        let rules = place.port.policies_of(route);
        let engine = &self.waypoint.policies;
        engine.judge(rules, &**self.waypoint, head, body, of).await
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

    /// Where the request goes. Without routes, to what was asked for.
    fn route(&self, place: &Place, _head: &RequestHead) -> Result<Arc<Backend>, Reply> {
        if place.port.routes.is_empty() {
            return Ok(Arc::clone(&place.port.backend));
        }
        Err(Reason::BackendInvalid.into())
    }

    /// Tries endpoints until one answers, as long as no byte can have reached an application.
    async fn send(
        &self,
        place: &Place,
        backend: &Backend,
        head: &RequestHead,
        incoming: RequestBody,
    ) -> Result<Response<ResponseBody>, Reply> {
        let behalf = Behalf::of(self.arrival, &place.snapshot);
        let version = upstream_version(&place.port, head);
        let has_body = !incoming.is_end_stream();
        let mut body = Some(incoming);
        let (mut tried, mut last) = (Vec::new(), Reason::NoHealthyEndpoint);
        for attempt in 1..=TRIES_MAX {
            let Some(endpoint) = backend.pick(&tried) else {
                break;
            };
            let sending = match body.take() {
                Some(body) => body,
                None if !has_body => RequestBody::default(),
                None => break,
            };
            let told = Told {
                source: self.arrival.source.ip,
                id: &self.id,
                attempt,
            };
            let request = outgoing::write(head, version, sending, told)?;
            match self.attempt(&endpoint, &behalf, version, request).await {
                Ok(response) => return Ok(response),
                Err(failed) => {
                    last = failed.reason;
                    if !failed.again {
                        break;
                    }
                    body = failed.body;
                    if failed.elsewhere {
                        tried.push(endpoint.workload.uid.clone());
                    }
                }
            }
        }
        Err(last.into())
    }

    async fn attempt(
        &self,
        endpoint: &Arc<Endpoint>,
        behalf: &Behalf,
        version: Version,
        request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody>, Failed> {
        let Some(address) = endpoint.address(self.arrival.destination.address) else {
            return Err(Failed::unsent(Reason::NoHealthyEndpoint, request, true));
        };
        let in_flight = endpoint.begin();
        let key = Key {
            workload: endpoint.workload.uid.clone(),
            address,
            source: behalf.source.clone(),
            version,
        };
        let open = || connect::open(self.waypoint, endpoint, address, behalf);
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
                if parts.status == StatusCode::SWITCHING_PROTOCOLS {
                    return Err(answer(Reason::UpstreamProtocol));
                }
                respond::clean(&mut parts.headers).map_err(answer)?;
                parts.extensions.clear();
                let body = ResponseBody::upstream(body, lease, in_flight);
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
fn upstream_version(port: &PortState, head: &RequestHead) -> Version {
    match (port.protocol, head.protocol) {
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
