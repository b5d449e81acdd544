//! The routes of one port of one service: which callers they are for, and which kind applies.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::kind::{Candidate, Standing, standing};
use super::router::Router;
use super::streams::{TcpRouter, TlsRouter};
use super::{Kind, Parent, ParentTo, Route};
use crate::name::{NamespacedHostname, Str};

/// What applies to one class of callers.
#[derive(Debug)]
pub enum Routes<T> {
    /// Nothing: requests go on to what they asked for.
    None,
    /// HTTPRoutes or GRPCRoutes.
    Http(Box<Router<T>>),
    /// TLSRoutes.
    Tls(Box<TlsRouter<T>>),
    /// TCPRoutes.
    Tcp(TcpRouter<T>),
}

/// The routes of one port of one service.
#[derive(Debug)]
pub struct PortRoutes<T> {
    producer: Routes<T>,
    consumers: BTreeMap<Str, Routes<T>>,
}

impl<T> Default for PortRoutes<T> {
    fn default() -> Self {
        Self {
            producer: Routes::None,
            consumers: BTreeMap::new(),
        }
    }
}

/// One route with the parent it hangs on.
type Hung<'r> = (&'r Arc<Route>, &'r Parent);

impl<T> PortRoutes<T> {
    /// Picks, out of routes, those of one port, and compiles them. `rule` makes of each what a request needs.
    pub fn compile<'r>(
        service: &NamespacedHostname,
        port: u16,
        routes: impl IntoIterator<Item = &'r Arc<Route>>,
        mut rule: impl FnMut(&'r Arc<Route>) -> T,
    ) -> Self {
        let candidates: Vec<_> = routes
            .into_iter()
            .flat_map(|route| hangs(route, service, port).map(move |parent| (route, parent)))
            .map(|(route, parent)| Candidate {
                kind: route.origin.kind,
                consumer: parent.consumer_namespace.as_ref(),
                of: (route, parent),
            })
            .collect();
        let mut classes: BTreeMap<Option<&Str>, Vec<Hung<'r>>> = BTreeMap::new();
        for ((route, parent), standing) in standing(&candidates) {
            if standing == Standing::Applies {
                let class = classes.entry(parent.consumer_namespace.as_ref()).or_default();
                class.push((*route, *parent));
            }
        }
        let producer = classes.remove(&None).unwrap_or_default();
        Self {
            producer: Routes::compile(&producer, &mut rule),
            consumers: classes
                .into_iter()
                .filter_map(|(namespace, hung)| Some((namespace?.clone(), Routes::compile(&hung, &mut rule))))
                .collect(),
        }
    }

    /// The routes for callers of a namespace: their own, if they have any, in the place of the service's.
    #[must_use]
    pub fn of(&self, namespace: Option<&str>) -> &Routes<T> {
        namespace
            .and_then(|namespace| self.consumers.get(namespace))
            .unwrap_or(&self.producer)
    }

    /// Every class with its namespace; `None` is that of the service itself.
    pub fn classes(&self) -> impl Iterator<Item = (Option<&Str>, &Routes<T>)> {
        let consumers = self
            .consumers
            .iter()
            .map(|(namespace, routes)| (Some(namespace), routes));
        std::iter::once((None, &self.producer)).chain(consumers)
    }

    /// Whether requests on this port are read as HTTP because of a route.
    #[must_use]
    pub fn is_http(&self) -> bool {
        self.classes()
            .any(|(_, routes)| matches!(routes, Routes::Http(_)))
    }
}

impl<T> Routes<T> {
    fn compile<'r>(hung: &[Hung<'r>], rule: &mut impl FnMut(&'r Arc<Route>) -> T) -> Self {
        let routes = || hung.iter().map(|(route, _)| *route);
        match hung.first().map(|(route, _)| route.origin.kind) {
            Some(kind @ (Kind::Http | Kind::Grpc)) => {
                Self::Http(Box::new(Router::compile(kind, routes(), rule)))
            }
            Some(Kind::Tls) => Self::Tls(Box::new(TlsRouter::compile(hung.iter().copied(), rule))),
            Some(Kind::Tcp) => TcpRouter::compile(routes(), rule).map_or(Self::None, Self::Tcp),
            Some(Kind::Policy) | None => Self::None,
        }
    }
}

/// The parents through which a route stands on a port, one for each class of callers.
fn hangs<'r>(route: &'r Route, service: &NamespacedHostname, port: u16) -> impl Iterator<Item = &'r Parent> {
    let mut hung: Vec<&Parent> = Vec::new();
    for parent in &route.parents {
        let here = matches!(&parent.to, ParentTo::Service(to) if to == service)
            && parent.port.is_none_or(|only| only == port);
        let known = |other: &&Parent| other.consumer_namespace == parent.consumer_namespace;
        if here && !hung.iter().any(known) {
            hung.push(parent);
        }
    }
    hung.into_iter()
}
