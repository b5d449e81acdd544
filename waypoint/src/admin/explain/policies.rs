//! What policies say of a request.

use std::time::{SystemTime, UNIX_EPOCH};

use tulle_model::policy::Concern;
use tulle_model::policy::authz::{Action, Attributes, Authorizer, Because, Verdict};
use tulle_model::{RequestHead, Str};

use super::{Ended, Walk};
use crate::context::Waypoint;
use crate::listener::arrival::Arrival;
use crate::policy::engine::denied;
use crate::policy::jwt::cache::Cache;
use crate::policy::rules::Rules;
use crate::snapshot::Snapshot;
use crate::upstream::connect;

/// What policies say; what only counts or is drawn is named.
pub(super) async fn judge(
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
        let hops = connect::hops(arrival);
        match rules
            .authentication
            .authenticate(&head, jwks, &cache, now(), hops)
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

/// What authorization policies say, one by one.
pub(super) fn authorize(
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
                Because::NoAllowPolicy => "allowed: no ALLOW policy applies".to_owned(),
                Because::Matched(matched) => format!("allowed by {matched}"),
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

/// Seconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
