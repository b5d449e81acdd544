//! The table: every proxy has its turn in each round of one run, and figures are medians of rounds.

use std::fmt::Write;
use std::time::Duration;

use super::{Ask, Device, Figures, Load, Program, Site, Version, threads};

/// What is compared, and how long.
#[derive(Debug, Clone)]
pub struct Plan {
    /// nginx and haproxy take part, where the machine has them.
    pub peers: bool,
    /// Turns of each proxy.
    pub rounds: usize,
    /// How long a turn is.
    pub turn: Duration,
    /// Connections of the row at full speed.
    pub connections: Vec<usize>,
    /// Requests a second of the row at a rate.
    pub rate: u32,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            peers: false,
            rounds: 5,
            turn: Duration::from_secs(2),
            connections: vec![1, 32, 512],
            rate: 1_000,
        }
    }
}

/// One row of one proxy.
#[derive(Debug, Clone)]
pub struct Row {
    /// What clients speak, and how.
    pub row: String,
    /// The proxy.
    pub who: &'static str,
    /// Requests a second; at a rate, that rate.
    pub rate: Spread,
    /// CPU seconds of the proxy for 1,000 requests.
    pub cpu: Spread,
    /// Median time, microseconds.
    pub p50: Spread,
    /// Time that 99 of 100 requests take at most, microseconds.
    pub p99: Spread,
}

/// A figure over rounds.
#[derive(Debug, Clone, Copy)]
pub struct Spread {
    /// The middle one.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The most.
    pub most: f64,
}

impl Spread {
    fn of(figures: &[Figures], get: impl Fn(&Figures) -> f64) -> Self {
        let mut all: Vec<f64> = figures.iter().map(get).collect();
        all.sort_by(f64::total_cmp);
        Self {
            median: all[all.len() / 2],
            least: all[0],
            most: all[all.len() - 1],
        }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = if self.median < 10.0 { 4 } else { 0 };
        let Self { median, least, most } = self;
        write!(f, "{median:.digits$} [{least:.digits$}..{most:.digits$}]")
    }
}

/// What is measured with clients that speak this: connections, requests a second if not as many as go, and what they are.
fn turns(plan: &Plan, version: Version) -> Vec<(usize, Option<u32>, Ask)> {
    let full = plan
        .connections
        .iter()
        .map(|connections| (*connections, None, Ask::Page));
    let mut turns: Vec<_> = full.chain([(4, Some(plan.rate), Ask::Page)]).collect();
    if version == Version::Two {
        turns.extend(
            plan.connections
                .iter()
                .map(|connections| (*connections, None, Ask::Unary)),
        );
        // Streams of one tunnel, where there is one.
        turns.push((200, None, Ask::Message));
    }
    turns
}

/// Measures, and hands each row on as soon as it is there.
pub fn measure(plan: &Plan, mut each: impl FnMut(&Row)) -> Vec<Row> {
    let (site, clients) = (Site::start(), threads("client"));
    let mut rows = Vec::new();
    for version in [Version::One, Version::Two] {
        let mut devices = vec![
            Device::direct(&site),
            Device::bare(&site, version),
            Device::waypoint(&site, version),
        ];
        if plan.peers {
            let programs = [Program::Nginx, Program::Haproxy];
            devices.extend(
                programs
                    .iter()
                    .filter_map(|one| Device::peer(&site, *one, version)),
            );
        }
        for (connections, rate, what) in turns(plan, version) {
            // To nginx, calls are something else than requests.
            let takes = |device: &&Device| what == Ask::Page || device.name != Program::Nginx.name();
            let devices: Vec<&Device> = devices.iter().filter(takes).collect();
            let mut loads: Vec<Load> = devices
                .iter()
                .map(|device| Load::open(&clients, &site, device, version, connections).asking(what))
                .collect();
            let mut figures = vec![Vec::new(); devices.len()];
            // The first round opens connections upstream and is not counted.
            for round in 0..=plan.rounds {
                for ((device, load), figures) in devices.iter().zip(&mut loads).zip(&mut figures) {
                    let turn = if round == 0 { plan.turn / 4 } else { plan.turn };
                    let one = match rate {
                        None => load.full(&clients, device, turn),
                        Some(rate) => load.at_rate(&clients, device, turn, rate),
                    };
                    if round > 0 {
                        figures.push(one);
                    }
                }
            }
            let row = match (what, rate) {
                (Ask::Unary, _) => format!("gRPC calls, {connections}"),
                (Ask::Message, _) => format!("gRPC messages, {connections}"),
                (Ask::Page, None) => format!("{version}, {connections} connections"),
                (Ask::Page, Some(rate)) => format!("{version}, {rate}/s"),
            };
            for (device, figures) in devices.iter().zip(&figures) {
                let row = Row {
                    row: row.clone(),
                    who: device.name,
                    rate: Spread::of(figures, |one| one.rate),
                    cpu: Spread::of(figures, |one| one.cpu),
                    p50: Spread::of(figures, |one| one.p50),
                    p99: Spread::of(figures, |one| one.p99),
                };
                each(&row);
                rows.push(row);
            }
        }
    }
    rows
}

/// A row as a line of text.
#[must_use]
pub fn line(row: &Row) -> String {
    format!(
        "{:<20} {:<9} {:>30} req/s  CPU s/1000 {:>26}  p50 us {:>24}  p99 us {:>26}",
        row.row,
        row.who,
        row.rate.to_string(),
        row.cpu.to_string(),
        row.p50.to_string(),
        row.p99.to_string(),
    )
}

/// What each proxy needs in relation to the waypoint: below 1 is less.
#[must_use]
pub fn ratios(rows: &[Row]) -> String {
    let mut text = String::new();
    for row in rows.iter().filter(|row| row.who == "waypoint") {
        let others = rows
            .iter()
            .filter(|one| one.row == row.row && !["waypoint", "direct"].contains(&one.who));
        for other in others {
            let _ = writeln!(
                text,
                "{:<20} waypoint / {:<8} req/s {:.2}  CPU {:.2}  p50 {:.2}  p99 {:.2}",
                row.row,
                other.who,
                row.rate.median / other.rate.median,
                row.cpu.median / other.cpu.median,
                row.p50.median / other.p50.median,
                row.p99.median / other.p99.median,
            );
        }
    }
    text
}

/// All of it as JSON.
#[must_use]
pub fn json(rows: &[Row]) -> String {
    let spread = |of: &Spread| format!("[{:.6},{:.6},{:.6}]", of.median, of.least, of.most);
    let lines: Vec<_> = rows
        .iter()
        .map(|row| {
            format!(
                r#"{{"row":"{}","who":"{}","requests_per_second":{},"cpu_seconds_per_1000":{},"p50_us":{},"p99_us":{}}}"#,
                row.row,
                row.who,
                spread(&row.rate),
                spread(&row.cpu),
                spread(&row.p50),
                spread(&row.p99)
            )
        })
        .collect();
    format!("[\n{}\n]\n", lines.join(",\n"))
}
