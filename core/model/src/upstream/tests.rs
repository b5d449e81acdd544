//! Next hops, one rule each.

use super::*;
use crate::service::{IpFamilies, Scope};
use crate::testing::{MeshBuilder, WorkloadBuilder, gateway, mesh, service, service_key, workload};

/// The source of most tests.
fn client() -> WorkloadBuilder {
    workload("client").ip("10.0.0.1").hbone()
}

/// A mesh with a service at 10.96.0.1, port 80 → 8080.
fn shop() -> MeshBuilder {
    mesh().with(service("shop").vip("10.96.0.1").port(80, 8080))
}

fn shop_pod(name: &str, ip: &str) -> WorkloadBuilder {
    workload(name).ip(ip).hbone().serves("shop")
}

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

fn route_as(mesh: MeshBuilder, source: WorkloadBuilder, to: &str) -> Result<Upstream, NoUpstream> {
    mesh.snapshot()
        .upstream_for(&source.build(), to.parse().unwrap(), &mut |_| 0, &[])
}

fn route(mesh: MeshBuilder, to: &str) -> Result<Upstream, NoUpstream> {
    route_as(mesh, client(), to)
}

fn direct(mesh: MeshBuilder, to: &str) -> Endpoint {
    match route(mesh, to) {
        Ok(Upstream::Direct(endpoint)) => endpoint,
        other => panic!("not direct: {other:?}"),
    }
}

fn waypoint(result: Result<Upstream, NoUpstream>) -> Endpoint {
    match result {
        Ok(Upstream::Waypoint(endpoint)) => endpoint,
        other => panic!("no waypoint: {other:?}"),
    }
}

fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// The names of all endpoints that some draw leads to, in the order of draws.
fn drawn_as(mesh: MeshBuilder, source: WorkloadBuilder, exclude: &[&str]) -> Vec<String> {
    let (snapshot, source) = (mesh.snapshot(), source.build());
    let exclude: Vec<WorkloadUid> = exclude.iter().map(|uid| WorkloadUid::from(*uid)).collect();
    let (mut names, mut draw, mut total) = (Vec::new(), 0, 1);
    while draw < total {
        let mut random = |of| {
            total = of;
            draw
        };
        match snapshot.upstream_for(&source, socket("10.96.0.1:80"), &mut random, &exclude) {
            Ok(Upstream::Direct(endpoint)) => names.push(endpoint.workload.name.to_string()),
            other => panic!("not direct: {other:?}"),
        }
        draw += 1;
    }
    names
}

fn drawn(mesh: MeshBuilder) -> Vec<String> {
    drawn_as(mesh, client(), &[])
}

fn no_endpoint(port: u16) -> Result<Upstream, NoUpstream> {
    Err(NoUpstream::NoHealthyEndpoint {
        service: service_key("shop"),
        port,
    })
}

#[test]
fn what_is_not_known_is_passed_through() {
    assert_eq!(route(mesh(), "192.0.2.1:443"), Ok(Upstream::Passthrough));
}

#[test]
fn a_service_leads_to_the_hbone_port_of_its_endpoint() {
    let endpoint = direct(shop().with(shop_pod("a", "10.0.0.7")), "10.96.0.1:80");
    assert_eq!(endpoint.dial, socket("10.0.0.7:15008"));
    assert_eq!(endpoint.authority, socket("10.0.0.7:8080"));
    assert_eq!(endpoint.protocol, TunnelProtocol::Hbone);
    assert_eq!(endpoint.service.unwrap().key(), service_key("shop"));
}

#[test]
fn an_endpoint_without_hbone_is_dialled_at_its_target_port() {
    let plain = workload("a").ip("10.0.0.7").serves("shop");
    let endpoint = direct(shop().with(plain), "10.96.0.1:80");
    assert_eq!(
        (endpoint.dial, endpoint.protocol),
        (socket("10.0.0.7:8080"), TunnelProtocol::None)
    );
}

#[test]
fn a_mapped_destination_is_ipv4() {
    let endpoint = direct(shop().with(shop_pod("a", "10.0.0.7")), "[::ffff:10.96.0.1]:80");
    assert_eq!(endpoint.authority, socket("10.0.0.7:8080"));
}

#[test]
fn a_workload_address_leads_to_that_workload_and_port() {
    let endpoint = direct(mesh().with(shop_pod("a", "10.0.0.7")), "10.0.0.7:9999");
    assert_eq!(endpoint.dial, socket("10.0.0.7:15008"));
    assert_eq!(endpoint.authority, socket("10.0.0.7:9999"));
    assert!(endpoint.service.is_none());
}

#[test]
fn a_service_address_beats_a_workload_address() {
    let mesh = shop()
        .with(shop_pod("a", "10.0.0.7"))
        .with(workload("odd").ip("10.96.0.1"));
    assert_eq!(&*direct(mesh, "10.96.0.1:80").workload.name, "a");
}

#[test]
fn the_peer_may_present_its_own_identity_or_the_services() {
    let other = Identity::new("cluster.local", "else", "sa");
    let mesh = mesh()
        .with(
            service("shop")
                .vip("10.96.0.1")
                .port(80, 8080)
                .subject_alt_name(other.clone()),
        )
        .with(shop_pod("a", "10.0.0.7").sa("a"));
    let endpoint = direct(mesh, "10.96.0.1:80");
    assert_eq!(
        endpoint.expected,
        [Identity::new("cluster.local", "default", "a"), other]
    );
}

#[test]
fn a_port_the_service_lacks_is_an_error() {
    let error = NoUpstream::UnknownPort {
        service: service_key("shop"),
        port: 81,
    };
    assert_eq!(error.reason(), Reason::NoHealthyEndpoint);
    assert_eq!(
        route(shop().with(shop_pod("a", "10.0.0.7")), "10.96.0.1:81"),
        Err(error)
    );
}

#[test]
fn a_service_without_endpoints_is_an_error_never_a_bypass() {
    assert_eq!(route(shop(), "10.96.0.1:80"), no_endpoint(80));
}

#[test]
fn passthrough_mode_keeps_the_original_destination() {
    let mesh = mesh()
        .with(service("shop").vip("10.96.0.1").port(80, 8080).passthrough())
        .with(shop_pod("a", "10.0.0.7"));
    assert_eq!(route(mesh, "10.96.0.1:80"), Ok(Upstream::Passthrough));
}

#[test]
fn an_endpoints_own_port_beats_the_services() {
    let mesh = shop().with(workload("a").ip("10.0.0.7").serves_on("shop", [(80, 9090)]));
    assert_eq!(direct(mesh, "10.96.0.1:80").authority.port(), 9090);
}

#[test]
fn a_named_port_needs_an_endpoint_that_settles_it() {
    let named = || mesh().with(service("shop").vip("10.96.0.1").named_port(80));
    assert_eq!(
        route(named().with(shop_pod("a", "10.0.0.7")), "10.96.0.1:80"),
        no_endpoint(80)
    );
    let settled = named().with(shop_pod("a", "10.0.0.7")).with(
        workload("b")
            .ip("10.0.0.8")
            .hbone()
            .serves_on("shop", [(80, 7070)]),
    );
    assert_eq!(drawn(settled), ["b"]);
}

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
fn an_endpoint_keeps_the_family_of_the_request() {
    let both = || {
        mesh()
            .with(service("shop").vip("10.96.0.1").vip("fd00::1").port(80, 8080))
            .with(shop_pod("a", "10.0.0.7").ip("fd00::7"))
    };
    assert_eq!(direct(both(), "10.96.0.1:80").authority, socket("10.0.0.7:8080"));
    assert_eq!(direct(both(), "[fd00::1]:80").authority, socket("[fd00::7]:8080"));
    let one = mesh()
        .with(service("shop").vip("fd00::1").port(80, 8080))
        .with(shop_pod("a", "10.0.0.7"));
    assert_eq!(
        direct(one, "[fd00::1]:80").authority,
        socket("10.0.0.7:8080"),
        "what there is"
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
fn the_requested_address_is_kept_if_the_endpoint_has_it() {
    // A headless service whose range holds its pods.
    let mesh = mesh()
        .with(service("shop").cidr("10.0.0.0/24").port(80, 8080))
        .with(shop_pod("a", "10.0.0.7").ip("10.0.0.8"));
    assert_eq!(direct(mesh, "10.0.0.8:80").authority, socket("10.0.0.8:8080"));
}

#[test]
fn an_endpoint_without_any_address_is_not_chosen() {
    let mesh = || shop().with(workload("empty").hbone().serves("shop"));
    assert_eq!(route(mesh(), "10.96.0.1:80"), no_endpoint(80));
    assert_eq!(drawn(mesh().with(shop_pod("a", "10.0.0.7"))), ["a"]);
}

#[test]
fn an_endpoint_of_another_network_has_no_way_there_yet() {
    let remote = || {
        shop_pod("there", "10.0.0.7")
            .network("other")
            .network_gateway("infra/gw")
    };
    let result = route(shop().with(remote()), "10.96.0.1:80");
    let network = "other".into();
    assert_eq!(
        result,
        Err(NoUpstream::NoGateway {
            workload: "default/there".into(),
            network
        })
    );
    assert_eq!(
        drawn(shop().with(remote()).with(shop_pod("here", "10.0.0.8"))),
        ["here"]
    );
}

#[test]
fn an_endpoint_with_a_host_name_only_comes_last_and_says_so() {
    let named = || shop().with(workload("named").hostname("db.example.com").serves("shop"));
    let result = route(named(), "10.96.0.1:80");
    assert_eq!(result.unwrap_err().reason(), Reason::NameNotResolved);
    assert_eq!(drawn(named().with(shop_pod("a", "10.0.0.7"))), ["a"]);
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
