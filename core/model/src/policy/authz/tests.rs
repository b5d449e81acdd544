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

#[test]
fn without_policies_everything_passes() {
    assert_eq!(judged(&[], Some(&get("/")), None), Ok(Because::NoAllowPolicy));
    assert!(Authorizer::new(&[]).is_empty());
}

#[test]
fn deny_beats_allow_and_names_policy_and_rule() {
    let policies = [
        authz("open", Action::Allow, vec![Rule::default()]),
        authz("closed", Action::Deny, vec![path("/x"), path("/admin")]),
    ];
    let denied = judged(&policies, Some(&get("/admin")), None).unwrap_err();
    let matched = Matched {
        policy: "AuthorizationPolicy/shop/closed/authz".into(),
        rule: 1,
    };
    assert_eq!(denied, Denial::Matched(matched));
    assert_eq!(denied.reason(), Reason::PolicyDenied);
    assert!(passes(&policies, &get("/")));
}

#[test]
fn one_allow_that_matches_is_enough_and_none_denies() {
    let policies = [
        authz("a", Action::Allow, vec![path("/a")]),
        authz("b", Action::Allow, vec![path("/b")]),
    ];
    assert!(passes(&policies, &get("/b")));
    assert_eq!(
        judged(&policies, Some(&get("/c")), None),
        Err(Denial::NoAllowMatched)
    );
}

#[test]
fn an_allow_without_rules_matches_nothing_and_a_rule_without_clauses_everything() {
    assert!(!passes(&[authz("a", Action::Allow, vec![])], &get("/")));
    assert!(passes(
        &[authz("a", Action::Allow, vec![Rule::default()])],
        &get("/")
    ));
    assert!(passes(&[authz("a", Action::Deny, vec![])], &get("/")));
    assert!(!passes(
        &[authz("a", Action::Deny, vec![Rule::default()])],
        &get("/")
    ));
}

#[test]
fn what_could_not_be_translated_denies_whatever_else_is_allowed() {
    let policies = [
        authz("open", Action::Allow, vec![Rule::default()]),
        made("broken", false, Concern::DenyAll("no such key".into())),
    ];
    let denied = judged(&policies, Some(&get("/")), None).unwrap_err();
    assert_eq!(denied.reason(), Reason::PolicyUntranslatable);
    assert_eq!(
        denied.policy().map(|name| &**name),
        Some("AuthorizationPolicy/shop/broken/deny_all")
    );
}

#[test]
fn an_unknown_key_denies_everything() {
    for action in [Action::Allow, Action::Deny, Action::Audit, Action::Custom] {
        let policies = [authz(
            "odd",
            action,
            vec![when("request.body", exact(&["x"])), Rule::default()],
        )];
        let denied = judged(&policies, Some(&get("/")), None).unwrap_err();
        assert_eq!(denied.reason(), Reason::PolicyUntranslatable, "{action:?}");
    }
}

#[test]
fn what_is_partly_unknown_allows_nothing_and_denies_more() {
    let partial = |rule: Rule| Rule {
        is_partial: true,
        ..rule
    };
    assert!(!passes(
        &[authz("a", Action::Allow, vec![partial(path("/a"))])],
        &get("/a")
    ));
    let denying = [authz("d", Action::Deny, vec![partial(path("/a"))])];
    assert!(!passes(&denying, &get("/a")));
    assert!(passes(&denying, &get("/b")));
}

#[test]
fn every_value_of_a_repeated_header_must_be_allowed() {
    let policies = [authz(
        "a",
        Action::Allow,
        vec![when("request.headers[x-team]", exact(&["a", "b"]))],
    )];
    assert!(passes(&policies, &with_header("x-team", &["a", "b"])));
    assert!(!passes(&policies, &with_header("x-team", &["a", "c"])));
    assert!(!passes(&policies, &with_header("x-team", &["a, b"])));
    assert!(!passes(&policies, &get("/")));
    let negated = [authz(
        "a",
        Action::Allow,
        vec![when("request.headers[x-team]", not(&["c"]))],
    )];
    assert!(passes(&negated, &with_header("x-team", &["a"])));
    assert!(passes(&negated, &get("/")));
    assert!(!passes(&negated, &with_header("x-team", &["a", "c"])));
}

#[test]
fn one_value_of_a_repeated_header_is_enough_to_deny() {
    let policies = [authz(
        "d",
        Action::Deny,
        vec![when("request.headers[x-team]", exact(&["c"]))],
    )];
    assert!(!passes(&policies, &with_header("x-team", &["a", "c"])));
    assert!(passes(&policies, &with_header("x-team", &["a"])));
    let negated = [authz(
        "d",
        Action::Deny,
        vec![when("request.headers[X-Team]", not(&["a"]))],
    )];
    assert!(!passes(&negated, &with_header("x-team", &["a", "c"])));
    assert!(passes(&negated, &with_header("x-team", &["a"])));
    assert!(
        !passes(&negated, &get("/")),
        "an absent header is none of the excepted"
    );
}

#[test]
fn a_deny_on_a_path_also_holds_for_what_a_lenient_application_reads() {
    let denying = [authz("d", Action::Deny, vec![path("/admin/x")])];
    for disguised in [
        "/admin/x",
        "/admin%2Fx",
        "/admin//x",
        "/a/%2E%2E/admin/x",
        "/admin%252Fx",
    ] {
        assert!(!passes(&denying, &get(disguised)), "{disguised}");
    }
    let allowing = [authz("a", Action::Allow, vec![path("/admin/x")])];
    assert!(passes(&allowing, &get("/admin/x")));
    assert!(
        !passes(&allowing, &get("/admin%2Fx")),
        "an ALLOW means the path as it goes upstream"
    );
}

#[test]
fn a_deny_of_all_paths_but_some_is_not_passed_by_a_disguise_of_those() {
    let rule = Rule {
        to: vec![To {
            paths: Values {
                any: vec![],
                none: vec![PathPattern::Text(StringMatch::Prefix("/public/".into()))],
            },
            ..To::default()
        }],
        ..Rule::default()
    };
    let policies = [authz("d", Action::Deny, vec![rule])];
    assert!(passes(&policies, &get("/public/a")));
    assert!(!passes(&policies, &get("/public/..%2Fsecret")));
}

#[test]
fn patterns_of_paths_have_their_escapes_in_upper_case() {
    assert!(!passes(
        &[authz("d", Action::Deny, vec![path("/a%2fb")])],
        &get("/a%2Fb")
    ));
}

#[test]
fn a_template_of_a_path_matches_segments() {
    let rule = paths(&[PathPattern::Template("/users/{*}/orders/{**}".into())]);
    let policies = [authz("a", Action::Allow, vec![rule])];
    assert!(passes(&policies, &get("/users/7/orders/1/items")));
    assert!(!passes(&policies, &get("/users/7/8/orders/1")));
}

#[test]
fn a_template_that_cannot_be_read_allows_nothing_and_denies() {
    let rule = || paths(&[PathPattern::Template("/a{*}".into())]);
    assert!(!passes(&[authz("a", Action::Allow, vec![rule()])], &get("/ab")));
    assert!(!passes(&[authz("d", Action::Deny, vec![rule()])], &get("/x")));
}

#[test]
fn hosts_are_compared_with_and_without_port_and_without_regard_to_case() {
    let host = |text: &str| Rule {
        to: vec![To {
            hosts: exact(&[text]),
            ..To::default()
        }],
        ..Rule::default()
    };
    for text in ["cart.shop", "cart.shop:8080", "Cart.SHOP"] {
        assert!(
            passes(&[authz("a", Action::Allow, vec![host(text)])], &get("/")),
            "{text}"
        );
    }
    assert!(!passes(
        &[authz("a", Action::Allow, vec![host("cart.shop:80")])],
        &get("/")
    ));
    let dotted = RequestHead {
        authority: "CART.shop.:8080".into(),
        ..get("/")
    };
    assert!(!passes(
        &[authz("d", Action::Deny, vec![host("cart.shop")])],
        &dotted
    ));
}

#[test]
fn fields_are_joined_by_and_alternatives_by_or() {
    let to = |method: &str, port: u16| To {
        methods: exact(&[method]),
        ports: Values {
            any: vec![port],
            none: vec![],
        },
        ..To::default()
    };
    let rule = Rule {
        to: vec![to("POST", 80), to("GET", 81)],
        ..Rule::default()
    };
    let policies = [authz("a", Action::Allow, vec![rule])];
    assert!(!passes(&policies, &get("/")));
    let post = RequestHead {
        method: Method::POST,
        ..get("/")
    };
    assert!(passes(&policies, &post));
}

#[test]
fn methods_have_their_case() {
    let rule = Rule {
        to: vec![To {
            methods: exact(&["get"]),
            ..To::default()
        }],
        ..Rule::default()
    };
    assert!(!passes(&[authz("a", Action::Allow, vec![rule])], &get("/")));
}

#[test]
fn sources_are_told_by_identity_address_and_account() {
    let of = |from: From| {
        let rule = Rule {
            from: vec![from],
            ..Rule::default()
        };
        passes(&[authz("a", Action::Allow, vec![rule])], &get("/"))
    };
    let account = |namespace: &str, service_account: &str| Values {
        any: vec![ServiceAccountMatch {
            namespace: namespace.into(),
            service_account: service_account.into(),
        }],
        none: vec![],
    };
    let range = |text: &str| Values {
        any: vec![text.parse::<IpNet>().unwrap()],
        none: vec![],
    };
    assert!(of(From {
        principals: exact(&["cluster.local/ns/shop/sa/web"]),
        ..From::default()
    }));
    assert!(!of(From {
        principals: exact(&["other.td/ns/shop/sa/web"]),
        ..From::default()
    }));
    assert!(of(From {
        namespaces: exact(&["shop"]),
        ..From::default()
    }));
    assert!(of(From {
        service_accounts: account("shop", "web"),
        ..From::default()
    }));
    assert!(!of(From {
        service_accounts: account("dev", "web"),
        ..From::default()
    }));
    assert!(of(From {
        ips: range("10.0.0.0/8"),
        ..From::default()
    }));
    assert!(!of(From {
        remote_ips: range("10.0.0.0/8"),
        ..From::default()
    }));
    assert!(of(From {
        remote_ips: range("192.0.2.0/24"),
        ..From::default()
    }));
}

#[test]
fn conditions_know_every_key() {
    let token = Token {
        principal: "iss/sub".into(),
        audiences: vec!["a".into(), "b".into()],
        presenter: Some("app".into()),
        claims: [
            ("groups".into(), Claim::Texts(vec!["dev".into(), "ops".into()])),
            (
                "realm".into(),
                Claim::Nested([("role".into(), Claim::Texts(vec!["admin".into()]))].into()),
            ),
            ("odd".into(), Claim::Odd),
        ]
        .into(),
    };
    let holds = |action, key: &str, values: Values<StringMatch>| {
        let policies = [authz("p", action, vec![when(key, values)])];
        judged(&policies, Some(&get("/")), Some(&token)).is_ok()
    };
    let allows = |key: &str, values: &[&str]| holds(Action::Allow, key, exact(values));
    assert!(allows("request.auth.principal", &["iss/sub"]));
    assert!(allows("request.auth.audiences", &["a", "b"]));
    assert!(
        !allows("request.auth.audiences", &["a"]),
        "every audience must be among them"
    );
    assert!(
        !holds(Action::Deny, "request.auth.audiences", exact(&["a"])),
        "one is enough to deny"
    );
    assert!(allows("request.auth.presenter", &["app"]));
    assert!(allows("request.auth.claims[groups]", &["dev", "ops"]));
    assert!(!allows("request.auth.claims[groups]", &["dev"]));
    assert!(allows("request.auth.claims[realm][role]", &["admin"]));
    assert!(!allows("request.auth.claims[realm]", &["admin"]));
    assert!(
        !holds(Action::Deny, "request.auth.claims[odd]", exact(&["x"])),
        "what cannot be told denies"
    );
    assert!(allows("source.namespace", &["shop"]));
    assert!(allows("source.principal", &["cluster.local/ns/shop/sa/web"]));
    assert!(allows("source.serviceAccount", &["shop/web"]));
    assert!(
        allows("source.serviceAccount", &["web"]),
        "a bare name is one of the policy's namespace"
    );
    assert!(allows("destination.port", &["80"]));
    assert!(!allows("destination.port", &["8"]));
}

#[test]
fn addresses_are_conditions_too() {
    for (key, range) in [
        ("source.ip", "10.0.0.0/8"),
        ("remote.ip", "192.0.2.0/24"),
        ("destination.ip", "10.96.0.0/16"),
    ] {
        let rule = Rule {
            when: vec![When {
                key: key.into(),
                values: Values::default(),
                ips: Values {
                    any: vec![range.parse().unwrap()],
                    none: vec![],
                },
            }],
            ..Rule::default()
        };
        assert!(
            passes(&[authz("a", Action::Allow, vec![rule])], &get("/")),
            "{key}"
        );
    }
}

#[test]
fn on_a_stream_what_needs_a_request_allows_nothing_and_denies() {
    let stream = |action, rule: Rule| judged(&[authz("p", action, vec![rule])], None, None).is_ok();
    assert!(!stream(Action::Allow, path("/a")));
    assert!(!stream(Action::Deny, path("/a")));
    assert!(!stream(Action::Deny, when("request.headers[x]", exact(&["a"]))));
    assert!(
        !stream(Action::Deny, when("connection.sni", exact(&["a"]))),
        "an absent server name"
    );
    let from = Rule {
        from: vec![From {
            namespaces: exact(&["shop"]),
            ..From::default()
        }],
        ..Rule::default()
    };
    assert!(stream(Action::Allow, from));
    let other = Rule {
        from: vec![From {
            namespaces: exact(&["dev"]),
            ..From::default()
        }],
        ..path("/a")
    };
    assert!(
        stream(Action::Deny, other),
        "the parts that can be told still count"
    );
}

#[test]
fn a_server_name_is_compared_without_regard_to_case() {
    let source = web();
    let of = Attributes::of_stream(&source, to_port(443), Some("API.example.com"));
    let policies = [authz(
        "a",
        Action::Allow,
        vec![when("connection.sni", exact(&["api.Example.com"]))],
    )];
    assert!(matches!(Authorizer::new(&policies).check(&of), Verdict::Allow(_)));
}

#[test]
fn a_caller_without_identity_is_none_of_the_named() {
    let nobody = Source {
        identity: None,
        ..web()
    };
    let head = get("/");
    let of = Attributes::of_request(&nobody, to_port(80), &head, None);
    let rule = |principals| Rule {
        from: vec![From {
            principals,
            ..From::default()
        }],
        ..Rule::default()
    };
    let allow = [authz(
        "a",
        Action::Allow,
        vec![rule(Values {
            any: vec![StringMatch::Presence],
            none: vec![],
        })],
    )];
    assert!(matches!(Authorizer::new(&allow).check(&of), Verdict::Deny(_)));
    let deny = [authz(
        "d",
        Action::Deny,
        vec![rule(not(&["cluster.local/ns/shop/sa/web"]))],
    )];
    assert!(matches!(Authorizer::new(&deny).check(&of), Verdict::Deny(_)));
}

#[test]
fn a_request_without_token_is_denied_where_tokens_are_demanded() {
    let rule = Rule {
        from: vec![From {
            request_principals: Values {
                any: vec![],
                none: vec![StringMatch::Presence],
            },
            ..From::default()
        }],
        ..Rule::default()
    };
    let policies = [authz("need-token", Action::Deny, vec![rule])];
    assert!(!passes(&policies, &get("/")));
    let token = Token {
        principal: "iss/sub".into(),
        ..Token::default()
    };
    assert!(judged(&policies, Some(&get("/")), Some(&token)).is_ok());
}

#[test]
fn providers_are_asked_where_a_custom_policy_matches() {
    let source = web();
    let (admin, other) = (get("/admin"), get("/"));
    let authorizer = Authorizer::new(&[authz("ask", Action::Custom, vec![path("/admin")])]);
    let asked = |head| {
        let of = Attributes::of_request(&source, to_port(80), head, None);
        let asks = authorizer
            .asks(&of)
            .map(|(matched, provider)| (matched.rule, provider.map(ToString::to_string)));
        asks.collect::<Vec<_>>()
    };
    assert_eq!(asked(&admin), [(0, Some("opa".to_owned()))]);
    assert_eq!(asked(&other), []);
}

#[test]
fn what_is_only_tried_is_told_and_decides_nothing() {
    let dry = |name: &str, action, rules| {
        made(
            name,
            true,
            Concern::Authz(Authz {
                action,
                rules,
                provider: None,
            }),
        )
    };
    let policies = [
        dry("deny", Action::Deny, vec![path("/")]),
        dry("allow", Action::Allow, vec![path("/x")]),
        made("broken", true, Concern::DenyAll("why".into())),
    ];
    assert!(passes(&policies, &get("/")));
    let (source, head) = (web(), get("/"));
    let of = Attributes::of_request(&source, to_port(80), &head, None);
    let authorizer = Authorizer::new(&policies);
    let denied: Vec<_> = authorizer
        .dry_runs(&of)
        .map(|run| (run.denies, run.rule))
        .collect();
    assert_eq!(denied, [(true, Some(0)), (true, None), (true, None)]);
}

#[test]
fn an_audit_marks_and_lets_pass() {
    let policies = [authz("log", Action::Audit, vec![path("/")])];
    assert!(passes(&policies, &get("/")));
    let (source, head) = (web(), get("/"));
    let of = Attributes::of_request(&source, to_port(80), &head, None);
    let authorizer = Authorizer::new(&policies);
    let marks: Vec<_> = authorizer
        .audits(&of)
        .map(|matched| matched.to_string())
        .collect();
    assert_eq!(marks, ["AuthorizationPolicy/shop/log/authz[0]"]);
}

#[test]
fn an_explanation_names_what_kept_each_rule_from_matching() {
    let policies = [
        authz(
            "a",
            Action::Allow,
            vec![path("/x"), when("request.headers[x]", exact(&["1"])), path("/")],
        ),
        authz("d", Action::Deny, vec![path("/x")]),
    ];
    let (source, head) = (web(), get("/"));
    let of = Attributes::of_request(&source, to_port(80), &head, None);
    let told = Authorizer::new(&policies).explain(&of);
    assert!(matches!(
        told.verdict,
        Verdict::Allow(Because::Matched(Matched { rule: 2, .. }))
    ));
    let failing: Vec<_> = told
        .policies
        .iter()
        .map(|policy| (policy.matched, policy.failing.clone()))
        .collect();
    assert_eq!(
        failing,
        [
            (None, vec![(0, "path")]),
            (Some(2), vec![(0, "path"), (1, "header")])
        ]
    );
}

#[test]
fn a_policy_that_reads_requests_says_so() {
    let reads = |rule| {
        Authz {
            action: Action::Allow,
            rules: vec![rule],
            provider: None,
        }
        .reads_requests()
    };
    assert!(reads(path("/a")));
    assert!(reads(when("request.headers[x]", exact(&["a"]))));
    assert!(!reads(when("source.namespace", exact(&["a"]))));
    assert!(!reads(Rule::default()));
}
