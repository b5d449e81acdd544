//! Durations as people write them: `10s`, `250ms`, `1h30m`.

use std::time::Duration;

/// Text that is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be a duration such as 10s, 250ms or 1h30m")]
pub struct InvalidDuration;

const UNITS: [(&str, f64); 7] = [
    ("ns", 1e-9),
    ("us", 1e-6),
    ("µs", 1e-6),
    ("ms", 1e-3),
    ("s", 1.0),
    ("m", 60.0),
    ("h", 3600.0),
];

/// Reads one or more numbers with units, `0`, and decimal fractions (`1.5s`).
///
/// # Errors
/// A missing or unknown unit, a sign, or a value beyond the range.
pub fn parse_duration(text: &str) -> Result<Duration, InvalidDuration> {
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(InvalidDuration);
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let (number, after) = split_where(rest, |c| c.is_ascii_digit() || c == '.');
        let (unit, after) = split_where(after, char::is_alphabetic);
        total = part(number, unit)
            .and_then(|part| total.checked_add(part))
            .ok_or(InvalidDuration)?;
        rest = after;
    }
    Ok(total)
}

fn part(number: &str, unit: &str) -> Option<Duration> {
    let number: f64 = number.parse().ok()?;
    let (_, seconds) = UNITS.iter().find(|(name, _)| *name == unit)?;
    // Rounded to nanoseconds below a second, so that 0.1s is 100ms and not 99.999999ms.
    Duration::try_from_secs_f64(number * seconds).ok()
}

fn split_where(text: &str, belongs: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !belongs(c)).unwrap_or(text.len()))
}

/// Writes a duration the way [`parse_duration`] reads it, in the largest unit that loses nothing.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    [
        (3_600_000_000_000, "h"),
        (60_000_000_000, "m"),
        (1_000_000_000, "s"),
        (1_000_000, "ms"),
        (1_000, "us"),
    ]
    .into_iter()
    .find(|(unit, _)| nanos >= *unit && nanos.is_multiple_of(*unit))
    .map_or_else(
        || {
            if nanos == 0 {
                "0s".to_owned()
            } else {
                format!("{nanos}ns")
            }
        },
        |(unit, name)| format!("{}{name}", nanos / unit),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written() {
        for (text, millis, written) in [
            ("10s", 10_000, "10s"),
            ("250ms", 250, "250ms"),
            ("1h30m", 5_400_000, "90m"),
            ("1.5s", 1_500, "1500ms"),
            ("0.1s", 100, "100ms"),
            ("0", 0, "0s"),
        ] {
            let duration = parse_duration(text).unwrap();
            assert_eq!(duration, Duration::from_millis(millis), "{text}");
            assert_eq!(format_duration(duration), written);
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in ["", "10", "s", "-1s", "10 s", "1d", "1s2", "1e400h", "..s"] {
            assert_eq!(parse_duration(text), Err(InvalidDuration), "{text}");
        }
    }
}
