//! Sizes in bytes as people write them: `256KiB`, `4MiB`, `1000`.

/// Text that is no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be a size such as 4096, 256KiB or 4MiB")]
pub struct InvalidSize;

const UNITS: [(&str, u64); 10] = [
    ("", 1),
    ("B", 1),
    ("KiB", 1 << 10),
    ("Ki", 1 << 10),
    ("MiB", 1 << 20),
    ("Mi", 1 << 20),
    ("GiB", 1 << 30),
    ("Gi", 1 << 30),
    ("kB", 1_000),
    ("MB", 1_000_000),
];

/// Reads a whole number of bytes with an optional unit.
///
/// # Errors
/// An unknown unit, a fraction, or a value beyond 64 bits.
pub fn parse_size(text: &str) -> Result<u64, InvalidSize> {
    let text = text.trim();
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: u64 = number.parse().map_err(|_| InvalidSize)?;
    let (_, factor) = UNITS
        .iter()
        .find(|(name, _)| *name == unit.trim_start())
        .ok_or(InvalidSize)?;
    number.checked_mul(*factor).ok_or(InvalidSize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_carry_binary_and_decimal_units() {
        for (text, bytes) in [
            ("4096", 4096),
            ("256KiB", 262_144),
            ("4 MiB", 4_194_304),
            ("1kB", 1000),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "KiB",
            "1.5MiB",
            "-1",
            "1XB",
            "99999999999999999999",
            "18446744073709551615KiB",
        ] {
            assert_eq!(parse_size(text), Err(InvalidSize), "{text}");
        }
    }
}
