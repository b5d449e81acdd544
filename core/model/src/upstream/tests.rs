//! Next hops, one rule each.

mod balance;
mod crossing;
mod waypoint;

use super::*;
use crate::service::{IpFamilies, Scope};
use crate::testing::{MeshBuilder, WorkloadBuilder, mesh, service, service_key, workload};

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

fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// The names of all endpoints that some draw leads to, each as often as its share asks for, and no oftener.
fn drawn_as(mesh: MeshBuilder, source: WorkloadBuilder, exclude: &[&str]) -> Vec<String> {
    let (snapshot, source) = (mesh.snapshot(), source.build());
    let exclude: Vec<WorkloadUid> = exclude.iter().map(|uid| WorkloadUid::from(*uid)).collect();
    let mut counts = std::collections::BTreeMap::<String, usize>::new();
    // Every series of numbers that can be drawn: each with its bound, counted up like a clock.
    let mut numbers: Vec<(u64, u64)> = Vec::new();
    loop {
        let mut asked = 0;
        let mut random = |of| {
            if asked == numbers.len() {
                numbers.push((0, of));
            }
            asked += 1;
            numbers[asked - 1].0
        };
        match snapshot.upstream_for(&source, socket("10.96.0.1:80"), &mut random, &exclude) {
            Ok(Upstream::Direct(endpoint)) => {
                *counts.entry(endpoint.workload.name.to_string()).or_default() += 1;
            }
            other => panic!("not direct: {other:?}"),
        }
        while let Some((number, of)) = numbers.pop() {
            if number + 1 < of {
                numbers.push((number + 1, of));
                break;
            }
        }
        if numbers.is_empty() {
            break;
        }
    }
    let common = counts.values().copied().fold(0, greatest_common_divisor);
    let repeated = counts
        .iter()
        .flat_map(|(name, count)| vec![name.clone(); count / common]);
    repeated.collect()
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 {
        a
    } else {
        greatest_common_divisor(b, a % b)
    }
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
fn an_exported_service_leads_there_from_the_namespaces_of_its_list_alone() {
    let exported = || {
        let web = service("prod/web").vip("10.96.0.1").port(80, 8080);
        let pod = workload("prod/web-1").ip("10.0.0.7").hbone().serves("prod/web");
        mesh().with(web.exported_to(&["dev"])).with(pod)
    };
    let from = |client: &str| {
        route_as(
            exported(),
            workload(client).ip("10.0.0.1").hbone(),
            "10.96.0.1:80",
        )
    };
    assert!(matches!(from("dev/client"), Ok(Upstream::Direct(_))));
    assert_eq!(from("qa/client"), Ok(Upstream::Passthrough));
    assert_eq!(from("prod/client"), Ok(Upstream::Passthrough));
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
fn an_endpoint_with_a_host_name_only_is_looked_up_in_the_callers_family() {
    let mesh = shop().with(
        workload("named")
            .hostname("db.example.com")
            .serves("shop")
            .hbone(),
    );
    let Ok(Upstream::Named(named)) = route(mesh, "10.96.0.1:80") else {
        panic!("no name");
    };
    assert_eq!(&*named.lookup.hostname, "db.example.com");
    assert!(named.lookup.prefers_ipv4);
    let Upstream::Direct(endpoint) = named.at("192.0.2.7".parse().unwrap()) else {
        panic!("not direct");
    };
    assert_eq!(endpoint.dial, socket("192.0.2.7:15008"));
    assert_eq!(endpoint.authority, socket("192.0.2.7:8080"));
}

#[test]
fn addresses_of_a_name_are_those_the_service_allows() {
    let mesh = mesh()
        .with(
            service("shop")
                .vip("10.96.0.1")
                .port(80, 8080)
                .ip_families(IpFamilies::Ipv6Only),
        )
        .with(workload("named").hostname("db.example.com").serves("shop"));
    let Ok(Upstream::Named(named)) = route(mesh, "10.96.0.1:80") else {
        panic!("no name");
    };
    assert!(
        named.lookup.allows("fd00::1".parse().unwrap()) && !named.lookup.allows("192.0.2.7".parse().unwrap())
    );
}
