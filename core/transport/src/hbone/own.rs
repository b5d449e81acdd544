//! Our own framing of HTTP/2 for CONNECT tunnels.
//!
//! ```text
//!   stream halves ──┐                          ┌── client::Frames, server::Frames
//!                   ├─▶ conn (lock) ─▶ core ◀──┤         (one driver each)
//!   opener, answer ─┘                          └── driver ◀─▶ byte stream
//! ```
//!
//! All that decides is in `core`, which sees bytes and nothing else. The driver moves bytes between it and the stream
//! under the connection; whoever holds a half of a stream calls it under a short lock.

mod budget;
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
mod parser;
mod server;
mod stream;
mod wire;

pub(super) use client::{Opener, handshake as connect};
pub(super) use server::handshake as accept;
