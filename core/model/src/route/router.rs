//! Chooses the rule of a request among all that stand on one port for one class of callers. Built once, never changed;
//! choosing allocates nothing.

use std::sync::Arc;

use ahash::AHashMap;
use http::Method;

use super::index::{Numbers, Patterns, Prefixes};
use super::matcher::{Compiler, Conditions, MatchError, Miss};
use super::pattern::Pattern;
use super::precedence::{Rank, trimmed};
use super::query::{Interest, Parameters};
use super::{GrpcMatch, Kind, Match, PathMatch, Route};
use crate::name::Str;
use crate::request::RequestHead;

/// The rule that a request takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selection<'a, T> {
    /// There are no rules: the request goes on to the endpoints of what it asked for.
    Default,
    /// There are rules, and none matches.
    NotFound,
    /// This rule.
    Rule(Chosen<'a, T>),
}

/// A rule that matched, and how.
#[derive(Debug, PartialEq, Eq)]
pub struct Chosen<'a, T> {
    /// What the rule was compiled to.
    pub rule: &'a T,
    /// Bytes of the path that the rule's prefix covers, without a `/` at its end; `None` if it matched in another way.
    pub prefix: Option<usize>,
    /// Which match of the rule, counted from 0.
    pub matched: usize,
}

impl<T> Clone for Chosen<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Chosen<'_, T> {}

/// The rules of one kind that stand on one port for one class of callers. `T` is what a rule was compiled to.
#[derive(Debug)]
pub struct Router<T> {
    pub(super) grpc: bool,
    pub(super) rules: Vec<T>,
    /// In the order of precedence: the number of a match is its place here.
    pub(super) matches: Vec<Compiled>,
    /// HTTP: paths. gRPC: the paths of calls, where service and method are exact.
    exact: AHashMap<Box<str>, Numbers>,
    prefixes: Prefixes,
    /// gRPC: matches of an exact service, or method, alone.
    services: AHashMap<Box<str>, Numbers>,
    methods: AHashMap<Box<str>, Numbers>,
    patterns: Patterns,
    interest: Interest,
    problems: Vec<Problem>,
}

/// One match of one rule.
#[derive(Debug)]
pub(super) struct Compiled {
    /// Place in `rules`.
    pub(super) rule: usize,
    /// Place of the match in its rule.
    pub(super) index: usize,
    pub(super) rank: Rank,
    pub(super) path: PathCondition,
    pub(super) conditions: Conditions,
}

/// The condition on the path in a form that can be asked directly; the index answers faster for all at once.
#[derive(Debug)]
pub(super) enum PathCondition {
    Exact(Box<str>),
    /// Without the `/` at its end.
    Prefix(Box<str>),
    Service(Box<str>),
    Method(Box<str>),
    Pattern(Str, Pattern),
}

/// A match that cannot be used, and so never matches. The control plane refuses such routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Name of the route.
    pub route: Str,
    /// Which match of it.
    pub index: usize,
    /// Why.
    pub error: MatchError,
}

impl<T> Router<T> {
    /// Compiles the rules of one kind. `rule` makes of each what a request that takes it needs.
    pub fn compile<'r>(
        kind: Kind,
        routes: impl IntoIterator<Item = &'r Arc<Route>>,
        mut rule: impl FnMut(&'r Arc<Route>) -> T,
    ) -> Self {
        let mut compiler = Compiler::default();
        let (mut rules, mut matches, mut problems) = (Vec::new(), Vec::new(), Vec::new());
        for route in routes {
            let every = [Match::default()];
            let of = if route.matches.is_empty() {
                &every
            } else {
                &*route.matches
            };
            for (index, one) in of.iter().enumerate() {
                match Compiled::new(route, rules.len(), one, index, &mut compiler) {
                    Ok(compiled) => matches.push(compiled),
                    Err(error) => problems.push(Problem {
                        route: route.name(),
                        index,
                        error,
                    }),
                }
            }
            rules.push(rule(route));
        }
        matches.sort_by(|a, b| a.rank.cmp(&b.rank));
        let mut router = Self {
            grpc: kind == Kind::Grpc,
            rules,
            matches,
            exact: AHashMap::new(),
            prefixes: Prefixes::default(),
            services: AHashMap::new(),
            methods: AHashMap::new(),
            patterns: Patterns::default(),
            interest: compiler.interest,
            problems,
        };
        router.index();
        router
    }

    fn index(&mut self) {
        let mut patterns: AHashMap<Str, (Pattern, Numbers)> = AHashMap::new();
        for (number, one) in (0..).zip(&self.matches) {
            let list = match &one.path {
                PathCondition::Exact(path) => self.exact.entry(path.clone()).or_default(),
                PathCondition::Service(service) => self.services.entry(service.clone()).or_default(),
                PathCondition::Method(method) => self.methods.entry(method.clone()).or_default(),
                PathCondition::Prefix(prefix) => {
                    self.prefixes.add(prefix, number);
                    continue;
                }
                PathCondition::Pattern(text, pattern) => {
                    let entry = patterns.entry(text.clone());
                    &mut entry.or_insert_with(|| (pattern.clone(), Vec::new())).1
                }
            };
            list.push(number);
        }
        self.prefixes.link();
        self.patterns = Patterns::build(patterns.into_values().collect());
    }

    /// What the rules were compiled to, in the order they were given.
    #[must_use]
    pub fn rules(&self) -> &[T] {
        &self.rules
    }

    /// The matches that cannot be used.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// The rule of a request.
    #[must_use]
    pub fn select<'a>(&'a self, head: &RequestHead) -> Selection<'a, T> {
        self.select_as(head, &head.method)
    }

    /// The rule of a request if it had this method. Preflights of CORS take the rule of what they ask for.
    #[must_use]
    pub fn select_as<'a>(&'a self, head: &RequestHead, method: &Method) -> Selection<'a, T> {
        if self.rules.is_empty() {
            return Selection::Default;
        }
        let mut search = Search {
            router: self,
            head,
            method,
            parameters: None,
            best: u32::MAX,
        };
        let prefix = if self.grpc { search.grpc() } else { search.http() };
        match usize::try_from(search.best)
            .ok()
            .and_then(|best| self.matches.get(best))
        {
            Some(found) => Selection::Rule(Chosen {
                rule: &self.rules[found.rule],
                prefix,
                matched: found.index,
            }),
            None => Selection::NotFound,
        }
    }

    /// The first condition of a match that does not hold, its path aside.
    pub(super) fn unmet<'a>(
        &'a self,
        one: &'a Compiled,
        head: &RequestHead,
        method: &Method,
    ) -> Option<Miss<'a>> {
        let parameters = self.interest.read(head.query.as_deref());
        one.conditions.unmet(method, &head.headers, || &parameters)
    }
}

/// One request on its way through a router.
struct Search<'a, 'h, T> {
    router: &'a Router<T>,
    head: &'h RequestHead,
    method: &'h Method,
    /// Read when the first match asks for it.
    parameters: Option<Parameters<'h>>,
    /// The smallest number of a match that holds.
    best: u32,
}

impl<T> Search<'_, '_, T> {
    /// Exact paths win over prefixes, longer prefixes over shorter ones, and all of them over patterns: the first list
    /// with a match ends the search. Answers the length of the prefix that matched.
    fn http(&mut self) -> Option<usize> {
        let (router, path) = (self.router, &*self.head.path);
        if router.exact.get(path).is_some_and(|list| self.improve(list)) {
            return None;
        }
        for (length, list) in router.prefixes.of(path) {
            if self.improve(list) {
                return Some(length);
            }
        }
        self.patterns();
        None
    }

    /// Only exact calls are known to win; among the others the length of service and method decides, so all are asked.
    fn grpc(&mut self) -> Option<usize> {
        let (router, path) = (self.router, &*self.head.path);
        let (service, method) = self.head.is_grpc().then(|| call(path)).flatten()?;
        if router.exact.get(path).is_some_and(|list| self.improve(list)) {
            return None;
        }
        for list in [router.services.get(service), router.methods.get(method)] {
            list.map(|list| self.improve(list));
        }
        // Matches without a condition on the call stand at the root of the prefixes.
        for (_, list) in router.prefixes.of("") {
            self.improve(list);
        }
        self.patterns();
        None
    }

    fn patterns(&mut self) {
        let (router, head) = (self.router, self.head);
        router.patterns.visit(&head.path, self.best, &mut |list| {
            self.improve(list);
            self.best
        });
    }

    /// Looks for a match in a list that is better than what was found; answers whether there was one.
    fn improve(&mut self, list: &Numbers) -> bool {
        let (router, head) = (self.router, self.head);
        let parameters = &mut self.parameters;
        let query = head.query.as_deref();
        let found = list
            .iter()
            .take_while(|&&number| number < self.best)
            .find(|&&number| {
                let one = &router.matches[number as usize];
                let parameters = &mut *parameters;
                let unmet = one.conditions.unmet(self.method, &head.headers, move || {
                    &*parameters.get_or_insert_with(|| router.interest.read(query))
                });
                unmet.is_none()
            });
        self.best = found.copied().unwrap_or(self.best);
        found.is_some()
    }
}

/// Service and method of a path of gRPC.
pub(super) fn call(path: &str) -> Option<(&str, &str)> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    let whole = !service.is_empty() && !method.is_empty() && !method.contains('/');
    whole.then_some((service, method))
}

impl Compiled {
    fn new(
        route: &Route,
        rule: usize,
        of: &Match,
        index: usize,
        compiler: &mut Compiler,
    ) -> Result<Self, MatchError> {
        let path = if route.origin.kind == Kind::Grpc {
            PathCondition::grpc(of.grpc.as_ref(), compiler)?
        } else {
            PathCondition::http(of.path.as_ref(), compiler)?
        };
        let conditions = Conditions::compile(of, compiler)?;
        let (headers, query) = (conditions.header_count(), conditions.query_count());
        Ok(Self {
            rule,
            index,
            rank: Rank::of(&route.origin, of, index, headers, query),
            path,
            conditions,
        })
    }
}

impl PathCondition {
    fn http(of: Option<&PathMatch>, compiler: &mut Compiler) -> Result<Self, MatchError> {
        Ok(match of {
            None => Self::Prefix("".into()),
            Some(PathMatch::Regex(text)) => Self::Pattern(text.clone(), compiler.pattern(text)?),
            Some(PathMatch::Exact(path) | PathMatch::Prefix(path)) if !path.starts_with('/') => {
                return Err(MatchError::Path(path.clone()));
            }
            Some(PathMatch::Exact(path)) => Self::Exact(path.as_ref().into()),
            Some(PathMatch::Prefix(prefix)) => Self::Prefix(trimmed(prefix).into()),
        })
    }

    fn grpc(of: Option<&GrpcMatch>, compiler: &mut Compiler) -> Result<Self, MatchError> {
        let (service, method, regex) = match of {
            None => (None, None, false),
            Some(of) => (of.service.as_deref(), of.method.as_deref(), of.regex),
        };
        Ok(match (service, method) {
            (None, None) => Self::Prefix("".into()),
            (service, method) if regex => {
                let part = |part: Option<&str>| part.unwrap_or("[^/]+").to_owned();
                // Each by itself first, so that neither can leave its parentheses.
                for pattern in [service, method].into_iter().flatten() {
                    compiler.pattern(pattern)?;
                }
                let text: Str = format!("/(?:{})/(?:{})", part(service), part(method)).into();
                let pattern = Pattern::joined(&text)?;
                Self::Pattern(text, pattern)
            }
            (Some(service), Some(method)) => Self::Exact(format!("/{service}/{method}").into()),
            (Some(service), None) => Self::Service(service.into()),
            (None, Some(method)) => Self::Method(method.into()),
        })
    }

    /// Whether the path fits.
    pub(super) fn fits(&self, path: &str) -> bool {
        match self {
            Self::Exact(want) => **want == *path,
            Self::Prefix(prefix) => path
                .strip_prefix(&**prefix)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || prefix.is_empty()),
            Self::Service(want) => call(path).is_some_and(|(service, _)| **want == *service),
            Self::Method(want) => call(path).is_some_and(|(_, method)| **want == *method),
            Self::Pattern(_, pattern) => pattern.matches(path),
        }
    }
}
