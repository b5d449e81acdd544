//! Opens one record, and says what is in it.

use std::ops::Range;

use rustls::AlertDescription;

use super::error::Fault;
use super::format::{ALERT, APPLICATION_DATA, HANDSHAKE, HEADER, LEVEL_WARNING, PLAINTEXT_MAX};
use super::key::Key;

/// What was in a record.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Content<'a> {
    /// Bytes for the application, and where they lie in the record.
    Data(Range<usize>),
    /// Part of the handshake protocol.
    Handshake(&'a [u8]),
    /// The peer will send no more.
    Close,
    /// A word that changes nothing.
    Nothing,
}

/// Opens a whole record where it lies.
pub(super) fn open<'a>(key: &mut Key, record: &'a mut [u8]) -> Result<Content<'a>, Fault> {
    let opened = key.open(record)?;
    // RFC 8446, 5.4: the type of the content is the last byte that is not zero.
    let Some(end) = opened.iter().rposition(|byte| *byte != 0) else {
        return Err(Fault::unexpected("a record of nothing but padding"));
    };
    if end > PLAINTEXT_MAX {
        return Err(Fault::broken(
            AlertDescription::RecordOverflow,
            "a record holds more than one may",
        ));
    }
    let (kind, content) = (opened[end], &opened[..end]);
    match kind {
        APPLICATION_DATA => Ok(Content::Data(HEADER..HEADER + end)),
        HANDSHAKE if !content.is_empty() => Ok(Content::Handshake(content)),
        ALERT => alert(content),
        _ => Err(Fault::unexpected("a record of a type that has no place here")),
    }
}

fn alert<'a>(content: &[u8]) -> Result<Content<'a>, Fault> {
    let &[level, description] = content else {
        return Err(Fault::broken(
            AlertDescription::DecodeError,
            "an alert of a wrong length",
        ));
    };
    match AlertDescription::from(description) {
        AlertDescription::CloseNotify => Ok(Content::Close),
        // RFC 8446, 6.1: close_notify follows it.
        AlertDescription::UserCanceled if level == LEVEL_WARNING => Ok(Content::Nothing),
        // RFC 8446, 6: of all others, the level does not matter.
        alert => Err(Fault::Alert(alert)),
    }
}
