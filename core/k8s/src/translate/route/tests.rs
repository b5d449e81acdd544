//! From manifests, as users write them, to the rules that waypoints follow. Every value differs from its neighbours, so
//! that two fields that change places are seen.

use std::time::Duration;

use tulle_model::NamespacedHostname;
use tulle_model::filter::{
    Ask, Cors, ExtAuthz, Filter, Header, HeaderMod, Mirror, PathRewrite, Redirect, Rewrite,
};
use tulle_model::route::{
    Backend, BackendTo, GrpcMatch, KeyMatch, ParentTo, PathMatch, Retry, Session, SessionBy, Timeouts,
    ValueMatch,
};

use super::*;
use crate::document::documents;
use crate::object::{Reading, read};
use crate::testing::{Around, objects};
use crate::translate::condition::Status;

const SHOP: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: way, namespace: shop}
spec:
  gatewayClassName: tulle-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
status: {addresses: [{value: 10.0.0.9}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {istio.io/use-waypoint: way}}
spec: {clusterIPs: [10.9.0.1], ports: [{name: http, port: 80}, {name: http-b, port: 81}]}
---
apiVersion: v1
kind: Service
metadata: {name: opa, namespace: shop}
spec: {clusterIPs: [10.9.0.2], ports: [{name: grpc, port: 9000}, {name: http, port: 9001}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: partner, namespace: shop}
spec: {hosts: [partner.example], ports: [{name: tls, number: 443, protocol: HTTP}]}
";

/// The first rule of a route of this kind, and the reasons of conditions that do not hold.
fn rule(kind: &str, spec: &str) -> (Route, Vec<String>) {
    let text = format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: {kind}
metadata: {{name: r, namespace: shop, generation: 3}}
spec:
  parentRefs: [{{group: '', kind: Service, name: web, port: 80}}]
  rules:
  - name: first
{spec}"
    );
    let translated = route(&objects(&text).remove(0), &[], &Around::of(SHOP));
    let failing = translated
        .conditions
        .iter()
        .filter(|one| one.status == Status::False);
    let told = failing
        .map(|one| format!("{}: {}", one.reason, one.message))
        .collect();
    (Route::clone(&translated.routes[0]), told)
}

/// The only filter of a rule; all of it can be used.
fn filter(spec: &str) -> Filter {
    let spec = format!("    filters:\n    - {spec}\n    backendRefs: [{{name: web, port: 80}}]\n");
    let (route, told) = rule("HTTPRoute", &spec);
    assert_eq!((told.len(), &route.error), (0, &None), "{spec}");
    route.filters[0].clone()
}

fn to(name: &str, port: u16) -> BackendTo {
    BackendTo::Service {
        service: NamespacedHostname::new("shop", format!("{name}.shop.svc.cluster.local")),
        port,
    }
}

fn backend(to: BackendTo, weight: u32) -> Backend {
    Backend {
        to,
        weight,
        filters: Vec::new(),
    }
}

fn header(name: &str, value: &str) -> Header {
    Header {
        name: name.into(),
        value: value.into(),
    }
}

fn texts(all: &[&str]) -> Vec<Str> {
    all.iter().map(|text| Str::from(*text)).collect()
}

fn key(name: &str, value: ValueMatch) -> KeyMatch {
    KeyMatch {
        name: name.into(),
        value,
    }
}

#[test]
fn a_rule_says_where_it_comes_from_and_what_it_hangs_on() {
    let (route, _) = rule("HTTPRoute", "    backendRefs: [{name: web, port: 80}]\n");
    let origin = &route.origin;
    let shown = (
        origin.kind,
        &*origin.namespace,
        &*origin.name,
        origin.rule_index,
        &*origin.rule_name,
    );
    assert_eq!(
        (shown, origin.generation),
        ((Kind::Http, "shop", "r", 0, "first"), 3)
    );
    let [parent] = &*route.parents else {
        panic!("one parent")
    };
    let web = NamespacedHostname::new("shop", "web.shop.svc.cluster.local");
    assert_eq!((&parent.to, parent.port), (&ParentTo::Service(web), Some(80)));
    assert_eq!((&parent.consumer_namespace, parent.hostnames.len()), (&None, 0));
}

#[test]
fn every_condition_of_a_request_is_its_own() {
    let (route, told) = rule(
        "HTTPRoute",
        "    matches:
    - path: {type: Exact, value: /exact}
      method: GET
      headers:
      - {name: x-plain, value: a}
      - {name: x-regex, type: RegularExpression, value: 'b.*'}
      - {name: X-Plain, value: again}
      queryParams:
      - {name: q-plain, value: c}
      - {name: q-regex, type: RegularExpression, value: 'd+'}
    - path: {value: /prefix}
    - path: {type: PathPrefix, value: /other}
    - path: {type: RegularExpression, value: '/e[0-9]+'}
    - {}
    backendRefs: [{name: web, port: 80}]
",
    );
    assert_eq!(told, [""; 0]);
    let first = Match {
        path: Some(PathMatch::Exact("/exact".into())),
        method: Some("GET".into()),
        headers: vec![
            key("x-plain", ValueMatch::Exact("a".into())),
            key("x-regex", ValueMatch::Regex("b.*".into())),
        ],
        query: vec![
            key("q-plain", ValueMatch::Exact("c".into())),
            key("q-regex", ValueMatch::Regex("d+".into())),
        ],
        grpc: None,
        unreadable: None,
    };
    let on = |path| Match {
        path: Some(path),
        ..Match::default()
    };
    let expected = [
        first,
        on(PathMatch::Prefix("/prefix".into())),
        on(PathMatch::Prefix("/other".into())),
        on(PathMatch::Regex("/e[0-9]+".into())),
        Match::default(),
    ];
    assert_eq!(route.matches, expected);
}

#[test]
fn every_condition_of_a_call_is_its_own() {
    let (route, told) = rule(
        "GRPCRoute",
        "    matches:
    - method: {service: shop.Items, method: Get}
      headers: [{name: x-a, value: b}]
    - method: {type: RegularExpression, service: 'shop\\..*', method: 'G.*'}
    - method: {type: Exact, service: shop.Carts}
    - method: {method: Put}
    backendRefs: [{name: web, port: 80}]
",
    );
    assert_eq!(told, [""; 0]);
    let call = |service: Option<&str>, method: Option<&str>, regex| Match {
        grpc: Some(GrpcMatch {
            service: service.map(Str::from),
            method: method.map(Str::from),
            regex,
        }),
        ..Match::default()
    };
    let first = Match {
        headers: vec![key("x-a", ValueMatch::Exact("b".into()))],
        ..call(Some("shop.Items"), Some("Get"), false)
    };
    let expected = [
        first,
        call(Some("shop\\..*"), Some("G.*"), true),
        call(Some("shop.Carts"), None, false),
        call(None, Some("Put"), false),
    ];
    assert_eq!(route.matches, expected);
}

#[test]
fn headers_are_set_added_and_removed_as_is_written() {
    let spec = |kind: &str, field: &str| {
        filter(&format!(
            "type: {kind}
      {field}:
        set: [{{name: X-Set, value: a}}]
        add: [{{name: X-Add, value: b}}]
        remove: [X-Remove]"
        ))
    };
    let expected = HeaderMod {
        set: vec![header("x-set", "a")],
        add: vec![header("x-add", "b")],
        remove: texts(&["x-remove"]),
    };
    assert_eq!(
        spec("RequestHeaderModifier", "requestHeaderModifier"),
        Filter::RequestHeaders(expected.clone())
    );
    assert_eq!(
        spec("ResponseHeaderModifier", "responseHeaderModifier"),
        Filter::ResponseHeaders(expected)
    );
}

#[test]
fn rewrites_and_redirects_lead_where_is_written() {
    let full = "{type: ReplaceFullPath, replaceFullPath: /full}";
    let prefix = "{type: ReplacePrefixMatch, replacePrefixMatch: /prefix}";
    let full_path = Some(PathRewrite::Full("/full".into()));
    let prefix_path = Some(PathRewrite::Prefix("/prefix".into()));
    for (written, path) in [(full, &full_path), (prefix, &prefix_path)] {
        let rewrite = filter(&format!(
            "{{type: URLRewrite, urlRewrite: {{hostname: a.example, path: {written}}}}}"
        ));
        let expected = Rewrite {
            host: Some("a.example".into()),
            path: path.clone(),
        };
        assert_eq!(rewrite, Filter::Rewrite(expected), "{written}");
        let redirect = format!(
            "    filters:
    - type: RequestRedirect
      requestRedirect: {{scheme: https, hostname: b.example, port: 8443, statusCode: 307, path: {written}}}
"
        );
        let (route, told) = rule("HTTPRoute", &redirect);
        let expected = Redirect {
            scheme: Some("https".into()),
            host: Some("b.example".into()),
            port: Some(8443),
            path: path.clone(),
            status: Some(307),
        };
        assert_eq!(
            (route.filters, told.len()),
            (vec![Filter::Redirect(expected)], 0),
            "{written}"
        );
    }
}

#[test]
fn copies_go_where_and_as_often_as_is_written() {
    for (share, numerator, denominator) in [
        ("", 100, 100),
        (", percent: 7", 7, 100),
        (", fraction: {numerator: 3}", 3, 100),
        (", fraction: {numerator: 3, denominator: 1000}", 3, 1000),
    ] {
        let found = filter(&format!(
            "{{type: RequestMirror, requestMirror: {{backendRef: {{name: web, port: 81}}{share}}}}}"
        ));
        let expected = Mirror {
            backend: backend(to("web", 81), 1),
            numerator,
            denominator,
        };
        assert_eq!(found, Filter::Mirror(expected), "{share}");
    }
}

#[test]
fn every_field_of_cors_is_its_own() {
    let found = filter(
        "type: CORS
      cors:
        allowOrigins: ['https://a.example']
        allowMethods: [GET]
        allowHeaders: [x-in]
        exposeHeaders: [x-out]
        allowCredentials: true
        maxAge: 600",
    );
    let expected = Cors {
        origins: texts(&["https://a.example"]),
        methods: texts(&["GET"]),
        headers: texts(&["x-in"]),
        expose: texts(&["x-out"]),
        credentials: true,
        max_age: Some(Duration::from_secs(600)),
    };
    assert_eq!(found, Filter::Cors(expected));
}

#[test]
fn who_else_decides_is_asked_with_what_its_protocol_says() {
    let asks = |ask, headers: &[&str], response_headers: &[&str], body_bytes_max| {
        Filter::ExtAuthz(ExtAuthz {
            ask,
            headers: texts(headers),
            response_headers: texts(response_headers),
            body_bytes_max,
            allow_partial: false,
            timeout: None,
            fail_open: false,
            status_on_error: None,
        })
    };
    let grpc = filter(
        "type: ExternalAuth
      externalAuth:
        protocol: GRPC
        backendRef: {name: opa, port: 9000}
        grpc: {allowedHeaders: [x-grpc]}
        http: {path: /no, allowedHeaders: [x-http]}
        forwardBody: {maxSize: 2048}",
    );
    let service = backend(to("opa", 9000), 1);
    assert_eq!(grpc, asks(Ask::Grpc(service), &["x-grpc"], &[], 2048));
    let http = filter(
        "type: ExternalAuth
      externalAuth:
        protocol: HTTP
        backendRef: {name: opa, port: 9001}
        http: {path: /check, allowedHeaders: [x-http], allowedResponseHeaders: [x-out]}
        grpc: {allowedHeaders: [x-grpc]}",
    );
    let ask = Ask::Http {
        backend: backend(to("opa", 9001), 1),
        path: "/check".into(),
    };
    assert_eq!(http, asks(ask, &["x-http"], &["x-out"], 0));
}

#[test]
fn backends_have_their_own_shares_and_filters() {
    let (route, told) = rule(
        "HTTPRoute",
        "    backendRefs:
    - {name: web, port: 80, weight: 90}
    - name: opa
      port: 9001
      filters:
      - type: RequestHeaderModifier
        requestHeaderModifier: {set: [{name: x-b, value: c}]}
    - {group: networking.istio.io, kind: ServiceEntry, name: partner, port: 443, weight: 0}
    - {group: networking.istio.io, kind: Hostname, name: partner.example, weight: 5}
    - {name: web, port: 9, weight: 6}
    - {name: gone, port: 80}
    - {group: apps, kind: Deployment, name: web}
",
    );
    let modifies = HeaderMod {
        set: vec![header("x-b", "c")],
        ..HeaderMod::default()
    };
    let partner = || BackendTo::Service {
        service: NamespacedHostname::new("shop", "partner.example"),
        port: 443,
    };
    let invalid = |reason: &str| BackendTo::Invalid(reason.into());
    let expected = [
        backend(to("web", 80), 90),
        Backend {
            filters: vec![Filter::RequestHeaders(modifies)],
            ..backend(to("opa", 9001), 1)
        },
        backend(partner(), 0),
        backend(partner(), 5),
        backend(invalid("BackendNotFound"), 6),
        backend(invalid("BackendNotFound"), 1),
        backend(invalid("InvalidKind"), 1),
    ];
    assert_eq!(route.backends, expected);
    assert_eq!(told, ["BackendNotFound: Service shop/web has no port 9"]);
}

#[test]
fn times_tries_and_sessions_are_those_of_the_rule() {
    let (route, told) = rule(
        "HTTPRoute",
        "    timeouts: {request: 20s, backendRequest: 3s}
    retry: {codes: [502, 503], attempts: 4, backoff: 150ms}
    sessionPersistence: {type: Header, sessionName: x-session, absoluteTimeout: 2h, idleTimeout: 5m}
    backendRefs: [{name: web, port: 80}]
",
    );
    let span = |seconds| Some(Duration::from_secs(seconds));
    let timeouts = Timeouts {
        request: span(20),
        backend_request: span(3),
    };
    let retry = Retry {
        attempts: Some(4),
        codes: vec![502, 503],
        grpc_codes: vec![],
        backoff: Some(Duration::from_millis(150)),
    };
    let session = Session {
        by: SessionBy::Header("x-session".into()),
        absolute: span(7200),
        idle: span(300),
        permanent: false,
    };
    assert_eq!(
        (route.timeouts, route.retry, route.session, told.len()),
        (timeouts, Some(retry), Some(session), 0)
    );
}

#[test]
fn what_cannot_be_done_is_answered_with_500_and_told() {
    for (filter, cause) in [
        ("{type: Compress}", "the filter Compress is not supported"),
        (
            "{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: Host, value: a}]}}",
            "the header Host may not be changed",
        ),
        (
            "{type: ExternalAuth, externalAuth: {protocol: TCP, backendRef: {name: opa, port: 9000}}}",
            "the protocol of externalAuth is GRPC or HTTP",
        ),
        (
            "{type: ExternalAuth, externalAuth: {protocol: GRPC, backendRef: {name: opa, port: 9000}, forwardBody: {maxSize: 8193}}}",
            "externalAuth.forwardBody.maxSize is 8193, and at most 8192 bytes of a body are sent along",
        ),
    ] {
        let spec = format!("    filters: [{filter}]\n    backendRefs: [{{name: web, port: 80}}]\n");
        let (route, told) = rule("HTTPRoute", &spec);
        assert_eq!(route.error.as_deref(), Some(cause), "{filter}");
        assert_eq!(route.filters, [Filter::Unsupported(cause.into())]);
        let expected = format!("UnsupportedValue: rules[0]: {cause}; requests that match it get 500");
        assert_eq!(told, [expected]);
    }
}

#[test]
fn a_route_that_cannot_be_read_leaves_no_request_unasked() {
    let text = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: web}]
  rules: [{filters: [{type: ExternalAuth, externalAuth: 7}], backendRefs: [{name: web, port: 80}]}]
";
    let node = documents(text).remove(0).expect("it is YAML");
    let Reading::Bad {
        stand_in: Some(object),
        ..
    } = read(&node)
    else {
        panic!("a stand-in")
    };
    assert_eq!(asking(&object), [0], "it closes the pods to everybody else, too");
    let translated = route(&object, &[], &Around::of(SHOP));
    let closed = &translated.routes[0];
    assert_eq!(
        closed.error.as_deref(),
        Some("the filter ExternalAuth is not supported")
    );
    assert!(closed.matches.is_empty() && closed.backends.is_empty());
}
