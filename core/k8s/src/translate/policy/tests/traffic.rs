//! The parts of a `TrafficPolicy`.

use tulle_model::filter::{Ask, ExtAuthz};
use tulle_model::policy::traffic::{
    Abort, Algorithm, CircuitBreaker, CookieKey, Descriptor, Entry, FailurePercent, Fault, GlobalRateLimit,
    Key as By, LoadBalancing, LocalRateLimit, Locality, Outlier, RetryBudget, SlowStart, SuccessRate,
};
use tulle_model::route::{Backend, BackendTo, KeyMatch, Match, PathMatch, Session, SessionBy, ValueMatch};

use super::*;
use crate::testing::mesh;

/// A world with somebody who decides, and somebody who counts.
fn around() -> Around {
    let (mesh, _) = mesh(
        "
providers:
- name: opa
  extAuthz: {backendRef: {name: opa, namespace: shop, port: 9000}}
- name: counter
  rateLimit: {service: limits.infra.svc.cluster.local, port: 8081}
",
    );
    Around::of(SHOP).within(mesh)
}

fn translated(spec: &str) -> Translated {
    let text = format!(
        "apiVersion: tulle.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: p, namespace: shop}}
spec:
  targetRefs: [{{group: '', kind: Service, name: web}}]
{spec}"
    );
    translate(&text, &around())
}

/// What a part of a policy says; all of it can be used.
fn said(spec: &str) -> Concern {
    let translated = translated(spec);
    assert_eq!(flaws(&translated), [], "{spec}");
    let [policy] = &*translated.policies else {
        panic!("one concern: {translated:?}")
    };
    assert_eq!(policy.targets, [on_service(WEB, None)]);
    policy.concern.clone()
}

#[test]
fn every_field_of_outlier_detection_is_its_own() {
    let spec = "
  outlierDetection:
    consecutiveFailures: 7
    gatewayErrorsOnly: true
    codes: [502, 507]
    interval: 11s
    baseEjectionTime: 31s
    maxEjectionTime: 5m
    maxEjectionPercent: 23
    successRate: {minimumEndpoints: 4, minimumRequests: 90, deviations: 1.9}
    failurePercentage: {threshold: 85, minimumEndpoints: 6, minimumRequests: 55}
";
    let expected = Outlier {
        consecutive: Some(7),
        gateway_errors_only: true,
        codes: vec![502, 507],
        interval: seconds(11),
        base: seconds(31),
        max: seconds(300),
        percent_max: Some(23),
        success_rate: Some(SuccessRate {
            endpoints_min: Some(4),
            requests_min: Some(90),
            deviations_milli: Some(1_900),
        }),
        failure_percent: Some(FailurePercent {
            percent: Some(85),
            endpoints_min: Some(6),
            requests_min: Some(55),
        }),
    };
    assert_eq!(said(spec), Concern::Outlier(expected));
    assert_eq!(
        said("  outlierDetection: {}\n"),
        Concern::Outlier(Outlier::default())
    );
}

#[test]
fn every_bound_of_a_circuit_breaker_is_its_own() {
    let spec = "
  circuitBreaker:
    maxConnections: 1
    maxPendingRequests: 2
    maxRequests: 3
    maxRetries: 4
    maxRequestsPerConnection: 5
    maxConnectionAge: 6m
    connectTimeout: 7s
";
    let expected = CircuitBreaker {
        connections: Some(1),
        pending: Some(2),
        requests: Some(3),
        retries: Some(4),
        requests_per_connection: Some(5),
        age_max: seconds(360),
        connect_timeout: seconds(7),
    };
    assert_eq!(said(spec), Concern::Circuit(expected));
}

#[test]
fn every_way_to_balance_is_its_own() {
    for (name, algorithm) in [
        ("PeakEwma", Algorithm::PeakEwma),
        ("LeastRequest", Algorithm::LeastRequest),
        ("RoundRobin", Algorithm::RoundRobin),
        ("Random", Algorithm::Random),
        ("RingHash", Algorithm::RingHash),
        ("Maglev", Algorithm::Maglev),
    ] {
        let expected = LoadBalancing {
            algorithm: Some(algorithm),
            ..LoadBalancing::default()
        };
        let spec = format!("  loadBalancing: {{algorithm: {name}}}\n");
        assert_eq!(said(&spec), Concern::LoadBalancing(expected), "{name}");
    }
    let spec = "
  loadBalancing:
    hash:
    - {type: Header, name: x-user}
    - {type: Cookie, name: sid, path: /shop, ttl: 90s}
    - {type: SourceIdentity}
    - {type: SourceNamespace}
    - {type: SourceIP}
    - {type: Query, name: user}
    - {type: Route}
    - {type: Method}
    - {type: Constant, name: all}
    minimumRingSize: 2048
    choices: 3
    slowStart: {window: 40s, aggression: 1.5, minimumPercent: 12}
    locality:
      failover: {eu-west: [eu-north, us-east]}
      distribute: {eu-west/a: {eu-west/b: 70, eu-north: 30}}
";
    let cookie = CookieKey {
        name: "sid".into(),
        path: "/shop".into(),
        ttl: seconds(90),
    };
    let expected = LoadBalancing {
        algorithm: None,
        hash: vec![
            By::Header("x-user".into()),
            By::Cookie(cookie),
            By::SourceIdentity,
            By::SourceNamespace,
            By::SourceIp,
            By::Query("user".into()),
            By::Route,
            By::Method,
            By::Constant("all".into()),
        ],
        ring_min: Some(2_048),
        choices: Some(3),
        slow_start: Some(SlowStart {
            window: Duration::from_secs(40),
            aggression_milli: Some(1_500),
            percent_min: Some(12),
        }),
        locality: Some(Locality {
            failover: [("eu-west".into(), texts(&["eu-north", "us-east"]))].into(),
            distribute: [(
                "eu-west/a".into(),
                [("eu-west/b".into(), 70), ("eu-north".into(), 30)].into(),
            )]
            .into(),
        }),
    };
    assert_eq!(said(spec), Concern::LoadBalancing(expected));
}

#[test]
fn sessions_are_known_by_what_is_written() {
    let cookie = "
  sessionPersistence:
    sessionName: sid
    absoluteTimeout: 8h
    idleTimeout: 20m
    cookieConfig: {lifetimeType: Permanent}
";
    let expected = Session {
        by: SessionBy::Cookie {
            name: "sid".into(),
            path: "".into(),
        },
        absolute: seconds(8 * 3600),
        idle: seconds(1200),
        permanent: true,
    };
    assert_eq!(said(cookie), Concern::Session(expected));
    let header = "  sessionPersistence: {type: Header, sessionName: x-session}\n";
    let expected = Session {
        by: SessionBy::Header("x-session".into()),
        absolute: None,
        idle: None,
        permanent: false,
    };
    assert_eq!(said(header), Concern::Session(expected));
}

#[test]
fn local_and_global_limits_are_their_own() {
    let local = "
  rateLimit:
    local:
      requests: 30
      per: 1m
      burst: 9
      keys: [{type: SourceNamespace}, {type: Header, name: x-key}]
      matches: [{path: {type: Exact, value: /login}, method: POST}]
      share: true
      maxKeys: 500
";
    let expected = LocalRateLimit {
        requests: 30,
        per: Duration::from_secs(60),
        burst: Some(9),
        keys: vec![By::SourceNamespace, By::Header("x-key".into())],
        matches: vec![Match {
            path: Some(PathMatch::Exact("/login".into())),
            method: Some("POST".into()),
            ..Match::default()
        }],
        share: true,
        keys_max: Some(500),
    };
    assert_eq!(said(local), Concern::LocalRateLimit(expected));
    let global = |provider: &str| {
        format!(
            "
  rateLimit:
    global:
      provider: {{name: {provider}}}
      domain: shop
      descriptors:
      - entries:
        - {{name: who, key: {{type: SourceIdentity}}}}
        - {{name: plan, key: {{type: Header, name: x-plan}}}}
      - entries: [{{name: all, key: {{type: Constant, name: every}}}}]
      timeout: 250ms
      failOpen: true
"
        )
    };
    let entry = |name: &str, key| Entry {
        name: name.into(),
        key,
    };
    let who = vec![
        entry("who", By::SourceIdentity),
        entry("plan", By::Header("x-plan".into())),
    ];
    let expected = GlobalRateLimit {
        provider: "counter".into(),
        domain: "shop".into(),
        descriptors: vec![
            Descriptor { entries: who },
            Descriptor {
                entries: vec![entry("all", By::Constant("every".into()))],
            },
        ],
        timeout: Some(Duration::from_millis(250)),
        fail_open: true,
    };
    assert_eq!(said(&global("counter")), Concern::GlobalRateLimit(expected));
    // One that decides counts nothing.
    for wrong in ["opa", "nobody"] {
        let translated = translated(&global(wrong));
        assert_eq!(translated.policies, []);
        let message = format!("the mesh has no provider `{wrong}` that counts requests");
        assert_eq!(flaws(&translated), [("Invalid", &*message)]);
    }
}

fn opa(port: u16) -> Backend {
    Backend {
        to: BackendTo::Service {
            service: NamespacedHostname::new("shop", "opa.shop.svc.cluster.local"),
            port,
        },
        weight: 1,
        filters: Vec::new(),
    }
}

#[test]
fn who_else_decides_is_asked_as_is_written() {
    let http = "
  externalAuth:
    backendRef: {name: opa, port: 9001}
    protocol: HTTP
    path: /check
    allowedHeaders: [x-in]
    allowedResponseHeaders: [x-out]
    maxBodyBytes: 4096
    allowPartial: true
    timeout: 300ms
    failOpen: true
    statusOnError: 503
";
    let expected = ExtAuthz {
        ask: Ask::Http {
            backend: opa(9001),
            path: "/check".into(),
        },
        headers: texts(&["x-in"]),
        response_headers: texts(&["x-out"]),
        body_bytes_max: 4096,
        allow_partial: true,
        timeout: Some(Duration::from_millis(300)),
        fail_open: true,
        status_on_error: Some(503),
    };
    assert_eq!(said(http), Concern::ExtAuthz(Box::new(expected)));
    let plain = |ask| {
        Concern::ExtAuthz(Box::new(ExtAuthz {
            ask,
            headers: Vec::new(),
            response_headers: Vec::new(),
            body_bytes_max: 0,
            allow_partial: false,
            timeout: None,
            fail_open: false,
            status_on_error: None,
        }))
    };
    for protocol in ["", "protocol: GRPC, "] {
        let grpc = format!("  externalAuth: {{{protocol}backendRef: {{name: opa, port: 9000}}}}\n");
        assert_eq!(said(&grpc), plain(Ask::Grpc(opa(9000))), "{protocol}");
    }
    let named = "  externalAuth: {provider: {name: opa}}\n";
    assert_eq!(said(named), plain(Ask::Provider("opa".into())));
    // A service that is not there is asked in vain; a provider that is not there denies.
    let Concern::ExtAuthz(gone) = said("  externalAuth: {backendRef: {name: gone, port: 1}}\n") else {
        panic!("it asks")
    };
    let Ask::Grpc(backend) = gone.ask else {
        panic!("over gRPC")
    };
    assert_eq!(backend.to, BackendTo::Invalid("BackendNotFound".into()));
    let unknown = translated("  externalAuth: {provider: {name: counter}}\n");
    let cause = "the mesh has no provider `counter` that decides";
    assert_eq!(unknown.policies[0].concern, Concern::DenyAll(cause.into()));
    let message = format!("{cause}; everything on its targets is denied until it is corrected");
    assert_eq!(flaws(&unknown), [("Invalid", &*message)]);
}

#[test]
fn delays_and_aborts_have_their_own_shares() {
    let spec = "
  fault:
    delay: {duration: 2s, percent: 12.5}
    abort: {httpStatus: 503, percent: 0.01}
    matches:
    - headers: [{type: RegularExpression, name: x-test, value: 'a.*'}]
      queryParams: [{name: q, value: v}]
    sourceNamespaces: [dev]
";
    let matching = Match {
        headers: vec![KeyMatch {
            name: "x-test".into(),
            value: ValueMatch::Regex("a.*".into()),
        }],
        query: vec![KeyMatch {
            name: "q".into(),
            value: ValueMatch::Exact("v".into()),
        }],
        ..Match::default()
    };
    let expected = Fault {
        delay: seconds(2),
        delay_ppm: 125_000,
        abort: Some(Abort::Http(503)),
        abort_ppm: 100,
        matches: vec![matching],
        source_namespaces: texts(&["dev"]),
    };
    assert_eq!(said(spec), Concern::Fault(expected));
    let grpc = "  fault: {abort: {grpcStatus: 14, percent: 100}}\n";
    let expected = Fault {
        abort: Some(Abort::Grpc(14)),
        abort_ppm: 1_000_000,
        ..Fault::default()
    };
    assert_eq!(said(grpc), Concern::Fault(expected));
}

#[test]
fn every_field_of_a_retry_budget_is_its_own() {
    let spec = "  retryBudget: {percent: 15, interval: 12s, minRetriesPerSecond: 4}\n";
    let expected = RetryBudget {
        percent: Some(15),
        interval: seconds(12),
        per_second_min: Some(4),
    };
    assert_eq!(said(spec), Concern::RetryBudget(expected));
}

#[test]
fn streams_of_a_route_have_what_means_something_for_streams() {
    let spec = "
  circuitBreaker: {maxConnections: 1}
  outlierDetection: {}
  loadBalancing: {algorithm: RingHash, hash: [{type: SourceIdentity}]}
  externalAuth: {provider: {name: opa}}
  retryBudget: {percent: 1}
  sessionPersistence: {}
  fault: {delay: {duration: 1s, percent: 1}}
  rateLimit: {local: {requests: 1}, global: {provider: {name: counter}}}
";
    for (name, kind) in [("TCPRoute", Kind::Tcp), ("TLSRoute", Kind::Tls)] {
        let text = format!(
            "apiVersion: tulle.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: p, namespace: shop}}
spec:
  targetRefs: [{{group: gateway.networking.k8s.io, kind: {name}, name: store}}]
{spec}"
        );
        let translated = translate(&text, &around());
        let concerns: Vec<&str> = translated
            .policies
            .iter()
            .map(|policy| policy.concern.as_str())
            .collect();
        assert_eq!(
            concerns,
            ["circuit", "outlier", "load_balancing", "ext_authz"],
            "{name}"
        );
        let target = Target {
            on: On::Route {
                kind,
                namespace: "shop".into(),
                name: "store".into(),
            },
            port: None,
            section: None,
        };
        assert!(
            translated
                .policies
                .iter()
                .all(|policy| policy.targets == [target.clone()]),
            "{name}"
        );
        let told: Vec<String> = flaws(&translated)
            .into_iter()
            .map(|(reason, message)| format!("{reason}: {message}"))
            .collect();
        let refused = |concern: &str| {
            format!(
                "UnsupportedValue: a {name} has no requests, for which {concern} is; attach that to an HTTPRoute, a GRPCRoute \
                 or the service"
            )
        };
        let expected = [
            "fault",
            "local_rate_limit",
            "global_rate_limit",
            "retry_budget",
            "session",
        ]
        .map(refused);
        assert_eq!(told, expected, "{name}");
    }
}
