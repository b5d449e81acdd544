//! Runs fault scenarios and prints one line of figures for each; see `cargo xtask scenario --help`.

#![allow(clippy::print_stdout, reason = "the figures are the result")]

use std::process::ExitCode;

use tulle_integration::crowd;
use tulle_integration::scenario::{Figure, Scale, Scenario, all};

const HELP: &str = "\
Fault scenarios: each runs a load in a mesh of its own, does one thing to it, and prints a line of figures.

Usage: cargo xtask scenario [OPTIONS] <NAME…|all>

Options:
  --short        seconds instead of minutes; no figures to publish
  --json FILE    write the figures of this run as JSON too
  --list         print the scenarios and about how long each takes
  -h, --help     print this help

Exit codes: 0 every target held, 1 one was missed or a scenario broke, 64 wrong usage.
Root, or user namespaces, are needed, as for the tests.
";

/// What the command line asks for.
struct Wanted {
    names: Vec<String>,
    scale: Scale,
    json: Option<String>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == crowd::NAME) {
        return crowd::run();
    }
    if arguments.is_empty()
        || arguments
            .iter()
            .any(|argument| argument == "-h" || argument == "--help")
    {
        print!("{HELP}");
        return ExitCode::from(if arguments.is_empty() { 64 } else { 0 });
    }
    if arguments.iter().any(|argument| argument == "--list") {
        for scenario in all() {
            println!(
                "{}  {:>4} s  {}",
                scenario.id,
                scenario.takes.as_secs(),
                scenario.title
            );
        }
        return ExitCode::SUCCESS;
    }
    let chosen = parse(arguments).and_then(|wanted| Ok((choose(&wanted.names)?, wanted)));
    let (scenarios, wanted) = match chosen {
        Ok(chosen) => chosen,
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
    let figures = run(&scenarios, wanted.scale);
    finish(&figures, scenarios.len(), wanted.json.as_deref())
}

fn parse(arguments: Vec<String>) -> Result<Wanted, String> {
    let mut wanted = Wanted {
        names: Vec::new(),
        scale: Scale::Full,
        json: None,
    };
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--short" => wanted.scale = Scale::Short,
            "--json" => wanted.json = Some(arguments.next().ok_or("--json needs a file")?),
            flag if flag.starts_with('-') => return Err(format!("unknown option {flag}")),
            name => wanted.names.push(name.to_owned()),
        }
    }
    Ok(wanted)
}

fn choose(names: &[String]) -> Result<Vec<Scenario>, String> {
    if names.iter().any(|name| name == "all") {
        return Ok(all());
    }
    let find = |name: &String| {
        let found = all()
            .into_iter()
            .find(|scenario| scenario.id.eq_ignore_ascii_case(name));
        found.ok_or_else(|| format!("there is no scenario {name}; --list names them"))
    };
    names.iter().map(find).collect()
}

/// Runs one after the other; one that breaks is reported and does not stop the others.
fn run(scenarios: &[Scenario], scale: Scale) -> Vec<Figure> {
    let mut figures = Vec::new();
    for scenario in scenarios {
        eprintln!(
            "{} {} (about {} s)",
            scenario.id,
            scenario.title,
            scenario.takes.as_secs()
        );
        // A runtime of its own: whatever it left running ends with it.
        let scenario = *scenario;
        match std::thread::spawn(move || alone(scenario, scale)).join() {
            Ok(figure) => {
                print(&figure);
                figures.push(figure);
            }
            Err(_) => println!("{} BROKE, see above", scenario.id),
        }
    }
    figures
}

fn alone(scenario: Scenario, scale: Scale) -> Figure {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime can be built");
    let figure = runtime.block_on((scenario.run)(scale));
    runtime.shutdown_background();
    figure
}

fn print(figure: &Figure) {
    println!("{figure}");
    for missed in figure.missed() {
        println!("{} MISSED {missed}", figure.id());
    }
    if !figure.missed().is_empty() {
        for note in figure.notes() {
            eprintln!("{} {note}", figure.id());
        }
    }
}

fn finish(figures: &[Figure], wanted: usize, json: Option<&str>) -> ExitCode {
    if let Some(path) = json {
        let all: Vec<_> = figures.iter().map(Figure::json).collect();
        if let Err(error) = std::fs::write(path, format!("{:#}\n", serde_json::Value::from(all))) {
            eprintln!("error: cannot write {path}: {error}");
            return ExitCode::FAILURE;
        }
    }
    let missed = figures
        .iter()
        .filter(|figure| !figure.missed().is_empty())
        .count();
    let skipped = figures
        .iter()
        .filter(|figure| figure.skipped_because().is_some())
        .count();
    let broke = wanted - figures.len();
    let held = figures.len() - missed - skipped;
    println!("{wanted} scenarios: {held} held, {missed} missed a target, {broke} broke, {skipped} skipped");
    if missed + broke == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
