//! Builds the next snapshot, off the path of requests: what a change did not concern keeps its state.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Weak};

use futures_util::FutureExt;
use tulle_model::gateway::GatewayDestination;
use tulle_model::policy::applies::{Object, Passed, Place};
use tulle_model::policy::{On, Policy};
use tulle_model::route::{Kind, ParentTo, PortRoutes, Route};
use tulle_model::service::{AppProtocol, Service};
use tulle_model::waypoint::{Front, FrontOf, Settings};
use tulle_model::workload::{HealthStatus, Locality, NetworkMode, TunnelProtocol, Workload, WorkloadType};
use tulle_model::{Changes, NamespacedHostname, Snapshot as MeshSnapshot, Str};
use tulle_xds_client::MeshState;
use tulle_xds_client::state::ChangeStream;

use super::front::{FrontState, Fronted, PortPolicies, PortState};
use super::{Fronts, Snapshot, View};
use crate::config::Config;
use crate::http::rule::Rule;
use crate::policy::rules::{self, Limiters, Rules};
use crate::upstream::backend::{Backend, BackendKey};

/// Keeps the newest snapshot what configuration says.
#[derive(Debug)]
pub struct Builder {
    mesh: MeshState,
    changes: ChangeStream,
    view: View,
    me: Me,
    /// Backends that something still refers to. Their endpoints and what was learnt of them outlive snapshots.
    backends: HashMap<BackendKey, Weak<Backend>>,
    limiters: Limiters,
}

/// What the process itself knows of where it is.
#[derive(Debug, Clone)]
struct Me {
    namespace: Str,
    gateway: Str,
    service_account: Str,
    pod_name: Str,
    trust_domain: Str,
    network: Str,
    node: Str,
    cluster_id: Str,
}

/// What has to be built anew.
#[derive(Debug, Default)]
struct Affected {
    everything: bool,
    objects: BTreeSet<FrontOf>,
    services: BTreeSet<NamespacedHostname>,
}

impl Builder {
    /// Builds the first snapshot from what is known now.
    #[must_use]
    pub fn new(config: &Config, mesh: MeshState) -> Self {
        // Before the first look, so that no change is missed.
        let changes = mesh.changes();
        let me = Me {
            namespace: config.namespace.clone(),
            gateway: config.gateway.clone(),
            service_account: config.service_account.clone(),
            pod_name: config.pod_name.clone(),
            trust_domain: config.trust_domain.clone(),
            network: config.network.clone(),
            node: config.node.clone(),
            cluster_id: config.cluster_id.clone(),
        };
        let current = mesh.snapshot();
        let mut backends = HashMap::new();
        let all = Affected {
            everything: true,
            ..Affected::default()
        };
        let mut limiters = Limiters::default();
        let first = build(&me, (&mut backends, &mut limiters), current, None, &all);
        Self {
            mesh,
            changes,
            view: View::new(first),
            me,
            backends,
            limiters,
        }
    }

    /// Where snapshots are put.
    #[must_use]
    pub fn view(&self) -> View {
        self.view.clone()
    }

    /// Builds after every change, for as long as the process lives. Changes that wait are taken together.
    pub async fn follow(mut self) {
        while let Some(first) = self.changes.next().await {
            let before = self.view.load();
            let after = self.mesh.snapshot();
            let mut affected = Affected::default();
            affected.add(&first, &before.mesh, &after);
            while let Some(Some(more)) = self.changes.next().now_or_never() {
                affected.add(&more, &before.mesh, &after);
            }
            let next = build(
                &self.me,
                (&mut self.backends, &mut self.limiters),
                after,
                Some(&before),
                &affected,
            );
            self.view.store(next);
        }
    }
}

impl Affected {
    /// Walks from what changed to the fronts and backends it concerns, as they were and as they are.
    fn add(&mut self, changes: &Changes, before: &MeshSnapshot, after: &MeshSnapshot) {
        let broad = |on: &On| !matches!(on, On::Service(_) | On::Workload(_));
        self.everything |= changes.everything || changes.settings || changes.policies_on.iter().any(broad);
        self.services.extend(changes.services.iter().cloned());
        for uid in &changes.workloads {
            self.objects.insert(FrontOf::Workload(uid.clone()));
            for mesh in [before, after] {
                let of = mesh.workload(uid).into_iter();
                self.services
                    .extend(of.flat_map(|workload| workload.services.keys().cloned()));
            }
        }
        self.objects.extend(changes.fronts.iter().cloned());
        self.objects
            .extend(changes.services.iter().cloned().map(FrontOf::Service));
        self.objects
            .extend(changes.routes_of.iter().cloned().map(FrontOf::Service));
        for on in &changes.policies_on {
            match on {
                On::Service(service) => drop(self.objects.insert(FrontOf::Service(service.clone()))),
                On::Workload(uid) => drop(self.objects.insert(FrontOf::Workload(uid.clone()))),
                _ => {}
            }
        }
        if !changes.waypoint_policies.is_empty() {
            let named = |front: &&Arc<Front>| {
                let mut required = front.required_policies.iter();
                required.any(|name| changes.waypoint_policies.binary_search(name).is_ok())
            };
            let waiting = after.fronts().filter(named);
            self.objects.extend(waiting.map(|front| front.object.clone()));
        }
    }

    fn concerns(&self, object: &FrontOf) -> bool {
        self.everything || self.objects.contains(object)
    }
}

fn build(
    me: &Me,
    (backends, limiters): (&mut HashMap<BackendKey, Weak<Backend>>, &mut Limiters),
    mesh: Arc<MeshSnapshot>,
    before: Option<&Snapshot>,
    affected: &Affected,
) -> Snapshot {
    let settings = settings(me, &mesh);
    let own = own(me, &mesh);
    backends.retain(|_, backend| backend.strong_count() > 0);
    for (key, backend) in backends.iter() {
        let Some(backend) = backend.upgrade() else {
            continue;
        };
        let among = key.is_among(&affected.services, &affected.objects);
        if affected.everything || among || backend.is_elsewhere() {
            backend.refresh(&mesh, &own, &settings);
        }
    }
    limiters.refresh(ready_replicas(&settings, &mesh));
    let mut fronts = Fronts::default();
    for front in mesh.fronts() {
        let object = &front.object;
        let kept = before
            .and_then(|before| before.front(object))
            .filter(|_| !affected.concerns(object));
        let state = kept.map(Arc::clone).or_else(|| {
            let mut making = Making {
                mesh: &mesh,
                settings: &settings,
                own: &own,
                backends,
                limiters,
            };
            making.front(front).map(Arc::new)
        });
        fronts.extend(state.map(|state| (object.clone(), state)));
    }
    Snapshot {
        mesh,
        settings,
        own,
        fronts,
    }
}

/// What a front is made from.
struct Making<'a> {
    mesh: &'a MeshSnapshot,
    settings: &'a Settings,
    own: &'a Workload,
    backends: &'a mut HashMap<BackendKey, Weak<Backend>>,
    limiters: &'a mut Limiters,
}

impl Making<'_> {
    /// `None` until the object itself has arrived.
    fn front(&mut self, front: &Arc<Front>) -> Option<FrontState> {
        let required = front.required_policies.iter();
        let missing = required
            .filter(|name| self.mesh.waypoint_policy(name).is_none())
            .cloned()
            .collect();
        let security = self.security(&front.object);
        let (object, ports, any_port) = match &front.object {
            FrontOf::Service(key) => {
                let service = self.mesh.service(key)?;
                let ports = self.ports_of_service(service, &security);
                (Fronted::Service(Arc::clone(service)), ports, None)
            }
            FrontOf::Workload(uid) => {
                let workload = self.mesh.workload(uid)?;
                let ports = self.ports_of_workload(workload, &security);
                let backend = self.backend(BackendKey::Workload(uid.clone()));
                let any = PortState {
                    protocol: AppProtocol::Unknown,
                    is_http: reads_requests(&security, None),
                    policies: self.policies(&security, Object::Workload(uid, 0), &[]),
                    routes: Vec::new(),
                    rules: PortRoutes::default(),
                    backend,
                };
                (
                    Fronted::Workload(Arc::clone(workload)),
                    ports,
                    Some(Arc::new(any)),
                )
            }
        };
        let front = Arc::clone(front);
        Some(FrontState::new(front, object, missing, security, ports, any_port))
    }

    fn ports_of_service(
        &mut self,
        service: &Arc<Service>,
        security: &[Arc<Policy>],
    ) -> BTreeMap<u16, Arc<PortState>> {
        let key = service.key();
        let mut ports = BTreeMap::new();
        for (port, declared) in &service.ports {
            let routes = self.routes(&key, *port);
            let reads = |route: &Arc<Route>| matches!(route.origin.kind, Kind::Http | Kind::Grpc);
            let state = PortState {
                protocol: declared.app_protocol,
                is_http: routes.iter().any(reads) || reads_requests(security, Some(*port)),
                policies: self.policies(security, Object::Service(&key, *port), &routes),
                rules: self.rules(&key, *port, &routes),
                routes,
                backend: self.backend(BackendKey::Service(key.clone(), *port)),
            };
            ports.insert(*port, Arc::new(state));
        }
        ports
    }

    /// A workload speaks on its ports what the services it serves declare for them.
    fn ports_of_workload(
        &mut self,
        workload: &Workload,
        security: &[Arc<Policy>],
    ) -> BTreeMap<u16, Arc<PortState>> {
        let mut declared = BTreeMap::new();
        for (key, own) in &workload.services {
            let Some(service) = self.mesh.service(key) else {
                continue;
            };
            for (port, facts) in &service.ports {
                let target = own.get(port).copied().or(facts.target_port);
                if let Some(target) = target {
                    declared.entry(target).or_insert(facts.app_protocol);
                }
            }
        }
        let backend = self.backend(BackendKey::Workload(workload.uid.clone()));
        let state = |(port, protocol): (u16, AppProtocol)| {
            let state = PortState {
                protocol,
                is_http: reads_requests(security, Some(port)),
                policies: self.policies(security, Object::Workload(&workload.uid, port), &[]),
                routes: Vec::new(),
                rules: PortRoutes::default(),
                backend: Arc::clone(&backend),
            };
            (port, Arc::new(state))
        };
        declared.into_iter().map(state).collect()
    }

    fn routes(&self, service: &NamespacedHostname, port: u16) -> Vec<Arc<Route>> {
        let here = |route: &&Arc<Route>| {
            route.parents.iter().any(|parent| {
                matches!(&parent.to, ParentTo::Service(to) if to == service)
                    && parent.port.is_none_or(|only| only == port)
            })
        };
        self.mesh.routes_of(service).filter(here).cloned().collect()
    }

    fn rules(
        &mut self,
        service: &NamespacedHostname,
        port: u16,
        routes: &[Arc<Route>],
    ) -> PortRoutes<Arc<Rule>> {
        PortRoutes::compile(service, port, routes, |route| {
            Rule::compile(route, |backend, port| {
                self.backend(BackendKey::Service(backend.clone(), port))
            })
        })
    }

    /// What decides about security at an object: attached to it, to this waypoint, to its class, or to the mesh.
    fn security(&self, object: &FrontOf) -> Vec<Arc<Policy>> {
        let own = match object {
            FrontOf::Service(service) => On::Service(service.clone()),
            FrontOf::Workload(uid) => On::Workload(uid.clone()),
        };
        let places = [
            own,
            On::Waypoint(self.settings.name()),
            On::Class(self.settings.class.clone()),
            On::Mesh,
        ];
        let attached = places.iter().flat_map(|on| self.mesh.waypoint_policies_on(on));
        attached
            .filter(|policy| policy.concern.is_security())
            .cloned()
            .collect()
    }

    /// Compiles what applies on a port: of the object itself, of the waypoint, and of each route with policies of its
    /// own.
    fn policies(
        &mut self,
        security: &[Arc<Policy>],
        object: Object<'_>,
        routes: &[Arc<Route>],
    ) -> PortPolicies {
        let own = match object {
            Object::Service(service, _) => Some(On::Service(service.clone())),
            Object::Workload(uid, _) => Some(On::Workload(uid.clone())),
            Object::Unnamed => None,
        };
        let waypoint = self.settings.name();
        let around = [
            On::Waypoint(waypoint.clone()),
            On::Class(self.settings.class.clone()),
            On::Mesh,
        ];
        let of_routes = routes.iter().map(|route| On::Route {
            kind: route.origin.kind,
            namespace: route.origin.namespace.clone(),
            name: route.origin.name.clone(),
        });
        let places = own.into_iter().chain(around).chain(of_routes);
        let attached = places.flat_map(|on| self.mesh.waypoint_policies_on(&on).cloned().collect::<Vec<_>>());
        // A policy that names several of these places is found at each.
        let mut policies: BTreeMap<Str, Arc<Policy>> = BTreeMap::new();
        for policy in security.iter().cloned().chain(attached) {
            policies.entry(policy.name()).or_insert(policy);
        }
        let policies: Vec<_> = policies.into_values().collect();
        let place = Place {
            waypoint: Some(Passed {
                name: &waypoint,
                class: &self.settings.class,
            }),
            object,
            route: None,
        };
        let providers = &self.settings.providers;
        let mut compile = |place: &Place<'_>, route: Option<&Route>| {
            Arc::new(Rules::compile(&policies, place, route, providers, self.limiters))
        };
        let alone = Place {
            waypoint: None,
            ..place
        };
        let of_routes = routes.iter().filter(|route| rules::has_own(route, &policies));
        PortPolicies {
            every: compile(&place, None),
            as_backend: compile(&alone, None),
            of_routes: of_routes
                .map(|route| {
                    let place = Place {
                        route: Some(&route.origin),
                        ..place
                    };
                    (route.name(), compile(&place, Some(route)))
                })
                .collect(),
        }
    }

    fn backend(&mut self, key: BackendKey) -> Arc<Backend> {
        if let Some(backend) = self.backends.get(&key).and_then(Weak::upgrade) {
            return backend;
        }
        let backend = Arc::new(Backend::new(key.clone()));
        backend.refresh(self.mesh, self.own, self.settings);
        self.backends.insert(key, Arc::downgrade(&backend));
        backend
    }
}

/// Whether a policy reads requests on a port, so that its bytes must not pass unread.
fn reads_requests(security: &[Arc<Policy>], port: Option<u16>) -> bool {
    let here = |policy: &Arc<Policy>| {
        let mut targets = policy.targets.iter();
        // A policy that cannot be understood lets nobody pass, whatever is spoken.
        policy.concern.reads_requests() && targets.any(|target| target.port.is_none() || target.port == port)
    };
    security.iter().any(here)
}

/// Replicas of the waypoint that take requests, as far as its own service tells; at least this one.
fn ready_replicas(settings: &Settings, mesh: &MeshSnapshot) -> u32 {
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

/// Settings until the control plane says some: nothing is in front of anything yet, so nothing hangs on them.
fn settings(me: &Me, mesh: &MeshSnapshot) -> Arc<Settings> {
    let own =
        |settings: &&Arc<Settings>| settings.namespace == me.namespace && settings.gateway == me.gateway;
    let found = mesh.waypoint_settings().find(own);
    if let Some(found) = found.or_else(|| mesh.waypoint_settings().next()) {
        return Arc::clone(found);
    }
    Arc::new(Settings {
        namespace: me.namespace.clone(),
        gateway: me.gateway.clone(),
        class: "".into(),
        addresses: Vec::new(),
        scope: tulle_model::waypoint::Scope::default(),
        source_identity: tulle_model::waypoint::SourceIdentity::default(),
        path_normalization: tulle_model::waypoint::PathNormalization::default(),
        limits: tulle_model::waypoint::Limits::default(),
        telemetry: tulle_model::waypoint::Telemetry::default(),
        providers: Vec::new(),
        gateway_identities: Vec::new(),
        forward_client_cert: false,
    })
}

/// The waypoint's own workload: as the control plane describes it, else as far as the process knows itself.
fn own(me: &Me, mesh: &MeshSnapshot) -> Arc<Workload> {
    if let Some(found) = mesh.workload_by_name(&me.namespace, &me.pod_name, &me.service_account) {
        return found;
    }
    Arc::new(Workload {
        uid: tulle_model::WorkloadUid("".into()),
        name: me.pod_name.clone(),
        namespace: me.namespace.clone(),
        trust_domain: me.trust_domain.clone(),
        service_account: me.service_account.clone(),
        addresses: Vec::new(),
        network: me.network.clone(),
        hostname: "".into(),
        tunnel_protocol: TunnelProtocol::Hbone,
        network_mode: NetworkMode::Standard,
        native_tunnel: true,
        waypoint: None,
        network_gateway: None,
        application_tunnel: None,
        node: me.node.clone(),
        cluster_id: me.cluster_id.clone(),
        locality: Locality::default(),
        authorization_policies: Vec::new(),
        services: BTreeMap::new(),
        status: HealthStatus::Healthy,
        capacity: 1,
        workload_type: WorkloadType::default(),
        workload_name: me.gateway.clone(),
        canonical_name: me.gateway.clone(),
        canonical_revision: "".into(),
        extensions: BTreeMap::new(),
    })
}
