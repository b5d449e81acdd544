//! Matching and precedence, one fact each.

use std::sync::Arc;

use http::Method;

use crate::request::RequestHead;
use crate::route::{Criterion, Fate, Kind, Match, Route, Router, Selection, Unmet};
use crate::testing::{exact, get, grpc, grpc_call, http_route, prefix, regex, request, route};

fn router(routes: &[Route]) -> Router<String> {
    let kind = routes[0].origin.kind;
    let routes: Vec<_> = routes.iter().cloned().map(Arc::new).collect();
    Router::compile(kind, &routes, |route| route.origin.name.to_string())
}

/// The name of the route that a request takes; `-` is none.
fn taken(routes: &[Route], head: &RequestHead) -> String {
    match router(routes).select(head) {
        Selection::Rule(chosen) => chosen.rule.clone(),
        Selection::NotFound => "-".to_owned(),
        Selection::Default => "default".to_owned(),
    }
}

fn on(name: &str, of: Match) -> Route {
    http_route(&format!("shop/{name}")).on(of)
}

#[test]
fn exact_beats_prefix_beats_regex() {
    let routes = [
        on("regex", regex("/a/b/c/d/.*|/a.*")),
        on("prefix", prefix("/a")),
        on("exact", exact("/a")),
    ];
    assert_eq!(taken(&routes, &get("/a")), "exact");
    assert_eq!(taken(&routes, &get("/a/b")), "prefix");
    assert_eq!(taken(&routes, &get("/ab")), "regex");
    assert_eq!(taken(&routes, &get("/b")), "-");
}

#[test]
fn the_longer_prefix_wins_unless_its_other_conditions_fail() {
    let routes = [
        on("short", prefix("/a")),
        on("long", prefix("/a/b/").header("x", "1")),
    ];
    assert_eq!(taken(&routes, &get("/a/b/c").header("x", "1")), "long");
    assert_eq!(taken(&routes, &get("/a/b/c")), "short");
}

#[test]
fn a_prefix_covers_whole_segments() {
    let routes = [on("it", prefix("/abc/"))];
    for (path, takes) in [
        ("/abc", true),
        ("/abc/", true),
        ("/abc/d", true),
        ("/abcd", false),
        ("/", false),
        ("*", false),
    ] {
        assert_eq!(taken(&routes, &get(path)) == "it", takes, "{path}");
    }
}

#[test]
fn no_path_is_every_path() {
    let routes = [on("it", Match::default().method("OPTIONS"))];
    assert_eq!(taken(&routes, &request(Method::OPTIONS, "*")), "it");
    assert_eq!(taken(&routes, &request(Method::OPTIONS, "/x/y")), "it");
    assert_eq!(taken(&routes, &get("/x")), "-");
}

#[test]
fn ties_go_to_method_then_headers_then_query_then_age_then_name() {
    let plain = on("z", prefix("/")).created(5);
    let younger = on("a", prefix("/")).created(6);
    let unknown = on("b", prefix("/"));
    let query = on("query", prefix("/").query("q", "1"));
    let header = on("header", prefix("/").header("x", "1"));
    let method = on("method", prefix("/").method("GET"));
    let head = get("/?q=1").header("x", "1");
    // The winner of each round leaves.
    let mut routes = vec![unknown, younger, plain, query, header, method];
    for winner in ["method", "header", "query", "z", "a", "b"] {
        assert_eq!(taken(&routes, &head), winner);
        routes.pop();
    }
}

#[test]
fn names_are_compared_as_one_text_with_their_namespace() {
    // `-` stands before `/`.
    let routes = [http_route("a/x"), http_route("a-b/y")];
    assert_eq!(taken(&routes, &get("/")), "y");
}

#[test]
fn repeated_headers_are_joined() {
    let routes = [on("it", prefix("/").header("X-Color", "red, blue"))];
    assert_eq!(
        taken(
            &routes,
            &get("/").header("x-color", "red").header("x-color", "blue")
        ),
        "it"
    );
    assert_eq!(taken(&routes, &get("/").header("x-color", "red, blue")), "it");
    assert_eq!(
        taken(
            &routes,
            &get("/").header("x-color", "blue").header("x-color", "red")
        ),
        "-"
    );
}

#[test]
fn a_second_condition_on_the_same_header_means_nothing() {
    let routes = [on("it", prefix("/").header("x", "1").header("X", "2"))];
    assert_eq!(taken(&routes, &get("/").header("x", "1")), "it");
}

#[test]
fn a_regex_on_a_header_takes_its_whole_value() {
    let routes = [on("it", prefix("/").header_regex("x", "v[0-9]"))];
    assert_eq!(taken(&routes, &get("/").header("x", "v1")), "it");
    assert_eq!(taken(&routes, &get("/").header("x", "v12")), "-");
}

#[test]
fn a_match_that_cannot_be_used_never_matches_and_is_named() {
    let routes = [on("bad", regex("(")), on("good", regex("/.*"))];
    let router = router(&routes);
    assert_eq!(router.problems()[0].route, "HTTPRoute/shop/bad/0".into());
    assert_eq!(taken(&routes, &get("/x")), "good");
}

#[test]
fn a_rule_none_of_whose_matches_was_read_never_matches_and_is_still_a_rule() {
    let routes = [on("bad", Match::unreadable("of a type that nobody knows"))];
    assert_eq!(router(&routes).problems().len(), 1);
    assert_eq!(taken(&routes, &get("/x")), "-");
    let routes = [
        on("bad", Match::unreadable("of a type that nobody knows")),
        on("good", prefix("/x")),
    ];
    assert_eq!(taken(&routes, &get("/x")), "good");
}

#[test]
fn the_length_of_the_prefix_comes_with_the_rule() {
    let routes = router(&[on("it", prefix("/a/b/")), on("all", exact("/a"))]);
    let length = |path| match routes.select(&get(path)) {
        Selection::Rule(chosen) => chosen.prefix,
        other => panic!("{other:?}"),
    };
    assert_eq!(length("/a/b/c"), Some("/a/b".len()));
    assert_eq!(length("/a"), None);
}

#[test]
fn many_patterns_are_told_apart() {
    let routes: Vec<_> = (0..1000)
        .map(|n| on(&n.to_string(), regex(&format!("/item/{n}/[a-z]+"))))
        .collect();
    let router = router(&routes);
    for n in [0, 7, 8, 63, 64, 511, 512, 999] {
        let Selection::Rule(chosen) = router.select(&get(&format!("/item/{n}/x"))) else {
            panic!("{n} is not found");
        };
        assert_eq!(*chosen.rule, n.to_string());
    }
    assert_eq!(router.select(&get("/item/1000/x")), Selection::NotFound);
}

fn call(name: &str, service: Option<&str>, method: Option<&str>, regex: bool) -> Route {
    route(Kind::Grpc, &format!("shop/{name}")).on(grpc(service, method, regex))
}

#[test]
fn calls_go_to_the_exact_one_then_to_the_longer_service_then_method() {
    let routes = [
        call("all", None, None, false),
        call("method", None, Some("Get"), false),
        call("pattern", Some("shop[.]Item.*"), None, true),
        call("service", Some("shop.Items"), None, false),
        call("exact", Some("shop.Items"), Some("Get"), false),
    ];
    assert_eq!(taken(&routes, &grpc_call("/shop.Items/Get")), "exact");
    assert_eq!(taken(&routes, &grpc_call("/shop.Items/Put")), "pattern");
    assert_eq!(taken(&routes, &grpc_call("/shop.Other/Get")), "method");
    assert_eq!(taken(&routes, &grpc_call("/shop.Other/Put")), "all");
}

#[test]
fn what_is_no_call_takes_no_route_of_grpc() {
    let routes = [call("all", None, None, false)];
    assert_eq!(taken(&routes, &get("/shop.Items/Get")), "-");
    assert_eq!(taken(&routes, &grpc_call("/shop.Items/Get/more")), "-");
    assert_eq!(taken(&routes, &grpc_call("/shop.Items/")), "-");
}

#[test]
fn each_match_is_explained() {
    let router = router(&[
        on("wins", exact("/a")),
        on("shorter", prefix("/a")),
        on("header", prefix("/a").header("x-user", "1")),
        on("path", prefix("/b")),
    ]);
    let fates: Vec<_> = router
        .explain(&get("/a"))
        .into_iter()
        .map(|one| (one.rule.as_str(), one.fate))
        .collect();
    assert_eq!(
        fates,
        [
            ("wins", Fate::Wins),
            ("header", Fate::Misses(Unmet::Header("x-user".into()))),
            ("path", Fate::Misses(Unmet::Path)),
            ("shorter", Fate::Loses(Criterion::PathForm)),
        ]
    );
}

#[test]
fn a_preflight_takes_the_rule_of_the_method_it_asks_for() {
    let router = router(&[on("put", prefix("/").method("PUT"))]);
    let head = request(Method::OPTIONS, "/");
    assert_eq!(router.select(&head), Selection::NotFound);
    assert!(matches!(
        router.select_as(&head, &Method::PUT),
        Selection::Rule(_)
    ));
}
