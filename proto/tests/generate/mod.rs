//! Arbitrary workloads, services and policies, as they can come out of a decoder.

use std::net::IpAddr;

use ipnet::IpNet;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use tulle_model::authz::ServiceAccountMatch;
use tulle_model::authz::policy::{Action, Authorization, Clause, Match, Rule, Scope, StringMatch};
use tulle_model::gateway::{GatewayAddress, GatewayDestination, WeightedWaypoint};
use tulle_model::network::NetworkCidr;
use tulle_model::service::{
    AppProtocol, HealthPolicy, IpFamilies, LoadBalancing, LoadBalancingMode, Scope as Preference, Service,
    ServicePort, Visibility,
};
use tulle_model::workload::{
    ApplicationProtocol, ApplicationTunnel, HealthStatus, Locality, NetworkMode, TunnelProtocol, Workload,
    WorkloadType,
};
use tulle_model::{Identity, NamespacedHostname, NamespacedName, NetworkAddress, Str, WorkloadUid};

fn word() -> impl Strategy<Value = Str> {
    "[a-z][a-z0-9-]{0,8}".prop_map(Into::into)
}

fn maybe_word() -> impl Strategy<Value = Str> {
    prop_oneof![Just(Str::from("")), word()]
}

fn ip() -> impl Strategy<Value = IpAddr> {
    any::<IpAddr>().prop_map(|address| address.to_canonical())
}

fn net() -> impl Strategy<Value = IpNet> {
    (ip(), 0_u8..=128)
        .prop_map(|(address, length)| {
            let width = if address.is_ipv4() { 32 } else { 128 };
            IpNet::new(address, length.min(width))
                .expect("a length within the width")
                .trunc()
        })
        // A truncated IPv6 range may turn out IPv4-mapped; decoders never produce that.
        .prop_filter("IPv4-mapped", |net| net.network().to_canonical() == net.network())
}

fn hostname() -> impl Strategy<Value = NamespacedHostname> {
    (word(), word()).prop_map(|(namespace, host)| NamespacedHostname::new(namespace, format!("{host}.local")))
}

fn network_address() -> impl Strategy<Value = NetworkAddress> {
    (maybe_word(), ip()).prop_map(|(network, address)| NetworkAddress::new(network, address))
}

fn gateway() -> impl Strategy<Value = GatewayAddress> {
    let destination = prop_oneof![
        hostname().prop_map(GatewayDestination::Hostname),
        network_address().prop_map(GatewayDestination::Address),
    ];
    (destination, 1_u16..).prop_map(|(destination, hbone_mtls_port)| GatewayAddress {
        destination,
        hbone_mtls_port,
    })
}

fn application_tunnel() -> impl Strategy<Value = ApplicationTunnel> {
    let protocol = prop_oneof![Just(ApplicationProtocol::None), Just(ApplicationProtocol::Proxy)];
    (protocol, option::of(1_u16..)).prop_map(|(protocol, port)| ApplicationTunnel { protocol, port })
}

prop_compose! {
    fn workload_names()(
        uid in word(), name in maybe_word(), namespace in maybe_word(), trust_domain in word(),
        service_account in word(), network in maybe_word(), hostname in maybe_word(), node in maybe_word(),
        cluster_id in word(), words in vec(maybe_word(), 6),
    ) -> Workload {
        Workload {
            uid: WorkloadUid(uid), name, namespace, trust_domain, service_account, network, hostname, node,
            cluster_id,
            addresses: vec![],
            tunnel_protocol: TunnelProtocol::None,
            network_mode: NetworkMode::Standard,
            native_tunnel: false,
            waypoint: None,
            network_gateway: None,
            application_tunnel: None,
            locality: Locality { region: words[0].clone(), zone: words[1].clone(), subzone: words[2].clone() },
            authorization_policies: vec![],
            services: Default::default(),
            status: HealthStatus::Healthy,
            capacity: 1,
            workload_type: WorkloadType::Pod,
            workload_name: words[3].clone(),
            canonical_name: words[4].clone(),
            canonical_revision: words[5].clone(),
            extensions: Default::default(),
        }
    }
}

prop_compose! {
    pub fn workload()(
        names in workload_names(),
        addresses in vec(ip(), 0..3),
        (tunnel_protocol, network_mode, status) in (
            prop_oneof![Just(TunnelProtocol::None), Just(TunnelProtocol::Hbone)],
            prop_oneof![Just(NetworkMode::Standard), Just(NetworkMode::HostNetwork)],
            prop_oneof![Just(HealthStatus::Healthy), Just(HealthStatus::Unhealthy)],
        ),
        native_tunnel: bool,
        waypoint in option::of(gateway()),
        network_gateway in option::of(gateway()),
        application_tunnel in option::of(application_tunnel()),
        policies in vec((word(), word()), 0..3),
        services in btree_map(hostname(), btree_map(1_u16.., 1_u16.., 0..3), 0..3),
        capacity in 0_u32..5,
        workload_type in prop_oneof![
            Just(WorkloadType::Deployment), Just(WorkloadType::CronJob), Just(WorkloadType::Pod),
            Just(WorkloadType::Job),
        ],
        extensions in btree_map(word(), maybe_word(), 0..2),
    ) -> Workload {
        Workload {
            addresses, tunnel_protocol, network_mode, status, native_tunnel, waypoint, network_gateway,
            application_tunnel, services, capacity, workload_type, extensions,
            authorization_policies: policies.into_iter().map(|(ns, name)| NamespacedName::new(ns, name)).collect(),
            ..names
        }
    }
}

fn load_balancing() -> impl Strategy<Value = LoadBalancing> {
    let preference = prop::sample::select(vec![
        Preference::Region,
        Preference::Zone,
        Preference::Subzone,
        Preference::Node,
        Preference::Cluster,
        Preference::Network,
    ]);
    let mode = prop::sample::select(vec![
        LoadBalancingMode::Unspecified,
        LoadBalancingMode::Strict,
        LoadBalancingMode::Failover,
        LoadBalancingMode::Passthrough,
    ]);
    let health = prop_oneof![Just(HealthPolicy::OnlyHealthy), Just(HealthPolicy::AllowAll)];
    (vec(preference, 0..4), mode, health).prop_map(|(routing_preference, mode, health_policy)| {
        LoadBalancing {
            routing_preference,
            mode,
            health_policy,
        }
    })
}

fn service_port() -> impl Strategy<Value = ServicePort> {
    let protocol = prop::sample::select(vec![
        AppProtocol::Unknown,
        AppProtocol::Http11,
        AppProtocol::Http2,
        AppProtocol::Grpc,
        AppProtocol::Tcp,
        AppProtocol::Tls,
    ]);
    (option::of(1_u16..), protocol).prop_map(|(target_port, app_protocol)| ServicePort {
        target_port,
        app_protocol,
    })
}

fn cidr() -> impl Strategy<Value = NetworkCidr> {
    let range = net().prop_filter("a host is no range", |net| {
        net.prefix_len() < net.max_prefix_len()
    });
    (maybe_word(), range).prop_map(|(network, cidr)| NetworkCidr { network, cidr })
}

prop_compose! {
    pub fn service()(
        name in maybe_word(),
        key in hostname(),
        addresses in vec(network_address(), 0..3),
        cidrs in vec(cidr(), 0..2),
        ports in btree_map(1_u16.., service_port(), 0..4),
        identities in vec((word(), word(), word()), 0..2),
        waypoint in option::of(gateway()),
        weighted in vec((gateway(), 0_u32..10), 0..2),
        load_balancing in option::of(load_balancing()),
        ip_families in prop::sample::select(vec![
            IpFamilies::Automatic, IpFamilies::Ipv4Only, IpFamilies::Ipv6Only, IpFamilies::Dual,
        ]),
        canonical: bool,
        visibility in prop_oneof![
            Just(Visibility::Public),
            Just(Visibility::Namespace),
            btree_set(word(), 0..3).prop_map(Visibility::Namespaces),
        ],
    ) -> Service {
        Service {
            name, namespace: key.namespace, hostname: key.hostname, addresses, cidrs, ports, waypoint,
            load_balancing, ip_families, canonical, visibility, ingress_use_waypoint: canonical,
            subject_alt_names: identities.into_iter().map(|(td, ns, sa)| Identity::new(td, ns, sa)).collect(),
            weighted_waypoints: weighted
                .into_iter()
                .map(|(destination, weight)| WeightedWaypoint { destination, weight })
                .collect(),
        }
    }
}

fn string_match() -> impl Strategy<Value = StringMatch> {
    prop_oneof![
        maybe_word().prop_map(StringMatch::Exact),
        maybe_word().prop_map(StringMatch::Prefix),
        maybe_word().prop_map(StringMatch::Suffix),
        Just(StringMatch::Presence),
    ]
}

fn service_account() -> impl Strategy<Value = ServiceAccountMatch> {
    (word(), word()).prop_map(|(namespace, service_account)| ServiceAccountMatch {
        namespace,
        service_account,
    })
}

prop_compose! {
    fn single_match()(
        texts in vec(vec(string_match(), 0..3), 4),
        ranges in vec(vec(net(), 0..3), 4),
        ports in vec(vec(any::<u16>(), 0..3), 2),
        accounts in vec(vec(service_account(), 0..2), 2),
    ) -> Match {
        Match {
            namespaces: texts[0].clone(), not_namespaces: texts[1].clone(),
            principals: texts[2].clone(), not_principals: texts[3].clone(),
            source_ips: ranges[0].clone(), not_source_ips: ranges[1].clone(),
            destination_ips: ranges[2].clone(), not_destination_ips: ranges[3].clone(),
            destination_ports: ports[0].clone(), not_destination_ports: ports[1].clone(),
            service_accounts: accounts[0].clone(), not_service_accounts: accounts[1].clone(),
        }
    }
}

prop_compose! {
    pub fn policy()(
        name in word(),
        namespace in word(),
        scope in prop::sample::select(vec![Scope::Global, Scope::Namespace, Scope::WorkloadSelector]),
        action in prop_oneof![Just(Action::Allow), Just(Action::Deny)],
        rules in vec(vec(vec(single_match(), 0..2), 0..3), 0..3),
        dry_run: bool,
        match_peer: bool,
    ) -> Authorization {
        let clauses = |clauses: Vec<Vec<Match>>| Rule {
            clauses: clauses.into_iter().map(|matches| Clause { matches }).collect(),
        };
        Authorization {
            name, namespace, scope, action, dry_run, match_peer,
            rules: rules.into_iter().map(clauses).collect(),
            untranslatable: false,
        }
    }
}
