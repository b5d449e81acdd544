//! The state of one pod: a pure machine that events turn; [`task`] performs what it asks for.
//!
//! ```text
//! Out ─▶ Locating ─▶ Announcing ─▶ Capturing ─▶ In ◀─▶ Degraded
//!  ▲        │             │            │         │
//!  │        └───────── Retry ──────────┘         ▼
//!  └────────────────────────────────────────  Leaving          any ─▶ Gone
//! ```

mod steps;
pub mod task;
mod verify;

use std::time::Duration;

use tokio::time::Instant;
use tulle_runtime::backoff;

/// First wait after a failure.
const RETRY_MIN: Duration = Duration::from_millis(100);
/// Longest wait after a failure.
const RETRY_MAX: Duration = Duration::from_secs(15);
/// Repairs within [`REPAIRS_WITHIN`] that make a pod degraded.
const REPAIRS_MAX: usize = 3;
/// How long a repair is remembered.
const REPAIRS_WITHIN: Duration = Duration::from_secs(600);

/// What the control plane wants of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// Its traffic goes through the proxy.
    Captured,
    /// Its traffic is its own, nothing of ours remains.
    Released,
    /// It is no longer there.
    Forgotten,
}

/// Where a pod is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Not enrolled; nothing of ours in the namespace.
    Out,
    /// Enrolled; the namespace is not proven yet.
    Locating,
    /// Listeners are being opened and announced.
    Announcing,
    /// Rules are being put in place.
    Capturing,
    /// Captured and verified.
    In,
    /// Captured, but something is wrong.
    Degraded(Degradation),
    /// A step failed and waits for another attempt.
    Retry(Step),
    /// Leaving the mesh.
    Leaving,
    /// The pod or its namespace ended.
    Gone,
}

/// What is wrong with a captured pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Degradation {
    /// Its rules were repaired again and again.
    Repairs,
    /// No proxy has been connected for some time.
    NoProxy,
}

/// What can be performed for a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Find and prove the namespace.
    Locate,
    /// Open the listeners and announce them to the proxy.
    Announce,
    /// Put the rules in place and verify them.
    Capture,
    /// Leave the mesh.
    Leave,
    /// Tell proxies that the pod is gone and close what is held for it.
    Forget,
}

/// What happened to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The control plane wants something else, or the same again.
    Goal(Goal),
    /// The step at hand was done.
    Done,
    /// The step at hand failed, and was undone or left the pod closed.
    Failed,
    /// The wait before another attempt is over.
    RetryDue,
    /// A verification had to put things right.
    Repaired,
    /// A verification found everything as planned.
    Verified,
    /// No proxy has been connected for some time.
    ProxyLost,
    /// A proxy is connected again.
    ProxyBack,
    /// The namespace ended, or its name leads to another one.
    NetnsLost,
}

/// What the pod's task has to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Wait for another goal.
    Idle,
    /// Perform a step to its end.
    Perform(Step),
    /// Verify from time to time.
    Watch,
    /// Wait, then try again.
    Wait,
    /// End.
    End,
}

/// One pod's way.
#[derive(Debug, Clone)]
pub struct Machine {
    goal: Goal,
    state: State,
    failures: u32,
    repairs: Vec<Instant>,
    /// The pod is gone and forgotten.
    ended: bool,
}

impl Machine {
    /// A pod that was just learned of; `captured` when its namespace holds rules of ours from an earlier run.
    #[must_use]
    pub fn new(goal: Goal, captured: bool) -> Self {
        let state = match (goal, captured) {
            (Goal::Captured, _) => State::Locating,
            (Goal::Released, true) => State::Leaving,
            (Goal::Released, false) => State::Out,
            (Goal::Forgotten, _) => State::Gone,
        };
        Self {
            goal,
            state,
            failures: 0,
            repairs: Vec::new(),
            ended: false,
        }
    }

    /// The state.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// The goal.
    #[must_use]
    pub fn goal(&self) -> Goal {
        self.goal
    }

    /// What to do next.
    #[must_use]
    pub fn action(&self) -> Action {
        match self.state {
            State::Out => Action::Idle,
            State::Locating => Action::Perform(Step::Locate),
            State::Announcing => Action::Perform(Step::Announce),
            State::Capturing => Action::Perform(Step::Capture),
            State::In | State::Degraded(_) => Action::Watch,
            State::Retry(_) => Action::Wait,
            State::Leaving => Action::Perform(Step::Leave),
            State::Gone if self.ended => Action::End,
            State::Gone => Action::Perform(Step::Forget),
        }
    }

    /// How long to wait before another attempt, for a random value in `0.0..=1.0`.
    #[must_use]
    pub fn retry_after(&self, random: f64) -> Duration {
        let doublings = self.failures.saturating_sub(1).min(16);
        backoff::spread(RETRY_MIN.saturating_mul(1 << doublings).min(RETRY_MAX), random)
    }

    /// Turns the machine.
    pub fn on(&mut self, event: Event, now: Instant) {
        match event {
            Event::Goal(goal) => self.goal = goal,
            Event::Failed => self.failures = self.failures.saturating_add(1),
            Event::Repaired => self.repairs.push(now),
            _ => {}
        }
        self.repairs
            .retain(|repair| now.duration_since(*repair) < REPAIRS_WITHIN);
        let forgotten = self.state == State::Gone && event == Event::Done;
        self.ended = (forgotten || self.ended) && self.goal == Goal::Forgotten;
        self.state = next(self.state, self.goal, event, self.repairs.len() >= REPAIRS_MAX);
        if self.state == State::In || self.state == State::Out {
            self.failures = 0;
        }
    }
}

/// Where an event leads from a state, under a goal.
fn next(state: State, goal: Goal, event: Event, unstable: bool) -> State {
    match event {
        Event::Goal(_) => toward(state, goal),
        Event::Done => done(state, goal),
        Event::Failed => match state {
            State::Locating => toward(State::Retry(Step::Locate), goal),
            State::Announcing => toward(State::Retry(Step::Announce), goal),
            State::Capturing => toward(State::Retry(Step::Capture), goal),
            State::Leaving => toward(State::Retry(Step::Leave), goal),
            other => other,
        },
        Event::RetryDue => match state {
            State::Retry(Step::Locate | Step::Forget) => State::Locating,
            // A capture that failed took its announcement back.
            State::Retry(Step::Announce | Step::Capture) => State::Announcing,
            State::Retry(Step::Leave) => State::Leaving,
            other => other,
        },
        Event::Repaired | Event::Verified => match state {
            State::In if unstable => State::Degraded(Degradation::Repairs),
            State::Degraded(Degradation::Repairs) if !unstable => State::In,
            other => other,
        },
        Event::ProxyLost if state == State::In => State::Degraded(Degradation::NoProxy),
        Event::ProxyBack if state == State::Degraded(Degradation::NoProxy) => State::In,
        Event::NetnsLost if matches!(state, State::In | State::Degraded(_)) => State::Gone,
        Event::ProxyLost | Event::ProxyBack | Event::NetnsLost => state,
    }
}

/// A settled state turns at once; a step at hand is finished first.
fn toward(state: State, goal: Goal) -> State {
    match (state, goal) {
        (State::Out, Goal::Captured) => State::Locating,
        (State::Retry(Step::Locate), Goal::Released) => State::Out,
        (State::In | State::Degraded(_) | State::Retry(Step::Announce | Step::Capture), Goal::Released) => {
            State::Leaving
        }
        (State::Retry(Step::Leave), Goal::Captured) => State::Locating,
        (State::Out | State::In | State::Degraded(_) | State::Retry(_), Goal::Forgotten) => State::Gone,
        (state, _) => state,
    }
}

/// Where a finished step leads.
fn done(state: State, goal: Goal) -> State {
    match (state, goal) {
        (State::Locating, Goal::Captured) => State::Announcing,
        (State::Locating | State::Leaving, Goal::Released) => State::Out,
        (State::Announcing, Goal::Captured) => State::Capturing,
        (State::Announcing | State::Capturing, Goal::Released) => State::Leaving,
        (State::Capturing, Goal::Captured) => State::In,
        (State::Leaving | State::Gone, Goal::Captured) => State::Locating,
        (State::Gone, Goal::Released) => State::Out,
        (State::Locating | State::Announcing | State::Capturing | State::Leaving, Goal::Forgotten) => {
            State::Gone
        }
        (state, _) => state,
    }
}

#[cfg(test)]
mod tests;
