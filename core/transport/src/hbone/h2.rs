//! The `h2` crate behind the seam: the reference, and the way back.

mod client;
mod server;
mod stream;

use std::task::{Context, Poll};

use super::seam::Ping;

pub(super) use client::{Opener, handshake as connect};
pub(super) use server::handshake as accept;

/// Bytes of one stream that wait inside the process to be sent; two of the largest copy buffers.
const SEND_BUFFER_MAX: usize = 512 * 1024;

impl Ping for ::h2::PingPong {
    fn send(&mut self) -> bool {
        self.send_ping(::h2::Ping::opaque()).is_ok()
    }

    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        self.poll_pong(cx).map(|answer| answer.is_ok())
    }
}
