//! The control plane: sources, engine, delta ADS, certificate authority, status.

pub mod ca;
pub mod engine;
pub mod metrics;
pub mod serve;
pub mod snapshot;
pub mod source;
pub mod status;
pub mod token;
