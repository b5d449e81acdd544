//! `bench waypoint`: a waypoint beside a reverse proxy of hyper alone, nginx and haproxy, which do the same job; and what
//! many routes cost it. Everything goes over loopback.

#![allow(clippy::print_stdout, reason = "the table is the result")]

use std::process::ExitCode;
use std::time::Duration;

use tulle_benches::l7::routes::{self, SERVICES};
use tulle_benches::l7::rules;
use tulle_benches::l7::table::{Plan, json, line, measure, ratios};

const HELP: &str = "\
A waypoint beside other reverse proxies: mutual TLS on both hops, a header matched, one more try on 503, ten seconds for
an answer. Each has its turn in every round of one run, on threads or in a process of its own. nginx and haproxy take
part where the machine has them.

Usage: cargo xtask bench waypoint [OPTIONS]

Options:
  --rounds N         turns of each contestant (default 5)
  --seconds N        of each turn (default 2)
  --json FILE        write every row
  --routes           instead: memory of 5,000 routes of 2,000 services, and how soon a changed one is visible
  --crowded          instead: the same with all routes on one service
  --rules            instead: what a policy of many rules costs
  -h, --help         print this help
";

/// What is asked for.
struct Options {
    plan: Plan,
    json: Option<String>,
    routes: Option<(&'static str, usize)>,
    rules: bool,
}

/// Measures, and prints what it measured.
#[must_use]
pub fn run(arguments: Vec<String>) -> ExitCode {
    let options = match parse(arguments) {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("error: {error}\n\n{HELP}");
            return ExitCode::from(64);
        }
    };
    if options.rules {
        for count in [1, 100, 10_000, 1_000_000] {
            println!("{}", rules::measure(count));
        }
        return ExitCode::SUCCESS;
    }
    if let Some((spread, services)) = options.routes {
        println!("{}", routes::measure(spread, services));
        return ExitCode::SUCCESS;
    }
    let rows = measure(&options.plan, |row| println!("{}", line(row)));
    print!("\n{}", ratios(&rows));
    if let Some(path) = options.json
        && let Err(error) = std::fs::write(&path, json(&rows))
    {
        eprintln!("error: {path}: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn parse(arguments: Vec<String>) -> Result<Option<Options>, String> {
    let mut options = Options {
        plan: Plan {
            peers: true,
            ..Plan::default()
        },
        json: None,
        routes: None,
        rules: false,
    };
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "-h" | "--help" => return Ok(None),
            "--rounds" => options.plan.rounds = count(&value()?)?,
            "--seconds" => options.plan.turn = Duration::from_secs(count(&value()?)? as u64),
            "--json" => options.json = Some(value()?),
            "--routes" => options.routes = Some(("5,000 routes of 2,000 services", SERVICES)),
            "--rules" => options.rules = true,
            "--crowded" => options.routes = Some(("5,000 routes of one service", 1)),
            other => return Err(format!("unknown argument {other:?}")),
        }
    }
    Ok(Some(options))
}

fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=1000) => Ok(count),
        _ => Err(format!("{text:?} is no count from 1 to 1000")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_and_others_refused() {
        let parse = |text: &str| super::parse(text.split_whitespace().map(str::to_owned).collect());
        let read = parse("--rounds 3 --seconds 1 --json out.json").unwrap().unwrap();
        assert_eq!((read.plan.rounds, read.plan.turn), (3, Duration::from_secs(1)));
        assert_eq!(read.json.as_deref(), Some("out.json"));
        assert!(parse("--help").unwrap().is_none());
        for bad in ["--rounds", "--rounds 0", "--peers"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
