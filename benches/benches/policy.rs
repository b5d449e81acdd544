//! What a request pays for the policies of its front: authorization, limits of this replica, and tokens.

use std::hint::black_box;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use tulle_benches::l7::rules::policy;
use tulle_model::Identity;
use tulle_model::policy::authz::{Attributes, Authorizer};
use tulle_model::policy::jwt::{Jwt, JwtRule, Keys};
use tulle_model::policy::traffic::{Key, LocalRateLimit};
use tulle_model::policy::{Concern, Policy};
use tulle_model::request::{Destination, Protocol, RequestHead, Scheme, Source};
use tulle_waypoint::policy::ask::BEGINS;
use tulle_waypoint::policy::jwt::cache::Cache;
use tulle_waypoint::policy::jwt::jwks::FetchError;
use tulle_waypoint::policy::jwt::target::Target;
use tulle_waypoint::policy::jwt::{Authentication, Fetch, Jwks};
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

/// Nobody fetches keys: they are written out.
#[derive(Debug)]
struct Nobody;

impl Fetch for Nobody {
    fn fetch<'a>(
        &'a self,
        _: &'a Target,
        _: u8,
    ) -> Pin<Box<dyn Future<Output = Result<Bytes, FetchError>> + Send + 'a>> {
        Box::pin(async { Err(FetchError::NoUri) })
    }
}

/// A token that was seen before, and more tokens in turn than are remembered.
fn tokens(c: &mut Criterion) {
    const MORE_THAN_KEPT: usize = 1_500;
    let issuer = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
    let encoded = |part: &[u8]| URL_SAFE_NO_PAD.encode(part);
    let point = issuer.public_key().as_ref();
    let (x, y) = (encoded(&point[1..33]), encoded(&point[33..]));
    let keys = format!(r#"{{"keys":[{{"kty":"EC","crv":"P-256","kid":"k","x":"{x}","y":"{y}"}}]}}"#);
    let head = |number: usize| {
        let claims = format!(r#"{{"iss":"https://issuer","sub":"user-{number}"}}"#);
        let head = encoded(br#"{"alg":"ES256","kid":"k"}"#);
        let message = format!("{head}.{}", encoded(claims.as_bytes()));
        let signed = issuer.sign(&SystemRandom::new(), message.as_bytes());
        let value = format!(
            "Bearer {message}.{}",
            encoded(signed.expect("a signature").as_ref())
        );
        let mut head = tulle_model::testing::get("/api");
        let value = value.parse().expect("a value");
        head.headers.insert(http::header::AUTHORIZATION, value);
        head
    };
    let rule = JwtRule {
        issuer: "https://issuer".into(),
        keys: Keys::Inline(keys.as_str().into()),
        ..JwtRule::default()
    };
    let policy = Arc::new(Policy {
        concern: Concern::Jwt(Jwt { rules: vec![rule] }),
        ..Policy::clone(&policy(1))
    });
    let authentication = Authentication::new([&policy]);
    let jwks = Arc::new(Jwks::new(Arc::new(Nobody)));
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.expect("a runtime of one thread");
    let mut group = c.benchmark_group("jwt");
    for (name, count) in [("seen", 1), ("not_seen", MORE_THAN_KEPT)] {
        let heads: Vec<RequestHead> = (0..count).map(head).collect();
        let (cache, mut turn) = (Cache::default(), heads.iter().cycle());
        group.bench_function(name, |b| {
            b.iter(|| {
                let head = turn.next().expect("a cycle does not end");
                let said = runtime.block_on(authentication.authenticate(head, &jwks, &cache, 1, BEGINS));
                assert!(said.expect("it is valid").claims.is_some());
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    // All benches of the tree are to be run through in minutes.
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = request_policy, local_limit, tokens
}
criterion_main!(benches);
