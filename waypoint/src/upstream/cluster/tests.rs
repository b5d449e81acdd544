use super::super::balance::tests::seeded;
use super::super::outcome::{Answer, Hint, Outcome, Unsent};
use super::*;
use tulle_model::testing::{WorkloadBuilder, service, workload};

/// A backend under test: endpoints come and go, what is remembered stays.
struct Given {
    state: Arc<ClusterState>,
    policy: ClusterPolicy,
    service: Arc<Service>,
    random: Box<dyn FnMut(u64) -> u64>,
    now: Time,
}

impl Given {
    fn with(policy: ClusterPolicy) -> Self {
        Self {
            state: Arc::default(),
            policy,
            service: Arc::new(service("web").port(80, 8080).build()),
            random: Box::new(seeded(7)),
            now: Time::from_millis(1_000),
        }
    }

    fn plain() -> Self {
        Self::with(ClusterPolicy::default())
    }

    fn by(algorithm: Algorithm) -> Self {
        Self::with(ClusterPolicy {
            balancing: LoadBalancing {
                algorithm: Some(algorithm),
                ..LoadBalancing::default()
            },
            ..ClusterPolicy::default()
        })
    }

    fn detecting() -> Self {
        Self::with(ClusterPolicy {
            outlier: Some(outlier::Settings {
                consecutive: 1,
                percent_max: 100,
                ..outlier::Settings::from(&traffic::Outlier::default())
            }),
            ..ClusterPolicy::default()
        })
    }

    fn serving(&self, builder: WorkloadBuilder, rank: usize) -> Serving {
        let workload: Arc<Workload> = builder.build().into();
        Serving {
            target_port: 8080,
            rank,
            healthy: workload.status == tulle_model::workload::HealthStatus::Healthy,
            workload,
        }
    }

    fn of(&self, serving: &[Serving]) -> Arc<Cluster> {
        self.shared(serving, &[])
    }

    fn shared(&self, serving: &[Serving], shares: &[(usize, u32)]) -> Arc<Cluster> {
        let sources = Sources {
            here: &workload("way").build(),
            name: "default/web.default.svc.cluster.local:80".into(),
            service: Some(&self.service),
            serving,
            via: &[],
            shares,
            policy: self.policy.clone(),
            unit: Unit::Requests,
        };
        Arc::new(Cluster::new(sources, &self.state, self.now))
    }

    fn cluster(&self, names: &[&str]) -> Arc<Cluster> {
        let serving: Vec<_> = names.iter().map(|name| self.serving(workload(name), 0)).collect();
        self.of(&serving)
    }

    fn pick(&mut self, cluster: &Arc<Cluster>) -> Option<Pick> {
        let ask = Ask {
            now: self.now,
            ..Ask::default()
        };
        cluster.pick(&ask, &mut self.random)
    }

    /// Picks and settles so many times: who was picked how often.
    fn run(
        &mut self,
        cluster: &Arc<Cluster>,
        times: usize,
        outcome: impl Fn(&str) -> (Outcome, u64),
    ) -> HashMap<Str, usize> {
        let mut counts = HashMap::new();
        for _ in 0..times {
            let mut pick = self.pick(cluster).unwrap();
            let name = pick.endpoint().workload.name.clone();
            let (outcome, millis) = outcome(&name);
            *counts.entry(name).or_default() += 1;
            self.now = self.now + Duration::from_millis(1);
            pick.settle(&outcome, pick.at() + Duration::from_millis(millis));
        }
        counts
    }
}

fn ok() -> Outcome {
    Outcome::Answered(Answer::status(200))
}

fn named(pick: &Pick) -> &str {
    &pick.endpoint().workload.name
}

#[test]
fn nothing_is_picked_from_no_endpoints() {
    for algorithm in [
        Algorithm::PeakEwma,
        Algorithm::RoundRobin,
        Algorithm::Random,
        Algorithm::Maglev,
    ] {
        let mut given = Given::by(algorithm);
        let cluster = given.cluster(&[]);
        assert!(given.pick(&cluster).is_none(), "{algorithm:?}");
        let unhealthy = [given.serving(workload("a").unhealthy(), 0)];
        let cluster = given.of(&unhealthy);
        assert!(given.pick(&cluster).is_none(), "{algorithm:?}");
    }
}

#[test]
fn the_slow_one_of_four_gets_little() {
    let mut given = Given::plain();
    let cluster = given.cluster(&["a", "b", "c", "slow"]);
    let counts = given.run(&cluster, 4_000, |name| {
        (ok(), if name == "slow" { 100 } else { 5 })
    });
    let slow = counts.get("slow").copied().unwrap_or(0);
    assert!(slow < 200, "{counts:?}");
    assert!(
        counts.values().filter(|count| **count > 1_000).count() == 3,
        "{counts:?}"
    );
}

#[test]
fn fast_errors_attract_nothing() {
    let mut given = Given::plain();
    let cluster = given.cluster(&["a", "b", "c", "broken"]);
    let failing = |name: &str| match name {
        "broken" => (Outcome::Answered(Answer::status(500)), 0),
        _ => (ok(), 10),
    };
    let counts = given.run(&cluster, 2_000, failing);
    assert!(counts.get("broken").copied().unwrap_or(0) < 20, "{counts:?}");
}

#[test]
fn a_hint_says_how_long_a_failure_counts() {
    let mut given = Given::plain();
    let cluster = given.cluster(&["a"]);
    let mut pick = given.pick(&cluster).unwrap();
    let answer = Answer {
        hint: Some(Hint::After(Duration::from_secs(600))),
        ..Answer::status(503)
    };
    pick.settle(&Outcome::Answered(answer), given.now);
    let latency = pick.endpoint().state.latency(given.now).unwrap();
    assert!(
        (299..=301).contains(&latency.as_secs()),
        "{latency:?}: five minutes at most"
    );
}

#[test]
fn a_new_endpoint_starts_as_the_usual_one() {
    let mut given = Given::plain();
    let two = given.cluster(&["a", "b"]);
    given.run(&two, 200, |_| (ok(), 20));
    let three = given.cluster(&["a", "b", "new"]);
    let counts = given.run(&three, 300, |_| (ok(), 20));
    assert!((60..=140).contains(&counts["new"]), "{counts:?}");
}

#[test]
fn what_is_remembered_survives_snapshots() {
    let mut given = Given::plain();
    let first = given.cluster(&["a", "b"]);
    let pick = given.pick(&first).unwrap();
    let second = given.cluster(&["b", "a", "c"]);
    let same = second
        .endpoints()
        .iter()
        .find(|one| one.workload.uid == pick.endpoint().workload.uid)
        .unwrap();
    assert!(Arc::ptr_eq(&same.state, &pick.endpoint().state));
    assert_eq!(same.state.in_flight(), 1);
    drop(pick);
    assert_eq!(same.state.in_flight(), 0);
}

#[test]
fn a_retry_goes_to_an_endpoint_that_was_not_tried() {
    for algorithm in [
        Algorithm::PeakEwma,
        Algorithm::LeastRequest,
        Algorithm::RoundRobin,
        Algorithm::Random,
    ] {
        let mut given = Given::by(algorithm);
        let cluster = given.cluster(&["a", "b", "c"]);
        let mut tried = Vec::new();
        for _ in 0..3 {
            let ask = Ask {
                now: given.now,
                tried: &tried,
                ..Ask::default()
            };
            let pick = cluster.pick(&ask, &mut given.random).unwrap();
            assert!(
                !tried.iter().any(|one| Arc::ptr_eq(one, &pick.endpoint().state)),
                "{algorithm:?}"
            );
            tried.push(Arc::clone(&pick.endpoint().state));
        }
        let ask = Ask {
            now: given.now,
            tried: &tried,
            ..Ask::default()
        };
        assert!(
            cluster.pick(&ask, &mut given.random).is_some(),
            "{algorithm:?}: none other is left"
        );
    }
}

#[test]
fn a_hash_keeps_its_endpoint_also_when_it_was_tried() {
    let mut given = Given::by(Algorithm::RingHash);
    let cluster = given.cluster(&["a", "b", "c"]);
    let ask = Ask {
        now: given.now,
        hash: Some(42),
        ..Ask::default()
    };
    let first = cluster.pick(&ask, &mut given.random).unwrap();
    let tried = [Arc::clone(&first.endpoint().state)];
    let again = cluster
        .pick(&Ask { tried: &tried, ..ask }, &mut given.random)
        .unwrap();
    assert_eq!(named(&first), named(&again));
}

#[test]
fn a_session_beats_the_hash() {
    let mut given = Given::by(Algorithm::RingHash);
    let cluster = given.cluster(&["a", "b", "c"]);
    for endpoint in cluster.endpoints() {
        let session = Some(cluster.fingerprint(endpoint));
        let ask = Ask {
            now: given.now,
            hash: Some(42),
            session,
            ..Ask::default()
        };
        let pick = cluster.pick(&ask, &mut given.random).unwrap();
        assert_eq!(named(&pick), &*endpoint.workload.name);
    }
    assert!(!cluster.knows(7));
}

#[test]
fn a_failing_endpoint_is_left_out_and_comes_back_by_one_request() {
    let mut given = Given::detecting();
    let cluster = given.cluster(&["a", "b", "bad"]);
    let bad = |name: &str| match name {
        "bad" => (Outcome::Unsent(Unsent::Connect), 1),
        _ => (ok(), 1),
    };
    let counts = given.run(&cluster, 500, bad);
    assert_eq!(counts["bad"], 1, "{counts:?}");
    given.now = given.now + Duration::from_secs(40);
    let probe = given.pick(&cluster).unwrap();
    assert_eq!(named(&probe), "bad");
    let counts = given.run(&cluster, 50, |_| (ok(), 1));
    assert!(!counts.contains_key("bad"), "one at a time: {counts:?}");
    drop(probe);
    let mut probe = given.pick(&cluster).unwrap();
    assert_eq!(
        named(&probe),
        "bad",
        "the first had no end, so the next one tries"
    );
    probe.settle(&ok(), given.now);
    assert_eq!(given.state.bench.out(), 0);
}

#[test]
fn the_last_usable_endpoint_stays() {
    let mut given = Given::detecting();
    let cluster = given.cluster(&["a", "b"]);
    let counts = given.run(&cluster, 100, |_| (Outcome::Reset, 1));
    assert_eq!(counts.values().sum::<usize>(), 100);
    assert_eq!(given.state.bench.out(), 1);
    assert!(given.state.bench.skipped() > 0);
}

#[test]
fn an_endpoint_that_goes_away_while_out_makes_room() {
    let mut given = Given::detecting();
    let cluster = given.cluster(&["a", "b"]);
    given.run(&cluster, 10, |name| {
        if name == "a" {
            (Outcome::Reset, 1)
        } else {
            (ok(), 1)
        }
    });
    assert_eq!(given.state.bench.out(), 1);
    let cluster = given.cluster(&["b", "c"]);
    assert_eq!(given.state.bench.out(), 0);
    assert_eq!(given.run(&cluster, 10, |_| (ok(), 1)).values().sum::<usize>(), 10);
}

#[test]
fn endpoints_far_below_the_others_are_left_out() {
    let mut given = Given::detecting();
    let settings = given.policy.outlier.as_mut().unwrap();
    settings.consecutive = 1_000;
    settings.failure_percent = Some((&traffic::FailurePercent::default()).into());
    given.policy.balancing.algorithm = Some(Algorithm::RoundRobin);
    let cluster = given.cluster(&["a", "b", "c", "d", "bad"]);
    let outcome = |name: &str| {
        (
            if name == "bad" {
                Outcome::Answered(Answer::status(503))
            } else {
                ok()
            },
            1,
        )
    };
    given.run(&cluster, 300, outcome);
    assert_eq!(given.state.bench.out(), 0, "the interval has not ended");
    given.now = given.now + Duration::from_secs(10);
    given.run(&cluster, 1, outcome);
    assert_eq!(given.state.bench.out(), 1);
    let counts = given.run(&cluster, 100, outcome);
    assert!(!counts.contains_key("bad"), "{counts:?}");
}

#[test]
fn a_place_that_lacks_endpoints_spills() {
    let mut given = Given::detecting();
    let near = |name| given.serving(workload(name), 1);
    let serving = [near("near-1"), near("near-2"), given.serving(workload("far"), 0)];
    let cluster = given.of(&serving);
    let counts = given.run(&cluster, 100, |_| (ok(), 1));
    assert!(!counts.contains_key("far"), "{counts:?}");
    let counts = given.run(&cluster, 1_000, |name| {
        if name == "near-1" {
            (Outcome::Reset, 1)
        } else {
            (ok(), 1)
        }
    });
    let far = counts["far"];
    assert!(
        (200..400).contains(&far),
        "half is usable, so 30 % go on: {counts:?}"
    );
}

#[test]
fn unhealthy_endpoints_make_a_place_smaller() {
    let mut given = Given::plain();
    let serving = [
        given.serving(workload("near-1"), 1),
        given.serving(workload("near-2").unhealthy(), 1),
        given.serving(workload("far"), 0),
    ];
    let cluster = given.of(&serving);
    let counts = given.run(&cluster, 1_000, |_| (ok(), 1));
    assert!((200..400).contains(&counts["far"]), "{counts:?}");
    assert!(!counts.contains_key("near-2"));
}

#[test]
fn waypoints_share_requests_by_weight_while_each_has_an_instance() {
    let mut given = Given::plain();
    let instance = |given: &Given, name: &str, healthy: bool| Serving {
        healthy,
        ..given.serving(workload(name), 0)
    };
    let names = ["primary-1", "primary-2", "canary"];
    let all = names.map(|name| instance(&given, name, true));
    let cluster = given.shared(&all, &[(2, 90), (1, 10)]);
    let counts = given.run(&cluster, 1_000, |_| (ok(), 1));
    assert!((60..140).contains(&counts["canary"]), "{counts:?}");
    assert!(
        counts["primary-1"] > 300 && counts["primary-2"] > 300,
        "{counts:?}"
    );
    let all = names.map(|name| instance(&given, name, name != "canary"));
    let cluster = given.shared(&all, &[(2, 90), (1, 10)]);
    let counts = given.run(&cluster, 100, |_| (ok(), 1));
    assert!(
        !counts.contains_key("canary"),
        "whoever is left takes all: {counts:?}"
    );
}

#[test]
fn new_endpoints_warm_up() {
    let mut given = Given::by(Algorithm::RoundRobin);
    given.policy.balancing.slow_start = Some(traffic::SlowStart {
        window: Duration::from_secs(100),
        ..traffic::SlowStart::default()
    });
    let cluster = given.cluster(&["old"]);
    given.now = given.now + Duration::from_secs(200);
    assert!(given.pick(&cluster).is_some());
    let cluster = given.cluster(&["old", "new"]);
    let cold = given.run(&cluster, 1_000, |_| (ok(), 0));
    assert!((40..140).contains(&cold["new"]), "a tenth of a half: {cold:?}");
    given.now = given.now + Duration::from_secs(50);
    let half = given.run(&cluster, 1_000, |_| (ok(), 0));
    assert!((280..400).contains(&half["new"]), "half of its turns: {half:?}");
}

#[test]
fn warmth_follows_the_formula() {
    let slow = |aggression_milli| traffic::SlowStart {
        window: Duration::from_secs(100),
        aggression_milli: Some(aggression_milli),
        percent_min: None,
    };
    let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} {b}");
    near(warmth(&slow(1_000), Duration::ZERO), 0.1);
    near(warmth(&slow(1_000), Duration::from_secs(25)), 0.25);
    near(warmth(&slow(2_000), Duration::from_secs(25)), 0.5);
    near(warmth(&slow(1_000), Duration::from_secs(100)), 1.0);
}

#[test]
fn a_service_that_passes_through_goes_to_the_address_asked_for() {
    let mut given = Given::plain();
    given.service = Arc::new(service("web").port(80, 8080).passthrough().build());
    let serving = [
        given.serving(workload("a").ip("10.0.0.1"), 0),
        given.serving(workload("b").ip("10.0.0.2"), 0),
    ];
    let cluster = given.of(&serving);
    let mut at = |ip: &str| {
        let ask = Ask {
            now: given.now,
            address: Some(ip.parse().unwrap()),
            ..Ask::default()
        };
        cluster
            .pick(&ask, &mut given.random)
            .map(|pick| named(&pick).to_owned())
    };
    assert_eq!(at("10.0.0.2").as_deref(), Some("b"));
    assert_eq!(at("10.0.0.3"), None, "it must be known");
}
