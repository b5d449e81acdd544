//! What a security object means while it cannot be read: the strictest thing it could say, where it says it.

use super::{Key, Kind, Object};
use crate::api::mesh::Mode;
use crate::api::meta::Meta;
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
