//! Routes that change all the time while requests run: none fails, and memory stays flat.

use std::fmt;
use std::time::{Duration, Instant};

use tulle_model::MeshUpdate;
use tulle_model::route::{Route, Timeouts};

use super::waypoint::{Fronting, rule};
use super::{Cpu, Device, Lives, Load, Reached, Site, Version, threads};
use crate::resident;

/// Parts of a run, after each of which the memory is read.
const PARTS: usize = 4;
/// Connections that ask meanwhile.
const CONNECTIONS: usize = 8;

/// What was measured.
#[derive(Debug, Clone)]
pub struct Measured {
    /// Requests that were answered; one that fails ends the run.
    pub requests: u64,
    /// Changes that were made.
    pub changes: usize,
    /// How long that took.
    pub took: Duration,
    /// Memory of the process after each quarter of them.
    pub resident: Vec<u64>,
    /// Time of a change until requests are decided by it, the middle one.
    pub change: Duration,
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: &u64| format!("{:.1}", *bytes as f64 / f64::from(1 << 20));
        let memory: Vec<String> = self.resident.iter().map(mib).collect();
        write!(
            f,
            "churn: {} changes in {:.0?}, {} requests and none failed, a change visible after {:.2?}; MiB after each \
             quarter: {}",
            self.changes,
            self.took,
            self.requests,
            self.change,
            memory.join(" ")
        )
    }
}

/// Changes a route so many times, rounded up to a multiple of four.
#[must_use]
pub fn measure(changes: usize) -> Measured {
    let (site, clients) = (Site::start(), threads("client"));
    let fronting = Fronting::start(&site.ca, site.tunnel, Version::One);
    let device = Device {
        name: "waypoint",
        reached: Reached::Tunnel(fronting.address),
        cpu: Cpu::Nobody,
        _lives: Lives::Nothing,
    };
    let mut load = Load::open(&clients, &site, &device, Version::One, CONNECTIONS);
    let (mut requests, mut memory, mut times) = (0, Vec::new(), Vec::new());
    let (began, part) = (Instant::now(), changes.div_ceil(PARTS));
    for turn in 0..PARTS {
        std::thread::scope(|scope| {
            let changing = scope.spawn(|| {
                let numbers = turn * part..(turn + 1) * part;
                let pause = Duration::from_millis(2);
                let apply = numbers.map(|number| {
                    #[allow(clippy::disallowed_methods, reason = "no task waits here")]
                    std::thread::sleep(pause);
                    fronting.apply(vec![changed(number)])
                });
                apply.collect::<Vec<_>>()
            });
            while !changing.is_finished() {
                let length = Duration::from_millis(100);
                let figures = load.full(&clients, &device, length);
                requests += figures.requests;
            }
            times.extend(changing.join().expect("changes are taken"));
        });
        memory.push(resident());
    }
    times.sort_unstable();
    Measured {
        changes: times.len(),
        took: began.elapsed(),
        requests,
        resident: memory,
        change: times.get(times.len() / 2).copied().unwrap_or_default(),
    }
}

/// The route with another time for an answer.
fn changed(number: usize) -> MeshUpdate {
    let request = Duration::from_millis(10_000 + number as u64);
    let route = Route {
        timeouts: Timeouts {
            request: Some(request),
            backend_request: None,
        },
        ..rule()
    };
    MeshUpdate::Route(std::sync::Arc::new(route))
}
