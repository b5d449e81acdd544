//! The policies of one place, compiled: of a port of a front, of a rule of a route on it, or of a backend.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use tulle_model::filter::{ExtAuthz, Filter};
use tulle_model::policy::applies::{self, Place};
use tulle_model::policy::authz::{Attributes, Authorizer};
use tulle_model::policy::traffic::LocalRateLimit;
use tulle_model::policy::{Concern, Policy};
use tulle_model::route::Route;
use tulle_model::waypoint::Provider;
use tulle_model::{Reason, Str};

use super::ext_authz;
use super::fault::Injector;
use super::jwt::Authentication;
use super::limit::global::GlobalLimiter;
use super::limit::local::Limiter;
use super::metrics::PolicyMetrics;

/// What applies at one place. It is made once and never changed.
#[derive(Debug, Default)]
pub struct Rules {
    /// Who may do what.
    pub authorizer: Authorizer,
    /// Which tokens are valid.
    pub authentication: Authentication,
    custom: HashMap<Str, Decider>,
    /// Who decides about every request, with the policy or route that says so.
    pub asked: Vec<(Str, Decider)>,
    /// Limits of this replica, with their policies; a request must pass all of them.
    pub limits: Vec<(Str, Arc<Limiter>)>,
    /// A limit that a service counts.
    pub global: Option<(Str, GlobalLimiter)>,
    /// Errors on purpose.
    pub fault: Option<(Str, Injector)>,
}

/// Somebody who decides; `None` is not known, and lets nobody pass.
pub type Decider = Option<Arc<ext_authz::Authorizer>>;

/// Limiters that something still refers to: their buckets outlive snapshots.
#[derive(Debug, Default)]
pub struct Limiters {
    known: HashMap<Str, (LocalRateLimit, Weak<Limiter>)>,
    replicas: u32,
    metrics: PolicyMetrics,
}

impl Limiters {
    /// None yet. What happens to them is counted there.
    #[must_use]
    pub fn new(metrics: PolicyMetrics) -> Self {
        Self {
            metrics,
            ..Self::default()
        }
    }

    /// Says how many replicas of the waypoint are ready, and forgets limits that nobody has.
    pub fn refresh(&mut self, replicas: u32) {
        self.replicas = replicas;
        self.known.retain(|_, (_, limiter)| match limiter.upgrade() {
            Some(limiter) => {
                limiter.set_replicas(replicas);
                true
            }
            None => false,
        });
    }

    /// The limiter of a policy: the one that was there, unless the policy says something else now.
    fn of(&mut self, policy: &Policy, limit: &LocalRateLimit) -> Arc<Limiter> {
        let name = policy.name();
        if let Some((known, limiter)) = self.known.get(&name)
            && known == limit
            && let Some(limiter) = limiter.upgrade()
        {
            return limiter;
        }
        let limiter = Arc::new(Limiter::counted(limit, self.metrics.overflows(&name)));
        limiter.set_replicas(self.replicas);
        self.known.insert(name, (limit.clone(), Arc::downgrade(&limiter)));
        limiter
    }
}

impl Rules {
    /// Compiles what applies at a place out of policies that may. `route` is the route of the place.
    #[must_use]
    pub fn compile(
        policies: &[Arc<Policy>],
        place: &Place<'_>,
        route: Option<&Route>,
        providers: &[Provider],
        limiters: &mut Limiters,
    ) -> Self {
        let security = applies::security(policies, place);
        let authorizer = Authorizer::new(security.iter().copied());
        let authentication = Authentication::new(security.iter().copied());
        let asked = security.iter().filter_map(|policy| match &policy.concern {
            Concern::ExtAuthz(of) if !policy.dry_run => Some((policy.name(), decider(of, providers))),
            _ => None,
        });
        let filters = route.into_iter().flat_map(|route| {
            route.filters.iter().filter_map(|filter| match filter {
                Filter::ExtAuthz(of) => Some((route.name(), decider(of, providers))),
                _ => None,
            })
        });
        let custom = security.iter().filter_map(|policy| match &policy.concern {
            Concern::Authz(authz) => authz.provider.clone(),
            _ => None,
        });
        let named = |name: Str| {
            let decider = ext_authz::Authorizer::named(&name, providers).ok().map(Arc::new);
            (name, decider)
        };
        let limits = applies::each_rank(policies, place, |concern| match concern {
            Concern::LocalRateLimit(limit) => Some(limit),
            _ => None,
        });
        let global = applies::winner(policies, place, |concern| match concern {
            Concern::GlobalRateLimit(limit) => Some(limit),
            _ => None,
        });
        let fault = applies::winner(policies, place, |concern| match concern {
            Concern::Fault(fault) => Some(fault),
            _ => None,
        });
        Self {
            authorizer,
            authentication,
            custom: custom.map(named).collect(),
            asked: asked.chain(filters).collect(),
            limits: limits
                .into_iter()
                .map(|(policy, limit)| (policy.name(), limiters.of(policy, limit)))
                .collect(),
            global: global.map(|(policy, of)| (policy.name(), GlobalLimiter::new(of, providers))),
            fault: fault.map(|(policy, of)| (policy.name(), Injector::new(of))),
        }
    }

    /// Who decides under this name, as CUSTOM policies give it.
    #[must_use]
    pub fn provider(&self, name: Option<&Str>) -> Decider {
        name.and_then(|name| self.custom.get(name)?.clone())
    }

    /// Who decides about a request by these rules and did not by those of before.
    #[must_use]
    pub fn deciders_since(&self, before: &Self, of: &Attributes<'_>) -> Vec<(Str, Decider)> {
        let known: Vec<_> = before.authorizer.asks(of).collect();
        let is_known = |policy: &Str, provider: Option<&Str>| {
            let mut known = known.iter();
            known.any(|(matched, named)| matched.policy == *policy && *named == provider)
        };
        let custom = self.authorizer.asks(of);
        let custom = custom.filter(|(matched, provider)| !is_known(&matched.policy, *provider));
        let custom = custom.map(|(matched, provider)| (matched.policy, self.provider(provider)));
        let is_new = |(policy, _): &&(Str, Decider)| before.asked.iter().all(|(known, _)| known != policy);
        custom.chain(self.asked.iter().filter(is_new).cloned()).collect()
    }

    /// Whether a stream that is not read may pass, so far as somebody else would have to decide: nobody can be asked
    /// about what is not read.
    ///
    /// # Errors
    /// The policy that would have to be asked about.
    pub fn ask_nobody(&self) -> Result<(), (Reason, Str)> {
        match self.asked.first() {
            Some((policy, _)) => Err((Reason::PolicyDenied, policy.clone())),
            None => Ok(()),
        }
    }
}

/// Whether a route has policies or filters of its own, so that its requests are judged by other rules than its port's.
#[must_use]
pub fn has_own(route: &Route, policies: &[Arc<Policy>]) -> bool {
    let asks = route
        .filters
        .iter()
        .any(|filter| matches!(filter, Filter::ExtAuthz(_)));
    let place = Place {
        route: Some(&route.origin),
        ..Place::default()
    };
    asks || policies.iter().any(|policy| policy.rank(&place).is_some())
}

fn decider(of: &ExtAuthz, providers: &[Provider]) -> Decider {
    match ext_authz::Authorizer::new(of, providers) {
        Ok(authorizer) => Some(Arc::new(authorizer)),
        Err(error) => {
            tracing::warn!(%error, "nobody passes where it would have to decide; see T0415");
            None
        }
    }
}
