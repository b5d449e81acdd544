//! The rules of authorization written down once more, as plainly as they can be said.
//!
//! Slow on purpose: the compiled form is compared with it.

use std::net::IpAddr;

use ipnet::IpNet;

use super::path::decoded;
use super::{Action, Attributes, Authz, Claim, From, PathPattern, Rule, To, Values, When};
use crate::authz::cidr::canonical_net;
use crate::authz::policy::StringMatch;
use crate::name::Str;

/// A policy as it is compared: namespace, whether it is only tried, and what it says; `None` could not be translated.
pub type Plain<'a> = (&'a str, bool, Option<&'a Authz>);

/// Whether these policies let a request pass, provided that no provider refuses.
#[must_use]
pub fn allows(policies: &[Plain<'_>], of: &Attributes<'_>) -> bool {
    let enforced: Vec<_> = policies.iter().filter(|(_, dry_run, _)| !dry_run).collect();
    let mut readable = Vec::new();
    for (namespace, _, authz) in enforced {
        match authz {
            Some(authz)
                if authz
                    .rules
                    .iter()
                    .flat_map(|rule| &rule.when)
                    .all(|when| is_key(&when.key)) =>
            {
                readable.push((*namespace, *authz));
            }
            // An ALLOW rule that is left out is left out with its keys.
            Some(authz)
                if authz
                    .rules
                    .iter()
                    .filter(|rule| !(rule.is_partial && authz.action == Action::Allow))
                    .flat_map(|rule| &rule.when)
                    .all(|when| is_key(&when.key)) =>
            {
                readable.push((*namespace, *authz));
            }
            _ => return false,
        }
    }
    let matching = |action| {
        readable
            .iter()
            .filter(move |(_, authz)| authz.action == action)
            .any(|(namespace, authz)| policy_matches(namespace, authz, of))
    };
    if matching(Action::Deny) {
        return false;
    }
    let has_allow = readable.iter().any(|(_, authz)| authz.action == Action::Allow);
    !has_allow || matching(Action::Allow)
}

/// Whether any rule of a policy matches.
#[must_use]
pub fn policy_matches(namespace: &str, authz: &Authz, of: &Attributes<'_>) -> bool {
    let allow = authz.action == Action::Allow;
    authz
        .rules
        .iter()
        .any(|rule| !(allow && rule.is_partial) && rule_matches(namespace, rule, of, allow))
}

fn rule_matches(namespace: &str, rule: &Rule, of: &Attributes<'_>, allow: bool) -> bool {
    (rule.from.is_empty() || rule.from.iter().any(|from| source(from, of, allow)))
        && (rule.to.is_empty() || rule.to.iter().any(|to| operation(to, of, allow)))
        && rule.when.iter().all(|when| condition(namespace, when, of, allow))
}

fn is_key(key: &str) -> bool {
    let named = |start: &str| {
        key.strip_prefix(start)
            .is_some_and(|rest| rest.starts_with('[') && rest.ends_with(']') && rest.len() > 2)
    };
    let known = [
        "source.ip",
        "source.namespace",
        "source.principal",
        "source.serviceAccount",
        "remote.ip",
        "destination.ip",
        "destination.port",
        "connection.sni",
        "request.auth.principal",
        "request.auth.audiences",
        "request.auth.presenter",
    ];
    known.contains(&key) || named("request.headers") || named("request.auth.claims")
}

/// `None` cannot be told.
type Seen<T> = Option<Vec<T>>;

/// The one sentence that everything else follows from.
fn holds<T, P>(asked: &Values<P>, seen: Seen<T>, allow: bool, is: impl Fn(&P, &T) -> bool) -> bool {
    if asked.any.is_empty() && asked.none.is_empty() {
        return true;
    }
    let Some(seen) = seen else { return !allow };
    let among = |list: &[P], value: &T| list.iter().any(|pattern| is(pattern, value));
    let positive = if asked.any.is_empty() {
        true
    } else if allow {
        !seen.is_empty() && seen.iter().all(|value| among(&asked.any, value))
    } else {
        seen.iter().any(|value| among(&asked.any, value))
    };
    let negative = if asked.none.is_empty() || seen.is_empty() {
        true
    } else if allow {
        seen.iter().all(|value| !among(&asked.none, value))
    } else {
        seen.iter().any(|value| !among(&asked.none, value))
    };
    positive && negative
}

fn text(pattern: &StringMatch, value: &str) -> bool {
    match pattern {
        StringMatch::Exact(text) => *value == **text,
        StringMatch::Prefix(text) => value.starts_with(&**text),
        StringMatch::Suffix(text) => value.ends_with(&**text),
        StringMatch::Presence => !value.is_empty(),
    }
}

#[expect(
    clippy::ptr_arg,
    reason = "stands beside the texts of other attributes, which are owned"
)]
fn owned(pattern: &StringMatch, value: &String) -> bool {
    text(pattern, value)
}

fn without_case(pattern: &StringMatch, value: &str) -> bool {
    let lower = |text: &Str| Str::from(text.to_ascii_lowercase());
    let pattern = match pattern {
        StringMatch::Exact(text) => StringMatch::Exact(lower(text)),
        StringMatch::Prefix(text) => StringMatch::Prefix(lower(text)),
        StringMatch::Suffix(text) => StringMatch::Suffix(lower(text)),
        StringMatch::Presence => StringMatch::Presence,
    };
    text(&pattern, &value.to_ascii_lowercase())
}

fn net(range: &IpNet, address: &IpAddr) -> bool {
    canonical_net(*range).contains(&address.to_canonical())
}

fn source(from: &From, of: &Attributes<'_>, allow: bool) -> bool {
    let identity: Vec<_> = of.source.identity.iter().collect();
    let principals = identity.iter().map(|identity| identity.principal()).collect();
    let namespaces = identity
        .iter()
        .map(|identity| identity.namespace.to_string())
        .collect();
    holds(&from.principals, Some(principals), allow, owned)
        && holds(&from.namespaces, Some(namespaces), allow, owned)
        && holds(
            &from.service_accounts,
            Some(identity),
            allow,
            |account, identity| {
                account.namespace == identity.namespace && account.service_account == identity.service_account
            },
        )
        && holds(&from.ips, Some(vec![of.source.ip]), allow, net)
        && holds(&from.remote_ips, Some(vec![of.source.remote_ip]), allow, net)
        && holds(
            &from.request_principals,
            token_texts(of, |of| vec![of.principal.clone()]),
            allow,
            |p, v| text(p, v),
        )
}

fn token_texts(of: &Attributes<'_>, read: impl Fn(&super::Token) -> Vec<Str>) -> Seen<Str> {
    of.request?;
    Some(of.token.map(read).unwrap_or_default())
}

fn operation(to: &To, of: &Attributes<'_>, allow: bool) -> bool {
    let method = of.request.map(|request| vec![request.method.to_string()]);
    let authority = of.request.map(|request| vec![request.authority.to_string()]);
    let host = |pattern: &StringMatch, authority: &String| {
        let host = of.request.map(|request| request.host()).unwrap_or_default();
        [authority, host, host.strip_suffix('.').unwrap_or(host)]
            .iter()
            .any(|form| without_case(pattern, form))
    };
    let with_path = |path: String| {
        holds(&to.paths, Some(vec![path]), allow, |pattern, value| {
            is_path(pattern, value)
        })
    };
    let paths = match of.request {
        None => to.paths.is_empty() || !allow,
        Some(request) => {
            let lenient = decoded(&request.path).filter(|_| !allow);
            with_path(request.path.to_string()) || lenient.is_some_and(|path| with_path(path.into()))
        }
    };
    holds(
        &to.ports,
        Some(vec![of.destination.address.port()]),
        allow,
        |a, b| a == b,
    ) && holds(&to.methods, method, allow, owned)
        && holds(&to.hosts, authority, allow, host)
        && paths
}

fn is_path(pattern: &PathPattern, path: &str) -> bool {
    match pattern {
        PathPattern::Text(pattern) => text(pattern, path),
        PathPattern::Template(template) => is_like(template, path),
    }
}

/// Whether a path has the form of a template.
///
/// # Panics
/// Never: the literals are escaped.
#[must_use]
pub fn is_like(template: &str, path: &str) -> bool {
    let piece = |segment: &str| match segment {
        "{*}" => "[^/]+".to_owned(),
        "{**}" => ".*".to_owned(),
        literal => regex::escape(&super::path::upper_escapes(literal)),
    };
    let pieces: Vec<_> = template.split('/').map(piece).collect();
    let regex = regex::Regex::new(&format!("^(?s:{})$", pieces.join("/")));
    regex
        .expect("escaped literals are a regular expression")
        .is_match(path)
}

fn condition(namespace: &str, when: &When, of: &Attributes<'_>, allow: bool) -> bool {
    let texts = |seen: Seen<String>| holds(&when.values, seen, allow, owned);
    let ips = |address| holds(&when.ips, Some(vec![address]), allow, net);
    let identity = of.source.identity.as_ref();
    match &*when.key {
        "source.ip" => ips(of.source.ip),
        "remote.ip" => ips(of.source.remote_ip),
        "destination.ip" => ips(of.destination.address.ip()),
        "destination.port" => texts(Some(vec![of.destination.address.port().to_string()])),
        "source.namespace" => texts(Some(
            identity.map(|id| id.namespace.to_string()).into_iter().collect(),
        )),
        "source.principal" => texts(Some(identity.map(|id| id.principal()).into_iter().collect())),
        "source.serviceAccount" => {
            let whole = identity.map(|id| format!("{}/{}", id.namespace, id.service_account));
            holds(
                &when.values,
                Some(whole.into_iter().collect()),
                allow,
                |pattern, value: &String| {
                    let own = |text: &Str| match text.contains('/') {
                        true => text.clone(),
                        false => format!("{namespace}/{text}").into(),
                    };
                    match pattern {
                        StringMatch::Exact(name) => *value == *own(name),
                        StringMatch::Prefix(name) => value.starts_with(&*own(name)),
                        other => text(other, value),
                    }
                },
            )
        }
        "connection.sni" => holds(&when.values, of.sni.map(|sni| vec![sni]), allow, |p, v| {
            without_case(p, v)
        }),
        "request.auth.principal" => texts(strings(token_texts(of, |token| vec![token.principal.clone()]))),
        "request.auth.audiences" => texts(strings(token_texts(of, |token| token.audiences.clone()))),
        "request.auth.presenter" => texts(strings(token_texts(of, |token| {
            token.presenter.iter().cloned().collect()
        }))),
        key => bracketed(key, when, of, allow),
    }
}

fn strings(seen: Seen<Str>) -> Seen<String> {
    seen.map(|seen| seen.iter().map(ToString::to_string).collect())
}

fn bracketed(key: &str, when: &When, of: &Attributes<'_>, allow: bool) -> bool {
    let (start, names) = key.split_once('[').expect("unknown keys are sorted out before");
    let names: Vec<Str> = names.trim_end_matches(']').split("][").map(Into::into).collect();
    let Some(request) = of.request else {
        return when.values.is_empty() || !allow;
    };
    if when.values.is_empty() {
        return true;
    }
    if start == "request.headers" {
        if http::HeaderName::from_bytes(names[0].as_bytes()).is_err() {
            return !allow;
        }
        let values: Vec<_> = request
            .headers
            .get_all(&*names[0])
            .iter()
            .map(|value| value.as_bytes().to_vec())
            .collect();
        return holds(&when.values, Some(values), allow, |pattern, value: &Vec<u8>| {
            text(
                pattern,
                &value.iter().map(|byte| char::from(*byte)).collect::<String>(),
            )
        });
    }
    let seen = match of.token.and_then(|token| token.claim(&names)) {
        None => Some(Vec::new()),
        Some(Claim::Texts(texts)) => Some(texts.iter().map(ToString::to_string).collect()),
        Some(Claim::Nested(_) | Claim::Odd) => None,
    };
    holds(&when.values, seen, allow, owned)
}
