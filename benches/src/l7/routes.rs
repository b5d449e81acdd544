//! Many routes: the memory they take, and how soon a changed one decides requests.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tulle_identity::testing::TestCa;
use tulle_model::MeshUpdate;
use tulle_model::route::Route;
use tulle_model::testing::{http_route, prefix, service};

use super::Version;
use super::waypoint::{Fronting, front};
use crate::resident;

/// Routes in all.
pub const ROUTES: usize = 5_000;
/// Services that they are of.
pub const SERVICES: usize = 2_000;
/// Changes that are measured, one every [`PAUSE`].
const CHANGES: usize = 300;
/// Time between two changes.
const PAUSE: Duration = Duration::from_millis(10);

/// What was measured.
#[derive(Debug, Clone)]
pub struct Measured {
    /// How the routes are spread.
    pub spread: &'static str,
    /// Memory of the process before the waypoint.
    pub before: u64,
    /// With a waypoint and one route.
    pub idle: u64,
    /// With all of them.
    pub full: u64,
    /// Until all of them decide requests, told at once.
    pub all: Duration,
    /// Until a changed one does: median, and what 99 of 100 take at most.
    pub change: (Duration, Duration),
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        write!(
            f,
            "{}: RSS {:.1} MiB before, {:.1} with one route, {:.1} with all; all visible after {:.1} ms; a changed one \
             after {:.2} ms (p50), {:.2} ms (p99)",
            self.spread,
            mib(self.before),
            mib(self.idle),
            mib(self.full),
            ms(self.all),
            ms(self.change.0),
            ms(self.change.1),
        )
    }
}

/// Measures in a process that has done nothing else yet; `services` share the routes.
#[must_use]
pub fn measure(spread: &'static str, services: usize) -> Measured {
    let before = resident();
    let ca = Arc::new(TestCa::new());
    let nowhere = "127.0.0.1:9".parse().expect("an address");
    let fronting = Fronting::start(&ca, nowhere, Version::One);
    let idle = resident();
    let mut updates = Vec::new();
    for n in 0..SERVICES {
        let name = format!("shop/app-{n}");
        let vip = format!("10.97.{}.{}", n / 250, n % 250 + 1);
        let made = service(&name).vip(&vip).port(80, 8080).build();
        updates.push(MeshUpdate::Service(Arc::new(made)));
        updates.push(front(&name));
    }
    updates.extend((0..ROUTES).map(|n| told(n, services, 0)));
    let all = fronting.apply(updates);
    let full = resident();
    let mut times: Vec<Duration> = (0..CHANGES)
        .map(|turn| {
            #[allow(clippy::disallowed_methods, reason = "no task waits here")]
            std::thread::sleep(PAUSE);
            fronting.apply(vec![told(turn * 17 % ROUTES, services, turn + 1)])
        })
        .collect();
    times.sort_unstable();
    Measured {
        spread,
        before,
        idle,
        full,
        all,
        change: (times[CHANGES / 2], times[CHANGES * 99 / 100]),
    }
}

fn told(n: usize, services: usize, version: usize) -> MeshUpdate {
    let of = format!("shop/app-{}.shop.svc.cluster.local", n % services);
    let name = format!("shop/route-{n}");
    let on = prefix(&format!("/api/v1/part-{n}/items")).header("x-version", &version.to_string());
    let route: Route = http_route(&name).on(on).under(&of).to(&of, 80, 1);
    MeshUpdate::Route(Arc::new(route))
}
