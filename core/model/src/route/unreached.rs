//! Matches that can never win: another of the same path asks for nothing more, and goes before them.

use std::collections::{BTreeMap, BTreeSet};

use super::precedence::{Criterion, Rank, trimmed};
use super::{GrpcMatch, KeyMatch, Match, Parent, PathMatch, Route, ValueMatch};
use crate::name::Str;

/// A match that no request ever takes at one parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unreached<'r> {
    /// Its rule.
    pub route: &'r Route,
    /// The parent.
    pub parent: &'r Parent,
    /// Which match of the rule, counted from 0.
    pub index: usize,
    /// The rule that takes its requests.
    pub by: &'r Route,
    /// Which match of that.
    pub by_index: usize,
    /// Why that one goes first.
    pub because: Criterion,
}

/// The place of a match in the order of precedence, and what it asks for.
struct Placed<'r> {
    rank: Rank,
    route: &'r Route,
    parent: &'r Parent,
    index: usize,
    path: Path<'r>,
    conditions: BTreeSet<Condition<'r>>,
}

/// A path in the one form that means it.
type Path<'r> = (u8, &'r str, Option<&'r GrpcMatch>);

/// A condition beside the path.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Condition<'r> {
    Method(&'r str),
    Header(String, Value<'r>),
    Query(&'r str, Value<'r>),
}

type Value<'r> = (bool, &'r str);

/// The matches that can never win, among rules of one kind that stand at one service for the same callers.
#[must_use]
pub fn unreached<'r>(hung: &[(&'r Route, &'r Parent)]) -> Vec<Unreached<'r>> {
    let nothing: &'static Match = &EVERYTHING;
    let mut placed: Vec<Placed<'r>> = Vec::new();
    for (route, parent) in hung {
        let all = route.matches.iter();
        let none = route.matches.is_empty().then_some(nothing);
        placed.extend(
            all.chain(none)
                .enumerate()
                .filter(|(_, one)| one.unreadable.is_none())
                .map(|(index, one)| Placed::of(route, parent, one, index)),
        );
    }
    placed.sort_by(|one, other| one.rank.cmp(&other.rank));
    let mut before: BTreeMap<(u8, &str), Vec<&Placed<'r>>> = BTreeMap::new();
    let mut found = Vec::new();
    for late in &placed {
        let same = before.entry((late.path.0, late.path.1)).or_default();
        if let Some(early) = same.iter().find(|early| early.takes_all_of(late)) {
            found.push(Unreached {
                route: late.route,
                parent: late.parent,
                index: late.index,
                by: early.route,
                by_index: early.index,
                because: late.rank.loses_to(&early.rank),
            });
        } else {
            same.push(late);
        }
    }
    found
}

/// What a rule without matches has.
static EVERYTHING: Match = Match {
    path: None,
    method: None,
    headers: Vec::new(),
    query: Vec::new(),
    grpc: None,
    unreadable: None,
};

impl<'r> Placed<'r> {
    fn of(route: &'r Route, parent: &'r Parent, one: &'r Match, index: usize) -> Self {
        let headers = first_of_each(&one.headers, |name| name.to_ascii_lowercase());
        let query = first_of_each(&one.query, |name| name.to_string());
        Self {
            rank: Rank::of(&route.origin, one, index, headers.len(), query.len()),
            route,
            parent,
            index,
            path: path(one),
            conditions: (one.method.iter().map(|method| Condition::Method(method)))
                .chain(
                    headers
                        .into_iter()
                        .map(|(name, of)| Condition::Header(name, value(&of.value))),
                )
                .chain(
                    query
                        .into_values()
                        .map(|of| Condition::Query(&of.name, value(&of.value))),
                )
                .collect(),
        }
    }

    /// Whether every request that a later match would take is taken here.
    fn takes_all_of(&self, late: &Self) -> bool {
        let is_itself = std::ptr::eq(self.route, late.route) && self.index == late.index;
        let port = self.parent.port;
        !is_itself
            && self.path == late.path
            && (port.is_none() || port == late.parent.port)
            && self.conditions.is_subset(&late.conditions)
    }
}

/// Of several conditions on one name, only the first counts.
fn first_of_each(of: &[KeyMatch], name: impl Fn(&Str) -> String) -> BTreeMap<String, &KeyMatch> {
    let mut first = BTreeMap::new();
    for one in of {
        first.entry(name(&one.name)).or_insert(one);
    }
    first
}

fn path(one: &Match) -> Path<'_> {
    let (form, text) = match &one.path {
        Some(PathMatch::Exact(path)) => (0, &**path),
        Some(PathMatch::Prefix(prefix)) => (1, trimmed(prefix)),
        None => (1, ""),
        Some(PathMatch::Regex(pattern)) => (2, &**pattern),
    };
    (form, text, one.grpc.as_ref())
}

fn value(of: &ValueMatch) -> Value<'_> {
    match of {
        ValueMatch::Exact(text) => (false, text),
        ValueMatch::Regex(pattern) => (true, pattern),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::NamespacedHostname;
    use crate::route::{Created, Kind, Origin, ParentTo, Timeouts};

    fn parent(port: Option<u16>) -> Parent {
        Parent {
            to: ParentTo::Service(NamespacedHostname::new("shop", "web")),
            port,
            consumer_namespace: None,
            hostnames: Vec::new(),
        }
    }

    /// A rule of an object that was created in this second.
    fn route(name: &str, second: i64, matches: Vec<Match>) -> Route {
        Route {
            origin: Origin {
                kind: Kind::Http,
                namespace: "shop".into(),
                name: name.into(),
                rule_index: 0,
                rule_name: "".into(),
                created: Some(Created {
                    seconds: second,
                    nanos: 0,
                }),
                generation: 0,
            },
            parents: Vec::new(),
            matches,
            filters: Vec::new(),
            backends: Vec::new(),
            timeouts: Timeouts::default(),
            retry: None,
            session: None,
            error: None,
        }
    }

    fn prefix(path: &str) -> Match {
        Match {
            path: Some(PathMatch::Prefix(path.into())),
            ..Match::default()
        }
    }

    fn with_header(mut one: Match, name: &str) -> Match {
        one.headers.push(KeyMatch {
            name: name.into(),
            value: ValueMatch::Exact("1".into()),
        });
        one
    }

    /// `<route>[<match>] by <route>: <why>` of what cannot win.
    fn found(old: (Vec<Match>, Option<u16>), young: (Vec<Match>, Option<u16>)) -> Vec<String> {
        let routes = [route("old", 1, old.0), route("young", 2, young.0)];
        let parents = [parent(old.1), parent(young.1)];
        let hung: Vec<_> = routes.iter().zip(&parents).collect();
        let found = unreached(&hung).into_iter();
        let text = |one: Unreached<'_>| {
            let (name, by, why) = (&one.route.origin.name, &one.by.origin.name, one.because.as_str());
            format!("{name}[{}] by {by}[{}]: {why}", one.index, one.by_index)
        };
        found.map(text).collect()
    }

    #[test]
    fn the_younger_of_two_equal_matches_never_wins() {
        let twice = found(
            (vec![prefix("/a"), prefix("/b")], None),
            (vec![prefix("/b/")], None),
        );
        assert_eq!(twice, ["young[0] by old[1]: is older"]);
        let without = found((Vec::new(), None), (vec![prefix("/")], None));
        assert_eq!(without, ["young[0] by old[0]: is older"]);
    }

    #[test]
    fn a_match_that_asks_for_more_goes_first_and_both_can_win() {
        let more = with_header(prefix("/a"), "x");
        assert_eq!(
            found((vec![prefix("/a")], None), (vec![more.clone()], None)),
            [""; 0]
        );
        let other = with_header(prefix("/a"), "y");
        assert_eq!(found((vec![more], None), (vec![other], None)), [""; 0]);
        let longer = found((vec![prefix("/a")], None), (vec![prefix("/a/b")], None));
        assert_eq!(longer, [""; 0]);
    }

    #[test]
    fn names_of_headers_have_no_case_and_count_once() {
        let once = with_header(prefix("/a"), "X-A");
        let twice = with_header(with_header(prefix("/a"), "x-a"), "x-A");
        assert_eq!(
            found((vec![once], None), (vec![twice], None)),
            ["young[0] by old[0]: is older"]
        );
    }

    #[test]
    fn a_rule_of_one_port_leaves_the_others_to_who_comes_after() {
        let of = |old, young| found((vec![prefix("/a")], old), (vec![prefix("/a")], young));
        assert_eq!(of(Some(80), None), [""; 0]);
        assert_eq!(of(Some(80), Some(81)), [""; 0]);
        assert_eq!(of(Some(80), Some(80)).len(), 1);
        assert_eq!(of(None, Some(80)).len(), 1);
    }

    #[test]
    fn a_rule_that_hangs_twice_does_not_hide_itself() {
        let (route, parents) = (route("a", 1, vec![prefix("/")]), [parent(None), parent(Some(80))]);
        assert_eq!(unreached(&[(&route, &parents[0]), (&route, &parents[1])]), []);
    }
}
