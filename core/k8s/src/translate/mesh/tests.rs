use std::time::Duration;

use tulle_model::filter::ExtAuthz;

use super::*;
use crate::testing::mesh;

const WAYPOINT: &str = "
waypoint:
  sourceIdentity: 'off'
  pathNormalization: DECODE_SLASHES
  accessLog: all
  accessLogJson: true
  tracing: spans
  sampling: 2.5
  gatewayIdentities: [spiffe://cluster.local/ns/edge/sa/gateway]
  limits:
    tunnels: 1
    streams: 2
    bufferBytes: 3
    headerBytes: 4
    headTimeout: 5s
    bodyIdle: 6s
    streamIdle: 7s
    drain: 8s
";

/// What could not be used.
fn flaw(conditions: &[Condition]) -> Option<&str> {
    let [condition] = conditions else {
        panic!("one condition")
    };
    (&*condition.reason != "Accepted").then_some(&*condition.message)
}

#[test]
fn every_setting_of_waypoints_is_its_own() {
    let (mesh, told) = mesh(WAYPOINT);
    let span = |seconds| Some(Duration::from_secs(seconds));
    let expected = WaypointDefaults {
        source_identity: SourceIdentity::Off,
        path_normalization: PathNormalization::DecodeSlashes,
        limits: Limits {
            tunnels: Some(1),
            streams: Some(2),
            buffer_bytes: Some(3),
            header_bytes: Some(4),
            head_timeout: span(5),
            body_idle: span(6),
            stream_idle: span(7),
            drain: span(8),
        },
        telemetry: Telemetry {
            access_log: AccessLog::All,
            json: true,
            tracing: Some("spans".into()),
            sampling_ppm: Some(25_000),
        },
        gateway_identities: vec!["spiffe://cluster.local/ns/edge/sa/gateway".into()],
    };
    assert_eq!((mesh.waypoint, flaw(&told)), (expected, None));
    let (nothing, told) = self::mesh("{}");
    assert_eq!(
        (nothing.waypoint, flaw(&told)),
        (WaypointDefaults::default(), None)
    );
}

#[test]
fn words_of_waypoints_are_those_that_are_known() {
    let of = |setting: &str| {
        let (mesh, told) = mesh(&format!("waypoint: {{{setting}}}\n"));
        (mesh.waypoint, flaw(&told).map(str::to_owned))
    };
    for (word, expected) in [
        ("BASE", PathNormalization::Base),
        ("MERGE_SLASHES", PathNormalization::MergeSlashes),
        ("DECODE_SLASHES", PathNormalization::DecodeSlashes),
        ("DECODE_AND_MERGE_SLASHES", PathNormalization::DecodeSlashes),
        ("NONE", PathNormalization::None),
    ] {
        let (found, told) = of(&format!("pathNormalization: {word}"));
        assert_eq!((found.path_normalization, told), (expected, None), "{word}");
    }
    for (word, expected) in [
        ("errors", AccessLog::Errors),
        ("'off'", AccessLog::Off),
        ("all", AccessLog::All),
    ] {
        let (found, told) = of(&format!("accessLog: {word}"));
        assert_eq!((found.telemetry.access_log, told), (expected, None), "{word}");
    }
    for (word, expected) in [
        ("forward", SourceIdentity::Forward),
        ("'off'", SourceIdentity::Off),
    ] {
        let (found, told) = of(&format!("sourceIdentity: {word}"));
        assert_eq!((found.source_identity, told), (expected, None), "{word}");
    }
    for setting in [
        "sourceIdentity: on-off",
        "pathNormalization: SOME",
        "accessLog: some",
    ] {
        let (found, told) = of(setting);
        assert_eq!(found, WaypointDefaults::default(), "{setting}");
        let name = setting.split(':').next().unwrap_or_default();
        assert!(
            told.is_some_and(|told| told.starts_with(&format!("waypoint.{name} is"))),
            "{setting}"
        );
    }
}

const PROVIDERS: &str = "
providers:
- name: http
  extAuthz:
    backendRef: {name: opa, namespace: infra, port: 9001}
    protocol: HTTP
    path: /check
    allowedHeaders: [x-in]
    allowedResponseHeaders: [x-out]
    maxBodyBytes: 1024
    allowPartial: true
    timeout: 2s
    failOpen: true
    statusOnError: 503
- name: grpc
  extAuthz: {backendRef: {name: opa, port: 9000}}
- name: limits
  rateLimit: {service: limits.infra.svc.cluster.local, port: 8081}
- name: spans
  tracing: {service: infra/collector.example, port: 4317}
";

#[test]
fn providers_are_what_they_do() {
    let (mesh, told) = mesh(PROVIDERS);
    assert_eq!(flaw(&told), None);
    let backend = |namespace: &str, port| Backend {
        to: BackendTo::Service {
            service: NamespacedHostname::new(namespace, format!("opa.{namespace}.svc.cluster.local")),
            port,
        },
        weight: 1,
        filters: Vec::new(),
    };
    let asked = |ask| ExtAuthz {
        ask,
        headers: Vec::new(),
        response_headers: Vec::new(),
        body_bytes_max: 0,
        allow_partial: false,
        timeout: None,
        fail_open: false,
        status_on_error: None,
    };
    let http = ExtAuthz {
        headers: vec!["x-in".into()],
        response_headers: vec!["x-out".into()],
        body_bytes_max: 1024,
        allow_partial: true,
        timeout: Some(Duration::from_secs(2)),
        fail_open: true,
        status_on_error: Some(503),
        ..asked(Ask::Http {
            backend: backend("infra", 9001),
            path: "/check".into(),
        })
    };
    let target = |host: &str, port| Target {
        service: NamespacedHostname::new("infra", host),
        port,
    };
    let expected = [
        ("http", ProviderKind::ExtAuthz(Box::new(http))),
        (
            "grpc",
            ProviderKind::ExtAuthz(Box::new(asked(Ask::Grpc(backend("istio-system", 9000))))),
        ),
        (
            "limits",
            ProviderKind::RateLimit(target("limits.infra.svc.cluster.local", 8081)),
        ),
        ("spans", ProviderKind::Tracing(target("collector.example", 4317))),
    ];
    let expected = expected.map(|(name, kind)| Provider {
        name: name.into(),
        kind,
    });
    assert_eq!(mesh.providers, expected);
}

#[test]
fn the_mesh_is_what_its_settings_say_and_its_flags_stay() {
    let (found, told) = mesh(
        "
trustDomainAliases: [old.example]
network: west
mtlsMode: strict
excludedNamespaces: [batch]
",
    );
    assert_eq!(flaw(&told), None);
    assert_eq!(found.trust_domain_aliases, [Str::from("old.example")]);
    assert_eq!((&*found.network, found.mtls_mode), ("west", MtlsMode::Strict));
    let excluded: Vec<&str> = found
        .enrolment
        .excluded_namespaces
        .iter()
        .map(AsRef::as_ref)
        .collect();
    assert_eq!(excluded, ["batch", "istio-system"]);
    let (same, told) = mesh("{trustDomain: other.example, rootNamespace: other}\n");
    assert_eq!(
        (&*same.trust_domain, &*same.root_namespace),
        ("cluster.local", "istio-system")
    );
    let expected = "trustDomain is cluster.local by the flag of the control plane; it cannot be changed here; rootNamespace is istio-system by the flag of the control plane; it cannot be changed here";
    assert_eq!(flaw(&told), Some(expected));
}

#[test]
fn a_provider_that_wants_more_of_a_body_than_is_sent_along_is_refused() {
    let of = |bytes: u32| {
        mesh(&format!(
            "providers: [{{name: opa, extAuthz: {{backendRef: {{name: opa, port: 9000}}, maxBodyBytes: {bytes}}}}}]\n"
        ))
    };
    assert!(of(8_192).0.decides("opa"));
    let (found, told) = of(8_193);
    assert!(!found.decides("opa"), "who names it denies");
    let expected = "provider opa: maxBodyBytes is 8193, and at most 8192 bytes of a body are sent along; policies that name it deny until this is corrected";
    assert_eq!(flaw(&told), Some(expected));
}
