//! The rules of evaluation written down once more, as plainly as they can be said.
//!
//! Slow on purpose: the compiled matcher and every translation of policies are compared with it.

use ipnet::IpNet;

use super::cidr::canonical_net;
use super::policy::{Action, Authorization, Clause, Match, Rule, StringMatch};
use super::{Connection, ServiceAccountMatch};
use crate::identity::Identity;

/// Whether these policies let the connection pass, none of them missing.
#[must_use]
pub fn allows(policies: &[Authorization], connection: &Connection) -> bool {
    let enforced: Vec<_> = policies.iter().filter(|policy| !policy.dry_run).collect();
    if enforced.iter().any(|policy| policy.untranslatable) {
        return false;
    }
    let of = |action| enforced.iter().filter(move |policy| policy.action == action);
    if of(Action::Deny).any(|policy| policy_matches(policy, connection)) {
        return false;
    }
    of(Action::Allow).next().is_none() || of(Action::Allow).any(|policy| policy_matches(policy, connection))
}

/// Whether any rule of the policy matches.
#[must_use]
pub fn policy_matches(policy: &Authorization, connection: &Connection) -> bool {
    let mut identities = Vec::new();
    if let Some(peer) = &connection.peer {
        identities.push(peer.clone());
        if !policy.match_peer {
            identities.extend(connection.original_source.clone());
        }
    }
    policy
        .rules
        .iter()
        .any(|rule| rule_matches(rule, &identities, connection))
}

fn rule_matches(rule: &Rule, identities: &[Identity], connection: &Connection) -> bool {
    rule.clauses
        .iter()
        .all(|clause| clause_matches(clause, identities, connection))
}

fn clause_matches(clause: &Clause, identities: &[Identity], connection: &Connection) -> bool {
    clause.matches.is_empty()
        || clause
            .matches
            .iter()
            .filter(|one| **one != Match::default())
            .any(|one| match_matches(one, identities, connection))
}

fn match_matches(one: &Match, identities: &[Identity], connection: &Connection) -> bool {
    let namespace = |pattern: &StringMatch| identities.iter().any(|id| text(pattern, &id.namespace));
    let principal = |pattern: &StringMatch| identities.iter().any(|id| text(pattern, &id.principal()));
    let account = |account: &ServiceAccountMatch| {
        identities
            .iter()
            .any(|id| id.namespace == account.namespace && id.service_account == account.service_account)
    };
    let source = |net: &IpNet| canonical_net(*net).contains(&connection.source_ip.to_canonical());
    let destination = |net: &IpNet| canonical_net(*net).contains(&connection.destination.ip().to_canonical());
    let port = |port: &u16| *port == connection.destination.port();
    field(&one.namespaces, &one.not_namespaces, namespace)
        && field(&one.principals, &one.not_principals, principal)
        && field(&one.service_accounts, &one.not_service_accounts, account)
        && field(&one.source_ips, &one.not_source_ips, source)
        && field(&one.destination_ips, &one.not_destination_ips, destination)
        && field(&one.destination_ports, &one.not_destination_ports, port)
}

fn field<T>(positive: &[T], negative: &[T], matches: impl Fn(&T) -> bool) -> bool {
    (positive.is_empty() || positive.iter().any(&matches)) && !negative.iter().any(&matches)
}

fn text(pattern: &StringMatch, value: &str) -> bool {
    match pattern {
        StringMatch::Exact(text) => *value == **text,
        StringMatch::Prefix(text) => value.starts_with(&**text),
        StringMatch::Suffix(text) => value.ends_with(&**text),
        StringMatch::Presence => !value.is_empty(),
    }
}
