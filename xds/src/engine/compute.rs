//! From the world to resources: pure, one output at a time.

use std::net::IpAddr;
use std::sync::Arc;

use prost::Message as _;
use tulle_k8s::translate::condition::Condition;
use tulle_k8s::{Key, Kind};
use tulle_model::authz::policy::Authorization;
use tulle_model::{Service, Str, Workload};
use tulle_proto::convert::{Resource as Wire, encode_address, encode_authorization};

use super::table::Resource;
use super::world::World;
use crate::snapshot::{Order, Scope};

mod conflict;
mod endpoints;
mod policies;
mod required;
mod services;
mod workloads;

/// Something that is computed as a whole.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum OutKey {
    /// The workloads of a pod, an entry, a service entry or a slice.
    Workloads(Key),
    /// The services of a host name, in every namespace.
    Services(Str),
    /// What a security object becomes.
    Policies(Key),
    /// The policy that refuses callers without an identity.
    StaticStrict,
}

/// One resource in terms of the model.
#[derive(Debug, Clone, PartialEq)]
pub enum Emitted {
    /// A workload; whether it belongs to a waypoint.
    Workload(Arc<Workload>, bool),
    /// A service; whether it belongs to a waypoint.
    Service(Arc<Service>, bool),
    /// A policy.
    Authorization(Arc<Authorization>),
}

/// What came of one object.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// The object.
    pub owner: Key,
    /// What it became.
    pub emitted: Vec<Emitted>,
    /// What is to be said of it.
    pub conditions: Vec<Condition>,
}

/// Computes an output. No clock, no I/O, no history.
#[must_use]
pub fn compute(out: &OutKey, world: &World) -> Vec<Part> {
    match out {
        OutKey::Workloads(key) => match key.kind {
            Kind::Pod => workloads::pod(key, world),
            Kind::WorkloadEntry => workloads::entry(key, world),
            Kind::ServiceEntry => endpoints::inline(key, world),
            Kind::EndpointSlice => endpoints::slice(key, world),
            _ => Vec::new(),
        },
        OutKey::Services(hostname) => services::services(hostname, world),
        OutKey::Policies(key) => policies::policies(key, world),
        OutKey::StaticStrict => policies::static_strict(world),
    }
}

impl Emitted {
    /// Name of the resource.
    #[must_use]
    pub fn name(&self) -> Str {
        match self {
            Self::Workload(workload, _) => workload.uid.0.clone(),
            Self::Service(service, _) => service.key().to_string().into(),
            Self::Authorization(policy) => policy.key().to_string().into(),
        }
    }

    /// The resource as it is sent; `scope` says to whom.
    #[must_use]
    pub fn encode(&self, scope: Scope) -> Resource {
        let name = self.name();
        match self {
            Self::Workload(workload, waypoint) => {
                let order = if *waypoint {
                    Order::WaypointWorkload
                } else {
                    Order::Workload
                };
                let alias = |address: &IpAddr| format!("{}/{address}", workload.network).into();
                let aliases = workload.addresses.iter().map(alias).collect();
                let body = address(&Wire::Workload(workload.clone()));
                Resource {
                    name,
                    aliases,
                    body,
                    order,
                    scope,
                }
            }
            Self::Service(service, waypoint) => {
                let order = if *waypoint {
                    Order::WaypointService
                } else {
                    Order::Service
                };
                let hosts = service.addresses.iter().map(|address| address.to_string().into());
                let ranges = service.cidrs.iter().map(|range| range.to_string().into());
                let aliases = hosts.chain(ranges).collect();
                let body = address(&Wire::Service(service.clone()));
                Resource {
                    name,
                    aliases,
                    body,
                    order,
                    scope,
                }
            }
            Self::Authorization(policy) => {
                let body = encode_authorization(policy).into();
                Resource {
                    name,
                    aliases: Vec::new(),
                    body,
                    order: Order::Policy,
                    scope,
                }
            }
        }
    }
}

fn address(resource: &Wire) -> bytes::Bytes {
    encode_address(resource)
        .expect("workloads and services are addresses")
        .into()
}

/// A bare workload, as the older resource type carries it.
#[must_use]
pub fn bare_workload(workload: &Workload, of: &Resource) -> Resource {
    let body = tulle_proto::workload::Workload::from(workload)
        .encode_to_vec()
        .into();
    Resource { body, ..of.clone() }
}
