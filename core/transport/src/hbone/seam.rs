//! What a framing of HTTP/2 offers to the connections above it. Whoever implements it knows frames, and nothing of
//! pools, deadlines or reasons.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use serde::{Deserialize, Serialize};
use tulle_identity::tls;

use super::connect::{ConnectRequest, ConnectResponse, MalformedConnect, Refusal};
use super::error::{OpenError, StreamError};
use super::liveness::Slot;
use super::stream::HboneStream;

/// Who turns tunnels into HTTP/2 frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Framing {
    /// The `h2` crate: the reference.
    H2,
    /// Our own, which knows CONNECT and nothing else, over the TLS library.
    Own,
    /// Our own, in TLS records that are sealed and opened in our own buffers. Without TLS, or with another library's
    /// cryptography under it, the same as [`Self::Own`].
    Records,
}

impl Framing {
    /// The framing of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::H2, Self::Own, Self::Records]
            .into_iter()
            .find(|framing| framing.to_string() == name)
    }
}

impl Framing {
    /// Whether a TLS handshake hands over its keys.
    pub(super) fn takes_keys(self) -> bool {
        self == Self::Records && tls::hands_over()
    }
}

impl fmt::Display for Framing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::H2 => "h2",
            Self::Own => "own",
            Self::Records => "records",
        })
    }
}

/// Asks the peer whether it lives.
pub(super) trait Ping: Send {
    /// Sends a PING; false if the connection is ending by itself.
    fn send(&mut self) -> bool;

    /// Ready with true when the answer has come, with false when none will.
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<bool>;
}

/// The frames of one connection, moved by whoever polls.
pub(super) trait Connection: Send {
    /// To be asked for once.
    fn ping(&mut self) -> Box<dyn Ping>;

    /// The receive window that the whole connection is to have.
    fn set_window(&mut self, bytes: u32);
}

/// The client's end.
pub(super) trait ClientFrames: Connection {
    /// Moves frames. Ready when the connection is over, with the reason unless it ended in order.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), String>>;
}

/// The server's end.
pub(super) trait ServerFrames: Connection {
    /// Moves frames, and yields the next stream that a client opened; `None` once the connection is over.
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Asked, String>>>;

    /// GOAWAY(NO_ERROR): no further stream is accepted, those that are open go on.
    fn drain(&mut self);

    /// GOAWAY(NO_ERROR), and every open stream ends at once.
    fn close(&mut self);
}

impl Ping for Box<dyn Ping> {
    fn send(&mut self) -> bool {
        (**self).send()
    }

    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        (**self).poll_answer(cx)
    }
}

/// A stream that a client opened, and the way to answer it.
pub(super) struct Asked {
    pub(super) request: Result<ConnectRequest, MalformedConnect>,
    pub(super) answer: Box<dyn Answer>,
}

/// Answers one stream. Dropping it unanswered resets the stream.
pub(super) trait Answer: Send {
    /// The number of the stream, where what streams hold is counted; 0 elsewhere.
    fn stream(&self) -> u32 {
        0
    }

    /// 200.
    fn accept(self: Box<Self>, response: &ConnectResponse, slot: Slot) -> Result<HboneStream, StreamError>;

    /// Another status, and the end.
    fn reject(self: Box<Self>, refusal: &Refusal) -> Result<(), String>;

    /// Ready when the client no longer waits.
    fn poll_cancelled(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}

/// Opens streams on a client's connection. The connection ends with the last stream once this is dropped.
#[derive(Clone)]
pub(super) enum Opener {
    H2(super::h2::Opener),
    Own(Arc<super::own::Opener>),
}

/// What opening a stream yields.
pub(super) type Opened = Result<(HboneStream, ConnectResponse), OpenError>;

impl Opener {
    /// Opens a stream in a place that was reserved.
    pub(super) async fn open(&self, slot: Slot, request: &ConnectRequest) -> Opened {
        match self {
            Self::H2(opener) => opener.open(slot, request).await,
            Self::Own(opener) => opener.open(slot, request).await,
        }
    }
}
