//! The agent against a real kernel, in network namespaces that the tests make and that go with them.
//!
//! They need root, or to be started in user, network and mount namespaces (`unshare -Urnm`). Where neither holds each
//! test says that it was skipped.

#![allow(clippy::unwrap_used, reason = "a test ends by panicking, in its helpers too")]

mod apply_time;
mod backends;
mod capture;
mod cni;
mod enrol;
mod fleet;
mod full;
mod golden;
mod hostile;
mod pod;
mod proxy;
mod storm;
mod zds;
