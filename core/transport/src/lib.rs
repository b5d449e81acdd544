//! Sockets, byte copying and HBONE tunnels.
//!
//! The crate moves bytes and knows nothing of policy or of where configuration comes from:
//!
//! * [`socket`]: original destinations, options, transparent source addresses, resets;
//! * [`hbone`]: tunnels (client, server, pool) behind types that name no HTTP/2 library;
//! * [`copy`]: both directions of a connection, with FIN carried as FIN and RST as RST;
//! * [`baggage`], [`forwarded`], [`traceparent`], [`reason_header`], [`proxy_protocol`]: what travels beside the bytes.

pub mod baggage;
pub mod copy;
pub mod forwarded;
#[cfg(any(test, feature = "testing"))]
pub mod fuzz;
pub mod hbone;
pub mod proxy_protocol;
pub mod reason_header;
pub mod socket;
pub mod traceparent;

pub use baggage::Baggage;
pub use copy::{CopyError, CopyResult, Transfer};
pub use forwarded::Forwarded;
pub use hbone::{HbonePool, HboneStream, OpenError};
pub use reason_header::ReasonHeader;
pub use traceparent::TraceParent;
