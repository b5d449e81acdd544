//! HBONE: TCP connections as CONNECT streams of an HTTP/2 connection over mutual TLS.
//!
//! The types here are the seam: open, accept, read a chunk, write a chunk, half-close, reset, drain. No signature
//! names an HTTP/2 library, so that another framing can stand beside the first one.
//!
//! ```text
//! client:  pool::HbonePool::open ─▶ client::ClientConnection::open ─▶ HboneStream
//! server:  server::ServerConnection::accept ─▶ server::Incoming::{accept ─▶ HboneStream, reject}
//! ```

pub mod client;
#[cfg(test)]
mod compared;
pub mod connect;
pub mod error;
mod expiry;
mod frames;
mod h2;
pub mod held;
mod liveness;
mod load;
pub mod local;
pub(crate) mod own;
pub mod pool;
#[cfg(any(test, feature = "testing"))]
pub mod raw;
mod seam;
pub mod server;
pub mod settings;
pub mod stream;
#[cfg(test)]
pub(crate) mod tests;
#[cfg(test)]
#[path = "hbone/tests.rs"]
mod tests_own;
#[cfg(test)]
#[path = "hbone/tests.rs"]
mod tests_records;
mod watch;
mod watched;
mod window;

pub use client::ClientConnection;
pub use connect::{ConnectRequest, ConnectResponse, MalformedConnect, Refusal};
pub use error::{AcceptError, Blame, OpenError, Retry, StreamError};
pub use pool::{Dial, HbonePool, PoolConfig, TunnelKey};
pub use seam::Framing;
pub use server::{Incoming, ServerConnection, ServerHandle};
pub use settings::Settings;
pub use stream::{HboneReader, HboneStream, HboneWriter, ResetCode};

/// The port HBONE is served on unless a gateway says otherwise.
pub const PORT: u16 = 15008;
