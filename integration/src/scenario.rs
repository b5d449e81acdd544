//! Fault scenarios: each runs a load in a real mesh, does one thing to it, and gives one line of figures with its
//! targets. `cargo xtask scenario NAME|all` runs them.

mod agents;
mod attack;
mod authority;
mod bypass;
mod certificates;
mod churn;
mod control;
mod crowd;
mod crypto;
mod dead;
mod disk;
mod fed;
mod figure;
mod foreign;
mod forged;
mod front;
mod isolation;
mod likeness;
mod memory;
mod mutation;
mod names;
mod network;
mod operator;
mod pods;
mod pressure;
mod proxies;
mod restarts;
mod snapshot;
mod stage;
mod versions;
mod volume;

use std::pin::Pin;
use std::time::Duration;

pub use figure::Figure;

/// How long a scenario watches before and after its fault, and how much it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Seconds; for a look.
    Short,
    /// The figures that are published.
    Full,
}

impl Scale {
    /// Time to watch before a fault, and after it.
    #[must_use]
    pub fn window(self) -> Duration {
        self.pick(Duration::from_secs(5), Duration::from_secs(20))
    }

    /// One of two values.
    #[must_use]
    pub fn pick<T>(self, short: T, full: T) -> T {
        match self {
            Self::Short => short,
            Self::Full => full,
        }
    }
}

/// A scenario under way.
pub type Run = Pin<Box<dyn Future<Output = Figure>>>;

/// A fault and how it is measured.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// Its id, `F05`.
    pub id: &'static str,
    /// What happens, in a sentence.
    pub title: &'static str,
    /// About how long the full form takes.
    pub takes: Duration,
    /// Runs it in a world of its own.
    pub run: fn(Scale) -> Run,
}

/// Every scenario, by id.
#[must_use]
pub fn all() -> Vec<Scenario> {
    let mut all = [
        agents::SCENARIOS,
        bypass::SCENARIOS,
        authority::SCENARIOS,
        certificates::SCENARIOS,
        churn::SCENARIOS,
        control::SCENARIOS,
        crowd::SCENARIOS,
        crypto::SCENARIOS,
        dead::SCENARIOS,
        forged::SCENARIOS,
        disk::SCENARIOS,
        foreign::SCENARIOS,
        isolation::SCENARIOS,
        likeness::SCENARIOS,
        memory::SCENARIOS,
        mutation::SCENARIOS,
        names::SCENARIOS,
        network::SCENARIOS,
        pods::SCENARIOS,
        pressure::SCENARIOS,
        proxies::SCENARIOS,
        restarts::SCENARIOS,
        snapshot::SCENARIOS,
        versions::SCENARIOS,
        volume::SCENARIOS,
    ]
    .concat();
    all.sort_by_key(|scenario| scenario.id);
    all
}

/// Makes the entry of a scenario.
const fn scenario(id: &'static str, seconds: u64, title: &'static str, run: fn(Scale) -> Run) -> Scenario {
    Scenario {
        id,
        title,
        takes: Duration::from_secs(seconds),
        run,
    }
}
