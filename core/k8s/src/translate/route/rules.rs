//! The rules of a route: matches, backends, timeouts, retries.

use tulle_model::Str;
use tulle_model::route::{
    Backend, GrpcMatch, KeyMatch, Kind, Match, PathMatch, Pattern, Route, Session, SessionBy, Timeouts,
    ValueMatch,
};

use super::super::lookup::Lookup;
use super::backends::{Invalid, Referred, resolve};
use super::{Facts, RuleOf, filters, origin_of, retry};
use crate::Object;
use crate::api::route::{
    BackendRef, GrpcMatch as CallMatch, GrpcMethod, GrpcRule, HttpMatch, HttpRule, KeyMatch as KeySpec,
    RouteFilter, SessionPersistence, StreamRule,
};

/// Translates every rule of a route.
pub(super) fn rules(object: &Object, facts: &Facts<'_>, around: &impl Lookup) -> Vec<RuleOf> {
    let kind = facts.kind.as_str();
    let by = Referred {
        group: "gateway.networking.k8s.io",
        kind,
        namespace: &facts.meta.namespace,
        needs_grant: false,
    };
    match object {
        Object::HttpRoute(route) => route
            .spec
            .rules
            .iter()
            .map(|rule| http(rule, facts, by, around))
            .collect(),
        Object::GrpcRoute(route) => route
            .spec
            .rules
            .iter()
            .map(|rule| grpc(rule, facts, by, around))
            .collect(),
        Object::TlsRoute(route) | Object::TcpRoute(route) => route
            .spec
            .rules
            .iter()
            .map(|rule| stream(rule, facts, by, around))
            .collect(),
        _ => Vec::new(),
    }
}

/// A rule under construction: the first error makes the whole rule answer 500. A match that cannot be read is no error of
/// the rule: it matches nothing, and the others go on.
struct Draft<'a, L> {
    route: Route,
    unresolved: Vec<Invalid>,
    by: Referred<'a>,
    around: &'a L,
}

impl<'a, L: Lookup> Draft<'a, L> {
    fn new(facts: &Facts<'_>, by: Referred<'a>, around: &'a L) -> Self {
        let route = Route {
            origin: origin_of(facts.kind, facts.meta),
            parents: Vec::new(),
            matches: Vec::new(),
            filters: Vec::new(),
            backends: Vec::new(),
            timeouts: Timeouts::default(),
            retry: None,
            session: None,
            error: None,
        };
        Self {
            route,
            unresolved: Vec::new(),
            by,
            around,
        }
    }

    fn fail(&mut self, cause: String) {
        self.route.error.get_or_insert_with(|| cause.into());
    }

    fn take<T>(&mut self, read: Result<T, String>) -> Option<T> {
        read.map_err(|cause| self.fail(cause)).ok()
    }

    fn matches(&mut self, read: Result<Match, String>) {
        let read = read.unwrap_or_else(Match::unreadable);
        self.route.matches.push(read);
    }

    fn filters(&mut self, of: &[RouteFilter]) {
        let (read, error) = filters::filters(of, self.by, self.around, &mut self.unresolved);
        self.route.filters = read;
        if let Some(cause) = error {
            self.fail(cause);
        }
    }

    fn backends(&mut self, of: &[BackendRef]) {
        for reference in of {
            let (backend, invalid) = resolve(reference, self.by, self.around);
            self.unresolved.extend(invalid);
            let (read, error) =
                filters::filters(&reference.filters, self.by, self.around, &mut self.unresolved);
            if let Some(cause) = error {
                self.fail(cause);
            }
            self.route.backends.push(Backend {
                filters: read,
                ..backend
            });
        }
    }

    fn done(self, name: &Str) -> RuleOf {
        RuleOf {
            name: name.clone(),
            route: self.route,
            unresolved: self.unresolved,
        }
    }
}

fn http(rule: &HttpRule, facts: &Facts<'_>, by: Referred<'_>, around: &impl Lookup) -> RuleOf {
    let mut draft = Draft::new(facts, by, around);
    for matching in &rule.matches {
        draft.matches(http_match(matching));
    }
    draft.filters(&rule.filters);
    draft.backends(&rule.backend_refs);
    if let Some(timeouts) = &rule.timeouts {
        draft.route.timeouts = Timeouts {
            request: timeouts.request.map(|span| span.0),
            backend_request: timeouts.backend_request.map(|span| span.0),
        };
    }
    draft.route.retry = draft
        .take(retry::of_http(rule.retry.as_ref(), facts.meta))
        .flatten();
    if let Some(of) = &rule.session_persistence {
        draft.route.session = draft.take(session(of));
    }
    draft.done(&rule.name)
}

fn grpc(rule: &GrpcRule, facts: &Facts<'_>, by: Referred<'_>, around: &impl Lookup) -> RuleOf {
    let mut draft = Draft::new(facts, by, around);
    for matching in &rule.matches {
        draft.matches(call_match(matching));
    }
    draft.filters(&rule.filters);
    draft.backends(&rule.backend_refs);
    draft.route.retry = draft.take(retry::of_grpc(facts.meta)).flatten();
    if let Some(of) = &rule.session_persistence {
        draft.route.session = draft.take(session(of));
    }
    draft.done(&rule.name)
}

fn stream(rule: &StreamRule, facts: &Facts<'_>, by: Referred<'_>, around: &impl Lookup) -> RuleOf {
    let mut draft = Draft::new(facts, by, around);
    draft.backends(&rule.backend_refs);
    debug_assert!(
        matches!(facts.kind, Kind::Tls | Kind::Tcp),
        "streams have no requests"
    );
    draft.done(&rule.name)
}

/// Conditions on a request.
pub(in crate::translate) fn http_match(of: &HttpMatch) -> Result<Match, String> {
    let path = of.path.as_ref().map(|path| {
        let value = path.value.clone().unwrap_or_else(|| "/".into());
        match &*path.kind {
            "" | "PathPrefix" | "Exact" if !value.starts_with('/') => {
                Err("a path begins with `/`, unless it is a RegularExpression".to_owned())
            }
            "" | "PathPrefix" => Ok(PathMatch::Prefix(value)),
            "Exact" => Ok(PathMatch::Exact(value)),
            "RegularExpression" => regex(&value).map(|()| PathMatch::Regex(value)),
            _ => Err("the type of a path is Exact, PathPrefix or RegularExpression".to_owned()),
        }
    });
    Ok(Match {
        path: path.transpose()?,
        method: (!of.method.is_empty()).then(|| of.method.clone()),
        headers: keys(&of.headers)?,
        query: keys(&of.query_params)?,
        grpc: None,
        unreadable: None,
    })
}

/// Conditions on a call.
fn call_match(of: &CallMatch) -> Result<Match, String> {
    Ok(Match {
        grpc: of.method.as_ref().map(grpc_match).transpose()?,
        headers: keys(&of.headers)?,
        ..Match::default()
    })
}

/// Conditions on headers or parameters; a second one of the same name means nothing.
fn keys(of: &[KeySpec]) -> Result<Vec<KeyMatch>, String> {
    let mut read: Vec<KeyMatch> = Vec::new();
    for key in of {
        let again = read
            .iter()
            .any(|known| known.name.eq_ignore_ascii_case(&key.name));
        if again {
            continue;
        }
        let value = match &*key.kind {
            "" | "Exact" => ValueMatch::Exact(key.value.clone()),
            "RegularExpression" => {
                regex(&key.value)?;
                ValueMatch::Regex(key.value.clone())
            }
            _ => return Err("the type of a match is Exact or RegularExpression".to_owned()),
        };
        read.push(KeyMatch {
            name: key.name.clone(),
            value,
        });
    }
    Ok(read)
}

fn grpc_match(of: &GrpcMethod) -> Result<GrpcMatch, String> {
    let is_regex = match &*of.kind {
        "" | "Exact" => false,
        "RegularExpression" => true,
        _ => return Err("the type of a method is Exact or RegularExpression".to_owned()),
    };
    let part = |text: &Str| (!text.is_empty()).then(|| text.clone());
    if is_regex {
        regex(&of.service)?;
        regex(&of.method)?;
    }
    Ok(GrpcMatch {
        service: part(&of.service),
        method: part(&of.method),
        regex: is_regex,
    })
}

/// Whether a regular expression is one that waypoints can follow: they compile it in the same way.
fn regex(pattern: &str) -> Result<(), String> {
    Pattern::new(pattern).map(drop).map_err(|error| error.to_string())
}

/// Whether clients stay with an endpoint.
pub(in crate::translate) fn session(of: &SessionPersistence) -> Result<Session, String> {
    let by = match &*of.kind {
        "" | "Cookie" => SessionBy::Cookie {
            name: of.session_name.clone(),
            path: "".into(),
        },
        "Header" if !of.session_name.is_empty() && !filters::is_reserved(&of.session_name) => {
            SessionBy::Header(of.session_name.clone())
        }
        "Header" => return Err("sessionName must name a header that rules may use".to_owned()),
        _ => return Err("the type of sessionPersistence is Cookie or Header".to_owned()),
    };
    let lifetime = of
        .cookie_config
        .as_ref()
        .map_or("", |cookie| &*cookie.lifetime_type);
    Ok(Session {
        by,
        absolute: of.absolute_timeout.map(|span| span.0),
        idle: of.idle_timeout.map(|span| span.0),
        permanent: lifetime == "Permanent",
    })
}
