//! The rows of the translation of services.

use tulle_model::service::AppProtocol;

use super::*;
use crate::api::Namespace;
use crate::testing::{namespace, service as parse, service_entry as parse_entry};

fn with_namespace(text: &str, namespace: Option<&Namespace>) -> (Option<Model>, Vec<Condition>) {
    let mesh = MeshConfig::default();
    let around = Around {
        mesh: &mesh,
        namespace,
        network: &"".into(),
    };
    service(&parse(text), around)
}

fn spec(spec: &str) -> (Model, Vec<Condition>) {
    let text =
        format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\nspec: {spec}\n");
    let (model, conditions) = with_namespace(&text, None);
    (model.expect("a service"), conditions)
}

fn entry(spec: &str) -> (Vec<Model>, Vec<Condition>) {
    let text = format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: web, namespace: shop}}\nspec: {spec}\n"
    );
    let mesh = MeshConfig::default();
    service_entry(
        &parse_entry(&text),
        Around {
            mesh: &mesh,
            namespace: None,
            network: &"".into(),
        },
    )
}

#[test]
fn a_service_has_its_name_addresses_and_tcp_ports() {
    let (model, conditions) = spec(
        "{clusterIPs: [10.9.0.1, 'fd00::9'], ipFamilies: [IPv4, IPv6], ports: [{name: http, port: 80, targetPort: 8080}, {name: web, port: 81, targetPort: named}, {port: 82}, {port: 53, protocol: UDP}]}",
    );
    assert_eq!(&*model.hostname, "web.shop.svc.cluster.local");
    assert_eq!(
        model
            .addresses
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["/10.9.0.1", "/fd00::9"]
    );
    let targets: Vec<_> = model
        .ports
        .iter()
        .map(|(port, to)| (*port, to.target_port))
        .collect();
    assert_eq!(targets, [(80, Some(8080)), (81, None), (82, Some(82))]);
    assert_eq!(model.ip_families, IpFamilies::Dual);
    assert_eq!(conditions[0].reason, "Accepted");
}

#[test]
fn external_names_are_dropped_and_headless_services_have_no_address() {
    let text =
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {type: ExternalName, externalName: x}\n";
    assert!(with_namespace(text, None).0.is_none());
    let (model, conditions) = spec("{clusterIP: None, ports: [{port: 80}]}");
    assert!(model.addresses.is_empty());
    assert_eq!(conditions[0].reason, "Accepted");
}

#[test]
fn a_service_without_address_says_so() {
    let (_, conditions) = spec("{ports: [{port: 80}]}");
    assert_eq!(conditions[0].reason, "PartiallyInvalid");
    assert!(conditions[0].message.contains("clusterIPs"));
}

#[test]
fn protocols_come_from_app_protocol_then_from_the_name() {
    let cases = [
        ("", "http-web", AppProtocol::Http11),
        ("", "http", AppProtocol::Http11),
        ("", "http2-x", AppProtocol::Http2),
        ("kubernetes.io/h2c", "http", AppProtocol::Http2),
        ("h2c", "", AppProtocol::Http2),
        ("", "grpc-web", AppProtocol::Grpc),
        ("https", "", AppProtocol::Tls),
        ("", "tls-x", AppProtocol::Tls),
        ("", "mongo", AppProtocol::Tcp),
        ("", "redis-1", AppProtocol::Tcp),
        ("", "web", AppProtocol::Unknown),
        ("", "", AppProtocol::Unknown),
        ("something", "http", AppProtocol::Unknown),
    ];
    for (declared, name, expected) in cases {
        assert_eq!(ports::app_protocol(declared, name), expected, "{declared} {name}");
    }
}

#[test]
fn nearness_is_asked_for_by_spec_annotation_or_namespace() {
    let close = [Scope::Network, Scope::Region, Scope::Zone];
    let balancing = |text: &str| spec(text).0.load_balancing;
    assert_eq!(balancing("{clusterIP: 10.9.0.1}"), None);
    assert_eq!(
        balancing("{clusterIP: 10.9.0.1, trafficDistribution: PreferClose}")
            .unwrap()
            .routing_preference,
        close
    );
    let node = balancing("{clusterIP: 10.9.0.1, trafficDistribution: PreferSameNode}").unwrap();
    assert_eq!(
        (node.mode, node.routing_preference.len()),
        (LoadBalancingMode::Failover, 5)
    );
    let local =
        balancing("{clusterIP: 10.9.0.1, internalTrafficPolicy: Local, trafficDistribution: PreferClose}")
            .unwrap();
    assert_eq!(
        (local.mode, local.routing_preference),
        (LoadBalancingMode::Strict, vec![Scope::Node])
    );
    let unready = balancing("{clusterIP: 10.9.0.1, publishNotReadyAddresses: true}").unwrap();
    assert_eq!(unready.health_policy, HealthPolicy::AllowAll);
    let home = namespace(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, annotations: {networking.istio.io/traffic-distribution: PreferClose}}\n",
    );
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {clusterIP: 10.9.0.1}\n";
    let (model, _) = with_namespace(text, Some(&home));
    assert_eq!(model.unwrap().load_balancing.unwrap().routing_preference, close);
    let (_, conditions) = spec("{clusterIP: 10.9.0.1, trafficDistribution: Nearest}");
    assert_eq!(conditions[0].reason, "PartiallyInvalid");
}

#[test]
fn a_service_entry_is_one_service_per_host() {
    let (models, conditions) = entry(
        "{hosts: [a.example, '*.b.example', 'bad/host'], addresses: [10.8.0.1, 10.8.1.0/24, x], resolution: STATIC, ports: [{number: 443, name: tls, protocol: TLS, targetPort: 8443}, {number: 53, protocol: UDP, name: dns}]}",
    );
    assert_eq!(
        models.iter().map(|model| &*model.hostname).collect::<Vec<_>>(),
        ["a.example", "*.b.example"]
    );
    assert_eq!(models[0].addresses.len(), 1);
    assert_eq!(models[0].cidrs[0].to_string(), "/10.8.1.0/24");
    assert_eq!(models[0].ports.len(), 1);
    assert_eq!(
        models[0].ports[&443],
        ServicePort {
            target_port: Some(8443),
            app_protocol: AppProtocol::Tls
        }
    );
    assert_eq!(conditions[0].reason, "PartiallyInvalid");
}

#[test]
fn resolution_none_passes_through() {
    let (models, _) = entry("{hosts: [a.example], ports: [{number: 80, name: http}]}");
    let balancing = models[0].load_balancing.clone().unwrap();
    assert_eq!(
        (balancing.mode, balancing.health_policy),
        (LoadBalancingMode::Passthrough, HealthPolicy::AllowAll)
    );
}

fn listed(namespaces: &[&str]) -> Visibility {
    Visibility::Namespaces(namespaces.iter().map(|name| (*name).into()).collect())
}

#[test]
fn export_to_decides_who_sees_it() {
    let visibility = |export: &str| {
        let (models, conditions) = entry(&format!(
            "{{hosts: [a.example], resolution: STATIC, exportTo: {export}}}"
        ));
        (models[0].visibility.clone(), &*conditions[0].reason == "Accepted")
    };
    assert_eq!(visibility("[]"), (Visibility::Public, true));
    assert_eq!(visibility("['*']"), (Visibility::Public, true));
    assert_eq!(visibility("[a, '*']"), (Visibility::Public, true));
    assert_eq!(visibility("['.']"), (Visibility::Namespace, true));
    assert_eq!(visibility("[shop]"), (Visibility::Namespace, true), "by its name");
    assert_eq!(visibility("[a, b]"), (listed(&["a", "b"]), true));
    assert_eq!(visibility("['.', b]"), (listed(&["b", "shop"]), true));
    assert_eq!(visibility("['~']"), (listed(&[]), true));
    assert_eq!(visibility("[a, 'B c', '*.x', '']"), (listed(&["a"]), false));
    assert_eq!(
        visibility("['B c']"),
        (listed(&[]), false),
        "nobody, not everybody"
    );
}

#[test]
fn a_service_is_exported_by_its_annotation() {
    let visibility = |export: &str| {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop, annotations: {{networking.istio.io/exportTo: '{export}'}}}}\nspec: {{clusterIPs: [10.9.0.1]}}\n"
        );
        let (model, conditions) = with_namespace(&text, None);
        (model.unwrap().visibility, &*conditions[0].reason == "Accepted")
    };
    assert_eq!(visibility(""), (Visibility::Public, true));
    assert_eq!(visibility("*"), (Visibility::Public, true));
    assert_eq!(visibility("."), (Visibility::Namespace, true));
    assert_eq!(visibility("a, b"), (listed(&["a", "b"]), true));
    assert_eq!(visibility("~"), (listed(&[]), true));
    assert_eq!(visibility("a,B"), (listed(&["a"]), false));
}

#[test]
fn subject_alt_names_are_identities() {
    let (models, conditions) = entry(
        "{hosts: [a.example], resolution: STATIC, subjectAltNames: ['spiffe://td/ns/a/sa/b', 'a.example']}",
    );
    assert_eq!(models[0].subject_alt_names, [Identity::new("td", "a", "b")]);
    assert_eq!(conditions[0].reason, "PartiallyInvalid");
}
