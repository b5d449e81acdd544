//! The machine as a table: events in, states out.

use super::*;

fn run(machine: &mut Machine, events: &[Event]) -> Vec<State> {
    let now = Instant::now();
    events
        .iter()
        .map(|event| {
            machine.on(*event, now);
            machine.state()
        })
        .collect()
}

fn captured() -> Machine {
    let mut machine = Machine::new(Goal::Captured, false);
    run(&mut machine, &[Event::Done, Event::Done, Event::Done]);
    assert_eq!(machine.state(), State::In);
    machine
}

#[tokio::test(start_paused = true)]
async fn a_pod_joins_step_by_step() {
    let mut machine = Machine::new(Goal::Released, false);
    assert_eq!(machine.action(), Action::Idle);
    let states = run(
        &mut machine,
        &[Event::Goal(Goal::Captured), Event::Done, Event::Done, Event::Done],
    );
    assert_eq!(
        states,
        [State::Locating, State::Announcing, State::Capturing, State::In]
    );
    assert_eq!(machine.action(), Action::Watch);
}

#[tokio::test(start_paused = true)]
async fn a_captured_pod_leaves_and_comes_back() {
    let mut machine = captured();
    let events = [
        Event::Goal(Goal::Released),
        Event::Done,
        Event::Goal(Goal::Captured),
    ];
    assert_eq!(
        run(&mut machine, &events),
        [State::Leaving, State::Out, State::Locating]
    );
}

#[tokio::test(start_paused = true)]
async fn a_goal_that_flips_midway_lets_the_step_end_and_turns() {
    let mut machine = Machine::new(Goal::Captured, false);
    let events = [
        Event::Done,
        Event::Goal(Goal::Released),
        Event::Done,
        Event::Goal(Goal::Captured),
        Event::Done,
    ];
    let states = run(&mut machine, &events);
    assert_eq!(
        states,
        [
            State::Announcing,
            State::Announcing,
            State::Leaving,
            State::Leaving,
            State::Locating
        ],
        "add, remove, add"
    );
}

#[tokio::test(start_paused = true)]
async fn a_pod_without_anything_of_ours_needs_not_leave() {
    let mut machine = Machine::new(Goal::Captured, false);
    let states = run(&mut machine, &[Event::Failed, Event::Goal(Goal::Released)]);
    assert_eq!(states, [State::Retry(Step::Locate), State::Out]);
}

#[tokio::test(start_paused = true)]
async fn rules_left_by_an_earlier_run_are_removed_from_a_released_pod() {
    let mut machine = Machine::new(Goal::Released, true);
    assert_eq!(machine.action(), Action::Perform(Step::Leave));
    assert_eq!(run(&mut machine, &[Event::Done]), [State::Out]);
}

#[tokio::test(start_paused = true)]
async fn a_failed_step_is_tried_again_after_growing_waits() {
    let mut machine = Machine::new(Goal::Captured, false);
    let mut waits = Vec::new();
    for _ in 0..10 {
        run(&mut machine, &[Event::Failed]);
        waits.push(machine.retry_after(0.5).as_millis());
        run(&mut machine, &[Event::RetryDue]);
        assert_eq!(machine.state(), State::Locating);
    }
    assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 15000, 15000]);
}

#[tokio::test(start_paused = true)]
async fn a_failed_capture_is_announced_anew() {
    let mut machine = Machine::new(Goal::Captured, false);
    let states = run(
        &mut machine,
        &[Event::Done, Event::Done, Event::Failed, Event::RetryDue],
    );
    assert_eq!(states[2..], [State::Retry(Step::Capture), State::Announcing]);
}

#[tokio::test(start_paused = true)]
async fn a_deleted_pod_does_not_leave_but_is_forgotten() {
    let mut machine = captured();
    assert_eq!(run(&mut machine, &[Event::Goal(Goal::Forgotten)]), [State::Gone]);
    assert_eq!(machine.action(), Action::Perform(Step::Forget));
    run(&mut machine, &[Event::Done]);
    assert_eq!(machine.action(), Action::End);
    run(&mut machine, &[Event::Goal(Goal::Forgotten)]);
    assert_eq!(machine.action(), Action::End, "hearing it again changes nothing");
    run(&mut machine, &[Event::Goal(Goal::Captured)]);
    assert_eq!(
        machine.action(),
        Action::Perform(Step::Forget),
        "wanted again before it ended"
    );
}

#[tokio::test(start_paused = true)]
async fn the_same_pod_with_another_namespace_starts_at_locating() {
    let mut machine = captured();
    assert_eq!(
        run(&mut machine, &[Event::NetnsLost, Event::Done]),
        [State::Gone, State::Locating]
    );
}

#[tokio::test(start_paused = true)]
async fn three_repairs_within_ten_minutes_degrade_a_pod_until_it_is_calm() {
    let mut machine = captured();
    let mut now = Instant::now();
    for _ in 0..2 {
        machine.on(Event::Repaired, now);
        assert_eq!(machine.state(), State::In);
        now += Duration::from_secs(60);
    }
    machine.on(Event::Repaired, now);
    assert_eq!(machine.state(), State::Degraded(Degradation::Repairs));
    machine.on(Event::Verified, now + REPAIRS_WITHIN);
    assert_eq!(machine.state(), State::In);
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_degraded_while_no_proxy_is_there() {
    let mut machine = captured();
    let states = run(&mut machine, &[Event::ProxyLost, Event::ProxyBack]);
    assert_eq!(states, [State::Degraded(Degradation::NoProxy), State::In]);
}

#[tokio::test(start_paused = true)]
async fn a_degraded_pod_still_leaves() {
    let mut machine = captured();
    let states = run(&mut machine, &[Event::ProxyLost, Event::Goal(Goal::Released)]);
    assert_eq!(states[1], State::Leaving);
}

/// Whatever the order of events, a pod that is asked to come or go gets there once its steps succeed.
#[tokio::test(start_paused = true)]
async fn every_state_reaches_every_goal() {
    let events = [
        Event::Done,
        Event::Failed,
        Event::RetryDue,
        Event::Repaired,
        Event::ProxyLost,
        Event::NetnsLost,
        Event::Goal(Goal::Captured),
        Event::Goal(Goal::Released),
    ];
    let now = Instant::now();
    for first in events {
        for second in events {
            for third in events {
                for (goal, end) in [(Goal::Captured, State::In), (Goal::Released, State::Out)] {
                    let mut machine = Machine::new(Goal::Captured, false);
                    run(
                        &mut machine,
                        &[first, second, third, Event::ProxyBack, Event::Goal(goal)],
                    );
                    for _ in 0..8 {
                        let event = match machine.action() {
                            Action::Perform(_) => Event::Done,
                            Action::Wait => Event::RetryDue,
                            Action::Idle | Action::Watch | Action::End => break,
                        };
                        machine.on(event, now);
                    }
                    assert_eq!(
                        machine.state(),
                        end,
                        "{first:?} {second:?} {third:?} then {goal:?}"
                    );
                }
            }
        }
    }
}
