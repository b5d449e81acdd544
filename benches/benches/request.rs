//! A waypoint's path of requests beside a reverse proxy of hyper alone: one request after the other on one connection, by
//! criterion. Tables of more are printed instead for words after `--`:
//!
//! `cargo bench -p tulle-benches --bench request -- [table|routes|crowded|bodies|windows|fair|callers|churn]`. `routes` and `crowded`
//! measure memory, each best in a process of its own. `cargo xtask bench waypoint` has nginx and haproxy in the same run.

use std::io::Write;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion};
use tulle_benches::l7::routes::{self, SERVICES};
use tulle_benches::l7::table::{Plan, line, measure, ratios};
use tulle_benches::l7::{Ask, Device, Load, Site, Version, bodies, callers, churn, fair, threads, windows};

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("routes") => print(&routes::measure("5,000 routes of 2,000 services", SERVICES)),
        Some("crowded") => print(&routes::measure("5,000 routes of one service", 1)),
        Some("bodies") => bodies::measure(1 << 30, 5, |row| print(row)),
        Some("windows") => windows::measure(5, |row| print(row)),
        Some("fair") => fair::measure(Duration::from_secs(2), |row| print(row)),
        Some("callers") => callers::measure(Duration::from_secs(2), |row| print(row)),
        Some("churn") => print(&churn::measure(1_000)),
        Some("table") => {
            let rows = measure(&Plan::default(), |row| print(&line(row)));
            print(&ratios(&rows));
        }
        _ => {
            let mut criterion = Criterion::default()
                .warm_up_time(Duration::from_millis(500))
                .measurement_time(Duration::from_secs(2))
                .configure_from_args();
            requests(&mut criterion);
            criterion.final_summary();
        }
    }
}

fn requests(c: &mut Criterion) {
    let (site, clients) = (Site::start(), threads("client"));
    let mut group = c.benchmark_group("request");
    for (name, version, what) in [
        ("h1", Version::One, Ask::Page),
        ("h2", Version::Two, Ask::Page),
        ("grpc", Version::Two, Ask::Unary),
        ("message", Version::Two, Ask::Message),
    ] {
        for device in [Device::bare(&site, version), Device::waypoint(&site, version)] {
            let mut load = Load::open(&clients, &site, &device, version, 1).asking(what);
            group.bench_function(BenchmarkId::new(name, device.name), |bencher| {
                bencher.iter_custom(|count| load.requests(&clients, count));
            });
        }
    }
    group.finish();
}

fn print(row: &dyn std::fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{row}");
}
