//! What only a waypoint can check closes the pods behind it, wherever that is written: on a service, on its routes, on
//! its waypoint or on the whole mesh.

use tulle_model::authz::policy::{Action, Rule, Scope};

use super::waypoints::{POD, WAY, WEB, front, route, snapshot};
use super::*;

/// The front of the service.
const FRONT: &str = "shop/way/shop/web.shop.svc.cluster.local";

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
            grpc + &security("AuthorizationPolicy", "shop", "p", &on_route("GRPCRoute", "g")),
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
        (
            "TCPRoute",
            route("TCPRoute", "shop", "t", "")
                + &security("AuthorizationPolicy", "shop", "p", &on_route("TCPRoute", "t")),
        ),
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

#[test]
fn a_front_needs_the_policies_of_its_routes_and_the_rules_that_somebody_else_decides_about() {
    let needed = |text: &str| {
        let front = front(&snapshot(&(WAY.to_owned() + WEB + POD + text)), FRONT);
        let all = front.required_policies.into_iter().chain(front.required_routes);
        all.map(|name| name.to_string()).collect::<Vec<_>>()
    };
    let expected = [
        "AuthorizationPolicy/shop/p/authz",
        "AuthorizationPolicy/shop/p/authz",
        "AuthorizationPolicy/shop/p/authz",
        "RequestAuthentication/shop/p/jwt",
        "TrafficPolicy/shop/p/ext_authz",
        "HTTPRoute/shop/h/0",
        "GRPCRoute/shop/g/0",
        "AuthorizationPolicy/shop/p/authz",
        "TrafficPolicy/istio-system/p/ext_authz",
        "TrafficPolicy/istio-system/p/deny_all",
    ];
    for ((form, text), expected) in asking().into_iter().zip(expected) {
        assert_eq!(needed(&text), [expected], "{form}");
    }
    // Callers of that namespace are checked by nobody else.
    let consumer = route("HTTPRoute", "caller", "h", ASKS)
        + &security("AuthorizationPolicy", "caller", "p", &on_route("HTTPRoute", "h"));
    assert_eq!(
        needed(&consumer),
        ["AuthorizationPolicy/caller/p/authz", "HTTPRoute/caller/h/0"]
    );
    let plain = "matches: [{path: {value: /free}}], backendRefs: [{name: web, port: 80}]}, {";
    let second = route("HTTPRoute", "shop", "h", &(plain.to_owned() + ASKS));
    assert_eq!(
        needed(&second),
        ["HTTPRoute/shop/h/1"],
        "no other rule of the route"
    );
}

#[test]
fn a_front_needs_no_rule_that_is_sent_to_nobody() {
    let outranked = route("HTTPRoute", "shop", "h", ASKS);
    let mut engine = Engine::new(MeshConfig::default());
    let text = WAY.to_owned() + WEB + POD + &outranked;
    let before = engine.apply(batch(objects(&text).into_iter().map(set).collect()));
    assert_eq!(
        front(&before, FRONT).required_routes,
        [Str::from("HTTPRoute/shop/h/0")]
    );
    let better = objects(&route("GRPCRoute", "shop", "g", "")).remove(0);
    let with = engine.apply(batch(vec![set(better.clone())]));
    assert!(front(&with, FRONT).required_routes.is_empty());
    let without = engine.apply(batch(vec![gone(better.key())]));
    assert_eq!(
        front(&without, FRONT).required_routes,
        [Str::from("HTTPRoute/shop/h/0")]
    );
}

#[test]
fn r313_a_policy_on_what_does_not_exist_as_a_kind_denies_its_namespace() {
    let bad = "{kind: Servce, name: web}";
    let asks = asked(
        "shop",
        "p",
        &format!("targetRefs: [{{kind: Service, name: web}}, {bad}], "),
    );
    for (text, waypoints) in [
        (security("AuthorizationPolicy", "shop", "p", bad), 0),
        (security("RequestAuthentication", "shop", "p", bad), 0),
        (
            security(
                "AuthorizationPolicy",
                "shop",
                "p",
                &format!("{{kind: Service, name: web}}, {bad}"),
            ),
            1,
        ),
        (asks, 1),
    ] {
        let snapshot = snapshot(&(WAY.to_owned() + WEB + POD + &text));
        let policies = snapshot
            .resources(ResourceType::Authorization)
            .filter_map(
                |slot| match tulle_proto::decode_authorization(&slot.name, &slot.body) {
                    Ok(tulle_proto::Resource::Authorization(policy)) => Some(policy),
                    _ => None,
                },
            );
        let mut policies = policies.filter(|policy| !policy.match_peer);
        let denied = policies.next().expect("a policy for node proxies");
        assert_eq!(
            (&*denied.namespace, denied.scope, denied.action),
            ("shop", Scope::Namespace, Action::Deny),
            "{text}"
        );
        assert_eq!(denied.rules, [Rule::default()], "whoever asks");
        assert!(policies.next().is_none(), "{text}");
        let enforced = snapshot.resources(ResourceType::Policy).count();
        assert_eq!(
            enforced, waypoints,
            "what is known of its targets is denied at the waypoint, too: {text}"
        );
    }
}

#[test]
fn a_policy_of_the_root_namespace_with_lost_targets_is_not_for_the_whole_mesh() {
    let text = asked("istio-system", "p", "targetRefs: [{kind: Servce, name: web}], ");
    let snapshot = snapshot(&(WAY.to_owned() + WEB + POD + &text));
    let policies: Vec<_> = snapshot
        .resources(ResourceType::Authorization)
        .map(|slot| slot.name.clone())
        .collect();
    assert_eq!(policies, [Str::from("istio-system/tulle_traffic_policy_p")]);
    assert_eq!(snapshot.resources(ResourceType::Policy).count(), 0);
}
