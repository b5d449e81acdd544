//! The router answers as the plain reading does, for any routes and requests of a small world.

use std::sync::Arc;

use http::Method;
use proptest::prelude::*;

use crate::request::RequestHead;
use crate::route::{
    Fate, GrpcMatch, KeyMatch, Kind, Match, PathMatch, Route, Router, Selection, ValueMatch, oracle,
};
use crate::testing::{grpc_call, request, route};

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "ab", ""]), 0..4)
        .prop_map(|segments| format!("/{}", segments.join("/")))
}

fn value() -> impl Strategy<Value = ValueMatch> {
    prop_oneof![
        prop::sample::select(vec!["1", "2", "1, 2", ""]).prop_map(|value| ValueMatch::Exact(value.into())),
        prop::sample::select(vec!["[12]", "1.*", ""]).prop_map(|value| ValueMatch::Regex(value.into())),
    ]
}

fn keys() -> impl Strategy<Value = Vec<KeyMatch>> {
    let key = (prop::sample::select(vec!["x", "X", "y"]), value());
    let key = key.prop_map(|(name, value)| KeyMatch {
        name: name.into(),
        value,
    });
    prop::collection::vec(key, 0..3)
}

fn path_match() -> impl Strategy<Value = Option<PathMatch>> {
    let regex = prop::sample::select(vec!["/a.*", "/.*b", "/(a|b)/?", "/[^/]*"]);
    prop::option::of(prop_oneof![
        path().prop_map(|path| PathMatch::Exact(path.into())),
        path().prop_map(|path| PathMatch::Prefix(path.into())),
        regex.prop_map(|pattern| PathMatch::Regex(pattern.into())),
    ])
}

fn grpc_match() -> impl Strategy<Value = Option<GrpcMatch>> {
    let exact = (
        prop::option::of(prop::sample::select(vec!["a", "b", "a.b"])),
        prop::option::of(prop::sample::select(vec!["c", "dd"])),
    );
    let regex = (
        prop::option::of(prop::sample::select(vec!["a.*", ".*", "[ab]"])),
        prop::option::of(prop::sample::select(vec!["c|dd", ".", "d+"])),
    );
    let of = |(service, method): (Option<&str>, Option<&str>), regex| GrpcMatch {
        service: service.map(Into::into),
        method: method.map(Into::into),
        regex,
    };
    prop::option::of(prop_oneof![
        exact.prop_map(move |parts| of(parts, false)),
        regex.prop_map(move |parts| of(parts, true)),
    ])
}

fn one_match() -> impl Strategy<Value = Match> {
    let method = prop::option::of(prop::sample::select(vec!["GET", "POST", "get"]));
    let read = (path_match(), method, keys(), keys(), grpc_match());
    let read = read.prop_map(|(path, method, headers, query, grpc)| Match {
        path,
        method: method.map(Into::into),
        headers,
        query,
        grpc,
        unreadable: None,
    });
    prop_oneof![9 => read, 1 => Just(Match::unreadable("of a type that nobody knows"))]
}

fn routes(kind: Kind) -> impl Strategy<Value = Vec<Route>> {
    let name = prop::sample::select(vec!["n/a", "n/b", "n-m/a"]);
    let one = (
        name,
        prop::collection::vec(one_match(), 0..3),
        prop::option::of(0..3_i64),
    );
    prop::collection::vec(one, 1..20).prop_map(move |of| {
        let numbered = of.into_iter().zip(0..);
        let make = |((name, mut matches, created), rule): ((&str, Vec<Match>, Option<i64>), u32)| {
            for one in &mut matches {
                // A GRPCRoute has no conditions on path, method or query.
                if kind == Kind::Grpc {
                    (one.path, one.method, one.query) = (None, None, Vec::new());
                } else {
                    one.grpc = None;
                }
            }
            let made = Route {
                matches,
                ..route(kind, name).rule(rule)
            };
            match created {
                Some(seconds) => made.created(seconds),
                None => made,
            }
        };
        numbered.map(make).collect()
    })
}

fn requests() -> impl Strategy<Value = RequestHead> {
    let headers = prop::collection::vec(
        (
            prop::sample::select(vec!["x", "y"]),
            prop::sample::select(vec!["1", "2", ""]),
        ),
        0..4,
    );
    let query = prop::option::of(prop::collection::vec(
        (
            prop::sample::select(vec!["x", "X", "%78", "y"]),
            prop::sample::select(vec!["1", "%31", "2", ""]),
        ),
        0..4,
    ));
    let method = prop::sample::select(vec![Method::GET, Method::POST]);
    (path(), method, headers, query, prop::bool::ANY).prop_map(|(path, method, headers, query, grpc)| {
        let mut head = if grpc {
            grpc_call(&path)
        } else {
            request(method, &path)
        };
        for (name, value) in headers {
            head = head.header(name, value);
        }
        let parts = |query: Vec<(&str, &str)>| {
            query
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect::<Vec<_>>()
                .join("&")
        };
        head.query = query.map(|query| parts(query).into());
        head
    })
}

fn calls() -> impl Strategy<Value = RequestHead> {
    let service = prop::sample::select(vec!["a", "b", "a.b", "c"]);
    let method = prop::sample::select(vec!["c", "dd", "d", "x"]);
    (service, method, requests()).prop_map(|(service, method, head)| {
        let call = grpc_call(&format!("/{service}/{method}"));
        let mut headers = head.headers;
        headers.insert("content-type", "application/grpc".parse().unwrap());
        RequestHead { headers, ..call }
    })
}

fn same(kind: Kind, routes: &[Route], head: &RequestHead) -> Result<(), TestCaseError> {
    let shared: Vec<_> = routes.iter().cloned().map(Arc::new).collect();
    let mut place = 0..;
    let router = Router::compile(kind, &shared, |_| place.next().unwrap());
    let selected = match router.select(head) {
        Selection::Rule(chosen) => Some((*chosen.rule, chosen.matched)),
        _ => None,
    };
    prop_assert_eq!(selected, oracle::select(routes, head));
    let explained = router.explain(head);
    let wins = explained.iter().find(|one| one.fate == Fate::Wins);
    prop_assert_eq!(wins.map(|one| (*one.rule, one.matched)), selected);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn requests_take_the_rule_that_a_plain_reading_gives_them(
        routes in routes(Kind::Http),
        heads in prop::collection::vec(requests(), 1..8),
    ) {
        for head in &heads {
            same(Kind::Http, &routes, head)?;
        }
    }

    #[test]
    fn calls_take_the_rule_that_a_plain_reading_gives_them(
        routes in routes(Kind::Grpc),
        heads in prop::collection::vec(calls(), 1..8),
    ) {
        for head in &heads {
            same(Kind::Grpc, &routes, head)?;
        }
    }
}
