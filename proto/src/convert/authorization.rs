//! Policies: `istio.security.Authorization` and back. Nothing in a policy is ever skipped.

use tulle_model::authz::ServiceAccountMatch;
use tulle_model::authz::policy::{Action, Authorization, Clause, Match, Rule, Scope, StringMatch};

use super::{Cause, Flaw, Malformed, each, ip_net, known, octets, port, required};
use crate::names::MATCH_PEER;
use crate::security as wire;
use crate::security::string_match::MatchType;
use crate::workload::Extension;

/// Strict in every value. Unknown field numbers are gone once a message is decoded, so bytes from the network
/// go through [`crate::decode_authorization`], which refuses those too.
impl TryFrom<wire::Authorization> for Authorization {
    type Error = Malformed;

    fn try_from(policy: wire::Authorization) -> Result<Self, Malformed> {
        let name = format!("{}/{}", policy.namespace, policy.name);
        parse(policy).map_err(|flaw| flaw.of(&name))
    }
}

pub(super) fn parse(policy: wire::Authorization) -> Result<Authorization, Flaw> {
    let extensions: Vec<()> = each("extensions", policy.extensions, match_peer)?;
    Ok(Authorization {
        name: required("name", policy.name)?,
        namespace: required("namespace", policy.namespace)?,
        scope: scope(policy.scope)?,
        action: action(policy.action)?,
        rules: each("rules", policy.rules, rule)?,
        dry_run: policy.dry_run,
        untranslatable: false,
        match_peer: !extensions.is_empty(),
    })
}

/// The one extension of a policy that exists; its presence is its value.
fn match_peer(extension: Extension) -> Result<(), Flaw> {
    if extension.name != MATCH_PEER {
        return Err(Flaw::new("name", Cause::UnknownExtension(extension.name)));
    }
    match extension.config {
        None => Ok(()),
        Some(_) => Err(Flaw::new("config", Cause::ExtensionValue(extension.name))),
    }
}

pub(crate) fn scope(value: i32) -> Result<Scope, Flaw> {
    Ok(match known("scope", value)? {
        wire::Scope::Global => Scope::Global,
        wire::Scope::Namespace => Scope::Namespace,
        wire::Scope::WorkloadSelector => Scope::WorkloadSelector,
    })
}

fn action(value: i32) -> Result<Action, Flaw> {
    Ok(match known("action", value)? {
        wire::Action::Allow => Action::Allow,
        wire::Action::Deny => Action::Deny,
    })
}

fn rule(rule: wire::Rule) -> Result<Rule, Flaw> {
    Ok(Rule {
        clauses: each("clauses", rule.clauses, clause)?,
    })
}

fn clause(clause: wire::Clause) -> Result<Clause, Flaw> {
    Ok(Clause {
        matches: each("matches", clause.matches, single_match)?,
    })
}

fn single_match(fields: wire::Match) -> Result<Match, Flaw> {
    if let Some(extension) = fields.extensions.into_iter().next() {
        return Err(Flaw::new(
            "extensions[0]",
            Cause::UnknownExtension(extension.name),
        ));
    }
    Ok(Match {
        namespaces: each("namespaces", fields.namespaces, string_match)?,
        not_namespaces: each("not_namespaces", fields.not_namespaces, string_match)?,
        principals: each("principals", fields.principals, string_match)?,
        not_principals: each("not_principals", fields.not_principals, string_match)?,
        source_ips: each("source_ips", fields.source_ips, range)?,
        not_source_ips: each("not_source_ips", fields.not_source_ips, range)?,
        destination_ips: each("destination_ips", fields.destination_ips, range)?,
        not_destination_ips: each("not_destination_ips", fields.not_destination_ips, range)?,
        destination_ports: each("destination_ports", fields.destination_ports, |number| {
            port("", number)
        })?,
        not_destination_ports: each("not_destination_ports", fields.not_destination_ports, |number| {
            port("", number)
        })?,
        service_accounts: each("service_accounts", fields.service_accounts, service_account)?,
        not_service_accounts: each(
            "not_service_accounts",
            fields.not_service_accounts,
            service_account,
        )?,
    })
}

pub(super) fn string_match(text: wire::StringMatch) -> Result<StringMatch, Flaw> {
    match text.match_type {
        Some(MatchType::Exact(text)) => Ok(StringMatch::Exact(text.into())),
        Some(MatchType::Prefix(text)) => Ok(StringMatch::Prefix(text.into())),
        Some(MatchType::Suffix(text)) => Ok(StringMatch::Suffix(text.into())),
        Some(MatchType::Presence(())) => Ok(StringMatch::Presence),
        None => Err(Flaw::new("match_type", Cause::Unset)),
    }
}

pub(super) fn range(address: wire::Address) -> Result<ipnet::IpNet, Flaw> {
    ip_net(&address.address, address.length)
}

pub(super) fn service_account(account: wire::ServiceAccountMatch) -> Result<ServiceAccountMatch, Flaw> {
    Ok(ServiceAccountMatch {
        namespace: account.namespace.into(),
        service_account: account.service_account.into(),
    })
}

impl From<&Authorization> for wire::Authorization {
    fn from(policy: &Authorization) -> Self {
        let scope = match policy.scope {
            Scope::Global => wire::Scope::Global,
            Scope::Namespace => wire::Scope::Namespace,
            Scope::WorkloadSelector => wire::Scope::WorkloadSelector,
        };
        let action = match policy.action {
            Action::Allow => wire::Action::Allow,
            Action::Deny => wire::Action::Deny,
        };
        let match_peer = policy.match_peer.then(|| Extension {
            name: MATCH_PEER.into(),
            config: None,
        });
        Self {
            name: policy.name.as_ref().into(),
            namespace: policy.namespace.as_ref().into(),
            scope: scope.into(),
            action: action.into(),
            rules: policy.rules.iter().map(Into::into).collect(),
            dry_run: policy.dry_run,
            extensions: match_peer.into_iter().collect(),
        }
    }
}

impl From<&Rule> for wire::Rule {
    fn from(rule: &Rule) -> Self {
        Self {
            clauses: rule.clauses.iter().map(Into::into).collect(),
        }
    }
}

impl From<&Clause> for wire::Clause {
    fn from(clause: &Clause) -> Self {
        Self {
            matches: clause.matches.iter().map(Into::into).collect(),
        }
    }
}

impl From<&Match> for wire::Match {
    fn from(fields: &Match) -> Self {
        let texts = |texts: &[StringMatch]| texts.iter().map(Into::into).collect();
        let ranges = |ranges: &[ipnet::IpNet]| ranges.iter().map(Into::into).collect();
        let ports = |ports: &[u16]| ports.iter().copied().map(u32::from).collect();
        let accounts = |accounts: &[ServiceAccountMatch]| accounts.iter().map(Into::into).collect();
        Self {
            namespaces: texts(&fields.namespaces),
            not_namespaces: texts(&fields.not_namespaces),
            principals: texts(&fields.principals),
            not_principals: texts(&fields.not_principals),
            source_ips: ranges(&fields.source_ips),
            not_source_ips: ranges(&fields.not_source_ips),
            destination_ips: ranges(&fields.destination_ips),
            not_destination_ips: ranges(&fields.not_destination_ips),
            destination_ports: ports(&fields.destination_ports),
            not_destination_ports: ports(&fields.not_destination_ports),
            service_accounts: accounts(&fields.service_accounts),
            not_service_accounts: accounts(&fields.not_service_accounts),
            extensions: Vec::new(),
        }
    }
}

impl From<&StringMatch> for wire::StringMatch {
    fn from(text: &StringMatch) -> Self {
        let match_type = match text {
            StringMatch::Exact(text) => MatchType::Exact(text.as_ref().into()),
            StringMatch::Prefix(text) => MatchType::Prefix(text.as_ref().into()),
            StringMatch::Suffix(text) => MatchType::Suffix(text.as_ref().into()),
            StringMatch::Presence => MatchType::Presence(()),
        };
        Self {
            match_type: Some(match_type),
        }
    }
}

impl From<&ipnet::IpNet> for wire::Address {
    fn from(range: &ipnet::IpNet) -> Self {
        Self {
            address: octets(range.network()),
            length: range.prefix_len().into(),
        }
    }
}

impl From<&ServiceAccountMatch> for wire::ServiceAccountMatch {
    fn from(account: &ServiceAccountMatch) -> Self {
        Self {
            namespace: account.namespace.as_ref().into(),
            service_account: account.service_account.as_ref().into(),
        }
    }
}
