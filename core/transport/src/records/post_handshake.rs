//! Messages of the handshake protocol after the handshake: new keys, and tickets that nobody uses here.

use rustls::AlertDescription;
use serde::{Deserialize, Serialize};

use super::error::Fault;
use super::format::{KEY_UPDATE, NEW_SESSION_TICKET};

/// Bytes before each message's body: type and length.
const HEAD: usize = 4;

/// Longest message that is waited for: more than a ticket needs, with certificates in it.
const BODY_MAX: usize = 64 * 1024;

/// What a peer asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Message {
    /// What follows is sealed with the next key. `answer` says that ours is to change as well.
    NewKey { answer: bool },
    /// A ticket for a later connection. No session is ever resumed.
    Ticket,
}

/// The start of a message whose rest has not come.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Messages {
    begun: Vec<u8>,
}

impl Messages {
    /// Whether the next record has to go on with a message.
    pub(super) fn is_begun(&self) -> bool {
        !self.begun.is_empty()
    }

    /// Takes in one record's content, and hands on each message that it completes.
    pub(super) fn take(
        &mut self,
        content: &[u8],
        mut each: impl FnMut(Message) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let joined;
        let mut rest = if self.begun.is_empty() {
            content
        } else {
            let mut begun = std::mem::take(&mut self.begun);
            begun.extend_from_slice(content);
            joined = begun;
            &joined
        };
        while let Some((kind, body, after)) = split(rest)? {
            let message = message(kind, body)?;
            if matches!(message, Message::NewKey { .. }) && !after.is_empty() {
                // RFC 8446, 5.1: no message may lie across a change of keys.
                return Err(Fault::unexpected(
                    "a message behind a change of keys, sealed with the old one",
                ));
            }
            each(message)?;
            rest = after;
        }
        if !rest.is_empty() {
            self.begun = rest.to_vec();
        }
        Ok(())
    }
}

type Split<'a> = (u8, &'a [u8], &'a [u8]);

/// Type and body of the first message, and what follows it; `None` if it is not complete.
fn split(bytes: &[u8]) -> Result<Option<Split<'_>>, Fault> {
    let Some((&[kind, a, b, c], rest)) = bytes.split_first_chunk::<HEAD>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([0, a, b, c]) as usize;
    let known = match kind {
        KEY_UPDATE => length == 1,
        NEW_SESSION_TICKET => length <= BODY_MAX,
        _ => return Err(Fault::unexpected("a handshake message after the handshake")),
    };
    if !known {
        return Err(Fault::broken(
            AlertDescription::DecodeError,
            "a handshake message of a wrong length",
        ));
    }
    Ok(rest
        .split_at_checked(length)
        .map(|(body, after)| (kind, body, after)))
}

fn message(kind: u8, body: &[u8]) -> Result<Message, Fault> {
    match (kind, body) {
        (KEY_UPDATE, [answer @ (0 | 1)]) => Ok(Message::NewKey { answer: *answer == 1 }),
        (KEY_UPDATE, _) => Err(Fault::broken(
            AlertDescription::IllegalParameter,
            "a change of keys that asks for what is not known",
        )),
        _ => Ok(Message::Ticket),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(records: &[&[u8]]) -> Result<Vec<Message>, Fault> {
        let (mut messages, mut found) = (Messages::default(), Vec::new());
        for record in records {
            messages.take(record, |message| {
                found.push(message);
                Ok(())
            })?;
        }
        assert!(!messages.is_begun(), "nothing is left");
        Ok(found)
    }

    #[test]
    fn messages_are_found_however_they_are_cut() {
        let bytes = [4, 0, 0, 3, 9, 9, 9, 4, 0, 0, 0, 24, 0, 0, 1, 1];
        let expect = Ok(vec![
            Message::Ticket,
            Message::Ticket,
            Message::NewKey { answer: true },
        ]);
        assert_eq!(read(&[&bytes]), expect);
        for cut in 1..bytes.len() {
            assert_eq!(read(&[&bytes[..cut], &bytes[cut..]]), expect, "cut at {cut}");
        }
    }

    #[test]
    fn what_no_peer_may_send_is_refused() {
        let wrong: [(&[u8], AlertDescription); 6] = [
            (&[24, 0, 0, 1, 2], AlertDescription::IllegalParameter),
            (&[24, 0, 0, 0], AlertDescription::DecodeError),
            (&[24, 0, 0, 2, 0, 0], AlertDescription::DecodeError),
            (&[4, 1, 0, 1], AlertDescription::DecodeError),
            (&[1, 0, 0, 1, 0], AlertDescription::UnexpectedMessage),
            (&[24, 0, 0, 1, 0, 4], AlertDescription::UnexpectedMessage),
        ];
        for (bytes, alert) in wrong {
            assert_eq!(read(&[bytes]).unwrap_err().alert(), Some(alert), "{bytes:?}");
        }
    }
}
