//! User policies into the policies that waypoints enforce: one concern each, with what it is attached to.

use std::collections::BTreeSet;
use std::sync::Arc;

use tulle_model::policy::{BackendTls, Concern, On, Policy, Target};
use tulle_model::route::{Kind, Origin};
use tulle_model::{NamespacedHostname, Str};

use self::targets::Refused;
use super::authorization;
use super::condition::{ACCEPTED, Condition, WAYPOINT_ACCEPTED};
use super::lookup::Lookup;
use super::route::{object_kind, origin_of};
use crate::api::TrafficPolicy;
use crate::{Key, Kind as ObjectKind, Object};

mod authz;
mod backend_tls;
mod jwt;
mod targets;
#[cfg(test)]
mod tests;
pub(in crate::translate) mod traffic;

/// A reference of a policy to what it is attached to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ref {
    /// Group.
    pub group: Str,
    /// Kind.
    pub kind: Str,
    /// Name.
    pub name: Str,
    /// Namespace, where one is written.
    pub namespace: Str,
    /// Rule of a route, or port of a service, by name.
    pub section: Str,
    /// Port of a service.
    pub port: Option<u16>,
}

impl Ref {
    /// As conditions call it.
    fn shown(&self) -> String {
        format!("{} {}", self.kind, self.name)
    }
}

/// What a policy refers to; empty for objects that waypoints do not enforce.
#[must_use]
pub fn refs(object: &Object) -> Vec<Ref> {
    let of_security = |target: &crate::api::security::PolicyTargetRef| Ref {
        group: target.group.clone(),
        kind: target.kind.clone(),
        name: target.name.clone(),
        namespace: target.namespace.clone(),
        section: "".into(),
        port: None,
    };
    let of_traffic = |target: &crate::api::traffic::TrafficTargetRef| Ref {
        group: target.group.clone(),
        kind: target.kind.clone(),
        name: target.name.clone(),
        namespace: "".into(),
        section: target.section_name.clone(),
        port: target.port,
    };
    match object {
        Object::AuthorizationPolicy(policy) if authorization::is_of_waypoints(policy) => {
            let all = policy.spec.target_refs.iter().chain(&policy.spec.target_ref);
            all.map(of_security).collect()
        }
        Object::RequestAuthentication(policy) => {
            let all = policy.spec.target_refs.iter().chain(&policy.spec.target_ref);
            all.map(of_security).collect()
        }
        Object::TrafficPolicy(policy) => policy.spec.target_refs.iter().map(of_traffic).collect(),
        Object::BackendTlsPolicy(policy) => policy.spec.target_refs.iter().map(of_traffic).collect(),
        _ => Vec::new(),
    }
}

/// Whether a traffic policy is for the whole mesh, if it stands in the root namespace.
#[must_use]
pub fn is_mesh_wide(policy: &TrafficPolicy) -> bool {
    policy.spec.target_refs.is_empty() && !authorization::is_lost(policy.unreadable.as_ref())
}

/// A translated policy.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Translated {
    /// Its concerns, one each.
    pub policies: Vec<Arc<Policy>>,
    /// The waypoints that are to enforce it, as `<namespace>/<gateway>`.
    pub waypoints: BTreeSet<Str>,
    /// Classes of which every waypoint is to.
    pub classes: BTreeSet<Str>,
    /// Every waypoint is to.
    pub everywhere: bool,
    /// What is said of it.
    pub conditions: Vec<Condition>,
}

/// What an object says: its concerns, and what could not be used of it.
struct Said {
    concerns: Vec<Concern>,
    /// Reason and message, if not all of it is used.
    flaw: Option<(&'static str, String)>,
}

/// What the references of a policy lead to.
#[derive(Default)]
struct Meant {
    targets: Vec<(Ref, Target)>,
    /// What was meant is a part of these that is not there; which, nobody knows.
    parts_lost: Vec<Target>,
}

/// Translates a policy. `rivals` are the other objects that are attached to one of its targets.
#[must_use]
pub fn policy(object: &Object, rivals: &[&Object], around: &impl Lookup) -> Translated {
    let Some(said) = said(object, around) else {
        return Translated::default();
    };
    let mut translated = Translated::default();
    let mut meant = Meant::default();
    let refs = refs(object);
    for reference in &refs {
        follow(reference, object, &said, &mut meant, &mut translated, around);
    }
    if refs.is_empty() {
        mesh_wide(object, &said, &mut meant, &mut translated, around);
    }
    for concern in said.concerns {
        say(object, concern, &meant, rivals, &mut translated, around);
    }
    translated
}

/// Follows a reference to what it leads to, and says whether a waypoint enforces the policy there.
fn follow(
    reference: &Ref,
    object: &Object,
    said: &Said,
    meant: &mut Meant,
    translated: &mut Translated,
    around: &impl Lookup,
) {
    let condition = condition_kind(object.kind());
    let told = match targets::resolve(reference, object.meta(), around) {
        Ok(found) => {
            let is_bound = targets::attach(&found, translated, around);
            let found = found.into_iter().map(|target| (reference.clone(), target));
            meant.targets.extend(found);
            judged(condition, said, is_bound)
        }
        Err(refused) => {
            let Refused {
                reason,
                mut message,
                whole,
            } = refused;
            let mut concerns = said.concerns.iter();
            let closing = concerns.find_map(|concern| meanwhile(concern, &reference.kind));
            if let Some(closing) = closing.filter(|_| !whole.is_empty()) {
                message.push_str(&closing);
                targets::attach(&whole, translated, around);
                for target in whole {
                    if !meant.parts_lost.contains(&target) {
                        meant.parts_lost.push(target);
                    }
                }
            }
            Condition::fails(condition, reason, message)
        }
    };
    translated.conditions.push(told.of(reference.shown()));
}

/// Adds what one concern says, on the targets where nothing stands against it.
fn say(
    object: &Object,
    concern: Concern,
    meant: &Meant,
    rivals: &[&Object],
    translated: &mut Translated,
    around: &impl Lookup,
) {
    let mut left = Vec::new();
    for (reference, target) in &meant.targets {
        let refused = if is_of_requests(&concern) && is_of_streams(target) {
            let message = format!(
                "a {} has no requests, for which {} is; attach that to an HTTPRoute, a GRPCRoute or the service",
                reference.kind,
                concern.as_str()
            );
            Some(("UnsupportedValue", message))
        } else {
            outranked(object, &concern, reference, rivals, around).map(|by| {
                let message =
                    format!("the older {by} says the same of this target, and wins; remove one of the two");
                ("Conflicted", message)
            })
        };
        match refused {
            None => left.push(target.clone()),
            Some((reason, message)) => {
                let told = Condition::fails(condition_kind(object.kind()), reason, message);
                translated.conditions.push(told.of(reference.shown()));
            }
        }
    }
    if concern.is_security() {
        left.extend(meant.parts_lost.iter().cloned());
    }
    if let Concern::BackendTls(tls) = &concern
        && !meant.parts_lost.is_empty()
    {
        let untrusting = untrusting(object, tls, &meant.parts_lost);
        translated.policies.push(Arc::new(untrusting));
    }
    if !left.is_empty() {
        translated.policies.push(Arc::new(Policy {
            object: object.kind().as_str().into(),
            origin: origin_of(Kind::Policy, object.meta()),
            targets: left,
            dry_run: is_dry_run(object),
            concern,
        }));
    }
}

/// Whether a concern of traffic means something for requests alone. One of security that cannot be judged on a stream
/// refuses it, and so is sent.
fn is_of_requests(concern: &Concern) -> bool {
    matches!(
        concern,
        Concern::Fault(_)
            | Concern::LocalRateLimit(_)
            | Concern::GlobalRateLimit(_)
            | Concern::RetryBudget(_)
            | Concern::Session(_)
    )
}

fn is_of_streams(target: &Target) -> bool {
    matches!(
        target.on,
        On::Route {
            kind: Kind::Tls | Kind::Tcp,
            ..
        }
    )
}

/// What holds on the whole of a target while the part that is meant is unknown; `None` for what may be left out.
fn meanwhile(concern: &Concern, kind: &str) -> Option<String> {
    match concern {
        Concern::BackendTls(_) => Some(format!(
            ". Until this is corrected, no endpoint of the {kind} is believed on any port that no other policy is for"
        )),
        concern if concern.is_security() => Some(format!(
            ". Until this is corrected, it holds for the whole {kind}"
        )),
        _ => None,
    }
}

/// The policy by which nobody is believed: what was to be spoken to over TLS is never spoken to in clear.
fn untrusting(object: &Object, tls: &BackendTls, targets: &[Target]) -> Policy {
    let meta = object.meta();
    let origin = origin_of(Kind::Policy, meta);
    Policy {
        object: object.kind().as_str().into(),
        origin: Origin {
            // No object of a user is called so.
            name: format!("tulle_part_unknown_{}", meta.name).into(),
            ..origin
        },
        targets: targets.to_vec(),
        dry_run: false,
        concern: Concern::BackendTls(backend_tls::untrusting(tls)),
    }
}

fn condition_kind(kind: ObjectKind) -> &'static str {
    if kind.is_security() {
        WAYPOINT_ACCEPTED
    } else {
        ACCEPTED
    }
}

fn is_dry_run(object: &Object) -> bool {
    match object {
        Object::AuthorizationPolicy(policy) => authorization::is_dry_run(policy),
        _ => false,
    }
}

fn said(object: &Object, around: &impl Lookup) -> Option<Said> {
    match object {
        Object::AuthorizationPolicy(policy) if authorization::is_of_waypoints(policy) => {
            Some(authz::said(policy, around))
        }
        Object::RequestAuthentication(policy) => {
            let targeted = !policy.spec.target_refs.is_empty() || policy.spec.target_ref.is_some();
            targeted.then(|| jwt::said(policy))
        }
        Object::TrafficPolicy(policy) => Some(traffic::said(policy, around)),
        Object::BackendTlsPolicy(policy) => Some(backend_tls::said(policy, around)),
        _ => None,
    }
}

fn unreadable(cause: &str) -> Said {
    let message = format!("{cause}; everything on its targets is denied until it is corrected");
    Said {
        concerns: vec![Concern::DenyAll(cause.into())],
        flaw: Some(("Invalid", message)),
    }
}

fn judged(kind: &'static str, said: &Said, is_bound: bool) -> Condition {
    if !is_bound {
        let message = "no waypoint that is ready enforces it here; give the target one with the label \
                       istio.io/use-waypoint. What only a waypoint can allow is denied until then";
        return Condition::fails(kind, "AncestorNotBound", message);
    }
    match &said.flaw {
        Some((reason, message)) => Condition::fails(kind, reason, message.clone()),
        None => Condition::holds(kind, "Accepted", "waypoints enforce it"),
    }
}

/// A traffic policy without targets holds for the whole mesh, if it stands in the root namespace.
fn mesh_wide(
    object: &Object,
    said: &Said,
    meant: &mut Meant,
    translated: &mut Translated,
    around: &impl Lookup,
) {
    if !matches!(object, Object::TrafficPolicy(policy) if is_mesh_wide(policy)) {
        return;
    }
    let root = &around.mesh().root_namespace;
    if object.meta().namespace != *root {
        let message = format!("it has no targetRefs; only in namespace {root} that is the whole mesh");
        translated
            .conditions
            .push(Condition::fails(ACCEPTED, "Invalid", message));
        return;
    }
    let target = Target {
        on: On::Mesh,
        port: None,
        section: None,
    };
    let is_bound = targets::attach(std::slice::from_ref(&target), translated, around);
    translated.conditions.push(judged(ACCEPTED, said, is_bound));
    meant.targets.push((whole_mesh(), target));
}

fn whole_mesh() -> Ref {
    Ref {
        group: "".into(),
        kind: "Mesh".into(),
        name: "".into(),
        namespace: "".into(),
        section: "".into(),
        port: None,
    }
}

/// The older policy of the same namespace that says the same of the same target. Security policies never override
/// each other.
fn outranked(
    object: &Object,
    concern: &Concern,
    reference: &Ref,
    rivals: &[&Object],
    around: &impl Lookup,
) -> Option<String> {
    if concern.is_security() {
        return None;
    }
    let own = object.meta().age();
    let same_place =
        |rival: &Object| rival.kind() == object.kind() && rival.meta().namespace == object.meta().namespace;
    let same_target = |rival: &Object| {
        let refs = refs(rival);
        if refs.is_empty() {
            *reference == whole_mesh()
        } else {
            refs.contains(reference)
        }
    };
    let same_concern = |rival: &Object| {
        let said = said(rival, around);
        said.is_some_and(|said| {
            said.concerns
                .iter()
                .any(|other| other.as_str() == concern.as_str())
        })
    };
    let mut older: Vec<&&Object> = rivals
        .iter()
        .filter(|rival| {
            same_place(rival) && rival.meta().age() < own && same_target(rival) && same_concern(rival)
        })
        .collect();
    older.sort_by_key(|rival| rival.meta().age());
    older.first().map(|rival| rival.key().to_string())
}

/// What stands in front of something, as far as policies are attached to it.
#[derive(Debug, Clone, Copy)]
pub struct Passed<'a> {
    /// The service, if it is one.
    pub service: Option<&'a NamespacedHostname>,
    /// The routes of the service.
    pub routes: &'a [Key],
    /// The waypoint, `<namespace>/<gateway>`.
    pub waypoint: &'a str,
    /// Class of its gateway.
    pub class: &'a str,
}

impl Passed<'_> {
    fn is_meant(&self, target: &Target) -> bool {
        match &target.on {
            On::Service(of) => Some(of) == self.service,
            On::Waypoint(of) => **of == *self.waypoint,
            On::Class(of) => **of == *self.class,
            On::Mesh => true,
            On::Route {
                kind,
                namespace,
                name,
            } => {
                let kind = object_kind(*kind);
                let is_it = |route: &Key| {
                    Some(route.kind) == kind && route.namespace == *namespace && route.name == *name
                };
                self.routes.iter().any(is_it)
            }
            On::Workload(_) => false,
        }
    }
}

/// The names of the policies that are needed before anything passes.
#[must_use]
pub fn required<'a>(translated: impl Iterator<Item = &'a Policy>, passed: Passed<'_>) -> Vec<Str> {
    let policies = translated.filter(|policy| {
        let mut targets = policy.targets.iter();
        policy.concern.is_security() && !policy.dry_run && targets.any(|target| passed.is_meant(target))
    });
    let names: BTreeSet<Str> = policies.map(Policy::name).collect();
    names.into_iter().collect()
}
