//! TLS 1.3 records after the handshake, sealed and opened in our own buffers (RFC 8446, 5).
//!
//! ```text
//!   slices of plaintext ─▶ Session::seal ─▶ outgoing buffer        incoming buffer ─▶ Session::open ─▶ ranges of it
//! ```
//!
//! Without socket and clock. A byte is touched once on its way out, by the cipher, from the buffer it was read into to
//! the one it leaves from; and once on its way in, where it lies. The TLS library does the handshake and makes the keys.

pub(crate) mod buffer;
mod error;
mod format;
#[cfg(any(test, feature = "testing"))]
pub(crate) mod fuzz;
mod key;
mod opening;
mod post_handshake;
mod sealing;
mod session;
#[cfg(any(test, feature = "testing"))]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub(crate) use error::Fault;
pub(crate) use session::Session;
