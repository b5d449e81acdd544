//! The project's own tasks: `cargo xtask demo|test|oracle|scenario|bench|tidy`. Needs nothing but the standard library.

#![allow(clippy::print_stdout, reason = "what a task prints is its result")]

mod compare;
mod oracle;
mod packages;
mod suite;
mod tidy;

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Instant;

const HELP: &str = "\
The project's own tasks.

Usage: cargo xtask <TASK> [OPTIONS]

Tasks:
  demo [--check] [ARGS…]  install what is missing, build release, run `tulle up --demo [ARGS…]`
  test                    install what is missing, then run every check and test
  oracle [--cases N]      compare the engine's steps with fresh starts over many random histories, optimized; --help says more
  scenario NAME…|all      run fault scenarios and print their figures; --list names them, --help says more
  bench tunnel [ARGS…]    measure tunnels end to end beside no mesh and other makes; --help says more
  bench waypoint [ARGS…]  measure a waypoint beside a bare proxy, nginx and haproxy; --help says more
  bench process [ROW]     measure a tunnel in one process beside a plain relay, TLS alone and the least it can cost
  bench workers           measure and simulate a tunnel with 1 to 16 worker threads
  bench compare BASE      the criterion benches of another commit beside this tree's, in turns; --help says more
  tidy                    check the import arrows and the rules of ARCHITECTURE.md

Options:
  --no-install            refuse to install packages; say what is missing instead
                          (the environment variable TULLE_NO_INSTALL=1 does the same)
  -h, --help              print this help
";

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let task = if arguments.is_empty() {
        String::new()
    } else {
        arguments.remove(0)
    };
    let may_install = packages::may_install(&mut arguments);
    let outcome = match task.as_str() {
        "demo" => demo(may_install, &arguments),
        "test" => no_more(&arguments).and_then(|()| test(may_install)),
        "oracle" => oracle(&arguments),
        "scenario" => optimized("scenario", "release", may_install, &arguments),
        "bench" if arguments.first().is_some_and(|word| word == "compare") => compare(&arguments[1..]),
        "bench" => optimized("bench", "dist", may_install, &arguments),
        "tidy" => no_more(&arguments).and_then(|()| tidy::run(&root())),
        "-h" | "--help" | "help" => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprint!("unknown task {task:?}\n\n{HELP}");
            return ExitCode::from(64);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Refuses arguments that a task does not take.
fn no_more(arguments: &[String]) -> Result<(), String> {
    match arguments.first() {
        None => Ok(()),
        Some(argument) => Err(format!(
            "unexpected argument {argument:?}; see cargo xtask --help"
        )),
    }
}

/// The folder of the workspace.
fn root() -> PathBuf {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    own.parent()
        .expect("xtask is a folder of the workspace")
        .to_owned()
}

/// Looks for a history that the engine forgets.
fn oracle(arguments: &[String]) -> Result<(), String> {
    if arguments.iter().any(|word| word == "-h" || word == "--help") {
        print!("{}", oracle::HELP);
        return Ok(());
    }
    oracle::run(&oracle::Options::parse(arguments)?)
}

/// Measures another commit and this tree.
fn compare(arguments: &[String]) -> Result<(), String> {
    if arguments.iter().any(|word| word == "-h" || word == "--help") {
        print!("{}", compare::HELP);
        return Ok(());
    }
    compare::run(&root(), &compare::Options::parse(arguments)?)
}

/// Builds the release binary and runs the main job.
fn demo(may_install: bool, arguments: &[String]) -> Result<(), String> {
    packages::ensure(packages::FOR_THE_DEMO, may_install)?;
    step(
        "build tulle (release)",
        cargo(&["build", "--release", "--locked", "--package", "tulle-cli"]),
    )?;
    let binary = root().join("target/release/tulle");
    step(
        "tulle up --demo",
        Command::new(binary).args(["up", "--demo"]).args(arguments),
    )
}

/// Builds optimized binaries and runs one that needs namespaces: fault scenarios, or measurements.
///
/// `profile` is `release`, or `dist` where figures are published: those are of what users are given.
fn optimized(task: &str, profile: &str, may_install: bool, arguments: &[String]) -> Result<(), String> {
    packages::ensure(packages::FOR_THE_TESTS, may_install)?;
    let namespaces = packages::Namespaces::find()?;
    let packages = ["--package", "tulle-cli", "--package", "tulle-integration"];
    step(
        &format!("build tulle and {task} ({profile})"),
        cargo(&["build", "--profile", profile, "--locked", "--bins"]).args(packages),
    )?;
    let program = root()
        .join("target")
        .join(profile)
        .join(task)
        .display()
        .to_string();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    step(task, &mut namespaces.inside(&program, &arguments, &root()))
}

/// Every check and every test, in the order in which they fail soonest.
fn test(may_install: bool) -> Result<(), String> {
    packages::ensure(packages::FOR_THE_TESTS, may_install)?;
    let namespaces = packages::Namespaces::find()?;
    step("formatting", cargo(&["fmt", "--all", "--check"]))?;
    println!("── tidy");
    tidy::run(&root())?;
    step(
        "lints",
        cargo(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "--deny",
            "warnings",
        ]),
    )?;
    // Not `--all-targets`: lints have seen the benchmarks, and linking them helps no test.
    step("build", cargo(&["test", "--workspace", "--no-run", "--locked"]))?;
    suite::run(&namespaces, &root())?;
    // `tulle-cli` has no library to test: it is named so that the crates of others are those that stand built already.
    step(
        "tests of certificates, tunnels and the node proxy with BoringSSL, with exported access lines, without profiles",
        cargo(&[
            "test",
            "--package",
            "tulle-identity",
            "--package",
            "tulle-transport",
            "--package",
            "tulle-ztunnel",
            "--package",
            "tulle-cli",
            "--no-default-features",
            "--features",
            "tulle-identity/boring,tulle-ztunnel/otlp",
            "--lib",
            "--locked",
        ]),
    )?;
    // As the integration tests built it: an optimized one takes a third of the whole run to build, and does the same.
    step(
        "build tulle",
        cargo(&["build", "--locked", "--package", "tulle-cli"]),
    )?;
    let binary = root().join("target/debug/tulle");
    step(
        "the main job, checked",
        Command::new(binary).args(["up", "--demo", "--check"]),
    )
}

fn cargo(arguments: &[&str]) -> &'static mut Command {
    // One command lives until the process ends; there are a handful of them.
    let command = Box::leak(Box::new(Command::new(option_env!("CARGO").unwrap_or("cargo"))));
    built_once(command.args(arguments).current_dir(root()))
}

/// Where CI builds (`CI` is set), nothing is kept for a next build of the same tree: less work, and gigabytes less.
fn built_once(command: &mut Command) -> &mut Command {
    let name = "CARGO_INCREMENTAL";
    if std::env::var_os("CI").is_some() && std::env::var_os(name).is_none() {
        command.env(name, "0");
    }
    command
}

/// Runs one step, says which and how long it took.
fn step(name: &str, command: &mut Command) -> Result<(), String> {
    println!("── {name}");
    let started = Instant::now();
    let status = command
        .status()
        .map_err(|error| format!("{name}: cannot start {command:?}: {error}"))?;
    let took = started.elapsed().as_secs();
    if status.success() {
        println!("── {name}: done in {took} s");
        return Ok(());
    }
    Err(format!("{name} failed ({status}) after {took} s"))
}
