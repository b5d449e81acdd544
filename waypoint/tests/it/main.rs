//! A whole waypoint in memory: callers tunnel to it and endpoints answer behind it, over pipes instead of sockets.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests")]

mod arrival;
mod policies;
mod requests;
mod routes;
mod streams;
mod strict;
mod world;
