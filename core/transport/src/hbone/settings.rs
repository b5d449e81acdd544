//! What both sides of a tunnel connection announce and insist on.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::seam::Framing;

/// HTTP/2 settings and deadlines of a tunnel connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Who turns tunnels into frames [records].
    pub framing: Framing,
    /// Bytes a peer may send on one stream before we took them [4 MiB].
    pub stream_window: u32,
    /// Bytes a peer may send on all streams together before we took them [16 MiB].
    pub connection_window: u32,
    /// Longest frame we accept [1 MiB].
    pub frame_size: u32,
    /// Streams a peer may have open towards us (200).
    pub streams_max: u32,
    /// Header list we accept as a client [16 KiB].
    pub client_header_list: u32,
    /// Header list we accept as a server [64 KiB].
    pub server_header_list: u32,
    /// Silence, with streams open, before the peer is asked whether it lives [5 s].
    pub ping_after: Duration,
    /// How long the answer may take before the peer counts as lost [5 s].
    pub ping_timeout: Duration,
    /// How long a connection without streams is kept [client 5 min, server 10 min].
    pub idle_timeout: Duration,
    /// How long TLS and HTTP/2 may take to be established [10 s].
    pub handshake_timeout: Duration,
}

impl Settings {
    /// What a client uses.
    #[must_use]
    pub const fn client() -> Self {
        Self {
            framing: Framing::Records,
            stream_window: 4 * 1024 * 1024,
            connection_window: 16 * 1024 * 1024,
            frame_size: 1024 * 1024,
            streams_max: 200,
            client_header_list: 16 * 1024,
            server_header_list: 64 * 1024,
            ping_after: Duration::from_secs(5),
            ping_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(300),
            handshake_timeout: Duration::from_secs(10),
        }
    }

    /// What a server uses.
    #[must_use]
    pub const fn server() -> Self {
        Self {
            idle_timeout: Duration::from_secs(600),
            ..Self::client()
        }
    }

    /// Overhead, in bytes, of small frames that wait unread on one connection before it is ended: each frame under
    /// 256 bytes costs what it lacks. A stream that is being copied is emptied into a compact backlog whether or not
    /// its reader is slow, so only streams that wait for their 200 spend from this.
    pub(super) const fn small_frame_budget(&self) -> usize {
        self.connection_window as usize
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::client()
    }
}
