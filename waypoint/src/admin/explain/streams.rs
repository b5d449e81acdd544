//! What becomes of a stream that nobody reads.

use tulle_model::Reason;
use tulle_model::policy::authz::Attributes;

use super::backends::spread;
use super::policies::authorize;
use super::{Ended, Walk};
use crate::detect::Greeting;
use crate::listener::arrival::Arrival;
use crate::policy;
use crate::policy::rules::Rules;
use crate::snapshot::{FrontState, PortState, Snapshot};
use crate::tcp::way;

/// The stages of a stream in their one order, as [`crate::tcp`] takes them.
pub(super) fn carry(
    snapshot: &Snapshot,
    (front, port): (&FrontState, &PortState),
    arrival: &Arrival,
    greeting: &Greeting,
    walk: &mut Walk,
) -> Result<(), Ended> {
    let name = greeting.server_name.as_deref();
    let said = match (greeting.is_tls, name) {
        (true, Some(name)) => format!("TLS for {name}, which is not opened"),
        (true, None) => "TLS that names no server, which is not opened".to_owned(),
        (false, _) => "its bytes are not read".to_owned(),
    };
    walk.step("stream", said);
    let namespace = arrival.source.identity.as_ref();
    let namespace = namespace.map(|identity| &*identity.namespace);
    let Ok(rule) = way::choose(&port.rules, namespace, greeting) else {
        walk.step("route", "there are routes, and none is for it");
        return Err(Reason::RouteNotFound.into());
    };
    let route = rule.map(|rule| &rule.name);
    let chosen = route.map_or("no route; on to the endpoints of the service", |name| name);
    walk.step("route", chosen);
    let of = Attributes::of_stream(&arrival.source, arrival.destination, name);
    let route = route.map(|name| &**name);
    judge("policy", (front, port.policies_of(route)), &of, walk)?;
    if let Some(broken) = rule.filter(|rule| rule.broken.is_some()) {
        walk.step("backend", "the rule can do nothing");
        let status = Reason::BackendInvalid.answer().status;
        let by = Some(broken.name.clone());
        return Err(Ended::refused(status, Reason::BackendInvalid, by));
    }
    let asked = arrival.destination.address.port();
    spread(rule, (&port.backend, asked), walk, |backend, walk| match snapshot
        .behind(&backend.key, &arrival.front)
    {
        Some((front, port)) => judge("backend", (front, port.policies_as_backend()), &of, walk),
        None => Ok(()),
    })
}

fn judge(
    stage: &'static str,
    (front, rules): (&FrontState, &Rules),
    of: &Attributes<'_>,
    walk: &mut Walk,
) -> Result<(), Ended> {
    policy::admit_unread(front, rules, of).map_err(|(reason, by)| {
        let because = match &by {
            Some(policy) if reason == Reason::PolicyPending => format!("{policy} has not arrived"),
            Some(policy) => format!("{policy} cannot be decided without reading it"),
            None => reason.help().to_owned(),
        };
        walk.step(stage, because);
        Ended::refused(reason.answer().status, reason, by)
    })?;
    authorize(stage, &rules.authorizer, of, walk)
}
