//! What plugin and agent say to each other: one request and one reply, a line of JSON each.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tulle_model::Str;
use tulle_model::reason::Reason;

use crate::records::PodId;
use crate::resolver::Resolver;

/// Version of the protocol. It changes when an older side would misunderstand.
pub const VERSION: u32 = 1;
/// Bytes of a request or reply.
pub const MESSAGE_BYTES_MAX: u64 = 4 << 20;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Version of the protocol.
    pub version: u32,
    /// What is asked.
    #[serde(flatten)]
    pub question: Question,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "question", rename_all = "camelCase")]
pub enum Question {
    /// A sandbox starts: capture it if it is enrolled.
    Add(Sandbox),
    /// A sandbox ends: let go of it.
    Del(Sandbox),
    /// Is the sandbox as it should be?
    Check(Sandbox),
    /// Would a new sandbox be taken?
    Status,
    /// Forget every sandbox but these.
    Gc {
        /// Ids of those that stay.
        keep: Vec<Str>,
    },
}

/// A sandbox as its runtime describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    /// The runtime's id of it.
    pub container_id: Str,
    /// The pod it is for.
    pub pod: PodId,
    /// Where its network namespace is; nothing once that is gone.
    pub netns: Option<PathBuf>,
    /// The addresses it was given.
    pub addresses: Vec<IpAddr>,
    /// What its resolv.conf will say, if its runtime told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolver: Option<Resolver>,
}

/// A reply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// Version of the protocol.
    pub version: u32,
    /// The answer.
    #[serde(flatten)]
    pub answer: Answer,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "camelCase")]
pub enum Answer {
    /// The pod is captured, and that was verified.
    Captured,
    /// The pod is none of the mesh's.
    LeftAlone,
    /// What was asked for is done, or as it should be.
    Done,
    /// It cannot be.
    Refused(Failure),
}

/// Why not, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The stable code.
    pub code: String,
    /// The stable token.
    pub token: String,
    /// One sentence of cause.
    pub cause: String,
    /// One of cure.
    pub cure: String,
}

impl Failure {
    /// A failure for a reason.
    #[must_use]
    pub fn new(reason: Reason, cause: impl Into<String>, cure: impl Into<String>) -> Self {
        Self {
            code: reason.code().to_owned(),
            token: reason.token().to_owned(),
            cause: cause.into(),
            cure: cure.into(),
        }
    }
}

/// `pod shop/web is enrolled, but …; see … (T0108, proxy_not_connected)`.
impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            code,
            token,
            cause,
            cure,
        } = self;
        write!(f, "{cause}; {cure} ({code}, {token})")
    }
}

/// Text that is no message, or one of another version.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// It is no message.
    #[error("the message cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    /// It is of another version.
    #[error(
        "the message has version {0}, and {VERSION} is spoken here; update plugin and agent to the same release"
    )]
    Version(u32),
}

/// Reads only a message's version, so that one of another version is told from one that is broken.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

fn decode<'a, T: Deserialize<'a>>(line: &'a [u8]) -> Result<T, ProtocolError> {
    let Versioned { version } = serde_json::from_slice(line)?;
    if version != VERSION {
        return Err(ProtocolError::Version(version));
    }
    Ok(serde_json::from_slice(line)?)
}

fn encode(message: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(message).expect("the messages' types have a form in JSON");
    line.push(b'\n');
    line
}

impl Request {
    /// Asks in this version.
    #[must_use]
    pub fn new(question: Question) -> Self {
        Self {
            version: VERSION,
            question,
        }
    }

    /// Reads a request.
    ///
    /// # Errors
    /// When it is none, or of another version.
    pub fn decode(line: &[u8]) -> Result<Self, ProtocolError> {
        decode(line)
    }

    /// A line of JSON.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }
}

impl Reply {
    /// Answers in this version.
    #[must_use]
    pub fn new(answer: Answer) -> Self {
        Self {
            version: VERSION,
            answer,
        }
    }

    /// Reads a reply.
    ///
    /// # Errors
    /// When it is none, or of another version.
    pub fn decode(line: &[u8]) -> Result<Self, ProtocolError> {
        decode(line)
    }

    /// A line of JSON.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_what_is_heard() {
        let sandbox = Sandbox {
            container_id: "c1".into(),
            pod: PodId {
                namespace: "shop".into(),
                name: "web".into(),
                uid: "u1".into(),
            },
            netns: Some("/run/netns/x".into()),
            addresses: vec!["10.0.0.7".parse().unwrap()],
            resolver: Some(Resolver {
                nameservers: vec!["10.0.0.10".to_owned()],
                ..Resolver::default()
            }),
        };
        for question in [
            Question::Add(sandbox.clone()),
            Question::Del(Sandbox {
                netns: None,
                ..sandbox
            }),
            Question::Status,
            Question::Gc {
                keep: vec!["c1".into()],
            },
        ] {
            let request = Request::new(question);
            assert_eq!(Request::decode(&request.encode()).unwrap(), request);
        }
        let failure = Failure::new(Reason::PortTaken, "port 15001 is taken", "move it");
        let reply = Reply::new(Answer::Refused(failure));
        assert_eq!(Reply::decode(&reply.encode()).unwrap(), reply);
    }

    #[test]
    fn another_version_is_told_from_a_broken_message() {
        let newer = br#"{"version": 2, "question": "teleport"}"#;
        assert!(matches!(Request::decode(newer), Err(ProtocolError::Version(2))));
        assert!(matches!(Request::decode(b"{}"), Err(ProtocolError::Json(_))));
    }

    #[test]
    fn a_failure_reads_as_cause_cure_and_code() {
        let failure = Failure::new(
            Reason::PortTaken,
            "pod shop/web is enrolled, but port 15001 is taken",
            "move it",
        );
        assert_eq!(
            failure.to_string(),
            "pod shop/web is enrolled, but port 15001 is taken; move it (T0104, port_taken)"
        );
    }
}
