//! Chooses one endpoint of a service: who may be chosen, who is preferred, and a weighted draw among those.

use std::cmp::Reverse;
use std::net::IpAddr;
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
}

/// The endpoint that was drawn.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) workload: Arc<Workload>,
    pub(super) address: IpAddr,
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
    pub(super) fn choose(
        &mut self,
        service: &Service,
        port: u16,
        purpose: Purpose,
    ) -> Result<Chosen, NoUpstream> {
        let table = self.table(service, port, purpose);
        if table.total() == 0 {
            return Err(NoUpstream::NoHealthyEndpoint {
                service: service.key(),
                port,
            });
        }
        let Candidate {
            workload,
            target_port,
        } = table.at((self.random)(table.total()));
        let workload = Arc::clone(workload);
        if workload.network != self.source.network {
            let network = workload.network.clone();
            return Err(NoUpstream::NoGateway {
                workload: workload.uid.clone(),
                network,
            });
        }
        match address::choose(&workload, self.destination.ip(), service.ip_families) {
            Some(address) => Ok(Chosen {
                workload,
                address,
                target_port: *target_port,
            }),
            None => Err(NoUpstream::NameNotResolved {
                workload: workload.uid.clone(),
                hostname: workload.hostname.clone(),
            }),
        }
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
            let Some(preference) = self.preference(class.service, &workload) else {
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

    fn preference(&self, service: &Service, endpoint: &Workload) -> Option<Preference> {
        let rank = locality::rank(service.load_balancing.as_ref(), self.source, endpoint)?;
        Some(Preference {
            tried: self.exclude.contains(&endpoint.uid),
            // No way leads to other networks yet, and nothing resolves names.
            out_of_reach: endpoint.network != self.source.network || endpoint.addresses.is_empty(),
            rank: Reverse(rank),
        })
    }
}

/// The target port, if the endpoint may be chosen at all.
fn usable(key: &NamespacedHostname, class: &Class<'_>, endpoint: &Workload) -> Option<u16> {
    let Class { service, source, .. } = class;
    let health = service
        .load_balancing
        .as_ref()
        .map(|balancing| balancing.health_policy);
    let healthy = endpoint.status == HealthStatus::Healthy || health == Some(HealthPolicy::AllowAll);
    let has_name = endpoint.addresses.is_empty() && !endpoint.hostname.is_empty();
    let has_address = endpoint
        .addresses
        .iter()
        .any(|ip| address::allows(service.ip_families, *ip));
    let has_gateway = endpoint.network != source.network && endpoint.network_gateway.is_some();
    let allowed = endpoint.capacity > 0 && healthy && (has_address || has_name || has_gateway);
    if allowed {
        target_port(key, class, endpoint)
    } else {
        None
    }
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
