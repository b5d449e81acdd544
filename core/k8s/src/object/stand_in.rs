//! What a security object means while it cannot be read: the strictest thing it could say, where it says it.

use serde::de::DeserializeOwned;

use super::{Key, Kind, Object};
use crate::api::mesh::Mode;
use crate::api::meta::Meta;
use crate::api::route::{GrpcRule, HttpRule, RouteFilter, RouteObject, RouteSpec};
use crate::api::security::{LabelSelector, Mtls, MtlsMode, PolicyTargetRef, Unreadable};
use crate::api::traffic::TrafficTargetRef;
use crate::api::{AuthorizationPolicy, Mesh, PeerAuthentication, RequestAuthentication, TrafficPolicy};
use crate::document::Fault;
use crate::document::node::{Node, Value};
use crate::schema;

/// The stand-in for an object with these faults; `None` for kinds that restrict nothing by themselves.
pub(super) fn of(node: &Node, key: &Key, faults: &[Fault]) -> Option<Object> {
    let cause = faults
        .iter()
        .map(|fault| fault.cause.as_str())
        .collect::<Vec<_>>()
        .join("; ");
    match key.kind {
        Kind::AuthorizationPolicy => {
            let reach = reach(node);
            let mut policy = AuthorizationPolicy {
                metadata: meta(node, key),
                ..Default::default()
            };
            policy.spec.selector = reach.selector;
            policy.spec.target_refs = reach.target_refs;
            policy.unreadable = Some(Unreadable {
                cause,
                selector: reach.unreadable,
            });
            Some(Object::AuthorizationPolicy(policy))
        }
        Kind::PeerAuthentication => {
            let reach = reach(node);
            let mut policy = PeerAuthentication {
                metadata: meta(node, key),
                ..Default::default()
            };
            policy.spec.selector = reach.selector;
            policy.spec.mtls = Mtls {
                mode: MtlsMode::Strict,
            };
            policy.unreadable = Some(Unreadable {
                cause,
                selector: reach.unreadable,
            });
            Some(Object::PeerAuthentication(policy))
        }
        Kind::RequestAuthentication => {
            let reach = reach(node);
            let mut policy = RequestAuthentication {
                metadata: meta(node, key),
                ..Default::default()
            };
            policy.spec.selector = reach.selector;
            policy.spec.target_refs = reach.target_refs;
            policy.unreadable = Some(Unreadable {
                cause,
                selector: reach.unreadable,
            });
            Some(Object::RequestAuthentication(policy))
        }
        Kind::TrafficPolicy if asks_somebody(node, key.kind) => Some(traffic_policy(node, key, cause)),
        Kind::HttpRoute | Kind::GrpcRoute => route(node, key),
        Kind::Mesh => {
            let mut mesh = Mesh::default();
            mesh.metadata.name = key.name.clone();
            mesh.settings.mtls_mode = Some(Mode::Strict);
            mesh.unreadable = Some(Unreadable {
                cause,
                selector: false,
            });
            Some(Object::Mesh(mesh))
        }
        _ => None,
    }
}

/// Whether a traffic policy lets somebody decide about requests: then it restricts access.
pub(super) fn asks_somebody(node: &Node, kind: Kind) -> bool {
    let spec = node.field("spec").filter(|_| kind == Kind::TrafficPolicy);
    spec.is_some_and(|spec| spec.field("externalAuth").is_some())
}

/// A route that somebody is to decide about.
fn route(node: &Node, key: &Key) -> Option<Object> {
    let http = |matches, filters| HttpRule {
        matches,
        filters,
        ..HttpRule::default()
    };
    let grpc = |matches, filters| GrpcRule {
        matches,
        filters,
        ..GrpcRule::default()
    };
    match key.kind {
        Kind::HttpRoute => closed_route(node, key, http).map(Object::HttpRoute),
        _ => closed_route(node, key, grpc).map(Object::GrpcRoute),
    }
}

/// The filter by which a rule has somebody decide about its requests.
const ASKS: &str = "ExternalAuth";

/// Whether a rule is one of a stand-in: it asks somebody, and does not say whom. No rule that was read does that.
pub(super) fn is_closed(filters: &[RouteFilter]) -> bool {
    filters
        .iter()
        .any(|filter| &*filter.kind == ASKS && filter.external_auth.is_none())
}

/// A route of which the rules are left by which somebody is to decide, with what can be read of their matches: nobody can be
/// asked, so that what they match is answered with 500, and what no route matches with 404. `None` if there is no such rule.
fn closed_route<R: Default, M: DeserializeOwned>(
    node: &Node,
    key: &Key,
    rule: impl Fn(Vec<M>, Vec<RouteFilter>) -> R,
) -> Option<RouteObject<R>> {
    let spec = node.field("spec")?;
    let rules = items(spec.field("rules")).iter().filter(|rule| asks(rule));
    let closed = |of: &Node| {
        let asks = RouteFilter {
            kind: ASKS.into(),
            ..RouteFilter::default()
        };
        let matches = of.field("matches").and_then(|matches| matches.read().ok());
        rule(matches.unwrap_or_default(), vec![asks])
    };
    let rules: Vec<R> = rules.map(closed).collect();
    let parents = spec.field("parentRefs").and_then(|parents| parents.read().ok());
    let hostnames = spec.field("hostnames").and_then(|names| names.read().ok());
    let spec = RouteSpec {
        parent_refs: parents.unwrap_or_default(),
        hostnames: hostnames.unwrap_or_default(),
        rules,
    };
    (!spec.rules.is_empty()).then(|| RouteObject {
        metadata: meta(node, key),
        spec,
    })
}

/// Whether somebody is to decide about the requests of a rule, or about those to one of its backends.
fn asks(rule: &Node) -> bool {
    let asks = |of: &Node| {
        let mut filters = items(of.field("filters")).iter();
        filters.any(|filter| filter.text("type") == Some(ASKS) || filter.field("externalAuth").is_some())
    };
    asks(rule) || items(rule.field("backendRefs")).iter().any(asks)
}

fn items(node: Option<&Node>) -> &[Node] {
    match node.map(|node| &node.value) {
        Some(Value::Sequence(items)) => items,
        _ => &[],
    }
}

fn traffic_policy(node: &Node, key: &Key, cause: String) -> Object {
    let mut policy = TrafficPolicy {
        metadata: meta(node, key),
        ..TrafficPolicy::default()
    };
    let refs = node.field("spec").and_then(|spec| spec.field("targetRefs"));
    let read = refs.map(|refs| refs.read::<Vec<TrafficTargetRef>>().ok());
    let is_lost = read == Some(None);
    policy.spec.target_refs = read.flatten().unwrap_or_default();
    let mut targets = policy.spec.target_refs.iter();
    let selector = is_lost || !targets.all(|target| is_target(&target.kind, &target.group, &target.name));
    policy.unreadable = Some(Unreadable { cause, selector });
    Object::TrafficPolicy(policy)
}

/// What an object applies to, as far as that can be read.
#[derive(Default)]
struct Reach {
    selector: Option<LabelSelector>,
    target_refs: Vec<PolicyTargetRef>,
    /// It says what it applies to, and that cannot be read.
    unreadable: bool,
}

fn reach(node: &Node) -> Reach {
    let Some(spec) = node.field("spec") else {
        return Reach::default();
    };
    if !matches!(spec.value, Value::Mapping(_)) {
        return Reach {
            unreadable: true,
            ..Reach::default()
        };
    }
    let selector = spec.field("selector").map(|selector| {
        schema::is_known_selector(selector)
            .then(|| selector.read::<LabelSelector>().ok())
            .flatten()
    });
    let refs = spec
        .field("targetRefs")
        .map(|refs| refs.read::<Vec<PolicyTargetRef>>().ok());
    let single = spec
        .field("targetRef")
        .map(|of| of.read::<PolicyTargetRef>().ok());
    let is_lost = selector == Some(None) || refs == Some(None) || single == Some(None);
    let mut target_refs = refs.flatten().unwrap_or_default();
    target_refs.extend(single.flatten());
    let mut targets = target_refs.iter();
    let unreadable = is_lost || !targets.all(|target| is_target(&target.kind, &target.group, &target.name));
    Reach {
        selector: selector.flatten(),
        target_refs,
        unreadable,
    }
}

/// Whether this is something that a policy can be attached to: only then is it known what the policy protects.
fn is_target(kind: &str, group: &str, name: &str) -> bool {
    Kind::target(kind, group).is_some() && !name.is_empty()
}

/// The metadata if it can be read, else only what the object is called by.
fn meta(node: &Node, key: &Key) -> Meta {
    let read = node.field("metadata").and_then(|metadata| metadata.read().ok());
    Meta {
        name: key.name.clone(),
        namespace: key.namespace.clone(),
        ..read.unwrap_or_default()
    }
}
