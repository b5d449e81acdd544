//! Whom a trust domain believes: its roots, its other names, and what it no longer believes although it is signed.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::identity::Identity;
use crate::name::Str;

#[cfg(test)]
mod tests;

/// Most entries of a deny-list; a longer one is refused where it is made and where it is read.
pub const DENIED_MAX: usize = 10_000;
/// Longest serial number of a certificate in hexadecimal digits (RFC 5280, section 4.1.2.2: 20 octets).
const SERIAL_DIGITS_MAX: usize = 40;

/// What every proxy of a trust domain has to know about trust.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Trust {
    /// The domain this is about.
    pub trust_domain: Str,
    /// Counts the changes of [`Self::roots`]; a proxy that holds a higher one has seen a newer bundle.
    pub generation: u64,
    /// PEM of every root that is believed.
    pub roots: Str,
    /// Other trust domains whose principals mean ours.
    pub aliases: Vec<Str>,
    /// What is refused although its certificate is good.
    pub denied: Vec<Denied>,
    /// PEM of the revocation lists of the roots' holders.
    pub crl: Option<Arc<[u8]>>,
    /// A revocation list is past its `nextUpdate`: what it would say is unknown, so peers are refused by default.
    pub crl_stale: bool,
}

/// One entry of the deny-list.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Denied {
    /// What is refused.
    pub subject: Subject,
    /// Why, in the operator's words.
    pub reason: Str,
    /// Seconds since 1970 from which the entry no longer counts; `None` is never.
    pub until: Option<u64>,
    /// Who put it there.
    pub by: Str,
}

/// What a deny-list entry refuses.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Subject {
    /// Every certificate of an identity.
    Identity(Identity),
    /// One certificate.
    Serial(Serial),
    /// A node: its own certificate, and every workload that runs on it.
    Node(Str),
}

/// The serial number of a certificate: hexadecimal, lower case, without leading zeros.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(transparent)]
pub struct Serial(Str);

/// Why a text is no serial number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no serial number; expected 1 to 40 hexadecimal digits, with or without colons")]
pub struct InvalidSerial {
    /// The offending text, cut to 64 characters.
    pub text: String,
}

/// What is known of a peer whose certificate is good.
#[derive(Debug, Clone, Copy)]
pub struct Presented<'a> {
    /// The identity in its certificate.
    pub identity: &'a Identity,
    /// The serial number of its certificate, where it is at hand.
    pub serial: Option<&'a Serial>,
    /// The node it runs on, where that is known.
    pub node: Option<&'a str>,
}

impl Trust {
    /// A trust domain that denies nobody.
    pub fn new(trust_domain: impl Into<Str>, roots: impl Into<Str>) -> Self {
        Self {
            trust_domain: trust_domain.into(),
            generation: 0,
            roots: roots.into(),
            aliases: Vec::new(),
            denied: Vec::new(),
            crl: None,
            crl_stale: false,
        }
    }

    /// The first entry that refuses this peer at `now`, in seconds since 1970.
    #[must_use]
    pub fn denies(&self, peer: &Presented<'_>, now: u64) -> Option<&Denied> {
        self.denied
            .iter()
            .find(|entry| entry.counts(now) && entry.subject.is(peer))
    }

    /// The first entry that refuses this node at `now`, in seconds since 1970.
    #[must_use]
    pub fn denies_node(&self, node: &str, now: u64) -> Option<&Denied> {
        let named = |subject: &Subject| matches!(subject, Subject::Node(denied) if &**denied == node);
        self.denied
            .iter()
            .find(|entry| entry.counts(now) && named(&entry.subject))
    }
}

impl Denied {
    /// Whether the entry is in force.
    #[must_use]
    pub fn counts(&self, now: u64) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

impl Subject {
    /// Whether a peer is what is meant.
    #[must_use]
    pub fn is(&self, peer: &Presented<'_>) -> bool {
        match self {
            Self::Identity(identity) => identity == peer.identity,
            Self::Serial(serial) => peer.serial == Some(serial),
            Self::Node(node) => peer.node == Some(&**node),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity(identity) => identity.fmt(f),
            Self::Serial(serial) => write!(f, "serial:{serial}"),
            Self::Node(node) => write!(f, "node:{node}"),
        }
    }
}

impl Serial {
    /// The serial number in a certificate, as it stands there: big-endian, perhaps with leading zeros.
    #[must_use]
    pub fn from_be_bytes(bytes: &[u8]) -> Self {
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Self::trimmed(&digits)
    }

    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn trimmed(digits: &str) -> Self {
        let digits = digits.trim_start_matches('0');
        Self(if digits.is_empty() {
            "0".into()
        } else {
            digits.into()
        })
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Serial {
    type Err = InvalidSerial;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits: String = text.chars().filter(|char| *char != ':').take(256).collect();
        if digits.is_empty()
            || digits.len() > SERIAL_DIGITS_MAX
            || !digits.bytes().all(|byte| byte.is_ascii_hexdigit())
        {
            return Err(InvalidSerial {
                text: text.chars().take(64).collect(),
            });
        }
        Ok(Self::trimmed(&digits.to_ascii_lowercase()))
    }
}
