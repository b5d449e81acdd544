//! Running the workspace's tests, with a second look at the few that failed: alone, and once.
//!
//! Tests with real namespaces, processes and clocks share a machine with whatever else runs on it. A test that fails
//! among others and passes alone is named at the end as unsteady: something is wrong with it or with the code, but not
//! so much that nothing may land.

use std::io::{self, BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Instant;

use crate::built_once;
use crate::packages::Namespaces;

/// More failures than this are no matter of chance.
const UNSTEADY_MAX: usize = 3;

/// What property tests draw their inputs from, unless the environment says otherwise: a change is judged by the same
/// inputs wherever and whenever it is tested. To look for new ones: `PROPTEST_RNG_SEED=$RANDOM cargo xtask test`.
pub(crate) const SEED: (&str, &str) = ("PROPTEST_RNG_SEED", "20260101");

const ARGUMENTS: [&str; 4] = ["test", "--workspace", "--locked", "--no-fail-fast"];

/// Runs every test of the workspace.
pub(crate) fn run(namespaces: &Namespaces, root: &Path) -> Result<(), String> {
    let started = Instant::now();
    println!("── tests");
    let (status, lines) = passed_on(seeded(&mut namespaces.inside("cargo", &ARGUMENTS, root)))
        .map_err(|error| format!("tests: cannot start cargo: {error}"))?;
    let took = started.elapsed().as_secs();
    if status.success() {
        println!("── tests: done in {took} s");
        return Ok(());
    }
    let failed = failed(&lines);
    if failed.is_empty() || failed.len() > UNSTEADY_MAX || !all_told(&lines, failed.len()) {
        return Err(format!("tests failed ({status}) after {took} s"));
    }
    again(namespaces, root, &failed)?;
    println!("── tests: done, and UNSTEADY: {}", failed.join(", "));
    Ok(())
}

/// Runs these tests and no other, one after the other; each must be found and pass.
fn again(namespaces: &Namespaces, root: &Path, failed: &[String]) -> Result<(), String> {
    println!("── tests that failed, again and alone: {}", failed.join(", "));
    let mut arguments = ARGUMENTS.to_vec();
    arguments.extend(["--lib", "--bins", "--tests", "--", "--exact", "--test-threads=1"]);
    arguments.extend(failed.iter().map(String::as_str));
    let (status, lines) = passed_on(seeded(&mut namespaces.inside("cargo", &arguments, root)))
        .map_err(|error| format!("tests: cannot start cargo: {error}"))?;
    let found = lines.iter().filter(|line| outcome(line, "ok").is_some()).count();
    if status.success() && found >= failed.len() {
        return Ok(());
    }
    Err(format!("tests failed twice ({status}): {}", failed.join(", ")))
}

/// The command as CI wants it, with a seed for property tests, if none is set.
fn seeded(command: &mut Command) -> &mut Command {
    let (name, value) = SEED;
    let command = built_once(command);
    match std::env::var_os(name) {
        Some(_) => command,
        None => command.env(name, value),
    }
}

/// Runs a command, shows what it prints, and keeps it.
fn passed_on(command: &mut Command) -> io::Result<(ExitStatus, Vec<String>)> {
    let (reader, writer) = io::pipe()?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer);
    let mut child = command.spawn()?;
    // The command keeps its ends of the pipe: without them the reader sees the end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut lines = Vec::new();
    for line in BufReader::new(reader).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        println!("{line}");
        lines.push(line);
    }
    Ok((child.wait()?, lines))
}

/// The names of tests that failed.
fn failed(lines: &[String]) -> Vec<String> {
    let mut names: Vec<String> = lines
        .iter()
        .filter_map(|line| outcome(line, "FAILED"))
        .map(str::to_owned)
        .collect();
    names.sort();
    names.dedup();
    names
}

/// Whether every failed program ended with a count of its failures, and the counts are those of the named tests: a
/// program that was killed, or did not build, is no matter of chance.
fn all_told(lines: &[String], named: usize) -> bool {
    let counted = lines.iter().filter_map(|line| {
        let (_, rest) = line.split_once("test result: FAILED. ")?;
        let (_, rest) = rest.split_once("passed; ")?;
        rest.split_once(" failed")?.0.parse::<usize>().ok()
    });
    let (programs, failures) = counted.fold((0, 0), |(programs, sum), count| (programs + 1, sum + count));
    let told = lines.iter().filter(|line| line.starts_with("    `-p ")).count();
    failures == named && programs == told
}

/// The name in `test NAME ... OUTCOME`. Examples in documentation have other names, and fail for good.
fn outcome<'a>(line: &'a str, outcome: &str) -> Option<&'a str> {
    let name = line
        .strip_prefix("test ")?
        .strip_suffix(outcome)?
        .strip_suffix(" ... ")?;
    (!name.contains(' ')).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    const ONE: &str = "\
test install::tests::a_program ... FAILED
test install::tests::another ... ok
test result: FAILED. 149 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.46s
error: 1 target failed:
    `-p tulle-agent --lib`";

    #[test]
    fn tests_that_failed_are_named_once() {
        let twice = format!("{ONE}\n{ONE}");
        assert_eq!(failed(&lines(&twice)), ["install::tests::a_program"]);
    }

    #[test]
    fn one_failure_that_is_told_is_looked_at_again() {
        assert!(all_told(&lines(ONE), 1));
    }

    #[test]
    fn a_program_that_died_is_not_looked_at_again() {
        let died = format!("{ONE}\n    `-p tulle-ztunnel --test it`");
        assert!(!all_told(&lines(&died), 1));
    }

    #[test]
    fn an_example_that_failed_is_not_looked_at_again() {
        let example = "test agent/src/lib.rs - (line 21) ... FAILED\ntest result: FAILED. 0 passed; 1 failed; 0 ignored";
        assert!(failed(&lines(example)).is_empty());
    }

    #[test]
    fn what_a_command_prints_is_kept() {
        let mut command = Command::new("sh");
        let (status, lines) = passed_on(command.args(["-c", "echo one; echo two >&2; exit 3"])).unwrap();
        assert_eq!(lines, ["one", "two"]);
        assert_eq!(status.code(), Some(3));
    }
}
