//! Chooses one endpoint of a service: who may be chosen, who is preferred, and a weighted draw among those.

use std::cmp::Reverse;
use std::net::IpAddr;
use std::sync::Arc;

use smallvec::SmallVec;

use super::{NoUpstream, Search, address, locality};
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

/// An endpoint that may be drawn.
struct Candidate {
    workload: Arc<Workload>,
    target_port: u16,
}

/// Few services have more endpoints of one preference; those that have pay one allocation.
const CANDIDATES_INLINE: usize = 16;

impl Search<'_> {
    /// Draws an endpoint, weighted by capacity, among those of the best preference.
    pub(super) fn choose(
        &mut self,
        service: &Service,
        port: u16,
        purpose: Purpose,
    ) -> Result<Chosen, NoUpstream> {
        let best = self.best_candidates(service, port, purpose);
        let total = best.iter().map(|one| u64::from(one.workload.capacity)).sum();
        if total == 0 {
            return Err(NoUpstream::NoHealthyEndpoint {
                service: service.key(),
                port,
            });
        }
        let drawn = (self.random)(total);
        let Candidate {
            workload,
            target_port,
        } = draw(best, drawn).expect("the draw is below the total");
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
                target_port,
            }),
            None => Err(NoUpstream::NameNotResolved {
                workload: workload.uid.clone(),
                hostname: workload.hostname.clone(),
            }),
        }
    }

    fn best_candidates(
        &self,
        service: &Service,
        port: u16,
        purpose: Purpose,
    ) -> SmallVec<[Candidate; CANDIDATES_INLINE]> {
        let mut best = SmallVec::new();
        let mut best_preference = None;
        let key = service.key();
        for workload in self.snapshot.endpoints(&key) {
            let Some(target_port) = self.usable(service, port, purpose, &workload) else {
                continue;
            };
            let Some(preference) = self.preference(service, &workload) else {
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

    /// The target port, if the endpoint may be chosen at all.
    fn usable(&self, service: &Service, port: u16, purpose: Purpose, endpoint: &Workload) -> Option<u16> {
        let health = service
            .load_balancing
            .as_ref()
            .map(|balancing| balancing.health_policy);
        let healthy = endpoint.status == HealthStatus::Healthy || health == Some(HealthPolicy::AllowAll);
        let has_address = !endpoint.hostname.is_empty() && endpoint.addresses.is_empty()
            || address::choose(endpoint, self.destination.ip(), service.ip_families).is_some();
        let has_gateway = endpoint.network != self.source.network && endpoint.network_gateway.is_some();
        let allowed = endpoint.capacity > 0 && healthy && (has_address || has_gateway);
        if allowed {
            target_port(service, port, purpose, endpoint)
        } else {
            None
        }
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

/// The endpoint's own mapping, else the service's port, else what a waypoint's application tunnel makes of it.
fn target_port(service: &Service, port: u16, purpose: Purpose, endpoint: &Workload) -> Option<u16> {
    let own = || {
        endpoint
            .services
            .get(&service.key())
            .and_then(|ports| ports.get(&port))
            .copied()
    };
    let common = || service.ports.get(&port).and_then(|found| found.target_port);
    let tunnelled = || {
        let tunnel = endpoint
            .application_tunnel
            .as_ref()
            .filter(|_| purpose == Purpose::Waypoint)?;
        tunnel.port.map(|_| port)
    };
    own().or_else(common).or_else(tunnelled)
}

/// The candidate whose share of the total holds the draw.
fn draw(candidates: impl IntoIterator<Item = Candidate>, mut drawn: u64) -> Option<Candidate> {
    candidates.into_iter().find(|one| {
        let share = u64::from(one.workload.capacity);
        let holds = drawn < share;
        drawn = drawn.saturating_sub(share);
        holds
    })
}
