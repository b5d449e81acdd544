//! What a tunnel may ask for, one rule each; and that parsing is strict and total.

use proptest::prelude::*;

use super::*;
use crate::testing::{MeshBuilder, WorkloadBuilder, mesh, service, workload};

const OWN: &str = "10.0.0.7:15008";

fn web() -> WorkloadBuilder {
    workload("web").ip("10.0.0.7").hbone()
}

fn target(mesh: MeshBuilder, local: WorkloadBuilder, authority: &str) -> Result<String, Reason> {
    let authority = authority.parse().unwrap();
    let found = mesh
        .snapshot()
        .inbound_target(&local.build(), OWN.parse().unwrap(), &authority);
    found.map(|target| target.to_string())
}

fn reached(target: &str) -> Result<String, Reason> {
    Ok(target.into())
}

#[test]
fn the_own_address_is_reached_at_the_port_that_was_asked_for() {
    assert_eq!(target(mesh(), web(), "10.0.0.7:8080"), reached("10.0.0.7:8080"));
}

#[test]
fn a_mapped_connection_and_authority_are_ipv4() {
    let own = "[::ffff:10.0.0.7]:15008".parse().unwrap();
    let authority = "[::ffff:10.0.0.7]:80".parse().unwrap();
    let found = mesh().snapshot().inbound_target(&web().build(), own, &authority);
    assert_eq!(found, Ok("10.0.0.7:80".parse().unwrap()));
}

#[test]
fn another_address_is_the_wrong_destination() {
    let mesh = mesh()
        .with(workload("db").ip("10.0.0.9"))
        .with(service("s").vip("10.96.0.1").port(80, 80));
    let snapshot = mesh.snapshot();
    for authority in ["10.0.0.8:80", "10.0.0.9:80", "10.96.0.1:80"] {
        let asked = authority.parse().unwrap();
        let found = snapshot.inbound_target(&web().build(), OWN.parse().unwrap(), &asked);
        assert_eq!(found, Err(Reason::WrongDestination), "{authority}");
    }
}

#[test]
fn even_an_own_second_address_is_another_connections() {
    let found = target(mesh(), web().ip("10.0.0.8"), "10.0.0.8:80");
    assert_eq!(found, Err(Reason::WrongDestination));
}

#[test]
fn an_application_tunnel_takes_any_address_at_its_own_port() {
    let keep = web().application_tunnel(None);
    assert_eq!(target(mesh(), keep, "192.0.2.1:80"), reached("10.0.0.7:80"));
    let replace = web().application_tunnel(Some(15088));
    assert_eq!(target(mesh(), replace, "192.0.2.1:80"), reached("10.0.0.7:15088"));
}

#[test]
fn a_waypoint_is_asked_for_the_services_it_fronts() {
    let mesh = |waypoint: &str| mesh().with(service("s").vip("10.96.0.1").port(80, 80).waypoint(waypoint));
    let instance = || web().serves("wp");
    assert_eq!(
        target(mesh("wp"), instance(), "10.96.0.1:80"),
        reached("10.0.0.7:80")
    );
    assert_eq!(
        target(mesh("10.0.0.7"), web(), "10.96.0.1:80"),
        reached("10.0.0.7:80")
    );
    assert_eq!(
        target(mesh("other"), instance(), "10.96.0.1:80"),
        Err(Reason::WrongDestination)
    );
}

#[test]
fn a_waypoint_by_service_address_is_asked_for_what_it_fronts() {
    let mesh = mesh()
        .with(service("wp").vip("10.96.0.9").port(15008, 15008))
        .with(service("s").vip("10.96.0.1").port(80, 80).waypoint("10.96.0.9"));
    assert_eq!(
        target(mesh, web().serves("wp"), "10.96.0.1:80"),
        reached("10.0.0.7:80")
    );
}

#[test]
fn a_canary_waypoint_is_asked_for_what_it_fronts() {
    let mesh = mesh().with(
        service("s")
            .vip("10.96.0.1")
            .port(80, 80)
            .weighted_waypoint("canary", 1),
    );
    assert_eq!(
        target(mesh, web().serves("canary"), "10.96.0.1:80"),
        reached("10.0.0.7:80")
    );
}

#[test]
fn a_waypoint_is_asked_for_the_workloads_it_fronts() {
    let mesh = mesh().with(workload("db").ip("10.0.0.9").waypoint("wp"));
    assert_eq!(
        target(mesh, web().serves("wp"), "10.0.0.9:5432"),
        reached("10.0.0.7:5432")
    );
}

#[test]
fn a_host_name_resolves_the_port_and_never_the_address() {
    let mesh = || mesh().with(service("s").vip("10.96.0.1").port(80, 8080).named_port(81));
    let host = "s.default.svc.cluster.local";
    let local = || web().serves("s");
    assert_eq!(
        target(mesh(), local(), &format!("{host}:80")),
        reached("10.0.0.7:8080")
    );
    let own = web().serves_on("s", [(80, 9090)]);
    assert_eq!(
        target(mesh(), own, &format!("{host}:80")),
        reached("10.0.0.7:9090")
    );
    assert_eq!(
        target(mesh(), local(), &format!("{host}:81")),
        Err(Reason::UnknownPort)
    );
    assert_eq!(
        target(mesh(), local(), &format!("{host}:82")),
        Err(Reason::UnknownPort)
    );
}

#[test]
fn an_unknown_host_name_is_not_resolved() {
    assert_eq!(
        target(mesh(), web(), "gone.example.com:80"),
        Err(Reason::NameNotResolved)
    );
}

#[test]
fn a_host_name_means_the_service_that_is_served_here() {
    let shared = |namespace: &str, target| {
        service(&format!("{namespace}/s"))
            .hostname("shared.example.com")
            .port(80, target)
    };
    let mesh = || mesh().with(shared("default", 1111)).with(shared("other", 2222));
    let key = crate::name::NamespacedHostname::new("other", "shared.example.com");
    let mut local = web().build();
    local.services.insert(key, Default::default());
    let authority = "shared.example.com:80".parse().unwrap();
    let found = mesh()
        .snapshot()
        .inbound_target(&local, OWN.parse().unwrap(), &authority);
    assert_eq!(found.map(|target| target.port()), Ok(2222));
}

#[test]
fn every_form_of_an_authority_is_read() {
    for (text, written) in [
        ("10.0.0.1:80", "10.0.0.1:80"),
        ("[fd00::1]:65535", "[fd00::1]:65535"),
        ("[FD00:0::1]:1", "[fd00::1]:1"),
        ("[::ffff:10.0.0.1]:80", "10.0.0.1:80"),
        ("Reviews.Shop.svc:9080", "reviews.shop.svc:9080"),
        ("a_b-c:80", "a_b-c:80"),
    ] {
        assert_eq!(
            text.parse::<Authority>().map(|found| found.to_string()),
            Ok(written.into()),
            "{text}"
        );
    }
}

#[test]
fn loose_authorities_are_refused() {
    let long_label = format!("{}:80", "a".repeat(64));
    let long = format!("{}:80", "a.".repeat(400));
    for text in [
        "",
        ":",
        ":80",
        "10.0.0.1",
        "10.0.0.1:",
        "10.0.0.1:0",
        "10.0.0.1:+80",
        "10.0.0.1:080",
        "10.0.0.1:65536",
        "10.0.0.1:8a",
        "10.0.0.1: 80",
        " 10.0.0.1:80",
        "10.0.0.1:80 ",
        "10.0.0.1:80/",
        "10.1:80",
        "10.0.0.01:80",
        "0x0a000001:80",
        "167772161:80",
        "10.0.0.256:80",
        "fd00::1:80",
        "[fd00::1]",
        "[fd00::1]80",
        "[fd00::1%1]:80",
        "[10.0.0.1]:80",
        "[]:80",
        "[fd00::1:80",
        "a:b@c:80",
        "user@host:80",
        "http://host:80",
        "host.:80",
        ".host:80",
        "a..b:80",
        "-a:80",
        "a-:80",
        "hö:80",
        "*.example.com:80",
        "host\0:80",
        "host:80\r\n",
        &long_label,
        &long,
    ] {
        assert!(text.parse::<Authority>().is_err(), "{text:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn parsing_never_panics_and_what_it_accepts_is_written_stably(text in "\\PC{0,40}(:[0-9]{0,6})?") {
        if let Ok(authority) = text.parse::<Authority>() {
            prop_assert_ne!(authority.port(), 0);
            prop_assert_eq!(authority.to_string().parse::<Authority>(), Ok(authority));
        }
    }

    #[test]
    fn every_socket_address_is_read_back(ip in any::<std::net::IpAddr>(), port in 1u16..) {
        let address = canonical(SocketAddr::new(ip, port));
        prop_assert_eq!(address.to_string().parse::<Authority>(), Ok(Authority::Ip(address)));
    }

    #[test]
    fn host_names_are_read_back_in_lower_case(host in "[a-zA-Z]([a-zA-Z0-9_-]{0,20}[a-zA-Z0-9])?(\\.[a-zA-Z]{1,9}){0,4}", port in 1u16..) {
        let expected = Authority::Host { hostname: host.to_lowercase().into(), port };
        prop_assert_eq!(format!("{host}:{port}").parse::<Authority>(), Ok(expected));
    }
}
