//! The way to other networks.

use super::*;

fn san(name: &str) -> Identity {
    Identity::new("cluster.local", "shop", name)
}

/// A service here and in `west`, whose gateway is known by `gateway`.
fn two_networks(gateway: &str) -> MeshBuilder {
    mesh()
        .with(
            service("shop")
                .vip("10.96.0.1")
                .port(80, 8080)
                .subject_alt_name(san("shop")),
        )
        .with(service("infra/east-west").vip("10.96.0.9").port(15008, 15009))
        .with(
            workload("infra/gw-1")
                .ip("192.0.2.9")
                .sa("gw")
                .hbone()
                .serves("infra/east-west"),
        )
        .with(
            workload("far")
                .network("west")
                .hbone()
                .network_gateway(gateway)
                .serves("shop"),
        )
}

fn crossing(result: Result<Upstream, NoUpstream>) -> Crossing {
    match result {
        Ok(Upstream::Gateway(crossing)) => *crossing,
        other => panic!("no crossing: {other:?}"),
    }
}

#[test]
fn an_endpoint_on_another_network_is_reached_through_its_gateway() {
    let crossing = crossing(route(two_networks("infra/east-west"), "10.96.0.1:80"));
    assert_eq!(crossing.dial, socket("192.0.2.9:15009"));
    assert_eq!(
        crossing.gateway_identities,
        [Identity::new("cluster.local", "infra", "gw")]
    );
    assert_eq!(
        crossing.authority(),
        format!("{}:80", service_key("shop").hostname)
    );
    assert_eq!(
        crossing.expected,
        [san("shop")],
        "the far end answers for the service"
    );
    assert_eq!(&*crossing.workload.name, "far");
}

#[test]
fn a_gateway_by_address_is_dialled_at_that_address_even_on_the_other_network() {
    let mesh = two_networks("west/192.0.2.77").with(
        workload("infra/gw-2")
            .network("west")
            .ip("192.0.2.77")
            .ip("192.0.2.78")
            .sa("gw2")
            .hbone(),
    );
    let crossing = crossing(route(mesh, "10.96.0.1:80"));
    assert_eq!(crossing.dial, socket("192.0.2.77:15008"));
    assert_eq!(
        crossing.gateway_identities,
        [Identity::new("cluster.local", "infra", "gw2")]
    );
}

#[test]
fn a_gateway_with_a_host_name_only_is_looked_up_first() {
    let mesh = mesh()
        .with(service("shop").vip("10.96.0.1").port(80, 8080))
        .with(service("infra/east-west").vip("10.96.0.9").port(15008, 15009))
        .with(
            workload("infra/gw-1")
                .hostname("gw.west.example.com")
                .sa("gw")
                .hbone()
                .serves("infra/east-west"),
        )
        .with(
            workload("far")
                .network("west")
                .network_gateway("infra/east-west")
                .serves("shop"),
        );
    let crossing = crossing(route(mesh, "10.96.0.1:80"));
    let lookup = crossing.lookup.clone().expect("it has no address");
    assert_eq!(&*lookup.hostname, "gw.west.example.com");
    assert!(lookup.prefers_ipv4, "the caller's family is kept");
    let found = crossing.at("192.0.2.9".parse().unwrap());
    assert_eq!((found.dial, found.lookup), (socket("192.0.2.9:15009"), None));
    assert_eq!(
        found.gateway_identities,
        [Identity::new("cluster.local", "infra", "gw")]
    );
}

#[test]
fn an_unknown_gateway_is_an_error() {
    for gateway in ["infra/gone", "west/192.0.2.200"] {
        let error = route(two_networks(gateway), "10.96.0.1:80").unwrap_err();
        assert_eq!(error.reason(), Reason::NoGateway, "{gateway}");
    }
}

#[test]
fn an_endpoint_elsewhere_without_a_gateway_comes_last_and_is_an_error() {
    let stranded = || shop().with(workload("far").network("west").ip("10.0.0.9").serves("shop"));
    let error = route(stranded(), "10.96.0.1:80").unwrap_err();
    assert_eq!(error.reason(), Reason::NoGateway);
    assert_eq!(drawn(stranded().with(shop_pod("near", "10.0.0.7"))), ["near"]);
}

#[test]
fn a_gateway_on_ones_own_network_is_never_used() {
    let mesh = shop().with(shop_pod("near", "10.0.0.7").network_gateway("infra/east-west"));
    assert_eq!(direct(mesh, "10.96.0.1:80").dial, socket("10.0.0.7:15008"));
}

#[test]
fn a_waypoint_on_another_network_is_reached_through_its_gateway() {
    let mesh = mesh()
        .with(
            service("shop")
                .vip("10.96.0.1")
                .port(80, 8080)
                .subject_alt_name(san("shop"))
                .waypoint("infra/wp"),
        )
        .with(
            service("infra/wp")
                .vip("10.96.0.8")
                .port(15008, 15008)
                .subject_alt_name(san("wp")),
        )
        .with(
            workload("infra/wp-far")
                .network("west")
                .network_gateway("infra/east-west")
                .serves("infra/wp"),
        )
        .with(service("infra/east-west").vip("10.96.0.9").port(15008, 15008))
        .with(
            workload("infra/gw-1")
                .ip("192.0.2.9")
                .sa("gw")
                .hbone()
                .serves("infra/east-west"),
        );
    let crossing = crossing(route(mesh, "10.96.0.1:80"));
    assert_eq!(
        crossing.authority(),
        format!("{}:80", service_key("shop").hostname),
        "what was addressed"
    );
    assert_eq!(crossing.expected, [san("wp")], "the waypoint answers");
}

#[test]
fn only_services_are_reached_across_networks() {
    // Another network may use the same address; the caller's network is asked.
    let mesh = mesh().with(workload("far").network("west").ip("10.0.0.7").hbone());
    assert_eq!(route(mesh, "10.0.0.7:80"), Ok(Upstream::Passthrough));
    let fronted = mesh_with_far_waypoint();
    assert_eq!(
        route(fronted, "10.0.0.7:80").unwrap_err().reason(),
        Reason::NoGateway
    );
}

fn mesh_with_far_waypoint() -> MeshBuilder {
    mesh()
        .with(service("infra/wp").vip("10.96.0.8").port(15008, 15008))
        .with(
            workload("infra/wp-far")
                .network("west")
                .network_gateway("infra/east-west")
                .serves("infra/wp"),
        )
        .with(shop_pod("near", "10.0.0.7").waypoint("infra/wp"))
}
