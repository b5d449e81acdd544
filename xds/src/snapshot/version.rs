//! What a resource's content is known by.

use std::fmt;
use std::ops::Deref;

use serde::{Serialize, Serializer};

/// Characters of a version.
const CHARACTERS: usize = 16;

/// First 8 bytes of the SHA-256 of an encoded message, as 16 hex digits. It is as large as a reference to such a text:
/// each resource has one, and hardly any two are the same.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Version([u8; CHARACTERS]);

impl Version {
    /// Of an encoded message.
    #[must_use]
    pub fn of(body: &[u8]) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, body);
        let halves = digest.as_ref().iter().flat_map(|byte| [byte >> 4, byte & 15]);
        let mut text = [0; CHARACTERS];
        for (character, half) in text.iter_mut().zip(halves) {
            *character = DIGITS[usize::from(half)];
        }
        Self(text)
    }
}

/// A version that somebody else made up.
///
/// # Panics
/// It is longer than any version.
impl From<&str> for Version {
    fn from(text: &str) -> Self {
        let mut version = [0; CHARACTERS];
        version[..text.len()].copy_from_slice(text.as_bytes());
        Self(version)
    }
}

impl Deref for Version {
    type Target = str;

    fn deref(&self) -> &str {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(CHARACTERS);
        str::from_utf8(&self.0[..end]).expect("it was made of a text")
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_the_beginning_of_the_hash() {
        // SHA-256 of nothing is e3b0c44298fc1c149afb…
        assert_eq!(&*Version::of(b""), "e3b0c44298fc1c14");
        assert_eq!(Version::of(b""), Version::from("e3b0c44298fc1c14"));
        assert_ne!(Version::of(b"a"), Version::of(b"b"));
        assert_eq!(
            (&*Version::from("7"), Version::from("7").to_string()),
            ("7", "7".to_owned())
        );
    }
}
