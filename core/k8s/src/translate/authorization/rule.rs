//! One rule: what of it concerns connections, and what of it cannot be evaluated.

use tulle_model::Str;
use tulle_model::authz::policy::{Clause, Match, Rule};

use super::values::{Context, Unusable};
use crate::api::security::{AuthorizationRule, Operation, Source, When};

/// A translated rule. What stands in `unknown` was left out of it, as if it were true.
pub(super) struct Translated {
    pub(super) rule: Rule,
    pub(super) unknown: Vec<String>,
}

/// Translates a rule: clauses `from`, `to` and one for each `when`.
pub(super) fn translate(rule: &AuthorizationRule, context: &Context<'_>) -> Translated {
    let mut unknown = Vec::new();
    let mut clauses = Vec::new();
    let sources = rule.from.iter().map(|from| from.source.as_ref());
    clauses.extend(clause(sources.enumerate().map(|(index, from)| {
        let mut part = Part::new(format!("from[{index}].source"), &mut unknown);
        if let Some(from) = from {
            source(from, context, &mut part);
        }
        part.made
    })));
    let operations = rule.to.iter().map(|to| to.operation.as_ref());
    clauses.extend(clause(operations.enumerate().map(|(index, to)| {
        let mut part = Part::new(format!("to[{index}].operation"), &mut unknown);
        if let Some(to) = to {
            operation(to, &mut part);
        }
        part.made
    })));
    for (index, condition) in rule.when.iter().enumerate() {
        let mut part = Part::new(format!("when[{index}]"), &mut unknown);
        when(condition, context, &mut part);
        clauses.extend(clause(std::iter::once(part.made)));
    }
    Translated {
        rule: Rule { clauses },
        unknown,
    }
}

/// Alternatives into a clause; none if there is no alternative, or one of them is always true.
fn clause(matches: impl Iterator<Item = Match>) -> Option<Clause> {
    let matches: Vec<_> = matches.collect();
    let always = matches.contains(&Match::default());
    (!matches.is_empty() && !always).then_some(Clause { matches })
}

/// A match that is being made, and the place for what cannot be part of it.
struct Part<'a> {
    path: String,
    made: Match,
    unknown: &'a mut Vec<String>,
}

impl<'a> Part<'a> {
    fn new(path: String, unknown: &'a mut Vec<String>) -> Self {
        Self {
            path,
            made: Match::default(),
            unknown,
        }
    }

    /// Values of an attribute of connections. One bad value makes the attribute unknown as a whole.
    fn values<T>(
        &mut self,
        field: &str,
        texts: &[Str],
        read: impl Fn(&str) -> Result<Vec<T>, Unusable>,
    ) -> Vec<T> {
        let read: Result<Vec<Vec<T>>, Unusable> = texts.iter().map(|text| read(text)).collect();
        match read {
            Ok(values) => values.into_iter().flatten().collect(),
            Err(Unusable(text)) => {
                self.unknown.push(format!("{}.{field} `{text}`", self.path));
                Vec::new()
            }
        }
    }

    /// An attribute of requests.
    fn request(&mut self, field: &str, texts: &[Str]) {
        if !texts.is_empty() {
            self.unknown.push(format!("{}.{field}", self.path));
        }
    }
}

fn source(source: &Source, context: &Context<'_>, part: &mut Part<'_>) {
    let principal = |text: &str| context.principal(text);
    let namespace = |text: &str| Context::string(text);
    let account = |text: &str| context.service_account(text);
    part.made.principals = part.values("principals", &source.principals, principal);
    part.made.not_principals = part.values("notPrincipals", &source.not_principals, principal);
    part.made.namespaces = part.values("namespaces", &source.namespaces, namespace);
    part.made.not_namespaces = part.values("notNamespaces", &source.not_namespaces, namespace);
    part.made.service_accounts = part.values("serviceAccounts", &source.service_accounts, account);
    part.made.not_service_accounts = part.values("notServiceAccounts", &source.not_service_accounts, account);
    part.made.source_ips = part.values("ipBlocks", &source.ip_blocks, Context::cidr);
    part.made.not_source_ips = part.values("notIpBlocks", &source.not_ip_blocks, Context::cidr);
    part.request("requestPrincipals", &source.request_principals);
    part.request("notRequestPrincipals", &source.not_request_principals);
    part.request("remoteIpBlocks", &source.remote_ip_blocks);
    part.request("notRemoteIpBlocks", &source.not_remote_ip_blocks);
}

fn operation(operation: &Operation, part: &mut Part<'_>) {
    part.made.destination_ports = part.values("ports", &operation.ports, Context::port);
    part.made.not_destination_ports = part.values("notPorts", &operation.not_ports, Context::port);
    part.request("hosts", &operation.hosts);
    part.request("notHosts", &operation.not_hosts);
    part.request("methods", &operation.methods);
    part.request("notMethods", &operation.not_methods);
    part.request("paths", &operation.paths);
    part.request("notPaths", &operation.not_paths);
}

fn when(when: &When, context: &Context<'_>, part: &mut Part<'_>) {
    let (yes, no) = (&when.values, &when.not_values);
    if yes.is_empty() && no.is_empty() {
        part.unknown.push(format!("{} without values", part.path));
        return;
    }
    match &*when.key {
        "source.ip" => {
            part.made.source_ips = part.values("values", yes, Context::cidr);
            part.made.not_source_ips = part.values("notValues", no, Context::cidr);
        }
        "source.namespace" => {
            part.made.namespaces = part.values("values", yes, Context::string);
            part.made.not_namespaces = part.values("notValues", no, Context::string);
        }
        "source.principal" => {
            part.made.principals = part.values("values", yes, |text| context.principal(text));
            part.made.not_principals = part.values("notValues", no, |text| context.principal(text));
        }
        "destination.ip" => {
            part.made.destination_ips = part.values("values", yes, Context::cidr);
            part.made.not_destination_ips = part.values("notValues", no, Context::cidr);
        }
        "destination.port" => {
            part.made.destination_ports = part.values("values", yes, Context::port);
            part.made.not_destination_ports = part.values("notValues", no, Context::port);
        }
        other => part
            .unknown
            .push(format!("{} `{}`", part.path, super::values::shown(other))),
    }
}
