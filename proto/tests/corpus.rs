//! The fuzz entry points over a small deterministic corpus (seeds, their prefixes and their one-byte changes), and
//! over the kept corpus of the fuzzers.

#[path = "../../fuzz/replay.rs"]
mod replay;

use prost::Message;
use replay::replay;
use tulle_proto::{fuzz, security, workload, zds};

const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus");

/// Runs a target over each seed, every prefix of it, and every byte of it replaced by a few telling values.
fn exercise(target: fn(&[u8]), seeds: &[Vec<u8>]) {
    for seed in seeds {
        for end in 0..=seed.len() {
            target(&seed[..end]);
        }
        for at in 0..seed.len() {
            for value in [0x00, 0x01, 0x7f, 0x80, 0xff, seed[at] ^ 0x08] {
                let mut changed = seed.clone();
                changed[at] = value;
                target(&changed);
            }
        }
    }
}

fn workload_seed() -> Vec<u8> {
    let hostname = workload::NamespacedHostname {
        namespace: "a".into(),
        hostname: "w".into(),
    };
    let waypoint = workload::GatewayAddress {
        destination: Some(workload::gateway_address::Destination::Hostname(hostname)),
        hbone_mtls_port: 15008,
    };
    let ports = workload::PortList {
        ports: vec![workload::Port {
            service_port: 80,
            target_port: 8080,
            app_protocol: 1,
        }],
    };
    let workload = workload::Workload {
        uid: "u".into(),
        addresses: vec![vec![10, 0, 0, 1], vec![0; 16]],
        tunnel_protocol: 1,
        waypoint: Some(waypoint),
        services: [("a/b".to_owned(), ports)].into(),
        authorization_policies: vec!["a/p".into()],
        capacity: Some(3),
        ..Default::default()
    };
    workload::Address {
        r#type: Some(workload::address::Type::Workload(workload)),
    }
    .encode_to_vec()
}

fn service_seed() -> Vec<u8> {
    let address = workload::NetworkAddress {
        network: "n".into(),
        address: vec![10, 0, 0, 0],
        length: Some(8),
    };
    let service = workload::Service {
        namespace: "a".into(),
        hostname: "b".into(),
        addresses: vec![address],
        ports: vec![workload::Port {
            service_port: 80,
            target_port: 0,
            app_protocol: 3,
        }],
        load_balancing: Some(workload::LoadBalancing {
            routing_preference: vec![1, 4],
            mode: 2,
            health_policy: 1,
        }),
        visibility: 1,
        extensions: vec![workload::Extension {
            name: "tulle.dev/export-to".into(),
            config: Some(prost_types::Any {
                type_url: "type.googleapis.com/google.protobuf.StringValue".into(),
                value: "a b".to_owned().encode_to_vec(),
            }),
        }],
        ..Default::default()
    };
    workload::Address {
        r#type: Some(workload::address::Type::Service(service)),
    }
    .encode_to_vec()
}

fn policy_seed() -> Vec<u8> {
    let text = security::StringMatch {
        match_type: Some(security::string_match::MatchType::Prefix("cluster".into())),
    };
    let matches = security::Match {
        principals: vec![text],
        source_ips: vec![security::Address {
            address: vec![10, 0, 0, 0],
            length: 8,
        }],
        destination_ports: vec![80, 443],
        service_accounts: vec![security::ServiceAccountMatch {
            namespace: "a".into(),
            service_account: "s".into(),
        }],
        ..Default::default()
    };
    let rule = security::Rule {
        clauses: vec![security::Clause {
            matches: vec![matches],
        }],
    };
    let policy = security::Authorization {
        name: "p".into(),
        namespace: "ns".into(),
        scope: 1,
        action: 1,
        rules: vec![rule],
        dry_run: true,
        extensions: vec![workload::Extension {
            name: "tulle.dev/match-peer".into(),
            config: None,
        }],
    };
    policy.encode_to_vec()
}

fn zds_seeds() -> Vec<Vec<u8>> {
    let info = zds::WorkloadInfo {
        name: "n".into(),
        namespace: "ns".into(),
        service_account: "sa".into(),
    };
    let add = zds::AddWorkload {
        uid: "u".into(),
        workload_info: Some(info),
        dns: Some(zds::PodDns {
            nameservers: vec!["10.0.0.10".into()],
            search: vec!["local".into()],
            ndots: 5,
        }),
        sockets: Some(zds::Sockets {
            kinds: vec![1, 2, 3],
            mark: 9,
        }),
        served: false,
    };
    let request = zds::WorkloadRequest {
        payload: Some(zds::workload_request::Payload::Add(add)),
    };
    let hello = zds::ZdsHello {
        version: 1,
        abilities: Some(zds::Abilities {
            sockets: true,
            generation: "g".into(),
            lingering: true,
        }),
    };
    let ack = zds::Ack {
        error: "no".into(),
        sockets: None,
    };
    let response = zds::WorkloadResponse {
        payload: Some(zds::workload_response::Payload::Ack(ack)),
    };
    vec![
        request.encode_to_vec(),
        hello.encode_to_vec(),
        response.encode_to_vec(),
    ]
}

#[test]
fn workloads_and_services_never_panic() {
    exercise(fuzz::xds_workload, &[workload_seed(), service_seed()]);
    replay(format!("{CORPUS}/xds_workload"), fuzz::xds_workload);
}

#[test]
fn policies_never_panic() {
    exercise(fuzz::xds_authorization, &[policy_seed()]);
    replay(format!("{CORPUS}/xds_authorization"), fuzz::xds_authorization);
}

#[test]
fn packets_never_panic() {
    exercise(fuzz::zds, &zds_seeds());
    replay(format!("{CORPUS}/zds"), fuzz::zds);
}
