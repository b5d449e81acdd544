//! What was sent of one type, what the client answered, and what it rejected.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use tulle_model::Str;

use crate::serve::session::{Nack, Response, UNACKED_BYTES_MAX, UNACKED_RESPONSES_MAX};
use crate::snapshot::Slot;

/// Longest text kept of a rejection, in bytes.
const REJECTION_TEXT_MAX: usize = 4096;
/// Rejections kept per type and stream.
const REJECTIONS_MAX: usize = 1000;

/// The answers of a client for one type.
#[derive(Debug, Default)]
pub struct Delivery {
    unacked: VecDeque<Unacked>,
    unacked_bytes: usize,
    rejections: BTreeMap<Str, Rejection>,
    sent: Option<u64>,
    acked: Option<u64>,
    acks: u64,
    nacks: u64,
    stale_nonces: u64,
}

#[derive(Debug)]
struct Unacked {
    nonce: Str,
    cut: u64,
    bytes: usize,
    since: Instant,
    resources: Arc<[Arc<Slot>]>,
    removed: Vec<Str>,
    /// Nothing of its cut was left to be sent after it.
    is_last: bool,
}

/// One resource version that the client refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The version refused.
    pub version: Str,
    /// The client's words, cut and with control characters escaped.
    pub text: Str,
}

impl Delivery {
    /// Whether the client must answer before more is sent.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.unacked.len() >= UNACKED_RESPONSES_MAX || self.unacked_bytes >= UNACKED_BYTES_MAX
    }

    /// Notes a response that goes out, since when the oldest change in it is owed, and whether it is the last of its cut.
    pub(super) fn on_sent(&mut self, response: &Response, since: Instant, is_last: bool) {
        let entry = Unacked {
            nonce: response.nonce.clone(),
            cut: response.cut,
            bytes: response.bytes(),
            since,
            resources: response.resources.clone(),
            removed: response.removed.clone(),
            is_last,
        };
        // What is sent anew or removed is judged anew: should the refused form come back, the client must be told.
        let told = response
            .resources
            .iter()
            .map(|slot| &slot.name)
            .chain(&response.removed);
        if !self.rejections.is_empty() {
            for name in told {
                self.rejections.remove(name);
            }
        }
        self.unacked_bytes += entry.bytes;
        self.unacked.push_back(entry);
        self.sent = Some(response.cut);
    }

    /// Takes the nonce and error of a request. An answer also covers the responses sent before its own.
    pub(super) fn on_answer(&mut self, nonce: &str, error: Option<&Nack>) {
        if nonce.is_empty() {
            return;
        }
        let Some(at) = self.unacked.iter().position(|entry| *entry.nonce == *nonce) else {
            self.stale_nonces += 1;
            return;
        };
        for entry in self.unacked.drain(..=at).collect::<Vec<_>>() {
            self.unacked_bytes -= entry.bytes;
            match error {
                Some(nack) if *entry.nonce == *nonce => {
                    self.nacks += 1;
                    self.reject(&entry, nack);
                }
                _ => {
                    self.acks += 1;
                    if entry.is_last {
                        self.acked = Some(entry.cut);
                    }
                }
            }
        }
    }

    /// Records the resources that the message names, or all of the response if it names none of them.
    ///
    /// What a later response replaces or removes is over already, so its rejection says nothing any more.
    fn reject(&mut self, entry: &Unacked, nack: &Nack) {
        let later = self.unacked.iter();
        let later = later.flat_map(|later| {
            later
                .resources
                .iter()
                .map(|slot| &slot.name)
                .chain(&later.removed)
        });
        let superseded: BTreeSet<Str> = later.cloned().collect();
        let mut named = entry.resources.iter();
        let named = named.any(|slot| reason_for(&nack.message, &slot.name).is_some());
        for slot in entry.resources.iter() {
            let (name, version) = (&slot.name, &slot.version);
            let text = match reason_for(&nack.message, name) {
                Some(text) => text,
                None if named => continue,
                None => &nack.message,
            };
            let room = self.rejections.len() < REJECTIONS_MAX || self.rejections.contains_key(name);
            if room && !superseded.contains(name) {
                let rejection = Rejection {
                    version: (**version).into(),
                    text: escape(text).into(),
                };
                self.rejections.insert(name.clone(), rejection);
            }
        }
    }

    /// Names of the resources that are under way to the client.
    pub(super) fn under_way(&self) -> impl Iterator<Item = &Str> {
        let entries = self.unacked.iter();
        entries.flat_map(|entry| entry.resources.iter().map(|slot| &slot.name))
    }

    /// Whether the client refused exactly this version.
    pub(super) fn was_rejected(&self, name: &str, version: &str) -> bool {
        let rejection = self.rejections.get(name);
        rejection.is_some_and(|rejection| &*rejection.version == version)
    }

    /// Whether the client refused anything on this stream that it was not told anew.
    pub(super) fn has_rejected(&self) -> bool {
        !self.rejections.is_empty()
    }

    /// Everything rejected, also what is not in force any more.
    pub(super) fn rejections(&self) -> impl Iterator<Item = (&Str, &Rejection)> {
        self.rejections.iter()
    }

    /// Cut of the newest response sent.
    #[must_use]
    pub fn sent(&self) -> Option<u64> {
        self.sent
    }

    /// The newest cut of which the client accepted everything.
    #[must_use]
    pub fn acked(&self) -> Option<u64> {
        self.acked
    }

    /// Responses accepted.
    #[must_use]
    pub fn acks(&self) -> u64 {
        self.acks
    }

    /// Responses rejected.
    #[must_use]
    pub fn nacks(&self) -> u64 {
        self.nacks
    }

    /// Answers to responses that this stream never sent, or that were answered before.
    #[must_use]
    pub fn stale_nonces(&self) -> u64 {
        self.stale_nonces
    }

    /// Responses that wait for an answer.
    #[must_use]
    pub fn unacked(&self) -> usize {
        self.unacked.len()
    }

    /// Resources and removals in them.
    #[must_use]
    pub fn unacked_changes(&self) -> usize {
        self.unacked
            .iter()
            .map(|entry| entry.resources.len() + entry.removed.len())
            .sum()
    }

    /// Since when the oldest change that is sent and not answered is owed.
    #[must_use]
    pub fn waiting_since(&self) -> Option<Instant> {
        self.unacked.iter().map(|entry| entry.since).min()
    }
}

/// The part of a NACK's message that speaks of one resource.
fn reason_for<'a>(message: &'a str, name: &str) -> Option<&'a str> {
    let start = message.match_indices(name).find_map(|(at, _)| {
        let begins = at == 0 || message[..at].ends_with("; ");
        let rest = message[at + name.len()..].strip_prefix(": ")?;
        begins.then_some(message.len() - rest.len())
    })?;
    let rest = &message[start..];
    Some(rest.split("; ").next().unwrap_or(rest))
}

/// Makes foreign text safe to print: cut to a bound, control characters escaped.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        let before = escaped.len();
        if character.is_control() {
            escaped.extend(character.escape_default());
        } else {
            escaped.push(character);
        }
        if escaped.len() > REJECTION_TEXT_MAX {
            escaped.truncate(before);
            break;
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nack_message_is_split_by_resource() {
        let message = "a/b: bad prefix; a/bc: no action";
        assert_eq!(reason_for(message, "a/b"), Some("bad prefix"));
        assert_eq!(reason_for(message, "a/bc"), Some("no action"));
        assert_eq!(reason_for(message, "b"), None);
        assert_eq!(reason_for("x: a/b: nested", "a/b"), None);
    }

    #[test]
    fn foreign_text_is_cut_and_escaped() {
        assert_eq!(escape("a\u{1b}[2J\n"), "a\\u{1b}[2J\\n");
        assert_eq!(escape(&"é".repeat(REJECTION_TEXT_MAX)).len(), REJECTION_TEXT_MAX);
    }
}
