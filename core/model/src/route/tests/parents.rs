//! Which routes stand on a port, and for whom.

use std::sync::Arc;

use crate::NamespacedHostname;
use crate::route::{Kind, PortRoutes, Route, Routes, Selection, TlsRouter};
use crate::testing::{get, http_route, route};

const WEB: &str = "shop/web.shop.svc";

fn on_port(port: u16, routes: &[Route]) -> PortRoutes<String> {
    let routes: Vec<_> = routes.iter().cloned().map(Arc::new).collect();
    let web = NamespacedHostname::new("shop", "web.shop.svc");
    PortRoutes::compile(&web, port, &routes, |route| route.origin.name.to_string())
}

/// The route that a `GET /` of a namespace takes.
fn taken(of: &PortRoutes<String>, namespace: Option<&str>) -> String {
    match of.of(namespace) {
        Routes::None => "none".to_owned(),
        Routes::Http(router) => match router.select(&get("/")) {
            Selection::Rule(chosen) => chosen.rule.clone(),
            other => format!("{other:?}"),
        },
        Routes::Tls(router) => router.select(None).cloned().unwrap_or_default(),
        Routes::Tcp(router) => router.rule().clone(),
    }
}

#[test]
fn routes_of_callers_replace_those_of_the_service_for_them_alone() {
    let routes = on_port(
        80,
        &[
            http_route("shop/own").under(WEB),
            http_route("client/theirs").under(WEB),
        ],
    );
    assert_eq!(taken(&routes, Some("client")), "theirs");
    assert_eq!(taken(&routes, Some("other")), "own");
    assert_eq!(taken(&routes, None), "own");
}

#[test]
fn a_parent_with_a_port_is_that_port_alone() {
    let routes = [http_route("shop/own").under_port(WEB, Some(8080))];
    assert_eq!(taken(&on_port(8080, &routes), None), "own");
    assert_eq!(taken(&on_port(80, &routes), None), "none");
}

#[test]
fn routes_of_other_services_mean_nothing() {
    let routes = [http_route("shop/other").under("shop/db.shop.svc")];
    assert_eq!(taken(&on_port(80, &routes), None), "none");
}

#[test]
fn one_kind_stands_on_a_port_for_each_class_of_callers() {
    let routes = on_port(
        80,
        &[
            http_route("shop/http").under(WEB),
            route(Kind::Tcp, "shop/tcp").under(WEB),
            route(Kind::Tcp, "client/tcp").under(WEB),
        ],
    );
    assert_eq!(taken(&routes, None), "http");
    assert_eq!(taken(&routes, Some("client")), "tcp");
    assert!(routes.is_http());
}

#[test]
fn only_the_first_route_of_tcp_counts() {
    let routes = [
        route(Kind::Tcp, "shop/b").under(WEB).created(1),
        route(Kind::Tcp, "shop/a").under(WEB).created(2),
    ];
    assert_eq!(taken(&on_port(80, &routes), None), "b");
}

fn tls(routes: &[(&str, &[&str])]) -> TlsRouter<String> {
    let make = |(name, names): &(&str, &[&str])| Arc::new(route(Kind::Tls, name).under(WEB).named(names));
    let routes: Vec<Arc<Route>> = routes.iter().map(make).collect();
    let hung = routes.iter().map(|route| (route, &route.parents[0]));
    TlsRouter::compile(hung, |route| route.origin.name.to_string())
}

#[test]
fn server_names_are_exact_then_the_longest_wildcard() {
    let router = tls(&[
        ("shop/any", &[]),
        ("shop/wide", &["*.example.com"]),
        ("shop/long", &["*.a.example.com"]),
        ("shop/exact", &["B.a.example.com"]),
    ]);
    let taken = |name| router.select(Some(name)).map(String::as_str);
    assert_eq!(taken("b.A.example.com"), Some("exact"));
    assert_eq!(taken("x.a.example.com"), Some("long"));
    assert_eq!(taken("y.x.a.example.com"), Some("long"));
    assert_eq!(taken("a.example.com"), Some("wide"));
    assert_eq!(taken("example.com"), Some("any"));
    assert_eq!(taken(".example.com"), Some("any"));
    assert_eq!(router.select(None).map(String::as_str), Some("any"));
}

#[test]
fn a_name_that_no_route_has_takes_none() {
    let router = tls(&[("shop/exact", &["a.example.com"])]);
    assert_eq!(router.select(Some("b.example.com")), None);
    assert_eq!(router.select(None), None);
    assert_eq!(router.select(Some(&"a.".repeat(200))), None);
}
