//! A rule of a route with everything a request that takes it needs: filters read, backends found, weights added up.

use std::sync::Arc;

use tulle_model::route::{Action, Backend as Ref, BackendTo, Route, Split};
use tulle_model::{NamespacedHostname, Str};

use super::tries::Tries;
use crate::filter::Filters;
use crate::filter::mirror::Share;
use crate::upstream::backend::{Backend, BackendKey};

/// A rule, ready for requests.
#[derive(Debug)]
pub struct Rule {
    /// As the control plane says it.
    pub route: Arc<Route>,
    /// `<kind>/<namespace>/<name>/<rule>`, for logs and reasons.
    pub name: Str,
    /// Why requests are answered with 500, if they are.
    pub broken: Option<Str>,
    /// What is done to requests and answers.
    pub filters: Filters,
    /// Who gets copies.
    pub mirrors: Vec<Mirror>,
    /// How long requests may take, and when they are tried again.
    pub tries: Tries,
    /// What was asked for, by the policies of the route, where that has some of its own: whose retries count, and who
    /// keeps sessions.
    pub parent: Option<Arc<Backend>>,
    split: Split,
    backends: Vec<Weighted>,
}

/// A backend of a rule.
#[derive(Debug)]
pub struct Weighted {
    /// Who serves it; `None` if there is no such backend, or none that may be used.
    pub backend: Option<Arc<Backend>>,
    /// What is done to requests that go there, and to their answers.
    pub filters: Filters,
}

/// Who gets copies of requests.
#[derive(Debug)]
pub struct Mirror {
    /// Who serves it; `None` if there is no such backend: then nobody gets a copy.
    pub backend: Option<Arc<Backend>>,
    /// How often.
    pub share: Share,
}

impl Rule {
    /// Compiles a rule. `find` gives the handle of a backend.
    pub fn compile(
        route: &Arc<Route>,
        parent: Option<Arc<Backend>>,
        mut find: impl FnMut(&NamespacedHostname, u16) -> Arc<Backend>,
    ) -> Arc<Self> {
        let mut broken = match route.action() {
            Action::Fail(cause) => Some(cause.to_string().into()),
            Action::Forward | Action::Redirect(_) => None,
        };
        let mut read = |of: &[_]| {
            Filters::compile(of).unwrap_or_else(|error| {
                broken.get_or_insert_with(|| error.to_string().into());
                Filters::default()
            })
        };
        let filters = read(&route.filters);
        let mut found = |to: &Ref| match &to.to {
            BackendTo::Service { service, port } => Some(find(service, *port)),
            BackendTo::Invalid(_) => None,
        };
        let mirrors = filters.mirrors.iter().map(|mirror| Mirror {
            backend: found(&mirror.backend),
            share: mirror.share,
        });
        let mirrors = mirrors.collect();
        let weighted = |to: &Ref| Weighted {
            backend: found(to),
            filters: read(&to.filters),
        };
        let backends = route.backends.iter().map(weighted).collect();
        Arc::new(Self {
            route: Arc::clone(route),
            name: route.name(),
            tries: Tries::of(route),
            parent,
            split: Split::new(&route.backends),
            broken,
            filters,
            mirrors,
            backends,
        })
    }

    /// The place of the backend that a uniform random number draws.
    #[must_use]
    pub fn draw(&self, random: u64) -> Option<usize> {
        self.split.draw(random)
    }

    /// The place of the backend that a session's endpoint belongs to.
    #[must_use]
    pub fn holding(&self, session: u128) -> Option<usize> {
        let knows = |weighted: &Weighted| {
            let cluster = weighted.backend.as_ref().and_then(|backend| backend.cluster());
            cluster.is_some_and(|cluster| cluster.knows(session))
        };
        self.backends.iter().position(knows)
    }

    /// Whether a backend has arrived, with its port, and the namespace of the route may send to it: that of the service
    /// itself, or one that the service is exported to.
    #[must_use]
    pub fn may_use(&self, backend: &Backend) -> bool {
        let BackendKey::Service(_, port) = &backend.key else {
            return true;
        };
        let by = &self.route.origin.namespace;
        let cluster = backend.cluster();
        let service = cluster.as_ref().and_then(|cluster| cluster.service());
        service.is_some_and(|service| {
            service.ports.contains_key(port) && (service.namespace == *by || service.is_visible_to(by))
        })
    }

    /// Every backend, in order.
    #[must_use]
    pub fn backends(&self) -> &[Weighted] {
        &self.backends
    }
}
