//! Who may do what: tokens, authorizers, authorization, limits, faults.

pub mod ask;
pub mod carry;
pub mod engine;
pub mod ext_authz;
pub mod fault;
pub mod jwt;
pub mod limit;
pub mod live;
pub mod metrics;
pub mod rules;

use std::sync::atomic::AtomicBool;

use tulle_model::policy::authz::Attributes;
use tulle_model::{Reason, Str};

use crate::context::Waypoint;
use crate::listener::arrival::Arrival;
use crate::policy::rules::Rules;
use crate::snapshot::FrontState;

/// Whether anything may pass a front at all.
///
/// # Errors
/// `policy_pending` while a policy that the front needs has not arrived.
pub fn admit(front: &FrontState) -> Result<(), Reason> {
    if front.missing.is_empty() {
        Ok(())
    } else {
        Err(Reason::PolicyPending)
    }
}

/// Whether a stream that is not read may pass a front at all, and needs nobody to be asked about it.
///
/// # Errors
/// Why not, and which policy says so. What can only be told of a request refuses.
pub fn admit_unread(
    front: &FrontState,
    rules: &Rules,
    of: &Attributes<'_>,
) -> Result<(), (Reason, Option<Str>)> {
    admit(front).map_err(|reason| (reason, front.missing.first().cloned()))?;
    if let Some((matched, _)) = rules.authorizer.asks(of).next() {
        return Err((Reason::PolicyDenied, Some(matched.policy)));
    }
    rules
        .ask_nobody()
        .map_err(|(reason, policy)| (reason, Some(policy)))
}

/// Whether a stream that is not read may pass. `on_trial` is set where a policy on trial would have refused it.
///
/// # Errors
/// Why not, and which policy decides, if one does. What can only be told of a request refuses.
pub fn admit_stream(
    waypoint: &Waypoint,
    (front, rules): (&FrontState, &Rules),
    arrival: &Arrival,
    sni: Option<&str>,
    on_trial: &AtomicBool,
) -> Result<(), (Reason, Option<Str>)> {
    let of = Attributes::of_stream(&arrival.source, arrival.destination, sni);
    admit_unread(front, rules, &of)?;
    let judged = waypoint.policies.authorize(rules, &of, on_trial);
    judged.map_err(|denial| (denial.reason(), denial.policy().cloned()))
}
