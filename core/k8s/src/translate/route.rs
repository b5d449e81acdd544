//! Routes of the Gateway API into the rules that waypoints follow.

use std::collections::BTreeSet;
use std::sync::Arc;

use tulle_model::Str;
use tulle_model::route::{Created, Kind, Match, Origin, Parent, Route};

use super::condition::{ACCEPTED, Condition, PARTIALLY_INVALID, PROGRAMMED, RESOLVED_REFS};
use super::lookup::Lookup;
use crate::api::Meta;
use crate::api::route::{BackendRef, ParentRef, RouteFilter};
use crate::{Key, Kind as ObjectKind, Object};

mod backends;
mod filters;
mod parents;
mod retry;
mod rules;
#[cfg(test)]
mod tests;

pub(super) use backends::Invalid;
pub use backends::{Referred, backend};
pub use filters::is_reserved;
pub(super) use rules::{http_match, session};

/// Errors that one condition tells of.
const ERRORS_MAX: usize = 16;

/// A route in the form that is common to its kinds.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Its kind.
    pub kind: Kind,
    /// Its metadata.
    pub meta: &'a Meta,
    /// What it is attached to.
    pub parents: &'a [ParentRef],
    /// Host names.
    pub hostnames: &'a [Str],
}

/// The facts of a route; `None` for any other object.
#[must_use]
pub fn facts(object: &Object) -> Option<Facts<'_>> {
    macro_rules! facts {
        ($kind:ident, $route:expr) => {
            Some(Facts {
                kind: Kind::$kind,
                meta: &$route.metadata,
                parents: &$route.spec.parent_refs,
                hostnames: &$route.spec.hostnames,
            })
        };
    }
    match object {
        Object::HttpRoute(route) => facts!(Http, route),
        Object::GrpcRoute(route) => facts!(Grpc, route),
        Object::TlsRoute(route) => facts!(Tls, route),
        Object::TcpRoute(route) => facts!(Tcp, route),
        _ => None,
    }
}

/// What a route refers to, beside its parents: backends, mirrors, those who are asked.
#[must_use]
pub fn backend_refs(object: &Object) -> Vec<&BackendRef> {
    fn of_filters(filters: &[RouteFilter]) -> impl Iterator<Item = &BackendRef> {
        filters.iter().flat_map(|filter| {
            let mirror = filter.request_mirror.as_ref().map(|mirror| &mirror.backend_ref);
            let asked = filter.external_auth.as_ref().map(|auth| &auth.backend_ref);
            mirror.into_iter().chain(asked)
        })
    }
    fn all<'a>(refs: &'a [BackendRef], filters: &'a [RouteFilter]) -> impl Iterator<Item = &'a BackendRef> {
        let nested = refs.iter().flat_map(|backend| of_filters(&backend.filters));
        refs.iter().chain(nested).chain(of_filters(filters))
    }
    match object {
        Object::HttpRoute(route) => {
            let rules = route.spec.rules.iter();
            rules
                .flat_map(|rule| all(&rule.backend_refs, &rule.filters))
                .collect()
        }
        Object::GrpcRoute(route) => {
            let rules = route.spec.rules.iter();
            rules
                .flat_map(|rule| all(&rule.backend_refs, &rule.filters))
                .collect()
        }
        Object::TlsRoute(route) | Object::TcpRoute(route) => route
            .spec
            .rules
            .iter()
            .flat_map(|rule| &rule.backend_refs)
            .collect(),
        _ => Vec::new(),
    }
}

/// The services that a route names as parents, by the objects that define them.
pub fn parents(object: &Object) -> impl Iterator<Item = Key> {
    let facts = facts(object).into_iter();
    facts.flat_map(|facts| {
        facts
            .parents
            .iter()
            .filter_map(move |parent| parents::key(parent, facts.meta))
    })
}

/// What the rules of a route are called.
pub fn rule_names(object: &Object) -> impl Iterator<Item = &Str> {
    let names: Vec<&Str> = match object {
        Object::HttpRoute(route) => route.spec.rules.iter().map(|rule| &rule.name).collect(),
        Object::GrpcRoute(route) => route.spec.rules.iter().map(|rule| &rule.name).collect(),
        Object::TlsRoute(route) | Object::TcpRoute(route) => {
            route.spec.rules.iter().map(|rule| &rule.name).collect()
        }
        _ => Vec::new(),
    };
    names.into_iter()
}

/// Whether waypoints that are ready follow a route: at each of its parents, and it has one.
#[must_use]
pub fn is_bound(object: &Object, around: &impl Lookup) -> bool {
    let Some(facts) = facts(object) else {
        return false;
    };
    let ours = |parent: &&ParentRef| parents::key(parent, facts.meta).is_some();
    let mut ours = facts.parents.iter().filter(ours).peekable();
    ours.peek().is_some() && ours.all(|parent| parents::is_bound(parent, facts.meta, around))
}

/// The rules of a route, by index, about whose requests somebody else is asked.
#[must_use]
pub fn asking(object: &Object) -> Vec<usize> {
    fn asks(filters: &[RouteFilter], backends: &[BackendRef]) -> bool {
        let of_backends = backends.iter().flat_map(|backend| &backend.filters);
        let mut all = filters.iter().chain(of_backends);
        all.any(|filter| &*filter.kind == "ExternalAuth" || filter.external_auth.is_some())
    }
    let asks: Vec<bool> = match object {
        Object::HttpRoute(route) => {
            let rules = route.spec.rules.iter();
            rules
                .map(|rule| asks(&rule.filters, &rule.backend_refs))
                .collect()
        }
        Object::GrpcRoute(route) => {
            let rules = route.spec.rules.iter();
            rules
                .map(|rule| asks(&rule.filters, &rule.backend_refs))
                .collect()
        }
        _ => Vec::new(),
    };
    let asking = asks.into_iter().enumerate().filter(|(_, asks)| *asks);
    asking.map(|(index, _)| index).collect()
}

/// The group that Services are of, however it is written.
#[must_use]
pub fn is_service(group: Option<&str>, kind: &str) -> bool {
    matches!(group, Some("" | "core")) && kind == "Service"
}

/// Whether a reference is to a ServiceEntry.
#[must_use]
pub fn is_service_entry(group: Option<&str>, kind: &str) -> bool {
    group == Some("networking.istio.io") && kind == "ServiceEntry"
}

/// Whether a parent is a gateway, which is also what one without group and kind is.
#[must_use]
pub fn is_gateway(parent: &ParentRef) -> bool {
    matches!(parent.group.as_deref(), None | Some("gateway.networking.k8s.io"))
        && matches!(&*parent.kind, "" | "Gateway")
}

/// A translated route.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Translated {
    /// Its rules, one each; none if no parent accepted it.
    pub routes: Vec<Arc<Route>>,
    /// The waypoints that are to follow it, as `<namespace>/<gateway>`.
    pub waypoints: BTreeSet<Str>,
    /// What is said of it.
    pub conditions: Vec<Condition>,
}

/// Translates a route. `rivals` are the other routes that name one of its parents.
#[must_use]
pub fn route(object: &Object, rivals: &[&Object], around: &impl Lookup) -> Translated {
    let Some(facts) = facts(object) else {
        return Translated::default();
    };
    let mut translated = Translated::default();
    let mut parents: Vec<Parent> = Vec::new();
    let rules = rules::rules(object, &facts, around);
    for parent in facts.parents {
        let Some(of) = parents::describe(parent, facts.meta) else {
            let waypoint = parents::waypoint(parent, facts.meta, around);
            translated.conditions.extend(waypoint.map(misattached));
            continue;
        };
        match parents::accept(&facts, parent, rivals, around) {
            Ok(accepted) => {
                translated.waypoints.extend(accepted.waypoints.iter().cloned());
                translated.conditions.push(accepted_condition(&rules).of(&of));
                if !accepted.is_bound {
                    translated.conditions.push(not_programmed().of(&of));
                }
                parents.extend(accepted.parents);
            }
            Err(refused) => {
                let condition = Condition::fails(ACCEPTED, refused.reason, refused.message);
                translated.conditions.push(condition.of(&of));
            }
        }
        translated.conditions.push(resolved(&rules).of(&of));
        translated
            .conditions
            .extend(partial(&rules).map(|condition| condition.of(&of)));
    }
    if !parents.is_empty() {
        let routes = rules.into_iter().enumerate().map(|(index, rule)| {
            Arc::new(Route {
                origin: origin(&facts, index, rule.name),
                parents: parents.clone(),
                ..rule.route
            })
        });
        translated.routes = routes.collect();
    }
    translated
}

fn origin(facts: &Facts<'_>, index: usize, rule_name: Str) -> Origin {
    Origin {
        rule_index: u32::try_from(index).unwrap_or(u32::MAX),
        rule_name,
        ..origin_of(facts.kind, facts.meta)
    }
}

/// Where something comes from, as its metadata says.
#[must_use]
pub fn origin_of(kind: Kind, meta: &Meta) -> Origin {
    Origin {
        kind,
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        rule_index: 0,
        rule_name: "".into(),
        created: meta.creation_timestamp.map(|time| Created {
            seconds: time.as_second(),
            nanos: time.subsec_nanosecond(),
        }),
        generation: meta.generation,
    }
}

/// A translated rule: a route without its place, and what could not be used of it.
struct RuleOf {
    name: Str,
    route: Route,
    unresolved: Vec<Invalid>,
}

impl RuleOf {
    /// Whether no request is served by it: it cannot be followed, or none of its matches can be read.
    fn is_useless(&self) -> bool {
        let matches = &self.route.matches;
        let never = !matches.is_empty() && matches.iter().all(|one| one.unreadable.is_some());
        never || self.route.error.is_some()
    }

    /// What cannot be followed of it, where it stands at this place.
    fn errors(&self, index: usize) -> Vec<String> {
        let of_match = |(number, one): (usize, &Match)| {
            let cause = one.unreadable.as_ref()?;
            let place = format!("rules[{index}].matches[{number}]");
            Some(format!(
                "{place}: {cause}; it matches no request until it is corrected"
            ))
        };
        let of_rule = self.route.error.iter();
        let of_rule = of_rule.map(|error| format!("rules[{index}]: {error}; requests that match it get 500"));
        let matches = self.route.matches.iter().enumerate();
        of_rule.chain(matches.filter_map(of_match)).collect()
    }
}

fn accepted_condition(rules: &[RuleOf]) -> Condition {
    if !rules.is_empty() && rules.iter().all(RuleOf::is_useless) {
        return Condition::fails(ACCEPTED, "UnsupportedValue", errors(rules));
    }
    Condition::holds(ACCEPTED, "Accepted", "the route is used")
}

fn partial(rules: &[RuleOf]) -> Option<Condition> {
    let errors = errors(rules);
    (!errors.is_empty() && !rules.iter().all(RuleOf::is_useless))
        .then(|| Condition::holds(PARTIALLY_INVALID, "UnsupportedValue", errors))
}

/// What cannot be followed of all of them, up to [`ERRORS_MAX`].
fn errors(rules: &[RuleOf]) -> String {
    let of = rules.iter().enumerate();
    let mut errors: Vec<String> = of.flat_map(|(index, rule)| rule.errors(index)).collect();
    errors.truncate(ERRORS_MAX);
    errors.join("; ")
}

fn resolved(rules: &[RuleOf]) -> Condition {
    let first = rules.iter().flat_map(|rule| &rule.unresolved).next();
    match first {
        None => Condition::holds(RESOLVED_REFS, "ResolvedRefs", "everything it refers to is there"),
        Some(invalid) => Condition::fails(RESOLVED_REFS, invalid.reason, invalid.message.clone()),
    }
}

fn misattached(waypoint: String) -> Condition {
    let message = "a waypoint follows the routes of the services behind it; name the Service as parent";
    Condition::fails(ACCEPTED, "InvalidKind", message).of(waypoint)
}

fn not_programmed() -> Condition {
    let message = "the parent has no waypoint that is ready, so that nothing follows the route; give it one with the \
                   label istio.io/use-waypoint";
    Condition::fails(PROGRAMMED, "AncestorNotBound", message)
}

/// The kind of object that a kind of route is made of.
#[must_use]
pub fn object_kind(kind: Kind) -> Option<ObjectKind> {
    match kind {
        Kind::Http => Some(ObjectKind::HttpRoute),
        Kind::Grpc => Some(ObjectKind::GrpcRoute),
        Kind::Tls => Some(ObjectKind::TlsRoute),
        Kind::Tcp => Some(ObjectKind::TcpRoute),
        Kind::Policy => None,
    }
}
