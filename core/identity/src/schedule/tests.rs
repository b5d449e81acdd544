use super::*;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const HOUR: Duration = Duration::from_secs(60 * 60);

fn id(name: &str) -> Identity {
    Identity::new("td", "shop", name)
}

fn start() -> Now {
    Now {
        wall: SystemTime::UNIX_EPOCH + DAY * 20_000,
        monotonic: Instant::now(),
    }
}

fn after(now: Now, passed: Duration) -> Now {
    Now {
        wall: now.wall + passed,
        monotonic: now.monotonic + passed,
    }
}

fn drain(schedule: &mut Schedule, now: Now) -> Vec<(Identity, Priority)> {
    std::iter::from_fn(|| schedule.next(now)).collect()
}

/// A schedule that holds a certificate of `name`, valid for a day from `now`, for one local workload.
fn holding(name: &str, now: Now) -> Schedule {
    let mut schedule = Schedule::default();
    schedule.retain(&id(name));
    schedule.next(now).unwrap();
    assert!(schedule.fetched(&id(name), now.wall + DAY, 0.0, now));
    schedule
}

#[test]
fn a_new_workload_is_fetched_at_once_and_only_once() {
    let now = start();
    let mut schedule = Schedule::default();
    schedule.retain(&id("web"));
    schedule.retain(&id("web"));
    assert_eq!(drain(&mut schedule, now), [(id("web"), Priority::First)]);
    assert_eq!(schedule.wake_in(now), None);
}

#[test]
fn waiting_goes_before_first_goes_before_renewal() {
    let now = start();
    let mut schedule = holding("old", now);
    let later = after(now, DAY / 2);
    schedule.retain(&id("new"));
    schedule.touch(&id("waited"));
    schedule.wait(&id("waited"), Priority::Waiting);
    let expected = [
        (id("waited"), Priority::Waiting),
        (id("new"), Priority::First),
        (id("old"), Priority::Renewal),
    ];
    assert_eq!(drain(&mut schedule, later), expected);
}

#[test]
fn within_a_priority_the_first_to_come_is_served_first() {
    let now = start();
    let mut schedule = Schedule::default();
    let names = ["c", "a", "b"];
    names.iter().for_each(|name| schedule.retain(&id(name)));
    let order: Vec<_> = drain(&mut schedule, now)
        .into_iter()
        .map(|(identity, _)| identity)
        .collect();
    assert_eq!(order, names.map(id));
}

#[test]
fn eight_are_under_way_at_once() {
    let now = start();
    let mut schedule = Schedule::default();
    (0..20).for_each(|n| schedule.retain(&id(&format!("w{n}"))));
    let first = drain(&mut schedule, now);
    assert_eq!(first.len(), FETCHES_MAX);
    schedule.fetched(&first[0].0, now.wall + DAY, 0.0, now);
    schedule.failed(&first[1].0, Failure::Refusal, 0.0, now);
    assert_eq!(drain(&mut schedule, now).len(), 2);
}

#[test]
fn renewal_is_due_at_half_life_give_or_take_five_percent() {
    let now = start();
    for (random, factor) in [(0.0, 1.0), (-1.0, 0.95), (1.0, 1.05)] {
        let mut schedule = Schedule::default();
        schedule.retain(&id("web"));
        schedule.next(now).unwrap();
        schedule.fetched(&id("web"), now.wall + DAY, random, now);
        let due = (DAY / 2).mul_f64(factor);
        assert_eq!(schedule.wake_in(now), Some(due));
        assert_eq!(schedule.next(after(now, due - Duration::from_secs(1))), None);
        assert_eq!(
            schedule.next(after(now, due)),
            Some((id("web"), Priority::Renewal))
        );
    }
}

#[test]
fn short_and_backdated_certificates_do_not_renew_in_a_loop() {
    let now = start();
    let mut schedule = Schedule::default();
    schedule.retain(&id("web"));
    schedule.next(now).unwrap();
    schedule.fetched(&id("web"), now.wall + Duration::from_millis(10), 0.0, now);
    assert_eq!(schedule.wake_in(now), Some(RETRY_MIN));
}

#[test]
fn pauses_double_up_to_150_seconds() {
    let now = start();
    let mut schedule = Schedule::default();
    schedule.retain(&id("web"));
    let mut pauses = Vec::new();
    let mut at = now;
    for _ in 0..12 {
        schedule.next(at).unwrap();
        schedule.failed(&id("web"), Failure::Refusal, 0.0, at);
        let pause = schedule.wake_in(at).unwrap();
        assert_eq!(schedule.next(after(at, pause - Duration::from_millis(1))), None);
        pauses.push(pause.as_millis());
        at = after(at, pause);
    }
    let expected = [
        500, 1000, 2000, 4000, 8000, 16_000, 32_000, 64_000, 128_000, 150_000, 150_000, 150_000,
    ];
    assert_eq!(pauses, expected);
}

#[test]
fn pauses_vary_by_twenty_percent_and_never_exceed_the_longest() {
    assert_eq!(pause(0, -1.0), Duration::from_millis(400));
    assert_eq!(pause(0, 1.0), Duration::from_millis(600));
    assert_eq!(pause(40, 1.0), RETRY_MAX);
    assert_eq!(pause(u32::MAX, -1.0), Duration::from_secs(120));
}

#[test]
fn success_forgets_earlier_failures() {
    let now = start();
    let mut schedule = Schedule::default();
    schedule.retain(&id("web"));
    for _ in 0..5 {
        let at = after(now, DAY);
        schedule.next(at).unwrap();
        schedule.failed(&id("web"), Failure::Refusal, 0.0, now);
    }
    let at = after(now, DAY);
    schedule.next(at).unwrap();
    schedule.fetched(&id("web"), at.wall + DAY, 0.0, at);
    let later = after(at, DAY);
    schedule.next(later).unwrap();
    schedule.failed(&id("web"), Failure::Refusal, 0.0, later);
    assert_eq!(schedule.pause_left(&id("web"), later), Some(RETRY_MIN));
}

#[test]
fn an_expired_certificate_is_as_urgent_as_a_first_one() {
    let now = start();
    let mut schedule = holding("web", now);
    let late = after(now, DAY + Duration::from_secs(1));
    assert_eq!(schedule.next(late), Some((id("web"), Priority::First)));
}

#[test]
fn setting_the_wall_clock_back_does_not_lengthen_a_pause() {
    let now = start();
    let mut schedule = Schedule::default();
    schedule.retain(&id("web"));
    schedule.next(now).unwrap();
    schedule.failed(&id("web"), Failure::Refusal, 0.0, now);
    let later = Now {
        wall: now.wall - DAY,
        monotonic: now.monotonic + RETRY_MIN,
    };
    assert_eq!(schedule.next(later), Some((id("web"), Priority::First)));
}

#[test]
fn the_last_release_forgets() {
    let now = start();
    let mut schedule = holding("web", now);
    schedule.retain(&id("web"));
    assert!(!schedule.release(&id("web")));
    assert_eq!(schedule.sweep(now), []);
    assert!(schedule.release(&id("web")));
    assert_eq!(schedule.sweep(now), [id("web")]);
    assert!(!schedule.release(&id("web")), "one release too many is harmless");
}

#[test]
fn a_certificate_that_comes_after_the_last_release_is_not_wanted() {
    let now = start();
    let mut schedule = Schedule::default();
    schedule.retain(&id("web"));
    schedule.next(now).unwrap();
    schedule.release(&id("web"));
    assert_eq!(schedule.sweep(now), [], "it is still under way");
    assert!(!schedule.fetched(&id("web"), now.wall + DAY, 0.0, now));
    assert_eq!(schedule.sweep(now), [id("web")]);
}

#[test]
fn an_identity_without_workload_is_renewed_while_used_and_forgotten_after() {
    let now = start();
    let mut schedule = Schedule::default();
    schedule.touch(&id("gateway"));
    schedule.wait(&id("gateway"), Priority::Waiting);
    schedule.next(now).unwrap();
    schedule.fetched(&id("gateway"), now.wall + DAY, 0.0, now);
    schedule.leave(&id("gateway"), Priority::Waiting);
    let half = after(now, DAY / 2);
    schedule.touch(&id("gateway"));
    assert_eq!(schedule.next(half), Some((id("gateway"), Priority::Renewal)));
    schedule.fetched(&id("gateway"), half.wall + DAY, 0.0, half);
    assert_eq!(
        schedule.next(after(half, DAY / 2 + HOUR)),
        None,
        "nobody used the second one"
    );
    assert_eq!(schedule.sweep(after(half, HOUR)), [], "it may be used yet");
    assert_eq!(schedule.sweep(after(half, DAY / 2)), [id("gateway")]);
}

#[test]
fn a_certificate_that_comes_after_its_waiter_gave_up_is_kept() {
    let now = start();
    let mut schedule = Schedule::default();
    schedule.touch(&id("web"));
    schedule.wait(&id("web"), Priority::Waiting);
    schedule.next(now).unwrap();
    schedule.leave(&id("web"), Priority::Waiting);
    assert!(schedule.fetched(&id("web"), now.wall + DAY, 0.0, now));
    assert_eq!(schedule.sweep(now), []);
}

#[test]
fn a_pause_outlives_its_waiters() {
    let now = start();
    let mut schedule = Schedule::default();
    schedule.touch(&id("web"));
    schedule.wait(&id("web"), Priority::Waiting);
    schedule.next(now).unwrap();
    schedule.failed(&id("web"), Failure::Refusal, 0.0, now);
    schedule.leave(&id("web"), Priority::Waiting);
    assert_eq!(schedule.sweep(now), []);
    assert_eq!(schedule.sweep(after(now, RETRY_MIN)), [id("web")]);
}

#[test]
fn strangers_beyond_the_bound_are_not_cared_for() {
    let mut schedule = Schedule::default();
    (0..IDENTITIES_MAX).for_each(|n| assert!(schedule.touch(&id(&format!("w{n}")))));
    assert!(!schedule.touch(&id("one-more")));
    assert!(schedule.touch(&id("w0")), "known ones still are");
}

#[test]
fn one_answer_ends_the_outage_for_all() {
    let now = start();
    let mut schedule = Schedule::default();
    ["a", "b", "c"].iter().for_each(|name| schedule.retain(&id(name)));
    drain(&mut schedule, now);
    schedule.failed(&id("a"), Failure::Outage, 0.0, now);
    assert_eq!(schedule.next(now), None);
    schedule.failed(&id("b"), Failure::Refusal, 0.0, now);
    assert_eq!(
        drain(&mut schedule, now),
        [(id("a"), Priority::First)],
        "a refusal is an answer"
    );
    schedule.failed(&id("a"), Failure::Outage, 0.0, now);
    schedule.fetched(&id("c"), now.wall + DAY, 0.0, now);
    assert_eq!(
        drain(&mut schedule, now),
        [(id("a"), Priority::First)],
        "the refused one still pauses"
    );
}

/// A schedule in which two identities have failed so often that their pauses are long.
fn long_outage(failure: Failure, now: Now) -> Schedule {
    let mut schedule = Schedule::default();
    for name in ["a", "b"] {
        schedule.retain(&id(name));
        schedule.next(now).unwrap();
        schedule.failed(&id(name), failure, 0.0, now);
        schedule.entry(&id(name)).retry_at = Some(now.monotonic + RETRY_MAX);
    }
    schedule
}

#[test]
fn connections_waiting_for_an_absent_authority_probe_it_once_a_second() {
    let now = start();
    let mut schedule = long_outage(Failure::Outage, now);
    ["a", "b"]
        .iter()
        .for_each(|name| schedule.wait(&id(name), Priority::Waiting));
    assert_eq!(schedule.next(now), None);
    assert_eq!(schedule.wake_in(now), Some(PROBE_INTERVAL));
    assert_eq!(schedule.pause_left(&id("a"), now), Some(PROBE_INTERVAL));
    let later = after(now, PROBE_INTERVAL);
    assert_eq!(drain(&mut schedule, later).len(), 1, "one probe for all");
}

#[test]
fn waiting_does_not_shorten_the_pause_of_a_refused_identity() {
    let now = start();
    let mut schedule = long_outage(Failure::Refusal, now);
    schedule.wait(&id("a"), Priority::Waiting);
    assert_eq!(schedule.next(after(now, PROBE_INTERVAL * 2)), None);
    assert_eq!(schedule.pause_left(&id("a"), now), Some(RETRY_MAX));
}

#[test]
fn renewals_do_not_flood_the_authority() {
    let now = start();
    let mut schedule = Schedule::default();
    (0..5).for_each(|n| schedule.retain(&id(&format!("w{n}"))));
    for (identity, _) in drain(&mut schedule, now) {
        schedule.fetched(&identity, now.wall + DAY, 0.0, now);
    }
    let half = after(now, DAY / 2);
    assert_eq!(drain(&mut schedule, half).len(), 1);
    assert_eq!(schedule.wake_in(half), Some(RENEWAL_SPACING));
    assert_eq!(drain(&mut schedule, after(half, RENEWAL_SPACING)).len(), 1);
}

#[test]
fn the_budget_is_the_first_expiry_of_a_local_workload() {
    let now = start();
    let mut schedule = holding("web", now);
    assert_eq!(schedule.first_expiry(now.wall), Some(DAY));
    schedule.touch(&id("stranger"));
    assert_eq!(schedule.first_expiry(now.wall + HOUR), Some(DAY - HOUR));
    schedule.retain(&id("new"));
    assert_eq!(
        schedule.first_expiry(now.wall),
        Some(Duration::ZERO),
        "it has none at all"
    );
    assert_eq!(Schedule::default().first_expiry(now.wall), None);
}
