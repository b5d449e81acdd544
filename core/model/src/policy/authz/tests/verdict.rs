//! What several policies decide together, and what cannot be read or translated.

use super::*;

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

#[test]
fn before_its_tokens_are_known_a_request_is_denied_only_by_what_does_not_ask_for_them() {
    let denied = |policies: &[Arc<Policy>], path: &str| {
        let (source, head) = (web(), get(path));
        let of = Attributes::before_tokens(&source, to_port(80), &head);
        matches!(Authorizer::new(policies).check(&of), Verdict::Deny(_))
    };
    let role = || when("request.auth.claims[role]", exact(&["admin"]));
    let anybody = Values {
        none: vec![StringMatch::Presence],
        ..Values::default()
    };
    let nobody = || when("request.auth.principal", anybody.clone());
    assert!(!denied(&[authz("need", Action::Allow, vec![role()])], "/"));
    assert!(!denied(&[authz("known", Action::Deny, vec![nobody()])], "/"));
    let elsewhere = Rule {
        when: role().when,
        ..path("/b")
    };
    let need = authz("need", Action::Allow, vec![elsewhere]);
    assert!(denied(&[need], "/a"), "whatever the token says");
    assert!(denied(&[authz("closed", Action::Deny, vec![path("/a")])], "/a"));
}
