//! Regular expressions of routes: matched in linear time, against the whole text, and bounded in size.

use regex::{Regex, RegexBuilder, RegexSet, RegexSetBuilder};

/// Longest pattern, in bytes.
pub const PATTERN_BYTES_MAX: usize = 1024;
/// Largest compiled pattern, in bytes.
pub const PATTERN_COMPILED_MAX: usize = 256 << 10;
/// Bytes that one pattern, or one set of them, may keep as the states it has seen.
const STATES_BYTES_MAX: usize = 256 << 10;

/// Why a pattern cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// The text is too long.
    #[error("a regular expression has {bytes} bytes, more than {PATTERN_BYTES_MAX}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// What it compiles to is too large.
    #[error(
        "a regular expression needs more than {PATTERN_COMPILED_MAX} bytes; make its repetitions shorter"
    )]
    TooLarge,
    /// It is no regular expression, or one with look-around or back references.
    #[error("a regular expression cannot be read: {0}")]
    Unreadable(String),
}

/// A regular expression that matches whole texts.
#[derive(Debug, Clone)]
pub struct Pattern(Regex);

impl Pattern {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// If it is too long, too large or unreadable.
    pub fn new(pattern: &str) -> Result<Self, PatternError> {
        let bytes = pattern.len();
        if bytes > PATTERN_BYTES_MAX {
            return Err(PatternError::TooLong { bytes });
        }
        // By itself first: `a)|(b` must not become readable through the parentheses that are put around it.
        compile(pattern)?;
        compile(&whole(pattern)).map(Self)
    }

    /// A pattern made of two that were compiled by themselves, which is why it may be twice as large.
    pub(super) fn joined(pattern: &str) -> Result<Self, PatternError> {
        compile_within(&whole(pattern), 2 * PATTERN_COMPILED_MAX).map(Self)
    }

    /// Whether the whole text matches.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        self.0.is_match(text)
    }

    /// Whether the whole text matches; bytes that are no text do not.
    #[must_use]
    pub fn matches_bytes(&self, text: &[u8]) -> bool {
        std::str::from_utf8(text).is_ok_and(|text| self.matches(text))
    }

    /// One question for all of them. `None` if that would be too large.
    pub(super) fn set<'a>(patterns: impl Iterator<Item = &'a Self>) -> Option<RegexSet> {
        let patterns: Vec<_> = patterns.map(|pattern| pattern.0.as_str()).collect();
        RegexSetBuilder::new(&patterns)
            .size_limit(2 * PATTERN_COMPILED_MAX * patterns.len())
            .dfa_size_limit(STATES_BYTES_MAX)
            .build()
            .ok()
    }
}

fn whole(pattern: &str) -> String {
    format!(r"\A(?:{pattern})\z")
}

fn compile(pattern: &str) -> Result<Regex, PatternError> {
    compile_within(pattern, PATTERN_COMPILED_MAX)
}

fn compile_within(pattern: &str, bytes: usize) -> Result<Regex, PatternError> {
    RegexBuilder::new(pattern)
        .size_limit(bytes)
        .dfa_size_limit(STATES_BYTES_MAX)
        .build()
        .map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => PatternError::TooLarge,
            other => PatternError::Unreadable(other.to_string()),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        Pattern::new(pattern).unwrap().matches(text)
    }

    #[test]
    fn the_whole_text_must_match() {
        assert!(matches("a|ab", "ab"));
        assert!(!matches("a", "ab"));
        assert!(!matches("b", "ab"));
        assert!(!matches("a", "a\n"));
    }

    #[test]
    fn a_pattern_cannot_leave_the_parentheses_around_it() {
        assert!(matches!(
            Pattern::new("a)|(?:b"),
            Err(PatternError::Unreadable(_))
        ));
    }

    #[test]
    fn patterns_are_bounded() {
        let long = "a".repeat(PATTERN_BYTES_MAX + 1);
        assert_eq!(
            Pattern::new(&long).unwrap_err(),
            PatternError::TooLong { bytes: long.len() }
        );
        assert_eq!(
            Pattern::new(r"(?:\w{1000}){1000}").unwrap_err(),
            PatternError::TooLarge
        );
        assert!(matches!(Pattern::new("(?=a)"), Err(PatternError::Unreadable(_))));
    }

    #[test]
    fn bytes_that_are_no_text_match_nothing() {
        assert!(!Pattern::new(".*").unwrap().matches_bytes(b"\xff"));
    }
}
