//! Durations and shares as manifests write them: `1h30m`, `250ms`; `12.5` percent.

use std::time::Duration;

use serde::Deserialize;

/// A duration of the Gateway API: up to four numbers with `h`, `m`, `s` or `ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Span(pub Duration);

/// Digits of one number.
const DIGITS_MAX: usize = 5;
/// Numbers in one duration.
const NUMBERS_MAX: usize = 4;

impl std::str::FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shown: String = text.chars().filter(|c| !c.is_control()).take(40).collect();
        let fail = || format!("`{shown}` is no duration; write for example 30s, 1m30s or 250ms");
        let mut rest = text;
        let mut total = Duration::ZERO;
        let mut numbers = 0;
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let number: u64 = rest[..digits].parse().map_err(|_| fail())?;
            rest = &rest[digits..];
            let (unit, length) = if rest.starts_with("ms") {
                (1, 2)
            } else if rest.starts_with('s') {
                (1_000, 1)
            } else if rest.starts_with('m') {
                (60_000, 1)
            } else if rest.starts_with('h') {
                (3_600_000, 1)
            } else {
                return Err(fail());
            };
            numbers += 1;
            if digits > DIGITS_MAX || numbers > NUMBERS_MAX {
                return Err(fail());
            }
            rest = &rest[length..];
            total += Duration::from_millis(number * unit);
        }
        if numbers == 0 {
            Err(fail())
        } else {
            Ok(Self(total))
        }
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A share, in millionths; written in percent, from 0 to 100.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Percent(pub u32);

impl<'de> Deserialize<'de> for Percent {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to lie between 0 and 100 before"
    )]
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let percent = f64::deserialize(deserializer)?;
        if (0.0..=100.0).contains(&percent) {
            Ok(Self((percent * 10_000.0).round() as u32))
        } else {
            Err(serde::de::Error::custom(format!(
                "{percent} is no percentage; write a number from 0 to 100"
            )))
        }
    }
}

/// A number with a fraction, in thousandths; not negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Milli(pub u32);

impl<'de> Deserialize<'de> for Milli {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to lie between 0 and 1,000 before"
    )]
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = f64::deserialize(deserializer)?;
        if (0.0..=1_000.0).contains(&number) {
            Ok(Self((number * 1_000.0).round() as u32))
        } else {
            Err(serde::de::Error::custom(format!(
                "{number} is out of bounds; write a number from 0 to 1000"
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_the_gateway_api_writes_them() {
        let cases = [
            ("0s", Some(0)),
            ("250ms", Some(250)),
            ("1h30m", Some(5_400_000)),
            ("1h1m1s1ms", Some(3_661_001)),
            ("", None),
            ("5", None),
            ("1.5s", None),
            ("-1s", None),
            ("123456s", None),
            ("1s1s1s1s1s", None),
            ("1d", None),
        ];
        for (text, expected) in cases {
            let read = text.parse::<Span>().ok().map(|span| span.0.as_millis());
            assert_eq!(read, expected, "{text}");
        }
    }
}
