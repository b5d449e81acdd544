//! A whole waypoint in memory: callers tunnel to it and endpoints answer behind it, over pipes instead of sockets.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests")]

mod arrival;
mod attacks;
mod corpus;
mod desync;
mod requests;
mod routes;
mod streams;
mod strict;
mod world;
