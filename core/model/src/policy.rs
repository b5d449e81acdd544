//! Policies as waypoints receive them: one concern of one user object each, with what it is attached to.

use crate::filter::ExtAuthz;
use crate::name::{NamespacedHostname, Str, WorkloadUid};
use crate::route::{Kind, Origin, Session};

pub mod applies;
pub mod authz;
pub mod jwt;
pub mod matches;
pub mod traffic;

pub use authz::Authz;
pub use jwt::Jwt;
pub use traffic::{
    BackendTls, CircuitBreaker, Fault, GlobalRateLimit, LoadBalancing, LocalRateLimit, Outlier, RetryBudget,
};

/// One concern of one user object.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// Kind of the user object, such as `AuthorizationPolicy`.
    pub object: Str,
    /// Where it comes from.
    pub origin: Origin,
    /// What it applies to.
    pub targets: Vec<Target>,
    /// Evaluated, counted and logged, never enforced.
    pub dry_run: bool,
    /// What it says.
    pub concern: Concern,
}

impl Policy {
    /// `<kind>/<namespace>/<name>/<concern>`.
    #[must_use]
    pub fn name(&self) -> Str {
        let (object, concern) = (&self.object, self.concern.as_str());
        format!(
            "{object}/{}/{}/{concern}",
            self.origin.namespace, self.origin.name
        )
        .into()
    }
}

/// What a policy applies to.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// What.
    pub on: On,
    /// One port of it; `None` is all.
    pub port: Option<u16>,
    /// One rule of a route, by name; `None` is all.
    pub section: Option<Str>,
}

/// What a policy is attached to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum On {
    /// A service.
    Service(NamespacedHostname),
    /// A route.
    Route {
        /// Its kind.
        kind: Kind,
        /// Its namespace.
        namespace: Str,
        /// Its name.
        name: Str,
    },
    /// A waypoint, `<namespace>/<gateway>`: everything behind it.
    Waypoint(Str),
    /// Every waypoint whose settings name this class.
    Class(Str),
    /// The whole mesh.
    Mesh,
    /// A workload, reached by its own address.
    Workload(WorkloadUid),
}

/// What a policy says.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Concern {
    /// Who may do what.
    Authz(Authz),
    /// Which tokens are valid.
    Jwt(Jwt),
    /// Who else decides.
    ExtAuthz(Box<ExtAuthz>),
    /// It could not be translated: nobody may do anything, for this reason.
    DenyAll(Str),
    /// Errors on purpose.
    Fault(Fault),
    /// Requests counted by each replica.
    LocalRateLimit(LocalRateLimit),
    /// Requests counted by a service.
    GlobalRateLimit(GlobalRateLimit),
    /// How much at once.
    Circuit(CircuitBreaker),
    /// When an endpoint is left out.
    Outlier(Outlier),
    /// How endpoints are chosen.
    LoadBalancing(LoadBalancing),
    /// How much may be tried again.
    RetryBudget(RetryBudget),
    /// Whether a client stays with its endpoint.
    Session(Session),
    /// How backends outside of the mesh are spoken to.
    BackendTls(BackendTls),
}

impl Concern {
    /// The last part of the policy's name.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Authz(_) => "authz",
            Self::Jwt(_) => "jwt",
            Self::ExtAuthz(_) => "ext_authz",
            Self::DenyAll(_) => "deny_all",
            Self::Fault(_) => "fault",
            Self::LocalRateLimit(_) => "local_rate_limit",
            Self::GlobalRateLimit(_) => "global_rate_limit",
            Self::Circuit(_) => "circuit",
            Self::Outlier(_) => "outlier",
            Self::LoadBalancing(_) => "load_balancing",
            Self::RetryBudget(_) => "retry_budget",
            Self::Session(_) => "session",
            Self::BackendTls(_) => "backend_tls",
        }
    }

    /// Whether it decides who may do what; such policies all apply, none overrides another.
    #[must_use]
    pub fn is_security(&self) -> bool {
        matches!(
            self,
            Self::Authz(_) | Self::Jwt(_) | Self::ExtAuthz(_) | Self::DenyAll(_)
        )
    }

    /// Whether it can only be enforced on requests. A port it applies to is one of HTTP.
    #[must_use]
    pub fn reads_requests(&self) -> bool {
        match self {
            Self::Authz(authz) => authz.reads_requests(),
            Self::Jwt(_) | Self::ExtAuthz(_) => true,
            _ => false,
        }
    }
}
