//! What is said of policies that waypoints are to enforce: whether one that is ready does.

use super::waypoints::{POD, WAY, WEB, reasons, route, snapshot};
use super::*;

/// A policy of each kind that is attached to the same.
fn policies(target: &str) -> Vec<(Kind, &'static str, String)> {
    let namespace = if target.contains("kind: GatewayClass") {
        "istio-system"
    } else {
        "shop"
    };
    let of = |group: &str, kind: &str, rest: &str| {
        format!(
            "apiVersion: {group}\nkind: {kind}\nmetadata: {{name: p, namespace: {namespace}}}\nspec: {{targetRefs: [{target}]{rest}}}\n---\n"
        )
    };
    let security = "security.istio.io/v1";
    vec![
        (
            Kind::AuthorizationPolicy,
            namespace,
            of(security, "AuthorizationPolicy", ""),
        ),
        (
            Kind::RequestAuthentication,
            namespace,
            of(security, "RequestAuthentication", ""),
        ),
        (
            Kind::TrafficPolicy,
            namespace,
            of(
                "tulle.dev/v1alpha1",
                "TrafficPolicy",
                ", circuitBreaker: {maxRequests: 1}",
            ),
        ),
    ]
}

/// Checks what is said of policies on a target, in a mesh of these objects.
fn check(mesh: &str, target: &str, expected: &str) {
    for (kind, namespace, policy) in policies(target) {
        let told = reasons(&snapshot(&(mesh.to_owned() + &policy)), kind, namespace, "p");
        let of = match kind {
            Kind::TrafficPolicy => "Accepted",
            _ => "WaypointAccepted",
        };
        assert_eq!(told, [format!("{of}={expected}")], "{kind:?} on {target}");
    }
}

const BOUND: &str = "True Accepted";
const UNBOUND: &str = "False AncestorNotBound";
const MISSING: &str = "False TargetNotFound";

#[test]
fn a_policy_on_a_route_is_accepted_where_the_parents_of_the_route_are_bound() {
    let unready = WAY.replace("status: {addresses: [{value: 10.0.0.9}]}\n", "");
    for kind in ["HTTPRoute", "GRPCRoute", "TCPRoute"] {
        let target = format!("{{group: gateway.networking.k8s.io, kind: {kind}, name: r}}");
        let own = route(kind, "shop", "r", "");
        check(&(WAY.to_owned() + WEB + POD + &own), &target, BOUND);
        check(&(WAY.to_owned() + WEB + POD), &target, MISSING);
        let other = if kind == "TCPRoute" {
            "HTTPRoute"
        } else {
            "TCPRoute"
        };
        let other = route(other, "shop", "r", "");
        check(&(WAY.to_owned() + WEB + POD + &other), &target, MISSING);
        check(&(WEB.to_owned() + POD + &own), &target, UNBOUND);
        check(&(unready.clone() + WEB + POD + &own), &target, UNBOUND);
        check(&(WAY.to_owned() + POD + &own), &target, UNBOUND);
        let plain = WEB.replace("labels: {istio.io/use-waypoint: way}", "labels: {}");
        check(&(WAY.to_owned() + &plain + POD + &own), &target, UNBOUND);
        let ingress = own.replace(
            "{group: '', kind: Service, name: web, namespace: shop, port: 80}",
            "{name: edge}",
        );
        check(&(WAY.to_owned() + WEB + POD + &ingress), &target, UNBOUND);
    }
}

#[test]
fn a_policy_on_a_class_is_accepted_where_a_gateway_of_the_class_is_ready() {
    let target = "{group: gateway.networking.k8s.io, kind: GatewayClass, name: tulle-waypoint}";
    let unready = WAY.replace("status: {addresses: [{value: 10.0.0.9}]}\n", "");
    check(WAY, target, BOUND);
    check(&unready, target, UNBOUND);
    check(
        &WAY.replace("gatewayClassName: tulle-waypoint", "gatewayClassName: other"),
        target,
        UNBOUND,
    );
    check("", target, UNBOUND);
}

#[test]
fn a_policy_on_the_whole_mesh_is_accepted_where_any_waypoint_is_ready() {
    let policy = "apiVersion: tulle.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: p, namespace: istio-system}\nspec: {retryBudget: {percent: 1}}\n---\n";
    let told = |mesh: &str| {
        let snapshot = snapshot(&(mesh.to_owned() + policy));
        reasons(&snapshot, Kind::TrafficPolicy, "istio-system", "p")
    };
    assert_eq!(told(WAY), ["Accepted=True Accepted"]);
    assert_eq!(told(""), ["Accepted=False AncestorNotBound"]);
    let ingress = WAY.replace("gatewayClassName: tulle-waypoint", "gatewayClassName: edge");
    assert_eq!(told(&ingress), ["Accepted=False AncestorNotBound"]);
}

#[test]
fn what_is_said_of_a_policy_on_a_route_follows_the_labels_of_the_parent() {
    let target = "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r}";
    let (_, _, policy) = policies(target).remove(0);
    let text = WAY.to_owned() + WEB + &route("HTTPRoute", "shop", "r", "") + &policy;
    let mut engine = Engine::new(MeshConfig::default());
    engine.apply(batch(objects(&text).into_iter().map(set).collect()));
    let plain = WEB.replace("labels: {istio.io/use-waypoint: way}", "labels: {}");
    let without = engine.apply(batch(objects(&plain).into_iter().map(set).collect()));
    let told = |snapshot: &Snapshot| reasons(snapshot, Kind::AuthorizationPolicy, "shop", "p");
    assert_eq!(told(&without), ["WaypointAccepted=False AncestorNotBound"]);
    let with = engine.apply(batch(objects(WEB).into_iter().map(set).collect()));
    assert_eq!(told(&with), ["WaypointAccepted=True Accepted"]);
    let gone = engine.apply(batch(vec![gone(Key::new(Kind::HttpRoute, "shop", "r"))]));
    assert_eq!(told(&gone), ["WaypointAccepted=False TargetNotFound"]);
}
