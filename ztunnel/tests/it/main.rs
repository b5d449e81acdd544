//! The node proxy in one process, over loopback: dedicated mode against clients that are built here.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod acks;
mod agent;
mod application_tunnel;
mod captured;
mod corpus;
mod dedicated;
mod explained;
mod foreign_agent;
mod forged;
mod gateways;
mod hostnames;
mod inbound;
mod limits;
mod logs;
mod metrics_tunnel;
mod moved;
mod names;
mod on_demand;
mod outbound;
mod pages;
mod revocation;
mod socks5;
mod world;
