//! The shop-window application: which pods there are, where they run and whom they call.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};

use tulle_world::{Backend, Pod, VirtualService};

/// Namespace of the application.
pub(crate) const NAMESPACE: &str = "shop";
/// Namespace of the client that stays outside of the mesh.
pub(crate) const OUTSIDE: &str = "outside";
/// Port that serves pages.
pub(crate) const PAGE_PORT: u16 = 9080;
/// Port that echoes lines, for connections that stay open for good.
pub(crate) const ECHO_PORT: u16 = 9081;
/// The nodes of the demo.
pub(crate) const NODES: [&str; 2] = ["n1", "n2"];

/// One pod of the application.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PodSpec {
    pub(crate) name: &'static str,
    pub(crate) app: &'static str,
    pub(crate) version: &'static str,
    pub(crate) node: &'static str,
    /// Services it calls for each page.
    pub(crate) calls: &'static [&'static str],
    /// Pages per second that it asks for by itself.
    pub(crate) rate: u32,
    /// Stays outside of the mesh.
    pub(crate) outside: bool,
}

const fn pod(
    name: &'static str,
    app: &'static str,
    version: &'static str,
    node: &'static str,
    calls: &'static [&'static str],
) -> PodSpec {
    PodSpec {
        name,
        app,
        version,
        node,
        calls,
        rate: 0,
        outside: false,
    }
}

/// Front page → details, reviews → ratings, a load generator, and a client outside of the mesh. The latter is on
/// the front page's node, so that its plain text never crosses the wire that the recorder watches.
pub(crate) const PODS: [PodSpec; 8] = [
    pod("details-v1", "details", "v1", "n2", &[]),
    pod("ratings-v1", "ratings", "v1", "n2", &[]),
    pod("reviews-v1", "reviews", "v1", "n1", &[]),
    pod("reviews-v2", "reviews", "v2", "n2", &["ratings"]),
    pod("reviews-v3", "reviews", "v3", "n1", &["ratings"]),
    pod(
        "productpage-v1",
        "productpage",
        "v1",
        "n1",
        &["details", "reviews"],
    ),
    PodSpec {
        rate: 40,
        ..pod("load-v1", "load", "v1", "n2", &["productpage"])
    },
    PodSpec {
        rate: 2,
        outside: true,
        ..pod("legacy", "legacy", "v1", "n1", &["productpage"])
    },
];

/// Services by name; the index gives the virtual address.
const SERVICES: [&str; 4] = ["productpage", "details", "reviews", "ratings"];

/// The virtual address of a service.
pub(crate) fn virtual_address(service: &str) -> Ipv4Addr {
    let index = SERVICES
        .iter()
        .position(|name| *name == service)
        .expect("the service is in the list");
    Ipv4Addr::new(
        10,
        96,
        0,
        10 + u8::try_from(index).expect("there are four services"),
    )
}

/// The services as plain nodes know them before there is a mesh.
pub(crate) fn virtual_services(pods: &[(PodSpec, Pod)]) -> Vec<VirtualService> {
    let backends = |service: &str, port| {
        let serving = pods.iter().filter(|(spec, _)| spec.app == service);
        serving
            .map(|(_, pod)| Backend(SocketAddr::new(pod.ipv4().into(), port)))
            .collect()
    };
    let ports = [PAGE_PORT, ECHO_PORT];
    let of_service = |service: &'static &'static str| {
        ports.map(|port| VirtualService {
            address: SocketAddr::new(virtual_address(service).into(), port),
            backends: backends(service, port),
        })
    };
    SERVICES.iter().flat_map(of_service).collect()
}

/// The pairs of pods that talk to each other inside of the mesh, (caller, callee).
pub(crate) fn edges() -> Vec<(&'static str, &'static str)> {
    let callers = PODS.iter().filter(|pod| !pod.outside);
    callers
        .flat_map(|caller| caller.calls.iter().map(move |service| (caller, *service)))
        .flat_map(|(caller, service)| {
            PODS.iter()
                .filter(move |callee| callee.app == service)
                .map(move |callee| (caller.name, callee.name))
        })
        .collect()
}

/// The namespaces as a manifest, the application's labelled or not.
pub(crate) fn namespaces_yaml(enrolled: bool) -> String {
    let labels = if enrolled {
        "\n  labels:\n    istio.io/dataplane-mode: ambient"
    } else {
        ""
    };
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {NAMESPACE}{labels}\n---\n\
         apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {OUTSIDE}\n"
    )
}

/// The services as a manifest; one of them goes through a waypoint, if there is one.
pub(crate) fn services_yaml(waypoint: bool) -> String {
    let mut yaml = String::new();
    for service in SERVICES {
        let address = virtual_address(service);
        let labels = if waypoint && service == FRONTED {
            "\n  labels:\n    istio.io/use-waypoint: waypoint"
        } else {
            ""
        };
        let _ = writeln!(
            yaml,
            "---\napiVersion: v1\nkind: Service\nmetadata:\n  name: {service}\n  namespace: {NAMESPACE}{labels}\n\
             spec:\n  clusterIP: {address}\n  clusterIPs: [{address}]\n  selector:\n    app: {service}\n  ports:\n  \
             - name: http\n    port: {PAGE_PORT}\n    targetPort: {PAGE_PORT}\n  \
             - name: tcp-echo\n    port: {ECHO_PORT}\n    targetPort: {ECHO_PORT}"
        );
    }
    yaml
}

/// The pods as a manifest: without Kubernetes a pod is a WorkloadEntry with a place.
pub(crate) fn workloads_yaml(pods: &[(PodSpec, Pod)]) -> String {
    let mut yaml = String::new();
    for (spec, pod) in pods {
        let namespace = if spec.outside { OUTSIDE } else { NAMESPACE };
        let (name, app, version) = (spec.name, spec.app, spec.version);
        let (node, ipv4, ipv6) = (pod.node(), pod.ipv4(), pod.ipv6());
        let _ = writeln!(
            yaml,
            "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata:\n  name: {name}\n  \
             namespace: {namespace}\n  annotations:\n    tulle.dev/node: {node}\n    \
             tulle.dev/process: netns:{name}\n    tulle.dev/addresses: \"{ipv4},{ipv6}\"\n\
             spec:\n  address: {ipv4}\n  serviceAccount: {app}\n  labels:\n    app: {app}\n    version: {version}"
        );
    }
    yaml
}

/// The policy that the demo ends with: the front page may no longer call details.
pub(crate) const DENY_DETAILS: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: deny-details
  namespace: shop
spec:
  selector:
    matchLabels:
      app: details
  action: DENY
  rules:
  - from:
    - source:
        principals: [cluster.local/ns/shop/sa/productpage]
";

/// The service that gets a waypoint.
pub(crate) const FRONTED: &str = "ratings";

/// A waypoint, as `tulle waypoint apply -n shop` writes it.
pub(crate) const WAYPOINT: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: waypoint
  namespace: shop
  labels:
    istio.io/waypoint-for: service
spec:
  gatewayClassName: tulle-waypoint
  listeners:
  - name: mesh
    port: 15008
    protocol: HBONE
";

/// A small fault, planted to be found: one call in five fails.
pub(crate) const FAULT: &str = "\
apiVersion: tulle.dev/v1alpha1
kind: TrafficPolicy
metadata:
  name: ratings-fail
  namespace: shop
spec:
  targetRefs:
  - kind: Service
    name: ratings
  fault:
    abort:
      httpStatus: 500
      percent: 20
";

/// The edge that [`DENY_DETAILS`] closes, (caller, callee).
pub(crate) const DENIED_EDGE: (&str, &str) = ("productpage-v1", "details-v1");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seven_edges_lie_inside_of_the_mesh() {
        assert_eq!(edges().len(), 7);
        assert!(edges().contains(&DENIED_EDGE));
        assert!(!edges().iter().any(|(caller, _)| *caller == "legacy"));
    }

    #[test]
    fn manifests_are_yaml() {
        let fixed = [DENY_DETAILS, WAYPOINT, FAULT].map(str::to_owned);
        for text in [namespaces_yaml(true), services_yaml(true)]
            .into_iter()
            .chain(fixed)
        {
            for document in text.split("---\n").filter(|document| !document.trim().is_empty()) {
                let value: serde_json::Value = serde_saphyr::from_str(document).unwrap();
                assert!(value["metadata"]["name"].is_string(), "{document}");
            }
        }
    }
}
