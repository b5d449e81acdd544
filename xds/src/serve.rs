//! Serving configuration: who asks, what they may have, what they still lack, and the streams that carry it.
//!
//! `session` and `push` decide with values; `ads` and `listen` only move messages.

pub mod admission;
pub mod admit;
pub mod ads;
pub mod authenticate;
mod connection;
pub mod frame;
pub mod listen;
pub mod pace;
pub mod push;
pub mod session;
pub mod viewer;

#[cfg(test)]
mod tests;
