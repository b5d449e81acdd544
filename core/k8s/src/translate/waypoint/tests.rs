use super::*;
use crate::testing::{Around, service};

/// Binds the service `shop/web` with these labels.
trait Bind {
    fn bind(&self, labels: &str, traffic: Traffic) -> Binding;
}

impl Bind for Around {
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
