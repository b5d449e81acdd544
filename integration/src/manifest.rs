//! Manifests as a user would write them.

use std::fmt::Write as _;
use std::net::IpAddr;

use tulle_world::Pod;

/// The namespace that tests enrol.
pub const NAMESPACE: &str = "app";

/// A namespace, enrolled or not.
#[must_use]
pub fn namespace(name: &str, enrolled: bool) -> String {
    let labels = if enrolled {
        "\n  labels:\n    istio.io/dataplane-mode: ambient"
    } else {
        ""
    };
    format!("---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}{labels}\n")
}

/// A pod as a WorkloadEntry; its service account and `app` label are `account`.
#[must_use]
pub fn workload(namespace: &str, pod: &Pod, account: &str) -> String {
    annotated_workload(namespace, pod, account, &[])
}

/// As [`workload`], with annotations of its own.
#[must_use]
pub fn annotated_workload(namespace: &str, pod: &Pod, account: &str, annotations: &[(&str, &str)]) -> String {
    let addresses = [IpAddr::V4(pod.ipv4()), IpAddr::V6(pod.ipv6())];
    workload_at(namespace, pod, account, &addresses, annotations)
}

/// As [`annotated_workload`], at these addresses.
#[must_use]
pub fn workload_at(
    namespace: &str,
    pod: &Pod,
    account: &str,
    addresses: &[IpAddr],
    annotations: &[(&str, &str)],
) -> String {
    let mut further = String::new();
    for (name, value) in annotations {
        let _ = writeln!(further, "    {name}: {value:?}");
    }
    let all: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
    let (name, node, first, all) = (pod.name(), pod.node(), &all[0], all.join(","));
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata:\n  name: {name}\n  \
         namespace: {namespace}\n  annotations:\n    tulle.dev/node: {node}\n    tulle.dev/process: netns:{name}\n    \
         tulle.dev/addresses: \"{all}\"\n{further}spec:\n  address: \"{first}\"\n  serviceAccount: {account}\n  \
         labels:\n    app: {account}\n"
    )
}

/// A gateway of the waypoint's class.
#[must_use]
pub fn gateway(namespace: &str, gateway: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata:\n  name: {gateway}\n  \
         namespace: {namespace}\nspec:\n  gatewayClassName: tulle-waypoint\n  listeners:\n  \
         - {{name: mesh, port: 15008, protocol: HBONE}}\n"
    )
}

/// A pod that serves a gateway, which is its service account too.
#[must_use]
pub fn instance(namespace: &str, gateway: &str, pod: &Pod) -> String {
    let (name, node, ipv4, ipv6) = (pod.name(), pod.node(), pod.ipv4(), pod.ipv6());
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata:\n  name: {name}\n  \
         namespace: {namespace}\n  annotations:\n    tulle.dev/node: {node}\n    tulle.dev/process: netns:{name}\n    \
         tulle.dev/addresses: \"{ipv4},{ipv6}\"\nspec:\n  address: {ipv4}\n  serviceAccount: {gateway}\n  \
         labels:\n    gateway.networking.k8s.io/gateway-name: {gateway}\n    gateway.istio.io/managed: tulle.dev-waypoint\n    \
         istio.io/dataplane-mode: none\n    networking.istio.io/tunnel: http\n"
    )
}

/// A gateway of the waypoint's class with a service of its name, by which its instances are found.
#[must_use]
pub fn gateway_with_service(namespace: &str, name: &str, address: IpAddr) -> String {
    gateway(namespace, name)
        + &format!(
            "status:\n  addresses:\n  - {{type: Hostname, value: {name}.{namespace}.svc.cluster.local}}\n\
             ---\napiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  labels:\n    \
             gateway.networking.k8s.io/gateway-name: {name}\n    gateway.istio.io/managed: tulle.dev-waypoint\n\
             spec:\n  clusterIP: \"{address}\"\n  clusterIPs: [\"{address}\"]\n  selector:\n    \
             gateway.networking.k8s.io/gateway-name: {name}\n  ports:\n  - {{name: mesh, port: 15008, targetPort: 15008}}\n"
        )
}

/// A service that speaks HTTP on port 80, served on 8080, behind a waypoint of its namespace.
#[must_use]
pub fn fronted(name: &str, address: IpAddr, waypoint: &str) -> String {
    service(name, &[address], &[(80, 8080)])
        .replacen(
            &format!("  name: {name}\n"),
            &format!("  name: {name}\n  labels:\n    istio.io/use-waypoint: {waypoint}\n"),
            1,
        )
        .replace("name: tcp-80", "name: http")
}

/// A policy on a service, enforced by its waypoint; `rules` is the YAML of its rules.
#[must_use]
pub fn service_policy(name: &str, service: &str, action: &str, rules: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: {name}\n  \
         namespace: {NAMESPACE}\nspec:\n  targetRefs:\n  - {{kind: Service, group: \"\", name: {service}}}\n  \
         action: {action}\n  rules:\n{rules}"
    )
}

/// A service that selects `app: <name>`; ports are (service port, target port).
#[must_use]
pub fn service(name: &str, addresses: &[IpAddr], ports: &[(u16, u16)]) -> String {
    let list = addresses
        .iter()
        .map(|address| format!("\"{address}\""))
        .collect::<Vec<_>>()
        .join(", ");
    let mut yaml = format!(
        "---\napiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: {NAMESPACE}\nspec:\n  \
         clusterIP: \"{}\"\n  clusterIPs: [{list}]\n  selector:\n    app: {name}\n  ports:\n",
        addresses[0]
    );
    for (port, target) in ports {
        let _ = writeln!(
            yaml,
            "  - name: tcp-{port}\n    port: {port}\n    targetPort: {target}"
        );
    }
    yaml
}

/// A node in a zone of the only region.
#[must_use]
pub fn node(name: &str, zone: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n  labels:\n    \
         topology.kubernetes.io/region: north\n    topology.kubernetes.io/zone: {zone}\n"
    )
}

/// A service entry whose port 80 is served at 8080 by the pods of an app; its addresses may be ranges.
#[must_use]
pub fn service_entry(namespace: &str, name: &str, addresses: &str, app: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata:\n  name: {name}\n  \
         namespace: {namespace}\nspec:\n  hosts: [{name}.example.com]\n  addresses: [\"{addresses}\"]\n  \
         location: MESH_INTERNAL\n  resolution: STATIC\n  ports:\n  \
         - {{number: 80, name: tcp, protocol: TCP, targetPort: 8080}}\n  \
         workloadSelector:\n    labels:\n      app: {app}\n"
    )
}

/// A manifest whose object of this name has further metadata, given as YAML.
#[must_use]
pub fn with_metadata(manifest: &str, name: &str, metadata: &str) -> String {
    let named = format!("metadata:\n  name: {name}\n");
    assert!(manifest.contains(&named), "{name} is not in {manifest}");
    manifest.replacen(&named, &format!("{named}{metadata}"), 1)
}

/// A policy on the pods of an app; `rules` is the YAML of its rules.
#[must_use]
pub fn policy(name: &str, app: &str, action: &str, rules: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: {name}\n  \
         namespace: {NAMESPACE}\nspec:\n  selector:\n    matchLabels:\n      app: {app}\n  action: {action}\n  \
         rules:\n{rules}"
    )
}

/// A rule that matches callers of a service account.
#[must_use]
pub fn from_account(account: &str) -> String {
    format!("  - from:\n    - source:\n        principals: [cluster.local/ns/{NAMESPACE}/sa/{account}]\n")
}

/// Strict mutual TLS for the namespace.
#[must_use]
pub fn strict() -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  name: default\n  \
         namespace: {NAMESPACE}\nspec:\n  mtls:\n    mode: STRICT\n"
    )
}
