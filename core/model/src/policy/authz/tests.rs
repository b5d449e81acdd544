//! The table of authorization, one fact each.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::*;
use crate::identity::Identity;
use crate::policy::{Concern, On, Policy, Target};
use crate::reason::Reason;
use crate::request::{Destination, Protocol, RequestHead, Scheme, Source};
use crate::route::{Kind, Origin};

mod equivalence;
mod request;
mod source;
mod verdict;

fn web() -> Source {
    Source {
        identity: Some(Identity::new("cluster.local", "shop", "web")),
        ip: "10.0.0.7".parse().unwrap(),
        remote_ip: "192.0.2.1".parse().unwrap(),
    }
}

fn to_port(port: u16) -> Destination {
    Destination {
        address: format!("10.96.0.1:{port}").parse().unwrap(),
    }
}

fn get(path: &str) -> RequestHead {
    RequestHead {
        method: Method::GET,
        scheme: Scheme::Http,
        authority: "cart.shop:8080".into(),
        path: path.into(),
        query: None,
        headers: HeaderMap::new(),
        protocol: Protocol::Http11,
    }
}

fn with_header(name: &'static str, values: &[&'static str]) -> RequestHead {
    let mut head = get("/");
    for value in values {
        let name = HeaderName::from_static(name);
        head.headers.append(name, HeaderValue::from_static(value));
    }
    head
}

fn made(name: &str, dry_run: bool, concern: Concern) -> Arc<Policy> {
    Arc::new(Policy {
        object: "AuthorizationPolicy".into(),
        origin: Origin {
            kind: Kind::Policy,
            namespace: "shop".into(),
            name: name.into(),
            rule_index: 0,
            rule_name: "".into(),
            created: None,
            generation: 0,
        },
        targets: vec![Target {
            on: On::Mesh,
            port: None,
            section: None,
        }],
        dry_run,
        concern,
    })
}

fn authz(name: &str, action: Action, rules: Vec<Rule>) -> Arc<Policy> {
    let provider = (action == Action::Custom).then(|| "opa".into());
    let authz = Authz {
        action,
        rules,
        provider,
    };
    made(name, false, Concern::Authz(authz))
}

fn exact(texts: &[&str]) -> Values<StringMatch> {
    Values {
        any: texts
            .iter()
            .map(|text| StringMatch::Exact((*text).into()))
            .collect(),
        none: Vec::new(),
    }
}

fn not(texts: &[&str]) -> Values<StringMatch> {
    Values {
        none: exact(texts).any,
        any: Vec::new(),
    }
}

fn paths(patterns: &[PathPattern]) -> Rule {
    Rule {
        to: vec![To {
            paths: Values {
                any: patterns.to_vec(),
                none: Vec::new(),
            },
            ..To::default()
        }],
        ..Rule::default()
    }
}

fn path(text: &str) -> Rule {
    paths(&[PathPattern::Text(StringMatch::Exact(text.into()))])
}

fn when(key: &str, values: Values<StringMatch>) -> Rule {
    Rule {
        when: vec![When {
            key: key.into(),
            values,
            ips: Values::default(),
        }],
        ..Rule::default()
    }
}

#[track_caller]
fn passes(policies: &[Arc<Policy>], head: &RequestHead) -> bool {
    judged(policies, Some(head), None).is_ok()
}

fn judged(
    policies: &[Arc<Policy>],
    head: Option<&RequestHead>,
    token: Option<&Token>,
) -> Result<Because, Denial> {
    let source = web();
    let of = match head {
        Some(head) => Attributes::of_request(&source, to_port(80), head, token),
        None => Attributes::of_stream(&source, to_port(80), None),
    };
    match Authorizer::new(policies).check(&of) {
        Verdict::Allow(because) => Ok(because),
        Verdict::Deny(denial) => Err(denial),
    }
}
