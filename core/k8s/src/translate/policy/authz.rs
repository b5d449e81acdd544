//! `AuthorizationPolicy` with targets: judged by waypoints, which see requests.

use ipnet::IpNet;
use tulle_model::Str;
use tulle_model::authz::policy::StringMatch;
use tulle_model::policy::Concern;
use tulle_model::policy::authz::path::Template;
use tulle_model::policy::authz::{Action, Authz, From, PathPattern, Rule, To, Values, When};

use super::super::authorization::values::{Context, Unusable, shown};
use super::super::lookup::Lookup;
use super::{Said, unreadable};
use crate::api::AuthorizationPolicy;
use crate::api::security::{AuthorizationRule, Operation, Source, When as Condition};

/// Values in one policy, its rules and their parts counted along.
pub(super) const VALUES_MAX: usize = 100_000;

/// What a policy says.
pub(super) fn said(policy: &AuthorizationPolicy, around: &impl Lookup) -> Said {
    if let Some(of) = &policy.unreadable {
        return unreadable(&of.cause);
    }
    let action = match &*policy.spec.action {
        "" | "ALLOW" => Action::Allow,
        "DENY" => Action::Deny,
        "AUDIT" => Action::Audit,
        "CUSTOM" => Action::Custom,
        other => return unreadable(&format!("`{}` is no action", other.escape_default())),
    };
    let provider = policy
        .spec
        .provider
        .as_ref()
        .map(|provider| provider.name.clone());
    if action == Action::Custom {
        let known = provider.as_ref().is_some_and(|name| around.mesh().decides(name));
        if !known {
            let name = shown(provider.as_deref().unwrap_or_default());
            return unreadable(&format!("the mesh has no provider `{name}` that decides"));
        }
    }
    if exceeds(sizes(policy), VALUES_MAX) {
        return unreadable(&format!("it has more than {VALUES_MAX} values"));
    }
    let context = Context {
        mesh: around.mesh(),
        namespace: &policy.metadata.namespace,
    };
    let mut draft = Draft {
        context,
        unknown: Vec::new(),
        untranslatable: None,
    };
    let mut rules = Vec::new();
    for (index, rule) in policy.spec.rules.iter().enumerate() {
        rules.push(draft.rule(rule, index));
    }
    if let Some(cause) = draft.untranslatable {
        return unreadable(&cause);
    }
    let flaw = (!draft.unknown.is_empty()).then(|| flaw(action, &rules, &draft.unknown.join(", ")));
    Said {
        concerns: vec![Concern::Authz(Authz {
            action,
            rules,
            provider,
        })],
        flaw,
    }
}

fn flaw(action: Action, rules: &[Rule], unknown: &str) -> (&'static str, String) {
    match action {
        Action::Allow if rules.iter().all(|rule| rule.is_partial) => {
            let message = format!("{unknown} cannot be evaluated; no rule is left, so nothing is allowed");
            ("Invalid", message)
        }
        Action::Allow => {
            let message = format!("{unknown} cannot be evaluated; these rules allow nothing");
            ("PartiallyInvalid", message)
        }
        _ => {
            let message =
                format!("{unknown} cannot be evaluated; these rules match more than they say (T0206)");
            ("PartiallyInvalid", message)
        }
    }
}

/// Whether these are more than so many together; nothing is looked at beyond that.
pub(super) fn exceeds(sizes: impl Iterator<Item = usize>, max: usize) -> bool {
    let mut left = max;
    for size in sizes {
        match left.checked_sub(size) {
            Some(rest) => left = rest,
            None => return true,
        }
    }
    false
}

/// How much each part of a policy is: a rule, source, operation or condition is one, and so is each of its values.
pub(super) fn sizes(policy: &AuthorizationPolicy) -> impl Iterator<Item = usize> {
    policy.spec.rules.iter().flat_map(|rule| {
        let from = rule.from.iter();
        let from = from.map(|from| 1 + from.source.as_ref().map_or(0, size_of_source));
        let to = rule.to.iter();
        let to = to.map(|to| 1 + to.operation.as_ref().map_or(0, size_of_operation));
        let when = rule.when.iter();
        let when = when.map(|when| 1 + when.values.len() + when.not_values.len());
        std::iter::once(1).chain(from).chain(to).chain(when)
    })
}

fn size_of_source(of: &Source) -> usize {
    of.principals.len()
        + of.not_principals.len()
        + of.request_principals.len()
        + of.not_request_principals.len()
        + of.namespaces.len()
        + of.not_namespaces.len()
        + of.service_accounts.len()
        + of.not_service_accounts.len()
        + of.ip_blocks.len()
        + of.not_ip_blocks.len()
        + of.remote_ip_blocks.len()
        + of.not_remote_ip_blocks.len()
}

fn size_of_operation(of: &Operation) -> usize {
    of.hosts.len()
        + of.not_hosts.len()
        + of.ports.len()
        + of.not_ports.len()
        + of.methods.len()
        + of.not_methods.len()
        + of.paths.len()
        + of.not_paths.len()
}

struct Draft<'a> {
    context: Context<'a>,
    /// What cannot be evaluated, for the condition.
    unknown: Vec<String>,
    /// What makes the policy as a whole one that denies everything.
    untranslatable: Option<String>,
}

impl Draft<'_> {
    fn rule(&mut self, rule: &AuthorizationRule, index: usize) -> Rule {
        let before = self.unknown.len();
        let mut made = Rule::default();
        for from in &rule.from {
            let source = from.source.as_ref();
            made.from
                .push(source.map_or_else(From::default, |source| self.source(source, index)));
        }
        for to in &rule.to {
            let operation = to.operation.as_ref();
            made.to
                .push(operation.map_or_else(To::default, |operation| self.operation(operation, index)));
        }
        // An alternative that always holds makes the others meaningless.
        if made.from.contains(&From::default()) {
            made.from.clear();
        }
        if made.to.contains(&To::default()) {
            made.to.clear();
        }
        for condition in &rule.when {
            made.when.extend(self.when(condition, index));
        }
        made.is_partial = self.unknown.len() > before;
        made
    }

    /// Values of one attribute; one bad value makes the attribute unknown as a whole, as if it were true.
    fn values<T>(
        &mut self,
        field: &str,
        index: usize,
        texts: (&[Str], &[Str]),
        read: impl Fn(&str) -> Result<Vec<T>, Unusable>,
    ) -> Values<T> {
        let all = |texts: &[Str]| -> Result<Vec<T>, Unusable> {
            let lists: Result<Vec<Vec<T>>, Unusable> = texts.iter().map(|text| read(text)).collect();
            Ok(lists?.into_iter().flatten().collect())
        };
        let any = all(texts.0)
            .map_err(|Unusable(text)| self.unknown.push(format!("rules[{index}].{field} `{text}`")));
        let none = all(texts.1)
            .map_err(|Unusable(text)| self.unknown.push(format!("rules[{index}].not {field} `{text}`")));
        Values {
            any: any.unwrap_or_default(),
            none: none.unwrap_or_default(),
        }
    }

    fn source(&mut self, source: &Source, index: usize) -> From {
        let (mesh, namespace) = (self.context.mesh, self.context.namespace);
        let context = Context { mesh, namespace };
        From {
            principals: self.values(
                "principals",
                index,
                (&source.principals, &source.not_principals),
                |text| context.principal(text),
            ),
            namespaces: self.values(
                "namespaces",
                index,
                (&source.namespaces, &source.not_namespaces),
                Context::string,
            ),
            request_principals: self.values(
                "requestPrincipals",
                index,
                (&source.request_principals, &source.not_request_principals),
                Context::string,
            ),
            ips: self.values(
                "ipBlocks",
                index,
                (&source.ip_blocks, &source.not_ip_blocks),
                Context::cidr,
            ),
            remote_ips: self.values(
                "remoteIpBlocks",
                index,
                (&source.remote_ip_blocks, &source.not_remote_ip_blocks),
                Context::cidr,
            ),
            service_accounts: self.values(
                "serviceAccounts",
                index,
                (&source.service_accounts, &source.not_service_accounts),
                |text| context.service_account(text),
            ),
        }
    }

    fn operation(&mut self, operation: &Operation, index: usize) -> To {
        To {
            hosts: self.values(
                "hosts",
                index,
                (&operation.hosts, &operation.not_hosts),
                Context::string,
            ),
            ports: self.values(
                "ports",
                index,
                (&operation.ports, &operation.not_ports),
                Context::port,
            ),
            methods: self.values(
                "methods",
                index,
                (&operation.methods, &operation.not_methods),
                Context::string,
            ),
            paths: self.values("paths", index, (&operation.paths, &operation.not_paths), path),
        }
    }

    fn when(&mut self, when: &Condition, index: usize) -> Option<When> {
        let texts = (&*when.values, &*when.not_values);
        if texts.0.is_empty() && texts.1.is_empty() {
            self.unknown.push(format!("rules[{index}].when without values"));
            return None;
        }
        let mut made = When {
            key: when.key.clone(),
            values: Values::default(),
            ips: Values::default(),
        };
        match kind_of(&when.key) {
            Some(Attribute::Address) => made.ips = self.values("when", index, texts, Context::cidr),
            Some(Attribute::Port) => {
                // Ports are compared as numbers, and so must be numbers.
                let ports: Values<u16> = self.values("when", index, texts, Context::port);
                let exact = |port: &u16| StringMatch::Exact(port.to_string().into());
                made.values.any = ports.any.iter().map(exact).collect();
                made.values.none = ports.none.iter().map(exact).collect();
            }
            Some(Attribute::Principal) => {
                let (mesh, namespace) = (self.context.mesh, self.context.namespace);
                let context = Context { mesh, namespace };
                made.values = self.values("when", index, texts, |text| context.principal(text));
            }
            Some(Attribute::Text) => made.values = self.values("when", index, texts, Context::string),
            None => {
                let cause = format!("rules[{index}].when has the unknown key `{}`", shown(&when.key));
                self.untranslatable.get_or_insert(cause);
            }
        }
        let values: (&Values<StringMatch>, &Values<IpNet>) = (&made.values, &made.ips);
        (!values.0.is_empty() || !values.1.is_empty()).then_some(made)
    }
}

enum Attribute {
    Address,
    Port,
    Principal,
    Text,
}

/// What values an attribute has; `None` for one that does not exist.
fn kind_of(key: &str) -> Option<Attribute> {
    let named = |start: &str| {
        let inner = key.strip_prefix(start).and_then(|rest| rest.strip_prefix('['));
        inner.is_some_and(|rest| rest.len() > 1 && rest.ends_with(']'))
    };
    match key {
        "source.ip" | "remote.ip" | "destination.ip" => Some(Attribute::Address),
        "destination.port" => Some(Attribute::Port),
        "source.principal" => Some(Attribute::Principal),
        "source.namespace"
        | "source.serviceAccount"
        | "connection.sni"
        | "request.auth.principal"
        | "request.auth.audiences"
        | "request.auth.presenter" => Some(Attribute::Text),
        _ if named("request.headers") || named("request.auth.claims") => Some(Attribute::Text),
        _ => None,
    }
}

/// A path, or a template of one. Braces that are no template are bad values, not literals.
fn path(text: &str) -> Result<Vec<PathPattern>, Unusable> {
    if !text.contains(['{', '}']) {
        let texts = Context::string(text)?;
        return Ok(texts.into_iter().map(PathPattern::Text).collect());
    }
    match Template::new(text) {
        Some(_) => Ok(vec![PathPattern::Template(text.into())]),
        None => Err(Unusable(shown(text))),
    }
}
