//! The rules of matching and precedence, said as plainly as can be: look at everything, sort, take the first.

use std::cmp::Reverse;

use super::query::decoded;
use super::{Kind, Match, PathMatch, Route, ValueMatch};
use crate::request::RequestHead;

/// The place of the route and of the match that a request takes.
pub(super) fn select(routes: &[Route], head: &RequestHead) -> Option<(usize, usize)> {
    let mut held: Vec<_> = routes
        .iter()
        .enumerate()
        .flat_map(|(route, of)| {
            let matches = if of.matches.is_empty() {
                vec![Match::default()]
            } else {
                of.matches.clone()
            };
            matches
                .into_iter()
                .enumerate()
                .map(move |(index, one)| (route, index, one))
        })
        .filter(|(route, _, one)| holds(routes[*route].origin.kind, one, head))
        .collect();
    held.sort_by_key(|(route, index, one)| key(&routes[*route], one, *index));
    held.first().map(|(route, index, _)| (*route, *index))
}

fn holds(kind: Kind, one: &Match, head: &RequestHead) -> bool {
    let path = if kind == Kind::Grpc {
        call_holds(one, head)
    } else {
        path_holds(one, &head.path)
    };
    path && one.unreadable.is_none()
        && one
            .method
            .as_ref()
            .is_none_or(|method| **method == *head.method.as_str())
        && first_of_each(&one.headers, true).iter().all(|(name, want)| {
            let values: Vec<_> = head
                .headers
                .get_all(&**name)
                .iter()
                .map(|v| v.to_str().unwrap())
                .collect();
            !values.is_empty() && value_holds(want, &values.join(", "))
        })
        && first_of_each(&one.query, false).iter().all(|(name, want)| {
            let parts = head.query.iter().flat_map(|query| query.split('&'));
            let mut pairs = parts.map(|part| part.split_once('=').unwrap_or((part, "")));
            let value = pairs.find(|(key, _)| *decoded(key) == *name.as_bytes());
            value.is_some_and(|(_, value)| value_holds(want, &String::from_utf8_lossy(&decoded(value))))
        })
}

fn first_of_each(keys: &[super::KeyMatch], fold: bool) -> Vec<(String, ValueMatch)> {
    let mut first: Vec<(String, ValueMatch)> = Vec::new();
    for key in keys {
        let name = if fold {
            key.name.to_lowercase()
        } else {
            key.name.to_string()
        };
        if first.iter().all(|(known, _)| *known != name) {
            first.push((name, key.value.clone()));
        }
    }
    first
}

fn value_holds(want: &ValueMatch, value: &str) -> bool {
    match want {
        ValueMatch::Exact(want) => **want == *value,
        ValueMatch::Regex(pattern) => whole(pattern, value),
    }
}

fn whole(pattern: &str, text: &str) -> bool {
    regex::Regex::new(&format!("^(?:{pattern})$"))
        .unwrap()
        .is_match(text)
}

fn path_holds(one: &Match, path: &str) -> bool {
    match &one.path {
        None => true,
        Some(PathMatch::Exact(want)) => **want == *path,
        Some(PathMatch::Regex(pattern)) => whole(pattern, path),
        Some(PathMatch::Prefix(prefix)) => {
            let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
            prefix.is_empty() || path == prefix || path.starts_with(&format!("{prefix}/"))
        }
    }
}

fn call_holds(one: &Match, head: &RequestHead) -> bool {
    let parts: Vec<_> = head.path.split('/').collect();
    let ["", service, method] = parts.as_slice() else {
        return false;
    };
    if !head.is_grpc() || service.is_empty() || method.is_empty() {
        return false;
    }
    let Some(call) = &one.grpc else { return true };
    let part = |want: &Option<crate::Str>, is: &str| {
        want.as_ref().is_none_or(|want| {
            if call.regex {
                whole(want, is)
            } else {
                **want == *is
            }
        })
    };
    part(&call.service, service) && part(&call.method, method)
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Key(
    [Reverse<usize>; 7],
    (bool, Option<super::Created>),
    String,
    u32,
    usize,
);

fn key(route: &Route, one: &Match, index: usize) -> Key {
    let len = |text: Option<&crate::Str>| text.map_or(0, |text| text.len());
    let headers = first_of_each(&one.headers, true).len();
    let query = first_of_each(&one.query, false).len();
    // The larger, the better, in this order.
    let merits = if route.origin.kind == Kind::Grpc {
        let call = one.grpc.clone().unwrap_or_default();
        let (service, method) = (call.service.as_ref(), call.method.as_ref());
        let exact = service.is_some() && method.is_some() && !call.regex;
        let not_regex = usize::from(!call.regex);
        [
            usize::from(exact),
            len(service),
            len(method),
            not_regex,
            0,
            headers,
            query,
        ]
    } else {
        let (form, length) = match &one.path {
            Some(PathMatch::Exact(_)) => (3, 0),
            None => (2, 0),
            Some(PathMatch::Prefix(prefix)) => (2, prefix.strip_suffix('/').unwrap_or(prefix).len()),
            Some(PathMatch::Regex(pattern)) => (1, pattern.len()),
        };
        [
            form,
            length,
            0,
            0,
            usize::from(one.method.is_some()),
            headers,
            query,
        ]
    };
    let origin = &route.origin;
    Key(
        merits.map(Reverse),
        (origin.created.is_none(), origin.created),
        format!("{}/{}", origin.namespace, origin.name),
        origin.rule_index,
        index,
    )
}
