//! A backend: the endpoints of one port of a service, or one workload, and what is remembered of them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwapOption;
use rand::RngExt;
use tulle_model::policy::applies::{Object, Passed, Place, winner};
use tulle_model::policy::{Concern, On, Policy};
use tulle_model::route::Origin;
use tulle_model::service::AppProtocol;
use tulle_model::upstream::Serving;
use tulle_model::waypoint::{FrontOf, Settings};
use tulle_model::workload::{HealthStatus, Workload};
use tulle_model::{NamespacedHostname, Snapshot, WorkloadUid};

use super::budget::{self, Budget};
use super::cluster::{Ask, Cluster, ClusterPolicy, ClusterState, Pick, Sources, Unit};
use super::metrics::Events;
use super::origination::Origination;
use super::session::SessionPolicy;
use super::via;
use crate::clock::{Clock, Time};

/// What a backend is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BackendKey {
    /// A port of a service.
    Service(NamespacedHostname, u16),
    /// A workload, on the port that is asked for.
    Workload(WorkloadUid),
}

impl BackendKey {
    /// As access lines name it: host and port, or a workload's uid.
    #[must_use]
    pub fn told(&self) -> String {
        match self {
            Self::Service(service, port) => format!("{}:{port}", service.hostname),
            Self::Workload(uid) => uid.0.to_string(),
        }
    }

    /// Whether it is one of these.
    pub(crate) fn is_among(
        &self,
        services: &BTreeSet<NamespacedHostname>,
        objects: &BTreeSet<FrontOf>,
    ) -> bool {
        match self {
            Self::Service(service, _) => {
                services.contains(service) || objects.contains(&FrontOf::Service(service.clone()))
            }
            Self::Workload(uid) => objects.contains(&FrontOf::Workload(uid.clone())),
        }
    }

    fn object(&self) -> (Object<'_>, On) {
        match self {
            Self::Service(service, port) => (Object::Service(service, *port), On::Service(service.clone())),
            // Policies that name no port apply on every one of a workload's.
            Self::Workload(uid) => (Object::Workload(uid, 0), On::Workload(uid.clone())),
        }
    }
}

/// A handle that outlives snapshots: only its endpoints and policies change.
#[derive(Debug)]
pub struct Backend {
    /// What it is.
    pub key: BackendKey,
    /// The route that sends its requests here, where that has policies of its own.
    route: Option<Origin>,
    clock: Clock,
    state: Arc<ClusterState>,
    /// What the requests to it, as the one that was asked for, may spend on retries.
    budget: Budget,
    current: ArcSwapOption<Current>,
    /// Who serves it hangs on more than its service and the workloads of that.
    is_elsewhere: AtomicBool,
}

/// A backend in one snapshot.
#[derive(Debug)]
struct Current {
    cluster: Arc<Cluster>,
    budget: budget::Settings,
    session: Option<SessionPolicy>,
}

impl Backend {
    /// A backend nobody serves yet. What happens to its endpoints is counted in `events`, too.
    #[must_use]
    pub fn new(key: BackendKey, events: Events) -> Self {
        Self {
            key,
            route: None,
            clock: Clock::start(),
            state: Arc::new(ClusterState::new(events)),
            budget: Budget::default(),
            current: ArcSwapOption::empty(),
            is_elsewhere: AtomicBool::new(false),
        }
    }

    /// Whether who serves it may change when neither its service nor the workloads of that do.
    #[must_use]
    pub fn is_elsewhere(&self) -> bool {
        self.is_elsewhere.load(Ordering::Relaxed)
    }

    /// The same backend by the policies of a route. What is remembered of endpoints, and what is counted, is that of the
    /// backend; retries have a budget of their own.
    #[must_use]
    pub fn by_route(&self, route: &Origin) -> Self {
        Self {
            key: self.key.clone(),
            route: Some(route.clone()),
            clock: self.clock,
            state: Arc::clone(&self.state),
            budget: Budget::default(),
            current: ArcSwapOption::empty(),
            is_elsewhere: AtomicBool::new(false),
        }
    }

    /// Whether it is a backend by the policies of a route.
    #[must_use]
    pub fn is_of_route(&self) -> bool {
        self.route.is_some()
    }

    /// What time it is for everything that is remembered here.
    #[must_use]
    pub fn now(&self) -> Time {
        self.clock.now()
    }

    /// Who serves it now; `None` before its service arrived, or when it is gone.
    #[must_use]
    pub fn cluster(&self) -> Option<Arc<Cluster>> {
        let current = self.current.load();
        current.as_ref().map(|current| Arc::clone(&current.cluster))
    }

    /// Looks up who serves it and by which policies, as seen from `own`. What is remembered stays.
    pub fn refresh(&self, mesh: &Snapshot, own: &Workload, settings: &Settings) {
        let (object, on) = self.key.object();
        let name = settings.name();
        let around = [
            on,
            On::Waypoint(name.clone()),
            On::Class(settings.class.clone()),
            On::Mesh,
        ];
        let of_route = self.route.iter().map(on_route);
        let attached: Vec<&Arc<Policy>> = around
            .into_iter()
            .chain(of_route)
            .flat_map(|on| mesh.waypoint_policies_on(&on).collect::<Vec<_>>())
            .collect();
        let place = Place {
            waypoint: Some(Passed {
                name: &name,
                class: &settings.class,
            }),
            object,
            route: self.route.as_ref(),
        };
        let budget = winner(attached.iter().copied(), &place, |concern| match concern {
            Concern::RetryBudget(budget) => Some(budget),
            _ => None,
        });
        let session = winner(attached.iter().copied(), &place, |concern| match concern {
            Concern::Session(session) => Some(session),
            _ => None,
        });
        let next = self
            .cluster_in(mesh, own, policy(&place, &attached))
            .map(|cluster| Current {
                cluster: Arc::new(cluster),
                budget: budget.map(|(_, budget)| budget.into()).unwrap_or_default(),
                session: session.and_then(|(_, session)| SessionPolicy::new(session)),
            });
        self.current.store(next.map(Arc::new));
    }

    fn cluster_in(&self, mesh: &Snapshot, own: &Workload, policy: ClusterPolicy) -> Option<Cluster> {
        let (name, service, ways) = match &self.key {
            BackendKey::Workload(uid) => {
                let workload = Arc::clone(mesh.workload(uid)?);
                let serving = Serving {
                    target_port: 0,
                    rank: 0,
                    healthy: workload.status == HealthStatus::Healthy,
                    workload,
                };
                let ways = via::Ways {
                    all: vec![(serving, None)],
                    ..via::Ways::default()
                };
                (uid.0.clone(), None, ways)
            }
            BackendKey::Service(key, port) => {
                let service = mesh.service(key)?;
                let ways = via::ways(mesh, own, service, *port);
                (format!("{key}:{port}").into(), Some(service), ways)
            }
        };
        let declared = match (&self.key, service) {
            (BackendKey::Service(_, port), Some(service)) => {
                service.ports.get(port).map(|port| port.app_protocol)
            }
            _ => None,
        };
        let unit = match declared {
            Some(AppProtocol::Tcp | AppProtocol::Tls) => Unit::Connections,
            _ => Unit::Requests,
        };
        self.is_elsewhere.store(ways.is_elsewhere, Ordering::Relaxed);
        let (serving, via): (Vec<_>, Vec<_>) = ways.all.into_iter().unzip();
        let sources = Sources {
            here: own,
            name,
            service,
            serving: &serving,
            via: &via,
            shares: &ways.shares,
            policy,
            unit,
        };
        Some(Cluster::new(sources, &self.state, self.now()))
    }

    /// Picks an endpoint; `None` if nobody serves it.
    #[must_use]
    pub fn pick(&self, ask: &Ask<'_>) -> Option<Pick> {
        let cluster = self.cluster()?;
        let mut random = rand::rng();
        cluster.pick(ask, &mut |n| random.random_range(0..n))
    }

    /// A request asks for this backend: it adds to what may be spent on retries.
    pub fn count_request(&self) {
        if let Some(current) = &*self.current.load() {
            self.budget.request(&current.budget, self.now());
        }
    }

    /// Whether one more retry may be made for requests that ask for this backend.
    #[must_use]
    pub fn may_retry(&self) -> bool {
        let current = self.current.load();
        let settings = current.as_ref().map(|current| current.budget).unwrap_or_default();
        self.budget.retry(&settings, self.now())
    }

    /// How sessions are kept where no route says it.
    #[must_use]
    pub fn session(&self) -> Option<SessionPolicy> {
        self.current.load().as_ref()?.session.clone()
    }

    /// The share of the retry budget that is spent.
    #[must_use]
    pub fn budget_ratio(&self) -> f64 {
        let current = self.current.load();
        let settings = current.as_ref().map(|current| current.budget).unwrap_or_default();
        self.budget.ratio(&settings, self.now())
    }
}

/// What policies of a route are attached to.
#[must_use]
pub fn on_route(route: &Origin) -> On {
    On::Route {
        kind: route.kind,
        namespace: route.namespace.clone(),
        name: route.name.clone(),
    }
}

/// Whether a route has policies of its own that say something of tries and endpoints.
#[must_use]
pub fn has_own(route: &Origin, mesh: &Snapshot) -> bool {
    let place = Place {
        route: Some(route),
        ..Place::default()
    };
    let decides = |policy: &&Arc<Policy>| {
        let says = matches!(
            policy.concern,
            Concern::LoadBalancing(_)
                | Concern::Outlier(_)
                | Concern::Circuit(_)
                | Concern::RetryBudget(_)
                | Concern::Session(_)
                | Concern::BackendTls(_)
        );
        says && policy.rank(&place).is_some()
    };
    mesh.waypoint_policies_on(&on_route(route))
        .any(|policy| decides(&policy))
}

fn policy(place: &Place<'_>, attached: &[&Arc<Policy>]) -> ClusterPolicy {
    let balancing = winner(attached.iter().copied(), place, |concern| match concern {
        Concern::LoadBalancing(balancing) => Some(balancing),
        _ => None,
    });
    let outlier = winner(attached.iter().copied(), place, |concern| match concern {
        Concern::Outlier(outlier) => Some(outlier),
        _ => None,
    });
    let circuit = winner(attached.iter().copied(), place, |concern| match concern {
        Concern::Circuit(circuit) => Some(circuit),
        _ => None,
    });
    let tls = winner(attached.iter().copied(), place, |concern| match concern {
        Concern::BackendTls(tls) => Some(tls),
        _ => None,
    });
    ClusterPolicy {
        balancing: balancing
            .map(|(_, balancing)| balancing.clone())
            .unwrap_or_default(),
        outlier: outlier.map(|(_, outlier)| outlier.into()),
        limits: circuit.map(|(_, circuit)| circuit.into()).unwrap_or_default(),
        tls: tls.map(|(_, tls)| Arc::new(Origination::new(tls))),
    }
}
