//! One fact each; the clock of a bucket compared with a plain bucket of tokens.

use std::net::IpAddr;

use proptest::prelude::*;
use tulle_model::Identity;
use tulle_model::request::Source;
use tulle_model::testing::{get, prefix};

use super::*;

fn limit(requests: u32, per: u64, keys: Vec<Key>) -> LocalRateLimit {
    LocalRateLimit {
        requests,
        per: Duration::from_secs(per),
        keys,
        ..LocalRateLimit::default()
    }
}

fn from(ip: &str) -> Source {
    let ip: IpAddr = ip.parse().unwrap();
    Source {
        identity: Some(Identity::new("td", "shop", "web")),
        ip,
        remote_ip: ip,
    }
}

fn ask(limiters: &[&Limiter], source: &Source, head: &RequestHead, now: f64) -> Result<(), Refused> {
    let of = Keyed {
        source,
        head,
        route: None,
    };
    take(
        limiters.iter().copied(),
        &of,
        Duration::from_secs_f64(1000.0 + now),
    )
}

#[track_caller]
fn passes(limiter: &Limiter, now: f64) -> bool {
    ask(&[limiter], &from("10.0.0.1"), &get("/"), now).is_ok()
}

#[test]
fn as_many_pass_at_once_as_a_second_earns() {
    let limiter = Limiter::new(&limit(5, 1, vec![]));
    let passed = (0..10).filter(|_| passes(&limiter, 0.0)).count();
    assert_eq!(passed, 5);
    assert!(!passes(&limiter, 0.1));
    assert!(passes(&limiter, 0.2), "one more after a fifth of a second");
    assert!(!passes(&limiter, 0.2));
}

#[test]
fn a_slow_limit_still_lets_one_pass_at_once() {
    let limiter = Limiter::new(&limit(6, 60, vec![]));
    assert!(passes(&limiter, 0.0));
    assert!(!passes(&limiter, 9.0));
    assert!(passes(&limiter, 10.0));
}

#[test]
fn the_burst_can_be_set() {
    let limiter = Limiter::new(&LocalRateLimit {
        burst: Some(3),
        ..limit(1, 1, vec![])
    });
    let passed = (0..10).filter(|_| passes(&limiter, 0.0)).count();
    assert_eq!(passed, 3);
}

#[test]
fn a_refusal_says_when_to_come_again() {
    let limiter = Limiter::new(&LocalRateLimit {
        burst: Some(2),
        ..limit(1, 10, vec![])
    });
    assert!(passes(&limiter, 0.0) && passes(&limiter, 0.0));
    let refused = ask(&[&limiter], &from("10.0.0.1"), &get("/"), 0.5).unwrap_err();
    let state = State {
        limit: 2,
        remaining: 0,
        reset: 20,
    };
    let expect = Refused {
        index: 0,
        retry_after: 10,
        state,
    };
    assert_eq!(refused, expect);
}

#[test]
fn a_limit_of_nothing_lets_nothing_pass() {
    assert!(!passes(&Limiter::new(&limit(0, 1, vec![])), 5.0));
}

#[test]
fn every_key_has_a_bucket_of_its_own_and_so_has_a_missing_one() {
    let limiter = Limiter::new(&limit(1, 60, vec![Key::Header("x-user".into())]));
    let anna = get("/").header("x-user", "anna");
    let empty = get("/").header("x-user", "");
    let ask = |head: &RequestHead| ask(&[&limiter], &from("10.0.0.1"), head, 0.0).is_ok();
    assert!(ask(&anna) && ask(&get("/")) && ask(&empty));
    assert!(!ask(&anna) && !ask(&get("/")) && !ask(&empty));
    assert_eq!(limiter.buckets(), 3);
}

#[test]
fn a_limit_counts_only_the_requests_it_is_for() {
    let limiter = Limiter::new(&LocalRateLimit {
        matches: vec![prefix("/api")],
        ..limit(1, 60, vec![])
    });
    let ask = |path: &str| ask(&[&limiter], &from("10.0.0.1"), &get(path), 0.0).is_ok();
    assert!(ask("/api/a") && !ask("/api/b"));
    assert!(ask("/") && ask("/"));
}

#[test]
fn where_one_of_several_refuses_none_is_charged() {
    let wide = Limiter::new(&limit(2, 1, vec![]));
    let narrow = Limiter::new(&limit(1, 60, vec![Key::SourceIp]));
    let ask = |ip: &str| ask(&[&wide, &narrow], &from(ip), &get("/"), 0.0);
    assert!(ask("10.0.0.1").is_ok());
    for _ in 0..10 {
        assert_eq!(ask("10.0.0.1").unwrap_err().index, 1);
    }
    assert!(
        ask("10.0.0.2").is_ok(),
        "the refusals took nothing from the wide one"
    );
    assert_eq!(ask("10.0.0.3").unwrap_err().index, 0);
}

#[test]
fn a_shared_limit_is_divided_by_the_ready_replicas() {
    let limiter = Limiter::new(&LocalRateLimit {
        share: true,
        ..limit(10, 1, vec![])
    });
    limiter.set_replicas(5);
    let passed = (0..10).filter(|_| passes(&limiter, 0.0)).count();
    assert_eq!(passed, 2);
    assert!(!passes(&limiter, 0.4) && passes(&limiter, 0.5));
}

#[test]
fn keys_beyond_the_bound_share_one_bucket_and_are_counted() {
    let limiter = Limiter::new(&LocalRateLimit {
        keys_max: Some(2),
        ..limit(1, 60, vec![Key::SourceIp])
    });
    let ask = |ip: &str| ask(&[&limiter], &from(ip), &get("/"), 0.0).is_ok();
    assert!(ask("10.0.0.1") && ask("10.0.0.2"));
    assert!(ask("10.0.0.3"), "the first of the others");
    assert!(!ask("10.0.0.4"), "shares its bucket");
    assert_eq!((limiter.buckets(), limiter.overflows()), (2, 2));
}

#[test]
fn idle_buckets_make_room_for_new_keys() {
    let limiter = Limiter::new(&LocalRateLimit {
        keys_max: Some(2),
        ..limit(1, 1, vec![Key::SourceIp])
    });
    let ask = |ip: &str, now: f64| ask(&[&limiter], &from(ip), &get("/"), now).is_ok();
    assert!(ask("10.0.0.1", 0.0) && ask("10.0.0.2", 0.0));
    assert!(ask("10.0.0.3", 4.0) && ask("10.0.0.4", 4.0));
    assert_eq!((limiter.buckets(), limiter.overflows()), (2, 0));
}

#[test]
fn ten_thousand_keys_have_room_by_default() {
    let limiter = Limiter::new(&limit(1, 600, vec![Key::SourceIp]));
    for n in 0..10_000u32 {
        let ip = IpAddr::from(std::net::Ipv4Addr::from(0x0a00_0000 + n)).to_string();
        assert!(ask(&[&limiter], &from(&ip), &get("/"), 0.0).is_ok());
    }
    assert_eq!((limiter.buckets(), limiter.overflows()), (10_000, 0));
}

#[test]
fn many_threads_together_get_no_more_than_one_alone() {
    let limiter = Limiter::new(&limit(1000, 1, vec![Key::SourceIp]));
    let passed = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let (source, head) = (from("10.0.0.1"), get("/"));
                for _ in 0..1000 {
                    if ask(&[&limiter], &source, &head, 0.0).is_ok() {
                        passed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    assert_eq!(passed.into_inner(), 1000);
    assert_eq!(limiter.buckets(), 1);
}

proptest! {
    /// A bucket of tokens, counted in billionths: the textbook's form of the same rule.
    #[test]
    fn the_clock_agrees_with_a_bucket_of_tokens(
        requests in 1u32..50,
        burst in 1u32..10,
        steps in prop::collection::vec(0u64..200, 1..200),
    ) {
        let limiter = Limiter::new(&LocalRateLimit { burst: Some(burst), ..limit(requests, 1, vec![]) });
        let cost = 1_000_000_000 / u64::from(requests);
        let full = cost * u64::from(burst);
        let (mut tokens, mut now) = (full, 0u64);
        let (source, head) = (from("10.0.0.1"), get("/"));
        for step in steps {
            let passed = step * 1_000_000;
            now += passed;
            tokens = (tokens + passed).min(full);
            let of = Keyed { source: &source, head: &head, route: None };
            let took = take([&limiter], &of, Duration::from_secs(1) + Duration::from_nanos(now)).is_ok();
            prop_assert_eq!(took, tokens >= cost);
            if took {
                tokens -= cost;
            }
        }
    }
}
