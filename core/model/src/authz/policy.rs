//! The policy as it travels: scope, action, and rules → clauses → matches.

use ipnet::IpNet;

use super::ServiceAccountMatch;
use crate::name::{NamespacedName, Str};

/// One authorization policy (`istio.security.Authorization`).
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Authorization {
    /// Name.
    pub name: Str,
    /// Namespace.
    pub namespace: Str,
    /// What it applies to.
    pub scope: Scope,
    /// What it does when it matches.
    pub action: Action,
    /// Alternatives; no rule never matches.
    pub rules: Vec<Rule>,
    /// Evaluated, logged and counted, never enforced.
    pub dry_run: bool,
    /// Stands in for a policy that could not be read and denies everything it selects.
    #[serde(default)]
    pub untranslatable: bool,
    /// Judged by the TLS peer, never by the original source of a waypoint (`tulle.dev/match-peer`).
    #[serde(default)]
    pub match_peer: bool,
}

impl Authorization {
    /// The key it is stored and referred to by.
    #[must_use]
    pub fn key(&self) -> NamespacedName {
        NamespacedName {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }
}

/// What a policy applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Scope {
    /// Every workload.
    Global,
    /// Every workload of its namespace.
    Namespace,
    /// The workloads that name it.
    WorkloadSelector,
}

/// What a policy does when it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    /// Lets pass.
    Allow,
    /// Refuses; stronger than any ALLOW.
    Deny,
}

/// All clauses must match; no clause always matches.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Rule {
    /// The conditions.
    pub clauses: Vec<Clause>,
}

/// One match must match; no match always matches.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Clause {
    /// The alternatives.
    pub matches: Vec<Match>,
}

/// Every kind of field that is set must match; values of one kind are alternatives.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Match {
    /// Namespace of the source.
    pub namespaces: Vec<StringMatch>,
    /// None of these namespaces.
    pub not_namespaces: Vec<StringMatch>,
    /// Principal of the source, without `spiffe://`.
    pub principals: Vec<StringMatch>,
    /// None of these principals.
    pub not_principals: Vec<StringMatch>,
    /// Address of the source.
    pub source_ips: Vec<IpNet>,
    /// None of these source addresses.
    pub not_source_ips: Vec<IpNet>,
    /// Address of the destination pod.
    pub destination_ips: Vec<IpNet>,
    /// None of these destination addresses.
    pub not_destination_ips: Vec<IpNet>,
    /// Resolved port.
    pub destination_ports: Vec<u16>,
    /// None of these ports.
    pub not_destination_ports: Vec<u16>,
    /// Service account of the source.
    pub service_accounts: Vec<ServiceAccountMatch>,
    /// None of these service accounts.
    pub not_service_accounts: Vec<ServiceAccountMatch>,
}

/// Plain string comparison; nothing in the pattern is special.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StringMatch {
    /// Equal.
    Exact(Str),
    /// Begins with.
    Prefix(Str),
    /// Ends with.
    Suffix(Str),
    /// Is not empty.
    Presence,
}
