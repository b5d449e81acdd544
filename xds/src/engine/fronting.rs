//! Which addresses each waypoint needs: kept by counting what is sent, so that a change costs what it touches.

use std::collections::{BTreeMap, BTreeSet};

use tulle_k8s::translate::waypoint;
use tulle_k8s::{Key, Kind};
use tulle_model::filter::{Ask, Filter};
use tulle_model::gateway::GatewayDestination;
use tulle_model::policy::{Concern, On};
use tulle_model::route::{Backend, BackendTo};
use tulle_model::waypoint::{FrontOf, ProviderKind, Settings, Waypoint};
use tulle_model::{Identity, NamespacedName, Str};

use super::compute::Emitted;
use super::kept::Outputs;
use super::replicas::Replicas;
use super::table::Table;
use super::world::World;
use crate::snapshot::fronted::Fronts;
use crate::snapshot::{Around, Fronted};

/// How often something is needed.
type Counts = BTreeMap<Str, usize>;

/// The counts, and the waypoints that changed since they were last published.
#[derive(Debug, Default)]
pub(super) struct Fronting {
    /// Waypoints that have settings, and how many: those that drain are counted until what is computed anew has their place.
    known: Counts,
    /// Names of services and workloads, by waypoint.
    needs: BTreeMap<Str, Counts>,
    /// Waypoints, by service.
    needed_by: BTreeMap<Str, Counts>,
    replicas: Replicas,
    moved: BTreeSet<Str>,
}

impl Fronting {
    /// Notes that something of a gateway changed which its settings may not show.
    pub(super) fn touch(&mut self, key: &Key) {
        if key.kind == Kind::Gateway {
            let name: Str = format!("{}/{}", key.namespace, key.name).into();
            self.replicas.look_again(&name);
            self.moved.insert(name);
        }
    }

    /// Counts a resource that is sent from now on, or is no more.
    pub(super) fn count(&mut self, emitted: &Emitted, add: bool) {
        match emitted {
            Emitted::Workload(workload, _) => {
                // Where no service is needed by anybody, its endpoints are nobody's concern.
                let services = workload.services.keys().filter(|_| !self.needed_by.is_empty());
                for service in services.map(|service| Str::from(service.to_string())) {
                    let waypoints = self.needed_by.get(&service).into_iter().flat_map(BTreeMap::keys);
                    self.moved.extend(waypoints.cloned());
                }
                self.moved.extend(self.replicas.count(workload, add));
            }
            Emitted::Waypoint(waypoint) => match waypoint.as_ref() {
                Waypoint::Settings(settings) => {
                    let name = settings.name();
                    self.need(&name, of_settings(settings), add);
                    count(&mut self.known, &name, add);
                    self.replicas.look_again(&name);
                    self.moved.insert(name);
                }
                Waypoint::Front(front) => {
                    let name = match &front.object {
                        FrontOf::Service(service) => service.to_string().into(),
                        FrontOf::Workload(uid) => uid.0.clone(),
                    };
                    self.need(&front.waypoint, vec![name], add);
                }
            },
            Emitted::Route(route, waypoints) => {
                let mut names = Vec::new();
                of_filters(&route.filters, &mut names);
                route
                    .backends
                    .iter()
                    .for_each(|backend| of_backend(backend, &mut names));
                for waypoint in waypoints.iter() {
                    self.need(waypoint, names.clone(), add);
                }
            }
            Emitted::Policy(policy, waypoints) => {
                let mut names = Vec::new();
                if let Concern::ExtAuthz(asked) = &policy.concern {
                    of_ask(&asked.ask, &mut names);
                }
                if let Concern::BackendTls(_) = &policy.concern {
                    names.extend(policy.targets.iter().filter_map(|target| match &target.on {
                        On::Service(service) => Some(service.to_string().into()),
                        _ => None,
                    }));
                }
                for waypoint in waypoints.iter() {
                    self.need(waypoint, names.clone(), add);
                }
            }
            Emitted::Service(..) | Emitted::Authorization(_) => {}
        }
    }

    fn need(&mut self, waypoint: &Str, names: Vec<Str>, add: bool) {
        self.moved.insert(waypoint.clone());
        for name in names {
            step(&mut self.needed_by, &name, waypoint, add);
            step(&mut self.needs, waypoint, &name, add);
        }
    }

    /// Whether there is such a waypoint.
    pub(super) fn is_known(&self, waypoint: &Str) -> bool {
        self.known.contains_key(waypoint)
    }

    /// Brings the published waypoints up to date; says whether anything moved. `around` knows the endpoints of services.
    pub(super) fn publish(
        &mut self,
        world: &World,
        around: &Around,
        computed: (&Outputs, &Table),
        fronted: &mut Fronted,
    ) -> bool {
        let mut changed = false;
        for name in self.replicas.stale() {
            let identity = identity(&name, world).filter(|_| self.known.contains_key(&name));
            self.replicas.find(&name, identity.as_ref(), world, computed);
        }
        for name in std::mem::take(&mut self.moved) {
            let fronts = self
                .known
                .contains_key(&name)
                .then(|| self.fronts(&name, world, around));
            changed |= fronted.set(&name, fronts.flatten());
        }
        changed
    }

    fn fronts(&self, name: &Str, world: &World, around: &Around) -> Option<Fronts> {
        let identity = identity(name, world)?;
        let mut addresses: BTreeSet<Str> = self.replicas.uids(name).cloned().collect();
        for needed in self.needs.get(name).into_iter().flat_map(BTreeMap::keys) {
            addresses.insert(needed.clone());
            addresses.extend(around.of_service(needed).cloned());
        }
        Some(Fronts {
            identity,
            addresses,
            authorizations: self.replicas.policies(name).collect(),
        })
    }
}

/// The identity that the replicas of `<namespace>/<gateway>` carry.
fn identity(name: &str, world: &World) -> Option<Identity> {
    let (namespace, gateway) = name.split_once('/')?;
    Some(waypoint::identity(
        &NamespacedName::new(namespace, gateway),
        world,
    ))
}

fn step(counts: &mut BTreeMap<Str, Counts>, of: &Str, what: &Str, add: bool) {
    let inner = counts.entry(of.clone()).or_default();
    count(inner, what, add);
    if inner.is_empty() {
        counts.remove(of);
    }
}

fn count(counts: &mut Counts, what: &Str, add: bool) {
    let count = counts.entry(what.clone()).or_default();
    *count = if add { *count + 1 } else { count.saturating_sub(1) };
    if *count == 0 {
        counts.remove(what);
    }
}

fn of_settings(settings: &Settings) -> Vec<Str> {
    let mut names = Vec::new();
    for address in &settings.addresses {
        if let GatewayDestination::Hostname(host) = &address.destination {
            names.push(host.to_string().into());
        }
    }
    for provider in &settings.providers {
        match &provider.kind {
            ProviderKind::ExtAuthz(asked) => of_ask(&asked.ask, &mut names),
            ProviderKind::RateLimit(target) | ProviderKind::Tracing(target) => {
                names.push(target.service.to_string().into());
            }
        }
    }
    names
}

fn of_ask(ask: &Ask, names: &mut Vec<Str>) {
    match ask {
        Ask::Provider(_) => {}
        Ask::Grpc(backend) | Ask::Http { backend, .. } => of_backend(backend, names),
    }
}

fn of_backend(backend: &Backend, names: &mut Vec<Str>) {
    if let BackendTo::Service { service, .. } = &backend.to {
        names.push(service.to_string().into());
    }
    of_filters(&backend.filters, names);
}

fn of_filters(filters: &[Filter], names: &mut Vec<Str>) {
    for filter in filters {
        match filter {
            Filter::Mirror(mirror) => of_backend(&mirror.backend, names),
            Filter::ExtAuthz(asked) => of_ask(&asked.ask, names),
            _ => {}
        }
    }
}
