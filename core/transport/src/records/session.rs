//! Both directions of a connection: keys that change, and how it ends.
//!
//! ```text
//!   open:  data ─▶ ranges    NewKey ─▶ next key to open with, and ours if it was asked for    close_notify ─▶ end
//!   seal:  what is owed (NewKey, alert) first, then data; a new key before the old one has sealed too many records
//! ```

use std::fmt;
use std::ops::Range;

use rustls::{AlertDescription, ExtractedSecrets};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tulle_identity::tls::TrafficSecrets;

use super::error::Fault;
use super::format::{
    ALERT, APPLICATION_DATA, HANDSHAKE, KEY_UPDATE, LEVEL_FATAL, LEVEL_WARNING, OVERHEAD, record_length,
};
use super::key::Key;
use super::opening::{self, Content};
use super::post_handshake::{Message, Messages};
use super::sealing::{self, Slices};
use crate::budget::Budget;

/// Records that one key seals. AES-GCM stays safe for twice as many (RFC 8446, 5.5).
pub(crate) const RECORDS_PER_KEY: u64 = 1 << 23;

/// Changes of keys, and tickets, that a peer may send at once, and each second.
const MESSAGES: (u32, u32) = (32, 10);

/// Records that carry nothing, at once and each second.
const EMPTY_RECORDS: (u32, u32) = (100, 50);

/// A change of keys: the message, without its last byte.
const NEW_KEY: [u8; 4] = [KEY_UPDATE, 0, 0, 1];

/// What was sealed in one go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sealed {
    /// Plaintext that it took.
    pub(crate) taken: usize,
    /// Bytes of records that it made.
    pub(crate) length: usize,
}

/// One end of a connection after its handshake. Plain data: what was written down goes on elsewhere, with the same keys
/// and numbers, as long as the connection has not ended.
#[derive(Serialize, Deserialize)]
pub(crate) struct Session {
    sealing: Key,
    opening: Key,
    records_per_key: u64,
    /// Our key is to change; whether the peer's is to change as well.
    new_key: Option<bool>,
    /// The peer was asked for another key than the present one.
    asked: bool,
    /// What is to be said last.
    last_word: Option<[u8; 2]>,
    /// It was said.
    closed: bool,
    /// How the peer's direction ended.
    #[serde(with = "crate::plain::unless_ended")]
    end: Option<Result<(), Fault>>,
    messages: Messages,
    message_budget: Budget,
    empty_budget: Budget,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("sealing", &self.sealing)
            .field("opening", &self.opening)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Goes on where a handshake has ended.
    pub(crate) fn new(
        secrets: &ExtractedSecrets,
        traffic: &TrafficSecrets,
        now: Instant,
    ) -> Result<Self, Fault> {
        let key = |(records, given): &(u64, _), secret| Key::new(*records, given, secret);
        Ok(Self::with(
            key(&secrets.tx, &traffic.sealing)?,
            key(&secrets.rx, &traffic.opening)?,
            RECORDS_PER_KEY,
            now,
        ))
    }

    pub(super) fn with(sealing: Key, opening: Key, records_per_key: u64, now: Instant) -> Self {
        let budget = |(burst, per_second)| Budget::new(burst, per_second, now);
        Self {
            sealing,
            opening,
            records_per_key,
            new_key: None,
            asked: false,
            last_word: None,
            closed: false,
            end: None,
            messages: Messages::default(),
            message_budget: budget(MESSAGES),
            empty_budget: budget(EMPTY_RECORDS),
        }
    }

    /// Opens all whole records in `bytes` where they lie, and says where data is found. Returns how many bytes they
    /// were; the rest is to be brought again, with more behind it.
    pub(crate) fn open(
        &mut self,
        bytes: &mut [u8],
        now: Instant,
        mut found: impl FnMut(Range<usize>),
    ) -> usize {
        let mut at = 0;
        while self.end.is_none() && at < bytes.len() {
            let rest = &mut bytes[at..];
            if rest[0] != APPLICATION_DATA {
                self.fail(Fault::unexpected("a record that is not sealed"));
                break;
            }
            let length = match record_length(rest) {
                None => break,
                Some(Ok(length)) if length > rest.len() => break,
                Some(Ok(length)) => length,
                Some(Err(_)) => {
                    let what = "a record is longer than one may be";
                    self.fail(Fault::broken(AlertDescription::RecordOverflow, what));
                    break;
                }
            };
            match self.record(&mut rest[..length], now) {
                Ok(Some(data)) => found(at + data.start..at + data.end),
                Ok(None) => {}
                Err(fault) => self.fail(fault),
            }
            at += length;
        }
        at
    }

    fn record(&mut self, record: &mut [u8], now: Instant) -> Result<Option<Range<usize>>, Fault> {
        let content = opening::open(&mut self.opening, record)?;
        if self.opening.records() >= 2 * self.records_per_key && !self.asked {
            // It keeps no limit, or another one.
            self.asked = true;
            self.new_key = Some(true);
        }
        if self.messages.is_begun() && !matches!(content, Content::Handshake(_)) {
            return Err(Fault::unexpected("a message was begun and not finished"));
        }
        match content {
            Content::Data(range) if !range.is_empty() => return Ok(Some(range)),
            Content::Data(_) | Content::Nothing => {
                if !self.empty_budget.spend(now) {
                    return Err(Fault::unexpected("too many records that carry nothing"));
                }
            }
            Content::Close => self.end = Some(Ok(())),
            Content::Handshake(content) => {
                let budget = &mut self.message_budget;
                let mut changed = None;
                self.messages.take(content, |message| {
                    if let Message::NewKey { answer } = message {
                        changed = Some(answer);
                    }
                    if budget.spend(now) {
                        Ok(())
                    } else {
                        Err(Fault::unexpected("too many changes of keys, or tickets"))
                    }
                })?;
                if let Some(answer) = changed {
                    self.opening = self.opening.next()?;
                    self.asked = false;
                    if answer {
                        self.new_key.get_or_insert(false);
                    }
                }
            }
        }
        Ok(None)
    }

    /// The byte stream has ended.
    pub(crate) fn cut(&mut self) {
        self.end.get_or_insert(Err(Fault::Truncated));
    }

    /// How the peer's direction ended, if it did.
    pub(crate) fn end(&self) -> Option<&Result<(), Fault>> {
        self.end.as_ref()
    }

    fn fail(&mut self, fault: Fault) {
        if let Some(alert) = fault.alert() {
            self.last_word = Some([LEVEL_FATAL, alert.into()]);
        }
        self.end = Some(Err(fault));
    }

    /// Says that no more data follows.
    pub(crate) fn close(&mut self) {
        self.last_word
            .get_or_insert_with(|| [LEVEL_WARNING, AlertDescription::CloseNotify.into()]);
    }

    /// Changes our key, and asks for another one of the peer's.
    #[cfg(test)]
    pub(super) fn change_key(&mut self, ask: bool) {
        self.new_key = Some(ask);
    }

    /// Makes keys last for a few records only.
    #[cfg(test)]
    pub(super) fn seal_few(&mut self, records_per_key: u64) {
        self.records_per_key = records_per_key;
    }

    /// Whether nothing can be sealed any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether something is to be sealed, data or not.
    pub(crate) fn owes(&self) -> bool {
        !self.closed && (self.new_key.is_some() || self.last_word.is_some())
    }

    /// Seals what is owed and then `plaintext`, as much as `out` has room for.
    pub(crate) fn seal<'a>(
        &mut self,
        plaintext: impl Iterator<Item = &'a [u8]>,
        out: &mut [u8],
    ) -> Result<Sealed, Fault> {
        let (mut slices, mut length) = (Slices::new(plaintext), 0);
        loop {
            if self.sealing.records() >= self.records_per_key {
                self.new_key.get_or_insert(false);
            }
            let room = &mut out[length..];
            if self.closed || self.owes() && room.len() < OVERHEAD + NEW_KEY.len() + 1 {
                break;
            }
            let made = if let Some(ask) = self.new_key.take() {
                let [a, b, c, d] = NEW_KEY;
                let made = self
                    .sealing
                    .seal(&[a, b, c, d, u8::from(ask)], &[HANDSHAKE], room)?;
                self.sealing = self.sealing.next()?;
                made
            } else if let Some(word) = self.last_word.take() {
                self.closed = true;
                self.sealing.seal(&word, &[ALERT], room)?
            } else if slices.is_empty() {
                break;
            } else {
                sealing::record(&mut self.sealing, &mut slices, room)?
            };
            if made == 0 {
                break;
            }
            length += made;
        }
        Ok(Sealed {
            taken: slices.taken,
            length,
        })
    }
}
