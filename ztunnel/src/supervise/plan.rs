//! Which generation runs, drains or is started next: a pure machine that events turn.
//!
//! ```text
//!             ready                      the next is ready, and has proven itself
//! Starting ─────────▶ Serving ────────────────────────────────────────────────▶ Draining ──▶ ended
//!    │ not in time, or it dies: an older one that serves goes on; without one, the next is started after a pause
//! ```

use std::time::Duration;

use tokio::time::Instant;

/// Generations that may run; the oldest is cut for a fourth.
pub const GENERATIONS_MAX: usize = 3;
/// How long a generation may take until it is ready while an older one serves.
pub const READY_WAIT: Duration = Duration::from_secs(60);
/// First pause after a death; it doubles with each death that follows closely.
pub const PAUSE_MIN: Duration = Duration::from_millis(50);
/// Longest pause.
pub const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A generation that has served this long is healthy: the next death begins with the first pause again. Short, as each pause
/// is one in which connections wait: only a proxy that dies as soon as it serves is kept from wearing its node out.
pub const HEALTHY: Duration = Duration::from_secs(2);

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The next generation is asked for.
    Upgrade,
    /// A generation is ready.
    Ready(u64),
    /// A generation's process has ended.
    Ended(u64),
    /// A time that [`Plan::due`] named has come.
    Due,
    /// Everything shall end.
    Stop,
}

/// What has to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Start a generation.
    Start(u64),
    /// Let a generation drain (SIGTERM); a second time it resets what is left.
    Drain(u64),
    /// End a generation at once (SIGKILL).
    Cut(u64),
    /// Say that an upgrade is under way already.
    Busy(u64),
    /// Everything has ended.
    Exit,
}

/// How a generation is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// Not ready yet.
    Starting,
    /// Ready, and not told to end.
    Serving,
    /// Told to end; its connections live on.
    Draining,
}

/// One generation.
#[derive(Debug, Clone, Copy)]
pub struct Generation {
    /// Counts from 1.
    pub number: u64,
    /// How it is doing.
    pub phase: Phase,
    /// Since when.
    pub since: Instant,
}

/// The generations of one supervisor.
#[derive(Debug)]
pub struct Plan {
    generations: Vec<Generation>,
    last: u64,
    /// How long a new generation must have been ready before the older ones drain.
    settle: Duration,
    pause: Duration,
    start_at: Option<Instant>,
    stopping: Option<Instant>,
    /// How long generations may drain once everything shall end.
    stop_wait: Duration,
    hurried: bool,
}

impl Plan {
    /// Nothing runs; the first generation is due at once.
    #[must_use]
    pub fn new(settle: Duration, stop_wait: Duration, now: Instant) -> Self {
        Self {
            generations: Vec::new(),
            last: 0,
            settle,
            pause: PAUSE_MIN,
            start_at: Some(now),
            stopping: None,
            stop_wait,
            hurried: false,
        }
    }

    /// Every generation that runs, the oldest first.
    #[must_use]
    pub fn generations(&self) -> &[Generation] {
        &self.generations
    }

    /// When [`Event::Due`] has to come.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        let newest = self.generations.last();
        let settled = newest.and_then(|newest| match newest.phase {
            Phase::Serving if self.older_serves() => Some(newest.since + self.settle),
            Phase::Starting if self.older_serves() => Some(newest.since + READY_WAIT),
            _ => None,
        });
        let hurry = self.stopping.map(|since| since + self.stop_wait);
        let hurry = hurry.filter(|_| !self.hurried);
        [self.start_at, settled.filter(|_| self.stopping.is_none()), hurry]
            .into_iter()
            .flatten()
            .min()
    }

    /// Turns the machine.
    pub fn on(&mut self, event: Event, now: Instant) -> Vec<Act> {
        match event {
            Event::Upgrade => self.upgrade(now),
            Event::Ready(number) => {
                self.set(number, Phase::Serving, now);
                Vec::new()
            }
            Event::Ended(number) => self.ended(number, now),
            Event::Due => self.advance(now),
            Event::Stop => self.stop(now),
        }
    }

    fn upgrade(&mut self, now: Instant) -> Vec<Act> {
        if self.stopping.is_some() {
            return Vec::new();
        }
        match self.generations.last() {
            Some(newest) if newest.phase == Phase::Starting => vec![Act::Busy(newest.number)],
            _ => self.start(now),
        }
    }

    fn start(&mut self, now: Instant) -> Vec<Act> {
        self.start_at = None;
        self.last += 1;
        let mut acts = Vec::new();
        while self.generations.len() >= GENERATIONS_MAX {
            acts.push(Act::Cut(self.generations.remove(0).number));
        }
        self.generations.push(Generation {
            number: self.last,
            phase: Phase::Starting,
            since: now,
        });
        acts.push(Act::Start(self.last));
        acts
    }

    fn ended(&mut self, number: u64, now: Instant) -> Vec<Act> {
        let Some(at) = self.generations.iter().position(|known| known.number == number) else {
            return Vec::new();
        };
        let ended = self.generations.remove(at);
        if self.stopping.is_some() {
            return if self.generations.is_empty() {
                vec![Act::Exit]
            } else {
                Vec::new()
            };
        }
        let someone_takes_pods = self
            .generations
            .iter()
            .any(|known| known.phase != Phase::Draining);
        if ended.phase == Phase::Draining || someone_takes_pods {
            return Vec::new();
        }
        if ended.phase == Phase::Serving && now.duration_since(ended.since) >= HEALTHY {
            self.pause = PAUSE_MIN;
        }
        self.start_at = Some(now + self.pause);
        self.pause = self.pause.saturating_mul(2).min(PAUSE_MAX);
        Vec::new()
    }

    fn advance(&mut self, now: Instant) -> Vec<Act> {
        if let Some(since) = self.stopping {
            if now >= since + self.stop_wait && !self.hurried {
                self.hurried = true;
                return self
                    .generations
                    .iter()
                    .map(|known| Act::Drain(known.number))
                    .collect();
            }
            return Vec::new();
        }
        if self.start_at.is_some_and(|at| at <= now) {
            return self.start(now);
        }
        let Some(newest) = self.generations.last().copied().filter(|_| self.older_serves()) else {
            return Vec::new();
        };
        match newest.phase {
            Phase::Serving if now >= newest.since + self.settle => self.drain_older(now),
            Phase::Starting if now >= newest.since + READY_WAIT => vec![Act::Cut(newest.number)],
            _ => Vec::new(),
        }
    }

    fn drain_older(&mut self, now: Instant) -> Vec<Act> {
        let count = self.generations.len().saturating_sub(1);
        let older = self.generations.iter_mut().take(count);
        let mut acts = Vec::new();
        for generation in older.filter(|known| known.phase != Phase::Draining) {
            (generation.phase, generation.since) = (Phase::Draining, now);
            acts.push(Act::Drain(generation.number));
        }
        acts
    }

    fn stop(&mut self, now: Instant) -> Vec<Act> {
        if self.stopping.is_some() {
            self.hurried = true;
        }
        self.stopping.get_or_insert(now);
        self.start_at = None;
        if self.generations.is_empty() {
            return vec![Act::Exit];
        }
        // A generation that drains already must not take this for its second call.
        let hurried = self.hurried;
        let told = self
            .generations
            .iter_mut()
            .filter(|known| hurried || known.phase != Phase::Draining);
        told.map(|generation| {
            generation.phase = Phase::Draining;
            Act::Drain(generation.number)
        })
        .collect()
    }

    fn older_serves(&self) -> bool {
        let count = self.generations.len().saturating_sub(1);
        let mut older = self.generations.iter().take(count);
        older.any(|known| known.phase != Phase::Draining)
    }

    fn set(&mut self, number: u64, phase: Phase, now: Instant) {
        let found = self.generations.iter_mut().find(|known| known.number == number);
        if let Some(generation) = found.filter(|known| known.phase == Phase::Starting) {
            (generation.phase, generation.since) = (phase, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTLE: Duration = Duration::from_secs(2);
    const STOP: Duration = Duration::from_secs(5);

    fn plan(now: Instant) -> Plan {
        let mut plan = Plan::new(SETTLE, STOP, now);
        assert_eq!(plan.on(Event::Due, now), [Act::Start(1)]);
        plan.on(Event::Ready(1), now);
        plan
    }

    #[tokio::test(start_paused = true)]
    async fn the_older_drains_once_the_newer_has_been_ready_for_a_while() {
        let now = Instant::now();
        let mut plan = plan(now);
        assert_eq!(plan.on(Event::Upgrade, now), [Act::Start(2)]);
        assert_eq!(plan.on(Event::Upgrade, now), [Act::Busy(2)]);
        plan.on(Event::Ready(2), now);
        assert_eq!(plan.due(), Some(now + SETTLE));
        assert_eq!(plan.on(Event::Due, now), []);
        assert_eq!(plan.on(Event::Due, now + SETTLE), [Act::Drain(1)]);
        assert_eq!(plan.on(Event::Ended(1), now), []);
        assert_eq!(plan.due(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_newer_one_that_dies_or_is_never_ready_leaves_the_older_serving() {
        let now = Instant::now();
        let mut plan = plan(now);
        plan.on(Event::Upgrade, now);
        assert_eq!(plan.on(Event::Ended(2), now), []);
        assert_eq!(plan.due(), None, "nothing is started in its place");
        plan.on(Event::Upgrade, now);
        assert_eq!(plan.on(Event::Due, now + READY_WAIT), [Act::Cut(3)]);
        plan.on(Event::Ended(3), now);
        plan.on(Event::Upgrade, now);
        plan.on(Event::Ready(4), now);
        assert_eq!(plan.on(Event::Ended(4), now), [], "also one that was ready");
        assert_eq!(plan.generations().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_one_that_serves_is_replaced_after_a_pause_that_grows() {
        let now = Instant::now();
        let mut plan = plan(now);
        plan.on(Event::Ended(1), now);
        assert_eq!(plan.due(), Some(now + PAUSE_MIN));
        assert_eq!(plan.on(Event::Due, now + PAUSE_MIN), [Act::Start(2)]);
        plan.on(Event::Ended(2), now);
        assert_eq!(plan.due(), Some(now + PAUSE_MIN * 2));
        plan.on(Event::Due, now + PAUSE_MIN * 2);
        plan.on(Event::Ready(3), now);
        plan.on(Event::Ended(3), now + HEALTHY);
        assert_eq!(plan.due(), Some(now + HEALTHY + PAUSE_MIN));
    }

    #[tokio::test(start_paused = true)]
    async fn a_fourth_generation_cuts_the_oldest() {
        let now = Instant::now();
        let mut plan = plan(now);
        for number in [2, 3] {
            assert_eq!(plan.on(Event::Upgrade, now), [Act::Start(number)]);
            plan.on(Event::Ready(number), now);
            plan.on(Event::Due, now + SETTLE);
        }
        assert_eq!(plan.on(Event::Upgrade, now), [Act::Cut(1), Act::Start(4)]);
        assert_eq!(plan.on(Event::Ended(1), now), []);
    }

    #[tokio::test(start_paused = true)]
    async fn stopping_drains_all_then_hurries_them_and_waits_for_the_last() {
        let now = Instant::now();
        let mut plan = plan(now);
        plan.on(Event::Upgrade, now);
        plan.on(Event::Ready(2), now);
        plan.on(Event::Due, now + SETTLE);
        assert_eq!(
            plan.on(Event::Stop, now),
            [Act::Drain(2)],
            "the other drains already"
        );
        assert_eq!(plan.due(), Some(now + STOP));
        assert_eq!(plan.on(Event::Due, now + STOP), [Act::Drain(1), Act::Drain(2)]);
        assert_eq!(plan.on(Event::Ended(1), now), []);
        assert_eq!(plan.on(Event::Upgrade, now), []);
        assert_eq!(plan.on(Event::Ended(2), now), [Act::Exit]);
    }
}
