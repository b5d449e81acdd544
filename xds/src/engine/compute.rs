//! From the world to resources: pure, one output at a time.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use tulle_k8s::translate::condition::Condition;
use tulle_k8s::{Key, Kind};
use tulle_model::authz::policy::Authorization;
use tulle_model::gateway::{GatewayAddress, GatewayDestination};
use tulle_model::policy::Policy;
use tulle_model::route::Route;
use tulle_model::waypoint::Waypoint;
use tulle_model::{Service, Str, Workload};
use tulle_proto::convert::{Resource as Wire, encode_address, encode_authorization};
use tulle_proto::{encode_policy, encode_route, encode_waypoint};

use super::table::Resource;
use super::trace::{Step, Trace};
use super::world::World;
use crate::snapshot::around::Relations;
use crate::snapshot::{Order, ResourceType, Scope};

mod conflict;
mod endpoints;
mod fronts;
mod policies;
mod required;
mod routes;
pub(super) mod services;
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
    /// The rules of a route.
    Routes(Key),
    /// A waypoint's settings, or what is said of a class.
    Gateways(Key),
    /// What is said of the settings of the mesh.
    Settings,
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
    /// A waypoint's settings, or one of its fronts.
    Waypoint(Arc<Waypoint>),
    /// A rule, and the waypoints it is for.
    Route(Arc<Route>, Arc<BTreeSet<Str>>),
    /// A policy of waypoints, and those it is for.
    Policy(Arc<Policy>, Arc<BTreeSet<Str>>),
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

/// Computes an output, and tells how. No clock, no I/O, no history.
#[must_use]
pub fn compute(out: &OutKey, world: &World, trace: &mut impl Trace) -> Vec<Part> {
    let mut parts = parts(out, world, trace);
    for part in &mut parts {
        let generation = world
            .get(&part.owner)
            .map_or(0, |object| object.meta().generation);
        let conditions = std::mem::take(&mut part.conditions).into_iter();
        part.conditions = conditions.map(|condition| condition.at(generation)).collect();
    }
    for part in &parts {
        for condition in &part.conditions {
            trace.step(|| said(&part.owner, condition));
        }
        for emitted in &part.emitted {
            trace.step(|| {
                let ty = emitted.resource_type().type_url();
                Step::of("resource", "", &*emitted.name())
                    .by(&part.owner)
                    .saying(ty)
            });
        }
    }
    parts
}

/// A condition as a step.
fn said(owner: &Key, condition: &Condition) -> Step {
    let of = condition
        .of
        .as_ref()
        .map(|of| format!(" of {of}"))
        .unwrap_or_default();
    let outcome = format!(
        "{} {:?}: {}{of}",
        condition.kind, condition.status, condition.reason
    );
    Step::of("condition", "", outcome)
        .by(owner)
        .saying(&condition.message)
}

fn parts(out: &OutKey, world: &World, trace: &mut impl Trace) -> Vec<Part> {
    match out {
        OutKey::Workloads(key) => match key.kind {
            Kind::Pod => workloads::pod(key, world, trace),
            Kind::WorkloadEntry => workloads::entry(key, world, trace),
            Kind::ServiceEntry => endpoints::inline(key, world),
            Kind::EndpointSlice => endpoints::slice(key, world),
            _ => Vec::new(),
        },
        OutKey::Services(hostname) => services::services(hostname, world, trace),
        OutKey::Policies(key) => policies::policies(key, world),
        OutKey::Routes(key) => routes::routes(key, world),
        OutKey::Gateways(key) => fronts::gateways(key, world),
        OutKey::Settings => settings(world),
        OutKey::StaticStrict => policies::static_strict(world),
    }
}

/// What is said of the settings of the mesh.
fn settings(world: &World) -> Vec<Part> {
    let (_, said) = world.settled();
    let part = said.map(|(owner, conditions)| Part {
        owner,
        emitted: Vec::new(),
        conditions,
    });
    part.into_iter().collect()
}

impl Emitted {
    /// The table it belongs to.
    #[must_use]
    pub fn resource_type(&self) -> ResourceType {
        match self {
            Self::Workload(..) | Self::Service(..) => ResourceType::Address,
            Self::Authorization(_) => ResourceType::Authorization,
            Self::Waypoint(_) => ResourceType::Waypoint,
            Self::Route(..) => ResourceType::Route,
            Self::Policy(..) => ResourceType::Policy,
        }
    }

    /// Name of the resource.
    #[must_use]
    pub fn name(&self) -> Str {
        match self {
            Self::Workload(workload, _) => workload.uid.0.clone(),
            Self::Service(service, _) => service.key().to_string().into(),
            Self::Authorization(policy) => policy.key().to_string().into(),
            Self::Waypoint(waypoint) => waypoint.name(),
            Self::Route(route, _) => route.name(),
            Self::Policy(policy, _) => policy.name(),
        }
    }

    /// What else a client needs that asks for it by name.
    pub(crate) fn relations(&self) -> Relations {
        let to = |address: &GatewayAddress| match &address.destination {
            GatewayDestination::Hostname(hostname) => Str::from(hostname.to_string()),
            GatewayDestination::Address(address) => address.to_string().into(),
        };
        match self {
            Self::Workload(workload, _) => Relations {
                node: Some(workload.node.clone()).filter(|node| !node.is_empty()),
                services: workload
                    .services
                    .keys()
                    .map(|key| key.to_string().into())
                    .collect(),
                waypoints: workload.waypoint.iter().map(to).collect(),
            },
            Self::Service(service, _) => {
                let weighted = service.weighted_waypoints.iter().map(|one| &one.destination);
                Relations {
                    waypoints: service.waypoint.iter().chain(weighted).map(to).collect(),
                    ..Relations::default()
                }
            }
            _ => Relations::default(),
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
            Self::Waypoint(waypoint) => of_waypoint(name, encode_waypoint(waypoint), scope),
            Self::Route(route, _) => of_waypoint(name, encode_route(route), scope),
            Self::Policy(policy, _) => of_waypoint(name, encode_policy(policy), scope),
        }
    }
}

/// A resource that only waypoints receive.
fn of_waypoint(name: Str, body: Vec<u8>, scope: Scope) -> Resource {
    Resource {
        name,
        aliases: Vec::new(),
        body: body.into(),
        order: Order::Policy,
        scope,
    }
}

fn address(resource: &Wire) -> bytes::Bytes {
    encode_address(resource)
        .expect("workloads and services are addresses")
        .into()
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn a_bare_workload_is_a_part_of_its_address() {
        let workload = tulle_model::testing::workload("shop/web").ip("10.0.0.1").build();
        let resource = Emitted::Workload(Arc::new(workload.clone()), false).encode(Scope::Everyone);
        let bare = resource.bare().expect("a workload");
        let expected = tulle_proto::workload::Workload::from(&workload).encode_to_vec();
        assert_eq!(bare.body, expected);
        let whole = resource.body.as_ptr_range();
        assert!(whole.contains(&bare.body.as_ptr()), "it is not held twice");
    }
}
