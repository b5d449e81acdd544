//! What one request pays for its route, and what building the router of a service costs.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use tulle_model::route::{Kind, Route, Router};
use tulle_model::testing::{exact, get, http_route, prefix, regex};

/// Rules as a large service has them: mostly prefixes, some exact paths with a method, few patterns.
fn routes(count: u32) -> Vec<Arc<Route>> {
    (0..count)
        .map(|n| {
            let of = match n % 20 {
                0 => regex(&format!("/api/v[0-9]+/pattern-{n}/.*")),
                1..5 => exact(&format!("/api/v1/exact-{n}")).method("GET"),
                5..10 => prefix(&format!("/api/v1/prefix-{n}")).header("x-user", "a"),
                _ => prefix(&format!("/api/v1/prefix-{n}/items")),
            };
            Arc::new(http_route(&format!("shop/route-{}", n / 16)).rule(n % 16).on(of))
        })
        .collect()
}

fn select(c: &mut Criterion) {
    let mut group = c.benchmark_group("route_select");
    for count in [20, 1_000, 10_000] {
        let routes = routes(count);
        let router = Router::compile(Kind::Http, &routes, Arc::clone);
        let last = count - 20;
        for (name, head) in [
            ("exact", get(&format!("/api/v1/exact-{}", last + 4))),
            ("prefix", get(&format!("/api/v1/prefix-{}/items/7", last + 15))),
            (
                "header",
                get(&format!("/api/v1/prefix-{}/x", last + 7)).header("x-user", "a"),
            ),
            ("regex", get(&format!("/api/v2/pattern-{last}/x"))),
            ("none", get("/api/v1/nothing/at/all")),
        ] {
            group.bench_with_input(BenchmarkId::new(name, count), &head, |b, head| {
                b.iter(|| black_box(router.select(black_box(head))));
            });
        }
    }
    group.finish();
}

fn compile(c: &mut Criterion) {
    let mut group = c.benchmark_group("route_compile");
    group.sample_size(10);
    for count in [20, 1_000] {
        let routes = routes(count);
        group.bench_with_input(BenchmarkId::from_parameter(count), &routes, |b, routes| {
            b.iter(|| black_box(Router::compile(Kind::Http, routes, Arc::clone)));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    // All benches of the tree are to be run through in minutes.
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = select, compile
}
criterion_main!(benches);
