//! What a waypoint is told of node proxies' policies and of addresses that nobody placed behind it.

use std::time::Instant;

use super::*;
use crate::serve::session::{Request, Response, Session, Store};
use crate::serve::viewer::Viewer;

const WAY: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: way, namespace: shop}\nspec: {gatewayClassName: tulle-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}\nstatus: {addresses: [{value: 10.0.0.9}]}\n---\n";
const WEB: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop, labels: {istio.io/use-waypoint: way}}\nspec: {selector: {app: web}, clusterIPs: [10.9.0.1], ports: [{name: http, port: 80, targetPort: 8080}]}\n---\n";

fn pod(namespace: &str, name: &str, account: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}\nspec: {{nodeName: n1, serviceAccountName: {account}}}\nstatus: {{phase: Running, podIP: {ip}}}\n---\n"
    )
}

fn policy(namespace: &str, name: &str, selects: Option<&str>) -> String {
    let selector = selects.map_or_else(String::new, |app| {
        format!("selector: {{matchLabels: {{app: {app}}}}}, ")
    });
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{selector}action: DENY, rules: [{{from: [{{source: {{namespaces: [bad]}}}}]}}]}}\n---\n"
    )
}

fn events(text: &str) -> Vec<Event> {
    objects(text).into_iter().map(set).collect()
}

/// A waypoint, its replica, what it fronts, a caller nobody fronts, and policies of every reach.
fn world() -> String {
    let pods = [
        pod("shop", "way-1", "way", "10.0.0.9"),
        pod("shop", "web", "web", "10.0.0.1"),
        pod("clients", "caller", "caller", "10.0.0.50"),
    ];
    let policies = [
        policy("shop", "on-way", Some("way-1")),
        policy("istio-system", "on-way-from-root", Some("way-1")),
        policy("shop", "on-web", Some("web")),
        policy("shop", "on-shop", None),
        policy("istio-system", "on-all", None),
        policy("clients", "on-caller", Some("caller")),
    ];
    WAY.to_owned() + WEB + &pods.concat() + &policies.concat()
}

fn told(snapshot: &Arc<Snapshot>, viewer: &Viewer) -> Vec<String> {
    let ty = ResourceType::Authorization;
    let slots = snapshot
        .by_name(ty)
        .into_iter()
        .filter(|slot| snapshot.lets(viewer, ty, slot));
    slots.map(|slot| slot.name.to_string()).collect()
}

#[test]
fn a_waypoint_gets_the_policies_that_select_its_own_replicas_and_no_others() {
    let mut engine = Engine::new(MeshConfig::default());
    let snapshot = Arc::new(engine.apply(batch(events(&world()))));
    let (way, other) = (Viewer::of_waypoint("shop/way"), Viewer::of_waypoint("shop/other"));
    assert_eq!(
        told(&snapshot, &way),
        ["istio-system/on-way-from-root", "shop/on-way"]
    );
    assert_eq!(told(&snapshot, &other), Vec::<String>::new());
    assert!(snapshot.waypoint_addresses("shop/way", "Kubernetes//Pod/shop/way-1"));
    assert!(!snapshot.waypoint_addresses("shop/way", "Kubernetes//Pod/clients/caller"));
    // It runs under another account from now on: the pod is none of its replicas any more.
    let renamed = WAY.replace(
        "namespace: shop}",
        "namespace: shop, annotations: {gateway.istio.io/service-account: web}}",
    );
    let snapshot = Arc::new(engine.apply(batch(events(&renamed))));
    assert_eq!(told(&snapshot, &way), ["shop/on-web"]);
    let gone = gone(Key::new(Kind::Gateway, "shop", "way"));
    engine.apply(batch(vec![gone]));
    let snapshot = Arc::new(drained(&mut engine));
    assert_eq!(told(&snapshot, &way), Vec::<String>::new());
}

#[test]
fn a_strict_mesh_holds_no_waypoint_back() {
    // The replica names the static policy; what it names and never gets would hold every caller back.
    let strict = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: istio-system}\nspec: {mtls: {mode: STRICT}}\n---\n";
    let snapshot = Engine::new(MeshConfig::default()).apply(batch(events(&(world() + strict))));
    let snapshot = Arc::new(snapshot);
    let way = told(&snapshot, &Viewer::of_waypoint("shop/way"));
    assert!(
        way.contains(&"istio-system/istio_converted_static_strict".to_owned()),
        "{way:?}"
    );
    let slot = snapshot
        .resource(ResourceType::Address, "Kubernetes//Pod/shop/way-1")
        .unwrap();
    let Ok(tulle_proto::Resource::Workload(own)) = tulle_proto::decode_address(&slot.name, &slot.body) else {
        panic!("a workload")
    };
    for policy in &own.authorization_policies {
        assert!(way.contains(&policy.to_string()), "{policy} of {way:?}");
    }
}

fn names(response: &Response) -> (Vec<&str>, Vec<&str>) {
    let resources = response.resources.iter().map(|slot| &*slot.name);
    (
        resources.collect(),
        response.removed.iter().map(|name| &**name).collect(),
    )
}

fn request(subscribe: &[&str], unsubscribe: &[&str]) -> Request {
    Request {
        type_url: ResourceType::Address.type_url().into(),
        subscribe: subscribe.iter().map(|name| (*name).into()).collect(),
        unsubscribe: unsubscribe.iter().map(|name| (*name).into()).collect(),
        ..Request::default()
    }
}

#[test]
fn a_waypoint_looks_up_who_calls_and_gives_it_up_again() {
    let mut engine = Engine::new(MeshConfig::default());
    let cut = Arc::new(engine.apply(batch(events(&world()))));
    let mut session = Session::new(1, Viewer::of_waypoint("shop/way"), cut.clone());
    let say = |session: &mut Session<Arc<Snapshot>>, cut: &Arc<Snapshot>, request: Option<Request>| {
        if let Some(request) = request {
            session.on_request(&request, cut).unwrap();
        }
        let response = session.poll_send(cut, Instant::now())?;
        let answer = Request {
            type_url: response.type_url.clone(),
            nonce: response.nonce.clone(),
            ..Request::default()
        };
        session.on_request(&answer, cut).unwrap();
        Some(response)
    };
    let first = say(&mut session, &cut, Some(request(&["*"], &[]))).unwrap();
    let own = [
        "Kubernetes//Pod/shop/way-1",
        "Kubernetes//Pod/shop/web",
        "shop/web.shop.svc.cluster.local",
    ];
    assert_eq!(names(&first), (own.to_vec(), vec![]));
    let caller = "Kubernetes//Pod/clients/caller";
    let found = say(
        &mut session,
        &cut,
        Some(request(&["/10.0.0.50", "/10.0.0.51"], &[])),
    )
    .unwrap();
    assert_eq!(names(&found), (vec![caller], vec!["/10.0.0.51"]));
    // It is followed from now on.
    let moved = pod("clients", "caller", "other", "10.0.0.50");
    let cut = Arc::new(engine.apply(batch(events(&moved))));
    assert_eq!(
        names(&say(&mut session, &cut, None).unwrap()),
        (vec![caller], vec![])
    );
    let given_up = say(&mut session, &cut, Some(request(&[], &["/10.0.0.50"]))).unwrap();
    assert_eq!(names(&given_up), (vec![], vec![caller]));
    let cut = Arc::new(engine.apply(batch(events(&pod("clients", "caller", "third", "10.0.0.50")))));
    assert!(say(&mut session, &cut, None).is_none(), "it is nobody's any more");
}
