//! Routes as waypoints receive them: one rule of one user object each, with the parents that accepted it.

use std::time::Duration;

use crate::filter::Filter;
use crate::name::{NamespacedHostname, Str};

pub mod explain;
mod index;
pub mod kind;
mod matcher;
#[cfg(test)]
mod oracle;
pub mod pattern;
pub mod ports;
pub mod precedence;
pub mod query;
pub mod router;
pub mod split;
pub mod streams;
#[cfg(test)]
mod tests;
pub mod unreached;

pub use explain::{Explained, Fate};
pub use kind::{Candidate, Standing, standing};
pub use matcher::{MatchError, Unmet};
pub use pattern::{Pattern, PatternError};
pub use ports::{PortRoutes, Routes};
pub use precedence::Criterion;
pub(crate) use query::escape;
pub use router::{Chosen, Problem, Router, Selection};
pub use split::{Action, Broken, Split};
pub use streams::{TcpRouter, TlsRouter};

/// The user object that something was made of.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Origin {
    /// Kind of the object.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: Str,
    /// Its name.
    pub name: Str,
    /// Which rule of it, counted from 0.
    pub rule_index: u32,
    /// The rule's own name; empty if it has none.
    pub rule_name: Str,
    /// When the object was created, in seconds and nanoseconds since 1970: the older one wins a tie.
    pub created: Option<Created>,
    /// Generation of the object; zero if it has none.
    pub generation: i64,
}

/// A time, in seconds and nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Created {
    /// Seconds.
    pub seconds: i64,
    /// Nanoseconds of the second.
    pub nanos: i32,
}

/// The kind of object that something was made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// An HTTPRoute.
    Http,
    /// A GRPCRoute.
    Grpc,
    /// A TLSRoute.
    Tls,
    /// A TCPRoute.
    Tcp,
    /// A policy.
    Policy,
}

impl Kind {
    /// The first part of the names of such resources.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "HTTPRoute",
            Self::Grpc => "GRPCRoute",
            Self::Tls => "TLSRoute",
            Self::Tcp => "TCPRoute",
            Self::Policy => "Policy",
        }
    }
}

/// One rule of a route object.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    /// Where it comes from.
    pub origin: Origin,
    /// The parents that accepted it.
    pub parents: Vec<Parent>,
    /// Alternatives; none matches everything.
    pub matches: Vec<Match>,
    /// What is done to the request.
    pub filters: Vec<Filter>,
    /// Where the request goes, by weight.
    pub backends: Vec<Backend>,
    /// How long it may take.
    pub timeouts: Timeouts,
    /// When it is tried again; `None` retries only what cannot have reached the application.
    pub retry: Option<Retry>,
    /// Whether a client stays with its endpoint.
    pub session: Option<Session>,
    /// Why it cannot be translated. It still matches, and is answered with 500.
    pub error: Option<Str>,
}

impl Route {
    /// `<kind>/<namespace>/<name>/<rule>`.
    #[must_use]
    pub fn name(&self) -> Str {
        let Origin {
            kind,
            namespace,
            name,
            rule_index,
            ..
        } = &self.origin;
        format!("{}/{namespace}/{name}/{rule_index}", kind.as_str()).into()
    }
}

/// A parent that accepted a route.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Parent {
    /// What it is.
    pub to: ParentTo,
    /// Port of the parent; `None` is every port.
    pub port: Option<u16>,
    /// Set on a route of another namespace than the parent's: it applies to callers of this namespace only.
    pub consumer_namespace: Option<Str>,
    /// Host names it is for: server names of TLS, or names of a listener. Empty is every name.
    pub hostnames: Vec<Str>,
}

/// What a parent is.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ParentTo {
    /// A service.
    Service(NamespacedHostname),
    /// A listener of a gateway.
    Listener {
        /// Namespace of the gateway.
        namespace: Str,
        /// The gateway.
        gateway: Str,
        /// The listener.
        name: Str,
    },
}

/// Conditions on a request; all of them must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Match {
    /// On the path; `None` is every path.
    pub path: Option<PathMatch>,
    /// On the method.
    pub method: Option<Str>,
    /// On headers.
    pub headers: Vec<KeyMatch>,
    /// On parameters of the query.
    pub query: Vec<KeyMatch>,
    /// On the call of gRPC.
    pub grpc: Option<GrpcMatch>,
    /// Why its conditions cannot be read: it matches nothing then.
    pub unreadable: Option<Str>,
}

impl Match {
    /// A match that matches nothing, because its conditions cannot be read.
    #[must_use]
    pub fn unreadable(cause: impl Into<Str>) -> Self {
        Self {
            unreadable: Some(cause.into()),
            ..Self::default()
        }
    }
}

/// A condition on the canonical path.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PathMatch {
    /// Equal.
    Exact(Str),
    /// Equal up to the end of a segment.
    Prefix(Str),
    /// The whole path matches this regular expression.
    Regex(Str),
}

/// A condition on a header or a parameter.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyMatch {
    /// Its name.
    pub name: Str,
    /// Its value.
    pub value: ValueMatch,
}

/// A condition on a value.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ValueMatch {
    /// Equal.
    Exact(Str),
    /// The whole value matches this regular expression.
    Regex(Str),
}

/// A condition on the call of gRPC.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcMatch {
    /// The service; `None` is every service.
    pub service: Option<Str>,
    /// The method; `None` is every method.
    pub method: Option<Str>,
    /// Both are regular expressions.
    pub regex: bool,
}

/// A share of the requests.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Backend {
    /// Where to.
    pub to: BackendTo,
    /// Its share of the sum; zero gets nothing.
    pub weight: u32,
    /// What is done to requests that go there.
    pub filters: Vec<Filter>,
}

/// Where requests go.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BackendTo {
    /// A port of a service.
    Service {
        /// The service.
        service: NamespacedHostname,
        /// The port.
        port: u16,
    },
    /// Nowhere: its share is answered with 500, for this reason.
    Invalid(Str),
}

/// How long a request may take. `None` is no limit.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Timeouts {
    /// As a whole, every try included.
    pub request: Option<Duration>,
    /// Each try.
    pub backend_request: Option<Duration>,
}

/// When a request is tried again.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Retry {
    /// Tries after the first; `None` is the default of a stanza without a number.
    pub attempts: Option<u32>,
    /// Statuses of HTTP that deserve another try.
    pub codes: Vec<u16>,
    /// Statuses of gRPC that do.
    pub grpc_codes: Vec<u32>,
    /// The least wait before a try.
    pub backoff: Option<Duration>,
}

/// Whether a client stays with its endpoint.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Session {
    /// What a session is known by.
    pub by: SessionBy,
    /// Longest life of a session.
    pub absolute: Option<Duration>,
    /// Longest pause of a session.
    pub idle: Option<Duration>,
    /// The cookie outlives the browser.
    pub permanent: bool,
}

/// What a session is known by.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SessionBy {
    /// A cookie.
    Cookie {
        /// Its name; empty is a name of the waypoint's choice.
        name: Str,
        /// The path it is for; empty is `/`.
        path: Str,
    },
    /// A header.
    Header(Str),
}
