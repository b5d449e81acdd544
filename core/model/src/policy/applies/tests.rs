//! One fact each, and the order compared with one that is written down plainly.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::policy::traffic::{Fault, LocalRateLimit};
use crate::policy::{Authz, authz::Action};
use crate::route::Kind;

const WAYPOINT: Passed<'static> = Passed {
    name: "shop/waypoint",
    class: "tulle-waypoint",
};

fn cart() -> NamespacedHostname {
    NamespacedHostname::new("shop", "cart.shop.svc.cluster.local")
}

fn origin(name: &str, age: Option<i64>) -> Origin {
    Origin {
        kind: Kind::Policy,
        namespace: "shop".into(),
        name: name.into(),
        rule_index: 0,
        rule_name: "".into(),
        created: age.map(|seconds| Created { seconds, nanos: 0 }),
        generation: 1,
    }
}

fn policy(name: &str, age: Option<i64>, targets: Vec<Target>, concern: Concern) -> Arc<Policy> {
    Arc::new(Policy {
        object: "TrafficPolicy".into(),
        origin: origin(name, age),
        targets,
        dry_run: false,
        concern,
    })
}

fn fault(name: &str, age: Option<i64>, target: Target) -> Arc<Policy> {
    let fault = Fault {
        delay: Some(Duration::from_secs(1)),
        ..Fault::default()
    };
    policy(name, age, vec![target], Concern::Fault(fault))
}

fn on(on: On) -> Target {
    Target {
        on,
        port: None,
        section: None,
    }
}

fn route(section: Option<&str>) -> Target {
    Target {
        section: section.map(Into::into),
        ..on(On::Route {
            kind: Kind::Http,
            namespace: "shop".into(),
            name: "cart".into(),
        })
    }
}

fn at_port(port: u16) -> Target {
    Target {
        port: Some(port),
        ..on(On::Service(cart()))
    }
}

/// The rule `checkout` of the route `shop/cart`.
fn rule() -> Origin {
    Origin {
        kind: Kind::Http,
        rule_name: "checkout".into(),
        ..origin("cart", None)
    }
}

fn place<'a>(service: &'a NamespacedHostname, route: &'a Origin) -> Place<'a> {
    Place {
        waypoint: Some(WAYPOINT),
        object: Object::Service(service, 80),
        route: Some(route),
    }
}

fn faults(concern: &Concern) -> Option<&Fault> {
    match concern {
        Concern::Fault(fault) => Some(fault),
        _ => None,
    }
}

fn every_rank() -> Vec<Arc<Policy>> {
    vec![
        fault("mesh", Some(1), on(On::Mesh)),
        fault("class", Some(1), on(On::Class("tulle-waypoint".into()))),
        fault("waypoint", Some(1), on(On::Waypoint("shop/waypoint".into()))),
        fault("service", Some(1), on(On::Service(cart()))),
        fault("port", Some(1), at_port(80)),
        fault("route", Some(1), route(None)),
        fault("rule", Some(9), route(Some("checkout"))),
    ]
}

#[test]
fn the_nearest_wins_whole_whatever_its_age() {
    let (service, route) = (cart(), rule());
    let mut policies = every_rank();
    let mut won = Vec::new();
    while let Some((policy, _)) = winner(&policies, &place(&service, &route), faults) {
        let name = policy.origin.name.clone();
        policies.retain(|policy| policy.origin.name != name);
        won.push(name.to_string());
    }
    let nearest_first = ["rule", "route", "port", "service", "waypoint", "class", "mesh"];
    assert_eq!(won, nearest_first);
}

#[test]
fn among_equals_the_oldest_wins_and_then_the_first_name() {
    let (service, route) = (cart(), rule());
    let won = |policies: &[Arc<Policy>]| {
        let (policy, _) = winner(policies, &place(&service, &route), faults).unwrap();
        policy.origin.name.to_string()
    };
    let on_service = || on(On::Service(cart()));
    let old = fault("z-old", Some(1), on_service());
    let young = fault("a-young", Some(2), on_service());
    let twin = fault("b-young", Some(2), on_service());
    let ageless = fault("0-ageless", None, on_service());
    assert_eq!(won(&[young.clone(), old, ageless.clone()]), "z-old");
    assert_eq!(won(&[twin, young.clone()]), "a-young");
    assert_eq!(won(&[ageless, young]), "a-young");
}

#[test]
fn what_names_something_else_does_not_apply() {
    let (service, rule) = (cart(), rule());
    let other = NamespacedHostname::new("shop", "other.shop.svc.cluster.local");
    for target in [
        on(On::Service(other)),
        at_port(81),
        route(Some("browse")),
        on(On::Waypoint("shop/other".into())),
        on(On::Class("other".into())),
        on(On::Workload("pod".into())),
        Target {
            port: Some(81),
            ..on(On::Mesh)
        },
    ] {
        let policies = [fault("p", None, target.clone())];
        let found = winner(&policies, &place(&service, &rule), faults);
        assert!(found.is_none(), "{target:?}");
    }
}

#[test]
fn a_request_to_a_pod_address_takes_no_policy_of_a_service() {
    let uid = WorkloadUid::from("pod");
    let pod = Place {
        object: Object::Workload(&uid, 80),
        route: None,
        waypoint: Some(WAYPOINT),
    };
    let policies = [
        fault("service", Some(1), on(On::Service(cart()))),
        fault("waypoint", Some(2), on(On::Waypoint("shop/waypoint".into()))),
        fault("pod", Some(3), on(On::Workload("pod".into()))),
    ];
    let (first, _) = winner(&policies, &pod, faults).unwrap();
    assert_eq!(&*first.origin.name, "pod");
    let (second, _) = winner(&policies[..2], &pod, faults).unwrap();
    assert_eq!(&*second.origin.name, "waypoint");
}

#[test]
fn a_backend_is_asked_for_its_own_policies_alone() {
    let service = cart();
    let backend = Place {
        waypoint: None,
        object: Object::Service(&service, 80),
        route: None,
    };
    let policies = every_rank();
    let applying: Vec<_> = policies
        .iter()
        .filter(|policy| policy.rank(&backend).is_some())
        .map(|policy| policy.origin.name.to_string())
        .collect();
    assert_eq!(applying, ["service", "port"]);
}

#[test]
fn all_security_policies_apply_oldest_first() {
    let (service, route) = (cart(), rule());
    let authz = |name, age, target| {
        let authz = Authz {
            action: Action::Deny,
            rules: Vec::new(),
            provider: None,
        };
        policy(name, Some(age), vec![target], Concern::Authz(authz))
    };
    let deny_all = |name, age| {
        policy(
            name,
            Some(age),
            vec![on(On::Mesh)],
            Concern::DenyAll("why".into()),
        )
    };
    let policies = [
        authz("near", 3, at_port(80)),
        authz("elsewhere", 0, at_port(81)),
        fault("traffic", Some(0), on(On::Mesh)),
        deny_all("far", 1),
        authz("waypoint", 2, on(On::Waypoint("shop/waypoint".into()))),
    ];
    let found = security(&policies, &place(&service, &route));
    let names: Vec<_> = found.iter().map(|policy| &*policy.origin.name).collect();
    assert_eq!(names, ["far", "waypoint", "near"]);
}

#[test]
fn dry_policies_of_traffic_decide_nothing_and_dry_security_is_still_evaluated() {
    let (service, route) = (cart(), rule());
    let dry = |policy: Arc<Policy>| {
        Arc::new(Policy {
            dry_run: true,
            ..Policy::clone(&policy)
        })
    };
    let policies = [
        dry(fault("f", None, on(On::Mesh))),
        dry(policy(
            "d",
            None,
            vec![on(On::Mesh)],
            Concern::DenyAll("x".into()),
        )),
    ];
    assert!(winner(&policies, &place(&service, &route), faults).is_none());
    assert_eq!(security(&policies, &place(&service, &route)).len(), 1);
}

#[test]
fn every_rank_has_one_limit_and_the_nearest_comes_first() {
    let (service, route_of) = (cart(), rule());
    let limit = |name, age, target| {
        let limit = LocalRateLimit::default();
        policy(name, Some(age), vec![target], Concern::LocalRateLimit(limit))
    };
    let policies = [
        limit("mesh", 1, on(On::Mesh)),
        limit("young", 2, on(On::Service(cart()))),
        limit("old", 1, on(On::Service(cart()))),
        limit("route", 7, route(None)),
    ];
    let found = each_rank(&policies, &place(&service, &route_of), |concern| match concern {
        Concern::LocalRateLimit(limit) => Some(limit),
        _ => None,
    });
    let names: Vec<_> = found
        .iter()
        .map(|(policy, _)| policy.origin.name.to_string())
        .collect();
    assert_eq!(names, ["route", "old", "mesh"]);
}

/// The order as it is written, with numbers instead of ranks.
fn distance(target: &Target, place: &Place<'_>) -> Option<u32> {
    let here = match place.object {
        Object::Service(service, port) => Some((format!("s{service}"), port)),
        Object::Workload(uid, port) => Some((format!("w{uid}"), port)),
        Object::Unnamed => None,
    };
    if let Some(port) = target.port
        && here.as_ref().is_none_or(|(_, at)| *at != port)
    {
        return None;
    }
    let named = match &target.on {
        On::Service(name) => Some(format!("s{name}")),
        On::Workload(uid) => Some(format!("w{uid}")),
        _ => None,
    };
    if let Some(named) = named {
        return match here {
            Some((at, _)) if at == named => Some(if target.port.is_some() { 3 } else { 4 }),
            _ => None,
        };
    }
    if let On::Route {
        kind,
        namespace,
        name,
    } = &target.on
    {
        let route = place.route?;
        if route.kind != *kind || route.namespace != *namespace || route.name != *name {
            return None;
        }
        return match &target.section {
            Some(section) if *section == route.rule_name => Some(1),
            Some(_) => None,
            None => Some(2),
        };
    }
    let passed = place.waypoint?;
    match &target.on {
        On::Waypoint(name) if **name == *passed.name => Some(5),
        On::Class(name) if **name == *passed.class => Some(6),
        On::Mesh => Some(7),
        _ => None,
    }
}

fn some_target() -> impl Strategy<Value = Target> {
    let name = || prop::sample::select(vec!["a", "b"]);
    let kind = || prop::sample::select(vec![Kind::Http, Kind::Grpc]);
    let on = prop_oneof![
        name().prop_map(|name| On::Service(NamespacedHostname::new("shop", name))),
        name().prop_map(|name| On::Workload(name.into())),
        name().prop_map(|name| On::Waypoint(name.into())),
        name().prop_map(|name| On::Class(name.into())),
        Just(On::Mesh),
        (kind(), name()).prop_map(|(kind, name)| On::Route {
            kind,
            namespace: "shop".into(),
            name: name.into()
        }),
    ];
    (
        on,
        prop::option::of(80u16..82),
        prop::option::weighted(0.3, name()),
    )
        .prop_map(|(on, port, section)| Target {
            on,
            port,
            section: section.map(Into::into),
        })
}

proptest! {
    #[test]
    fn the_winner_is_the_one_of_the_plain_order(
        made in prop::collection::vec((prop::collection::vec(some_target(), 0..3), prop::option::of(0i64..3)), 0..8),
        name in "[ab]",
        rule_name in "[ab]",
        kind in prop::sample::select(vec![Kind::Http, Kind::Grpc]),
        (is_pod, has_route, passes) in any::<(bool, bool, bool)>(),
    ) {
        let policies: Vec<_> = made
            .into_iter()
            .enumerate()
            .map(|(n, (targets, age))| policy(&format!("p{n}"), age, targets, Concern::Fault(Fault::default())))
            .collect();
        let (service, uid) = (NamespacedHostname::new("shop", &*name), WorkloadUid::from(&*name));
        let route = Origin { kind, rule_name: (*rule_name).into(), ..origin(&name, None) };
        let place = Place {
            waypoint: passes.then_some(Passed { name: "a", class: "b" }),
            object: if is_pod { Object::Workload(&uid, 80) } else { Object::Service(&service, 80) },
            route: has_route.then_some(&route),
        };
        let mut plain: Vec<_> = policies
            .iter()
            .filter_map(|policy| {
                let distance = policy.targets.iter().filter_map(|target| distance(target, &place)).min()?;
                let age = policy.origin.created.map_or(i64::MAX, |created| created.seconds);
                Some((distance, age, policy.origin.name.to_string()))
            })
            .collect();
        plain.sort();
        let won = winner(&policies, &place, faults).map(|(policy, _)| policy.origin.name.to_string());
        prop_assert_eq!(won, plain.first().map(|(.., name)| name.clone()));
    }
}
