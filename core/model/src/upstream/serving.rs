//! The endpoints of one port of a service, for who balances among them himself.

use std::sync::Arc;

use super::locality;
use crate::mesh::Snapshot;
use crate::service::{HealthPolicy, LoadBalancingMode, Service};
use crate::workload::{HealthStatus, Workload};

use super::balance::{self, Purpose};
use super::table::Class;

/// A workload that serves a port of a service.
#[derive(Debug, Clone, PartialEq)]
pub struct Serving {
    /// The workload.
    pub workload: Arc<Workload>,
    /// Its own port.
    pub target_port: u16,
    /// How near it is to the caller in the terms of the service; higher is nearer.
    pub rank: usize,
    /// Whether it takes new requests: it is healthy, or its health does not matter.
    pub healthy: bool,
}

impl Snapshot {
    /// Who serves `port` of `service`, as `source` sees them, in the order of their uids: also those that take no
    /// new requests now, because their number says how much of a place is left. Who must not be chosen from there at
    /// all, or cannot be reached, is not among them.
    #[must_use]
    pub fn serving(&self, source: &Workload, service: &Service, port: u16) -> Vec<Serving> {
        let key = service.key();
        let class = Class {
            service,
            source,
            port,
            purpose: Purpose::Destination,
        };
        let balancing = service.load_balancing.as_ref();
        let all = balancing.is_some_and(|balancing| balancing.health_policy == HealthPolicy::AllowAll);
        let serving = self.endpoints(&key).filter_map(|workload| {
            let reachable = workload.network == source.network || workload.network_gateway.is_some();
            let target_port = balance::reachable(&key, &class, &workload).filter(|_| reachable)?;
            let rank = match balancing.map(|balancing| balancing.mode) {
                // The caller names the address; whose it is decides.
                Some(LoadBalancingMode::Passthrough) => 0,
                _ => locality::rank(balancing, source, &workload)?,
            };
            let healthy = all || workload.status == HealthStatus::Healthy;
            Some(Serving {
                target_port,
                rank,
                healthy: healthy && workload.capacity > 0,
                workload,
            })
        });
        serving.collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::service::Scope;
    use crate::testing::{mesh, service, service_key, workload};

    #[test]
    fn unhealthy_and_unweighted_workloads_are_counted_and_take_nothing() {
        let snapshot = mesh()
            .with(service("db").port(80, 8080))
            .with(workload("a").ip("10.0.0.1").serves("db"))
            .with(workload("b").ip("10.0.0.2").serves("db").unhealthy())
            .with(workload("c").ip("10.0.0.3").serves("db").capacity(0))
            .with(workload("d").serves("db"))
            .with(workload("e").ip("10.0.0.5"))
            .snapshot();
        let service = snapshot.service(&service_key("db")).unwrap();
        let found = snapshot.serving(&workload("way").build(), service, 80);
        let found: Vec<_> = found
            .iter()
            .map(|one| (&*one.workload.name, one.target_port, one.healthy))
            .collect();
        assert_eq!(found, [("a", 8080, true), ("b", 8080, false), ("c", 8080, false)]);
        assert_eq!(snapshot.serving(&workload("way").build(), service, 81), []);
    }

    #[test]
    fn nearer_workloads_rank_higher() {
        let snapshot = mesh()
            .with(
                service("db")
                    .port(80, 8080)
                    .failover([Scope::Region, Scope::Zone]),
            )
            .with(workload("far").ip("10.0.0.1").serves("db").locality("us/1"))
            .with(workload("near").ip("10.0.0.2").serves("db").locality("eu/1"))
            .with(workload("next").ip("10.0.0.3").serves("db").locality("eu/2"))
            .snapshot();
        let service = snapshot.service(&service_key("db")).unwrap();
        let here = workload("way").locality("eu/1").build();
        let ranks: Vec<_> = snapshot
            .serving(&here, service, 80)
            .iter()
            .map(|one| one.rank)
            .collect();
        assert_eq!(ranks, [0, 2, 1]);
    }
}
