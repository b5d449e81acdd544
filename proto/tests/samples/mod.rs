//! Resources of waypoints in which every field says something.

mod policies;

use std::time::Duration;

use tulle_model::NamespacedHostname;
use tulle_model::filter::{
    Ask, Cors, ExtAuthz, Filter, Header, HeaderMod, Mirror, PathRewrite, Redirect, Rewrite,
};
use tulle_model::gateway::{GatewayAddress, GatewayDestination};
use tulle_model::route::{
    Backend, BackendTo, Created, GrpcMatch, KeyMatch, Kind, Match, Origin, Parent, ParentTo, PathMatch,
    Retry, Route, Session, SessionBy, Timeouts, ValueMatch,
};
use tulle_model::waypoint::{
    AccessLog, Front, FrontOf, Limits, PathNormalization, Provider, ProviderKind, Scope, Settings,
    SourceIdentity, Target as ServicePort, Telemetry, Waypoint,
};

pub(crate) use policies::policies;

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

pub(crate) fn route() -> Route {
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
        required_routes: vec!["HTTPRoute/shop/a/0".into()],
        client_namespaces: vec!["shop".into()],
        draining: true,
    })
}

pub(crate) fn waypoints() -> [Waypoint; 3] {
    [
        settings(),
        front(FrontOf::Service(service())),
        front(FrontOf::Workload("Kubernetes//Pod/shop/web".into())),
    ]
}
