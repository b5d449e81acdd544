//! What the waypoint knows of itself: its place, its settings, its own workload.

use std::collections::BTreeMap;
use std::sync::Arc;

use tulle_model::gateway::GatewayDestination;
use tulle_model::waypoint::Settings;
use tulle_model::workload::{HealthStatus, Locality, NetworkMode, TunnelProtocol, Workload, WorkloadType};
use tulle_model::{Snapshot as MeshSnapshot, Str};

use crate::config::Config;

/// What the process itself knows of where it is.
#[derive(Debug, Clone)]
pub(super) struct Me {
    namespace: Str,
    gateway: Str,
    service_account: Str,
    pod_name: Str,
    trust_domain: Str,
    network: Str,
    node: Str,
    cluster_id: Str,
}

impl Me {
    pub(super) fn of(config: &Config) -> Self {
        Self {
            namespace: config.namespace.clone(),
            gateway: config.gateway.clone(),
            service_account: config.service_account.clone(),
            pod_name: config.pod_name.clone(),
            trust_domain: config.trust_domain.clone(),
            network: config.network.clone(),
            node: config.node.clone(),
            cluster_id: config.cluster_id.clone(),
        }
    }

    /// Settings until the control plane says some: nothing is in front of anything yet, so nothing hangs on them.
    pub(super) fn settings(&self, mesh: &MeshSnapshot) -> Arc<Settings> {
        let own = |settings: &&Arc<Settings>| {
            settings.namespace == self.namespace && settings.gateway == self.gateway
        };
        let found = mesh.waypoint_settings().find(own);
        if let Some(found) = found.or_else(|| mesh.waypoint_settings().next()) {
            return Arc::clone(found);
        }
        Arc::new(Settings::new(self.namespace.clone(), self.gateway.clone()))
    }

    /// The waypoint's own workload: as the control plane describes it, else as far as the process knows itself.
    pub(super) fn own(&self, mesh: &MeshSnapshot) -> Arc<Workload> {
        if let Some(found) = mesh.workload_by_name(&self.namespace, &self.pod_name, &self.service_account) {
            return found;
        }
        Arc::new(Workload {
            uid: tulle_model::WorkloadUid("".into()),
            name: self.pod_name.clone(),
            namespace: self.namespace.clone(),
            trust_domain: self.trust_domain.clone(),
            service_account: self.service_account.clone(),
            addresses: Vec::new(),
            network: self.network.clone(),
            hostname: "".into(),
            tunnel_protocol: TunnelProtocol::Hbone,
            network_mode: NetworkMode::Standard,
            native_tunnel: true,
            waypoint: None,
            network_gateway: None,
            application_tunnel: None,
            node: self.node.clone(),
            cluster_id: self.cluster_id.clone(),
            locality: Locality::default(),
            authorization_policies: Vec::new(),
            services: BTreeMap::new(),
            status: HealthStatus::Healthy,
            capacity: 1,
            workload_type: WorkloadType::default(),
            workload_name: self.gateway.clone(),
            canonical_name: self.gateway.clone(),
            canonical_revision: "".into(),
            extensions: BTreeMap::new(),
        })
    }
}

/// Replicas of the waypoint that take requests, as far as its own service tells; at least this one.
pub(super) fn ready_replicas(settings: &Settings, mesh: &MeshSnapshot) -> u32 {
    let services = settings
        .addresses
        .iter()
        .filter_map(|address| match &address.destination {
            GatewayDestination::Hostname(name) => Some(name),
            GatewayDestination::Address(_) => None,
        });
    let ready = |name| {
        mesh.endpoints(name)
            .filter(|workload| workload.status == HealthStatus::Healthy)
            .count()
    };
    let most = services.map(ready).max().unwrap_or(1);
    u32::try_from(most).unwrap_or(u32::MAX).max(1)
}
