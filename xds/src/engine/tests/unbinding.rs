//! What is taken from a waypoint stays with it until it is released.

use tulle_model::waypoint::Waypoint;

use super::*;
use crate::serve::session::Store;
use crate::serve::viewer::Viewer;

const WAY: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: way, namespace: shop}\nspec: {gatewayClassName: tulle-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}\nstatus: {addresses: [{value: 10.0.0.9}]}\n---\n";
const WEB: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop, labels: {istio.io/use-waypoint: way}}\nspec: {selector: {app: web}, clusterIPs: [10.9.0.1], ports: [{name: http, port: 80, targetPort: 8080}]}\n---\n";
const REST: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web-1, namespace: shop, labels: {app: web}}\nspec: {nodeName: n1}\nstatus: {phase: Running, podIP: 10.0.0.1}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: other, namespace: shop}\nspec: {selector: {app: other}, clusterIPs: [10.9.0.2], ports: [{name: http, port: 80}]}\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: shop}\nspec: {parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{name: other, port: 80}]}]}\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\nspec: {targetRefs: [{kind: Service, group: '', name: web}], action: DENY, rules: [{to: [{operation: {methods: [DELETE]}}]}]}\n---\n";
const FRONT: &str = "shop/way/shop/web.shop.svc.cluster.local";

fn events(text: &str) -> Vec<Event> {
    objects(text).into_iter().map(set).collect()
}

fn engine() -> Engine {
    let mut engine = Engine::new(MeshConfig::default());
    engine.apply(batch(events(&(WAY.to_owned() + WEB + REST))));
    engine
}

/// Whether the front is there, and draining.
fn front(snapshot: &Snapshot) -> Option<bool> {
    let slot = snapshot.resource(ResourceType::Waypoint, FRONT)?;
    match tulle_proto::decode_waypoint(FRONT, &slot.body).expect("it decodes") {
        Waypoint::Front(front) => Some(front.draining),
        Waypoint::Settings(_) => panic!("a front"),
    }
}

/// Names of everything the waypoint is sent.
fn sent(snapshot: &Snapshot) -> BTreeSet<String> {
    let (snapshot, way) = (Arc::new(snapshot.clone()), Viewer::of_waypoint("shop/way"));
    let types = ResourceType::ALL
        .into_iter()
        .filter(|ty| !matches!(ty, ResourceType::Trust | ResourceType::Workload));
    let names = types.flat_map(|ty| {
        let slots = snapshot.resources(ty).filter(move |_| true);
        let wanted = slots.filter(|slot| snapshot.lets(&way, ty, slot) && snapshot.covers(&way, ty, slot));
        wanted.map(|slot| slot.name.to_string()).collect::<Vec<_>>()
    });
    names.collect()
}

#[test]
fn a_front_that_is_unbound_serves_on_with_its_rules_and_policies() {
    let mut engine = engine();
    let before = sent(&engine.snapshot);
    assert_eq!(front(&engine.snapshot), Some(false));
    let unbound = WEB.replace(", labels: {istio.io/use-waypoint: way}", "");
    let snapshot = engine.apply(batch(events(&unbound)));
    assert_eq!(front(&snapshot), Some(true));
    assert_eq!(sent(&snapshot), before, "nothing is taken away yet");
    let service = snapshot
        .resource(ResourceType::Address, "shop/web.shop.svc.cluster.local")
        .unwrap();
    let decoded = tulle_proto::decode_address(&service.name, &service.body).unwrap();
    let tulle_proto::Resource::Service(service) = decoded else {
        panic!("a service")
    };
    assert_eq!(service.waypoint, None, "callers are told at once");
    let (waypoint, since) = snapshot.draining().iter().next().unwrap();
    // An answer to an older cut says nothing.
    assert_eq!(front(&engine.release(waypoint, since - 1)), Some(true));
    let snapshot = engine.release(waypoint, *since);
    assert_eq!(front(&snapshot), None);
    assert_eq!(sent(&snapshot), BTreeSet::from(["shop/way".to_owned()]));
    assert!(snapshot.draining().is_empty());
}

#[test]
fn a_front_that_is_bound_again_drains_no_more() {
    let mut engine = engine();
    let before = sent(&engine.snapshot);
    let unbound = WEB.replace(", labels: {istio.io/use-waypoint: way}", "");
    let snapshot = engine.apply(batch(events(&unbound)));
    let (waypoint, since) = snapshot.draining().iter().next().unwrap();
    let bound = engine.apply(batch(events(WEB)));
    assert_eq!((front(&bound), sent(&bound)), (Some(false), before.clone()));
    let after = engine.release(waypoint, *since);
    assert_eq!((front(&after), sent(&after)), (Some(false), before));
}

#[test]
fn a_waypoint_that_is_deleted_serves_on_until_it_is_released() {
    let mut engine = engine();
    let before = sent(&engine.snapshot);
    let snapshot = engine.apply(batch(vec![gone(Key::new(Kind::Gateway, "shop", "way"))]));
    assert_eq!(sent(&snapshot), before);
    let snapshot = drained(&mut engine);
    assert!(!sent(&snapshot).contains("shop/way"));
    assert!(!snapshot.waypoint_addresses("shop/way", "Kubernetes//Pod/shop/web-1"));
}

#[test]
fn a_waypoint_that_comes_back_before_it_is_released_is_one_again() {
    let mut engine = engine();
    let fronts = |snapshot: &Snapshot| snapshot.fronted().of("shop/way").cloned();
    let (before, fronted) = (sent(&engine.snapshot), fronts(&engine.snapshot));
    assert!(fronted.is_some());
    let snapshot = engine.apply(batch(vec![gone(Key::new(Kind::Gateway, "shop", "way"))]));
    let (waypoint, since) = snapshot.draining().iter().next().unwrap();
    let back = engine.apply(batch(events(WAY)));
    assert_eq!((sent(&back), fronts(&back)), (before.clone(), fronted.clone()));
    let after = engine.release(waypoint, *since);
    assert_eq!((sent(&after), fronts(&after)), (before, fronted));
}

#[test]
fn a_service_that_moves_to_another_waypoint_has_both_for_a_while() {
    let mut engine = engine();
    let other =
        WAY.replace("name: way,", "name: way-2,") + &WEB.replace("use-waypoint: way", "use-waypoint: way-2");
    let snapshot = engine.apply(batch(events(&other)));
    assert_eq!(front(&snapshot), Some(true));
    let new = "shop/way-2/shop/web.shop.svc.cluster.local";
    assert!(snapshot.resource(ResourceType::Waypoint, new).is_some());
    let route = snapshot
        .resource(ResourceType::Route, "HTTPRoute/shop/r/0")
        .unwrap();
    assert!(route.scope.reaches_waypoint("shop/way") && route.scope.reaches_waypoint("shop/way-2"));
    let snapshot = drained(&mut engine);
    let route = snapshot
        .resource(ResourceType::Route, "HTTPRoute/shop/r/0")
        .unwrap();
    assert!(!route.scope.reaches_waypoint("shop/way") && route.scope.reaches_waypoint("shop/way-2"));
    assert_eq!(front(&snapshot), None);
}
