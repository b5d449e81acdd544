//! How one try ended, in the words that retries, outlier detection and balancing decide by.

use std::time::Duration;

/// How one try ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// No byte of it can have reached the application.
    Unsent(Unsent),
    /// The destination says that it is not for us to ask (CONNECT answered 400 or 401).
    Refused,
    /// The connection or the stream ended before the head of an answer.
    Reset,
    /// The answer breaks the protocol.
    Malformed,
    /// It took longer than a try may.
    TimedOut,
    /// The endpoint answered.
    Answered(Answer),
    /// A stream of bytes that no one reads an answer from came about.
    Connected,
    /// The client went before there was an answer.
    ClientGone,
}

/// Why no byte can have reached the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Unsent {
    /// No connection came about.
    Connect,
    /// The handshake failed.
    Tls,
    /// The destination's proxy cannot reach the application now (CONNECT answered 503).
    Unavailable,
    /// The stream was refused before it was looked at (`REFUSED_STREAM`).
    RefusedStream,
    /// The stream is above the last one that a GOAWAY names.
    GoAway,
    /// A kept connection was closed before any byte of an answer, and no byte of the body had left.
    Stale,
    /// It is our own fault: no certificate, or no port.
    Own,
}

/// What the head of an answer says, or its trailers where no message came first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Status of HTTP.
    pub status: u16,
    /// Status of gRPC, if it is known yet.
    pub grpc: Option<u32>,
    /// When the endpoint wants to be asked again.
    pub hint: Option<Hint>,
}

impl Answer {
    /// An answer of HTTP without further ado.
    #[must_use]
    pub fn status(status: u16) -> Self {
        Self {
            status,
            grpc: None,
            hint: None,
        }
    }
}

/// When an endpoint wants to be asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hint {
    /// After this time.
    After(Duration),
    /// Not at all.
    Never,
}

impl Hint {
    /// The time to wait, if there is one.
    #[must_use]
    pub fn wait(self) -> Option<Duration> {
        match self {
            Self::After(wait) => Some(wait),
            Self::Never => None,
        }
    }
}
