//! Captured outbound TCP: who calls, where to, and over which way.

mod attempts;
mod connection;
mod failures;
pub mod names;
mod next_hop;
pub mod plan;

use std::time::Duration;

pub(crate) use self::connection::open;
pub use self::connection::{serve, serve_to};
pub use self::failures::{Failure, Probe, RecentFailures};

/// Everything before the first byte of the application.
pub const CONNECT_BUDGET: Duration = Duration::from_secs(10);

/// One attempt at one endpoint.
pub const ATTEMPT_TIME_MAX: Duration = Duration::from_secs(5);

/// How long a next hop that refuses its tunnel port is tried again: its capture may be just being installed.
pub const CAPTURE_WAIT: Duration = Duration::from_secs(2);

/// Pause between such attempts.
pub const CAPTURE_PAUSE: Duration = Duration::from_millis(50);
