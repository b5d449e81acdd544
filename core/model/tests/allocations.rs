//! Choosing a rule costs no allocation, however many there are.

use std::sync::Arc;

use tulle_model::RequestHead;
use tulle_model::route::{Kind, Route, Router, Selection};
use tulle_model::testing::{exact, get, grpc, grpc_call, http_route, prefix, regex, route};

fn allocations(router: &Router<()>, head: &RequestHead) -> u64 {
    // The first search fills the caches of the regular expressions.
    assert!(matches!(router.select(head), Selection::Rule(_)), "{}", head.path);
    allocation_counter::measure(|| {
        std::hint::black_box(router.select(std::hint::black_box(head)));
    })
    .count_total
}

fn router(kind: Kind, routes: impl IntoIterator<Item = Route>) -> Router<()> {
    let routes: Vec<_> = routes.into_iter().map(Arc::new).collect();
    Router::compile(kind, &routes, |_| ())
}

#[test]
fn rules_of_http_are_chosen_without_an_allocation() {
    let routes = (0..300).map(|n| {
        http_route("shop/web")
            .rule(n)
            .on(exact(&format!("/exact/{n}")).method("GET"))
            .on(prefix(&format!("/prefix/{n}/"))
                .header("x-user", "a")
                .query("q", "1"))
            .on(prefix(&format!("/prefix/{n}")).header_regex("x-user", "[ab]"))
            .on(regex(&format!("/item-{n}/[a-z]+")))
    });
    let router = router(Kind::Http, routes);
    let user = |target| get(target).header("x-user", "b");
    for head in [get("/exact/299"), user("/prefix/77/more?q=1"), get("/item-299/x")] {
        assert_eq!(allocations(&router, &head), 0, "{}", head.path);
    }
}

#[test]
fn joined_fields_of_a_header_cost_no_allocation() {
    let router = router(
        Kind::Http,
        [http_route("shop/web").on(prefix("/").header("x", "a, b"))],
    );
    assert_eq!(
        allocations(&router, &get("/").header("x", "a").header("x", "b")),
        0
    );
}

#[test]
fn rules_of_grpc_are_chosen_without_an_allocation() {
    let routes = (0..300).map(|n| {
        route(Kind::Grpc, "shop/web")
            .rule(n)
            .on(grpc(Some(&format!("shop.Items{n}")), Some("Get"), false))
            .on(grpc(Some(&format!("shop.Items{n}")), None, false))
            .on(grpc(Some(&format!("shop[.]Other{n}")), None, true))
    });
    let router = router(Kind::Grpc, routes);
    for path in ["/shop.Items299/Get", "/shop.Items299/Put", "/shop.Other299/Put"] {
        assert_eq!(allocations(&router, &grpc_call(path)), 0, "{path}");
    }
}
