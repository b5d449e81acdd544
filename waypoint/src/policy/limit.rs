//! How many requests pass: counted by each replica, and counted by a service for all of them.

pub mod global;
pub mod key;
pub mod local;
