//! Our own framing of HTTP/2 for CONNECT tunnels.
//!
//! ```text
//!   stream halves ──┐                          ┌── client::Frames, server::Frames
//!                   ├─▶ conn (lock) ─▶ core ◀──┤         (one driver each)
//!   opener, answer ─┘                          └── driver ◀─▶ link ◀─▶ byte stream
//! ```
//!
//! All that decides is in `core`, which sees bytes and nothing else. The driver moves bytes between it and the stream
//! under the connection, as they are or in records that are sealed here; whoever holds a half of a stream calls it under a short lock.

mod chunks;
mod client;
mod conn;
mod core;
mod driver;
mod fault;
#[cfg(any(test, feature = "testing"))]
pub(crate) mod fuzz;
mod head;
mod hpack;
mod link;
#[cfg(test)]
mod moved;
mod parser;
mod sealed;
mod server;
mod stream;
mod wire;

pub(super) use client::{Opener, handshake as connect, over_records as connect_over_records};
pub(super) use server::{handshake as accept, over_records as accept_over_records};
