//! A policy of many rules: what compiling it costs, and what a refusal does.

use std::fmt;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tulle_model::Identity;
use tulle_model::authz::policy::StringMatch;
use tulle_model::policy::authz::{
    Action, Attributes, Authorizer, Authz, From, PathPattern, Rule, To, Values,
};
use tulle_model::policy::{Concern, On, Policy, Target};
use tulle_model::request::{Destination, Source};
use tulle_model::route::{Kind, Origin};
use tulle_model::testing::get;

/// Times that a policy is compiled.
const TURNS: usize = 5;
/// Refusals that are timed together.
const REFUSALS: u32 = 1_000;

/// What was measured.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    /// Rules.
    pub rules: usize,
    /// Compiling them, the fastest turn.
    pub compile: Duration,
    /// One refusal that no rule matches.
    pub refuse: Duration,
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            rules,
            compile,
            refuse,
        } = self;
        write!(
            f,
            "{rules} rules: compiled in {compile:.2?}, refused in {refuse:.0?}"
        )
    }
}

/// Compiles a policy of so many rules.
#[must_use]
pub fn measure(rules: usize) -> Measured {
    let policy = policy(rules);
    let (mut compile, mut last) = (Duration::MAX, Authorizer::default());
    for _ in 0..TURNS {
        let started = Instant::now();
        last = Authorizer::new([&policy]);
        compile = compile.min(started.elapsed());
    }
    let source = Source {
        identity: Some(Identity::new("cluster.local", "shop", "web")),
        ip: [10, 0, 0, 7].into(),
        remote_ip: [10, 0, 0, 7].into(),
    };
    let destination = Destination {
        address: ([10, 96, 0, 1], 80).into(),
    };
    let head = get("/api/none/items");
    let of = Attributes::of_request(&source, destination, &head, None);
    let started = Instant::now();
    for _ in 0..REFUSALS {
        black_box(last.check(black_box(&of)));
    }
    Measured {
        rules,
        compile,
        refuse: started.elapsed() / REFUSALS,
    }
}

/// An ALLOW policy of which no rule matches: the longest way to a refusal.
#[must_use]
pub fn policy(rules: usize) -> Arc<Policy> {
    let exact = |text: String| Values {
        any: vec![StringMatch::Exact(text.into())],
        none: vec![],
    };
    let rule = |n: usize| Rule {
        from: vec![From {
            principals: exact(format!("cluster.local/ns/ns-{}/sa/web-{n}", n % 50)),
            ..From::default()
        }],
        to: vec![To {
            methods: exact("GET".into()),
            paths: Values {
                any: vec![PathPattern::Text(StringMatch::Prefix(
                    format!("/api/v{n}/").into(),
                ))],
                none: vec![],
            },
            ..To::default()
        }],
        ..Rule::default()
    };
    Arc::new(Policy {
        object: "AuthorizationPolicy".into(),
        origin: Origin {
            kind: Kind::Policy,
            namespace: "shop".into(),
            name: "p".into(),
            rule_index: 0,
            rule_name: "".into(),
            created: None,
            generation: 0,
        },
        targets: vec![Target {
            on: On::Mesh,
            port: None,
            section: None,
        }],
        dry_run: false,
        concern: Concern::Authz(Authz {
            action: Action::Allow,
            rules: (0..rules).map(rule).collect(),
            provider: None,
        }),
    })
}
