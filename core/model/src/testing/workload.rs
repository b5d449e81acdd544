//! Builds workloads.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{gateway, name, service_key};
use crate::identity::DEFAULT_TRUST_DOMAIN;
use crate::mesh::MeshUpdate;
use crate::name::WorkloadUid;
use crate::workload::{
    ApplicationProtocol, ApplicationTunnel, HealthStatus, Locality, NetworkMode, TunnelProtocol, Workload,
    WorkloadType,
};

/// A workload under construction.
#[derive(Debug, Clone)]
pub struct WorkloadBuilder {
    workload: Workload,
}

/// Starts a healthy pod `name`, or `ns/name`, with its own name as service account and `<ns>/<name>` as uid.
#[must_use]
pub fn workload(text: &str) -> WorkloadBuilder {
    let own = name(text);
    WorkloadBuilder {
        workload: Workload {
            uid: WorkloadUid(own.to_string().into()),
            name: own.name.clone(),
            namespace: own.namespace,
            trust_domain: DEFAULT_TRUST_DOMAIN.into(),
            service_account: own.name.clone(),
            addresses: Vec::new(),
            network: "".into(),
            hostname: "".into(),
            tunnel_protocol: TunnelProtocol::None,
            network_mode: NetworkMode::Standard,
            native_tunnel: false,
            waypoint: None,
            network_gateway: None,
            application_tunnel: None,
            node: "".into(),
            cluster_id: "Kubernetes".into(),
            locality: Locality::default(),
            authorization_policies: Vec::new(),
            services: BTreeMap::new(),
            status: HealthStatus::Healthy,
            capacity: 1,
            workload_type: WorkloadType::Deployment,
            workload_name: own.name.clone(),
            canonical_name: own.name,
            canonical_revision: "latest".into(),
            extensions: BTreeMap::new(),
        },
    }
}

impl WorkloadBuilder {
    /// Another uid.
    #[must_use]
    pub fn uid(mut self, uid: &str) -> Self {
        self.workload.uid = uid.into();
        self
    }

    /// Another namespace; the uid follows.
    #[must_use]
    pub fn ns(mut self, namespace: &str) -> Self {
        self.workload.namespace = namespace.into();
        self.workload.uid = WorkloadUid(format!("{namespace}/{}", self.workload.name).into());
        self
    }

    /// A service account.
    #[must_use]
    pub fn sa(mut self, service_account: &str) -> Self {
        self.workload.service_account = service_account.into();
        self
    }

    /// A further address.
    ///
    /// # Panics
    /// If the text is no address.
    #[must_use]
    pub fn ip(mut self, address: &str) -> Self {
        self.workload
            .addresses
            .push(address.parse().expect("an IP address"));
        self
    }

    /// Reached by HBONE.
    #[must_use]
    pub fn hbone(mut self) -> Self {
        self.workload.tunnel_protocol = TunnelProtocol::Hbone;
        self
    }

    /// Shares its node's network.
    #[must_use]
    pub fn host_network(mut self) -> Self {
        self.workload.network_mode = NetworkMode::HostNetwork;
        self
    }

    /// On another network.
    #[must_use]
    pub fn network(mut self, network: &str) -> Self {
        self.workload.network = network.into();
        self
    }

    /// Known by a name only.
    #[must_use]
    pub fn hostname(mut self, hostname: &str) -> Self {
        self.workload.hostname = hostname.into();
        self
    }

    /// An entry to its network.
    #[must_use]
    pub fn network_gateway(mut self, text: &str) -> Self {
        self.workload.network_gateway = Some(gateway(text));
        self
    }

    /// An endpoint of a service, which says the ports.
    #[must_use]
    pub fn serves(self, service: &str) -> Self {
        self.serves_on(service, [])
    }

    /// An endpoint of a service, with ports of its own.
    #[must_use]
    pub fn serves_on(mut self, service: &str, ports: impl IntoIterator<Item = (u16, u16)>) -> Self {
        self.workload
            .services
            .insert(service_key(service), ports.into_iter().collect());
        self
    }

    /// Behind a waypoint, given by the name of its service or by an address.
    #[must_use]
    pub fn waypoint(mut self, text: &str) -> Self {
        self.workload.waypoint = Some(gateway(text));
        self
    }

    /// Names a policy.
    #[must_use]
    pub fn policy(mut self, policy: &str) -> Self {
        self.workload.authorization_policies.push(name(policy));
        self
    }

    /// Wants a PROXY header, on this port if one is given.
    #[must_use]
    pub fn application_tunnel(mut self, port: Option<u16>) -> Self {
        self.workload.application_tunnel = Some(ApplicationTunnel {
            protocol: ApplicationProtocol::Proxy,
            port,
        });
        self
    }

    /// On a node.
    #[must_use]
    pub fn node(mut self, node: &str) -> Self {
        self.workload.node = node.into();
        self
    }

    /// In a cluster.
    #[must_use]
    pub fn cluster(mut self, cluster: &str) -> Self {
        self.workload.cluster_id = cluster.into();
        self
    }

    /// In `region/zone/subzone`; parts may be left out.
    #[must_use]
    pub fn locality(mut self, text: &str) -> Self {
        let mut parts = text.split('/').chain(std::iter::repeat(""));
        let mut next = || parts.next().unwrap_or_default().into();
        self.workload.locality = Locality {
            region: next(),
            zone: next(),
            subzone: next(),
        };
        self
    }

    /// Not ready.
    #[must_use]
    pub fn unhealthy(mut self) -> Self {
        self.workload.status = HealthStatus::Unhealthy;
        self
    }

    /// A balancing weight.
    #[must_use]
    pub fn capacity(mut self, capacity: u32) -> Self {
        self.workload.capacity = capacity;
        self
    }

    /// A named value.
    #[must_use]
    pub fn extension(mut self, name: &str, value: &str) -> Self {
        self.workload.extensions.insert(name.into(), value.into());
        self
    }

    /// The workload.
    #[must_use]
    pub fn build(self) -> Workload {
        self.workload
    }
}

impl From<WorkloadBuilder> for MeshUpdate {
    fn from(builder: WorkloadBuilder) -> Self {
        Self::Workload(Arc::new(builder.workload))
    }
}
