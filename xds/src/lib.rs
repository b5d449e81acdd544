//! The control plane: sources, engine, delta ADS, certificate authority, status.

pub mod engine;
pub mod snapshot;
pub mod source;
