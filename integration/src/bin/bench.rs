//! Runs end-to-end measurements and prints their table; see `cargo xtask bench --help`.

#![allow(clippy::print_stdout, reason = "the table is the result")]

use std::path::PathBuf;
use std::process::ExitCode;

use tulle_integration::bench::{Options, Part, tunnel};

/// That of the program which is measured: whatever runs in this process has it, too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const HELP: &str = "\
End-to-end measurements in real network namespaces, each contestant in turn in every round of one run.

Usage: cargo xtask bench tunnel [OPTIONS]
       cargo xtask bench waypoint [OPTIONS]   (--help says more)
       cargo xtask bench process [ROW]        a tunnel in one process, over loopback, beside a plain relay, TLS alone and
                                              the least that records cost; all rows, or those of that name
       cargo xtask bench workers              the same with 1 to 16 worker threads, measured and simulated

Options:
  --peer NAME=PATH   also measure this node proxy, a ready binary that takes istio ztunnel's environment; may be repeated
  --part NAME        measure this part only: bulk, paced, requests, connections, beside, memory; may be repeated
  --contestant NAME  measure this one only, as the table calls it: tulle records, say; may be repeated
  --rounds N         turns of each contestant (default 5)
  --seconds N        of each part of a turn (default 2)
  --json FILE        write every value
  --plot FILE        draw the ratios as SVG
  -h, --help         print this help

The first column is what others are compared with: the first peer, or no mesh at all.
Root, or user namespaces, and iperf3 are needed, as for the tests.
Example: cargo xtask bench tunnel --peer ztunnel=/usr/local/bin/ztunnel --json run.json --plot run.svg
";

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "waypoint") {
        arguments.remove(0);
        return tulle_integration::bench::waypoint::run(arguments);
    }
    if arguments
        .iter()
        .any(|argument| argument == "-h" || argument == "--help")
    {
        print!("{HELP}");
        return ExitCode::SUCCESS;
    }
    match arguments.first().map(String::as_str) {
        Some("process") => {
            tulle_runtime::limits::raise_nofile().ok();
            tulle_benches::rows::run(arguments.get(1).map(String::as_str));
            return ExitCode::SUCCESS;
        }
        Some("workers") => {
            tulle_benches::simulation::print();
            tulle_benches::workers::run();
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let (options, json) = match parse(arguments) {
        Ok(parsed) => parsed,
        Err(error) => {
            eprintln!("error: {error}\n\n{HELP}");
            return ExitCode::from(64);
        }
    };
    if let Err(error) = tulle_linux::isolate::enter() {
        eprintln!("error: {error}");
        return ExitCode::FAILURE;
    }
    tulle_runtime::limits::raise_nofile().ok();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime can be made");
    let table = runtime.block_on(tunnel(&options, |step| eprintln!("{step}")));
    print!("{table}");
    let Some(path) = json else {
        return ExitCode::SUCCESS;
    };
    if let Err(error) = std::fs::write(&path, format!("{:#}\n", table.to_json())) {
        eprintln!("error: {}: {error}", path.display());
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn parse(arguments: Vec<String>) -> Result<(Options, Option<PathBuf>), String> {
    let mut options = Options {
        parts: Vec::new(),
        contestants: Vec::new(),
        rounds: 5,
        seconds: 2,
        peers: Vec::new(),
        plot: None,
    };
    let mut json = None;
    let mut arguments = arguments.into_iter();
    match arguments.next().as_deref() {
        Some("tunnel") => {}
        Some(other) => {
            return Err(format!(
                "unknown measurement {other:?}; there are: tunnel, waypoint, process, workers"
            ));
        }
        None => return Err("name a measurement: tunnel, waypoint, process or workers".to_owned()),
    }
    while let Some(argument) = arguments.next() {
        let mut value = || {
            arguments
                .next()
                .ok_or_else(|| format!("{argument} needs a value"))
        };
        match argument.as_str() {
            "--peer" => options.peers.push(peer(&value()?)?),
            "--part" => options.parts.push(part(&value()?)?),
            "--contestant" => options.contestants.push(value()?),
            "--rounds" => options.rounds = count(&value()?)?,
            "--seconds" => options.seconds = u64::from(count(&value()?)?),
            "--json" => json = Some(value()?.into()),
            "--plot" => options.plot = Some(value()?.into()),
            other => return Err(format!("unknown argument {other:?}")),
        }
    }
    Ok((options, json))
}

fn part(text: &str) -> Result<Part, String> {
    Part::from_name(text).ok_or_else(|| {
        format!("there is no part {text:?}; there are bulk, paced, requests, connections, beside and memory")
    })
}

fn peer(text: &str) -> Result<(String, PathBuf), String> {
    let (name, path) = text
        .split_once('=')
        .ok_or_else(|| format!("--peer {text:?} is not NAME=PATH"))?;
    let path = PathBuf::from(path);
    if !path.is_file() {
        return Err(format!("--peer {name}: there is no file {}", path.display()));
    }
    Ok((name.to_owned(), path))
}

fn count(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(count @ 1..=1000) => Ok(count),
        _ => Err(format!("{text:?} is no count from 1 to 1000")),
    }
}
