//! The requests that a fault or a limit is for: alternatives of the kind that routes have.

use std::sync::Arc;

use crate::request::RequestHead;
use crate::route::router::{Router, Selection};
use crate::route::{Kind, Match, Origin, Route, Timeouts};

/// Compiled alternatives. Without any, every request is meant.
#[derive(Debug)]
pub struct Matches {
    http: Option<Router<()>>,
    grpc: Option<Router<()>>,
    is_every: bool,
}

impl Matches {
    /// Compiles alternatives. One that cannot be used never matches; the control plane refuses such.
    #[must_use]
    pub fn new(matches: &[Match]) -> Self {
        let (grpc, http): (Vec<_>, Vec<_>) = matches.iter().cloned().partition(|one| one.grpc.is_some());
        let router = |kind, matches: Vec<Match>| {
            let is_some = !matches.is_empty();
            is_some.then(|| Router::compile(kind, [&Arc::new(route(kind, matches))], |_| ()))
        };
        Self {
            http: router(Kind::Http, http),
            grpc: router(Kind::Grpc, grpc),
            is_every: matches.is_empty(),
        }
    }

    /// Whether a request is meant.
    #[must_use]
    pub fn contain(&self, head: &RequestHead) -> bool {
        let takes = |router: &Option<Router<()>>| {
            let selection = router.as_ref().map(|router| router.select(head));
            matches!(selection, Some(Selection::Rule(_)))
        };
        self.is_every || takes(&self.http) || takes(&self.grpc)
    }
}

fn route(kind: Kind, matches: Vec<Match>) -> Route {
    Route {
        origin: Origin {
            kind,
            namespace: "".into(),
            name: "".into(),
            rule_index: 0,
            rule_name: "".into(),
            created: None,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{exact, get, grpc, grpc_call, prefix};

    #[test]
    fn without_alternatives_every_request_is_meant() {
        assert!(Matches::new(&[]).contain(&get("/")));
    }

    #[test]
    fn one_alternative_is_enough() {
        let matches = Matches::new(&[
            exact("/a"),
            prefix("/b").header("x-team", "blue"),
            grpc(Some("shop.Cart"), None, false),
        ]);
        assert!(matches.contain(&get("/a")));
        assert!(!matches.contain(&get("/b/c")));
        assert!(matches.contain(&get("/b/c").header("x-team", "blue")));
        assert!(matches.contain(&grpc_call("/shop.Cart/Add")));
        assert!(!matches.contain(&get("/shop.Cart/Add")));
    }
}
