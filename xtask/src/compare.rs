//! `cargo xtask bench compare BASE`: the criterion benches of another commit beside those of this tree, in turns.
//!
//! A machine is never the same twice, so both are measured in each round of one run, and a difference counts only where
//! the rounds of one side lie wholly beside those of the other.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub(crate) const HELP: &str = "\
Runs the criterion benches of another commit and of this tree in turns, and prints before and after with the noise.

Usage: cargo xtask bench compare [OPTIONS] <BASE> [FILTER]

Arguments:
  BASE     the commit to compare with: a branch, a tag, a hash
  FILTER   only benchmarks whose name contains this

Options:
  --bench NAME     one of the benches below; may be repeated (default: decide, route, pick, policy)
  --rounds N       turns of each side (default 5)
  -h, --help       print this help

Benches: connect decide framing latency pick policy push request route throughput (others print tables of their own)
BASE is built in target/compare, once for each commit. The time of a row is the median of its rounds.
It fails where a row takes more than a tenth longer than before, outside of the noise.
Example: cargo xtask bench compare main --bench throughput tunnel/4
";

/// What criterion measures; the other benches print tables and know no baseline.
const BENCHES: [&str; 10] = [
    "connect",
    "decide",
    "framing",
    "latency",
    "pick",
    "policy",
    "push",
    "request",
    "route",
    "throughput",
];
const USUAL: [&str; 4] = ["decide", "route", "pick", "policy"];
const ROUNDS: u32 = 5;
/// What a row may take of its time before; the check fails above it.
const RATIO_MAX: f64 = 1.1;

/// What is compared.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    base: String,
    filter: Option<String>,
    benches: Vec<String>,
    rounds: u32,
}

impl Options {
    /// Reads the words after `compare`.
    pub(crate) fn parse(arguments: &[String]) -> Result<Self, String> {
        let (mut words, mut benches, mut rounds) = (Vec::new(), Vec::new(), ROUNDS);
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let mut value = || {
                arguments
                    .next()
                    .ok_or_else(|| format!("{argument} needs a value"))
            };
            match argument.as_str() {
                "--bench" => benches.push(value()?.clone()),
                "--rounds" => {
                    let value = value()?;
                    let number = value.parse().ok().filter(|&rounds| rounds > 0);
                    rounds = number.ok_or_else(|| format!("--rounds {value:?} is not a number above 0"))?;
                }
                option if option.starts_with('-') => {
                    return Err(format!("unknown option {option}\n\n{HELP}"));
                }
                _ => words.push(argument.clone()),
            }
        }
        if let Some(unknown) = benches.iter().find(|name| !BENCHES.contains(&name.as_str())) {
            return Err(format!(
                "no bench {unknown:?} to compare; there are {}",
                BENCHES.join(", ")
            ));
        }
        if benches.is_empty() {
            benches = USUAL.map(str::to_owned).to_vec();
        }
        let mut words = words.into_iter();
        match (words.next(), words.next(), words.next()) {
            (Some(base), filter, None) => Ok(Self {
                base,
                filter,
                benches,
                rounds,
            }),
            _ => Err(format!(
                "a commit to compare with is needed, and one filter at most\n\n{HELP}"
            )),
        }
    }
}

/// A tree whose benches are run.
struct Side {
    name: &'static str,
    tree: PathBuf,
    target: PathBuf,
    /// Nanoseconds of each round, by benchmark.
    rounds: BTreeMap<String, Vec<f64>>,
}

/// Measures both sides in turns and prints the table.
pub(crate) fn run(root: &Path, options: &Options) -> Result<(), String> {
    let place = root.join("target/compare");
    let commit = git(
        root,
        &["rev-parse", "--verify", &format!("{}^{{commit}}", options.base)],
    )?;
    let tree = place.join(&commit);
    if !tree.exists() {
        // What is left of a tree that somebody removed by hand is no obstacle.
        git(root, &["worktree", "prune"])?;
        git(
            root,
            &[
                "worktree",
                "add",
                "--detach",
                &tree.display().to_string(),
                &commit,
            ],
        )?;
    }
    let mut sides = [
        Side {
            name: "before",
            tree,
            target: place.join("build"),
            rounds: BTreeMap::new(),
        },
        Side {
            name: "after",
            tree: root.to_owned(),
            target: root.join("target"),
            rounds: BTreeMap::new(),
        },
    ];
    for side in &sides {
        println!("── build {} ({})", side.name, side.tree.display());
        for bench in &options.benches {
            bench_of(side, bench).arg("--no-run").succeed()?;
        }
    }
    measure(&mut sides, &place.join("results"), options)?;
    let [before, after] = sides.map(|side| side.rounds);
    print!("{}", table(&before, &after));
    let slower = regressions(&before, &after);
    match slower.is_empty() {
        true => Ok(()),
        false => Err(format!(
            "more than a tenth slower than {}: {}",
            options.base,
            slower.join(", ")
        )),
    }
}

/// Runs the benches of all sides in turns.
fn measure(sides: &mut [Side], results: &Path, options: &Options) -> Result<(), String> {
    for round in 1..=options.rounds {
        for side in sides.iter_mut() {
            println!("── round {round} of {}: {}", options.rounds, side.name);
            let _ = fs::remove_dir_all(results);
            for bench in &options.benches {
                let mut command = bench_of(side, bench);
                command.args([
                    "--",
                    "--noplot",
                    "--warm-up-time",
                    "0.5",
                    "--measurement-time",
                    "2",
                ]);
                command
                    .args(&options.filter)
                    .env("CRITERION_HOME", results)
                    .succeed()?;
            }
            for (name, time) in medians(results) {
                side.rounds.entry(name).or_default().push(time);
            }
        }
    }
    Ok(())
}

fn bench_of(side: &Side, bench: &str) -> Command {
    let mut command = Command::new(option_env!("CARGO").unwrap_or("cargo"));
    command
        .args([
            "bench",
            "--quiet",
            "--locked",
            "--package",
            "tulle-benches",
            "--bench",
            bench,
        ])
        .current_dir(&side.tree)
        .env("CARGO_TARGET_DIR", &side.target)
        .stdout(Stdio::null());
    command
}

trait Succeed {
    fn succeed(&mut self) -> Result<(), String>;
}

impl Succeed for Command {
    fn succeed(&mut self) -> Result<(), String> {
        let status = self
            .status()
            .map_err(|error| format!("cannot start {self:?}: {error}"))?;
        status
            .success()
            .then_some(())
            .ok_or_else(|| format!("{self:?} failed ({status})"))
    }
}

fn git(root: &Path, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new("git").args(arguments).current_dir(root).output();
    let output = output.map_err(|error| format!("cannot start git: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("git {}: {}", arguments.join(" "), said.trim()))
}

/// Each benchmark's median of one run, from the files that criterion writes.
fn medians(results: &Path) -> BTreeMap<String, f64> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![results.to_owned()]);
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        folders.extend(entries.map(|entry| entry.path()).filter(|path| path.is_dir()));
        let Some(benchmark) = folder.parent().filter(|_| folder.ends_with("new")) else {
            continue;
        };
        let estimates = fs::read_to_string(folder.join("estimates.json")).unwrap_or_default();
        let name = benchmark
            .strip_prefix(results)
            .unwrap_or(benchmark)
            .display()
            .to_string();
        found.extend(median(&estimates).map(|median| (name, median)));
    }
    found
}

/// The median in criterion's `estimates.json`, in nanoseconds.
fn median(estimates: &str) -> Option<f64> {
    let (_, rest) = estimates.split_once("\"median\"")?;
    let (_, rest) = rest.split_once("\"point_estimate\"")?;
    let number = rest.trim_start_matches([':', ' ']);
    let end = number.find([',', '}'])?;
    number[..end].trim().parse().ok()
}

/// Before and after of all benchmarks that both sides have, with the range of their rounds.
fn table(before: &BTreeMap<String, Vec<f64>>, after: &BTreeMap<String, Vec<f64>>) -> String {
    let mut text = String::from("| benchmark | before | after | ratio | |\n|---|---|---|---|---|\n");
    for (name, before) in before {
        let Some(after) = after.get(name) else {
            let _ = writeln!(text, "| {name} | {} | | | gone |", Spread::of(before));
            continue;
        };
        let [before, after] = [before, after].map(|rounds| Spread::of(rounds));
        let ratio = after.median / before.median;
        let _ = writeln!(
            text,
            "| {name} | {before} | {after} | {ratio:.2} | {} |",
            after.beside(&before)
        );
    }
    for (name, after) in after.iter().filter(|(name, _)| !before.contains_key(*name)) {
        let _ = writeln!(text, "| {name} | | {} | | new |", Spread::of(after));
    }
    text
}

/// The benchmarks that take longer than they may, whatever the noise.
fn regressions<'a>(
    before: &'a BTreeMap<String, Vec<f64>>,
    after: &BTreeMap<String, Vec<f64>>,
) -> Vec<&'a str> {
    let both = before
        .iter()
        .filter_map(|(name, rounds)| Some((name, rounds, after.get(name)?)));
    let slower = both.filter(|(_, before, after)| {
        let [before, after] = [before, after].map(|rounds| Spread::of(rounds));
        after.least > before.most && after.median > before.median * RATIO_MAX
    });
    slower.map(|(name, ..)| name.as_str()).collect()
}

/// The rounds of one side.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

impl Spread {
    fn of(rounds: &[f64]) -> Self {
        let mut rounds = rounds.to_vec();
        rounds.sort_unstable_by(f64::total_cmp);
        let at = |index: usize| rounds.get(index).copied().unwrap_or(f64::NAN);
        Self {
            least: at(0),
            median: at(rounds.len() / 2),
            most: at(rounds.len().saturating_sub(1)),
        }
    }

    /// What can be said of it beside what was before.
    fn beside(&self, before: &Self) -> &'static str {
        if self.most < before.least {
            "faster"
        } else if self.least > before.most {
            "slower"
        } else {
            "within the noise"
        }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (unit, name) = match self.median {
            ..1e3 => (1.0, "ns"),
            ..1e6 => (1e3, "µs"),
            ..1e9 => (1e6, "ms"),
            _ => (1e9, "s"),
        };
        let [least, median, most] = [self.least, self.median, self.most].map(|time| time / unit);
        write!(f, "{median:.3} {name} [{least:.3}..{most:.3}]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Result<Options, String> {
        Options::parse(&text.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn a_base_is_needed_and_benches_are_known() {
        let options = words("main --bench route --rounds 3 exact").unwrap();
        assert_eq!(
            options,
            Options {
                base: "main".into(),
                filter: Some("exact".into()),
                benches: vec!["route".into()],
                rounds: 3
            }
        );
        assert_eq!(words("main").unwrap().benches, USUAL);
        for wrong in [
            "",
            "a b c",
            "main --bench memory",
            "main --rounds 0",
            "main --rounds",
            "--fast main",
        ] {
            assert!(words(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_median_is_read_from_what_criterion_writes() {
        let written = r#"{"mean":{"confidence_interval":{"confidence_level":0.95},"point_estimate":9.0,"standard_error":0.1},
            "median":{"confidence_interval":{"confidence_level":0.95,"lower_bound":7.0,"upper_bound":8.5},"point_estimate":7.25,"standard_error":0.2}}"#;
        assert_eq!(median(written), Some(7.25));
        assert_eq!(median("{}"), None);
    }

    #[test]
    fn a_difference_counts_only_outside_of_the_noise() {
        let rounds = |times: &[f64]| BTreeMap::from([("pick/10".to_owned(), times.to_vec())]);
        let before = rounds(&[1000.0, 1100.0, 1050.0]);
        assert_eq!(
            table(&before, &rounds(&[500.0, 525.0, 999.0]))
                .lines()
                .last()
                .unwrap(),
            "| pick/10 | 1.050 µs [1.000..1.100] | 525.000 ns [500.000..999.000] | 0.50 | faster |"
        );
        assert!(table(&before, &rounds(&[900.0, 1000.0, 990.0])).ends_with("within the noise |\n"));
        assert!(table(&before, &rounds(&[1101.0, 1200.0, 2000.0])).ends_with("slower |\n"));
        assert!(table(&before, &BTreeMap::new()).ends_with("gone |\n"));
        assert!(table(&BTreeMap::new(), &before).ends_with("new |\n"));
    }

    #[test]
    fn a_row_that_is_a_tenth_slower_outside_of_the_noise_fails_the_check() {
        let rounds = |times: &[f64]| BTreeMap::from([("pick/10".to_owned(), times.to_vec())]);
        let before = rounds(&[1000.0, 1010.0, 1100.0]);
        for (after, fails) in [
            ([1050.0, 1200.0, 1300.0], false),
            ([1101.0, 1105.0, 1300.0], false),
            ([1101.0, 1120.0, 1300.0], true),
            ([500.0, 525.0, 999.0], false),
        ] {
            let slower = regressions(&before, &rounds(&after)).len();
            assert_eq!(slower == 1, fails, "{after:?}");
        }
        assert!(
            regressions(&before, &BTreeMap::new()).is_empty(),
            "gone, and told as such"
        );
    }
}
