//! The way through waypoints.

use super::*;
use crate::testing::gateway;

/// A mesh whose service has a waypoint of one instance, and one endpoint.
fn fronted() -> MeshBuilder {
    mesh()
        .with(
            service("shop")
                .vip("10.96.0.1")
                .port(80, 8080)
                .waypoint("infra/wp"),
        )
        .with(service("infra/wp").vip("10.96.0.9").port(15008, 15008))
        .with(
            workload("infra/wp-1")
                .ip("10.0.9.1")
                .sa("wp")
                .hbone()
                .serves("infra/wp"),
        )
        .with(shop_pod("a", "10.0.0.7"))
}

fn waypoint(result: Result<Upstream, NoUpstream>) -> Endpoint {
    match result {
        Ok(Upstream::Waypoint(endpoint)) => endpoint,
        other => panic!("no waypoint: {other:?}"),
    }
}

#[test]
fn a_service_with_a_waypoint_goes_through_it() {
    let endpoint = waypoint(route(fronted(), "10.96.0.1:80"));
    assert_eq!(endpoint.dial, socket("10.0.9.1:15008"));
    assert_eq!(
        endpoint.authority,
        socket("10.96.0.1:80"),
        "the original destination"
    );
    assert_eq!(endpoint.expected, [Identity::new("cluster.local", "infra", "wp")]);
    assert_eq!(
        endpoint.service.unwrap().key(),
        service_key("shop"),
        "what was addressed"
    );
}

#[test]
fn a_waypoint_sees_ports_the_service_lacks() {
    assert_eq!(
        waypoint(route(fronted(), "10.96.0.1:81")).authority,
        socket("10.96.0.1:81")
    );
}

#[test]
fn an_unknown_waypoint_is_an_error_never_a_bypass() {
    let mesh = mesh()
        .with(
            service("shop")
                .vip("10.96.0.1")
                .port(80, 8080)
                .waypoint("infra/gone"),
        )
        .with(shop_pod("a", "10.0.0.7"));
    let error = route(mesh, "10.96.0.1:80").unwrap_err();
    let destination = socket("10.96.0.1:80");
    assert_eq!(
        error,
        NoUpstream::WaypointUnavailable {
            waypoint: gateway("infra/gone"),
            destination
        }
    );
    assert_eq!(error.reason(), Reason::WaypointUnavailable);
}

#[test]
fn a_waypoint_without_endpoints_is_an_error_never_a_bypass() {
    let mesh = mesh()
        .with(
            service("shop")
                .vip("10.96.0.1")
                .port(80, 8080)
                .waypoint("infra/wp"),
        )
        .with(service("infra/wp").port(15008, 15008))
        .with(shop_pod("a", "10.0.0.7"));
    let error = route(mesh, "10.96.0.1:80").unwrap_err();
    assert_eq!(
        error,
        NoUpstream::NoHealthyEndpoint {
            service: service_key("infra/wp"),
            port: 15008
        }
    );
}

#[test]
fn a_waypoint_does_not_go_through_itself() {
    let instance = || {
        workload("infra/wp-1")
            .ip("10.0.9.1")
            .sa("wp")
            .hbone()
            .serves("infra/wp")
    };
    let endpoint = route_as(fronted(), instance(), "10.96.0.1:80");
    assert!(matches!(endpoint, Ok(Upstream::Direct(endpoint)) if &*endpoint.workload.name == "a"));
    let to_workload = fronted().with(workload("b").ip("10.0.0.8").hbone().waypoint("infra/wp"));
    let endpoint = route_as(to_workload, instance(), "10.0.0.8:80");
    assert!(matches!(endpoint, Ok(Upstream::Direct(endpoint)) if &*endpoint.workload.name == "b"));
}

#[test]
fn a_waypoint_given_by_address_does_not_go_through_itself() {
    let mesh = |waypoint: &str| {
        mesh()
            .with(service("infra/wp").vip("10.96.0.9").port(15008, 15008))
            .with(workload("b").ip("10.0.0.8").hbone().waypoint(waypoint))
    };
    for waypoint in ["10.0.9.1", "10.96.0.9"] {
        let instance = workload("infra/wp-1").ip("10.0.9.1").hbone().serves("infra/wp");
        let endpoint = route_as(mesh(waypoint), instance, "10.0.0.8:80");
        assert!(
            matches!(endpoint, Ok(Upstream::Direct(_))),
            "{waypoint}: {endpoint:?}"
        );
    }
}

#[test]
fn a_workload_addressed_directly_goes_through_its_own_waypoint() {
    let mesh = fronted().with(workload("b").ip("10.0.0.8").hbone().waypoint("infra/wp"));
    let endpoint = waypoint(route(mesh, "10.0.0.8:9999"));
    assert_eq!(endpoint.authority, socket("10.0.0.8:9999"));
    assert_eq!(endpoint.dial, socket("10.0.9.1:15008"));
}

#[test]
fn a_service_address_skips_its_endpoints_waypoint() {
    let mesh = shop()
        .with(service("infra/wp").port(15008, 15008))
        .with(workload("infra/wp-1").ip("10.0.9.1").hbone().serves("infra/wp"))
        .with(shop_pod("a", "10.0.0.7").waypoint("infra/wp"));
    assert_eq!(&*direct(mesh, "10.96.0.1:80").workload.name, "a");
}

#[test]
fn a_workload_behind_its_services_waypoint_is_reached_directly_by_its_address() {
    assert_eq!(&*direct(fronted(), "10.0.0.7:8080").workload.name, "a");
}

#[test]
fn a_waypoint_by_workload_address_is_used_as_it_is() {
    let mesh = mesh()
        .with(
            service("shop")
                .vip("10.96.0.1")
                .port(80, 8080)
                .waypoint("10.0.9.2"),
        )
        .with(
            workload("infra/wp-1")
                .ip("10.0.9.1")
                .ip("10.0.9.2")
                .sa("wp")
                .hbone(),
        );
    let endpoint = waypoint(route(mesh, "10.96.0.1:80"));
    assert_eq!(endpoint.dial, socket("10.0.9.2:15008"));
}

#[test]
fn a_waypoint_by_service_address_leads_to_an_endpoint() {
    let mesh = mesh()
        .with(
            service("shop")
                .vip("10.96.0.1")
                .port(80, 8080)
                .waypoint("10.96.0.9"),
        )
        .with(service("infra/wp").vip("10.96.0.9").port(15008, 15118))
        .with(workload("infra/wp-1").ip("10.0.9.1").hbone().serves("infra/wp"));
    assert_eq!(
        waypoint(route(mesh, "10.96.0.1:80")).dial,
        socket("10.0.9.1:15118")
    );
}

#[test]
fn a_waypoint_by_an_unknown_address_is_unavailable() {
    let mesh = mesh().with(
        service("shop")
            .vip("10.96.0.1")
            .port(80, 8080)
            .waypoint("10.0.9.2"),
    );
    assert_eq!(
        route(mesh, "10.96.0.1:80").unwrap_err().reason(),
        Reason::WaypointUnavailable
    );
}

#[test]
fn a_waypoint_with_an_application_tunnel_needs_no_port_on_its_service() {
    let mesh = |instance: WorkloadBuilder| {
        mesh()
            .with(
                service("shop")
                    .vip("10.96.0.1")
                    .port(80, 8080)
                    .waypoint("infra/wp"),
            )
            .with(service("infra/wp"))
            .with(instance.ip("10.0.9.1").hbone().serves("infra/wp"))
    };
    let with = workload("infra/wp-1").application_tunnel(Some(15088));
    assert_eq!(
        waypoint(route(mesh(with), "10.96.0.1:80")).dial,
        socket("10.0.9.1:15008")
    );
    assert!(route(mesh(workload("infra/wp-1")), "10.96.0.1:80").is_err());
}

/// A service spread over two waypoints, and the one that a draw leads to.
fn sampled(primary: u32, canary: u32, drawn: u64) -> String {
    let mut shop = service("shop").vip("10.96.0.1").port(80, 8080).waypoint("wp");
    shop = shop
        .weighted_waypoint("wp", primary)
        .weighted_waypoint("canary", canary);
    let mut mesh = mesh().with(shop);
    for (name, ip) in [("wp", "10.0.9.1"), ("canary", "10.0.9.2")] {
        mesh = mesh
            .with(service(name).port(15008, 15008))
            .with(workload(&format!("{name}-1")).ip(ip).hbone().serves(name));
    }
    // The waypoint is drawn first, then its only endpoint.
    let mut draws = vec![0, drawn];
    let mut random = |of: u64| if of == 1 { 0 } else { draws.pop().unwrap_or(0) };
    let result = mesh
        .snapshot()
        .upstream_for(&client().build(), socket("10.96.0.1:80"), &mut random, &[]);
    waypoint(result).workload.name.to_string()
}

#[test]
fn weighted_waypoints_are_sampled_by_weight() {
    assert_eq!(sampled(3, 2, 0), "wp-1");
    assert_eq!(sampled(3, 2, 2), "wp-1");
    assert_eq!(sampled(3, 2, 3), "canary-1");
    assert_eq!(sampled(3, 2, 4), "canary-1");
}

#[test]
fn a_weight_of_zero_gets_nothing_and_all_zero_means_the_primary() {
    assert_eq!(sampled(0, 2, 0), "canary-1");
    assert_eq!(sampled(0, 0, 0), "wp-1");
}

#[test]
fn a_canary_waypoint_does_not_go_through_the_primary() {
    let mesh = mesh()
        .with(
            service("shop")
                .vip("10.96.0.1")
                .port(80, 8080)
                .waypoint("wp")
                .weighted_waypoint("wp", 1)
                .weighted_waypoint("canary", 1),
        )
        .with(shop_pod("a", "10.0.0.7"));
    let canary = workload("canary-1").ip("10.0.9.2").hbone().serves("canary");
    assert!(matches!(
        route_as(mesh, canary, "10.96.0.1:80"),
        Ok(Upstream::Direct(_))
    ));
}
