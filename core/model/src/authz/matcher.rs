//! Judges a connection by the policies that apply to its destination.

use std::sync::Arc;

use super::by_source::BySource;
use super::cidr::IpSet;
use super::policy::{Action, Authorization, Clause, Match, Rule};
use super::text::{PrincipalSet, TextSet};
use super::{AllowBecause, Connection, DenyBecause, ServiceAccountMatch, Verdict};
use crate::identity::Identity;
use crate::mesh::{Policy, PolicySet};
use crate::name::NamespacedName;

/// Generated policies with this name prefix demand that traffic comes through the waypoint.
pub const REQUIRE_WAYPOINT_PREFIX: &str = "tulle_require_waypoint_";

impl PolicySet {
    /// The verdict of the enforced policies: any DENY that matches refuses; then a policy that is named but
    /// missing holds the connection back; then, if any ALLOW applies, one of them must match.
    #[must_use]
    pub fn check(&self, connection: &Connection) -> Verdict {
        let enforced = || self.policies.iter().filter(|policy| !policy.dry_run);
        if let Some(because) = enforced().find_map(|policy| policy.denial(connection)) {
            return Verdict::Deny { because };
        }
        if let Some(policy) = self.missing.first() {
            return Verdict::Deny {
                because: DenyBecause::PolicyPending {
                    policy: policy.clone(),
                },
            };
        }
        let mut allowing = enforced()
            .filter(|policy| policy.action == Action::Allow)
            .peekable();
        if allowing.peek().is_none() {
            return Verdict::Allow {
                because: AllowBecause::NoAllowPolicy,
            };
        }
        match allowing.find_map(|policy| policy.permission(connection)) {
            Some(because) => Verdict::Allow { because },
            None => Verdict::Deny {
                because: DenyBecause::NoAllowMatched,
            },
        }
    }

    /// What each `dry_run` policy would say on its own. It is to be logged and counted, and decides nothing.
    #[must_use]
    pub fn check_dry_run(&self, connection: &Connection) -> Vec<(NamespacedName, Verdict)> {
        let dry = self.policies.iter().filter(|policy| policy.dry_run);
        dry.map(|policy| (policy.key().clone(), policy.alone(connection)))
            .collect()
    }
}

impl Policy {
    /// Why this policy refuses the connection, if it is one that refuses.
    fn denial(&self, connection: &Connection) -> Option<DenyBecause> {
        let policy = || self.key().clone();
        if self.untranslatable {
            return Some(DenyBecause::Untranslatable { policy: policy() });
        }
        if self.action != Action::Deny {
            return None;
        }
        let rule = self.matcher().first_match(connection)?;
        Some(if self.name.starts_with(REQUIRE_WAYPOINT_PREFIX) {
            DenyBecause::WaypointRequired { policy: policy() }
        } else {
            DenyBecause::Policy {
                policy: policy(),
                rule,
            }
        })
    }

    /// Why this ALLOW policy lets the connection pass, if it does.
    fn permission(&self, connection: &Connection) -> Option<AllowBecause> {
        let rule = self.matcher().first_match(connection)?;
        Some(AllowBecause::Policy {
            policy: self.key().clone(),
            rule,
        })
    }

    /// The verdict as if no other policy applied.
    fn alone(self: &Arc<Self>, connection: &Connection) -> Verdict {
        if let Some(because) = self.denial(connection) {
            return Verdict::Deny { because };
        }
        if self.action == Action::Deny {
            return Verdict::Allow {
                because: AllowBecause::NoAllowPolicy,
            };
        }
        match self.permission(connection) {
            Some(because) => Verdict::Allow { because },
            None => Verdict::Deny {
                because: DenyBecause::NoAllowMatched,
            },
        }
    }
}

/// The rules of one policy in the form they are evaluated in.
#[derive(Debug)]
pub(crate) struct Matcher {
    rules: Vec<CompiledRule>,
    /// For a policy of [`RULES_INDEXED_FROM`] rules or more.
    by_source: Option<BySource>,
    match_peer: bool,
}

/// Fewer rules than these are walked faster than looked up.
const RULES_INDEXED_FROM: usize = 16;

impl Matcher {
    pub(crate) fn new(policy: &Authorization) -> Self {
        Self::indexed_from(RULES_INDEXED_FROM, policy)
    }

    /// As [`Self::new`], with another number of rules from which on they are looked up.
    pub(crate) fn indexed_from(count: usize, policy: &Authorization) -> Self {
        let rules = &policy.rules;
        Self {
            by_source: (rules.len() >= count).then(|| BySource::new(rules)),
            rules: rules.iter().map(CompiledRule::new).collect(),
            match_peer: policy.match_peer,
        }
    }

    /// The index of the first rule that matches.
    pub(crate) fn first_match(&self, connection: &Connection) -> Option<usize> {
        let subject = Subject::of(connection, self.match_peer);
        let matches = |rule: &CompiledRule| rule.matches(&subject, connection);
        match &self.by_source {
            Some(index) => index.first(connection.source_ip, |position| matches(&self.rules[position])),
            None => self.rules.iter().position(matches),
        }
    }
}

/// The identities a connection is judged by: the peer, and behind a trusted waypoint also the source.
struct Subject<'a> {
    peer: Option<&'a Identity>,
    source: Option<&'a Identity>,
}

impl<'a> Subject<'a> {
    fn of(connection: &'a Connection, match_peer: bool) -> Self {
        let peer = connection.peer.as_ref();
        // A source is only ever claimed by an authenticated peer.
        let source = connection
            .original_source
            .as_ref()
            .filter(|_| peer.is_some() && !match_peer);
        Self { peer, source }
    }

    fn any(&self, matches: impl Fn(&Identity) -> bool) -> bool {
        self.peer.is_some_and(&matches) || self.source.is_some_and(&matches)
    }
}

/// All clauses must match.
#[derive(Debug)]
struct CompiledRule {
    clauses: Vec<CompiledClause>,
}

impl CompiledRule {
    /// A clause without matches always holds and is left out.
    fn new(rule: &Rule) -> Self {
        let telling = rule.clauses.iter().filter(|clause| !clause.matches.is_empty());
        Self {
            clauses: telling.map(CompiledClause::new).collect(),
        }
    }

    fn matches(&self, subject: &Subject<'_>, connection: &Connection) -> bool {
        self.clauses
            .iter()
            .all(|clause| clause.matches(subject, connection))
    }
}

/// One match must match.
#[derive(Debug)]
struct CompiledClause {
    matches: Vec<CompiledMatch>,
}

impl CompiledClause {
    /// A match with no field set is skipped; a clause of such matches only never holds.
    fn new(clause: &Clause) -> Self {
        let telling = clause.matches.iter().filter(|one| **one != Match::default());
        Self {
            matches: telling.map(CompiledMatch::new).collect(),
        }
    }

    fn matches(&self, subject: &Subject<'_>, connection: &Connection) -> bool {
        self.matches.iter().any(|one| one.matches(subject, connection))
    }
}

/// Every kind of field must hold. The cheap ones are asked first.
#[derive(Debug)]
struct CompiledMatch {
    destination_ports: Field<Vec<u16>>,
    source_ips: Field<IpSet>,
    destination_ips: Field<IpSet>,
    namespaces: Field<TextSet>,
    service_accounts: Field<Vec<ServiceAccountMatch>>,
    principals: Field<PrincipalSet>,
}

impl CompiledMatch {
    fn new(one: &Match) -> Self {
        Self {
            destination_ports: Field::new(&one.destination_ports, &one.not_destination_ports, sorted_ports),
            source_ips: Field::new(&one.source_ips, &one.not_source_ips, IpSet::new),
            destination_ips: Field::new(&one.destination_ips, &one.not_destination_ips, IpSet::new),
            namespaces: Field::new(&one.namespaces, &one.not_namespaces, TextSet::new),
            service_accounts: Field::new(&one.service_accounts, &one.not_service_accounts, sorted_accounts),
            principals: Field::new(&one.principals, &one.not_principals, PrincipalSet::new),
        }
    }

    fn matches(&self, subject: &Subject<'_>, connection: &Connection) -> bool {
        let Connection {
            source_ip,
            destination,
            ..
        } = connection;
        self.destination_ports
            .holds(|ports| ports.binary_search(&destination.port()).is_ok())
            && self.source_ips.holds(|nets| nets.contains(*source_ip))
            && self.destination_ips.holds(|nets| nets.contains(destination.ip()))
            && self
                .namespaces
                .holds(|set| subject.any(|identity| set.contains(&identity.namespace)))
            && self
                .service_accounts
                .holds(|accounts| subject.any(|identity| holds_account(accounts, identity)))
            && self
                .principals
                .holds(|set| subject.any(|identity| set.contains(identity)))
    }
}

/// What a kind of field asks for and what it excludes; `None` is not set.
#[derive(Debug)]
struct Field<S> {
    positive: Option<S>,
    negative: Option<S>,
}

impl<S> Field<S> {
    fn new<T>(positive: &[T], negative: &[T], compile: impl Fn(&[T]) -> S) -> Self {
        let set = |values: &[T]| (!values.is_empty()).then(|| compile(values));
        Self {
            positive: set(positive),
            negative: set(negative),
        }
    }

    fn holds(&self, contains: impl Fn(&S) -> bool) -> bool {
        self.positive.as_ref().is_none_or(&contains) && !self.negative.as_ref().is_some_and(&contains)
    }
}

fn sorted_ports(ports: &[u16]) -> Vec<u16> {
    let mut ports = ports.to_vec();
    ports.sort_unstable();
    ports
}

fn sorted_accounts(accounts: &[ServiceAccountMatch]) -> Vec<ServiceAccountMatch> {
    let mut accounts = accounts.to_vec();
    accounts.sort_unstable_by(|a, b| account_parts(a).cmp(&account_parts(b)));
    accounts
}

fn holds_account(accounts: &[ServiceAccountMatch], identity: &Identity) -> bool {
    let wanted = (&*identity.namespace, &*identity.service_account);
    accounts
        .binary_search_by(|one| account_parts(one).cmp(&wanted))
        .is_ok()
}

fn account_parts(one: &ServiceAccountMatch) -> (&str, &str) {
    (&one.namespace, &one.service_account)
}
