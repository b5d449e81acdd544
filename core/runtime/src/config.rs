//! Configuration as typed values: where they come from, how they are written, and every bad one reported together.

mod collector;
mod duration;
mod env;
mod size;
mod variable;

pub use collector::{Collector, ConfigError, Problem};
pub use duration::{InvalidDuration, format_duration, parse_duration};
pub use env::{Env, MapEnv, ProcessEnv};
pub use size::{InvalidSize, parse_size};
pub use variable::{Preset, Variable};

/// A value that is neither true nor false.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be true or false")]
pub struct InvalidBool;

/// Reads `true`/`false`, and the spellings `1`/`0`, `yes`/`no`, `on`/`off`, in any case.
///
/// # Errors
/// Anything else.
pub fn parse_bool(text: &str) -> Result<bool, InvalidBool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" | "t" => Ok(true),
        "false" | "0" | "no" | "off" | "f" => Ok(false),
        _ => Err(InvalidBool),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn booleans_have_their_usual_spellings() {
        assert_eq!(parse_bool("TRUE"), Ok(true));
        assert_eq!(parse_bool(" 0 "), Ok(false));
        assert_eq!(parse_bool("maybe"), Err(InvalidBool));
    }
}
