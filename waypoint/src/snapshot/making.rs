//! Makes the state of a front: its ports with their routes, rules, policies and backends.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Weak};

use tulle_model::policy::applies::{Object, Passed, Place};
use tulle_model::policy::{Concern, On, Policy};
use tulle_model::route::{Kind, ParentTo, PortRoutes, Route};
use tulle_model::service::{AppProtocol, Service};
use tulle_model::waypoint::{Front, FrontOf, Settings};
use tulle_model::workload::Workload;
use tulle_model::{NamespacedHostname, Snapshot as MeshSnapshot, Str};

use super::front::{FrontState, Fronted, PortPolicies, PortState};
use crate::http::rule::Rule;
use crate::metrics::Metrics;
use crate::policy::rules::{self, Limiters, Rules};
use crate::upstream::backend::{self, Backend, BackendKey, on_route};
use crate::upstream::metrics::UpstreamMetrics;

/// What outlives snapshots: backends and limits that something still refers to.
#[derive(Debug)]
pub(super) struct Kept {
    /// Their endpoints and what was learnt of them.
    backends: HashMap<Known, Weak<Backend>>,
    pub(super) limiters: Limiters,
    metrics: UpstreamMetrics,
}

/// What a backend is known by: what it is, and the rule whose policies it goes by, if that has some.
type Known = (BackendKey, Option<RuleOf>);
/// What logs call the rule, and the name that policies call it by.
type RuleOf = (Str, Str);

impl Kept {
    pub(super) fn new(metrics: &Metrics) -> Self {
        Self {
            backends: HashMap::new(),
            limiters: Limiters::new(metrics.policies.clone()),
            metrics: metrics.upstream.clone(),
        }
    }

    /// Looks up anew who serves the backends that a change concerns, and forgets those that nobody has.
    pub(super) fn refresh(
        &mut self,
        (mesh, own, settings): (&MeshSnapshot, &Workload, &Settings),
        concerns: impl Fn(&BackendKey) -> bool,
    ) {
        self.backends.retain(|(key, _), backend| {
            let backend = backend.upgrade();
            let elsewhere = |backend: &&Arc<Backend>| concerns(key) || backend.is_elsewhere();
            if let Some(backend) = backend.as_ref().filter(elsewhere) {
                backend.refresh(mesh, own, settings);
            }
            backend.is_some()
        });
    }
}

/// What a front is made from.
pub(super) struct Making<'a> {
    pub(super) mesh: &'a MeshSnapshot,
    pub(super) settings: &'a Settings,
    pub(super) own: &'a Workload,
    /// The front as it was: what is the same is not made again.
    pub(super) last: Option<&'a FrontState>,
    pub(super) kept: &'a mut Kept,
}

impl Making<'_> {
    /// `None` until the object itself has arrived.
    pub(super) fn front(&mut self, front: &Arc<Front>) -> Option<FrontState> {
        let policies = front.required_policies.iter();
        let policies = policies.filter(|name| self.mesh.waypoint_policy(name).is_none());
        let routes = front.required_routes.iter();
        let routes = routes.filter(|name| self.mesh.waypoint_route(name).is_none());
        let missing = policies.chain(routes).cloned().collect();
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
                    compiled: Vec::new(),
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
            let (rules, compiled) = self.rules(&key, *port, &routes);
            let state = PortState {
                protocol: declared.app_protocol,
                is_http: routes.iter().any(reads) || reads_requests(security, Some(*port)),
                policies: self.policies(security, Object::Service(&key, *port), &routes),
                rules,
                compiled,
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
                compiled: Vec::new(),
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
    ) -> (PortRoutes<Arc<Rule>>, Vec<Arc<Rule>>) {
        let last = self.last.and_then(|last| last.port(port)).cloned();
        // A rule whose route is the same object, and had none and has no policies of its own, is the same rule.
        let before: HashMap<&Str, &Arc<Rule>> = last
            .iter()
            .flat_map(|last| &last.compiled)
            .map(|rule| (&rule.name, rule))
            .collect();
        let mut compiled = Vec::with_capacity(routes.len());
        let rules = PortRoutes::compile(service, port, routes, |route| {
            let own = backend::has_own(&route.origin, self.mesh);
            let same = before
                .get(&route.name())
                .filter(|rule| Arc::ptr_eq(&rule.route, route));
            let rule = match same.filter(|rule| !own && rule.parent.is_none()) {
                Some(rule) => Arc::clone(rule),
                None => {
                    let by = own.then_some(&**route);
                    let parent = by.map(|_| self.backend_by(BackendKey::Service(service.clone(), port), by));
                    Rule::compile(route, parent, |backend, port| {
                        self.backend_by(BackendKey::Service(backend.clone(), port), by)
                    })
                }
            };
            compiled.push(Arc::clone(&rule));
            rule
        });
        (rules, compiled)
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
        let mut policies: BTreeMap<Str, Arc<Policy>> = BTreeMap::new();
        let attached = own.iter().chain(&around);
        let attached = attached.flat_map(|on| self.mesh.waypoint_policies_on(on));
        // A policy that names several of these places is found at each.
        for policy in security.iter().chain(attached) {
            policies
                .entry(policy.name())
                .or_insert_with(|| Arc::clone(policy));
        }
        let policies: Vec<_> = policies.into_values().collect();
        let mut tokens: BTreeSet<Str> = token_params(&policies).collect();
        let place = Place {
            waypoint: Some(Passed {
                name: &waypoint,
                class: &self.settings.class,
            }),
            object,
            route: None,
        };
        let providers = &self.settings.providers;
        let limiters = &mut self.kept.limiters;
        let mut compile = |policies: &[Arc<Policy>], place: &Place<'_>, route: Option<&Route>| {
            Arc::new(Rules::compile(policies, place, route, providers, limiters))
        };
        let alone = Place {
            waypoint: None,
            ..place
        };
        let mut of_routes = BTreeMap::new();
        for route in routes {
            let mut all: Vec<_> = self
                .mesh
                .waypoint_policies_on(&on_route(&route.origin))
                .cloned()
                .collect();
            if !rules::has_own(route, &all) {
                continue;
            }
            tokens.extend(token_params(&all));
            all.retain(|policy| !policies.iter().any(|one| Arc::ptr_eq(one, policy)));
            all.extend(policies.iter().cloned());
            let place = Place {
                route: Some(&route.origin),
                ..place
            };
            of_routes.insert(route.name(), compile(&all, &place, Some(route)));
        }
        PortPolicies {
            every: compile(&policies, &place, None),
            as_backend: compile(&policies, &alone, None),
            of_routes,
            token_params: tokens.into_iter().collect(),
        }
    }

    fn backend(&mut self, key: BackendKey) -> Arc<Backend> {
        self.backend_by(key, None)
    }

    /// A backend, by the policies of this route if it has some.
    fn backend_by(&mut self, key: BackendKey, route: Option<&Route>) -> Arc<Backend> {
        let rule_of = |route: &Route| (route.name(), route.origin.rule_name.clone());
        let known = (key, route.map(rule_of));
        if let Some(backend) = self.kept.backends.get(&known).and_then(Weak::upgrade) {
            return backend;
        }
        let backend = match route {
            Some(route) => self.backend(known.0.clone()).by_route(&route.origin),
            None => Backend::new(known.0.clone(), self.kept.metrics.events.clone()),
        };
        let backend = Arc::new(backend);
        backend.refresh(self.mesh, self.own, self.settings);
        self.kept.metrics.watch(&backend);
        self.kept.backends.insert(known, Arc::downgrade(&backend));
        backend
    }
}

/// The parameters that policies say tokens stand in, those among them that are only tried.
fn token_params(policies: &[Arc<Policy>]) -> impl Iterator<Item = Str> {
    let rules = policies.iter().filter_map(|policy| match &policy.concern {
        Concern::Jwt(jwt) => Some(&jwt.rules),
        _ => None,
    });
    rules.flatten().flat_map(|rule| rule.from_params.iter().cloned())
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
