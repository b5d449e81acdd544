//! Sockets, byte copying and HBONE tunnels.
//!
//! The crate moves bytes and knows nothing of policy or of where configuration comes from:
//!
//! * [`socket`]: original destinations, options, transparent source addresses, resets;
//! * [`hbone`]: tunnels (client, server, pool) behind types that name no HTTP/2 library;
//! * [`copy`]: both directions of a connection, with FIN carried as FIN and RST as RST;
//! * [`socks5`]: what clients ask for that want to be proxied;
//! * [`baggage`], [`forwarded`], [`traceparent`], [`reason_header`], [`proxy_protocol`]: what travels beside the bytes.
//!
//! A tunnel from end to end, over memory instead of mutual TLS:
//!
//! ```
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//! use tulle_transport::hbone::{ConnectRequest, ConnectResponse, Settings, client, server};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (near, far) = tokio::io::duplex(4096);
//! let accepting = server::handshake(far, &const { Settings::server() });
//! let (client, connection) = tokio::join!(client::handshake(near, &const { Settings::client() }), accepting);
//! let (client, mut connection) = (client?, connection?);
//!
//! tokio::task::LocalSet::new().run_until(async move {
//!     tokio::task::spawn_local(async move {
//!         while let Some(incoming) = connection.accept().await {
//!             let mut stream = incoming.accept(&ConnectResponse::default()).expect("the client waits");
//!             tokio::task::spawn_local(async move { stream.write_all(b"hello").await?; stream.shutdown().await });
//!         }
//!     });
//!     let (mut stream, _head) = client.open(&ConnectRequest::new("10.0.0.7:80")).await?;
//!     let mut greeting = String::new();
//!     stream.read_to_string(&mut greeting).await?;
//!     assert_eq!(greeting, "hello");
//!     Ok(())
//! }).await
//! # }
//! ```

#![cfg_attr(
    test,
    allow(
        clippy::duplicate_mod,
        reason = "the tests of tunnels stand twice, once for each framing"
    )
)]

pub mod baggage;
mod budget;
pub mod copy;
pub mod forwarded;
#[cfg(any(test, feature = "testing"))]
pub mod fuzz;
pub mod hbone;
mod plain;
pub mod proxy_protocol;
pub mod reason_header;
mod records;
mod room;
mod shelf;
pub mod socket;
pub mod socks5;
pub mod traceparent;

pub use baggage::Baggage;
pub use copy::{CopyError, CopyResult, Transfer};
pub use forwarded::Forwarded;
pub use hbone::{HbonePool, HboneStream, OpenError};
pub use reason_header::ReasonHeader;
pub use traceparent::TraceParent;
