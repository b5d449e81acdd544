//! The rows of the translation of workloads.

use super::*;
use crate::testing::{
    endpoint_slice, namespace, node, pod as parse, service, service_entry, workload_entry as parse_entry,
};
use crate::translate::ports;

const AMBIENT: &str =
    "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}\n";

fn with<T>(home: Option<&str>, on: Option<&str>, f: impl FnOnce(&Around<'_>) -> T) -> T {
    let mesh = MeshConfig::default();
    let (home, on) = (home.map(namespace), on.map(node));
    f(&Around {
        mesh: &mesh,
        namespace: home.as_ref(),
        node: on.as_ref(),
        network: &"".into(),
        services: BTreeMap::new(),
        policies: Vec::new(),
    })
}

fn pod_text(meta: &str, spec: &str, status: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: web-1, namespace: shop{meta}}}\nspec: {{nodeName: n1{spec}}}\nstatus: {{podIP: 10.0.0.1{status}}}\n"
    )
}

fn of_pod(meta: &str, spec: &str, status: &str) -> Workload {
    let object = parse(&pod_text(meta, spec, status));
    with(None, None, |around| pod(&object, around))
        .0
        .expect("a workload")
}

fn entry_text(annotations: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: web, namespace: shop, annotations: {{{annotations}}}}}\nspec: {{{spec}}}\n"
    )
}

fn of_entry(annotations: &str, spec: &str) -> (Option<Workload>, Vec<Condition>) {
    let object = parse_entry(&entry_text(annotations, spec));
    with(Some(AMBIENT), None, |around| workload_entry(&object, around))
}

#[test]
fn a_pod_is_named_after_cluster_namespace_and_name() {
    let workload = of_pod(
        "",
        ", serviceAccountName: web",
        ", podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]",
    );
    assert_eq!(&*workload.uid.0, "Kubernetes//Pod/shop/web-1");
    assert_eq!(
        workload.identity().to_string(),
        "spiffe://cluster.local/ns/shop/sa/web"
    );
    assert_eq!(
        workload
            .addresses
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["10.0.0.1", "fd00::1"]
    );
    assert_eq!(&*of_pod("", "", "").service_account, "default");
}

#[test]
fn ended_pods_and_pods_without_address_are_none() {
    for status in [", phase: Succeeded", ", phase: Failed"] {
        let object = parse(&pod_text("", "", status));
        assert!(
            with(None, None, |around| pod(&object, around)).0.is_none(),
            "{status}"
        );
    }
    let object = parse("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nstatus: {phase: Running}\n");
    assert!(with(None, None, |around| pod(&object, around)).0.is_none());
    assert_eq!(of_pod("", "", ", phase: Pending").status, HealthStatus::Unhealthy);
}

#[test]
fn a_pod_is_healthy_while_ready_and_not_being_deleted() {
    let ready = ", conditions: [{type: Ready, status: 'True'}]";
    assert_eq!(of_pod("", "", ready).status, HealthStatus::Healthy);
    assert_eq!(
        of_pod("", "", ", conditions: [{type: Ready, status: 'False'}]").status,
        HealthStatus::Unhealthy
    );
    assert_eq!(
        of_pod(", deletionTimestamp: '2026-01-01T00:00:00Z'", "", ready).status,
        HealthStatus::Unhealthy
    );
}

#[test]
fn a_pod_on_the_hosts_network_is_not_tunnelled_to() {
    let object = parse(&pod_text(
        ", annotations: {ambient.istio.io/redirection: enabled}",
        ", hostNetwork: true",
        "",
    ));
    let workload = with(Some(AMBIENT), None, |around| pod(&object, around))
        .0
        .expect("a workload");
    assert_eq!(
        (workload.network_mode, workload.tunnel_protocol),
        (NetworkMode::HostNetwork, TunnelProtocol::None)
    );
}

#[test]
fn tunnels_follow_annotation_label_or_a_deriving_node() {
    let deriving =
        "apiVersion: v1\nkind: Node\nmetadata: {name: n1, annotations: {tulle.dev/enrolment: derived}}\n";
    let cases = [
        ("", None, None, TunnelProtocol::None),
        ("", Some(AMBIENT), None, TunnelProtocol::None),
        ("", Some(AMBIENT), Some(deriving), TunnelProtocol::Hbone),
        ("", None, Some(deriving), TunnelProtocol::None),
        (
            ", labels: {istio.io/dataplane-mode: none}",
            Some(AMBIENT),
            Some(deriving),
            TunnelProtocol::None,
        ),
        (
            ", annotations: {ambient.istio.io/redirection: enabled}",
            None,
            None,
            TunnelProtocol::Hbone,
        ),
        (
            ", labels: {networking.istio.io/tunnel: http}",
            None,
            None,
            TunnelProtocol::Hbone,
        ),
        (
            ", labels: {security.istio.io/tlsMode: istio}",
            None,
            None,
            TunnelProtocol::None,
        ),
    ];
    for (meta, home, on, expected) in cases {
        let object = parse(&pod_text(meta, "", ""));
        let workload = with(home, on, |around| pod(&object, around))
            .0
            .expect("a workload");
        assert_eq!(workload.tunnel_protocol, expected, "{meta} {home:?} {on:?}");
        assert_eq!(workload.native_tunnel, meta.contains("tunnel"), "{meta}");
    }
}

#[test]
fn owners_name_the_workload() {
    let owner = |kind: &str, name: &str| {
        let meta = format!(
            ", labels: {{pod-template-hash: abc}}, ownerReferences: [{{kind: {kind}, name: {name}, controller: true}}]"
        );
        let workload = of_pod(&meta, "", "");
        (workload.workload_name.to_string(), workload.workload_type)
    };
    assert_eq!(
        owner("ReplicaSet", "web-abc"),
        ("web".into(), WorkloadType::Deployment)
    );
    assert_eq!(
        owner("ReplicaSet", "web-xyz"),
        ("web-xyz".into(), WorkloadType::Pod)
    );
    assert_eq!(
        owner("Job", "report-29012345"),
        ("report".into(), WorkloadType::CronJob)
    );
    assert_eq!(owner("Job", "report-1"), ("report-1".into(), WorkloadType::Job));
    assert_eq!(owner("StatefulSet", "db"), ("db".into(), WorkloadType::Pod));
    assert_eq!(of_pod("", "", "").workload_type, WorkloadType::Pod);
}

#[test]
fn canonical_names_follow_the_labels_in_order() {
    let named = |labels: &str| {
        let workload = of_pod(&format!(", labels: {{{labels}}}"), "", "");
        format!("{} {}", workload.canonical_name, workload.canonical_revision)
    };
    assert_eq!(named("app: a, version: v1"), "a v1");
    assert_eq!(
        named("app: a, app.kubernetes.io/name: b, app.kubernetes.io/version: v2, version: v1"),
        "b v2"
    );
    assert_eq!(named("service.istio.io/canonical-name: c, app: a"), "c latest");
    assert_eq!(named(""), "web-1 latest");
}

#[test]
fn nodes_lend_their_locality() {
    let on = "apiVersion: v1\nkind: Node\nmetadata: {name: n1, labels: {topology.kubernetes.io/region: r, topology.kubernetes.io/zone: z, topology.istio.io/subzone: s}}\n";
    let object = parse(&pod_text("", "", ""));
    let workload = with(None, Some(on), |around| pod(&object, around))
        .0
        .expect("a workload");
    assert_eq!(
        (
            &*workload.locality.region,
            &*workload.locality.zone,
            &*workload.locality.subzone
        ),
        ("r", "z", "s")
    );
}

#[test]
fn a_network_is_named_by_label_or_by_default() {
    assert_eq!(
        &*of_pod(", labels: {topology.istio.io/network: n}", "", "").network,
        "n"
    );
    let root = namespace(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: istio-system, labels: {topology.istio.io/network: m}}\n",
    );
    assert_eq!(&*MeshConfig::default().default_network(Some(&root)), "m");
}

#[test]
fn a_placed_entry_of_an_enrolled_namespace_is_tunnelled_to() {
    let (workload, conditions) = of_entry(
        "tulle.dev/node: n1, tulle.dev/process: 'netns:web', tulle.dev/addresses: '10.0.0.1, fd00::1'",
        "address: 10.0.0.1, serviceAccount: web, labels: {app: web, version: v1}",
    );
    let workload = workload.expect("a workload");
    assert_eq!(
        &*workload.uid.0,
        "Kubernetes/networking.istio.io/WorkloadEntry/shop/web"
    );
    assert_eq!(workload.tunnel_protocol, TunnelProtocol::Hbone);
    assert_eq!(
        (
            &*workload.node,
            &*workload.service_account,
            &*workload.canonical_revision
        ),
        ("n1", "web", "v1")
    );
    assert_eq!(workload.addresses.len(), 2);
    let (by_uid, _) = of_entry(
        "tulle.dev/node: n1, tulle.dev/process: 'pod:u1'",
        "address: 10.0.0.1",
    );
    assert_eq!(
        &*by_uid.expect("a workload").extensions["tulle.dev/process"],
        "pod:u1"
    );
    assert_eq!(&*workload.extensions[PROCESS_ANNOTATION], "netns:web");
    assert_eq!(conditions[0].reason, "Accepted");
    let (workload, _) = of_entry("", "address: 10.0.0.1");
    assert_eq!(
        workload.expect("a workload").tunnel_protocol,
        TunnelProtocol::None
    );
}

#[test]
fn how_a_placed_workload_is_captured_is_told_to_its_agent_and_to_nobody_else() {
    let annotations =
        "ambient.istio.io/dns-capture: 'false', istio.io/reroute-virtual-interfaces: 'eth1,net1'";
    let (placed, conditions) = of_entry(&format!("tulle.dev/node: n1, {annotations}"), "address: 10.0.0.1");
    let placed = placed.expect("a workload");
    assert_eq!(&*placed.extensions["ambient.istio.io/dns-capture"], "false");
    assert_eq!(
        &*placed.extensions["istio.io/reroute-virtual-interfaces"],
        "eth1,net1"
    );
    assert_eq!(conditions[0].reason, "Accepted");
    let (elsewhere, _) = of_entry(annotations, "address: 10.0.0.1");
    assert!(elsewhere.expect("a workload").extensions.is_empty());
    let wrong = "tulle.dev/node: n1, ambient.istio.io/bypass-inbound-capture: 'yes'";
    let (workload, conditions) = of_entry(wrong, "address: 10.0.0.1");
    assert!(workload.expect("a workload").extensions.is_empty());
    assert!(
        conditions[0].message.contains("must be true or false"),
        "{:?}",
        conditions[0]
    );
}

#[test]
fn an_entry_takes_weight_locality_network_and_health() {
    let (workload, _) = of_entry("", "address: db.example, network: n, locality: r/z/s, weight: 0");
    let workload = workload.expect("a workload");
    assert_eq!(
        (&*workload.hostname, workload.capacity, &*workload.network),
        ("db.example", 0, "n")
    );
    assert_eq!(&*workload.locality.subzone, "s");
    let sick =
        entry_text("", "address: 10.0.0.1") + "status: {conditions: [{type: Healthy, status: 'False'}]}\n";
    let object = parse_entry(&sick);
    let workload = with(None, None, |around| workload_entry(&object, around))
        .0
        .expect("a workload");
    assert_eq!(workload.status, HealthStatus::Unhealthy);
}

#[test]
fn what_an_entry_says_wrongly_is_told() {
    let reason = |annotations: &str, spec: &str| {
        let (workload, conditions) = of_entry(annotations, spec);
        (workload.is_some(), conditions[0].reason.to_string())
    };
    assert_eq!(
        reason(
            "tulle.dev/node: n1, tulle.dev/process: 'pid:1'",
            "address: 10.0.0.1"
        ),
        (true, "PartiallyInvalid".into())
    );
    assert_eq!(
        reason("tulle.dev/process: 'netns:a'", "address: 10.0.0.1"),
        (true, "PartiallyInvalid".into())
    );
    assert_eq!(
        reason("tulle.dev/addresses: 'x'", "address: 10.0.0.1"),
        (true, "PartiallyInvalid".into())
    );
    assert_eq!(reason("", "address: 'unix:///a'"), (false, "Invalid".into()));
    assert_eq!(reason("", "labels: {}"), (false, "Invalid".into()));
}

#[test]
fn ports_resolve_at_each_endpoint_and_are_left_out_otherwise() {
    let web = service(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{name: a, port: 80, targetPort: http}, {name: b, port: 81, targetPort: 8081}, {name: c, port: 82}, {name: d, port: 83, targetPort: missing}, {name: e, port: 84, protocol: UDP}, {name: f, port: 85, targetPort: side}]}\n",
    );
    let object = parse(&pod_text(
        "",
        ", containers: [{ports: [{name: http, containerPort: 8080}, {name: missing, containerPort: 1, protocol: UDP}]}], initContainers: [{restartPolicy: Always, ports: [{name: side, containerPort: 9}]}, {ports: [{name: missing, containerPort: 2}]}]",
        "",
    ));
    assert_eq!(
        ports::at_pod(&web, &object),
        PortMapping::from([(80, 8080), (81, 8081), (82, 82), (85, 9)])
    );
    let own = BTreeMap::from([("http".into(), 7070)]);
    assert_eq!(
        ports::at_entry(&web, &own),
        PortMapping::from([(80, 7070), (81, 8081), (82, 82)])
    );
    let slice = endpoint_slice(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web}\nports: [{name: a, port: 6060}]\n",
    );
    assert_eq!(ports::at_slice(&web, &slice), PortMapping::from([(80, 6060)]));
    let entry = service_entry(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: web}\nspec: {ports: [{name: http, number: 80}, {name: b, number: 81, targetPort: 8081}]}\n",
    );
    assert_eq!(
        ports::of_service_entry(&entry, &own),
        PortMapping::from([(80, 7070), (81, 8081)])
    );
}

#[test]
fn endpoints_of_slices_have_no_identity_of_their_own() {
    let slice = endpoint_slice(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web, namespace: shop}\nendpoints: [{addresses: [10.0.0.9], conditions: {ready: false}}]\n",
    );
    let workload = with(None, None, |around| {
        slice_endpoint(&slice, &slice.endpoints[0], "10.0.0.9".parse().unwrap(), around)
    });
    assert_eq!(
        &*workload.uid.0,
        "Kubernetes/discovery.k8s.io/EndpointSlice/shop/web/10.0.0.9"
    );
    assert_eq!(
        (workload.network_mode, workload.status),
        (NetworkMode::HostNetwork, HealthStatus::Unhealthy)
    );
}
