//! What a request pays for the policies of its front: authorization, and limits of this replica.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use tulle_benches::l7::rules::policy;
use tulle_model::Identity;
use tulle_model::policy::authz::{Attributes, Authorizer};
use tulle_model::policy::traffic::{Key, LocalRateLimit};
use tulle_model::request::{Destination, Protocol, RequestHead, Scheme, Source};
use tulle_waypoint::policy::limit::key::Keyed;
use tulle_waypoint::policy::limit::local::{Limiter, take};

fn request_policy(c: &mut Criterion) {
    let source = Source {
        identity: Some(Identity::new("cluster.local", "shop", "web")),
        ip: [10, 0, 0, 7].into(),
        remote_ip: [10, 0, 0, 7].into(),
    };
    let destination = Destination {
        address: ([10, 96, 0, 1], 80).into(),
    };
    let head = RequestHead {
        method: http::Method::GET,
        scheme: Scheme::Http,
        authority: "cart.shop".into(),
        path: "/api/none/items".into(),
        query: None,
        headers: http::HeaderMap::new(),
        protocol: Protocol::Http11,
    };
    let mut group = c.benchmark_group("request_policy");
    group.sample_size(20);
    for rules in [1, 100, 10_000, 1_000_000] {
        let authorizer = Authorizer::new(&[policy(rules)]);
        let of = Attributes::of_request(&source, destination, &head, None);
        group.bench_with_input(
            BenchmarkId::new("refused", rules),
            &authorizer,
            |b, authorizer| {
                b.iter(|| authorizer.check(black_box(&of)));
            },
        );
    }
    group.finish();
}

/// One bucket, and ten thousand that are asked in turn.
fn local_limit(c: &mut Criterion) {
    let source = |n: u32| {
        let ip = std::net::Ipv4Addr::from(0x0a00_0000 + n).into();
        Source {
            identity: Some(Identity::new("cluster.local", "shop", "web")),
            ip,
            remote_ip: ip,
        }
    };
    let head = tulle_model::testing::get("/api");
    let mut group = c.benchmark_group("local_limit");
    for keys in [1u32, 10_000] {
        let limiter = Limiter::new(&LocalRateLimit {
            requests: 1_000_000_000,
            per: Duration::from_secs(1),
            keys: vec![Key::SourceIp],
            ..LocalRateLimit::default()
        });
        let sources: Vec<_> = (0..keys).map(source).collect();
        let mut turn = sources.iter().cycle();
        let mut now = Duration::from_secs(1);
        group.bench_function(BenchmarkId::new("keys", keys), |b| {
            b.iter(|| {
                now += Duration::from_nanos(100);
                let keyed = Keyed {
                    source: turn.next().expect("a cycle does not end"),
                    head: &head,
                    route: None,
                };
                take([black_box(&limiter)], &keyed, now)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, request_policy, local_limit);
criterion_main!(benches);
