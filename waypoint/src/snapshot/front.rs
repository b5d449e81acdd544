//! What the waypoint stands in front of, compiled: one state per front, one per port of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use tulle_model::policy::Policy;
use tulle_model::request::Source;
use tulle_model::route::{PortRoutes, Route};
use tulle_model::service::{AppProtocol, Service};
use tulle_model::waypoint::{Front, FrontOf};
use tulle_model::{Str, Workload};

use crate::http::rule::Rule;
use crate::policy::rules::Rules;
use crate::telemetry::target::Params;
use crate::upstream::backend::Backend;

/// What is fronted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fronted {
    /// A service.
    Service(Arc<Service>),
    /// A workload, reached by its own address.
    Workload(Arc<Workload>),
}

/// One front with everything that applies to it.
#[derive(Debug)]
pub struct FrontState {
    /// As the control plane says it.
    pub front: Arc<Front>,
    /// What it is in front of.
    pub object: Fronted,
    /// Required policies that have not arrived; while there is one, nobody passes.
    pub missing: Vec<Str>,
    /// Policies that decide about security and apply here, whatever the port.
    pub security: Vec<Arc<Policy>>,
    ports: BTreeMap<u16, Arc<PortState>>,
    /// For ports nobody has declared: those of a workload.
    any_port: Option<Arc<PortState>>,
}

/// One port of a front.
#[derive(Debug)]
pub struct PortState {
    /// What is spoken on it, as declared.
    pub protocol: AppProtocol,
    /// Whether something that applies to it reads requests, so that it is HTTP whatever its first bytes look like.
    pub is_http: bool,
    /// The routes that name it as their parent.
    pub routes: Vec<Arc<Route>>,
    /// The same, compiled for each class of callers.
    pub rules: PortRoutes<Arc<Rule>>,
    /// The rules among them, each once: what did not change is taken over by the next snapshot.
    pub(super) compiled: Vec<Arc<Rule>>,
    pub(super) policies: PortPolicies,
    /// Where requests go that no route sends elsewhere.
    pub backend: Arc<Backend>,
}

/// The policies of one port.
#[derive(Debug, Default)]
pub(super) struct PortPolicies {
    /// Of requests that no route with policies of its own takes.
    pub(super) every: Arc<Rules>,
    /// Of routes with policies of their own, by name.
    pub(super) of_routes: BTreeMap<Str, Arc<Rules>>,
    /// Of requests that a route of another service sends here: what is attached to the service itself.
    pub(super) as_backend: Arc<Rules>,
    /// Parameters that any of them reads tokens from.
    pub(super) token_params: Params,
}

impl PortState {
    /// The policies of requests that take this route.
    #[must_use]
    pub fn policies_of(&self, route: Option<&str>) -> &Arc<Rules> {
        let own = route.and_then(|route| self.policies.of_routes.get(route));
        own.unwrap_or(&self.policies.every)
    }

    /// Everything policies were compiled into.
    pub fn all_policies(&self) -> impl Iterator<Item = &Arc<Rules>> {
        let PortPolicies {
            every,
            of_routes,
            as_backend,
            ..
        } = &self.policies;
        [every, as_backend].into_iter().chain(of_routes.values())
    }

    /// Parameters that policies read tokens from, of whichever route.
    #[must_use]
    pub fn token_params(&self) -> &Params {
        &self.policies.token_params
    }

    /// The security policies of requests that a route of another service sends here.
    #[must_use]
    pub fn policies_as_backend(&self) -> &Arc<Rules> {
        &self.policies.as_backend
    }
}

impl FrontState {
    pub(super) fn new(
        front: Arc<Front>,
        object: Fronted,
        missing: Vec<Str>,
        security: Vec<Arc<Policy>>,
        ports: BTreeMap<u16, Arc<PortState>>,
        any_port: Option<Arc<PortState>>,
    ) -> Self {
        Self {
            front,
            object,
            missing,
            security,
            ports,
            any_port,
        }
    }

    /// The state of a port; `None` if the front has no such port.
    #[must_use]
    pub fn port(&self, port: u16) -> Option<&Arc<PortState>> {
        self.ports.get(&port).or(self.any_port.as_ref())
    }

    /// The state of every port, that of ports nobody has declared among them.
    pub fn port_states(&self) -> impl Iterator<Item = &Arc<PortState>> {
        self.ports.values().chain(&self.any_port)
    }

    /// The ports that are declared.
    pub fn ports(&self) -> impl Iterator<Item = (u16, &Arc<PortState>)> {
        self.ports.iter().map(|(port, state)| (*port, state))
    }

    /// What it is in front of, as the control plane calls it.
    #[must_use]
    pub fn key(&self) -> &FrontOf {
        &self.front.object
    }

    /// The service, if it is one.
    #[must_use]
    pub fn service(&self) -> Option<&Arc<Service>> {
        match &self.object {
            Fronted::Service(service) => Some(service),
            Fronted::Workload(_) => None,
        }
    }

    /// Whether who asks may see it. Who has proven no identity sees what everybody does.
    #[must_use]
    pub fn is_visible_from(&self, source: &Source) -> bool {
        let identity = source.identity.as_ref();
        self.is_visible_to(identity.map_or("", |identity| &identity.namespace))
    }

    /// Whether callers of a namespace may see it.
    #[must_use]
    pub fn is_visible_to(&self, namespace: &str) -> bool {
        let listed = &self.front.client_namespaces;
        let told = listed.is_empty() || listed.iter().any(|one| **one == *namespace);
        let exported = match &self.object {
            Fronted::Service(service) => service.is_visible_to(namespace),
            Fronted::Workload(_) => true,
        };
        told && exported
    }
}
