//! What is compared of a request: paths, hosts, methods, headers.

use super::*;

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
