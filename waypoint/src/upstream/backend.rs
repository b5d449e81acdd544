//! A backend: the endpoints of one port of a service, or one workload, and how loaded they are.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arc_swap::ArcSwap;
use rand::RngExt;
use tulle_model::service::{HealthPolicy, Service};
use tulle_model::waypoint::FrontOf;
use tulle_model::workload::{HealthStatus, TunnelProtocol, Workload};
use tulle_model::{Identity, NamespacedHostname, Snapshot, WorkloadUid};

/// What a backend is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BackendKey {
    /// A port of a service.
    Service(NamespacedHostname, u16),
    /// A workload, on the port that is asked for.
    Workload(WorkloadUid),
}

impl BackendKey {
    /// Whether it is one of these.
    pub(crate) fn is_among(
        &self,
        services: &BTreeSet<NamespacedHostname>,
        objects: &BTreeSet<FrontOf>,
    ) -> bool {
        match self {
            Self::Service(service, _) => services.contains(service),
            Self::Workload(uid) => objects.contains(&FrontOf::Workload(uid.clone())),
        }
    }
}

/// A handle that outlives snapshots: only its endpoints change.
#[derive(Debug)]
pub struct Backend {
    /// What it is.
    pub key: BackendKey,
    endpoints: ArcSwap<Endpoints>,
}

/// Who serves a backend now.
#[derive(Debug, Default)]
pub struct Endpoints {
    /// The service, as it is now; `None` for a workload, or before it arrived.
    pub service: Option<Arc<Service>>,
    /// Those that take new requests.
    pub usable: Vec<Arc<Endpoint>>,
}

/// A workload that serves a backend.
#[derive(Debug)]
pub struct Endpoint {
    /// The workload.
    pub workload: Arc<Workload>,
    /// Its own port; `None` is the one that is asked for.
    pub target_port: Option<u16>,
    /// The identities it may prove: its own, and those its service allows.
    pub expected: BTreeSet<Identity>,
    /// Requests and streams at it now, from this process. Later descriptions of the same workload count on.
    pub load: Arc<AtomicU32>,
}

impl Endpoint {
    /// Where it is, for somebody who asked for this address.
    #[must_use]
    pub fn address(&self, asked: SocketAddr) -> Option<SocketAddr> {
        let port = self.target_port.unwrap_or_else(|| asked.port());
        let addresses = &self.workload.addresses;
        // The family that was asked for, if there is a choice.
        let same = addresses.iter().find(|ip| ip.is_ipv4() == asked.is_ipv4());
        let ip = same.or_else(|| addresses.first())?;
        Some(SocketAddr::new(*ip, port))
    }

    /// Whether it is reached by a tunnel.
    #[must_use]
    pub fn is_tunnelled(&self) -> bool {
        self.workload.tunnel_protocol == TunnelProtocol::Hbone
    }

    /// Counts a request at it, for as long as the guard lives.
    #[must_use]
    pub fn begin(self: &Arc<Self>) -> InFlight {
        self.load.fetch_add(1, Ordering::Relaxed);
        InFlight(Arc::clone(&self.load))
    }
}

/// A request that runs at an endpoint.
#[derive(Debug)]
pub struct InFlight(Arc<AtomicU32>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Backend {
    /// A backend nobody serves yet.
    #[must_use]
    pub fn new(key: BackendKey) -> Self {
        Self {
            key,
            endpoints: ArcSwap::default(),
        }
    }

    /// Who serves it now.
    #[must_use]
    pub fn endpoints(&self) -> Arc<Endpoints> {
        self.endpoints.load_full()
    }

    /// Looks up who serves it, as seen from `own`. Who served it before keeps its load.
    pub fn refresh(&self, mesh: &Snapshot, own: &Workload) {
        let before = self.endpoints.load();
        let loads: HashMap<&WorkloadUid, &Arc<AtomicU32>> = before
            .usable
            .iter()
            .map(|endpoint| (&endpoint.workload.uid, &endpoint.load))
            .collect();
        let load = |workload: &Workload| {
            loads
                .get(&workload.uid)
                .map(|load| Arc::clone(load))
                .unwrap_or_default()
        };
        let next = match &self.key {
            BackendKey::Workload(uid) => Endpoints {
                service: None,
                usable: mesh
                    .workload(uid)
                    .map(|workload| Endpoint {
                        target_port: None,
                        expected: [workload.identity()].into(),
                        load: load(workload),
                        workload: Arc::clone(workload),
                    })
                    .map(Arc::new)
                    .into_iter()
                    .collect(),
            },
            BackendKey::Service(key, port) => {
                let service = mesh.service(key).cloned();
                let usable = service.as_ref().map(|service| {
                    let serving = mesh
                        .endpoints(key)
                        .filter_map(|workload| usable(service, *port, own, workload));
                    serving
                        .map(|(workload, target_port)| Endpoint {
                            target_port: Some(target_port),
                            expected: expected(&workload, service),
                            load: load(&workload),
                            workload,
                        })
                        .map(Arc::new)
                        .collect()
                });
                Endpoints {
                    service,
                    usable: usable.unwrap_or_default(),
                }
            }
        };
        drop(before);
        self.endpoints.store(Arc::new(next));
    }

    /// Picks the less loaded of two endpoints drawn at random, among those that were not tried.
    #[must_use]
    pub fn pick(&self, tried: &[WorkloadUid]) -> Option<Arc<Endpoint>> {
        let endpoints = self.endpoints.load();
        if tried.is_empty() {
            let all = &endpoints.usable;
            return less_loaded(all.len(), |at| &all[at]).map(Arc::clone);
        }
        let fresh = |endpoint: &&Arc<Endpoint>| !tried.contains(&endpoint.workload.uid);
        let rest: Vec<&Arc<Endpoint>> = endpoints.usable.iter().filter(fresh).collect();
        less_loaded(rest.len(), |at| rest[at]).map(Arc::clone)
    }
}

fn less_loaded<'a>(count: usize, at: impl Fn(usize) -> &'a Arc<Endpoint>) -> Option<&'a Arc<Endpoint>> {
    let load = |endpoint: &Arc<Endpoint>| {
        let capacity = endpoint.workload.capacity.max(1);
        f64::from(endpoint.load.load(Ordering::Relaxed) + 1) / f64::from(capacity)
    };
    match count {
        0 => None,
        1 => Some(at(0)),
        _ => {
            let mut random = rand::rng();
            let first = random.random_range(0..count);
            let mut second = random.random_range(0..count - 1);
            if second >= first {
                second += 1;
            }
            let (one, other) = (at(first), at(second));
            Some(if load(other) < load(one) { other } else { one })
        }
    }
}

/// The workload and its own port, if it takes requests for the service.
fn usable(
    service: &Service,
    port: u16,
    own: &Workload,
    workload: Arc<Workload>,
) -> Option<(Arc<Workload>, u16)> {
    let health = service.load_balancing.as_ref().map(|policy| policy.health_policy);
    let healthy = workload.status == HealthStatus::Healthy || health == Some(HealthPolicy::AllowAll);
    if !healthy || workload.capacity == 0 || workload.addresses.is_empty() || workload.network != own.network
    {
        return None;
    }
    let mapped = workload
        .services
        .get(&service.key())
        .and_then(|ports| ports.get(&port))
        .copied();
    let common = service.ports.get(&port).and_then(|facts| facts.target_port);
    mapped.or(common).map(|target_port| (workload, target_port))
}

fn expected(workload: &Workload, service: &Service) -> BTreeSet<Identity> {
    let further = service.subject_alt_names.iter().cloned();
    std::iter::once(workload.identity()).chain(further).collect()
}
