//! What only a waypoint can check closes the pods behind it, wherever that is written: on a service, on its routes, on
//! its waypoint or on the whole mesh.

use super::waypoints::{POD, WAY, WEB, route, snapshot};
use super::*;

/// Somebody decides about the requests of a rule.
const ASKS: &str =
    "filters: [{type: ExternalAuth, externalAuth: {protocol: GRPC, backendRef: {name: opa, port: 9000}}}], ";

fn security(kind: &str, namespace: &str, name: &str, target: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{targetRefs: [{target}]}}\n---\n"
    )
}

fn on_route(kind: &str, name: &str) -> String {
    format!("{{group: gateway.networking.k8s.io, kind: {kind}, name: {name}}}")
}

fn asked(namespace: &str, name: &str, targets: &str) -> String {
    format!(
        "apiVersion: tulle.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{targets}externalAuth: {{backendRef: {{name: opa, port: 9000}}}}}}\n---\n"
    )
}

/// The principals that may reach the pod past everybody else; `None` if everybody may.
fn let_in(snapshot: &Snapshot) -> Option<Vec<String>> {
    let slot = snapshot.resources(ResourceType::Authorization).next()?;
    let Ok(tulle_proto::Resource::Authorization(policy)) =
        tulle_proto::decode_authorization(&slot.name, &slot.body)
    else {
        panic!("a policy")
    };
    assert!(policy.match_peer, "{policy:?}");
    let matches = policy.rules[0].clauses.iter().flat_map(|clause| &clause.matches);
    Some(
        matches
            .flat_map(|one| &one.not_principals)
            .map(|one| format!("{one:?}"))
            .collect(),
    )
}

/// Every way to ask for the checks of a waypoint, by what it is called.
fn asking() -> Vec<(&'static str, String)> {
    let http = route("HTTPRoute", "shop", "h", "");
    let grpc = route("GRPCRoute", "shop", "g", "");
    vec![
        (
            "service",
            security("AuthorizationPolicy", "shop", "p", "{kind: Service, name: web}"),
        ),
        (
            "HTTPRoute",
            http.clone() + &security("AuthorizationPolicy", "shop", "p", &on_route("HTTPRoute", "h")),
        ),
        (
            "GRPCRoute",
            grpc.clone() + &security("AuthorizationPolicy", "shop", "p", &on_route("GRPCRoute", "g")),
        ),
        (
            "tokens of a route",
            http.clone() + &security("RequestAuthentication", "shop", "p", &on_route("HTTPRoute", "h")),
        ),
        (
            "somebody asked about a route",
            http + &asked(
                "shop",
                "p",
                &format!("targetRefs: [{}], ", on_route("HTTPRoute", "h")),
            ),
        ),
        ("filter of an HTTPRoute", route("HTTPRoute", "shop", "h", ASKS)),
        ("filter of a GRPCRoute", route("GRPCRoute", "shop", "g", ASKS)),
        ("mesh", asked("istio-system", "p", "")),
        ("mesh, unreadable", asked("istio-system", "p", "fault: 7, ")),
    ]
}

#[test]
fn whatever_a_waypoint_has_to_check_keeps_everybody_else_from_the_pods() {
    assert_eq!(let_in(&snapshot(&(WAY.to_owned() + WEB + POD))), None);
    for (form, text) in asking() {
        let way = [String::from("Exact(\"cluster.local/ns/shop/sa/way\")")];
        let bound = snapshot(&(WAY.to_owned() + WEB + POD + &text));
        assert_eq!(let_in(&bound).as_deref(), Some(&way[..]), "{form}");
        let missing = snapshot(&(WEB.to_owned() + POD + &text));
        assert_eq!(
            let_in(&missing).as_deref(),
            Some(&way[..]),
            "{form}, without the waypoint"
        );
    }
}

#[test]
fn what_is_asked_for_step_by_step_closes_and_opens_the_pods() {
    for (form, text) in asking() {
        let mut engine = Engine::new(MeshConfig::default());
        engine.apply(batch(
            objects(&(WAY.to_owned() + WEB + POD))
                .into_iter()
                .map(set)
                .collect(),
        ));
        let parts = objects(&text);
        let mut closed = None;
        for part in &parts {
            closed = let_in(&engine.apply(batch(vec![set(part.clone())])));
        }
        assert!(closed.is_some(), "{form}");
        let open = engine.apply(batch(vec![gone(parts[0].key())]));
        assert_eq!(let_in(&open), None, "{form}, without {}", parts[0].key());
    }
}

#[test]
fn what_a_namespace_has_its_own_callers_checked_for_closes_nobody_elses_pods() {
    let filter = route("HTTPRoute", "caller", "h", ASKS);
    let policy = route("HTTPRoute", "caller", "h", "")
        + &security("AuthorizationPolicy", "caller", "p", &on_route("HTTPRoute", "h"));
    let dry = security("AuthorizationPolicy", "shop", "p", "{kind: Service, name: web}").replace(
        "namespace: shop}",
        "namespace: shop, annotations: {istio.io/dry-run: 'true'}}",
    );
    for text in [filter, policy, dry] {
        assert_eq!(
            let_in(&snapshot(&(WAY.to_owned() + WEB + POD + &text))),
            None,
            "{text}"
        );
    }
}
