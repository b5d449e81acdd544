//! `AuthorizationPolicy` into the policy that node proxies evaluate.
//!
//! Node proxies see connections, not requests. What they cannot evaluate is decided against access: an ALLOW rule
//! that needs it cannot match, a DENY rule matches without it.

use tulle_model::Str;
use tulle_model::authz::policy::{Action, Authorization, Rule, Scope};

use super::MeshConfig;
use super::condition::{Condition, Status, ZTUNNEL_ACCEPTED};
use crate::api::meta::Labels;
use crate::api::security::{LabelSelector, Unreadable};
use crate::api::{AuthorizationPolicy, Meta, RequestAuthentication, TrafficPolicy};

mod rule;
#[cfg(test)]
mod tests;
pub(in crate::translate) mod values;

/// Annotation of policies that are evaluated and not enforced.
const DRY_RUN: &str = "istio.io/dry-run";

/// What an action becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    Allow,
    Deny,
    /// `CUSTOM`, which only a waypoint can do: it denies.
    Custom,
    /// `AUDIT`, which never changes a verdict.
    Audit,
}

/// Translates a policy; `None` where node proxies have nothing to enforce.
#[must_use]
pub fn authorization(
    policy: &AuthorizationPolicy,
    mesh: &MeshConfig,
) -> (Option<Authorization>, Vec<Condition>) {
    if has_only_targets(policy) {
        return (None, Vec::new());
    }
    let effect = match effect_of(policy) {
        Ok(effect) => effect,
        Err(cause) => return deny_all(policy, mesh, &cause),
    };
    match effect {
        Effect::Audit => {
            let message = "AUDIT is not carried out; the policy changes no verdict";
            (
                None,
                vec![Condition::fails(ZTUNNEL_ACCEPTED, "UnsupportedValue", message)],
            )
        }
        effect => {
            let (rules, condition) = rules(policy, mesh, effect);
            let action = if effect == Effect::Allow {
                Action::Allow
            } else {
                Action::Deny
            };
            (Some(emitted(policy, mesh, action, rules)), vec![condition])
        }
    }
}

/// Whether a policy is attached to objects, and so enforced by their waypoints.
#[must_use]
pub fn has_targets(policy: &AuthorizationPolicy) -> bool {
    policy.spec.target_ref.is_some() || !policy.spec.target_refs.is_empty()
}

/// The labels a policy selects by, if it selects.
#[must_use]
pub fn selector(policy: &AuthorizationPolicy) -> Option<&Labels> {
    LabelSelector::labels(policy.spec.selector.as_ref())
}

/// Whether a policy reaches node proxies under its own name.
#[must_use]
pub fn is_emitted(policy: &AuthorizationPolicy) -> bool {
    let audits = &*policy.spec.action == "AUDIT" && policy.unreadable.is_none() && !has_targets(policy);
    !has_only_targets(policy) && !audits
}

/// Whether a policy is the business of waypoints. One that also names what cannot be read is that of node proxies, too.
#[must_use]
pub fn is_of_waypoints(policy: &AuthorizationPolicy) -> bool {
    has_targets(policy) && selector(policy).is_none()
}

/// Whether a policy is the business of waypoints alone.
#[must_use]
pub fn has_only_targets(policy: &AuthorizationPolicy) -> bool {
    is_of_waypoints(policy) && !is_lost(policy.unreadable.as_ref())
}

/// Whether it is not known what an object applies to: then that is its whole namespace.
#[must_use]
pub fn is_lost(unreadable: Option<&Unreadable>) -> bool {
    unreadable.is_some_and(|unreadable| unreadable.selector)
}

/// Whether a policy is evaluated and not enforced.
#[must_use]
pub fn is_dry_run(policy: &AuthorizationPolicy) -> bool {
    policy.metadata.annotation(DRY_RUN) == Some("true")
}

/// What a policy applies to.
#[must_use]
pub fn scope(policy: &AuthorizationPolicy, mesh: &MeshConfig) -> Scope {
    let unreadable_selector = is_lost(policy.unreadable.as_ref());
    if selector(policy).is_some() {
        Scope::WorkloadSelector
    } else if policy.metadata.namespace == mesh.root_namespace && !unreadable_selector {
        Scope::Global
    } else {
        Scope::Namespace
    }
}

/// The policy that denies what a `RequestAuthentication` selects, if that cannot be read and names no targets.
#[must_use]
pub fn stand_in_for(policy: &RequestAuthentication) -> Option<AuthorizationPolicy> {
    let unreadable = policy.unreadable.as_ref()?;
    let targeted = !policy.spec.target_refs.is_empty() || policy.spec.target_ref.is_some();
    if targeted && !unreadable.selector {
        return None;
    }
    let name = stand_in_name(&policy.metadata.name);
    Some(stand_in(
        name,
        &policy.metadata,
        policy.spec.selector.as_ref(),
        unreadable,
    ))
}

/// The policy that denies the namespace of a `TrafficPolicy` by which somebody decides, if its targets cannot be read.
#[must_use]
pub fn stand_in_for_traffic(policy: &TrafficPolicy) -> Option<AuthorizationPolicy> {
    let unreadable = policy.unreadable.as_ref().filter(|of| of.selector)?;
    let name = format!("tulle_traffic_policy_{}", policy.metadata.name).into();
    Some(stand_in(name, &policy.metadata, None, unreadable))
}

fn stand_in(
    name: Str,
    of: &Meta,
    selector: Option<&LabelSelector>,
    unreadable: &Unreadable,
) -> AuthorizationPolicy {
    let mut stand_in = AuthorizationPolicy {
        metadata: Meta { name, ..of.clone() },
        unreadable: Some(unreadable.clone()),
        ..AuthorizationPolicy::default()
    };
    stand_in.spec.selector = selector.cloned();
    stand_in
}

/// The name of such a policy; no object of a user is called so.
#[must_use]
pub fn stand_in_name(name: &str) -> Str {
    format!("tulle_request_authentication_{name}").into()
}

fn effect_of(policy: &AuthorizationPolicy) -> Result<Effect, String> {
    if let Some(unreadable) = &policy.unreadable {
        return Err(unreadable.cause.clone());
    }
    if has_targets(policy) {
        return Err("it has both a selector and targetRefs".to_owned());
    }
    match &*policy.spec.action {
        "" | "ALLOW" => Ok(Effect::Allow),
        "DENY" => Ok(Effect::Deny),
        "CUSTOM" => Ok(Effect::Custom),
        "AUDIT" => Ok(Effect::Audit),
        other => Err(format!("`{}` is no action", other.escape_default())),
    }
}

/// The policy that stands where none can be made of the object.
fn deny_all(
    policy: &AuthorizationPolicy,
    mesh: &MeshConfig,
    cause: &str,
) -> (Option<Authorization>, Vec<Condition>) {
    let mut denial = emitted(policy, mesh, Action::Deny, vec![Rule::default()]);
    denial.untranslatable = true;
    let message = format!("{cause}; everything it selects is denied until the policy is corrected");
    (
        Some(denial),
        vec![Condition::fails(ZTUNNEL_ACCEPTED, "Invalid", message)],
    )
}

fn emitted(
    policy: &AuthorizationPolicy,
    mesh: &MeshConfig,
    action: Action,
    rules: Vec<Rule>,
) -> Authorization {
    Authorization {
        name: policy.metadata.name.clone(),
        namespace: policy.metadata.namespace.clone(),
        scope: scope(policy, mesh),
        action,
        rules,
        dry_run: is_dry_run(policy),
        untranslatable: false,
        match_peer: false,
    }
}

/// Translates the rules and says what had to be decided against access.
fn rules(policy: &AuthorizationPolicy, mesh: &MeshConfig, effect: Effect) -> (Vec<Rule>, Condition) {
    let context = values::Context {
        mesh,
        namespace: &policy.metadata.namespace,
    };
    let mut rules = Vec::new();
    let mut unknown = Vec::new();
    for (index, rule) in policy.spec.rules.iter().enumerate() {
        let translated = rule::translate(rule, &context);
        if translated.unknown.is_empty() || effect != Effect::Allow {
            rules.push(translated.rule);
        }
        unknown.extend(
            translated
                .unknown
                .into_iter()
                .map(|what| format!("rules[{index}].{what}")),
        );
    }
    let condition = match judge(effect, unknown.join(", "), rules.is_empty()) {
        holds if holds.status == Status::True && is_dry_run(policy) => Condition::holds(
            ZTUNNEL_ACCEPTED,
            "Accepted",
            "node proxies judge by the policy and refuse nobody",
        ),
        condition => condition,
    };
    (rules, condition)
}

fn judge(effect: Effect, unknown: String, nothing_left: bool) -> Condition {
    match (effect, unknown.is_empty()) {
        (Effect::Custom, _) => {
            let message = "CUSTOM needs a waypoint; the policy denies what it matches: use targetRefs";
            Condition::fails(ZTUNNEL_ACCEPTED, "UnsupportedValue", message)
        }
        (_, true) => Condition::holds(ZTUNNEL_ACCEPTED, "Accepted", "node proxies enforce the policy"),
        (Effect::Allow, false) if nothing_left => {
            let message = format!(
                "node proxies cannot evaluate {unknown}; no rule is left, so nothing is allowed: use targetRefs"
            );
            Condition::fails(ZTUNNEL_ACCEPTED, "Invalid", message)
        }
        (Effect::Allow, false) => {
            let message =
                format!("node proxies cannot evaluate {unknown}; these rules allow nothing: use targetRefs");
            Condition::fails(ZTUNNEL_ACCEPTED, "PartiallyInvalid", message)
        }
        (_, false) => {
            let message = format!(
                "node proxies cannot evaluate {unknown}; these rules deny more than they say (T0206): use targetRefs"
            );
            Condition::fails(ZTUNNEL_ACCEPTED, "PartiallyInvalid", message)
        }
    }
}
