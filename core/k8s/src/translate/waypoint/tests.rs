use std::collections::BTreeMap;

use tulle_model::NamespacedHostname;

use super::super::lookup::{Definition, NoDefinition};
use super::*;
use crate::api::{GatewayClass, ReferenceGrant};
use crate::testing::{gateway, namespace, service};

/// A world of namespaces and gateways.
#[derive(Default)]
struct Around {
    mesh: MeshConfig,
    namespaces: BTreeMap<String, Namespace>,
    gateways: BTreeMap<String, Gateway>,
}

impl Around {
    fn with(mut self, text: &str) -> Self {
        for text in text.split("---\n") {
            if text.contains("kind: Namespace") {
                let object = namespace(text);
                self.namespaces.insert(object.metadata.name.to_string(), object);
            } else {
                let object = gateway(text);
                let meta = &object.metadata;
                self.gateways
                    .insert(format!("{}/{}", meta.namespace, meta.name), object);
            }
        }
        self
    }

    fn bind(&self, labels: &str, traffic: Traffic) -> Binding {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop, labels: {{{labels}}}, annotations: {{istio.io/use-waypoint-canary-weight: '20'}}}}\n"
        );
        let object = service(&text);
        let subject = Subject {
            meta: &object.metadata,
            traffic,
            visibility: &Visibility::Public,
        };
        bind(subject, self)
    }
}

impl Lookup for Around {
    fn mesh(&self) -> &MeshConfig {
        &self.mesh
    }
    fn namespace(&self, name: &str) -> Option<&Namespace> {
        self.namespaces.get(name)
    }
    fn gateway(&self, namespace: &str, name: &str) -> Option<&Gateway> {
        self.gateways.get(&format!("{namespace}/{name}"))
    }
    fn gateway_class(&self, _: &str) -> Option<&GatewayClass> {
        None
    }
    fn gateways(&self) -> Vec<&Gateway> {
        self.gateways.values().collect()
    }
    fn route(&self, _: crate::Kind, _: &str, _: &str) -> Option<&Object> {
        None
    }
    fn service_of(&self, _: &str, _: &str) -> Result<Definition, NoDefinition> {
        Err(NoDefinition::Missing)
    }
    fn entry_of(&self, _: &str, _: &str) -> Result<Vec<Definition>, NoDefinition> {
        Err(NoDefinition::Missing)
    }
    fn hostname(&self, _: &str, _: &str) -> Option<Definition> {
        None
    }
    fn grants(&self, _: &str) -> Vec<&ReferenceGrant> {
        Vec::new()
    }
    fn certificates(&self, _: &str, _: &str, _: &str) -> Option<Str> {
        None
    }
    fn waypoints_of(&self, _: &NamespacedHostname) -> Vec<Str> {
        Vec::new()
    }
    fn is_bound(&self, _: &NamespacedHostname) -> bool {
        false
    }
    fn node_addresses(&self) -> Vec<std::net::IpAddr> {
        Vec::new()
    }
}

fn way(namespace: &str, name: &str, labels: &str, from: &str, status: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{{labels}}}}}\nspec: {{gatewayClassName: tulle-waypoint, listeners: [{{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {{namespaces: {{from: {from}}}}}}}]}}\nstatus: {{addresses: [{status}]}}\n"
    )
}

const READY: &str = "{type: IPAddress, value: 10.0.0.9}, {type: Hostname, value: way.shop.svc.cluster.local}";

fn reason(binding: &Binding) -> String {
    binding
        .condition()
        .map_or_else(|| "none".to_owned(), |condition| condition.reason.into_owned())
}

#[test]
fn a_named_waypoint_is_missing_then_not_ready_then_bound_by_name() {
    let missing = Around::default();
    assert_eq!(
        reason(&missing.bind("istio.io/use-waypoint: way", Traffic::Service)),
        "WaypointMissing"
    );
    let waiting = Around::default().with(&way("shop", "way", "", "Same", ""));
    assert_eq!(
        reason(&waiting.bind("istio.io/use-waypoint: way", Traffic::Service)),
        "WaypointIsNotReady"
    );
    let ready = Around::default().with(&way("shop", "way", "", "Same", READY));
    let bound = ready.bind("istio.io/use-waypoint: way", Traffic::Service);
    assert_eq!(reason(&bound), "WaypointAccepted");
    let address = bound.address(false, &ready.mesh).expect("it is bound");
    assert_eq!(address.to_string(), "shop/way.shop.svc.cluster.local:15008");
}

#[test]
fn an_object_goes_before_its_namespace_and_does_not_fall_back_to_it() {
    let around = Around::default()
        .with(
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/use-waypoint: way}}\n",
        )
        .with(&way("shop", "way", "", "Same", READY));
    assert!(around.bind("", Traffic::Service).is_bound());
    assert_eq!(
        around.bind("istio.io/use-waypoint: none", Traffic::Service),
        Binding::None
    );
    assert_eq!(
        reason(&around.bind("istio.io/use-waypoint: gone", Traffic::Service)),
        "WaypointMissing"
    );
    assert_eq!(
        around.bind("gateway.istio.io/managed: x", Traffic::Service),
        Binding::None
    );
}

#[test]
fn traffic_that_the_waypoint_does_not_take_is_told_unless_a_namespace_asked_for_a_workload() {
    let around = Around::default()
        .with(
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/use-waypoint: way}}\n",
        )
        .with(&way("shop", "way", "", "Same", READY))
        .with(&way(
            "shop",
            "pods",
            "istio.io/waypoint-for: workload",
            "Same",
            READY,
        ));
    assert_eq!(around.bind("", Traffic::Workload), Binding::None);
    assert_eq!(
        reason(&around.bind("istio.io/use-waypoint: way", Traffic::Workload)),
        "UnsupportedTrafficType"
    );
    assert_eq!(
        reason(&around.bind("istio.io/use-waypoint: pods", Traffic::Service)),
        "UnsupportedTrafficType"
    );
    assert!(
        around
            .bind("istio.io/use-waypoint: pods", Traffic::Workload)
            .is_bound()
    );
}

#[test]
fn another_namespace_attaches_only_where_it_is_allowed() {
    let labels = "istio.io/use-waypoint: way, istio.io/use-waypoint-namespace: infra";
    for (from, expected) in [
        ("Same", "AttachmentDenied"),
        ("All", "WaypointAccepted"),
        ("None", "AttachmentDenied"),
        (
            "Selector, selector: {matchLabels: {team: shop}}",
            "WaypointAccepted",
        ),
        (
            "Selector, selector: {matchLabels: {team: other}}",
            "AttachmentDenied",
        ),
    ] {
        let around = Around::default()
            .with("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {team: shop}}\n")
            .with(&way("infra", "way", "", from, READY));
        assert_eq!(reason(&around.bind(labels, Traffic::Service)), expected, "{from}");
    }
}

#[test]
fn a_canary_gets_its_share_and_a_bad_one_is_left_out() {
    let around = Around::default()
        .with(&way("shop", "way", "", "Same", READY))
        .with(&way("shop", "new", "", "Same", "{value: 10.0.0.8}"));
    let bound = around.bind(
        "istio.io/use-waypoint: way, istio.io/use-waypoint-canary: new",
        Traffic::Service,
    );
    let weights: Vec<u32> = bound.weighted().iter().map(|share| share.weight).collect();
    assert_eq!(weights, [80, 20]);
    assert_eq!(bound.named().count(), 2);
    for (canary, expected) in [("way", "CanarySameAsPrimary"), ("gone", "WaypointMissing")] {
        let labels = format!("istio.io/use-waypoint: way, istio.io/use-waypoint-canary: {canary}");
        let alone = around.bind(&labels, Traffic::Service);
        assert_eq!((reason(&alone).as_str(), alone.is_bound()), (expected, true));
        assert!(alone.weighted().is_empty());
    }
}

#[test]
fn a_pending_waypoint_is_sent_only_where_a_policy_needs_it() {
    let around = Around::default();
    let pending = around.bind("istio.io/use-waypoint: way", Traffic::Service);
    assert_eq!(pending.address(false, &around.mesh), None);
    assert!(pending.address(true, &around.mesh).is_some());
}
