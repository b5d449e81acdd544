//! Rules of routes.

use tulle_model::route::{
    Backend, BackendTo, Created, GrpcMatch, KeyMatch, Kind, Match, Origin, Parent, ParentTo, PathMatch,
    Retry, Route, Session, SessionBy, Timeouts, ValueMatch,
};

use super::super::{Flaw, each, known, real_port, required};
use super::{
    any_port, duration, filter, hostname, names, optional, statuses, text, texts, to_duration, unset, within,
};
use crate::waypoint as wire;
use crate::waypoint::{backend, key_match, parent, path_match, session};

/// Not a method, so that no request has it.
const NO_METHOD: &str = "(none)";

pub(super) fn parse(message: wire::Route) -> Result<Route, Flaw> {
    Ok(Route {
        origin: origin("origin", message.origin)?,
        parents: each("parents", message.parents, parent)?,
        matches: each("matches", message.matches, matching)?,
        filters: each("filters", message.filters, filter::parse)?,
        backends: each("backends", message.backends, backend)?,
        timeouts: within("timeouts", message.timeouts, timeouts)?.unwrap_or_default(),
        retry: within("retry", message.retry, retry)?,
        session: within("session", message.session, session)?,
        error: optional(message.error),
    })
}

pub(super) fn kind(field: &str, value: i32) -> Result<Kind, Flaw> {
    Ok(match known(field, value)? {
        wire::Kind::Http => Kind::Http,
        wire::Kind::Grpc => Kind::Grpc,
        wire::Kind::Tls => Kind::Tls,
        wire::Kind::Tcp => Kind::Tcp,
        wire::Kind::Policy => Kind::Policy,
        wire::Kind::Unspecified => return Err(unset(field)),
    })
}

pub(super) fn to_kind(kind: Kind) -> i32 {
    let kind = match kind {
        Kind::Http => wire::Kind::Http,
        Kind::Grpc => wire::Kind::Grpc,
        Kind::Tls => wire::Kind::Tls,
        Kind::Tcp => wire::Kind::Tcp,
        Kind::Policy => wire::Kind::Policy,
    };
    kind.into()
}

pub(super) fn origin(field: &str, message: Option<wire::Origin>) -> Result<Origin, Flaw> {
    let message = message.ok_or_else(|| unset(field))?;
    let parsed = || {
        Ok(Origin {
            kind: kind("kind", message.kind)?,
            namespace: required("namespace", message.namespace)?,
            name: required("name", message.name)?,
            rule_index: message.rule_index,
            rule_name: message.rule_name.into(),
            created: message.created.map(|time| Created {
                seconds: time.seconds,
                nanos: time.nanos,
            }),
            generation: message.generation,
        })
    };
    parsed().map_err(|flaw: Flaw| flaw.within(field))
}

fn parent(message: wire::Parent) -> Result<Parent, Flaw> {
    let to = match message.to.ok_or_else(|| unset("to"))? {
        parent::To::Service(name) => ParentTo::Service(hostname("service", Some(name))?),
        parent::To::Listener(listener) => ParentTo::Listener {
            namespace: required("listener.namespace", listener.namespace)?,
            gateway: required("listener.gateway", listener.gateway)?,
            name: listener.name.into(),
        },
    };
    Ok(Parent {
        to,
        port: any_port("port", message.port)?,
        consumer_namespace: optional(message.consumer_namespace),
        hostnames: names(message.hostnames),
    })
}

pub(super) fn matching(message: wire::Match) -> Result<Match, Flaw> {
    if let Some(cause) = optional(message.unreadable) {
        return Ok(Match::unreadable(cause));
    }
    let path = |path: wire::PathMatch| {
        Ok(match path.kind.ok_or_else(|| unset("kind"))? {
            path_match::Kind::Exact(text) => PathMatch::Exact(text.into()),
            path_match::Kind::Prefix(text) => PathMatch::Prefix(text.into()),
            path_match::Kind::Regex(text) => PathMatch::Regex(text.into()),
        })
    };
    Ok(Match {
        path: within("path", message.path, path)?,
        method: optional(message.method),
        headers: each("headers", message.headers, key)?,
        query: each("query", message.query, key)?,
        grpc: message.grpc.map(|grpc| GrpcMatch {
            service: optional(grpc.service),
            method: optional(grpc.method),
            regex: grpc.regex,
        }),
        unreadable: None,
    })
}

fn key(message: wire::KeyMatch) -> Result<KeyMatch, Flaw> {
    Ok(KeyMatch {
        name: required("name", message.name)?,
        value: match message.value.ok_or_else(|| unset("value"))? {
            key_match::Value::Exact(text) => ValueMatch::Exact(text.into()),
            key_match::Value::Regex(text) => ValueMatch::Regex(text.into()),
        },
    })
}

pub(super) fn backend(message: wire::Backend) -> Result<Backend, Flaw> {
    let to = match message.to.ok_or_else(|| unset("to"))? {
        backend::To::Service(name) => BackendTo::Service {
            service: hostname("service", Some(name))?,
            port: real_port("port", message.port)?,
        },
        backend::To::Invalid(cause) => BackendTo::Invalid(cause.into()),
    };
    Ok(Backend {
        to,
        weight: message.weight,
        filters: each("filters", message.filters, filter::parse)?,
    })
}

fn timeouts(message: wire::Timeouts) -> Result<Timeouts, Flaw> {
    Ok(Timeouts {
        request: duration("request", message.request)?,
        backend_request: duration("backend_request", message.backend_request)?,
    })
}

fn retry(message: wire::Retry) -> Result<Retry, Flaw> {
    Ok(Retry {
        attempts: message.attempts,
        codes: statuses("codes", message.codes)?,
        grpc_codes: message.grpc_codes,
        backoff: duration("backoff", message.backoff)?,
    })
}

pub(super) fn session(message: wire::Session) -> Result<Session, Flaw> {
    Ok(Session {
        by: match message.by.ok_or_else(|| unset("by"))? {
            session::By::Cookie(cookie) => SessionBy::Cookie {
                name: cookie.name.into(),
                path: cookie.path.into(),
            },
            session::By::Header(name) => SessionBy::Header(required("header", name)?),
        },
        absolute: duration("absolute", message.absolute)?,
        idle: duration("idle", message.idle)?,
        permanent: message.permanent,
    })
}

impl From<&Origin> for wire::Origin {
    fn from(origin: &Origin) -> Self {
        Self {
            kind: to_kind(origin.kind),
            namespace: origin.namespace.as_ref().into(),
            name: origin.name.as_ref().into(),
            rule_index: origin.rule_index,
            rule_name: origin.rule_name.as_ref().into(),
            created: origin.created.map(|time| prost_types::Timestamp {
                seconds: time.seconds,
                nanos: time.nanos,
            }),
            generation: origin.generation,
        }
    }
}

impl From<&Route> for wire::Route {
    fn from(route: &Route) -> Self {
        let timeouts = wire::Timeouts {
            request: route.timeouts.request.map(to_duration),
            backend_request: route.timeouts.backend_request.map(to_duration),
        };
        Self {
            origin: Some((&route.origin).into()),
            parents: route.parents.iter().map(Into::into).collect(),
            matches: route.matches.iter().map(Into::into).collect(),
            filters: route.filters.iter().map(Into::into).collect(),
            backends: route.backends.iter().map(Into::into).collect(),
            timeouts: (route.timeouts != Timeouts::default()).then_some(timeouts),
            retry: route.retry.as_ref().map(|retry| wire::Retry {
                attempts: retry.attempts,
                codes: retry.codes.iter().copied().map(Into::into).collect(),
                grpc_codes: retry.grpc_codes.clone(),
                backoff: retry.backoff.map(to_duration),
            }),
            session: route.session.as_ref().map(Into::into),
            error: text(&route.error),
        }
    }
}

impl From<&Parent> for wire::Parent {
    fn from(parent: &Parent) -> Self {
        let to = match &parent.to {
            ParentTo::Service(name) => parent::To::Service(name.into()),
            ParentTo::Listener {
                namespace,
                gateway,
                name,
            } => parent::To::Listener(wire::Listener {
                namespace: namespace.as_ref().into(),
                gateway: gateway.as_ref().into(),
                name: name.as_ref().into(),
            }),
        };
        Self {
            to: Some(to),
            port: parent.port.unwrap_or_default().into(),
            consumer_namespace: text(&parent.consumer_namespace),
            hostnames: texts(&parent.hostnames),
        }
    }
}

impl From<&Match> for wire::Match {
    fn from(matching: &Match) -> Self {
        if let Some(cause) = &matching.unreadable {
            return Self {
                method: NO_METHOD.to_owned(),
                unreadable: cause.as_ref().into(),
                ..Self::default()
            };
        }
        let path = matching.path.as_ref().map(|path| match path {
            PathMatch::Exact(text) => path_match::Kind::Exact(text.as_ref().into()),
            PathMatch::Prefix(text) => path_match::Kind::Prefix(text.as_ref().into()),
            PathMatch::Regex(text) => path_match::Kind::Regex(text.as_ref().into()),
        });
        Self {
            path: path.map(|kind| wire::PathMatch { kind: Some(kind) }),
            method: text(&matching.method),
            headers: matching.headers.iter().map(Into::into).collect(),
            query: matching.query.iter().map(Into::into).collect(),
            grpc: matching.grpc.as_ref().map(|grpc| wire::GrpcMatch {
                service: text(&grpc.service),
                method: text(&grpc.method),
                regex: grpc.regex,
            }),
            unreadable: String::new(),
        }
    }
}

impl From<&KeyMatch> for wire::KeyMatch {
    fn from(matching: &KeyMatch) -> Self {
        let value = match &matching.value {
            ValueMatch::Exact(text) => key_match::Value::Exact(text.as_ref().into()),
            ValueMatch::Regex(text) => key_match::Value::Regex(text.as_ref().into()),
        };
        Self {
            name: matching.name.as_ref().into(),
            value: Some(value),
        }
    }
}

impl From<&Backend> for wire::Backend {
    fn from(backend: &Backend) -> Self {
        let (to, port) = match &backend.to {
            BackendTo::Service { service, port } => (backend::To::Service(service.into()), *port),
            BackendTo::Invalid(cause) => (backend::To::Invalid(cause.as_ref().into()), 0),
        };
        Self {
            to: Some(to),
            port: port.into(),
            weight: backend.weight,
            filters: backend.filters.iter().map(Into::into).collect(),
        }
    }
}

impl From<&Session> for wire::Session {
    fn from(session: &Session) -> Self {
        let by = match &session.by {
            SessionBy::Cookie { name, path } => session::By::Cookie(wire::CookieSession {
                name: name.as_ref().into(),
                path: path.as_ref().into(),
            }),
            SessionBy::Header(name) => session::By::Header(name.as_ref().into()),
        };
        Self {
            by: Some(by),
            absolute: session.absolute.map(to_duration),
            idle: session.idle.map(to_duration),
            permanent: session.permanent,
        }
    }
}
