use super::*;
use serde_json::json;
use tulle_runtime::config::MapEnv;

fn read(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let env: MapEnv = variables.iter().copied().collect();
    Config::from_env(&env)
}

#[test]
fn nothing_set_serves_the_node() {
    let config = read(&[]).unwrap();
    assert_eq!(config.mode, ProxyMode::Shared);
    assert_eq!(config.packet_mark, Some(1337));
    assert_eq!(config.drain_deadline, Duration::from_secs(5));
    assert_eq!(
        config.xds.unwrap().address.to_string(),
        "https://localhost:15012/"
    );
}

#[test]
fn in_kubernetes_the_control_plane_has_its_usual_name() {
    let config = read(&[("KUBERNETES_SERVICE_HOST", "10.0.0.1")]).unwrap();
    assert_eq!(
        config.xds.unwrap().address.host(),
        Some("istiod.istio-system.svc")
    );
}

#[test]
fn dedicated_mode_needs_its_workload() {
    let error = read(&[("PROXY_MODE", "dedicated")]).unwrap_err();
    assert!(error.to_string().contains("PROXY_WORKLOAD_INFO"), "{error}");
    let config = read(&[
        ("PROXY_MODE", "dedicated"),
        ("PROXY_WORKLOAD_INFO", "shop/web-1/web"),
    ])
    .unwrap();
    let ProxyMode::Dedicated(name) = config.mode else {
        panic!("dedicated")
    };
    assert_eq!(name.to_string(), "shop/web-1/web");
    assert_eq!(config.packet_mark, None, "no mark by default");
}

#[test]
fn all_bad_values_are_listed_together() {
    let error = read(&[
        ("PROXY_MODE", "both"),
        ("SECRET_TTL", "long"),
        ("HTTP2_FRAME_SIZE", "1KiB"),
        ("TULLE_HBONE", "quic"),
        ("IPV6_ENABLED", "perhaps"),
        ("XDS_ADDRESS", "ftp://x"),
        ("ZTUNNEL_WORKER_THREADS", "many"),
        ("TULLE_REASON_DETAIL", "all"),
        ("PROXY_CONFIG", "concurrency: [1"),
    ])
    .unwrap_err();
    let names: Vec<_> = error
        .problems
        .iter()
        .map(|problem| problem.name.as_str())
        .collect();
    for name in [
        "PROXY_MODE",
        "SECRET_TTL",
        "HTTP2_FRAME_SIZE",
        "TULLE_HBONE",
        "IPV6_ENABLED",
        "XDS_ADDRESS",
        "ZTUNNEL_WORKER_THREADS",
        "TULLE_REASON_DETAIL",
        "PROXY_CONFIG",
    ] {
        assert!(names.contains(&name), "{name} is missing in {names:?}");
    }
}

#[test]
fn a_local_configuration_needs_no_control_plane() {
    let config = read(&[("LOCAL_XDS", "workloads: []")]).unwrap();
    assert!(config.xds.is_none());
    let both = read(&[("LOCAL_XDS", "workloads: []"), ("LOCAL_XDS_PATH", "/x")]);
    assert!(both.is_err());
}

#[test]
fn the_drain_leaves_a_margin_of_the_grace_period() {
    for (grace, deadline) in [("30", 25), ("10", 9), ("1", 1), ("2m", 115)] {
        let config = read(&[("TERMINATION_GRACE_PERIOD_SECONDS", grace)]).unwrap();
        assert_eq!(
            config.drain_deadline,
            Duration::from_secs(deadline),
            "grace of {grace}"
        );
    }
    let config = read(&[
        ("TERMINATION_GRACE_PERIOD_SECONDS", "30"),
        ("CONNECTION_TERMINATION_DEADLINE", "3s"),
    ])
    .unwrap();
    assert_eq!(config.drain_deadline, Duration::from_secs(3));
}

#[test]
fn a_token_never_shows() {
    let config = read(&[("AUTH_TOKEN", "tulle1.n1.5ec4e7")]).unwrap();
    let dump = serde_json::to_string(&config).unwrap();
    assert!(!dump.contains("5ec4e7"), "{dump}");
    assert!(!format!("{config:?}").contains("5ec4e7"));
}

#[test]
fn istio_s_proxy_config_sets_ports_and_address() {
    let yaml = "discoveryAddress: pilot:15012\nproxyAdminPort: 25000\nstatsPort: 25020\nconcurrency: 1\nholdApplication: x";
    let config = read(&[("PROXY_CONFIG", yaml)]).unwrap();
    assert_eq!(config.process_ports.admin, 25000);
    assert_eq!(config.process_ports.stats, 25020);
    assert_eq!(config.worker_threads, 1);
    assert_eq!(config.xds.unwrap().address.to_string(), "https://pilot:15012/");
}

#[test]
fn an_empty_address_means_no_control_plane() {
    let variables = [
        ("XDS_ADDRESS", ""),
        ("PROXY_CONFIG", "discoveryAddress: pilot:15012"),
    ];
    assert!(read(&variables).unwrap().xds.is_none());
}

#[test]
fn headers_are_sent_to_the_server_they_are_for_and_never_shown() {
    let config = read(&[("XDS_HEADER_X-Team", "s3cr3t"), ("CA_HEADER_TENANT", "blue")]).unwrap();
    let dump = serde_json::to_value(&config).unwrap();
    let shown = format!("{config:?} {dump}");
    let sent = config.xds.unwrap().headers.to_vec();
    assert_eq!(sent, [("x-team".to_owned(), "s3cr3t".to_owned())]);
    assert_eq!(dump["ca"]["server"]["headers"], json!(["tenant"]));
    assert_eq!(dump["xds"]["headers"], json!(["x-team"]));
    assert!(!shown.contains("s3cr3t") && !shown.contains("blue"), "{shown}");
}

#[test]
fn what_cannot_be_sent_or_read_is_listed_by_variable() {
    let error = read(&[
        ("XDS_HEADER_A B", "x"),
        ("CA_HEADER_TRACE-BIN", "x"),
        ("CA_HEADER_TOKEN", "s3cr3t\n"),
        ("ISTIO_METAJSON_LABELS", "{"),
        ("ISTIO_METAJSON_GOOD", "{}"),
    ])
    .unwrap_err();
    let names: Vec<_> = error.problems.iter().map(|problem| &*problem.name).collect();
    let expected = [
        "XDS_HEADER_A B",
        "CA_HEADER_TOKEN",
        "CA_HEADER_TRACE-BIN",
        "ISTIO_METAJSON_LABELS",
    ];
    assert_eq!(names, expected);
    assert!(!error.to_string().contains("s3cr3t"), "{error}");
}

#[test]
fn node_metadata_comes_from_variables_before_the_proxy_config() {
    let config = read(&[
        ("ISTIO_META_ZONE", "a"),
        ("ISTIO_METAJSON_LABELS", r#"{"app":"zt"}"#),
        ("PROXY_CONFIG", "proxyMetadata: {ISTIO_META_ZONE: b, RACK: r1}"),
    ])
    .unwrap();
    assert_eq!(config.node_metadata["ZONE"], "a");
    assert_eq!(config.node_metadata["RACK"], "r1");
    assert_eq!(config.node_metadata["LABELS"]["app"], "zt");
}

#[cfg(not(feature = "testing"))]
#[test]
fn there_is_no_fake_authority_outside_of_tests() {
    assert!(read(&[("FAKE_CA", "true")]).is_err());
}

#[test]
fn names_are_answered_unless_proxy_metadata_says_otherwise() {
    let dns = |metadata: &str| {
        let proxy_config = format!("proxyMetadata: {{{metadata}}}");
        read(&[("PROXY_CONFIG", &proxy_config)]).map(|config| config.dns)
    };
    let usual = read(&[]).unwrap().dns;
    assert_eq!(usual.listen.map(|listen| listen.port), Some(15053));
    assert_eq!(&*usual.domain, "cluster.local");
    assert_eq!(dns("DNS_CAPTURE: 'false'").unwrap().listen, None);
    assert_eq!(dns("DNS_CAPTURE: false").unwrap().listen, None);
    let moved = dns("DNS_PROXY_ADDR: '127.0.0.1:5353'").unwrap().listen.unwrap();
    assert_eq!((moved.port, moved.v4, moved.v6), (5353, true, false));
    let error = dns("DNS_CAPTURE: maybe, DNS_PROXY_ADDR: '0.0.0.0:53'")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("DNS_CAPTURE") && error.contains("DNS_PROXY_ADDR"),
        "{error}"
    );
}

#[test]
fn names_alone_are_answered_but_something_must_be_done() {
    let config = read(&[("ENABLE_PROXY", "false"), ("XDS_ON_DEMAND", "true")]).unwrap();
    assert!(!config.proxy && config.on_demand && config.dns.listen.is_some());
    let error = read(&[
        ("ENABLE_PROXY", "false"),
        ("PROXY_CONFIG", "proxyMetadata: {DNS_CAPTURE: 'false'}"),
    ])
    .unwrap_err();
    assert!(error.to_string().contains("ENABLE_PROXY"), "{error}");
}

#[test]
fn what_has_no_effect_is_named() {
    assert_eq!(
        read(&[("TLS12_ENABLED", "true")]).unwrap().without_effect,
        ["TLS12_ENABLED"]
    );
    assert!(read(&[]).unwrap().without_effect.is_empty());
}

#[test]
fn revocation_lists_refuse_when_they_are_stale_unless_told_otherwise() {
    use tulle_identity::StalePolicy;
    let config = read(&[("CRL_PATH", "/etc/crl.pem")]).unwrap();
    assert_eq!(
        config.crl.path.as_deref(),
        Some(std::path::Path::new("/etc/crl.pem"))
    );
    assert_eq!(config.crl.stale, StalePolicy::Deny);
    assert_eq!(
        read(&[("TULLE_CRL_STALE", "allow")]).unwrap().crl.stale,
        StalePolicy::Allow
    );
    assert!(read(&[("TULLE_CRL_STALE", "perhaps")]).is_err());
}
