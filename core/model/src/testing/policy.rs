//! Builds authorization policies.

use std::sync::Arc;

use super::name;
use crate::authz::policy::{Action, Authorization, Clause, Match, Rule, Scope, StringMatch};
use crate::mesh::MeshUpdate;

/// A policy under construction.
#[derive(Debug, Clone)]
pub struct PolicyBuilder {
    policy: Authorization,
}

/// Starts an ALLOW policy `name`, or `ns/name`, for its namespace, without rules: it never matches.
#[must_use]
pub fn allow(text: &str) -> PolicyBuilder {
    start(text, Action::Allow)
}

/// Starts a DENY policy `name`, or `ns/name`, for its namespace, without rules: it never matches.
#[must_use]
pub fn deny(text: &str) -> PolicyBuilder {
    start(text, Action::Deny)
}

fn start(text: &str, action: Action) -> PolicyBuilder {
    let own = name(text);
    PolicyBuilder {
        policy: Authorization {
            name: own.name,
            namespace: own.namespace,
            scope: Scope::Namespace,
            action,
            rules: Vec::new(),
            dry_run: false,
            untranslatable: false,
            match_peer: false,
        },
    }
}

/// One clause of these alternatives.
#[must_use]
pub fn any_of(matches: impl IntoIterator<Item = Match>) -> Clause {
    Clause {
        matches: matches.into_iter().collect(),
    }
}

impl PolicyBuilder {
    /// For every workload.
    #[must_use]
    pub fn global(mut self) -> Self {
        self.policy.scope = Scope::Global;
        self
    }

    /// For the workloads that name it.
    #[must_use]
    pub fn selector(mut self) -> Self {
        self.policy.scope = Scope::WorkloadSelector;
        self
    }

    /// Only logged.
    #[must_use]
    pub fn dry_run(mut self) -> Self {
        self.policy.dry_run = true;
        self
    }

    /// Could not be read.
    #[must_use]
    pub fn untranslatable(mut self) -> Self {
        self.policy.untranslatable = true;
        self
    }

    /// Judged by the TLS peer alone.
    #[must_use]
    pub fn match_peer(mut self) -> Self {
        self.policy.match_peer = true;
        self
    }

    /// A further rule of these clauses; without any it always matches.
    #[must_use]
    pub fn rule(mut self, clauses: impl IntoIterator<Item = Clause>) -> Self {
        self.policy.rules.push(Rule {
            clauses: clauses.into_iter().collect(),
        });
        self
    }

    /// A further rule that always matches.
    #[must_use]
    pub fn always(self) -> Self {
        self.rule([])
    }

    /// A further rule of one match.
    #[must_use]
    pub fn when(self, one: Match) -> Self {
        self.rule([any_of([one])])
    }

    /// A further rule for callers of a namespace.
    #[must_use]
    pub fn from_namespace(self, namespace: &str) -> Self {
        self.when(Match {
            namespaces: vec![StringMatch::Exact(namespace.into())],
            ..Match::default()
        })
    }

    /// A further rule for a principal, `<trust domain>/ns/<namespace>/sa/<service account>`.
    #[must_use]
    pub fn from_principal(self, principal: &str) -> Self {
        self.when(Match {
            principals: vec![StringMatch::Exact(principal.into())],
            ..Match::default()
        })
    }

    /// A further rule for every principal but this one; callers without identity match too.
    #[must_use]
    pub fn not_from_principal(self, principal: &str) -> Self {
        self.when(Match {
            not_principals: vec![StringMatch::Exact(principal.into())],
            ..Match::default()
        })
    }

    /// A further rule for a range of source addresses.
    ///
    /// # Panics
    /// If the text is no range.
    #[must_use]
    pub fn from_ip(self, cidr: &str) -> Self {
        self.when(Match {
            source_ips: vec![cidr.parse().expect("a CIDR")],
            ..Match::default()
        })
    }

    /// A further rule for a port.
    #[must_use]
    pub fn to_port(self, port: u16) -> Self {
        self.when(Match {
            destination_ports: vec![port],
            ..Match::default()
        })
    }

    /// The policy.
    #[must_use]
    pub fn build(self) -> Authorization {
        self.policy
    }
}

impl From<PolicyBuilder> for MeshUpdate {
    fn from(builder: PolicyBuilder) -> Self {
        Self::Policy(Arc::new(builder.policy))
    }
}
