use std::net::IpAddr;

use hickory_proto::rr::Name;
use tulle_model::service::IpFamilies;
use tulle_model::testing::{MeshBuilder, mesh, service, workload};

use super::*;

fn settings() -> Settings {
    Settings {
        domain: "cluster.local".into(),
        search: None,
        preferred_namespace: None,
        ipv6: true,
    }
}

/// What `shop/web` is told; `forward`, or the alias and the addresses in order.
fn asked_with(mesh: MeshBuilder, kind: RecordType, name: &str, settings: &Settings) -> String {
    let source = workload("shop/web").ip("10.0.0.1").build();
    let question = Question::query(name.parse::<Name>().unwrap(), kind);
    match decide(&question, &mesh.snapshot(), &source, settings) {
        Decision::Forward => "forward".to_owned(),
        Decision::Answer(answer) => {
            let mut addresses = answer.addresses;
            addresses.sort();
            let addresses: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
            let alias = answer.alias_of.map(|alias| format!("{alias} -> "));
            alias.unwrap_or_default() + &addresses.join(" ")
        }
    }
}

fn asked(mesh: MeshBuilder, name: &str) -> String {
    asked_with(mesh, RecordType::A, name, &settings())
}

fn table(mesh: impl Fn() -> MeshBuilder, rows: &[(&str, &str)]) {
    for (name, expected) in rows {
        assert_eq!(asked(mesh(), name), *expected, "{name}");
    }
}

#[test]
fn kubernetes_names_are_known_in_every_form() {
    let names = || {
        mesh()
            .with(service("shop/db").vip("10.96.0.1"))
            .with(service("prod/db").vip("10.96.0.2"))
    };
    table(
        names,
        &[
            ("db.", "10.96.0.1"),
            ("DB.Shop.", "10.96.0.1"),
            ("db.prod.", "10.96.0.2"),
            ("db.prod.svc.", "10.96.0.2"),
            ("db.prod.svc.cluster.local.", "10.96.0.2"),
            ("db.dev.", "forward"),
            ("db.prod.svc.example.com.", "forward"),
            (".", "forward"),
        ],
    );
}

#[test]
fn a_cut_search_domain_shows_as_an_alias() {
    let names = || {
        mesh()
            .with(service("shop/db").vip("10.96.0.1"))
            .with(service("shop/api").hostname("api.example.com").vip("240.240.0.1"))
            .with(service("shop/any").hostname("*.example.org").vip("240.240.0.2"))
    };
    table(
        names,
        &[
            ("db.shop.svc.cluster.local.", "10.96.0.1"),
            ("db.svc.cluster.local.", "db -> 10.96.0.1"),
            ("db.shop.shop.svc.cluster.local.", "db.shop -> 10.96.0.1"),
            ("api.example.com.", "240.240.0.1"),
            (
                "api.example.com.shop.svc.cluster.local.",
                "api.example.com -> 240.240.0.1",
            ),
            ("api.example.com.cluster.local.", "api.example.com -> 240.240.0.1"),
            ("www.example.org.cluster.local.", "240.240.0.2"),
            ("api.example.com.other.svc.cluster.local.", "forward"),
        ],
    );
}

#[test]
fn the_pod_s_own_search_list_replaces_the_usual_one() {
    let names = || mesh().with(service("shop/api").hostname("api.example.com").vip("240.240.0.1"));
    let own = Settings {
        search: Some(vec!["corp.example".to_owned()]),
        ..settings()
    };
    let told = |name| asked_with(names(), RecordType::A, name, &own);
    assert_eq!(
        told("api.example.com.corp.example."),
        "api.example.com -> 240.240.0.1"
    );
    assert_eq!(told("api.example.com.cluster.local."), "forward");
}

#[test]
fn the_longest_wildcard_wins_and_a_host_wins_over_all() {
    let names = || {
        mesh()
            .with(service("shop/a").hostname("*.com").vip("240.240.0.1"))
            .with(service("shop/b").hostname("*.example.com").vip("240.240.0.2"))
            .with(service("shop/c").hostname("www.example.com").vip("240.240.0.3"))
    };
    table(
        names,
        &[
            ("www.example.com.", "240.240.0.3"),
            ("a.b.example.com.", "240.240.0.2"),
            ("other.com.", "240.240.0.1"),
            ("example.com.", "240.240.0.1"),
            ("com.", "forward"),
            ("example.org.", "forward"),
        ],
    );
}

#[test]
fn of_several_namespaces_the_nearest_is_meant() {
    let host = |namespaced: &str, vip: &str| service(namespaced).hostname("api.example.com").vip(vip);
    let preferring = |namespace: &str| Settings {
        preferred_namespace: Some(namespace.into()),
        ..settings()
    };
    let told = |mesh, settings: &Settings| asked_with(mesh, RecordType::A, "api.example.com.", settings);
    let (any, preferred) = (|| host("a/x", "240.240.0.1"), || host("b/x", "240.240.0.2"));
    let (canonical, own) = (
        || host("c/x", "240.240.0.3").canonical(),
        || host("shop/x", "240.240.0.4"),
    );

    let two = || mesh().with(any()).with(preferred());
    assert_eq!(told(two(), &settings()), "240.240.0.1");
    assert_eq!(told(two(), &preferring("b")), "240.240.0.2");
    assert_eq!(told(two(), &preferring("nowhere")), "240.240.0.1");
    assert_eq!(told(two().with(canonical()), &preferring("b")), "240.240.0.3");
    assert_eq!(
        told(two().with(canonical()).with(own()), &preferring("b")),
        "240.240.0.4"
    );
    let hidden = mesh().with(any()).with(preferred().private());
    assert_eq!(told(hidden, &preferring("b")), "240.240.0.1");
}

#[test]
fn a_service_without_addresses_stands_in_no_other_ones_way() {
    let host = |namespaced: &str| service(namespaced).hostname("api.example.com");
    let mute = || {
        mesh()
            .with(host("a/x"))
            .with(host("c/x").canonical())
            .with(host("shop/x"))
    };
    assert_eq!(asked(mute(), "api.example.com."), "forward");
    let one = mute().with(host("b/x").vip("240.240.0.2"));
    assert_eq!(asked(one, "api.example.com."), "240.240.0.2");
}

#[test]
fn what_the_client_cannot_see_does_not_exist() {
    let other = mesh().with(service("prod/db").vip("10.96.0.2").private());
    assert_eq!(asked(other, "db.prod."), "forward");
    let own = mesh().with(service("shop/db").vip("10.96.0.1").private());
    assert_eq!(asked(own, "db."), "10.96.0.1");
    let exported = |to: &[&str]| mesh().with(service("prod/db").vip("10.96.0.2").exported_to(to));
    assert_eq!(asked(exported(&["dev", "shop"]), "db.prod."), "10.96.0.2");
    assert_eq!(asked(exported(&["dev", "prod"]), "db.prod."), "forward");
}

#[test]
fn a_name_without_addresses_is_left_to_name_servers_unless_it_is_kubernetes_own() {
    let external = mesh().with(service("shop/x").hostname("api.example.com"));
    assert_eq!(asked(external, "api.example.com."), "forward");
    assert_eq!(
        asked(mesh().with(service("shop/db")), "db."),
        "",
        "headless, without endpoints"
    );
    let alike = mesh().with(service("shop/x").hostname("x.notsvc.cluster.local"));
    assert_eq!(asked(alike, "x.notsvc.cluster.local."), "forward");
}

#[test]
fn headless_services_are_their_endpoints() {
    let endpoint = |name: &str, ip: &str| workload(name).ip(ip).serves("shop/db");
    let names = || {
        mesh()
            .with(endpoint("shop/db-1", "10.0.0.11").ip("fd00::11"))
            .with(endpoint("shop/db-2", "10.0.0.12"))
            .with(endpoint("shop/db-3", "10.0.0.13").unhealthy())
            .with(endpoint("shop/db-4", "10.0.0.14").network("elsewhere"))
    };
    let headless = || names().with(service("shop/db"));
    assert_eq!(asked(headless(), "db."), "10.0.0.11 10.0.0.12");
    let v6 = |mesh| asked_with(mesh, RecordType::AAAA, "db.", &settings());
    assert_eq!(v6(headless()), "fd00::11");
    assert_eq!(
        v6(names().with(service("shop/db").ip_families(IpFamilies::Ipv4Only))),
        ""
    );
    let all = names().with(service("shop/db").allow_unhealthy());
    assert_eq!(asked(all, "db."), "10.0.0.11 10.0.0.12 10.0.0.13");
}

#[test]
fn only_addresses_of_the_own_network_and_of_the_asked_family_are_told() {
    let db = || {
        let db = service("shop/db").vip("10.96.0.1").vip("fd00::1");
        mesh().with(db.vip("elsewhere/10.96.0.9"))
    };
    let without_ipv6 = Settings {
        ipv6: false,
        ..settings()
    };
    assert_eq!(asked(db(), "db."), "10.96.0.1");
    assert_eq!(asked_with(db(), RecordType::AAAA, "db.", &settings()), "fd00::1");
    assert_eq!(asked_with(db(), RecordType::AAAA, "db.", &without_ipv6), "");
    let alias = "db.svc.cluster.local.";
    assert_eq!(
        asked_with(db(), RecordType::AAAA, alias, &without_ipv6),
        "",
        "no alias of nothing"
    );
}

#[test]
fn other_types_and_classes_are_forwarded() {
    let db = || mesh().with(service("shop/db").vip("10.96.0.1"));
    for kind in [
        RecordType::MX,
        RecordType::SRV,
        RecordType::HTTPS,
        RecordType::ANY,
    ] {
        assert_eq!(asked_with(db(), kind, "db.", &settings()), "forward", "{kind}");
    }
    let mut chaos = Question::query("db.".parse().unwrap(), RecordType::A);
    chaos.set_query_class(DNSClass::CH);
    let source = workload("shop/web").build();
    assert_eq!(
        decide(&chaos, &db().snapshot(), &source, &settings()),
        Decision::Forward
    );
}

#[test]
fn names_of_the_meshs_domain_say_which_services_to_ask_for() {
    let hosts = |name: &str| {
        let source = workload("shop/web").ip("10.0.0.1").build();
        let question = Question::query(name.parse::<Name>().unwrap(), RecordType::A);
        let keys = mesh_hosts(&question, &source, &settings());
        keys.iter()
            .map(|key| format!("{}/{}", key.namespace, key.hostname))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        hosts("db.prod.svc.cluster.local.")[0],
        "prod/db.prod.svc.cluster.local"
    );
    assert!(hosts("db.").is_empty(), "resolvers complete short names");
    assert!(hosts("www.example.com.").is_empty());
}
