//! What waypoints receive survives the wire, and a mutated message is refused or read as one thing only.

#[path = "../../fuzz/replay.rs"]
mod replay;

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use tulle_model::authz::ServiceAccountMatch;
use tulle_model::authz::policy::StringMatch;
use tulle_model::filter::{
    Ask, Cors, ExtAuthz, Filter, Header, HeaderMod, Mirror, PathRewrite, Redirect, Rewrite,
};
use tulle_model::gateway::{GatewayAddress, GatewayDestination};
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
use tulle_model::route::{
    Backend, BackendTo, Created, GrpcMatch, KeyMatch, Kind, Match, Origin, Parent, ParentTo, PathMatch,
    Retry, Route, Session, SessionBy, Timeouts, ValueMatch,
};
use tulle_model::waypoint::{
    AccessLog, Front, FrontOf, Limits, PathNormalization, Provider, ProviderKind, Scope, Settings,
    SourceIdentity, Target as ServicePort, Telemetry, Waypoint,
};
use tulle_model::{NamespacedHostname, Str};
use tulle_proto::{
    Cause, decode_policy, decode_route, decode_waypoint, encode_policy, encode_route, encode_waypoint, fuzz,
};

use replay::replay;

const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus");

fn service() -> NamespacedHostname {
    NamespacedHostname::new("shop", "web.shop.svc.cluster.local")
}

fn backend() -> Backend {
    Backend {
        to: BackendTo::Service {
            service: service(),
            port: 80,
        },
        weight: 3,
        filters: vec![Filter::RequestHeaders(HeaderMod {
            remove: vec!["x-a".into()],
            ..HeaderMod::default()
        })],
    }
}

fn origin(kind: Kind) -> Origin {
    Origin {
        kind,
        namespace: "shop".into(),
        name: "web".into(),
        rule_index: 2,
        rule_name: "main".into(),
        created: Some(Created {
            seconds: 1_767_225_600,
            nanos: 5,
        }),
        generation: 4,
    }
}

fn matching() -> Match {
    Match {
        path: Some(PathMatch::Prefix("/a".into())),
        method: Some("GET".into()),
        headers: vec![KeyMatch {
            name: "x-b".into(),
            value: ValueMatch::Exact("1".into()),
        }],
        query: vec![KeyMatch {
            name: "q".into(),
            value: ValueMatch::Regex("a+".into()),
        }],
        grpc: Some(GrpcMatch {
            service: Some("a.B".into()),
            method: None,
            regex: true,
        }),
        unreadable: None,
    }
}

fn ext_authz(ask: Ask) -> ExtAuthz {
    ExtAuthz {
        ask,
        headers: vec!["x-c".into()],
        response_headers: vec!["x-d".into()],
        body_bytes_max: 8192,
        allow_partial: true,
        timeout: Some(Duration::from_millis(1500)),
        fail_open: true,
        status_on_error: Some(503),
    }
}

fn filters() -> Vec<Filter> {
    let headers = HeaderMod {
        set: vec![Header {
            name: "a".into(),
            value: "1".into(),
        }],
        add: vec![Header {
            name: "b".into(),
            value: "".into(),
        }],
        remove: vec!["c".into()],
    };
    vec![
        Filter::RequestHeaders(headers.clone()),
        Filter::ResponseHeaders(headers),
        Filter::Rewrite(Rewrite {
            host: Some("h".into()),
            path: Some(PathRewrite::Full("/x".into())),
        }),
        Filter::Redirect(Redirect {
            scheme: Some("https".into()),
            host: None,
            port: Some(8443),
            path: Some(PathRewrite::Prefix("/y".into())),
            status: Some(301),
        }),
        Filter::Mirror(Mirror {
            backend: backend(),
            numerator: 1,
            denominator: 3,
        }),
        Filter::Cors(Cors {
            origins: vec!["https://*.example".into()],
            methods: vec!["GET".into()],
            headers: vec!["x".into()],
            expose: vec!["y".into()],
            credentials: true,
            max_age: Some(Duration::from_secs(5)),
        }),
        Filter::ExtAuthz(ext_authz(Ask::Grpc(backend()))),
        Filter::Unsupported("UDP".into()),
    ]
}

fn session() -> Session {
    Session {
        by: SessionBy::Cookie {
            name: "s".into(),
            path: "/".into(),
        },
        absolute: Some(Duration::from_secs(60)),
        idle: Some(Duration::from_secs(6)),
        permanent: true,
    }
}

fn route() -> Route {
    let listener = ParentTo::Listener {
        namespace: "shop".into(),
        gateway: "edge".into(),
        name: "https".into(),
    };
    let mut regex = matching();
    regex.path = Some(PathMatch::Regex("/.*".into()));
    let invalid = Backend {
        to: BackendTo::Invalid("BackendNotFound".into()),
        weight: 1,
        filters: Vec::new(),
    };
    Route {
        origin: origin(Kind::Http),
        parents: vec![
            Parent {
                to: ParentTo::Service(service()),
                port: Some(80),
                consumer_namespace: Some("caller".into()),
                hostnames: Vec::new(),
            },
            Parent {
                to: listener,
                port: None,
                consumer_namespace: None,
                hostnames: vec!["*.example".into()],
            },
        ],
        matches: vec![
            matching(),
            regex,
            Match::default(),
            Match::unreadable("what is it"),
        ],
        filters: filters(),
        backends: vec![backend(), invalid],
        timeouts: Timeouts {
            request: Some(Duration::ZERO),
            backend_request: Some(Duration::from_secs(2)),
        },
        retry: Some(Retry {
            attempts: Some(0),
            codes: vec![500, 503],
            grpc_codes: vec![1, 14],
            backoff: Some(Duration::from_millis(25)),
        }),
        session: Some(session()),
        error: Some("too many".into()),
    }
}

fn settings() -> Waypoint {
    let target = ServicePort {
        service: service(),
        port: 8081,
    };
    let http = Ask::Http {
        backend: backend(),
        path: "/check".into(),
    };
    let provider = |name: &str, kind| Provider {
        name: name.into(),
        kind,
    };
    Waypoint::Settings(Box::new(Settings {
        namespace: "shop".into(),
        gateway: "way".into(),
        class: "tulle-waypoint".into(),
        addresses: vec![GatewayAddress {
            destination: GatewayDestination::Hostname(service()),
            hbone_mtls_port: 15008,
        }],
        scope: Scope::All,
        source_identity: SourceIdentity::Off,
        path_normalization: PathNormalization::DecodeSlashes,
        limits: Limits {
            tunnels: Some(1),
            streams: Some(2),
            buffer_bytes: Some(3),
            header_bytes: Some(4),
            head_timeout: Some(Duration::from_secs(5)),
            body_idle: Some(Duration::from_secs(6)),
            stream_idle: Some(Duration::from_secs(7)),
            drain: Some(Duration::from_secs(8)),
        },
        telemetry: Telemetry {
            access_log: AccessLog::All,
            json: true,
            tracing: Some("otel".into()),
            sampling_ppm: Some(0),
        },
        providers: vec![
            provider("a", ProviderKind::ExtAuthz(Box::new(ext_authz(http)))),
            provider("b", ProviderKind::RateLimit(target.clone())),
            provider("c", ProviderKind::Tracing(target)),
        ],
        gateway_identities: vec!["cluster.local/ns/edge/sa/gw".into()],
        forward_client_cert: true,
        node_addresses: vec![[192, 0, 2, 1].into(), [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into()],
    }))
}

fn front(object: FrontOf) -> Waypoint {
    Waypoint::Front(Front {
        waypoint: "shop/way".into(),
        object,
        required_policies: vec!["AuthorizationPolicy/shop/a/authz".into()],
        client_namespaces: vec!["shop".into()],
        draining: true,
    })
}

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

fn policies() -> Vec<Policy> {
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

fn waypoints() -> [Waypoint; 3] {
    [
        settings(),
        front(FrontOf::Service(service())),
        front(FrontOf::Workload("Kubernetes//Pod/shop/web".into())),
    ]
}

#[test]
fn every_field_survives_the_wire() {
    for waypoint in waypoints() {
        assert_eq!(
            decode_waypoint(&waypoint.name(), &encode_waypoint(&waypoint)),
            Ok(waypoint)
        );
    }
    for policy in policies() {
        assert_eq!(decode_policy(&policy.name(), &encode_policy(&policy)), Ok(policy));
    }
    assert_eq!(
        decode_route(&route().name(), &encode_route(&route())),
        Ok(route())
    );
}

#[test]
fn every_concern_has_a_name_of_its_own() {
    let names: std::collections::BTreeSet<Str> = policies().iter().map(Policy::name).collect();
    assert_eq!(names.len(), policies().len());
}

#[test]
fn an_unknown_field_is_refused_in_a_policy_that_decides_and_ignored_elsewhere() {
    let add = |mut body: Vec<u8>| {
        prost::encoding::uint32::encode(99, &7, &mut body);
        body
    };
    assert_eq!(
        decode_route(&route().name(), &add(encode_route(&route()))),
        Ok(route())
    );
    for policy in policies() {
        let refused = decode_policy(&policy.name(), &add(encode_policy(&policy))).expect_err("unknown");
        assert_eq!(refused.cause, Cause::UnknownField(99));
    }
}

#[test]
fn a_set_of_nothing_is_refused() {
    use prost::Message;
    let policy = &policies()[0];
    let mut wire = tulle_proto::waypoint::Policy::from(policy);
    let Some(tulle_proto::waypoint::policy::Concern::Authz(authz)) = &mut wire.concern else {
        panic!("authz")
    };
    authz.rules[0].from[0].principals = Some(tulle_proto::waypoint::StringSet::default());
    let refused = decode_policy(&policy.name(), &wire.encode_to_vec()).expect_err("nothing is asked");
    assert_eq!(refused.field, "authz.rules[0].from[0].principals");
}

#[test]
fn the_kept_corpus_holds_every_kind_and_is_read_as_before() {
    let readable = |folder: &str, reads: &dyn Fn(&[u8]) -> bool| {
        let entries = std::fs::read_dir(format!("{CORPUS}/{folder}")).expect("a corpus");
        let bodies = entries.map(|entry| std::fs::read(entry.expect("a file").path()).expect("readable"));
        bodies.filter(|body| reads(body)).count()
    };
    // What is good is refused under no name for no other reason.
    let is_good = |cause: Cause| matches!(cause, Cause::OtherName(_));
    let routes = readable("xds_route", &|body| {
        decode_route("", body).is_err_and(|error| is_good(error.cause))
    });
    let concerns = readable("xds_policy", &|body| {
        decode_policy("", body).is_err_and(|error| is_good(error.cause))
    });
    let settings = readable("xds_waypoint", &|body| {
        decode_waypoint("", body).is_err_and(|error| is_good(error.cause))
    });
    assert!(routes >= 1, "a route");
    assert!(concerns >= policies().len(), "every concern");
    assert!(
        settings >= waypoints().len(),
        "settings, and fronts of both kinds"
    );
    replay(format!("{CORPUS}/xds_route"), fuzz::xds_route);
    replay(format!("{CORPUS}/xds_policy"), fuzz::xds_policy);
    replay(format!("{CORPUS}/xds_waypoint"), fuzz::xds_waypoint);
}

proptest! {
    #[test]
    fn a_mutated_message_is_refused_or_read_as_one_thing(which in 0_usize..32, at: prop::sample::Index, byte: u8) {
        let mut samples: Vec<Vec<u8>> = policies().iter().map(encode_policy).collect();
        samples.extend(waypoints().iter().map(encode_waypoint));
        samples.push(encode_route(&route()));
        let count = samples.len();
        let mut body = samples.swap_remove(which % count);
        let at = at.index(body.len());
        body[at] = byte;
        for target in [fuzz::xds_policy, fuzz::xds_route, fuzz::xds_waypoint] {
            target(&body);
            target(&body[..at]);
        }
    }
}
