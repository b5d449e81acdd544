//! Routes and requests.

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use crate::name::{NamespacedHostname, Str};
use crate::request::{Protocol, RequestHead, Scheme};
use crate::route::{
    Backend, BackendTo, Created, GrpcMatch, KeyMatch, Kind, Match, Origin, Parent, ParentTo, PathMatch,
    Route, Timeouts, ValueMatch,
};

/// The only rule of an HTTPRoute, `<namespace>/<name>`, without parents, matches and backends.
#[must_use]
pub fn http_route(name: &str) -> Route {
    route(Kind::Http, name)
}

/// The only rule of a route of this kind, `<namespace>/<name>`, without parents, matches and backends.
///
/// # Panics
/// If the name has no namespace.
#[must_use]
pub fn route(kind: Kind, name: &str) -> Route {
    let (namespace, name) = name
        .split_once('/')
        .expect("a route is called <namespace>/<name>");
    Route {
        origin: Origin {
            kind,
            namespace: namespace.into(),
            name: name.into(),
            rule_index: 0,
            rule_name: "".into(),
            created: None,
            generation: 1,
        },
        parents: Vec::new(),
        matches: Vec::new(),
        filters: Vec::new(),
        backends: Vec::new(),
        timeouts: Timeouts::default(),
        retry: None,
        session: None,
        error: None,
    }
}

impl Route {
    /// Adds an alternative.
    #[must_use]
    pub fn on(mut self, of: Match) -> Self {
        self.matches.push(of);
        self
    }

    /// Hangs it on every port of `<namespace>/<host name>`; from another namespace it is for callers of its own.
    #[must_use]
    pub fn under(self, service: &str) -> Self {
        self.under_port(service, None)
    }

    /// Hangs it on one port of `<namespace>/<host name>`.
    ///
    /// # Panics
    /// If the service has no namespace.
    #[must_use]
    pub fn under_port(mut self, service: &str, port: Option<u16>) -> Self {
        let (namespace, hostname) = service.split_once('/').expect("<namespace>/<host name>");
        let own = *self.origin.namespace == *namespace;
        self.parents.push(Parent {
            to: ParentTo::Service(NamespacedHostname::new(namespace, hostname)),
            port,
            consumer_namespace: (!own).then(|| self.origin.namespace.clone()),
            hostnames: Vec::new(),
        });
        self
    }

    /// Gives the last parent names of TLS.
    #[must_use]
    pub fn named(mut self, hostnames: &[&str]) -> Self {
        if let Some(parent) = self.parents.last_mut() {
            parent.hostnames = hostnames.iter().map(|&name| name.into()).collect();
        }
        self
    }

    /// Makes it the n-th rule of its object.
    #[must_use]
    pub fn rule(mut self, index: u32) -> Self {
        self.origin.rule_index = index;
        self
    }

    /// Says when its object was created.
    #[must_use]
    pub fn created(mut self, seconds: i64) -> Self {
        self.origin.created = Some(Created { seconds, nanos: 0 });
        self
    }

    /// Adds a backend, `<namespace>/<host name>`.
    ///
    /// # Panics
    /// If the service has no namespace.
    #[must_use]
    pub fn to(mut self, service: &str, port: u16, weight: u32) -> Self {
        let (namespace, hostname) = service.split_once('/').expect("<namespace>/<host name>");
        self.backends.push(Backend {
            to: BackendTo::Service {
                service: NamespacedHostname::new(namespace, hostname),
                port,
            },
            weight,
            filters: Vec::new(),
        });
        self
    }
}

/// A match of an exact path.
#[must_use]
pub fn exact(path: &str) -> Match {
    Match {
        path: Some(PathMatch::Exact(path.into())),
        ..Match::default()
    }
}

/// A match of a prefix.
#[must_use]
pub fn prefix(path: &str) -> Match {
    Match {
        path: Some(PathMatch::Prefix(path.into())),
        ..Match::default()
    }
}

/// A match of a regular expression on the path.
#[must_use]
pub fn regex(pattern: &str) -> Match {
    Match {
        path: Some(PathMatch::Regex(pattern.into())),
        ..Match::default()
    }
}

/// A match of a call of gRPC.
#[must_use]
pub fn grpc(service: Option<&str>, method: Option<&str>, regex: bool) -> Match {
    Match {
        grpc: Some(GrpcMatch {
            service: service.map(Str::from),
            method: method.map(Str::from),
            regex,
        }),
        ..Match::default()
    }
}

impl Match {
    /// And this method.
    #[must_use]
    pub fn method(mut self, method: &str) -> Self {
        self.method = Some(method.into());
        self
    }

    /// And this header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push(KeyMatch {
            name: name.into(),
            value: ValueMatch::Exact(value.into()),
        });
        self
    }

    /// And this header, by regular expression.
    #[must_use]
    pub fn header_regex(mut self, name: &str, pattern: &str) -> Self {
        self.headers.push(KeyMatch {
            name: name.into(),
            value: ValueMatch::Regex(pattern.into()),
        });
        self
    }

    /// And this parameter.
    #[must_use]
    pub fn query(mut self, name: &str, value: &str) -> Self {
        self.query.push(KeyMatch {
            name: name.into(),
            value: ValueMatch::Exact(value.into()),
        });
        self
    }
}

/// A request of HTTP/1.1 without headers; what stands after `?` is the query.
#[must_use]
pub fn request(method: Method, target: &str) -> RequestHead {
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query.into())),
        None => (target, None),
    };
    RequestHead {
        method,
        scheme: Scheme::Http,
        authority: "web.default.svc.cluster.local".into(),
        path: path.into(),
        query,
        headers: HeaderMap::new(),
        protocol: Protocol::Http11,
    }
}

/// A `GET`.
#[must_use]
pub fn get(target: &str) -> RequestHead {
    request(Method::GET, target)
}

/// A call of gRPC.
#[must_use]
pub fn grpc_call(path: &str) -> RequestHead {
    RequestHead {
        protocol: Protocol::Http2,
        ..request(Method::POST, path).header("content-type", "application/grpc")
    }
}

impl RequestHead {
    /// Adds a header.
    ///
    /// # Panics
    /// If it is none.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let name: HeaderName = name.parse().expect("a header name");
        self.headers
            .append(name, HeaderValue::from_str(value).expect("a header value"));
        self
    }
}
