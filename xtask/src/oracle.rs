//! The engine against itself, at length: what it computes change by change is what it computes from nothing.
//!
//! Every run of the tests does so for a few hundred random histories. This is for many: optimized, and from another seed
//! each time if wanted.

use crate::{cargo, step};

pub(crate) const HELP: &str = "\
Compare what the control plane computes step by step with what it computes from nothing, for random histories.

Usage: cargo xtask oracle [--cases N] [--seed N]

Options:
  --cases N   histories to try [10000]; for one night: 1000000
  --seed N    what they are drawn from [20260101]; the same seed draws the same histories
  -h, --help  print this help

A history that fails is made as short as possible and printed. Keep it as a test.
";

/// Histories that are tried unless something else is asked for: those of one change.
const CASES: u32 = 10_000;
/// The property tests of the engine; each tries as many cases.
const TESTS: &str = "engine::tests::";

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Options {
    cases: u32,
    seed: u64,
}

impl Options {
    /// Reads `--cases N` and `--seed N`.
    pub(crate) fn parse(arguments: &[String]) -> Result<Self, String> {
        let (_, seed) = crate::suite::SEED;
        let mut options = Self {
            cases: CASES,
            seed: number("the usual seed", seed)?,
        };
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            let mut value = || {
                let value = words.next();
                value.ok_or_else(|| format!("{word} needs a number; see cargo xtask oracle --help"))
            };
            match word.as_str() {
                "--cases" => options.cases = number(word, value()?)?,
                "--seed" => options.seed = number(word, value()?)?,
                _ => {
                    return Err(format!(
                        "unexpected argument {word:?}; see cargo xtask oracle --help"
                    ));
                }
            }
        }
        match options.cases {
            0 => Err("--cases 0 would try nothing".to_owned()),
            _ => Ok(options),
        }
    }
}

fn number<T: std::str::FromStr>(what: &str, text: &str) -> Result<T, String> {
    text.parse()
        .map_err(|_| format!("{what}: {text:?} is no number that fits"))
}

/// Builds the tests of the control plane optimized and runs those of the engine.
pub(crate) fn run(options: &Options) -> Result<(), String> {
    let Options { cases, seed } = options;
    let (seed_name, _) = crate::suite::SEED;
    let tests = [
        "test",
        "--release",
        "--locked",
        "--package",
        "tulle-xds",
        "--lib",
        TESTS,
    ];
    step(
        &format!("{cases} histories of seed {seed}"),
        cargo(&tests)
            .env("TULLE_ORACLE_CASES", cases.to_string())
            .env(seed_name, seed.to_string()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Options, String> {
        let arguments: Vec<String> = arguments.iter().map(|word| (*word).to_owned()).collect();
        Options::parse(&arguments)
    }

    #[test]
    fn a_change_is_tried_with_the_usual_seed() {
        let expected = Options {
            cases: 10_000,
            seed: 20_260_101,
        };
        assert_eq!(parse(&[]), Ok(expected));
        let asked = parse(&["--seed", "7", "--cases", "1000000"]);
        assert_eq!(
            asked,
            Ok(Options {
                cases: 1_000_000,
                seed: 7
            })
        );
    }

    #[test]
    fn what_would_try_nothing_is_refused() {
        for arguments in [
            &["--cases"][..],
            &["--cases", "0"],
            &["--cases", "x"],
            &["--case", "1"],
        ] {
            assert!(parse(arguments).is_err(), "{arguments:?}");
        }
    }
}
