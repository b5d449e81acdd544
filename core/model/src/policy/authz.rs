//! Who may do what, as a waypoint judges requests. Rules are alternatives; within one, everything must hold.

use ipnet::IpNet;

use crate::authz::ServiceAccountMatch;
use crate::authz::policy::StringMatch;
use crate::name::Str;

pub mod attributes;
pub mod compile;
pub mod evaluate;
pub mod explain;
mod field;
mod index;
pub mod path;
#[cfg(any(test, feature = "testing"))]
pub mod reference;
#[cfg(test)]
mod tests;

pub use attributes::{Attributes, Claim, Token};
pub use compile::Authorizer;
pub use evaluate::{Because, Denial, DryRun, Matched, Verdict};

/// One authorization policy.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Authz {
    /// What it does where it matches.
    pub action: Action,
    /// Alternatives; none never matches.
    pub rules: Vec<Rule>,
    /// Who decides, for `Custom`.
    pub provider: Option<Str>,
}

/// What a policy does where it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// Lets pass.
    Allow,
    /// Refuses.
    Deny,
    /// Marks log and metrics.
    Audit,
    /// Asks the provider.
    Custom,
}

/// One rule. A part without alternatives always holds.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    /// Sources, any of them.
    pub from: Vec<From>,
    /// Operations, any of them.
    pub to: Vec<To>,
    /// Further conditions, all of them.
    pub when: Vec<When>,
    /// Part of the rule cannot be evaluated: an ALLOW rule never matches, a DENY rule matches without that part.
    pub is_partial: bool,
}

/// Values of one attribute: one of the first, if there are any, and none of the second.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Values<T> {
    /// One of these.
    pub any: Vec<T>,
    /// None of these.
    pub none: Vec<T>,
}

impl<T> Default for Values<T> {
    fn default() -> Self {
        Self {
            any: Vec::new(),
            none: Vec::new(),
        }
    }
}

impl<T> Values<T> {
    /// Whether nothing is asked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.any.is_empty() && self.none.is_empty()
    }
}

/// What is asked of a source.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct From {
    /// Identities, without `spiffe://`.
    pub principals: Values<StringMatch>,
    /// Namespaces.
    pub namespaces: Values<StringMatch>,
    /// Identities of the request's token.
    pub request_principals: Values<StringMatch>,
    /// Addresses of the source.
    pub ips: Values<IpNet>,
    /// Addresses of the client outside of the mesh.
    pub remote_ips: Values<IpNet>,
    /// Service accounts.
    pub service_accounts: Values<ServiceAccountMatch>,
}

/// What is asked of an operation.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct To {
    /// Hosts.
    pub hosts: Values<StringMatch>,
    /// Ports.
    pub ports: Values<u16>,
    /// Methods.
    pub methods: Values<StringMatch>,
    /// Paths.
    pub paths: Values<PathPattern>,
}

/// A pattern of a path.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PathPattern {
    /// A text that may begin or end with a star.
    Text(StringMatch),
    /// Segments, of which `{*}` stands for one and `{**}` for the rest.
    Template(Str),
}

/// A further condition.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct When {
    /// The attribute, such as `request.headers[x-team]`.
    pub key: Str,
    /// Its values.
    pub values: Values<StringMatch>,
    /// Its values, where the attribute is an address.
    pub ips: Values<IpNet>,
}

impl Authz {
    /// Whether it asks for anything that only a request has. A port it applies to is one of HTTP, so that no client can
    /// keep its requests from being read.
    #[must_use]
    pub fn reads_requests(&self) -> bool {
        self.action == Action::Custom || self.rules.iter().any(Rule::reads_requests)
    }
}

impl Rule {
    fn reads_requests(&self) -> bool {
        let source = |from: &From| !from.request_principals.is_empty();
        let operation = |to: &To| !(to.hosts.is_empty() && to.methods.is_empty() && to.paths.is_empty());
        let when = |when: &When| when.key.starts_with("request.");
        self.from.iter().any(source) || self.to.iter().any(operation) || self.when.iter().any(when)
    }
}
