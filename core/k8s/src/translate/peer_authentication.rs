//! `PeerAuthentication` into policies that refuse callers without an identity.
//!
//! The mode of a workload's port is the first one set of: that port in the policy that selects the workload, that
//! policy, the namespace's policy, the root namespace's policy, the mesh.

use std::collections::BTreeMap;

use tulle_model::authz::policy::{Action, Authorization, Clause, Match, Rule, Scope, StringMatch};
use tulle_model::{NamespacedName, Str};

use super::MeshConfig;
use super::condition::{Condition, ZTUNNEL_ACCEPTED};
use crate::api::PeerAuthentication;
use crate::api::meta::Labels;
use crate::api::security::{LabelSelector, MtlsMode};

/// Name of the policy, in the root namespace, that refuses every caller without an identity.
pub const STATIC_STRICT: &str = "istio_converted_static_strict";

/// Whether a caller must have an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// No.
    Permissive,
    /// Yes.
    Strict,
}

/// The policies that hold for a whole namespace, oldest first chosen.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wider<'a> {
    /// Of the namespace.
    pub namespace: Option<&'a PeerAuthentication>,
    /// Of the root namespace.
    pub root: Option<&'a PeerAuthentication>,
}

/// The labels a policy selects by, if it selects.
#[must_use]
pub fn selector(policy: &PeerAuthentication) -> Option<&Labels> {
    LabelSelector::labels(policy.spec.selector.as_ref())
}

/// The one of several policies that counts: a stand-in first, then the oldest, then by name.
#[must_use]
pub fn oldest<'a>(policies: impl Iterator<Item = &'a PeerAuthentication>) -> Option<&'a PeerAuthentication> {
    policies.min_by_key(|policy| (policy.unreadable.is_none(), policy.metadata.age()))
}

/// Whether a policy without selector reaches the whole mesh from the root namespace.
#[must_use]
pub fn is_mesh_wide(policy: &PeerAuthentication, mesh: &MeshConfig) -> bool {
    policy.metadata.namespace == mesh.root_namespace
        && selector(policy).is_none()
        && !policy
            .unreadable
            .as_ref()
            .is_some_and(|unreadable| unreadable.selector)
}

/// The mode of the ports that the selecting policy does not list.
#[must_use]
pub fn base_mode(selecting: Option<&PeerAuthentication>, wider: Wider<'_>, mesh: &MeshConfig) -> Mode {
    let policies = [selecting, wider.namespace, wider.root];
    let modes = policies
        .into_iter()
        .flatten()
        .map(|policy| policy.spec.mtls.mode)
        .chain([mesh.mtls_mode]);
    modes.into_iter().find_map(as_mode).unwrap_or(Mode::Permissive)
}

/// The mode of one port; the definition that everything emitted must agree with.
#[must_use]
pub fn mode(selecting: Option<&PeerAuthentication>, wider: Wider<'_>, mesh: &MeshConfig, port: u16) -> Mode {
    let listed = selecting.and_then(|policy| policy.spec.port_level_mtls.get(&port));
    let listed = listed.and_then(|mtls| as_mode(mtls.mode));
    listed.unwrap_or_else(|| base_mode(selecting, wider, mesh))
}

fn as_mode(mode: MtlsMode) -> Option<Mode> {
    match mode {
        MtlsMode::Unset => None,
        MtlsMode::Disable | MtlsMode::Permissive => Some(Mode::Permissive),
        MtlsMode::Strict => Some(Mode::Strict),
    }
}

/// The ports whose mode differs from the base mode.
fn exceptions(policy: &PeerAuthentication, base: Mode) -> Vec<u16> {
    let listed: BTreeMap<u16, Mode> = (policy.spec.port_level_mtls.iter())
        .filter_map(|(port, mtls)| as_mode(mtls.mode).map(|mode| (*port, mode)))
        .collect();
    listed
        .into_iter()
        .filter(|(_, mode)| *mode != base)
        .map(|(port, _)| port)
        .collect()
}

/// The name of the policy that a workload selected by `selecting` must refer to, if it needs one.
#[must_use]
pub fn reference(
    selecting: Option<&PeerAuthentication>,
    wider: Wider<'_>,
    mesh: &MeshConfig,
) -> Option<NamespacedName> {
    let base = base_mode(selecting, wider, mesh);
    match (
        selecting.filter(|policy| !exceptions(policy, base).is_empty()),
        base,
    ) {
        (Some(policy), _) => Some(NamespacedName::new(
            policy.metadata.namespace.clone(),
            converted_name(policy),
        )),
        (None, Mode::Strict) => Some(NamespacedName::new(mesh.root_namespace.clone(), STATIC_STRICT)),
        (None, Mode::Permissive) => None,
    }
}

fn converted_name(policy: &PeerAuthentication) -> Str {
    format!("converted_peer_authentication_{}", policy.metadata.name).into()
}

/// The policy that refuses every caller without an identity.
#[must_use]
pub fn static_strict(mesh: &MeshConfig) -> Authorization {
    denial(
        mesh.root_namespace.clone(),
        STATIC_STRICT.into(),
        vec![Rule {
            clauses: vec![no_principal()],
        }],
    )
}

/// Translates a policy with ports of its own; `None` where a reference to the static policy, or nothing, does.
#[must_use]
pub fn peer_authentication(
    policy: &PeerAuthentication,
    wider: Wider<'_>,
    mesh: &MeshConfig,
) -> (Option<Authorization>, Vec<Condition>) {
    if selector(policy).is_none() {
        return (
            None,
            vec![condition(policy, !policy.spec.port_level_mtls.is_empty())],
        );
    }
    let base = base_mode(Some(policy), wider, mesh);
    let ports = exceptions(policy, base);
    let emitted = (!ports.is_empty()).then(|| {
        let namespace = policy.metadata.namespace.clone();
        denial(namespace, converted_name(policy), rules(base, &ports))
    });
    (emitted, vec![condition(policy, false)])
}

fn rules(base: Mode, ports: &[u16]) -> Vec<Rule> {
    match base {
        Mode::Permissive => ports
            .iter()
            .map(|port| {
                let this_port = Match {
                    destination_ports: vec![*port],
                    ..Match::default()
                };
                Rule {
                    clauses: vec![
                        no_principal(),
                        Clause {
                            matches: vec![this_port],
                        },
                    ],
                }
            })
            .collect(),
        Mode::Strict => {
            let other_ports = Match {
                not_destination_ports: ports.to_vec(),
                ..Match::default()
            };
            vec![Rule {
                clauses: vec![
                    Clause {
                        matches: vec![other_ports],
                    },
                    no_principal(),
                ],
            }]
        }
    }
}

fn no_principal() -> Clause {
    Clause {
        matches: vec![Match {
            not_principals: vec![StringMatch::Presence],
            ..Match::default()
        }],
    }
}

fn denial(namespace: Str, name: Str, rules: Vec<Rule>) -> Authorization {
    Authorization {
        name,
        namespace,
        scope: Scope::WorkloadSelector,
        action: Action::Deny,
        rules,
        dry_run: false,
        untranslatable: false,
        match_peer: true,
    }
}

fn condition(policy: &PeerAuthentication, ports_ignored: bool) -> Condition {
    if let Some(unreadable) = &policy.unreadable {
        let message = format!(
            "{}; what it selects is STRICT until the policy is corrected",
            unreadable.cause
        );
        return Condition::fails(ZTUNNEL_ACCEPTED, "Invalid", message);
    }
    if ports_ignored {
        let message = "portLevelMtls needs a selector and is ignored; add a selector or remove the ports";
        return Condition::fails(ZTUNNEL_ACCEPTED, "PartiallyInvalid", message);
    }
    Condition::holds(ZTUNNEL_ACCEPTED, "Accepted", "node proxies enforce the policy")
}

#[cfg(test)]
mod tests;
