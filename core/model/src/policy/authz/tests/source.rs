//! Who calls, and the conditions on it: identities, addresses, tokens, server names.

use super::*;

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
