//! Who is drawn among the endpoints of a service.

use super::*;
use crate::upstream::locality;

#[test]
fn unhealthy_endpoints_are_out_unless_all_are_allowed() {
    let pods = |mesh: MeshBuilder| {
        mesh.with(shop_pod("a", "10.0.0.7"))
            .with(shop_pod("b", "10.0.0.8").unhealthy())
    };
    assert_eq!(drawn(pods(shop())), ["a"]);
    let all = mesh().with(service("shop").vip("10.96.0.1").port(80, 8080).allow_unhealthy());
    assert_eq!(drawn(pods(all)), ["a", "b"]);
}

#[test]
fn draws_are_weighted_by_capacity_and_zero_is_never_drawn() {
    let mesh = shop()
        .with(shop_pod("a", "10.0.0.7").capacity(3))
        .with(shop_pod("b", "10.0.0.8").capacity(0))
        .with(shop_pod("c", "10.0.0.9").capacity(1));
    assert_eq!(drawn(mesh), ["a", "a", "a", "c"]);
    let none = shop().with(shop_pod("a", "10.0.0.7").capacity(0));
    assert_eq!(route(none, "10.96.0.1:80"), no_endpoint(80));
}

#[test]
fn huge_capacities_do_not_overflow() {
    let mesh = shop()
        .with(shop_pod("a", "10.0.0.7").capacity(u32::MAX))
        .with(shop_pod("b", "10.0.0.8").capacity(u32::MAX));
    let snapshot = mesh.snapshot();
    let mut last = |of: u64| of - 1;
    let found = snapshot.upstream_for(&client().build(), socket("10.96.0.1:80"), &mut last, &[]);
    assert!(matches!(found, Ok(Upstream::Direct(endpoint)) if &*endpoint.workload.name == "b"));
}

#[test]
fn an_endpoint_that_was_tried_is_ranked_last_but_kept() {
    let pods = || {
        shop()
            .with(shop_pod("a", "10.0.0.7"))
            .with(shop_pod("b", "10.0.0.8"))
    };
    assert_eq!(drawn_as(pods(), client(), &["default/a"]), ["b"]);
    assert_eq!(
        drawn_as(pods(), client(), &["default/a", "default/b"]),
        ["a", "b"]
    );
}

#[test]
fn strict_takes_only_what_shares_every_scope() {
    let scopes = [Scope::Region, Scope::Zone];
    let strict = || mesh().with(service("shop").vip("10.96.0.1").port(80, 8080).strict(scopes));
    let near = shop_pod("near", "10.0.0.7").locality("eu/1");
    let far = shop_pod("far", "10.0.0.8").locality("eu/2");
    let source = || client().locality("eu/1");
    assert_eq!(
        drawn_as(strict().with(near).with(far.clone()), source(), &[]),
        ["near"]
    );
    assert_eq!(
        route_as(strict().with(far), source(), "10.96.0.1:80"),
        no_endpoint(80)
    );
}

#[test]
fn failover_takes_the_best_rank_that_is_there() {
    let scopes = [Scope::Region, Scope::Zone, Scope::Node];
    let pods = [
        ("node", "eu/1", "n1"),
        ("zone", "eu/1", "n2"),
        ("region", "eu/2", "n1"),
        ("far", "us/1", "n1"),
    ];
    for best in 0..pods.len() {
        let mut mesh = mesh().with(service("shop").vip("10.96.0.1").port(80, 8080).failover(scopes));
        for (name, locality, node) in &pods[best..] {
            mesh = mesh.with(shop_pod(name, "10.0.0.7").locality(locality).node(node));
        }
        assert_eq!(
            drawn_as(mesh, client().locality("eu/1").node("n1"), &[]),
            [pods[best].0]
        );
    }
}

#[test]
fn the_walk_over_scopes_stops_at_the_first_mismatch() {
    let scopes = [Scope::Zone, Scope::Cluster];
    let mesh = mesh()
        .with(service("shop").vip("10.96.0.1").port(80, 8080).failover(scopes))
        .with(shop_pod("none", "10.0.0.7").locality("eu/2").cluster("other"))
        .with(shop_pod("cluster", "10.0.0.8").locality("eu/2").cluster("one"));
    assert_eq!(
        drawn_as(mesh, client().locality("eu/1").cluster("one"), &[]),
        ["cluster", "none"]
    );
}

#[test]
fn with_network_first_the_own_network_beats_every_other() {
    let balancing = service("s")
        .failover([Scope::Network, Scope::Region, Scope::Zone])
        .build()
        .load_balancing;
    let source = client().locality("eu/1").build();
    let rank = |network: &str, locality: &str| {
        let endpoint = workload("w").network(network).locality(locality).build();
        locality::rank(balancing.as_ref(), &source, &endpoint).unwrap()
    };
    let ranks = [
        rank("", "eu/1"),
        rank("", "eu/2"),
        rank("", "us/1"),
        rank("other", "eu/1"),
        rank("other", "eu/2"),
        rank("other", "us/1"),
    ];
    assert_eq!(ranks, [5, 4, 3, 2, 1, 0]);
}

#[test]
fn strict_counts_without_the_bonus_of_the_own_network() {
    let balancing = service("s")
        .strict([Scope::Network, Scope::Region])
        .build()
        .load_balancing;
    let source = client().locality("eu").build();
    let rank = |network: &str, locality: &str| {
        let endpoint = workload("w").network(network).locality(locality).build();
        locality::rank(balancing.as_ref(), &source, &endpoint)
    };
    assert_eq!(
        (rank("", "eu"), rank("", "us"), rank("other", "eu")),
        (Some(0), None, None)
    );
}

#[test]
fn ip_families_restrict_the_choice() {
    let only = |families| {
        mesh().with(
            service("shop")
                .vip("10.96.0.1")
                .port(80, 8080)
                .ip_families(families),
        )
    };
    let both = shop_pod("a", "10.0.0.7").ip("fd00::7");
    let v6 = only(IpFamilies::Ipv6Only).with(both.clone());
    assert_eq!(direct(v6, "10.96.0.1:80").authority, socket("[fd00::7]:8080"));
    assert_eq!(
        direct(only(IpFamilies::Dual).with(both), "10.96.0.1:80")
            .authority
            .port(),
        8080
    );
    let neither = only(IpFamilies::Ipv6Only).with(shop_pod("a", "10.0.0.7"));
    assert_eq!(route(neither, "10.96.0.1:80"), no_endpoint(80));
}

#[test]
fn a_change_of_service_or_endpoint_reaches_the_next_draw() {
    let mesh = shop().with(shop_pod("a", "10.0.0.7")).build();
    let ask = || {
        let result = mesh
            .snapshot()
            .upstream_for(&client().build(), socket("10.96.0.1:80"), &mut |_| 0, &[]);
        result.map(|upstream| match upstream {
            Upstream::Direct(endpoint) => endpoint.authority.to_string(),
            other => panic!("not direct: {other:?}"),
        })
    };
    assert_eq!(ask(), Ok("10.0.0.7:8080".into()));
    mesh.apply(vec![shop_pod("a", "10.0.0.8").into()]);
    assert_eq!(ask(), Ok("10.0.0.8:8080".into()), "the endpoint moved");
    mesh.apply(vec![service("shop").vip("10.96.0.1").port(80, 9090).into()]);
    assert_eq!(ask(), Ok("10.0.0.8:9090".into()), "the service's port changed");
    mesh.apply(vec![shop_pod("a", "10.0.0.8").unhealthy().into()]);
    assert!(ask().is_err(), "the endpoint became unhealthy");
}

#[test]
fn callers_in_different_places_draw_from_different_tables() {
    let mesh = mesh()
        .with(
            service("shop")
                .vip("10.96.0.1")
                .port(80, 8080)
                .port(81, 8081)
                .failover([Scope::Zone]),
        )
        .with(shop_pod("one", "10.0.0.7").locality("eu/1"))
        .with(shop_pod("two", "10.0.0.8").locality("eu/2"))
        .build();
    let snapshot = mesh.snapshot();
    // More places than tables are kept for, each asked twice.
    for round in 0..2 {
        for zone in 1..40 {
            let source = client().locality(&format!("eu/{zone}")).build();
            let found = snapshot.upstream_for(&source, socket("10.96.0.1:81"), &mut |of| of - 1, &[]);
            let expected = if zone == 1 {
                "10.0.0.7:8081"
            } else {
                "10.0.0.8:8081"
            };
            assert!(
                matches!(&found, Ok(Upstream::Direct(one)) if one.authority == socket(expected)),
                "{round} {zone}: {found:?}"
            );
        }
    }
}

#[test]
fn ports_of_one_service_are_drawn_apart() {
    let mesh = mesh()
        .with(service("shop").vip("10.96.0.1").port(80, 8080).port(81, 8081))
        .with(shop_pod("a", "10.0.0.7"));
    let snapshot = mesh.snapshot();
    for (asked, target) in [
        ("10.96.0.1:80", "10.0.0.7:8080"),
        ("10.96.0.1:81", "10.0.0.7:8081"),
    ] {
        let found = snapshot.upstream_for(&client().build(), socket(asked), &mut |_| 0, &[]);
        assert!(
            matches!(&found, Ok(Upstream::Direct(one)) if one.authority == socket(target)),
            "{found:?}"
        );
    }
}
