//! `bench waypoint`: a waypoint beside a reverse proxy of hyper alone, nginx and haproxy, which do the same job; and what
//! many routes cost it. Everything goes over loopback.

#![allow(clippy::print_stdout, reason = "the table is the result")]

use std::process::ExitCode;
use std::time::Duration;

use super::body;

use tulle_benches::l7::routes::{self, SERVICES};
use tulle_benches::l7::table::{Plan, json, line, measure, ratios};
use tulle_benches::l7::{bodies, callers, churn, fair, idle, rules, threads, windows};

/// Bytes of a large body.
const BODY: u64 = 1 << 30;
/// Changes of a route while requests run, unless somebody asks for more.
const CHANGES: usize = 1_000;
const CHANGES_MAX: usize = 1_000_000;
/// Rounds, or seconds, that can be asked for.
const COUNT_MAX: usize = 1_000;

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
  --bodies           instead: how fast a body of 1 GiB passes, and the memory it takes
  --windows          instead: what windows and frames of HTTP/2 do to a large body and to small requests beside it
  --idle             instead: memory of idle connections and open calls, clients in the process included
  --fair             instead: who gets how many requests of four endpoints, one of which is slow
  --callers          instead: what it costs that callers share no connection to an endpoint, by one and by many
  --churn            instead: memory while a route changes and requests run
  --changes N        how often it changes, up to 1000000 (default 1000: 15 s)
  -h, --help         print this help
";

/// What is asked for.
struct Options {
    plan: Plan,
    json: Option<String>,
    instead: Option<Instead>,
}

/// What is measured in the place of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Instead {
    Routes(&'static str, usize),
    Rules,
    Bodies,
    Windows,
    Idle,
    Fair,
    Callers,
    /// So many changes.
    Churn(usize),
}

impl Instead {
    fn measure(self, plan: &Plan) {
        match self {
            Self::Routes(spread, services) => println!("{}", routes::measure(spread, services)),
            Self::Rules => {
                for count in [1, 100, 10_000, 1_000_000] {
                    println!("{}", rules::measure(count));
                }
            }
            Self::Bodies => {
                println!("{}", in_a_mesh());
                bodies::measure(BODY, plan.rounds, |row| println!("{row}"));
            }
            Self::Windows => windows::measure(plan.rounds, |row| println!("{row}")),
            Self::Idle => {
                tulle_runtime::limits::raise_nofile().ok();
                idle::measure(|| threads("waypoint"), &mut grown, |row| println!("{row}"));
            }
            Self::Fair => fair::measure(plan.turn, |row| println!("{row}")),
            Self::Callers => callers::measure(plan.turn, |row| println!("{row}")),
            Self::Churn(changes) => println!("{}", churn::measure(changes)),
        }
    }
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
    if let Some(instead) = options.instead {
        instead.measure(&options.plan);
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

/// By how much the memory of this process grew while this ran.
fn grown(run: &mut dyn FnMut()) -> i64 {
    let resident = || i64::try_from(tulle_benches::resident()).unwrap_or(i64::MAX);
    let before = resident();
    run();
    resident() - before
}

/// What a waypoint between node proxies takes for bodies: first of all, while this process has one thread.
fn in_a_mesh() -> String {
    if let Err(error) = tulle_linux::isolate::enter() {
        return format!("between node proxies: not measured: {error}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime can be made");
    runtime.block_on(body::measure()).to_string()
}

fn parse(arguments: Vec<String>) -> Result<Option<Options>, String> {
    let mut options = Options {
        plan: Plan {
            peers: true,
            ..Plan::default()
        },
        json: None,
        instead: None,
    };
    let (mut arguments, mut churns) = (arguments.into_iter(), None);
    while let Some(argument) = arguments.next() {
        let mut value = || {
            arguments
                .next()
                .ok_or_else(|| format!("{argument} needs a value"))
        };
        match argument.as_str() {
            "-h" | "--help" => return Ok(None),
            "--rounds" => options.plan.rounds = count(&value()?, COUNT_MAX)?,
            "--seconds" => options.plan.turn = Duration::from_secs(count(&value()?, COUNT_MAX)? as u64),
            "--json" => options.json = Some(value()?),
            "--routes" => {
                options.instead = Some(Instead::Routes("5,000 routes of 2,000 services", SERVICES));
            }
            "--crowded" => options.instead = Some(Instead::Routes("5,000 routes of one service", 1)),
            "--rules" => options.instead = Some(Instead::Rules),
            "--bodies" => options.instead = Some(Instead::Bodies),
            "--windows" => options.instead = Some(Instead::Windows),
            "--idle" => options.instead = Some(Instead::Idle),
            "--fair" => options.instead = Some(Instead::Fair),
            "--callers" => options.instead = Some(Instead::Callers),
            "--churn" => churns = Some(churns.unwrap_or(CHANGES)),
            "--changes" => churns = Some(count(&value()?, CHANGES_MAX)?),
            other => return Err(format!("unknown argument {other:?}")),
        }
    }
    options.instead = churns.map(Instead::Churn).or(options.instead);
    Ok(Some(options))
}

fn count(text: &str, most: usize) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if (1..=most).contains(&count) => Ok(count),
        _ => Err(format!("{text:?} is no count from 1 to {most}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_and_others_refused() {
        let read_from = |text: &str| parse(text.split_whitespace().map(str::to_owned).collect());
        let read = read_from("--rounds 3 --seconds 1 --json out.json")
            .unwrap()
            .unwrap();
        assert_eq!((read.plan.rounds, read.plan.turn), (3, Duration::from_secs(1)));
        assert_eq!(read.json.as_deref(), Some("out.json"));
        assert!(read_from("--help").unwrap().is_none());
        assert_eq!(
            read_from("--churn").unwrap().unwrap().instead,
            Some(Instead::Churn(1_000))
        );
        let callers = read_from("--callers --seconds 1").unwrap().unwrap();
        assert_eq!(callers.instead, Some(Instead::Callers));
        for asked in ["--churn --changes 20000", "--changes 20000 --churn"] {
            assert_eq!(
                read_from(asked).unwrap().unwrap().instead,
                Some(Instead::Churn(20_000))
            );
        }
        for bad in ["--rounds", "--rounds 0", "--peers", "--changes 1000001"] {
            assert!(read_from(bad).is_err(), "{bad}");
        }
    }
}
