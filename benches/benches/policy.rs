//! What a request pays for the policies of its front: authorization, and limits of this replica.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use tulle_model::Identity;
use tulle_model::authz::policy::StringMatch;
use tulle_model::policy::authz::{
    Action, Attributes, Authorizer, Authz, From, PathPattern, Rule, To, Values,
};
use tulle_model::policy::traffic::{Key, LocalRateLimit};
use tulle_model::policy::{Concern, On, Policy, Target};
use tulle_model::request::{Destination, Protocol, RequestHead, Scheme, Source};
use tulle_model::route::{Kind, Origin};
use tulle_waypoint::policy::limit::key::Keyed;
use tulle_waypoint::policy::limit::local::{Limiter, take};

/// An ALLOW policy of which no rule matches: the longest way to a refusal.
fn policy(rules: usize) -> Arc<Policy> {
    let exact = |text: String| Values {
        any: vec![StringMatch::Exact(text.into())],
        none: vec![],
    };
    let rule = |n: usize| Rule {
        from: vec![From {
            principals: exact(format!("cluster.local/ns/ns-{}/sa/web-{n}", n % 50)),
            ..From::default()
        }],
        to: vec![To {
            methods: exact("GET".into()),
            paths: Values {
                any: vec![PathPattern::Text(StringMatch::Prefix(
                    format!("/api/v{n}/").into(),
                ))],
                none: vec![],
            },
            ..To::default()
        }],
        ..Rule::default()
    };
    Arc::new(Policy {
        object: "AuthorizationPolicy".into(),
        origin: Origin {
            kind: Kind::Policy,
            namespace: "shop".into(),
            name: "p".into(),
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
        dry_run: false,
        concern: Concern::Authz(Authz {
            action: Action::Allow,
            rules: (0..rules).map(rule).collect(),
            provider: None,
        }),
    })
}

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
