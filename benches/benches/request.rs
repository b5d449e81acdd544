//! A waypoint's path of requests beside a reverse proxy of hyper alone, in one run: requests a second, latency, CPU. And
//! what many routes cost.
//!
//! `cargo bench -p tulle-benches --bench request -- [table|routes|crowded]`. `routes` and `crowded` measure memory, each
//! best in a process of its own. `cargo xtask bench waypoint` has nginx and haproxy in the same run.

use std::io::Write;

use tulle_benches::l7::routes::{self, SERVICES};
use tulle_benches::l7::table::{Plan, line, measure, ratios};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments
        .iter()
        .any(|argument| argument == "--test" || argument == "--list")
    {
        return;
    }
    let wanted = arguments.iter().find(|argument| !argument.starts_with("--"));
    let wants = |part: &str| wanted.is_none_or(|wanted| part.contains(wanted.as_str()));
    if wants("routes") {
        print(&routes::measure("5,000 routes of 2,000 services", SERVICES).to_string());
    }
    if wants("crowded") {
        print(&routes::measure("5,000 routes of one service", 1).to_string());
    }
    if wants("table") {
        let rows = measure(&Plan::default(), |row| print(&line(row)));
        print(&ratios(&rows));
    }
}

fn print(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
