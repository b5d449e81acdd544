//! Node proxies are replaced under load.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::stage::PORT;
use super::{Figure, Run, Scale, Scenario, scenario};
use crate::load::pauses::{Pause, Pauses};
use crate::load::{Load, Plan};
use crate::mesh::eventually;
use crate::traffic::Echo;
use crate::upgrade;

/// The longest time that traffic may stand still while a proxy is replaced; what the machine itself stood still is left out.
const GAP_MAX: Duration = Duration::from_millis(50);

pub(super) const SCENARIOS: &[Scenario] = &[scenario(
    "F05",
    150,
    "node proxies are replaced 20 times, in turn on two nodes",
    f05,
)];

/// Upgrades that a lasting connection sees: at most three generations of a proxy live, and two nodes are upgraded in turn.
const UPGRADES_SEEN: usize = 3;

/// New connections all the time; of lasting ones a third is opened anew before each upgrade, and sees three of them.
fn f05(scale: Scale) -> Run {
    Box::pin(async move {
        let upgrades = scale.pick(4, 20);
        let (mut mesh, web, db) = upgrade::supervised_pair().await;
        let echo = Echo::start(db.namespace(), db.ipv4(), PORT).await;
        let (fresh, lasting) = parts(scale.pick(Plan::light(), Plan::l1()));
        let to = [echo.address()];
        let connects = Load::start(web.namespace(), &to, fresh).await;
        let mut held = Lasting::new();
        for _ in 0..UPGRADES_SEEN {
            held.add(Load::start(web.namespace(), &to, lasting).await);
        }
        let mut from = held.begin();
        tokio::time::sleep(scale.window()).await;
        let quiet_longest = held.longest().gap.max(waits(&connects, from, &[]));
        from = held.begin();
        let (mut slowest, mut notes) = (Duration::ZERO, Vec::new());
        for round in 0..upgrades {
            held.renew(Load::start(web.namespace(), &to, lasting).await);
            let node = ["n1", "n2"][round % 2];
            let room = eventually(async || mesh.mesh.generations(node).await.len() < 3).await;
            assert!(room, "a generation without connections ends\n{}", mesh.logs());
            let started = Instant::now();
            mesh.mesh.upgrade_ztunnel(node).await.unwrap();
            let ready = started.elapsed();
            slowest = slowest.max(ready);
            // The older generation is told to end meanwhile, and a message of each pinned connection is due.
            tokio::time::sleep(scale.pick(Duration::from_secs(1), Duration::from_secs(5))).await;
            let pauses = held.pauses.seen();
            let waits = held
                .slowest(started, &pauses)
                .max(slowest_of(&connects, started, &pauses));
            notes.push(format!(
                "upgrade {round} of {node}: ready after {ready:?}, {waits}"
            ));
        }
        let new = connects.report(from, Instant::now()).connects;
        let lasting = held.longest();
        let pauses = held.pauses.seen();
        let gap_max = lasting.own.max(waits(&connects, from, &pauses));
        let (established, lost) = held.established();
        Figure::new("F05")
            .with("upgrades", upgrades)
            .expect(
                "established_lost",
                format!("{lost}/{established}"),
                lost == 0,
                "0",
            )
            .expect(
                "refused_new",
                format!("{}/{}", new.failed, new.failed + new.ok),
                new.failed == 0,
                "0",
            )
            .with_time("longest_quiet", quiet_longest)
            .with_time("longest_new", new.max)
            .with_time("longest_lasting", lasting.gap)
            .with_time("longest_pause_of_the_machine", longest_pause(&pauses, from))
            .within("gap_max", gap_max, GAP_MAX)
            .with_time("slowest_upgrade", slowest)
            .noting(connects.failures())
            .noting(held.failures())
            .noting(notes)
    })
}

/// The part of a load that opens connections, and a third of the part that keeps them.
fn parts(plan: Plan) -> (Plan, Plan) {
    let sets = u32::try_from(UPGRADES_SEEN).expect("small");
    let fresh = Plan {
        requests_per_second: 0,
        pinned: 0,
        bulk_bytes_per_second: 0,
        ..plan
    };
    let lasting = Plan {
        connects_per_second: 0,
        requests_per_second: plan.requests_per_second / sets,
        pinned: plan.pinned / UPGRADES_SEEN,
        bulk_bytes_per_second: plan.bulk_bytes_per_second / u64::from(sets),
        ..plan
    };
    (fresh, lasting)
}

/// Sets of lasting connections, the oldest first, and what those that were closed in order had measured.
struct Lasting {
    open: VecDeque<Load>,
    /// What was due before is left out.
    from: Instant,
    longest: Longest,
    pauses: Pauses,
    established: u64,
    lost: u64,
    failures: Vec<String>,
}

/// A longest wait.
#[derive(Debug, Default, Clone, Copy)]
struct Longest {
    /// As it was.
    gap: Duration,
    /// Less the time that the machine stood still.
    own: Duration,
}

impl Longest {
    fn max(self, other: Self) -> Self {
        Self {
            gap: self.gap.max(other.gap),
            own: self.own.max(other.own),
        }
    }
}

impl Lasting {
    fn new() -> Self {
        Self {
            open: VecDeque::new(),
            from: Instant::now(),
            longest: Longest::default(),
            pauses: Pauses::watch(),
            established: 0,
            lost: 0,
            failures: Vec::new(),
        }
    }

    /// Measures from now on.
    fn begin(&mut self) -> Instant {
        self.longest = Longest::default();
        self.from = Instant::now();
        self.from
    }

    fn add(&mut self, load: Load) {
        self.open.push_back(load);
    }

    /// Closes the oldest set, in order, for a new one.
    fn renew(&mut self, load: Load) {
        self.add(load);
        if let Some(oldest) = self.open.pop_front() {
            self.longest = self.longest.max(self.waits(&oldest));
            let (established, lost) = oldest.established();
            (self.established, self.lost) = (self.established + established, self.lost + lost);
            self.failures.extend(oldest.failures());
        }
    }

    /// The longest wait, in the sets that were closed, too.
    fn longest(&self) -> Longest {
        let open = self.open.iter().map(|load| self.waits(load));
        open.fold(self.longest, Longest::max)
    }

    fn waits(&self, load: &Load) -> Longest {
        Longest {
            gap: waits(load, self.from, &[]),
            own: waits(load, self.from, &self.pauses.seen()),
        }
    }

    /// What is open and had to wait longest for something that was due since a moment.
    fn slowest(&self, from: Instant, pauses: &[Pause]) -> Slowest {
        let open = self.open.iter().map(|load| slowest_of(load, from, pauses));
        open.max().unwrap_or_default()
    }

    /// Connections that were opened, and that were lost.
    fn established(&self) -> (u64, u64) {
        let open = self.open.iter().map(Load::established);
        open.fold(
            (self.established, self.lost),
            |(all, gone), (established, lost)| (all + established, gone + lost),
        )
    }

    fn failures(&self) -> Vec<String> {
        let open = self.open.iter().flat_map(Load::failures);
        self.failures.iter().cloned().chain(open).collect()
    }
}

/// In less time than this it may be that nothing was due.
const DUE_WITHIN: Duration = Duration::from_secs(1);

/// The longest wait of anything that was due since `from`; kinds of which nothing was due are left out.
fn waits(load: &Load, from: Instant, pauses: &[Pause]) -> Duration {
    let report = load.report_without(from, Instant::now(), pauses);
    let nothing = if from.elapsed() < DUE_WITHIN {
        Duration::ZERO
    } else {
        Duration::MAX
    };
    [report.connects, report.requests, report.messages]
        .into_iter()
        .filter(|window| window.ok > 0)
        .map(|window| window.max)
        .max()
        .unwrap_or(nothing)
}

fn longest_pause(pauses: &[Pause], from: Instant) -> Duration {
    let since = pauses.iter().filter(|pause| pause.to > from);
    let lengths = since.map(|pause| pause.to - pause.from);
    lengths.max().unwrap_or_default()
}

/// The longest wait of one kind, and how long after something else it began.
#[derive(Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Slowest {
    took: Duration,
    after: Duration,
    kind: &'static str,
}

impl std::fmt::Display for Slowest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { took, after, kind } = self;
        write!(f, "{kind} due {after:?} after it began waited {took:?}")
    }
}

fn slowest_of(load: &Load, from: Instant, pauses: &[Pause]) -> Slowest {
    let report = load.report_without(from, Instant::now(), pauses);
    let kinds = [
        ("a new connection", report.connects),
        ("a request", report.requests),
        ("a message", report.messages),
    ];
    let slowest = kinds.into_iter().filter_map(|(kind, window)| {
        Some(Slowest {
            took: window.max,
            after: window.max_due? - from,
            kind,
        })
    });
    slowest.max().unwrap_or_default()
}
