//! A whole waypoint in memory: callers tunnel to it and endpoints answer behind it, over pipes instead of sockets.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests")]

mod access;
mod allocations;
mod arrival;
mod asked;
mod attacks;
mod backends;
mod beyond;
mod circles;
mod classes;
mod clients_outside;
mod desync;
mod egress;
mod explain;
mod held;
mod hostile;
mod interim;
mod policies;
mod rebuilds;
mod requests;
mod resilience;
mod resting;
mod routes;
mod stream_routes;
mod streams;
mod strict;
mod telemetry;
mod timers;
mod tokens;
mod unread;
mod websocket;
mod world;
