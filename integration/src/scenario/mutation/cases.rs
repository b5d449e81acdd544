//! One resource of each type that a node proxy is told, with every field that can be brought about, and a neighbour that
//! comes beside it and differs each time.

use prost::Message as _;
use tulle_proto::discovery::Resource;
use tulle_proto::workload::{self, address};
use tulle_proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE, security};
use tulle_xds_client::ResourceType;

use crate::scenario::fed::resource;

/// A workload nobody runs, with every field that a user can bring about.
fn workload() -> workload::Workload {
    let gateway = |port| workload::GatewayAddress {
        destination: Some(workload::gateway_address::Destination::Address(
            workload::NetworkAddress {
                network: String::new(),
                address: vec![192, 0, 2, 1],
                length: None,
            },
        )),
        hbone_mtls_port: port,
    };
    let port = workload::Port {
        service_port: 80,
        target_port: 8080,
        app_protocol: 2,
    };
    workload::Workload {
        name: "victim".into(),
        namespace: "far".into(),
        uid: "Kubernetes//Pod/far/victim".into(),
        addresses: vec![vec![192, 0, 2, 7]],
        tunnel_protocol: 1,
        trust_domain: "cluster.local".into(),
        service_account: "victim".into(),
        waypoint: Some(gateway(15008)),
        node: "elsewhere".into(),
        canonical_name: "victim".into(),
        canonical_revision: "v1".into(),
        workload_type: 2,
        workload_name: "victim".into(),
        native_tunnel: true,
        authorization_policies: vec!["far/some".into()],
        status: 1,
        cluster_id: "Kubernetes".into(),
        services: [(
            "far/victim.far.svc.cluster.local".to_owned(),
            workload::PortList { ports: vec![port] },
        )]
        .into(),
        application_tunnel: Some(workload::ApplicationTunnel {
            protocol: 1,
            port: 15088,
        }),
        locality: Some(workload::Locality {
            region: "r".into(),
            zone: "z".into(),
            subzone: "s".into(),
        }),
        network_mode: 1,
        capacity: Some(3),
        ..workload::Workload::default()
    }
}

fn service() -> workload::Service {
    workload::Service {
        name: "victim".into(),
        namespace: "far".into(),
        hostname: "victim.far.svc.cluster.local".into(),
        addresses: vec![workload::NetworkAddress {
            network: String::new(),
            address: vec![192, 0, 2, 8],
            length: None,
        }],
        ports: vec![workload::Port {
            service_port: 80,
            target_port: 8080,
            app_protocol: 1,
        }],
        subject_alt_names: vec!["spiffe://cluster.local/ns/far/sa/victim".into()],
        waypoint: Some(workload::GatewayAddress {
            destination: Some(workload::gateway_address::Destination::Hostname(
                workload::NamespacedHostname {
                    namespace: "far".into(),
                    hostname: "way.far.svc.cluster.local".into(),
                },
            )),
            hbone_mtls_port: 15008,
        }),
        load_balancing: Some(workload::LoadBalancing {
            routing_preference: vec![6, 1, 2],
            mode: 2,
            health_policy: 1,
        }),
        ip_families: 1,
        canonical: true,
        ingress_use_waypoint: true,
        visibility: 1,
        ..workload::Service::default()
    }
}

/// A policy with every kind of match, on workloads that name it; none does.
fn policy(name: &str, account: &str) -> security::Authorization {
    let text = |text: &str| security::StringMatch {
        match_type: Some(security::string_match::MatchType::Exact(text.into())),
    };
    let range = || security::Address {
        address: vec![198, 51, 100, 0],
        length: 24,
    };
    let account_match = security::ServiceAccountMatch {
        namespace: "far".into(),
        service_account: account.into(),
    };
    let one = security::Match {
        namespaces: vec![text("far")],
        not_namespaces: vec![text("near")],
        principals: vec![text(&format!("cluster.local/ns/far/sa/{account}"))],
        not_principals: vec![text("cluster.local/ns/near/sa/a")],
        source_ips: vec![range()],
        not_source_ips: vec![range()],
        destination_ips: vec![range()],
        not_destination_ips: vec![range()],
        destination_ports: vec![80],
        not_destination_ports: vec![81],
        service_accounts: vec![account_match.clone()],
        not_service_accounts: vec![account_match],
        ..security::Match::default()
    };
    security::Authorization {
        name: name.into(),
        namespace: "far".into(),
        scope: security::Scope::WorkloadSelector.into(),
        action: security::Action::Deny.into(),
        rules: vec![security::Rule {
            clauses: vec![security::Clause { matches: vec![one] }],
        }],
        dry_run: false,
        ..security::Authorization::default()
    }
}

fn address(resource: address::Type) -> Vec<u8> {
    workload::Address {
        r#type: Some(resource),
    }
    .encode_to_vec()
}

/// A resource to be mutated, and one that comes beside it and differs each time.
pub(super) struct Case {
    pub kind: ResourceType,
    pub name: &'static str,
    pub body: Vec<u8>,
    pub neighbour: fn(usize) -> Resource,
    /// Where a dump shows the resource, by a part of it.
    pub shown: (&'static str, &'static str, &'static str),
}

fn near_address(round: usize) -> Resource {
    let workload = workload::Workload {
        canonical_revision: format!("v{round}"),
        name: "neighbour".into(),
        uid: "Kubernetes//Pod/far/neighbour".into(),
        addresses: vec![vec![192, 0, 2, 9]],
        ..workload()
    };
    let body = address(address::Type::Workload(workload));
    resource(
        ADDRESS_TYPE,
        "Kubernetes//Pod/far/neighbour",
        &round.to_string(),
        body,
    )
}

fn near_policy(round: usize) -> Resource {
    let body = policy("neighbour", &format!("v{round}")).encode_to_vec();
    resource(AUTHORIZATION_TYPE, "far/neighbour", &round.to_string(), body)
}

pub(super) fn cases() -> [Case; 3] {
    [
        Case {
            kind: ResourceType::Address,
            name: "Kubernetes//Pod/far/victim",
            body: address(address::Type::Workload(workload())),
            neighbour: near_address,
            shown: ("workloads", "uid", "Kubernetes//Pod/far/victim"),
        },
        Case {
            kind: ResourceType::Address,
            name: "far/victim.far.svc.cluster.local",
            body: address(address::Type::Service(service())),
            neighbour: near_address,
            shown: ("services", "hostname", "victim.far.svc.cluster.local"),
        },
        Case {
            kind: ResourceType::Authorization,
            name: "far/victim",
            body: policy("victim", "v0").encode_to_vec(),
            neighbour: near_policy,
            shown: ("policies", "name", "victim"),
        },
    ]
}
