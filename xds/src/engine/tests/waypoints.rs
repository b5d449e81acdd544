//! What waypoints are told, by the manifests that say it.

use tulle_model::policy::Concern;
use tulle_model::policy::Policy;
use tulle_model::route::{BackendTo, Route};
use tulle_model::waypoint::Waypoint;
use tulle_proto::{decode_policy, decode_route, decode_waypoint};

use super::*;

pub(super) const WAY: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: way, namespace: shop}\nspec: {gatewayClassName: tulle-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}\nstatus: {addresses: [{value: 10.0.0.9}]}\n---\n";
pub(super) const WEB: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop, labels: {istio.io/use-waypoint: way}}\nspec: {selector: {app: web}, clusterIPs: [10.9.0.1], ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp-db, port: 90}]}\n---\n";
pub(super) const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web-1, namespace: shop, labels: {app: web}}\nspec: {nodeName: n1}\nstatus: {phase: Running, podIP: 10.0.0.1}\n---\n";

pub(super) fn snapshot(text: &str) -> Snapshot {
    let events = objects(text).into_iter().map(set).collect();
    Engine::new(MeshConfig::default()).apply(batch(events))
}

pub(super) fn route(kind: &str, namespace: &str, name: &str, rest: &str) -> String {
    let version = if kind == "TCPRoute" { "v1alpha2" } else { "v1" };
    format!(
        "apiVersion: gateway.networking.k8s.io/{version}\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{parentRefs: [{{group: '', kind: Service, name: web, namespace: shop, port: 80}}], rules: [{{{rest}backendRefs: [{{name: web, namespace: shop, port: 80}}]}}]}}\n---\n"
    )
}

fn routes(snapshot: &Snapshot) -> Vec<Route> {
    let slots = snapshot.resources(ResourceType::Route);
    slots
        .map(|slot| decode_route(&slot.name, &slot.body).expect("it decodes"))
        .collect()
}

fn policies(snapshot: &Snapshot) -> Vec<Policy> {
    let slots = snapshot.resources(ResourceType::Policy);
    slots
        .map(|slot| decode_policy(&slot.name, &slot.body).expect("it decodes"))
        .collect()
}

pub(super) fn front(snapshot: &Snapshot, name: &str) -> tulle_model::waypoint::Front {
    let slot = snapshot
        .resource(ResourceType::Waypoint, name)
        .expect("the front");
    match decode_waypoint(name, &slot.body).expect("it decodes") {
        Waypoint::Front(front) => front,
        Waypoint::Settings(_) => panic!("a front"),
    }
}

pub(super) fn reasons(snapshot: &Snapshot, kind: Kind, namespace: &str, name: &str) -> Vec<String> {
    let key = Key::new(kind, namespace, name);
    let status = snapshot.objects().object(&key).expect("the object");
    let conditions = status.conditions.iter();
    conditions
        .map(|condition| format!("{}={:?} {}", condition.kind, condition.status, condition.reason))
        .collect()
}

#[test]
fn a_bound_service_has_a_front_its_settings_and_the_addresses_the_waypoint_needs() {
    let snapshot = snapshot(&(WAY.to_owned() + WEB + POD));
    let name = "shop/way/shop/web.shop.svc.cluster.local";
    assert_eq!(front(&snapshot, name).required_policies, Vec::<Str>::new());
    assert!(snapshot.resource(ResourceType::Waypoint, "shop/way").is_some());
    assert!(snapshot.waypoint_addresses("shop/way", "shop/web.shop.svc.cluster.local"));
    assert!(snapshot.waypoint_addresses("shop/way", "Kubernetes//Pod/shop/web-1"));
    assert!(!snapshot.waypoint_addresses("other/way", "Kubernetes//Pod/shop/web-1"));
    let identity = "spiffe://cluster.local/ns/shop/sa/way".parse().unwrap();
    assert_eq!(snapshot.fronted().with_identity(&identity).count(), 1);
    let slot = snapshot.resource(ResourceType::Waypoint, name).unwrap();
    assert!(slot.scope.reaches_waypoint("shop/way") && !slot.scope.reaches("n1"));
}

#[test]
fn who_a_service_is_exported_to_is_told_to_node_proxies_and_to_its_waypoint() {
    let exported = |to: &str| {
        let annotation = format!(
            "labels: {{istio.io/use-waypoint: way}}, annotations: {{networking.istio.io/exportTo: '{to}'}}"
        );
        let text = WAY.to_owned() + &WEB.replace("labels: {istio.io/use-waypoint: way}", &annotation);
        let text = text + &route("HTTPRoute", "friend", "f", "") + &route("HTTPRoute", "other", "o", "");
        let snapshot = snapshot(&text);
        let key = "shop/web.shop.svc.cluster.local";
        let slot = snapshot
            .resource(ResourceType::Address, key)
            .expect("the service");
        let Ok(tulle_proto::Resource::Service(service)) = tulle_proto::decode_address(key, &slot.body) else {
            panic!("a service");
        };
        let accepted = |namespace: &str, name: &str| {
            let told = reasons(&snapshot, Kind::HttpRoute, namespace, name);
            told.contains(&"Accepted=True Accepted".to_owned())
        };
        let clients = front(&snapshot, &format!("shop/way/{key}")).client_namespaces;
        let seen = ["shop", "friend", "other"].map(|namespace| service.is_visible_to(namespace));
        let routed = [accepted("friend", "f"), accepted("other", "o")];
        (seen, clients.join(" "), routed, service.canonical)
    };
    let told = |seen, clients: &str, routed, canonical| (seen, clients.to_owned(), routed, canonical);
    assert_eq!(exported("*"), told([true; 3], "", [true, true], true));
    assert_eq!(
        exported("., friend"),
        told([true, true, false], "friend shop", [true, false], false)
    );
    assert_eq!(
        exported("friend"),
        told([false, true, false], "friend", [true, false], false)
    );
}

#[test]
fn a_waypoint_elsewhere_takes_what_is_exported_to_its_namespace() {
    let bound = |to: &str| {
        let meta = format!(
            "labels: {{istio.io/use-waypoint: way, istio.io/use-waypoint-namespace: friend}}, annotations: {{networking.istio.io/exportTo: '{to}'}}"
        );
        let way = WAY.replace("namespace: shop}", "namespace: friend}");
        let way = way.replace("HBONE}", "HBONE, allowedRoutes: {namespaces: {from: All}}}");
        let snapshot = snapshot(&(way + &WEB.replace("labels: {istio.io/use-waypoint: way}", &meta)));
        reasons(&snapshot, Kind::Service, "shop", "web").join(", ")
    };
    let (taken, refused) = (bound("friend"), bound("other"));
    assert!(!taken.contains("AttachmentDenied"), "{taken}");
    assert!(refused.contains("AttachmentDenied"), "{refused}");
}

#[test]
fn a_route_of_another_namespace_is_for_callers_of_that_namespace_only() {
    let snapshot = snapshot(&(WAY.to_owned() + WEB + &route("HTTPRoute", "caller", "r", "")));
    let routes = routes(&snapshot);
    assert_eq!(routes[0].parents[0].consumer_namespace.as_deref(), Some("caller"));
    assert_eq!(routes[0].parents[0].port, Some(80));
    assert!(
        reasons(&snapshot, Kind::HttpRoute, "caller", "r").contains(&"Accepted=True Accepted".to_owned())
    );
}

#[test]
fn a_route_of_a_waypoint_itself_is_told_to_name_the_service() {
    let of_way = |parent: &str| {
        route("HTTPRoute", "shop", "h", "").replace(
            "{group: '', kind: Service, name: web, namespace: shop, port: 80}",
            parent,
        )
    };
    for parent in [
        "{name: way}",
        "{group: gateway.networking.k8s.io, kind: Gateway, name: way, namespace: shop}",
    ] {
        let mut engine = Engine::new(MeshConfig::default());
        let before = engine.apply(batch(objects(&of_way(parent)).into_iter().map(set).collect()));
        assert_eq!(
            reasons(&before, Kind::HttpRoute, "shop", "h"),
            [""; 0],
            "{parent}"
        );
        let with = engine.apply(batch(objects(WAY).into_iter().map(set).collect()));
        assert_eq!(
            reasons(&with, Kind::HttpRoute, "shop", "h"),
            ["Accepted=False InvalidKind"],
            "{parent}"
        );
        let ingress = WAY.replace("gatewayClassName: tulle-waypoint", "gatewayClassName: ingress");
        let without = engine.apply(batch(objects(&ingress).into_iter().map(set).collect()));
        assert_eq!(
            reasons(&without, Kind::HttpRoute, "shop", "h"),
            [""; 0],
            "the gateways of others are not ours to judge"
        );
    }
}

#[test]
fn the_higher_kind_of_route_takes_the_port() {
    let text =
        WAY.to_owned() + WEB + &route("HTTPRoute", "shop", "h", "") + &route("GRPCRoute", "shop", "g", "");
    let snapshot = snapshot(&text);
    let names: Vec<Str> = routes(&snapshot).iter().map(Route::name).collect();
    assert_eq!(names, [Str::from("GRPCRoute/shop/g/0")]);
    assert!(
        reasons(&snapshot, Kind::HttpRoute, "shop", "h").contains(&"Accepted=False Conflicted".to_owned())
    );
}

#[test]
fn a_route_of_requests_on_a_port_of_bytes_is_refused() {
    let text = route("HTTPRoute", "shop", "h", "").replace("port: 80}], rules", "port: 90}], rules");
    let snapshot = snapshot(&(WAY.to_owned() + WEB + &text));
    assert!(routes(&snapshot).is_empty());
    assert!(
        reasons(&snapshot, Kind::HttpRoute, "shop", "h")
            .contains(&"Accepted=False UnsupportedProtocol".to_owned())
    );
}

#[test]
fn a_backend_that_is_not_there_keeps_its_share_and_is_told() {
    let text = route("HTTPRoute", "shop", "h", "").replace(
        "[{name: web, namespace: shop, port: 80}]}]",
        "[{name: gone, port: 80, weight: 7}]}]",
    );
    let snapshot = snapshot(&(WAY.to_owned() + WEB + &text));
    let backend = &routes(&snapshot)[0].backends[0];
    assert_eq!(
        (backend.weight, &backend.to),
        (7, &BackendTo::Invalid("BackendNotFound".into()))
    );
    assert!(
        reasons(&snapshot, Kind::HttpRoute, "shop", "h")
            .contains(&"ResolvedRefs=False BackendNotFound".to_owned())
    );
}

#[test]
fn a_match_that_cannot_be_read_matches_nothing_and_its_neighbours_go_on() {
    let header = |kind: &str| format!("{{headers: [{{name: x-a, type: {kind}, value: b}}]}}");
    let call = |kind: &str| format!("{{method: {{type: {kind}, service: s}}}}");
    let of = |kind: &str, list: &[String]| {
        let matches = format!("matches: [{}], ", list.join(", "));
        let snapshot = snapshot(&(WAY.to_owned() + WEB + &route(kind, "shop", "r", &matches)));
        let object = if kind == "GRPCRoute" {
            Kind::GrpcRoute
        } else {
            Kind::HttpRoute
        };
        let route = routes(&snapshot).remove(0);
        assert_eq!(route.error, None, "the rule itself is whole");
        let read: Vec<_> = route.matches.iter().map(|one| one.unreadable.is_none()).collect();
        (read, reasons(&snapshot, object, "shop", "r"))
    };
    for (kind, [good, bad]) in [
        ("HTTPRoute", ["Exact", "Prefix"].map(header)),
        ("GRPCRoute", ["Exact", "Prefix"].map(call)),
    ] {
        let (read, told) = of(kind, &[bad.clone(), good]);
        assert_eq!(read, [false, true], "{kind}");
        assert!(told.contains(&"Accepted=True Accepted".to_owned()), "{told:?}");
        assert!(
            told.contains(&"PartiallyInvalid=True UnsupportedValue".to_owned()),
            "{told:?}"
        );
        let (read, told) = of(kind, &[bad]);
        assert_eq!(read, [false], "{kind}");
        assert!(
            told.contains(&"Accepted=False UnsupportedValue".to_owned()),
            "{told:?}"
        );
    }
}

#[test]
fn r111_a_regular_expression_that_is_too_large_matches_nothing_and_costs_nothing() {
    let started = Instant::now();
    for pattern in [
        "a".repeat(10_000),
        "(((a{100}){100}){100})".to_owned(),
        "(a".to_owned(),
    ] {
        let matches = format!("matches: [{{path: {{type: RegularExpression, value: '/{pattern}'}}}}], ");
        let snapshot = snapshot(&(WAY.to_owned() + WEB + &route("HTTPRoute", "shop", "h", &matches)));
        assert!(routes(&snapshot)[0].matches[0].unreadable.is_some());
        assert!(
            reasons(&snapshot, Kind::HttpRoute, "shop", "h")
                .contains(&"Accepted=False UnsupportedValue".to_owned())
        );
    }
    assert!(started.elapsed() < std::time::Duration::from_secs(5));
}

#[test]
fn somebody_who_is_asked_in_another_namespace_needs_a_grant_and_loses_it_with_the_grant() {
    let asked = "filters: [{type: ExternalAuth, externalAuth: {protocol: GRPC, backendRef: {name: opa, namespace: infra, port: 9000}}}], ";
    let opa = "apiVersion: v1\nkind: Service\nmetadata: {name: opa, namespace: infra}\nspec: {clusterIPs: [10.9.0.2], ports: [{name: grpc, port: 9000}]}\n---\n";
    let grant = "apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: infra}\nspec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}], to: [{group: '', kind: Service}]}\n";
    let text = WAY.to_owned() + WEB + opa + &route("HTTPRoute", "shop", "h", asked) + grant;
    let mut engine = Engine::new(MeshConfig::default());
    let granted = engine.apply(batch(objects(&text).into_iter().map(set).collect()));
    assert!(granted.waypoint_addresses("shop/way", "infra/opa.infra.svc.cluster.local"));
    let withdrawn = engine.apply(batch(vec![gone(Key::new(Kind::ReferenceGrant, "infra", "g"))]));
    assert!(!withdrawn.waypoint_addresses("shop/way", "infra/opa.infra.svc.cluster.local"));
    assert!(
        reasons(&withdrawn, Kind::HttpRoute, "shop", "h")
            .contains(&"ResolvedRefs=False RefNotPermitted".to_owned())
    );
}

#[test]
fn a_front_names_the_policies_it_must_have_and_unknown_attributes_deny_everything() {
    let policy = |name: &str, when: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{targetRefs: [{{kind: Service, name: web}}], rules: [{{when: [{{key: {when}, values: [a]}}]}}]}}\n---\n"
        )
    };
    let snapshot = snapshot(
        &(WAY.to_owned() + WEB + POD + &policy("good", "'request.headers[x]'") + &policy("bad", "sourc.ip")),
    );
    let required = front(&snapshot, "shop/way/shop/web.shop.svc.cluster.local").required_policies;
    assert_eq!(
        required,
        [
            Str::from("AuthorizationPolicy/shop/bad/deny_all"),
            "AuthorizationPolicy/shop/good/authz".into()
        ]
    );
    let denies = policies(&snapshot)
        .iter()
        .filter(|policy| matches!(policy.concern, Concern::DenyAll(_)))
        .count();
    assert_eq!(denies, 1);
    assert!(
        reasons(&snapshot, Kind::AuthorizationPolicy, "shop", "bad")
            .contains(&"WaypointAccepted=False Invalid".to_owned())
    );
    assert!(
        reasons(&snapshot, Kind::AuthorizationPolicy, "shop", "good")
            .contains(&"WaypointAccepted=True Accepted".to_owned())
    );
}

#[test]
fn the_elder_of_two_traffic_policies_holds_and_the_other_is_told() {
    let policy = |name: &str, day: u8, percent: u8| {
        format!(
            "apiVersion: tulle.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {name}, namespace: shop, creationTimestamp: '2026-01-0{day}T00:00:00Z'}}\nspec: {{targetRefs: [{{group: '', kind: Service, name: web}}], retryBudget: {{percent: {percent}}}}}\n---\n"
        )
    };
    let snapshot = snapshot(&(WAY.to_owned() + WEB + &policy("young", 2, 50) + &policy("old", 1, 10)));
    let names: Vec<Str> = policies(&snapshot).iter().map(Policy::name).collect();
    assert_eq!(names, [Str::from("TrafficPolicy/shop/old/retry_budget")]);
    assert!(
        reasons(&snapshot, Kind::TrafficPolicy, "shop", "young")
            .contains(&"Accepted=False Conflicted".to_owned())
    );
}

#[test]
fn a_workload_behind_a_protected_waypoint_is_closed_on_every_port() {
    let pod = POD.replace("{app: web}", "{app: web, istio.io/use-waypoint: way}");
    let way = WAY.replace(
        "namespace: shop}",
        "namespace: shop, labels: {istio.io/waypoint-for: all}}",
    );
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\nspec: {targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: way}]}\n";
    let snapshot = snapshot(&(way + &pod + policy));
    let slot = snapshot
        .resources(ResourceType::Authorization)
        .next()
        .expect("the requirement");
    let Ok(tulle_proto::Resource::Authorization(required)) =
        tulle_proto::decode_authorization(&slot.name, &slot.body)
    else {
        panic!("a policy")
    };
    // No clause about ports: every port is meant.
    assert_eq!(required.rules[0].clauses.len(), 1);
    assert!(required.match_peer);
}

#[test]
fn settings_of_the_mesh_are_in_force_and_unreadable_ones_are_strict() {
    let config = |mesh: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: tulle, namespace: istio-system}}\ndata: {{mesh: '{mesh}'}}\n---\n"
        )
    };
    let strict = |snapshot: &Snapshot| {
        snapshot
            .resources(ResourceType::Authorization)
            .any(|slot| slot.name.contains("static_strict"))
    };
    assert!(!strict(&snapshot(POD)));
    assert!(strict(&snapshot(&(config("mtlsMode: strict") + POD))));
    assert!(strict(&snapshot(&(config("mtlsMod: permissive") + POD))));
    assert!(!strict(&snapshot(&(config("mtlsMode: permissive") + POD))));
}

#[test]
fn every_listener_is_judged_and_an_earlier_one_keeps_its_port() {
    let listeners = "listeners: [{name: mesh, port: 15008, protocol: HBONE}, {name: again, port: 15008, protocol: HBONE}, {name: other, port: 15008, protocol: HTTP}, {name: web, port: 80, protocol: HTTP}]";
    let text = WAY
        .replace(
            "listeners: [{name: mesh, port: 15008, protocol: HBONE}]",
            listeners,
        )
        .replace("namespace: shop}", "namespace: shop, generation: 7}");
    let snapshot = snapshot(&text);
    let status = snapshot.objects().object(&Key::new(Kind::Gateway, "shop", "way"));
    let conditions = &status.expect("the gateway").conditions;
    let of = |name: Option<&str>| -> Vec<String> {
        let of_name = conditions.iter().filter(|one| one.of.as_deref() == name);
        of_name
            .map(|one| format!("{}={:?} {}", one.kind, one.status, one.reason))
            .collect()
    };
    let good = [
        "Accepted=True Accepted",
        "Programmed=True Programmed",
        "ResolvedRefs=True ResolvedRefs",
    ];
    let refused = |reason: &str, conflict: &str| -> Vec<String> {
        [
            format!("Accepted=False {reason}"),
            conflict.to_owned(),
            "Programmed=False Invalid".to_owned(),
            good[2].to_owned(),
        ]
        .into_iter()
        .filter(|one| !one.is_empty())
        .collect()
    };
    assert_eq!(of(None), good);
    assert_eq!(of(Some("listener mesh")), good);
    assert_eq!(
        of(Some("listener again")),
        refused("PortUnavailable", "Conflicted=True HostnameConflict")
    );
    assert_eq!(
        of(Some("listener other")),
        refused("PortUnavailable", "Conflicted=True ProtocolConflict")
    );
    assert_eq!(of(Some("listener web")), refused("UnsupportedProtocol", ""));
    let observed = |one: &tulle_k8s::translate::condition::Condition| one.observed_generation.map(i64::from);
    assert!(conditions.iter().all(|one| observed(one) == Some(7)));
}

/// Where a waypoint is told that nodes are.
fn nodes_told(snapshot: &Snapshot) -> Vec<String> {
    let slot = snapshot
        .resource(ResourceType::Waypoint, "shop/way")
        .expect("the settings");
    match decode_waypoint("shop/way", &slot.body).expect("it decodes") {
        Waypoint::Settings(settings) => settings.node_addresses.iter().map(ToString::to_string).collect(),
        Waypoint::Front(_) => panic!("the settings"),
    }
}

#[test]
fn a_waypoint_is_told_where_nodes_are() {
    let node = |name: &str, addresses: &str| {
        format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nstatus: {{addresses: [{addresses}]}}\n---\n"
        )
    };
    let first = node(
        "n1",
        "{type: InternalIP, address: 192.0.2.9}, {type: Hostname, address: n1}, {type: InternalIP, address: '2001:db8::9'}",
    );
    let mut engine = Engine::new(MeshConfig::default());
    let apply =
        |engine: &mut Engine, text: &str| engine.apply(batch(objects(text).into_iter().map(set).collect()));
    let snapshot = apply(&mut engine, &(first + WAY));
    assert_eq!(
        nodes_told(&snapshot),
        ["192.0.2.9", "2001:db8::9"],
        "names are none"
    );
    let snapshot = apply(&mut engine, &node("n2", "{type: InternalIP, address: 192.0.2.1}"));
    assert_eq!(nodes_told(&snapshot), ["192.0.2.1", "192.0.2.9", "2001:db8::9"]);
    let snapshot = apply(&mut engine, &node("n2", "{type: InternalIP, address: 192.0.2.2}"));
    assert_eq!(nodes_told(&snapshot), ["192.0.2.2", "192.0.2.9", "2001:db8::9"]);
    let snapshot = apply(&mut engine, &node("n2", ""));
    assert_eq!(nodes_told(&snapshot), ["192.0.2.9", "2001:db8::9"]);
}

#[test]
fn routes_name_statuses_of_grpc_that_are_tried_again() {
    let annotated = |kind: &str, rest: &str, codes: &str| {
        let text = route(kind, "shop", "r", rest).replace(
            "name: r,",
            &format!("name: r, annotations: {{tulle.dev/retry-grpc-codes: '{codes}'}},"),
        );
        routes(&snapshot(&(WAY.to_owned() + WEB + POD + &text))).remove(0)
    };
    let http = annotated("HTTPRoute", "retry: {attempts: 1}, ", "resource-exhausted");
    assert_eq!(http.retry.map(|retry| retry.grpc_codes), Some(vec![8]));
    let grpc = annotated("GRPCRoute", "", "unavailable, 10");
    assert_eq!(grpc.retry.map(|retry| retry.grpc_codes), Some(vec![10, 14]));
    let wrong = annotated("GRPCRoute", "", "never");
    assert!(
        wrong.error.is_some_and(|error| error.contains("`never`")),
        "it answers 500"
    );
}
