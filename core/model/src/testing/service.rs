//! Builds services.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{address, gateway, name, service_key};
use crate::gateway::WeightedWaypoint;
use crate::identity::Identity;
use crate::mesh::MeshUpdate;
use crate::network::NetworkCidr;
use crate::service::{
    AppProtocol, HealthPolicy, IpFamilies, LoadBalancing, LoadBalancingMode, Scope, Service, ServicePort,
    Visibility,
};

/// A service under construction.
#[derive(Debug, Clone)]
pub struct ServiceBuilder {
    service: Service,
}

/// Starts a service `name`, or `ns/name`, without addresses and ports.
#[must_use]
pub fn service(text: &str) -> ServiceBuilder {
    let (own, key) = (name(text), service_key(text));
    ServiceBuilder {
        service: Service {
            name: own.name,
            namespace: key.namespace,
            hostname: key.hostname,
            addresses: Vec::new(),
            cidrs: Vec::new(),
            ports: BTreeMap::new(),
            subject_alt_names: Vec::new(),
            waypoint: None,
            weighted_waypoints: Vec::new(),
            load_balancing: None,
            ip_families: IpFamilies::Automatic,
            canonical: false,
            visibility: Visibility::Public,
            ingress_use_waypoint: false,
        },
    }
}

impl ServiceBuilder {
    /// Another host name.
    #[must_use]
    pub fn hostname(mut self, hostname: &str) -> Self {
        self.service.hostname = hostname.into();
        self
    }

    /// A further virtual address, `ip` or `network/ip`.
    #[must_use]
    pub fn vip(mut self, text: &str) -> Self {
        self.service.addresses.push(address(text));
        self
    }

    /// A further range in the default network.
    ///
    /// # Panics
    /// If the text is no range.
    #[must_use]
    pub fn cidr(mut self, text: &str) -> Self {
        let cidr = text.parse().expect("a CIDR");
        self.service.cidrs.push(NetworkCidr {
            network: "".into(),
            cidr,
        });
        self
    }

    /// A port and the port behind it.
    #[must_use]
    pub fn port(mut self, port: u16, target: u16) -> Self {
        let found = ServicePort {
            target_port: Some(target),
            app_protocol: AppProtocol::Unknown,
        };
        self.service.ports.insert(port, found);
        self
    }

    /// A port that every endpoint settles for itself.
    #[must_use]
    pub fn named_port(mut self, port: u16) -> Self {
        let found = ServicePort {
            target_port: None,
            app_protocol: AppProtocol::Unknown,
        };
        self.service.ports.insert(port, found);
        self
    }

    /// A further identity of its endpoints.
    #[must_use]
    pub fn subject_alt_name(mut self, identity: Identity) -> Self {
        self.service.subject_alt_names.push(identity);
        self
    }

    /// Behind a waypoint, given by the name of its service or by an address.
    #[must_use]
    pub fn waypoint(mut self, text: &str) -> Self {
        self.service.waypoint = Some(gateway(text));
        self
    }

    /// Spread over a further waypoint.
    #[must_use]
    pub fn weighted_waypoint(mut self, text: &str, weight: u32) -> Self {
        self.service.weighted_waypoints.push(WeightedWaypoint {
            destination: gateway(text),
            weight,
        });
        self
    }

    /// Prefers endpoints that share most of these.
    #[must_use]
    pub fn failover(self, scopes: impl IntoIterator<Item = Scope>) -> Self {
        self.balancing(LoadBalancingMode::Failover, scopes)
    }

    /// Takes only endpoints that share all of these.
    #[must_use]
    pub fn strict(self, scopes: impl IntoIterator<Item = Scope>) -> Self {
        self.balancing(LoadBalancingMode::Strict, scopes)
    }

    /// Leaves the original destination alone.
    #[must_use]
    pub fn passthrough(self) -> Self {
        self.balancing(LoadBalancingMode::Passthrough, [])
    }

    /// Unhealthy endpoints take part.
    #[must_use]
    pub fn allow_unhealthy(mut self) -> Self {
        self.service.load_balancing.get_or_insert_default().health_policy = HealthPolicy::AllowAll;
        self
    }

    /// Restricts the address families.
    #[must_use]
    pub fn ip_families(mut self, families: IpFamilies) -> Self {
        self.service.ip_families = families;
        self
    }

    /// Wins ties.
    #[must_use]
    pub fn canonical(mut self) -> Self {
        self.service.canonical = true;
        self
    }

    /// Seen in its own namespace only.
    #[must_use]
    pub fn private(mut self) -> Self {
        self.service.visibility = Visibility::Namespace;
        self
    }

    /// Seen in these namespaces only.
    #[must_use]
    pub fn exported_to(mut self, namespaces: &[&str]) -> Self {
        let listed = namespaces.iter().map(|namespace| (*namespace).into());
        self.service.visibility = Visibility::Namespaces(listed.collect());
        self
    }

    /// The service.
    #[must_use]
    pub fn build(self) -> Service {
        self.service
    }

    fn balancing(mut self, mode: LoadBalancingMode, scopes: impl IntoIterator<Item = Scope>) -> Self {
        let balancing: &mut LoadBalancing = self.service.load_balancing.get_or_insert_default();
        balancing.mode = mode;
        balancing.routing_preference = scopes.into_iter().collect();
        self
    }
}

impl From<ServiceBuilder> for MeshUpdate {
    fn from(builder: ServiceBuilder) -> Self {
        Self::Service(Arc::new(builder.service))
    }
}
