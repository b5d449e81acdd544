//! The numbers of RFC 8446: content types, message types, limits.

/// Bytes before each record's content: type, version, length.
pub(crate) const HEADER: usize = 5;

/// Bytes of the tag that all three ciphers append.
pub(super) const TAG: usize = 16;

/// What sealing adds to plaintext: the header, the type of the content, the tag.
pub(super) const OVERHEAD: usize = HEADER + 1 + TAG;

/// Longest plaintext of a record.
pub(super) const PLAINTEXT_MAX: usize = 1 << 14;

/// Longest content of a sealed record.
const CIPHERTEXT_MAX: usize = PLAINTEXT_MAX + 256;

/// Longest record with all that belongs to it.
pub(crate) const RECORD_MAX: usize = HEADER + CIPHERTEXT_MAX;

pub(super) const ALERT: u8 = 21;
pub(super) const HANDSHAKE: u8 = 22;
pub(super) const APPLICATION_DATA: u8 = 23;

pub(super) const NEW_SESSION_TICKET: u8 = 4;
pub(super) const KEY_UPDATE: u8 = 24;

pub(super) const LEVEL_WARNING: u8 = 1;
pub(super) const LEVEL_FATAL: u8 = 2;

/// The header of a sealed record; `length` is that of all that follows it.
pub(super) fn header(length: usize) -> [u8; HEADER] {
    let [a, b] = u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes();
    [APPLICATION_DATA, 3, 3, a, b]
}

/// Length of the record that begins here, header included; `None` as long as that cannot be told.
pub(super) fn record_length(bytes: &[u8]) -> Option<Result<usize, Oversized>> {
    let [_, _, _, a, b] = *bytes.first_chunk::<HEADER>()?;
    let length = usize::from(u16::from_be_bytes([a, b]));
    Some(if length > CIPHERTEXT_MAX {
        Err(Oversized)
    } else {
        Ok(HEADER + length)
    })
}

/// A record is longer than any may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Oversized;
