//! Who may do what. Nothing of it is ever skipped.

use ipnet::IpNet;
use tulle_model::authz::ServiceAccountMatch;
use tulle_model::authz::policy::StringMatch;
use tulle_model::policy::authz::{Action, Authz, From as Source, PathPattern, Rule, To, Values, When};

use super::super::authorization::{range, service_account, string_match};
use super::super::{Flaw, each, known, octets, real_port, required};
use super::{optional, text, unset};
use crate::security;
use crate::waypoint as wire;
use crate::waypoint::path_pattern;

pub(super) fn parse(message: wire::Authz) -> Result<Authz, Flaw> {
    Ok(Authz {
        action: match known("action", message.action)? {
            wire::Action::Allow => Action::Allow,
            wire::Action::Deny => Action::Deny,
            wire::Action::Audit => Action::Audit,
            wire::Action::Custom => Action::Custom,
            wire::Action::Unspecified => return Err(unset("action")),
        },
        rules: each("rules", message.rules, rule)?,
        provider: optional(message.provider),
    })
}

fn rule(message: wire::AuthzRule) -> Result<Rule, Flaw> {
    Ok(Rule {
        from: each("from", message.from, source)?,
        to: each("to", message.to, operation)?,
        when: each("when", message.when, when)?,
        is_partial: message.is_partial,
    })
}

fn source(message: wire::AuthzFrom) -> Result<Source, Flaw> {
    Ok(Source {
        principals: strings("principals", message.principals)?,
        namespaces: strings("namespaces", message.namespaces)?,
        request_principals: strings("request_principals", message.request_principals)?,
        ips: ranges("ips", message.ips)?,
        remote_ips: ranges("remote_ips", message.remote_ips)?,
        service_accounts: accounts("service_accounts", message.service_accounts)?,
    })
}

fn operation(message: wire::AuthzTo) -> Result<To, Flaw> {
    Ok(To {
        hosts: strings("hosts", message.hosts)?,
        ports: values("ports", message.ports.map(|set| (set.any, set.none)), |number| {
            real_port("", number)
        })?,
        methods: strings("methods", message.methods)?,
        paths: values("paths", message.paths.map(|set| (set.any, set.none)), path)?,
    })
}

fn when(message: wire::AuthzWhen) -> Result<When, Flaw> {
    Ok(When {
        key: required("key", message.key)?,
        values: strings("values", message.values)?,
        ips: ranges("ips", message.ips)?,
    })
}

fn path(message: wire::PathPattern) -> Result<PathPattern, Flaw> {
    Ok(match message.kind.ok_or_else(|| unset("kind"))? {
        path_pattern::Kind::Text(text) => PathPattern::Text(string_match(text)?),
        path_pattern::Kind::Template(text) => PathPattern::Template(required("template", text)?),
    })
}

fn strings(field: &str, set: Option<wire::StringSet>) -> Result<Values<StringMatch>, Flaw> {
    values(field, set.map(|set| (set.any, set.none)), string_match)
}

fn ranges(field: &str, set: Option<wire::CidrSet>) -> Result<Values<IpNet>, Flaw> {
    values(field, set.map(|set| (set.any, set.none)), range)
}

fn accounts(field: &str, set: Option<wire::ServiceAccountSet>) -> Result<Values<ServiceAccountMatch>, Flaw> {
    values(field, set.map(|set| (set.any, set.none)), service_account)
}

/// An absent set asks nothing. A set of nothing would ask nothing, too, and nobody means that.
fn values<T, U>(
    field: &str,
    set: Option<(Vec<T>, Vec<T>)>,
    convert: impl Fn(T) -> Result<U, Flaw>,
) -> Result<Values<U>, Flaw> {
    let Some((any, none)) = set else {
        return Ok(Values::default());
    };
    if any.is_empty() && none.is_empty() {
        return Err(unset(field));
    }
    let parsed = || {
        Ok(Values {
            any: each("any", any, &convert)?,
            none: each("none", none, &convert)?,
        })
    };
    parsed().map_err(|flaw: Flaw| flaw.within(field))
}

impl From<&Authz> for wire::Authz {
    fn from(authz: &Authz) -> Self {
        let action = match authz.action {
            Action::Allow => wire::Action::Allow,
            Action::Deny => wire::Action::Deny,
            Action::Audit => wire::Action::Audit,
            Action::Custom => wire::Action::Custom,
        };
        Self {
            action: action.into(),
            rules: authz.rules.iter().map(Into::into).collect(),
            provider: text(&authz.provider),
        }
    }
}

impl From<&Rule> for wire::AuthzRule {
    fn from(rule: &Rule) -> Self {
        Self {
            from: rule.from.iter().map(Into::into).collect(),
            to: rule.to.iter().map(Into::into).collect(),
            when: rule.when.iter().map(Into::into).collect(),
            is_partial: rule.is_partial,
        }
    }
}

impl From<&Source> for wire::AuthzFrom {
    fn from(source: &Source) -> Self {
        Self {
            principals: to_strings(&source.principals),
            namespaces: to_strings(&source.namespaces),
            request_principals: to_strings(&source.request_principals),
            ips: to_ranges(&source.ips),
            remote_ips: to_ranges(&source.remote_ips),
            service_accounts: sets(&source.service_accounts, |account| {
                security::ServiceAccountMatch {
                    namespace: account.namespace.as_ref().into(),
                    service_account: account.service_account.as_ref().into(),
                }
            })
            .map(|(any, none)| wire::ServiceAccountSet { any, none }),
        }
    }
}

impl From<&To> for wire::AuthzTo {
    fn from(to: &To) -> Self {
        let path = |path: &PathPattern| wire::PathPattern {
            kind: Some(match path {
                PathPattern::Text(text) => path_pattern::Kind::Text(text.into()),
                PathPattern::Template(text) => path_pattern::Kind::Template(text.as_ref().into()),
            }),
        };
        Self {
            hosts: to_strings(&to.hosts),
            ports: sets(&to.ports, |port| u32::from(*port)).map(|(any, none)| wire::PortSet { any, none }),
            methods: to_strings(&to.methods),
            paths: sets(&to.paths, path).map(|(any, none)| wire::PathSet { any, none }),
        }
    }
}

impl From<&When> for wire::AuthzWhen {
    fn from(when: &When) -> Self {
        Self {
            key: when.key.as_ref().into(),
            values: to_strings(&when.values),
            ips: to_ranges(&when.ips),
        }
    }
}

fn to_strings(values: &Values<StringMatch>) -> Option<wire::StringSet> {
    sets(values, |text| text.into()).map(|(any, none)| wire::StringSet { any, none })
}

fn to_ranges(values: &Values<IpNet>) -> Option<wire::CidrSet> {
    let range = |range: &IpNet| security::Address {
        address: octets(range.network()),
        length: range.prefix_len().into(),
    };
    sets(values, range).map(|(any, none)| wire::CidrSet { any, none })
}

fn sets<T, U>(values: &Values<T>, convert: impl Fn(&T) -> U) -> Option<(Vec<U>, Vec<U>)> {
    (!values.is_empty()).then(|| {
        (
            values.any.iter().map(&convert).collect(),
            values.none.iter().map(&convert).collect(),
        )
    })
}
