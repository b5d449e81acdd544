//! Chooses one endpoint of a service: who may be chosen, who is preferred, and a weighted draw among those.

use std::cmp::Reverse;
use std::sync::Arc;

use super::table::{Candidate, Class, Table};
use super::{NoUpstream, Search, address, locality};
use crate::name::NamespacedHostname;
use crate::service::{HealthPolicy, Service};
use crate::workload::{HealthStatus, Workload};

/// What an endpoint is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// As the destination itself.
    Destination,
    /// As a waypoint: with an application tunnel, its port need not be on the service.
    Waypoint,
    /// As the gateway of a network: it is dialled directly, whatever network it is described in.
    Gateway,
}

/// The endpoint that was drawn.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) workload: Arc<Workload>,
    pub(super) target_port: u16,
}

/// How much an endpoint is wanted; smaller is better. What was tried or cannot be reached comes last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Preference {
    tried: bool,
    out_of_reach: bool,
    rank: Reverse<usize>,
}

impl Search<'_> {
    /// Draws an endpoint, weighted by capacity, among those of the best preference.
    pub(super) fn draw(
        &mut self,
        service: &Service,
        port: u16,
        purpose: Purpose,
    ) -> Result<Chosen, NoUpstream> {
        let table = self.table(service, port, purpose);
        let drawn = table
            .draw(self.random)
            .ok_or_else(|| NoUpstream::NoHealthyEndpoint {
                service: service.key(),
                port,
            })?;
        Ok(Chosen {
            workload: Arc::clone(&drawn.workload),
            target_port: drawn.target_port,
        })
    }

    /// The table to draw from. One that leaves out what was tried is made for this connection only.
    fn table(&self, service: &Service, port: u16, purpose: Purpose) -> Arc<Table> {
        let key = service.key();
        let class = Class {
            service,
            source: self.source,
            port,
            purpose,
        };
        let make = || Table::new(&class, self.best_candidates(&key, &class));
        match self.snapshot.tables(&key) {
            Some(tables) if self.exclude.is_empty() => tables.get_or_make(&class, make),
            _ => Arc::new(make()),
        }
    }

    fn best_candidates(&self, key: &NamespacedHostname, class: &Class<'_>) -> Vec<Candidate> {
        let mut best = Vec::new();
        let mut best_preference = None;
        for workload in self.snapshot.endpoints(key) {
            let Some(target_port) = usable(key, class, &workload) else {
                continue;
            };
            let Some(preference) = self.preference(class, &workload) else {
                continue;
            };
            if best_preference.is_some_and(|best| preference > best) {
                continue;
            }
            if best_preference != Some(preference) {
                best.clear();
                best_preference = Some(preference);
            }
            best.push(Candidate {
                workload,
                target_port,
            });
        }
        best
    }

    fn preference(&self, class: &Class<'_>, endpoint: &Workload) -> Option<Preference> {
        let rank = locality::rank(class.service.load_balancing.as_ref(), self.source, endpoint)?;
        let elsewhere = endpoint.network != self.source.network && class.purpose != Purpose::Gateway;
        Some(Preference {
            tried: self.exclude.contains(&endpoint.uid),
            out_of_reach: elsewhere && endpoint.network_gateway.is_none(),
            rank: Reverse(rank),
        })
    }
}

/// The target port, if the endpoint may be chosen at all.
fn usable(key: &NamespacedHostname, class: &Class<'_>, endpoint: &Workload) -> Option<u16> {
    let balancing = class.service.load_balancing.as_ref();
    let health = balancing.map(|balancing| balancing.health_policy);
    let healthy = endpoint.status == HealthStatus::Healthy || health == Some(HealthPolicy::AllowAll);
    (healthy && endpoint.capacity > 0)
        .then(|| reachable(key, class, endpoint))
        .flatten()
}

/// The target port, if the endpoint serves the port and there is an address or a name to reach it by.
pub(super) fn reachable(key: &NamespacedHostname, class: &Class<'_>, endpoint: &Workload) -> Option<u16> {
    let Class { service, source, .. } = class;
    let has_name = endpoint.addresses.is_empty() && !endpoint.hostname.is_empty();
    let has_address = endpoint
        .addresses
        .iter()
        .any(|ip| address::allows(service.ip_families, *ip));
    let has_gateway = endpoint.network != source.network && endpoint.network_gateway.is_some();
    (has_address || has_name || has_gateway)
        .then(|| target_port(key, class, endpoint))
        .flatten()
}

/// The endpoint's own mapping, else the service's port, else what a waypoint's application tunnel makes of it.
fn target_port(key: &NamespacedHostname, class: &Class<'_>, endpoint: &Workload) -> Option<u16> {
    let Class {
        service,
        port,
        purpose,
        ..
    } = class;
    let own = || {
        endpoint
            .services
            .get(key)
            .and_then(|ports| ports.get(port))
            .copied()
    };
    let common = || service.ports.get(port).and_then(|found| found.target_port);
    let tunnelled = || {
        let tunnel = endpoint
            .application_tunnel
            .as_ref()
            .filter(|_| *purpose == Purpose::Waypoint)?;
        tunnel.port.map(|_| *port)
    };
    own().or_else(common).or_else(tunnelled)
}
