//! `/explain`: what would become of a request that nobody sent, by the functions that decide real ones, stage by stage.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::State;
use http::{HeaderName, HeaderValue, Request};
use serde::{Deserialize, Serialize};
use tulle_model::policy::Concern;
use tulle_model::policy::authz::{Action, Attributes, Authorizer, Verdict};
use tulle_model::request::Scheme;
use tulle_model::route::{Fate, Routes, Unmet};
use tulle_model::waypoint::FrontOf;
use tulle_model::{Identity, Reason, RequestHead, Str};
use tulle_transport::hbone::ConnectRequest;

use super::Pages;
use crate::context::Waypoint;
use crate::detect::{Declared, declared};
use crate::http::hygiene::{self, Bounds, Terms};
use crate::http::respond::Reply;
use crate::http::routing::{self, Way};
use crate::listener::arrival::{self, Arrival, Tunnel};
use crate::policy;
use crate::policy::engine::denied;
use crate::policy::jwt::cache::Cache;
use crate::policy::rules::Rules;
use crate::snapshot::{FrontState, PortState, Snapshot};
use crate::upstream::backend::{Backend, BackendKey};

/// Matches of routes that are told of beside the one that wins.
const MATCHES_MAX: usize = 20;

/// A request, or a stream without one.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Question {
    /// Who asks.
    pub source: Identity,
    /// From where.
    pub source_ip: IpAddr,
    /// What the tunnel is opened to, as the caller's proxy does.
    pub authority: String,
    /// The method; `GET` if absent.
    #[serde(default)]
    pub method: Option<String>,
    /// The path with its query; `/` if absent.
    #[serde(default)]
    pub path: Option<String>,
    /// Header fields.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
}

/// What would happen.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The waypoint, `<namespace>/<gateway>`.
    pub waypoint: String,
    /// Generation of its configuration.
    pub generation: u64,
    /// Its identity, which destinations see.
    pub identity: Identity,
    /// The stages in their order, up to the one that decides.
    pub steps: Vec<Step>,
    /// `allow`: it goes on to an endpoint; `reply`: the waypoint answers it, as it is told to; `deny`: it is refused.
    pub verdict: &'static str,
    /// Status of the waypoint's own answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Code and token of a refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The policy or route that decides, if one does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decided_by: Option<String>,
    /// Where it may go, by weight.
    pub backends: Vec<Share>,
}

/// One stage.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct Step {
    /// Its name.
    pub stage: &'static str,
    /// What comes of it.
    pub outcome: String,
    /// What was looked at besides, one line each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
}

/// A backend and its share.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct Share {
    /// Host name and port, or a workload's uid.
    pub backend: String,
    /// Its weight.
    pub weight: u32,
    /// Who serves it.
    pub endpoints: Vec<End>,
}

/// An endpoint of a backend.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct End {
    /// Uid of the workload.
    pub workload: String,
    /// Where connections go: address and port, or the name that is looked up and the port.
    pub address: String,
    /// Whether by a tunnel.
    pub tunnelled: bool,
    /// How it stands with it.
    pub state: &'static str,
}

/// How a request ends before it reaches an endpoint.
struct Ended {
    verdict: &'static str,
    status: u16,
    reason: Option<Reason>,
    by: Option<Str>,
}

impl Ended {
    fn refused(status: u16, reason: Reason, by: Option<Str>) -> Self {
        Self {
            verdict: "deny",
            status,
            reason: Some(reason),
            by,
        }
    }

    fn replied(status: u16, by: Option<Str>) -> Self {
        Self {
            verdict: "reply",
            status,
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
        status: ended.as_ref().map(|ended| ended.status),
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
    let (front, arrival) = arrive(snapshot, question, walk)?;
    let number = arrival.destination.address.port();
    let port = front.port(number).ok_or(Reason::NotFronted)?;
    let namespace = arrival
        .source
        .identity
        .as_ref()
        .map(|identity| &*identity.namespace);
    if matches!(declared(port, number, namespace), Declared::Tcp | Declared::Tls) {
        return stream(&front, port, &arrival, walk);
    }
    let head = read(snapshot, question, &arrival, walk)?;
    policy::admit(&front)?;
    let way = route(port, &arrival, &head, walk)?;
    if way.preflight(&head).is_some() {
        walk.step("cors", "a preflight is answered here");
        return Err(Ended::replied(204, way.name().map(Str::from)));
    }
    let rules = port.policies_of(way.name());
    judge(waypoint, snapshot, rules, &arrival, &head, walk).await?;
    if let Some(redirect) = way.redirect(&head, number)? {
        let to = redirect.headers().get(http::header::LOCATION);
        let to = to.and_then(|to| to.to_str().ok()).unwrap_or_default();
        walk.step("filters", format!("redirect to {to}"));
        return Err(Ended::replied(
            redirect.status().as_u16(),
            way.name().map(Str::from),
        ));
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

/// The request in its canonical form.
fn read(
    snapshot: &Snapshot,
    question: &Question,
    arrival: &Arrival,
    walk: &mut Walk,
) -> Result<RequestHead, Ended> {
    let authority = arrival.destination.address.to_string();
    let terms = Terms {
        bounds: Bounds::default(),
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
                Some(name) => name.to_owned(),
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

/// What policies say; what only counts or is drawn is named.
async fn judge(
    waypoint: &Waypoint,
    snapshot: &Snapshot,
    rules: &Rules,
    arrival: &Arrival,
    head: &RequestHead,
    walk: &mut Walk,
) -> Result<(), Ended> {
    for (policy, _) in &rules.limits {
        walk.step("limit", format!("counted by {policy}"));
    }
    let mut claims = None;
    if !rules.authentication.is_empty() {
        let mut head = head.clone();
        rules.authentication.strip(&mut head.headers);
        let (jwks, cache) = (&waypoint.policies.jwks, Cache::default());
        match rules
            .authentication
            .authenticate(&head, jwks, &cache, now())
            .await
        {
            Ok(authenticated) => {
                claims = authenticated.claims;
                let outcome = if claims.is_some() {
                    "the token is valid"
                } else {
                    "no token"
                };
                walk.step("token", outcome);
            }
            Err(failure) => {
                walk.step("token", failure.0.as_str());
                return Err(failure.reason().into());
            }
        }
    }
    let token = claims.as_deref().map(|claims| &claims.token);
    let attributes = Attributes::of_request(&arrival.source, arrival.destination, head, token);
    for (matched, provider) in rules.authorizer.asks(&attributes) {
        let provider = provider.map_or("nobody", |provider| provider);
        walk.step("authorizer", format!("{matched} asks {provider}"));
    }
    for (policy, _) in &rules.asked {
        walk.step("authorizer", format!("{policy} asks"));
    }
    authorize("policy", &rules.authorizer, &attributes, walk)?;
    if let Some((policy, _)) = &rules.global {
        walk.step("limit", format!("counted by the service that {policy} names"));
    }
    if let Some((policy, injector)) = &rules.fault {
        // The luckiest draw takes everything that is for this request at all.
        let drawn = injector.draw(&arrival.source, head, |_| 0);
        let outcome = if drawn.delay.is_some() || drawn.abort.is_some() {
            fault(snapshot, policy)
        } else {
            format!("{policy} is not for this request")
        };
        walk.step("fault", outcome);
    }
    Ok(())
}

fn authorize(
    stage: &'static str,
    authorizer: &Authorizer,
    of: &Attributes<'_>,
    walk: &mut Walk,
) -> Result<(), Ended> {
    let explained = authorizer.explain(of);
    let details = explained.policies.iter().map(|judged| {
        let (policy, dry) = (&judged.policy, if judged.dry_run { " (dry run)" } else { "" });
        let action = match judged.action {
            Some(Action::Allow) => "ALLOW",
            Some(Action::Deny) => "DENY",
            Some(Action::Audit) => "AUDIT",
            Some(Action::Custom) => "CUSTOM",
            None => "denies everything: it cannot be translated",
        };
        let matched = match (judged.matched, judged.failing.first()) {
            (Some(rule), _) => format!("rule[{rule}] matches"),
            (None, Some((rule, field))) => format!("no rule matches: rule[{rule}] fails at {field}"),
            (None, None) => "no rule matches".to_owned(),
        };
        format!("{action} {policy}{dry}: {matched}")
    });
    let details = details.collect();
    match explained.verdict {
        Verdict::Allow(because) => {
            let outcome = match because {
                tulle_model::policy::authz::Because::NoAllowPolicy => {
                    "allowed: no ALLOW policy applies".to_owned()
                }
                tulle_model::policy::authz::Because::Matched(matched) => format!("allowed by {matched}"),
            };
            walk.detailed(stage, outcome, details);
            Ok(())
        }
        Verdict::Deny(denial) => {
            walk.detailed(stage, format!("denied by {denial}"), details);
            Err(denied(&denial).into())
        }
    }
}

/// A fault in words: what it does, to how many.
fn fault(snapshot: &Snapshot, policy: &Str) -> String {
    let found = snapshot.mesh.waypoint_policy(policy);
    let Some(Concern::Fault(fault)) = found.map(|policy| &policy.concern) else {
        return policy.to_string();
    };
    let percent = |ppm: u32| f64::from(ppm) / 10_000.0;
    let mut parts = Vec::new();
    if let Some(delay) = fault.delay {
        parts.push(format!("{} % wait {delay:?}", percent(fault.delay_ppm)));
    }
    if let Some(abort) = &fault.abort {
        parts.push(format!(
            "{} % are answered with {abort:?}",
            percent(fault.abort_ppm)
        ));
    }
    format!("{}, by {policy}", parts.join(", "))
}

/// A stream that nobody reads.
fn stream(front: &FrontState, port: &PortState, arrival: &Arrival, walk: &mut Walk) -> Result<(), Ended> {
    policy::admit(front)?;
    walk.step("stream", "its bytes are not read");
    let rules = port.policies_of(None);
    let of = Attributes::of_stream(&arrival.source, arrival.destination, None);
    authorize("policy", &rules.authorizer, &of, walk)?;
    let number = arrival.destination.address.port();
    walk.backends.push(share(&port.backend, 1, number));
    Ok(())
}

/// Where it may go, and what policies of backends say that are not what was asked for.
fn onward(
    snapshot: &Snapshot,
    port: &PortState,
    way: &Way,
    arrival: &Arrival,
    head: &RequestHead,
    walk: &mut Walk,
) -> Result<(), Ended> {
    let number = arrival.destination.address.port();
    let Some(rule) = &way.rule else {
        walk.backends.push(share(&port.backend, 1, number));
        return usable(walk);
    };
    let weights = rule.route.backends.iter().map(|backend| backend.weight);
    let mut refused = None;
    for (weighted, weight) in rule.backends().iter().zip(weights) {
        let Some(backend) = weighted.backend.as_ref().filter(|_| weight > 0) else {
            continue;
        };
        if let Err(ended) = backend_policy(snapshot, backend, arrival, head, walk) {
            refused.get_or_insert(ended);
            continue;
        }
        walk.backends.push(share(backend, weight, number));
    }
    match refused.filter(|_| walk.backends.is_empty()) {
        Some(ended) => Err(ended),
        None => usable(walk),
    }
}

fn backend_policy(
    snapshot: &Snapshot,
    backend: &Backend,
    arrival: &Arrival,
    head: &RequestHead,
    walk: &mut Walk,
) -> Result<(), Ended> {
    let BackendKey::Service(service, port) = &backend.key else {
        return Ok(());
    };
    let of = FrontOf::Service(service.clone());
    let Some(front) = snapshot.front(&of).filter(|_| of != arrival.front) else {
        return Ok(());
    };
    policy::admit(front)?;
    let Some(port) = front.port(*port) else {
        return Ok(());
    };
    let attributes = Attributes::of_request(&arrival.source, arrival.destination, head, None);
    authorize(
        "backend",
        &port.policies_as_backend().authorizer,
        &attributes,
        walk,
    )
}

/// Somebody must be there to take it.
fn usable(walk: &mut Walk) -> Result<(), Ended> {
    let names = walk.backends.iter().map(|share| {
        let alive = share.endpoints.len();
        format!("{} weight {}, {alive} endpoints", share.backend, share.weight)
    });
    let details = names.collect();
    if walk.backends.is_empty() {
        walk.step("backend", "there is none that may be used");
        return Err(Reason::BackendInvalid.into());
    }
    let any = walk.backends.iter().any(|share| !share.endpoints.is_empty());
    walk.detailed("backend", if any { "found" } else { "nobody serves it" }, details);
    if any {
        Ok(())
    } else {
        Err(Reason::NoHealthyEndpoint.into())
    }
}

fn share(backend: &Backend, weight: u32, asked: u16) -> Share {
    let now = backend.now();
    let cluster = backend.cluster();
    let endpoints = cluster.iter().flat_map(|cluster| {
        let ends = cluster.endpoints().iter().filter_map(move |endpoint| {
            // A workload is reached on the port that is asked for.
            let port = endpoint.target_port.unwrap_or(asked);
            let address = match endpoint.workload.addresses.first() {
                Some(address) => SocketAddr::new(*address, port).to_string(),
                None if endpoint.is_named() => format!("{}:{port}", endpoint.workload.hostname),
                None => return None,
            };
            Some(End {
                workload: endpoint.workload.uid.to_string(),
                address,
                tunnelled: endpoint.is_tunnelled(),
                state: cluster.state_of(endpoint, now).as_str(),
            })
        });
        ends.collect::<Vec<_>>()
    });
    Share {
        backend: backend.key.told(),
        weight,
        endpoints: endpoints.collect(),
    }
}

/// Seconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
