//! `cargo xtask bench tunnel`: what a tunnel between two nodes costs, beside no mesh at all and beside other makes.

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

use super::arena::{Contestant, Kind};
use super::measure::{Took, bulk, closed_loop, hold, new_connections, paced, took};
use super::plot;
use super::process::resident_mib;
use super::table::{Better, Row, Table};

/// A part of a turn, with rows of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Bytes per second, both directions.
    Bulk,
    /// Requests at a steady pace.
    Paced,
    /// Requests as fast as they go.
    Requests,
    /// New connections.
    Connections,
    /// Requests at a steady pace beside bulk.
    Beside,
    /// Memory of connections that stay, and after many that went.
    Memory,
}

impl Part {
    const ALL: [Self; 6] = [
        Self::Bulk,
        Self::Paced,
        Self::Requests,
        Self::Connections,
        Self::Beside,
        Self::Memory,
    ];

    /// The part of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|part| part.name() == name)
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Bulk => "bulk",
            Self::Paced => "paced",
            Self::Requests => "requests",
            Self::Connections => "connections",
            Self::Beside => "beside",
            Self::Memory => "memory",
        }
    }
}

/// How the run is made.
#[derive(Debug, Clone)]
pub struct Options {
    /// What is measured; all of it if there is none.
    pub parts: Vec<Part>,
    /// Who is measured, by the table's name; all if there is none.
    pub contestants: Vec<String>,
    /// Rounds; each contestant has one turn in each.
    pub rounds: u32,
    /// Seconds of each part of a turn.
    pub seconds: u64,
    /// Node proxies of another make: a name and a binary that is configured as istio's ztunnel is.
    pub peers: Vec<(String, PathBuf)>,
    /// Where an SVG of the ratios goes.
    pub plot: Option<PathBuf>,
}

const MORE: Better = Better::More;
const LESS: Better = Better::Less;

const fn row(name: &'static str, better: Better) -> Row {
    Row { name, better }
}

const ELEPHANT_P50: Row = row("… 1,000/s beside bulk, p50, µs", LESS);
const ELEPHANT_P99: Row = row("… 1,000/s beside bulk, p99, µs", LESS);
const PACED: [Row; 3] = [
    row("200 bytes there and back at 1,000/s, p50, µs", LESS),
    row("… at 1,000/s, p99, µs", LESS),
    row("… at 1,000/s, CPU s per 1,000, all proxies", LESS),
];
const FRESH: [Row; 2] = [
    row("new connections with one request, per second", MORE),
    row("… CPU s per 1,000 connections, all proxies", LESS),
];
const BULK: [(u32, bool, [Row; 3]); 3] = [
    (
        1,
        false,
        [
            row("bulk, 1 stream, Gbit/s", MORE),
            row("… CPU s/GB, client's proxy", LESS),
            row("… CPU s/GB, server's proxy", LESS),
        ],
    ),
    (
        8,
        false,
        [
            row("bulk, 8 streams, Gbit/s", MORE),
            row("… 8 streams, CPU s/GB, client's proxy", LESS),
            row("… 8 streams, CPU s/GB, server's proxy", LESS),
        ],
    ),
    (
        1,
        true,
        [
            row("bulk from the server, 1 stream, Gbit/s", MORE),
            row("… from the server, CPU s/GB, client's proxy", LESS),
            row("… from the server, CPU s/GB, server's proxy", LESS),
        ],
    ),
];
const CLOSED: [(u32, [Row; 2]); 2] = [
    (
        1,
        [
            row("200 bytes there and back, 1 connection, per second", MORE),
            row("… 1 connection, CPU s per 1,000, all proxies", LESS),
        ],
    ),
    (
        32,
        [
            row("200 bytes there and back, 32 connections, per second", MORE),
            row("… 32 connections, CPU s per 1,000, all proxies", LESS),
        ],
    ),
];

/// Measures every contestant and gives the table; the first column is the first peer, or no mesh where there is none.
pub async fn run(options: &Options, progress: impl Fn(&str)) -> Table {
    let peers = options
        .peers
        .iter()
        .map(|(name, path)| Kind::Peer(name.clone(), path.clone()));
    let mut kinds: Vec<Kind> = peers.collect();
    kinds.extend([
        Kind::Direct,
        Kind::Framing("h2"),
        Kind::Framing("own"),
        Kind::Framing("records"),
        Kind::SameNode,
    ]);
    let wanted = |kind: &Kind| options.contestants.is_empty() || options.contestants.contains(&kind.name());
    kinds.retain(wanted);
    let mut table = Table::new(kinds.iter().map(Kind::name));
    let mut contestants = Vec::new();
    for kind in &kinds {
        progress(&format!("builds {}", kind.name()));
        let contestant = Contestant::enter(kind).await;
        idle(&contestant, &mut table);
        contestants.push(contestant);
    }
    for round in 1..=options.rounds {
        for contestant in &contestants {
            progress(&format!(
                "round {round} of {}: {}",
                options.rounds, contestant.name
            ));
            turn(contestant, options, &mut table).await;
        }
    }
    let proxied = contestants.iter().filter(|one| !one.proxies.is_empty());
    for contestant in proxied.filter(|_| options.wants(Part::Memory)) {
        progress(&format!("memory of {}", contestant.name));
        memory(contestant, &mut table).await;
    }
    if let Some(path) = &options.plot {
        std::fs::write(path, plot::svg(&table)).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    table
}

impl Options {
    fn wants(&self, part: Part) -> bool {
        self.parts.is_empty() || self.parts.contains(&part)
    }
}

/// One contestant's turn.
async fn turn(of: &Contestant, options: &Options, table: &mut Table) {
    let time = Duration::from_secs(options.seconds);
    if options.wants(Part::Bulk) {
        for (streams, reverse, rows) in BULK {
            let Took { done, cpu } = took(of, bulk(of, options.seconds, streams, reverse)).await;
            table.add(rows[0], &of.name, done.gbit_per_second);
            let per_gigabyte = cpu.iter().map(|cpu| cpu / done.gigabytes);
            for (row, value) in rows[1..].iter().zip(per_gigabyte) {
                table.add(*row, &of.name, value);
            }
        }
    }
    if options.wants(Part::Paced) {
        let Took { done, cpu } = took(of, paced(of, time)).await;
        table.add(PACED[0], &of.name, done.micros(50));
        table.add(PACED[1], &of.name, done.micros(99));
        per_thousand(of, PACED[2], &cpu, done.count() as u64, table);
    }
    if options.wants(Part::Requests) {
        for (connections, rows) in CLOSED {
            let Took { done, cpu } = took(of, closed_loop(of, time, connections)).await;
            table.add(rows[0], &of.name, done as f64 / time.as_secs_f64());
            per_thousand(of, rows[1], &cpu, done, table);
        }
    }
    if options.wants(Part::Connections) {
        let Took { done, cpu } = took(of, new_connections(of, time, u64::MAX)).await;
        table.add(FRESH[0], &of.name, done as f64 / time.as_secs_f64());
        per_thousand(of, FRESH[1], &cpu, done, table);
    }
    if options.wants(Part::Beside) {
        // The elephant is under way before the mice are counted, and until they are done.
        let mice = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            paced(of, time).await
        };
        let (_, mice) = tokio::join!(bulk(of, options.seconds + 1, 1, false), mice);
        table.add(ELEPHANT_P50, &of.name, mice.micros(50));
        table.add(ELEPHANT_P99, &of.name, mice.micros(99));
    }
}

fn per_thousand(of: &Contestant, row: Row, cpu: &[f64], done: u64, table: &mut Table) {
    if !cpu.is_empty() && done > 0 {
        table.add(row, &of.name, cpu.iter().sum::<f64>() * 1_000.0 / done as f64);
    }
}

/// Memory of the client's proxy before it has carried anything to speak of.
fn idle(of: &Contestant, table: &mut Table) {
    if let Some(&proxy) = of.proxies.first() {
        table.add(
            row("resident memory, idle, MiB", LESS),
            &of.name,
            resident_mib(proxy),
        );
    }
}

/// Memory of the client's proxy with idle connections, and once many have come and gone.
async fn memory(of: &Contestant, table: &mut Table) {
    const HELD: usize = 2_000;
    const GONE: u64 = 10_000;
    let Some(&proxy) = of.proxies.first() else { return };
    // Tables and pages that any number of connections needs are there before the first look.
    drop(hold(of, HELD).await);
    let before = resident_mib(proxy);
    let held = hold(of, HELD).await;
    let each = (resident_mib(proxy) - before).max(0.0) * 1024.0 / HELD as f64;
    table.add(
        row("an idle connection, KiB, client's proxy", LESS),
        &of.name,
        each,
    );
    drop(held);
    new_connections(of, Duration::from_secs(60), GONE).await;
    let until = Instant::now() + Duration::from_secs(60);
    let mut least = resident_mib(proxy);
    while Instant::now() < until {
        tokio::time::sleep(Duration::from_secs(1)).await;
        least = least.min(resident_mib(proxy));
    }
    table.add(
        row("… within 60 s after 10,000 connections, MiB", LESS),
        &of.name,
        least,
    );
}
