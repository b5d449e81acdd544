//! `/explain`: what would become of a request that nobody sent, by the functions that decide real ones, stage by stage.

mod backends;
mod policies;
mod streams;
mod told;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use http::{HeaderName, HeaderValue, Request};
use tulle_model::request::Scheme;
use tulle_model::route::{Fate, Routes, Unmet};
use tulle_model::{Reason, RequestHead, Str};
use tulle_transport::hbone::ConnectRequest;

use self::backends::onward;
use self::policies::judge;
use super::Pages;
use crate::context::Waypoint;
use crate::detect::{Declared, Greeting, declared};
use crate::http::hygiene::{self, Bounds, Terms};
use crate::http::respond::Reply;
use crate::http::routing::{self, Way};
use crate::listener::arrival::{self, Arrival, Tunnel};
use crate::policy;
use crate::snapshot::{FrontState, PortState, Snapshot};

pub use self::told::{End, Explanation, Question, Share, Step};

/// Matches of routes that are told of beside the one that wins.
const MATCHES_MAX: usize = 20;

/// How a request ends before it reaches an endpoint.
struct Ended {
    verdict: &'static str,
    /// `None` where there is nobody to answer: a stream is closed or reset.
    status: Option<u16>,
    reason: Option<Reason>,
    by: Option<Str>,
}

impl Ended {
    fn refused(status: u16, reason: Reason, by: Option<Str>) -> Self {
        Self {
            verdict: "deny",
            status: Some(status),
            reason: Some(reason),
            by,
        }
    }

    fn replied(status: u16, by: Option<Str>) -> Self {
        Self {
            verdict: "reply",
            status: Some(status),
            reason: None,
            by,
        }
    }
}

impl From<Reply> for Ended {
    fn from(reply: Reply) -> Self {
        let own = reply.own.and_then(|own| own.status);
        let status = own.map_or_else(|| reply.reason.answer().status, |status| status.as_u16());
        Self::refused(status, reply.reason, reply.because)
    }
}

impl From<Reason> for Ended {
    fn from(reason: Reason) -> Self {
        Reply::from(reason).into()
    }
}

/// What has been walked so far.
#[derive(Default)]
struct Walk {
    steps: Vec<Step>,
    backends: Vec<Share>,
}

impl Walk {
    fn step(&mut self, stage: &'static str, outcome: impl Into<String>) {
        self.detailed(stage, outcome, Vec::new());
    }

    fn detailed(&mut self, stage: &'static str, outcome: impl Into<String>, details: Vec<String>) {
        let outcome = outcome.into();
        self.steps.push(Step {
            stage,
            outcome,
            details,
        });
    }
}

pub(super) async fn answer(State(pages): State<Pages>, Json(question): Json<Question>) -> Json<Explanation> {
    Json(explain(&pages.waypoint, &question).await)
}

/// Explains a request. Nothing is counted, and nobody else is asked but for keys of tokens.
pub async fn explain(waypoint: &Waypoint, question: &Question) -> Explanation {
    let snapshot = waypoint.view.load();
    let mut walk = Walk::default();
    let ended = walk_through(waypoint, &snapshot, question, &mut walk).await.err();
    let reason = ended.as_ref().and_then(|ended| ended.reason);
    Explanation {
        waypoint: format!("{}/{}", waypoint.config.namespace, waypoint.config.gateway),
        generation: snapshot.mesh.generation(),
        identity: waypoint.identity.clone(),
        steps: walk.steps,
        verdict: ended.as_ref().map_or("allow", |ended| ended.verdict),
        status: ended.as_ref().and_then(|ended| ended.status),
        reason: reason.map(|reason| format!("{} {}", reason.code(), reason.token())),
        decided_by: ended.and_then(|ended| ended.by).map(|by| by.to_string()),
        backends: walk.backends,
    }
}

/// The stages of a request in their one order, as [`crate::http::exchange`] takes them.
async fn walk_through(
    waypoint: &Waypoint,
    snapshot: &Snapshot,
    question: &Question,
    walk: &mut Walk,
) -> Result<(), Ended> {
    let (front, mut arrival) = arrive(snapshot, question, walk)?;
    let number = arrival.destination.address.port();
    let port = front.port(number).ok_or(Reason::NotFronted)?;
    let namespace = arrival
        .source
        .identity
        .as_ref()
        .map(|identity| &*identity.namespace);
    let greeting = match declared(port, number, namespace) {
        Declared::Tcp => Some(Greeting::default()),
        Declared::Tls => Some(question.hello()),
        Declared::Unknown => question.server_name.as_ref().map(|_| question.hello()),
        Declared::Http => None,
    };
    if let Some(greeting) = greeting {
        let ended = |ended| Ended {
            status: None,
            ..ended
        };
        return streams::carry(snapshot, (&front, port), &arrival, &greeting, walk).map_err(ended);
    }
    let head = read(snapshot, question, &mut arrival, walk)?;
    policy::admit(&front)?;
    let way = route(port, &arrival, &head, walk)?;
    if way.preflight(&head).is_some() {
        walk.step("cors", "a preflight is answered here");
        return Err(Ended::replied(204, way.name().cloned()));
    }
    let rules = port.policies_of(way.name().map(|name| &**name));
    judge(waypoint, snapshot, rules, &arrival, &head, walk).await?;
    if let Some(redirect) = way.redirect(&head, number)? {
        let to = redirect.headers().get(http::header::LOCATION);
        let to = to.and_then(|to| to.to_str().ok()).unwrap_or_default();
        walk.step("filters", format!("redirect to {to}"));
        return Err(Ended::replied(redirect.status().as_u16(), way.name().cloned()));
    }
    onward(snapshot, port, &way, &arrival, &head, walk)
}

/// May the tunnel's stream come in.
fn arrive(
    snapshot: &Snapshot,
    question: &Question,
    walk: &mut Walk,
) -> Result<(Arc<FrontState>, Arrival), Ended> {
    let own = snapshot.own.addresses.first().copied();
    let tunnel = Tunnel {
        identity: question.source.clone(),
        peer: SocketAddr::new(question.source_ip, 0),
        local: SocketAddr::new(
            own.unwrap_or(question.source_ip),
            tulle_model::gateway::HBONE_PORT,
        ),
    };
    let request = ConnectRequest {
        authority: question.authority.clone(),
        ..ConnectRequest::default()
    };
    match arrival::judge(snapshot, &tunnel, &request) {
        Ok(found) => {
            walk.step(
                "tunnel",
                format!("{} is let in to {}", question.source, question.authority),
            );
            Ok((found.front, found.arrival))
        }
        Err(refused) => {
            walk.step("tunnel", refused.detail.clone());
            Err(Ended::refused(refused.status(), refused.reason, refused.policy))
        }
    }
}

/// The request in its canonical form. What a gateway says of its client becomes part of who asks.
fn read(
    snapshot: &Snapshot,
    question: &Question,
    arrival: &mut Arrival,
    walk: &mut Walk,
) -> Result<RequestHead, Ended> {
    let authority = arrival.destination.address.to_string();
    let terms = Terms {
        bounds: Bounds::of(&snapshot.settings.limits),
        paths: snapshot.settings.path_normalization,
        scheme: Scheme::Http,
        gateway: arrival.is_gateway,
        authority: &authority,
    };
    let named = question
        .headers
        .iter()
        .any(|(name, _)| name.eq_ignore_ascii_case("host"));
    let mut request = Request::builder()
        .method(question.method.as_deref().unwrap_or("GET"))
        .uri(question.path.as_deref().unwrap_or("/"));
    if !named {
        request = request.header(http::header::HOST, arrival.host.as_deref().unwrap_or(&authority));
    }
    for (name, value) in &question.headers {
        let name = HeaderName::try_from(name).map_err(|_| Reason::BadHeader)?;
        let value = HeaderValue::try_from(value).map_err(|_| Reason::BadHeader)?;
        request = request.header(name, value);
    }
    let (parts, ()) = request.body(()).map_err(|_| Reason::BadPath)?.into_parts();
    match hygiene::admit(parts, &terms) {
        Ok(admitted) => {
            arrival.source = arrival.source_of(admitted.remote_ip).into_owned();
            let head = admitted.head;
            walk.step(
                "request",
                format!("{} {}{}", head.method, head.authority, head.path),
            );
            Ok(head)
        }
        Err(rejection) => {
            walk.step("request", rejection.reason.help());
            Err(rejection.reason.into())
        }
    }
}

/// Which rule it takes, and why the others do not get it.
fn route(port: &PortState, arrival: &Arrival, head: &RequestHead, walk: &mut Walk) -> Result<Way, Ended> {
    let namespace = arrival
        .source
        .identity
        .as_ref()
        .map(|identity| &*identity.namespace);
    let mut details = Vec::new();
    if let Routes::Http(router) = port.rules.of(namespace) {
        for one in router.explain(head) {
            let fate = match one.fate {
                Fate::Wins => continue,
                Fate::Loses(because) => format!("matches and loses: the winner {}", because.as_str()),
                Fate::Misses(unmet) => format!("does not match: {}", told(&unmet)),
            };
            details.push(format!("{} match {}: {fate}", one.rule.name, one.matched));
        }
        details.truncate(MATCHES_MAX);
    }
    match routing::choose(&port.rules, namespace, head) {
        Ok(way) => {
            let outcome = match way.name() {
                Some(name) => name.to_string(),
                None => "no route; on to the endpoints of the service".to_owned(),
            };
            walk.detailed("route", outcome, details);
            Ok(way)
        }
        Err(reason) => {
            walk.detailed("route", "there are routes, and none matches", details);
            Err(reason.into())
        }
    }
}

fn told(unmet: &Unmet) -> String {
    match unmet {
        Unmet::Path => "another path".to_owned(),
        Unmet::Method => "another method".to_owned(),
        Unmet::Header(name) => format!("header {name}"),
        Unmet::Query(name) => format!("parameter {name}"),
    }
}
