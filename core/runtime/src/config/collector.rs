//! Reads typed values from an environment and gathers everything wrong with them into one report.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::str::FromStr;
use std::time::Duration;

use super::{Env, parse_bool, parse_duration, parse_size};

/// One value that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The variable, flag or field.
    pub name: String,
    /// What it was set to.
    pub value: String,
    /// What is wrong with it.
    pub message: String,
}

/// Every value that cannot be used; the process ends with [`crate::exit::Exit::Usage`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// What was found, in the order of reading.
    pub problems: Vec<Problem>,
}

impl Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "T0001 invalid_configuration: {} value(s) cannot be used",
            self.problems.len()
        )?;
        for Problem { name, value, message } in &self.problems {
            write!(f, "\n  {name}={value:?}: {message}")?;
        }
        Ok(())
    }
}

/// Reads values; a bad one is noted and its default returned, so that reading goes on to the next.
pub struct Collector<'a> {
    env: &'a dyn Env,
    problems: Vec<Problem>,
}

impl fmt::Debug for Collector<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collector")
            .field("problems", &self.problems)
            .finish_non_exhaustive()
    }
}

impl<'a> Collector<'a> {
    /// A collector that reads from `env`.
    #[must_use]
    pub fn new(env: &'a dyn Env) -> Self {
        Self {
            env,
            problems: Vec::new(),
        }
    }

    /// The variable through `parse`, or nothing when it is absent or bad.
    pub fn optional<T, E: Display>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let value = self.env.var(name)?;
        match parse(&value) {
            Ok(parsed) => Some(parsed),
            Err(error) => {
                self.problem(name, &value, error);
                None
            }
        }
    }

    /// The variable through `parse`, or `default`.
    pub fn value<T, E: Display>(
        &mut self,
        name: &str,
        default: T,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> T {
        self.optional(name, parse).unwrap_or(default)
    }

    /// A duration such as `10s`.
    pub fn duration(&mut self, name: &str, default: Duration) -> Duration {
        self.value(name, default, parse_duration)
    }

    /// A size such as `256KiB`, in bytes.
    pub fn size(&mut self, name: &str, default: u64) -> u64 {
        self.value(name, default, parse_size)
    }

    /// A truth value.
    pub fn bool(&mut self, name: &str, default: bool) -> bool {
        self.value(name, default, parse_bool)
    }

    /// A number, address or other value that knows how to read itself.
    pub fn parsed<T: FromStr<Err: Display>>(&mut self, name: &str, default: T) -> T {
        self.value(name, default, str::parse)
    }

    /// A text, or `default`.
    pub fn string(&mut self, name: &str, default: &str) -> String {
        self.env.var(name).unwrap_or_else(|| default.to_owned())
    }

    /// A text, if there is one.
    pub fn optional_string(&mut self, name: &str) -> Option<String> {
        self.env.var(name)
    }

    /// Every text whose variable begins with `prefix`, by the variable's name.
    pub fn with_prefix(&mut self, prefix: &str) -> BTreeMap<String, String> {
        self.env.with_prefix(prefix)
    }

    /// Whether the variable is set, but to nothing.
    pub fn is_emptied(&mut self, name: &str) -> bool {
        self.env.raw(name).is_some_and(|value| value.is_empty())
    }

    /// Notes something wrong that the caller found, such as two values that contradict.
    pub fn problem(&mut self, name: &str, value: &str, message: impl Display) {
        self.problems.push(Problem {
            name: name.to_owned(),
            value: value.to_owned(),
            message: message.to_string(),
        });
    }

    /// The verdict over everything read.
    ///
    /// # Errors
    /// All problems at once.
    pub fn finish(self) -> Result<(), ConfigError> {
        if self.problems.is_empty() {
            Ok(())
        } else {
            Err(ConfigError {
                problems: self.problems,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MapEnv;

    #[test]
    fn every_bad_value_is_reported_together() {
        let env = MapEnv::from([
            ("WAIT", "soon"),
            ("BUFFER", "big"),
            ("PORT", "15000"),
            ("EMPTY", ""),
        ]);
        let mut values = Collector::new(&env);
        assert_eq!(
            values.duration("WAIT", Duration::from_secs(1)),
            Duration::from_secs(1)
        );
        assert_eq!(values.size("BUFFER", 7), 7);
        assert_eq!(values.parsed("PORT", 0_u16), 15_000);
        assert!(values.bool("EMPTY", true), "an empty variable counts as absent");
        let error = values.finish().unwrap_err();
        assert_eq!(error.problems.len(), 2);
        assert_eq!(
            error.to_string(),
            "T0001 invalid_configuration: 2 value(s) cannot be used\n  \
             WAIT=\"soon\": must be a duration such as 10s, 250ms or 1h30m\n  \
             BUFFER=\"big\": must be a size such as 4096, 256KiB or 4MiB"
        );
    }

    #[test]
    fn good_values_make_no_report() {
        let env = MapEnv::default().with("NAME", "n1");
        let mut values = Collector::new(&env);
        assert_eq!(values.string("NAME", "other"), "n1");
        assert_eq!(values.optional_string("ABSENT"), None);
        assert_eq!(values.finish(), Ok(()));
    }
}
