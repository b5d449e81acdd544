use proptest::prelude::*;

use super::super::outcome::Answer;
use super::machine::TIMES_MAX;
use super::*;
use crate::clock::Time;

fn settings() -> Settings {
    Settings::from(&traffic::Outlier::default())
}

fn at(seconds: u64) -> Time {
    Time::after(Duration::from_secs(seconds))
}

/// An endpoint of a backend with ten.
#[derive(Default)]
struct Given {
    bench: Bench,
    health: Health,
}

const USABLE: usize = 10;

impl Given {
    fn fails(&self, now: Time) -> Change {
        self.health.observe(
            &self.bench,
            &settings(),
            Some(Verdict::Failed),
            false,
            USABLE,
            now,
        )
    }

    fn works(&self, now: Time) -> Change {
        self.health.observe(
            &self.bench,
            &settings(),
            Some(Verdict::Worked),
            false,
            USABLE,
            now,
        )
    }

    fn probe_ends(&self, verdict: Option<Verdict>, now: Time) -> Change {
        self.health
            .observe(&self.bench, &settings(), verdict, true, USABLE, now)
    }

    fn eject(&self, now: Time) -> Time {
        while self.fails(now) != Change::Ejected {}
        match self.health.phase() {
            Phase::Ejected(until) => until,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn five_failures_in_a_row_eject() {
    let given = Given::default();
    for _ in 0..4 {
        assert_eq!(given.fails(at(1)), Change::None);
    }
    assert!(given.health.is_closed());
    assert_eq!(given.fails(at(1)), Change::Ejected);
    assert_eq!((given.bench.out(), given.bench.ejections()), (1, 1));
}

#[test]
fn a_success_between_begins_the_count_anew() {
    let given = Given::default();
    for _ in 0..20 {
        (0..4).for_each(|_| assert_eq!(given.fails(at(1)), Change::None));
        given.works(at(1));
    }
    assert!(given.health.is_closed());
}

#[test]
fn an_ejection_lasts_its_base_times_its_number_with_a_tenth_of_jitter() {
    let given = Given::default();
    let mut now = at(100);
    for (times, nominal) in [(1, 30), (2, 60), (3, 90)] {
        let until = if times == 1 {
            given.eject(now)
        } else {
            assert!(given.health.probe(now));
            given.probe_ends(Some(Verdict::Failed), now);
            let Phase::Ejected(until) = given.health.phase() else {
                panic!("out again")
            };
            until
        };
        let lasts = until.since(now).as_secs_f64();
        assert!(
            (f64::from(nominal)..=f64::from(nominal) * 1.1 + 0.01).contains(&lasts),
            "{times}: {lasts}"
        );
        now = until;
    }
    assert_eq!(given.bench.out(), 1, "it was out all the time");
}

#[test]
fn an_ejection_has_a_longest_time() {
    assert_eq!(settings().ejected_for(50, 0.0), Duration::from_secs(300));
}

#[test]
fn one_request_at_a_time_goes_to_an_endpoint_on_probation() {
    let given = Given::default();
    let until = given.eject(at(1));
    assert!(!given.health.probe(at(2)), "its time has not passed");
    assert!(given.health.probe(until));
    assert!(!given.health.probe(until), "one is with it");
    assert_eq!(given.probe_ends(Some(Verdict::Worked), until), Change::Readmitted);
    assert!(given.health.is_closed());
    assert_eq!(given.bench.out(), 0);
}

#[test]
fn a_probe_without_result_leaves_the_place_to_the_next() {
    let given = Given::default();
    let until = given.eject(at(1));
    assert!(given.health.probe(until));
    assert_eq!(given.probe_ends(None, until), Change::None);
    assert!(given.health.probe(until));
}

#[test]
fn tries_from_before_an_ejection_change_nothing() {
    let given = Given::default();
    let until = given.eject(at(1));
    given.works(at(2));
    given.fails(at(2));
    assert_eq!(given.health.phase(), Phase::Ejected(until));
    assert!(given.health.probe(until));
    given.works(until);
    assert_eq!(given.health.phase(), Phase::Probing);
}

#[test]
fn calm_intervals_forgive_ejections() {
    let given = Given::default();
    let until = given.eject(at(1));
    assert!(given.health.probe(until));
    given.probe_ends(Some(Verdict::Worked), until);
    let later = until + Duration::from_secs(10);
    let again = given.eject(later);
    assert!(
        again.since(later) <= Duration::from_secs_f64(33.01),
        "the first one again"
    );
}

#[test]
fn the_last_endpoint_is_never_ejected() {
    let given = Given::default();
    let mut change = Change::None;
    for _ in 0..9 {
        change = given
            .health
            .observe(&given.bench, &settings(), Some(Verdict::Failed), false, 1, at(1));
    }
    assert_eq!(change, Change::Skipped);
    assert!(given.health.is_closed());
    assert_eq!(
        given.bench.skipped(),
        5,
        "each that would have ejected is counted"
    );
}

#[test]
fn no_more_than_the_share_is_out_at_once() {
    let bench = Bench::default();
    let settings = Settings {
        percent_max: 30,
        consecutive: 1,
        ..settings()
    };
    let all: Vec<_> = (0..10).map(|_| Health::default()).collect();
    let out = all.iter().filter(|one| {
        one.observe(&bench, &settings, Some(Verdict::Failed), false, 10, at(1)) == Change::Ejected
    });
    assert_eq!(out.count(), 3);
}

#[test]
fn a_removed_endpoint_makes_room() {
    let given = Given::default();
    given.eject(at(1));
    given.health.remove(&given.bench);
    assert_eq!(given.bench.out(), 0);
    given.fails(at(1));
    assert_eq!(given.health.phase(), Phase::Removed, "nothing brings it back");
}

#[test]
fn what_is_no_failure_of_the_endpoint_is_not_counted_as_one() {
    let judge = |outcome| settings().judge(&outcome);
    let answered = |status, grpc| {
        Outcome::Answered(Answer {
            grpc,
            ..Answer::status(status)
        })
    };
    assert_eq!(judge(Outcome::ClientGone), None);
    assert_eq!(judge(Outcome::Unsent(Unsent::GoAway)), None);
    assert_eq!(judge(answered(429, None)), Some(Verdict::Worked));
    assert_eq!(judge(answered(404, None)), Some(Verdict::Worked));
    assert_eq!(judge(answered(200, Some(5))), Some(Verdict::Worked));
    for failure in [
        Outcome::Unsent(Unsent::Connect),
        Outcome::Unsent(Unsent::Tls),
        Outcome::Reset,
        Outcome::TimedOut,
        answered(500, None),
        answered(599, None),
        answered(200, Some(14)),
    ] {
        assert_eq!(judge(failure), Some(Verdict::Failed), "{failure:?}");
    }
}

#[test]
fn a_policy_says_which_statuses_are_failures() {
    let answered = |status| Outcome::Answered(Answer::status(status));
    let gateway = Settings {
        gateway_errors_only: true,
        ..settings()
    };
    assert_eq!(gateway.judge(&answered(500)), Some(Verdict::Worked));
    assert_eq!(gateway.judge(&answered(503)), Some(Verdict::Failed));
    let codes = Settings {
        codes: SmallVec::from_slice(&[418, 429]),
        ..settings()
    };
    assert_eq!(codes.judge(&answered(418)), Some(Verdict::Failed));
    assert_eq!(codes.judge(&answered(503)), Some(Verdict::Worked));
    assert_eq!(
        codes.judge(&answered(429)),
        Some(Verdict::Worked),
        "too many requests are the callers' doing"
    );
}

proptest! {
    #[test]
    fn a_state_survives_being_packed(
        closed: bool, millis in 0u64..1 << 44, consecutive in 0..=CONSECUTIVE_MAX, times in 0..=TIMES_MAX,
    ) {
        let time = Time::from_millis(millis);
        let machine = if closed {
            Machine { phase: Phase::Closed, consecutive, times, calm_since: time }
        } else {
            Machine { phase: Phase::Ejected(time), consecutive, times, calm_since: Time::ZERO }
        };
        prop_assert_eq!(Machine::unpack(machine.pack()), machine);
    }

    /// Whatever happens to ten endpoints: never more are out than may be, and the count of them is right.
    #[test]
    fn the_count_of_those_out_is_always_right(
        events in proptest::collection::vec((0usize..10, 0u8..5, 0u64..40), 0..300), percent in 0u32..=100,
    ) {
        let bench = Bench::default();
        let settings = Settings { percent_max: percent, consecutive: 2, ..settings() };
        let all: Vec<_> = (0..10).map(|_| Health::default()).collect();
        let mut now = at(1);
        for (which, event, seconds) in events {
            now = now + Duration::from_secs(seconds);
            let one = &all[which];
            let probe = one.phase() == Phase::Probing || one.probe(now);
            match event {
                0 => { one.observe(&bench, &settings, None, probe, 10, now); }
                1 => { one.observe(&bench, &settings, Some(Verdict::Worked), probe, 10, now); }
                2 => { one.condemn(&bench, &settings, 10, now); }
                _ => { one.observe(&bench, &settings, Some(Verdict::Failed), probe, 10, now); }
            }
            let out = all.iter().filter(|one| !one.is_closed()).count();
            prop_assert_eq!(out, bench.out());
            prop_assert!(out <= settings.out_max(10) && out < 10);
        }
    }
}
