use proptest::prelude::*;

use super::super::outcome::Answer;
use super::*;

fn stanza() -> Retry {
    Retry {
        codes: vec![500, 503],
        ..Retry::default()
    }
}

fn decide(policy: &RetryPolicy, outcome: &Outcome, method: &Method) -> Decision {
    policy.decide(&Tried {
        number: 1,
        outcome,
        method,
        replayable: true,
        left: None,
        random: 0.0,
    })
}

fn retries(policy: &RetryPolicy, outcome: &Outcome, method: &Method) -> bool {
    matches!(decide(policy, outcome, method), Decision::Retry(_))
}

fn answered(status: u16, grpc: Option<u32>) -> Outcome {
    Outcome::Answered(Answer {
        grpc,
        ..Answer::status(status)
    })
}

const SAFE: [Unsent; 6] = [
    Unsent::Connect,
    Unsent::Tls,
    Unsent::Unavailable,
    Unsent::RefusedStream,
    Unsent::GoAway,
    Unsent::Stale,
];

#[test]
fn without_a_stanza_only_what_was_not_sent_is_tried_again() {
    let policy = RetryPolicy::new(None);
    for unsent in SAFE {
        assert!(
            retries(&policy, &Outcome::Unsent(unsent), &Method::POST),
            "{unsent:?}"
        );
    }
    for outcome in [
        Outcome::Refused,
        Outcome::Reset,
        Outcome::TimedOut,
        Outcome::Malformed,
        Outcome::ClientGone,
        answered(503, None),
        answered(200, Some(14)),
    ] {
        assert!(!retries(&policy, &outcome, &Method::GET), "{outcome:?}");
    }
}

#[test]
fn a_stanza_names_statuses() {
    let policy = RetryPolicy::new(Some(&stanza()));
    assert!(retries(&policy, &answered(503, None), &Method::POST));
    assert!(!retries(&policy, &answered(502, None), &Method::GET));
    assert!(!retries(&policy, &answered(200, None), &Method::GET));
}

#[test]
fn statuses_of_grpc_are_cancelled_and_unavailable_unless_named() {
    let policy = RetryPolicy::new(Some(&stanza()));
    assert!(retries(&policy, &answered(200, Some(1)), &Method::POST));
    assert!(retries(&policy, &answered(200, Some(14)), &Method::POST));
    assert!(!retries(&policy, &answered(200, Some(13)), &Method::POST));
    let named = Retry {
        grpc_codes: vec![13, 99],
        ..stanza()
    };
    let policy = RetryPolicy::new(Some(&named));
    assert!(retries(&policy, &answered(200, Some(13)), &Method::POST));
    assert!(!retries(&policy, &answered(200, Some(14)), &Method::POST));
    assert!(
        !retries(&policy, &answered(200, Some(99)), &Method::POST),
        "there is no such status"
    );
}

#[test]
fn resets_and_timeouts_are_for_methods_that_may_be_repeated() {
    let policy = RetryPolicy::new(Some(&stanza()));
    for outcome in [Outcome::Reset, Outcome::TimedOut] {
        assert!(retries(&policy, &outcome, &Method::GET));
        assert!(retries(&policy, &outcome, &Method::DELETE));
        assert!(!retries(&policy, &outcome, &Method::POST));
        assert!(!retries(&policy, &outcome, &Method::PATCH));
    }
    let with_504 = Retry {
        codes: vec![504],
        ..stanza()
    };
    let policy = RetryPolicy::new(Some(&with_504));
    assert!(retries(&policy, &Outcome::TimedOut, &Method::POST));
    assert!(!retries(&policy, &Outcome::Reset, &Method::POST));
}

#[test]
fn attempts_are_extra_tries() {
    let tries = |attempts: Option<u32>| {
        let policy = RetryPolicy::new(Some(&Retry { attempts, ..stanza() }));
        let outcome = answered(503, None);
        let goes_on = |number: &u32| {
            let tried = Tried {
                number: *number,
                outcome: &outcome,
                method: &Method::GET,
                replayable: true,
                left: None,
                random: 0.5,
            };
            matches!(policy.decide(&tried), Decision::Retry(_))
        };
        1 + (1..).take_while(goes_on).count()
    };
    assert_eq!(tries(None), 3, "a stanza without a number means two");
    assert_eq!(tries(Some(0)), 1);
    assert_eq!(tries(Some(5)), 6);
}

#[test]
fn who_has_no_tries_left_is_told_apart_from_who_wants_none() {
    let policy = RetryPolicy::new(Some(&Retry {
        attempts: Some(0),
        ..stanza()
    }));
    assert_eq!(
        decide(&policy, &answered(503, None), &Method::GET),
        Decision::Exhausted
    );
    assert_eq!(
        decide(&policy, &answered(404, None), &Method::GET),
        Decision::Pass
    );
}

#[test]
fn a_body_that_is_gone_is_not_sent_again() {
    let policy = RetryPolicy::new(Some(&stanza()));
    let outcome = Outcome::Unsent(Unsent::Connect);
    let tried = Tried {
        number: 1,
        outcome: &outcome,
        method: &Method::PUT,
        replayable: false,
        left: None,
        random: 0.0,
    };
    assert_eq!(policy.decide(&tried), Decision::Pass);
}

fn hinted(hint: Hint, left: Option<Duration>) -> Decision {
    let outcome = Outcome::Answered(Answer {
        hint: Some(hint),
        ..Answer::status(503)
    });
    RetryPolicy::new(Some(&stanza())).decide(&Tried {
        number: 1,
        outcome: &outcome,
        method: &Method::GET,
        replayable: true,
        left,
        random: 1.0,
    })
}

#[test]
fn the_larger_of_hint_and_backoff_is_waited() {
    let millis = Duration::from_millis;
    assert_eq!(
        hinted(Hint::After(millis(700)), None),
        Decision::Retry(millis(700))
    );
    assert_eq!(hinted(Hint::After(millis(1)), None), Decision::Retry(millis(25)));
    assert_eq!(hinted(Hint::After(HINT_MAX), None), Decision::Retry(HINT_MAX));
}

#[test]
fn a_hint_that_is_too_long_is_passed_on() {
    assert_eq!(
        hinted(Hint::After(HINT_MAX + Duration::from_millis(1)), None),
        Decision::Pass
    );
    assert_eq!(hinted(Hint::Never, None), Decision::Pass);
    let left = Some(Duration::from_secs(2));
    assert_eq!(hinted(Hint::After(Duration::from_secs(3)), left), Decision::Pass);
}

#[test]
fn waits_grow_up_to_a_bound() {
    let most: Vec<_> = (1..=6)
        .map(|number| backoff(None, number, 1.0).as_millis())
        .collect();
    assert_eq!(most, [25, 75, 175, 250, 250, 250]);
    assert_eq!(backoff(None, 3, 0.0), Duration::ZERO);
    let base = Some(Duration::from_millis(100));
    let least: Vec<_> = (1..=6)
        .map(|number| backoff(base, number, 0.0).as_millis())
        .collect();
    assert_eq!(least, [100, 200, 400, 800, 1_000, 1_000]);
}

#[test]
fn what_has_no_answer_says_why() {
    assert_eq!(Outcome::TimedOut.reason(), Some(Reason::BackendTimeout));
    assert_eq!(
        Outcome::Unsent(Unsent::Connect).reason().unwrap().answer().status,
        503
    );
    assert_eq!(Outcome::TimedOut.reason().unwrap().answer().status, 504);
    assert_eq!(answered(200, None).reason(), None);
}

proptest! {
    #[test]
    fn a_wait_is_never_below_what_is_set_nor_beyond_its_bound(number in 1u32..200, random in 0.0..1.0f64, base in 1u64..10_000) {
        let base = Duration::from_millis(base);
        let wait = backoff(Some(base), number, random);
        prop_assert!(wait >= base && wait <= 20 * base);
        prop_assert!(backoff(None, number, random) <= STEP_MAX);
    }
}
