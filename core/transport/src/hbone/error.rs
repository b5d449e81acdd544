//! What goes wrong with tunnels: whose fault it is, whether trying again helps, and the stable reason.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tulle_identity::HandshakeError;
use tulle_model::Reason;
use tulle_model::reason::ResponseFlag;

use super::connect::Refusal;
use super::stream::ResetCode;
use crate::socket::no_port_left;

/// Whose fault an error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Blame {
    /// The side the connection came from.
    Downstream,
    /// The next hop.
    Upstream,
    /// The mesh itself: this proxy, its certificates, its limits.
    Mesh,
}

/// Whether trying again can help. No error of opening a tunnel leaves payload sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Retry {
    /// The answer would be the same everywhere.
    Never,
    /// Another endpoint of the same service may work.
    OtherEndpoint,
    /// The same endpoint, over a fresh connection: this one was going away and had not taken the stream.
    FreshConnection,
}

/// Why a tunnel could not be opened. Cheap to clone: all who waited for one dial get the same error.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    /// TCP to the next hop was refused, or failed.
    #[error("connect to {peer} failed: {source}")]
    ConnectFailed {
        /// Who was dialled.
        peer: SocketAddr,
        /// What the kernel said.
        source: Arc<io::Error>,
    },
    /// TCP, TLS or the answer to CONNECT took too long.
    #[error("{peer} did not answer within {after:?}{}", hint(*.peer))]
    ConnectTimeout {
        /// Who was dialled.
        peer: SocketAddr,
        /// How long it was waited for.
        after: Duration,
    },
    /// No local port is free.
    #[error("no local port is free to reach {peer}")]
    PortsExhausted {
        /// Who was dialled.
        peer: SocketAddr,
    },
    /// Our own workload has no certificate that can be used.
    #[error("own certificate: {detail}")]
    Certificate {
        /// [`Reason::CertUnavailable`] or [`Reason::CertExpired`].
        reason: Reason,
        /// What the certificate manager said.
        detail: Arc<str>,
    },
    /// The TLS handshake failed, or the peer proved another identity than one of those expected.
    #[error("TLS handshake failed: {source}")]
    Tls {
        /// What TLS said; [`HandshakeError::reason`] tells a mismatch of identities from the rest.
        source: Arc<HandshakeError>,
    },
    /// HTTP/2 could not be established, or the peer broke it.
    #[error("HTTP/2 failed: {detail}")]
    Http2 {
        /// What HTTP/2 said.
        detail: Arc<str>,
    },
    /// The connection was lost before the peer answered.
    #[error("the connection to the peer was lost before it answered: {detail}")]
    PeerLost {
        /// What was seen.
        detail: Arc<str>,
    },
    /// The peer is going away and did not take the stream.
    #[error("the peer is draining and did not take the stream")]
    GoingAway,
    /// The peer reset the stream instead of answering.
    #[error("the peer reset the stream: {0:?}")]
    Reset(ResetCode),
    /// The peer answered, and it was no.
    #[error("refused by the peer: {0}")]
    Refused(Refusal),
    /// The authority or a header cannot be written.
    #[error("the request cannot be written: {detail}")]
    Request {
        /// Which part.
        detail: Arc<str>,
    },
    /// A bound of the pool is reached.
    #[error("too many connections or waiters for one peer")]
    Overload,
    /// This proxy is draining.
    #[error("this proxy is draining")]
    Draining,
}

/// A verdict on who the peer is, or we are: it would be the same again.
fn is_final(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::PeerIdentityMismatch | Reason::CertRevoked | Reason::CrlStale
    )
}

fn hint(peer: SocketAddr) -> &'static str {
    if peer.port() == super::PORT {
        "; a NetworkPolicy may block HBONE port 15008"
    } else {
        ""
    }
}

impl OpenError {
    /// Sorts what the kernel said about a TCP connect.
    #[must_use]
    pub fn connect(peer: SocketAddr, error: io::Error) -> Self {
        if no_port_left(&error) {
            return Self::PortsExhausted { peer };
        }
        Self::ConnectFailed {
            peer,
            source: Arc::new(error),
        }
    }

    /// Whose fault it is.
    #[must_use]
    pub fn blame(&self) -> Blame {
        match self {
            Self::PortsExhausted { .. } | Self::Certificate { .. } | Self::Overload | Self::Draining => {
                Blame::Mesh
            }
            Self::Request { .. } => Blame::Downstream,
            Self::Refused(refusal) if refusal.is_policy() => Blame::Downstream,
            _ => Blame::Upstream,
        }
    }

    /// Whether trying again can help.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            Self::GoingAway | Self::PeerLost { .. } | Self::Reset(ResetCode::Refused) => {
                Retry::FreshConnection
            }
            Self::Tls { .. } if is_final(self.reason()) => Retry::Never,
            Self::ConnectFailed { .. }
            | Self::ConnectTimeout { .. }
            | Self::Tls { .. }
            | Self::Http2 { .. }
            | Self::Reset(_) => Retry::OtherEndpoint,
            Self::Refused(refusal) if refusal.status == 503 => Retry::OtherEndpoint,
            _ => Retry::Never,
        }
    }

    /// The stable reason. A refusal keeps the reason the peer gave.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::ConnectFailed { .. } => Reason::ConnectFailed,
            Self::ConnectTimeout { .. } => Reason::ConnectTimeout,
            Self::PortsExhausted { .. } => Reason::PortsExhausted,
            Self::Certificate { reason, .. } => *reason,
            Self::Tls { source } => source.reason(),
            Self::Http2 { .. } | Self::Request { .. } | Self::Reset(_) => Reason::Http2Failed,
            Self::PeerLost { .. } => Reason::PeerLost,
            Self::GoingAway | Self::Draining => Reason::PeerDrained,
            Self::Refused(refusal) => refusal.reason(),
            Self::Overload => Reason::Overload,
        }
    }
}

impl OpenError {
    /// The `response_flags` value of metrics.
    #[must_use]
    pub fn flag(&self) -> ResponseFlag {
        match self {
            Self::ConnectTimeout { peer, .. } if peer.port() == super::PORT => ResponseFlag::NetworkPolicy,
            _ => self.reason().flag(),
        }
    }
}

/// Why an inbound tunnel connection could not be established.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// The TLS handshake failed; the source says why.
    #[error("TLS handshake failed: {0}")]
    Tls(#[from] HandshakeError),
    /// TLS or HTTP/2 took too long.
    #[error("handshake not finished within {0:?}")]
    Timeout(Duration),
    /// What came after TLS was no HTTP/2.
    #[error("HTTP/2 handshake failed: {0}")]
    Http2(Arc<str>),
}

impl AcceptError {
    /// The stable reason.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Tls(error) => error.reason(),
            Self::Timeout(_) => Reason::TlsFailed,
            Self::Http2(_) => Reason::Http2Failed,
        }
    }
}

/// How an open stream ended other than by END_STREAM.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The peer reset it.
    #[error("the peer reset the stream: {0:?}")]
    Reset(ResetCode),
    /// The connection under it was lost.
    #[error("the tunnel connection was lost: {0}")]
    Lost(Arc<str>),
    /// This side ended the connection under it.
    #[error("this proxy ended the tunnel connection: {0}")]
    Cut(Reason),
    /// It was already closed or reset on this side.
    #[error("the stream is already closed on this side")]
    Closed,
}

impl StreamError {
    /// The stable reason.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Cut(reason) => *reason,
            Self::Reset(_) | Self::Lost(_) | Self::Closed => Reason::PeerLost,
        }
    }
}
