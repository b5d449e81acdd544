//! One try: a connection that takes it, the request as it goes there, and the head of the answer.

use std::error::Error as _;
use std::sync::Arc;
use std::time::SystemTime;

use http::header::SEC_WEBSOCKET_KEY;
use http::{Request, Response};
use http_body::Body as _;
use hyper::body::Incoming;
use tulle_model::request::{Protocol, host};
use tulle_model::service::AppProtocol;
use tulle_model::{Reason, RequestHead};

use super::{Brought, Sending, State, overflow};
use crate::http::aim::Aim;
use crate::http::body::{RequestBody, ResponseBody};
use crate::http::hygiene::encode::{self, ClientCert, Telling};
use crate::http::hygiene::{self, Upgrade};
use crate::http::interim::{Hears, Interims};
use crate::http::record::Record;
use crate::http::respond::Reply;
use crate::http::{routing, upgrade};
use crate::upstream::cluster::Pick;
use crate::upstream::connect::{self, Behalf, To};
use crate::upstream::endpoint::Endpoint;
use crate::upstream::outcome::{Answer, Outcome, Unsent};
use crate::upstream::outside::{self, Wanted};
use crate::upstream::pool::{Bounds, Key, Lease, LeaseError, SendFailed, Version};
use crate::upstream::retry::{look_ahead, retry_after};
use crate::upstream::timeout as limits;

impl Sending<'_> {
    /// Tries an endpoint that was picked.
    ///
    /// # Errors
    /// The reply if the backend has as many connections as it may have, and as many requests wait for one.
    pub(super) async fn attempt(
        &self,
        state: &State,
        aim: &Aim<'_>,
        body: RequestBody,
        pick: &Pick,
    ) -> Result<Brought, Reply> {
        let (head, backend) = (aim.head(), &aim.drawn().backend);
        let failed = |outcome, reason| Ok(Brought::failed(outcome, reason));
        let endpoint = pick.endpoint();
        // This try is among them already.
        let before = state.tried.iter().filter(|one| Arc::ptr_eq(one, &endpoint.state));
        let wanted = Wanted {
            host: Some(host::without_port(&head.authority)),
            address: self.arrival.destination.address,
            tried: before.count().saturating_sub(1),
        };
        let found = outside::address(self.waypoint, self.snapshot, endpoint, wanted).await;
        let address = match found {
            Ok(place) => place.address,
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
        // Over HTTP/2 the word would not be heard, and a body that has begun is wanted already.
        let word = self.wants.word && version == Version::Http1 && !state.replay.has_started();
        let waiting = word.then(Interims::default);
        let request = match self.request(state, head, body, (version, endpoint), waiting.as_ref()) {
            Ok(request) => request,
            Err(reason) => return failed(Outcome::ClientGone, reason),
        };
        let tls = pick.cluster().tls_to(endpoint);
        let key = Key {
            workload: endpoint.workload.uid.clone(),
            address,
            expected: endpoint.proven(),
            source: connect::told_source(self.arrival, self.snapshot),
            hops: endpoint.counted(connect::hops(self.arrival)),
            version,
            tls: tls.map(|tls| Arc::clone(tls.policy())),
        };
        let bounds = Bounds {
            breaker: &pick.cluster().state().breaker,
            limits: pick.cluster().policy().limits,
        };
        // Boxed: most requests find a connection that is there.
        let open = || {
            Box::pin(async {
                let behalf = Behalf::of(self.arrival, self.snapshot);
                let to = To {
                    endpoint,
                    address,
                    tls,
                    speaks: Some(version),
                };
                connect::open(self.waypoint, to, &behalf, bounds.limits.connect).await
            })
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
        self.note(|record| record.sent_from(lease.local()));
        Ok(self.over(lease, (state, head, version), request, waiting).await)
    }

    /// Sends the request of a try over a connection, and reads the head of its answer.
    async fn over(
        &self,
        mut lease: Lease,
        (state, head, version): (&State, &RequestHead, Version),
        request: Request<RequestBody>,
        waiting: Option<Interims>,
    ) -> Brought {
        let broken = |reason| Brought::failed(Outcome::Malformed, reason);
        let asks = self.wants.upgrade.is_some();
        if asks && !lease.takes_upgrades().await {
            return broken(Reason::UpstreamProtocol);
        }
        let key = request.headers().get(SEC_WEBSOCKET_KEY).filter(|_| asks).cloned();
        let hears = Hears {
            aside: self.wants.aside.cloned(),
            body: waiting.clone(),
        };
        let error = match lease.send(request, hears).await {
            Ok(response) => {
                let asked = upgrade::Asked {
                    head,
                    key: key.as_ref(),
                    over: version,
                };
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
        waiting: Option<&Interims>,
    ) -> Result<Request<RequestBody>, Reason> {
        let told = self.snapshot.settings.forward_client_cert;
        let source = self.arrival.source.identity.as_ref().filter(|_| told);
        let names = source.map(|source| (source.to_string(), endpoint.workload.identity().to_string()));
        let telling = Telling {
            request_id: self.id,
            source: &self.arrival.told_ip,
            attempt: state.number,
            client_cert: names
                .as_ref()
                .map(|(source, destination)| ClientCert { source, destination }),
            upgrade: self.wants.upgrade,
            takes_trailers: self.wants.trailers,
            expects_continue: waiting.is_some(),
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
        let body = match waiting {
            Some(waiting) => RequestBody::gated(waiting.gate(body)),
            None => body,
        };
        Ok(Request::from_parts(parts, body))
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
