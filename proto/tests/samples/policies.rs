//! Policies of every concern.

use std::collections::BTreeMap;
use std::time::Duration;

use tulle_model::Str;
use tulle_model::authz::ServiceAccountMatch;
use tulle_model::authz::policy::StringMatch;
use tulle_model::filter::Ask;
use tulle_model::policy::authz::{Action, Authz, From as Source, PathPattern, Rule, To, Values, When};
use tulle_model::policy::jwt::{ClaimToHeader, FromHeader, JwtRule, Keys};
use tulle_model::policy::traffic::{
    Abort, Algorithm, CookieKey, Descriptor, Entry, FailurePercent, Key, Locality, SlowStart, SubjectAltName,
    SuccessRate,
};
use tulle_model::policy::{
    BackendTls, CircuitBreaker, Concern, Fault, GlobalRateLimit, Jwt, LoadBalancing, LocalRateLimit, On,
    Outlier, Policy, RetryBudget, Target,
};
use tulle_model::route::{Kind, Session, SessionBy};

use super::{ext_authz, matching, origin, service, session};

fn values<T: Clone>(any: T, none: T) -> Values<T> {
    Values {
        any: vec![any],
        none: vec![none],
    }
}

fn authz() -> Concern {
    let text = |text: &str| StringMatch::Exact(text.into());
    let account = |name: &str| ServiceAccountMatch {
        namespace: "shop".into(),
        service_account: name.into(),
    };
    let net = |net: &str| net.parse().expect("a range");
    Concern::Authz(Authz {
        action: Action::Custom,
        provider: Some("opa".into()),
        rules: vec![
            Rule {
                from: vec![Source {
                    principals: values(StringMatch::Presence, text("p")),
                    namespaces: values(StringMatch::Prefix("a".into()), text("n")),
                    request_principals: values(StringMatch::Suffix("/x".into()), text("r")),
                    ips: values(net("10.0.0.0/8"), net("fd00::/64")),
                    remote_ips: values(net("1.1.1.1/32"), net("0.0.0.0/0")),
                    service_accounts: values(account("a"), account("b")),
                }],
                to: vec![To {
                    hosts: values(text("a"), text("b")),
                    ports: values(80, 81),
                    methods: values(text("GET"), text("PUT")),
                    paths: values(
                        PathPattern::Template("/a/{*}/{**}".into()),
                        PathPattern::Text(StringMatch::Prefix("/b".into())),
                    ),
                }],
                when: vec![When {
                    key: "request.headers[x]".into(),
                    values: values(text("a"), text("b")),
                    ips: values(net("10.0.0.0/8"), net("11.0.0.0/8")),
                }],
                is_partial: true,
            },
            Rule::default(),
        ],
    })
}

fn jwt() -> Concern {
    let rule = |keys| JwtRule {
        issuer: "https://i".into(),
        audiences: vec!["a".into()],
        keys,
        from_headers: vec![FromHeader {
            name: "x".into(),
            prefix: "Bearer ".into(),
        }],
        from_params: vec!["t".into()],
        from_cookies: vec!["c".into()],
        forward_token: true,
        payload_to_header: Some("x-p".into()),
        claims_to_headers: vec![ClaimToHeader {
            header: "x-g".into(),
            claim: "a.b".into(),
        }],
        timeout: Some(Duration::from_secs(5)),
    };
    let keys = [
        Keys::Inline("{}".into()),
        Keys::Uri("https://k".into()),
        Keys::Discover,
    ];
    Concern::Jwt(Jwt {
        rules: keys.into_iter().map(rule).collect(),
    })
}

fn limits() -> Vec<Concern> {
    let cookie = Key::Cookie(CookieKey {
        name: "c".into(),
        path: "/".into(),
        ttl: Some(Duration::ZERO),
    });
    let keys = vec![
        Key::SourceIdentity,
        Key::SourceNamespace,
        Key::SourceIp,
        Key::Header("h".into()),
        Key::Route,
        Key::Query("q".into()),
        cookie,
        Key::Method,
        Key::Constant("k".into()),
    ];
    let entry = |key| Entry {
        name: "n".into(),
        key,
    };
    vec![
        Concern::LocalRateLimit(LocalRateLimit {
            requests: 5,
            per: Duration::from_secs(1),
            burst: Some(0),
            keys: keys.clone(),
            matches: vec![matching()],
            share: true,
            keys_max: Some(7),
        }),
        Concern::GlobalRateLimit(GlobalRateLimit {
            provider: "rl".into(),
            domain: "d".into(),
            descriptors: vec![Descriptor {
                entries: keys.clone().into_iter().map(entry).collect(),
            }],
            timeout: Some(Duration::from_millis(100)),
            fail_open: true,
        }),
        Concern::LoadBalancing(LoadBalancing {
            algorithm: Some(Algorithm::Maglev),
            hash: keys,
            ring_min: Some(1024),
            choices: Some(3),
            slow_start: Some(SlowStart {
                window: Duration::from_secs(30),
                aggression_milli: Some(1500),
                percent_min: Some(0),
            }),
            locality: Some(Locality {
                failover: BTreeMap::from([("eu".into(), vec!["us".into()])]),
                distribute: BTreeMap::from([(Str::from("eu/*"), BTreeMap::from([("eu/a".into(), 100)]))]),
            }),
        }),
    ]
}

fn traffic() -> Vec<Concern> {
    vec![
        Concern::Fault(Fault {
            delay: Some(Duration::from_millis(3)),
            delay_ppm: 10_000,
            abort: Some(Abort::Grpc(14)),
            abort_ppm: 1,
            matches: vec![matching()],
            source_namespaces: vec!["a".into()],
        }),
        Concern::Circuit(CircuitBreaker {
            connections: Some(1),
            pending: Some(0),
            requests: Some(2),
            retries: Some(3),
            requests_per_connection: Some(4),
            age_max: Some(Duration::from_secs(9)),
            connect_timeout: Some(Duration::from_secs(10)),
        }),
        Concern::Outlier(Outlier {
            consecutive: Some(5),
            gateway_errors_only: true,
            codes: vec![500],
            interval: Some(Duration::from_secs(10)),
            base: Some(Duration::from_secs(30)),
            max: Some(Duration::from_secs(300)),
            percent_max: Some(10),
            success_rate: Some(SuccessRate {
                endpoints_min: Some(5),
                requests_min: Some(100),
                deviations_milli: Some(1900),
            }),
            failure_percent: Some(FailurePercent {
                percent: Some(85),
                endpoints_min: Some(5),
                requests_min: Some(50),
            }),
        }),
        Concern::RetryBudget(RetryBudget {
            percent: Some(20),
            interval: Some(Duration::from_secs(10)),
            per_second_min: Some(10),
        }),
        Concern::Session(Session {
            by: SessionBy::Header("x-s".into()),
            ..session()
        }),
        Concern::BackendTls(BackendTls {
            hostname: "api.example".into(),
            subject_alt_names: vec![
                SubjectAltName::Hostname("b.example".into()),
                SubjectAltName::Uri("spiffe://a/b".into()),
            ],
            roots: vec!["PEM".into()],
        }),
    ]
}

pub(crate) fn policies() -> Vec<Policy> {
    let on = [
        On::Service(service()),
        On::Route {
            kind: Kind::Grpc,
            namespace: "shop".into(),
            name: "r".into(),
        },
        On::Waypoint("shop/way".into()),
        On::Class("tulle-waypoint".into()),
        On::Mesh,
        On::Workload("Kubernetes//Pod/shop/web".into()),
    ];
    let target = |on| Target {
        on,
        port: Some(80),
        section: Some("main".into()),
    };
    let targets: Vec<Target> = on.into_iter().map(target).collect();
    let mut concerns = vec![
        authz(),
        jwt(),
        Concern::ExtAuthz(Box::new(ext_authz(Ask::Provider("opa".into())))),
        Concern::DenyAll("unknown action".into()),
    ];
    concerns.extend(limits());
    concerns.extend(traffic());
    let policy = |concern| Policy {
        object: "AuthorizationPolicy".into(),
        origin: origin(Kind::Policy),
        targets: targets.clone(),
        dry_run: true,
        concern,
    };
    concerns.into_iter().map(policy).collect()
}
