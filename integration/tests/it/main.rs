//! The mesh in real network namespaces: real processes, packet rules, TLS, clients and servers.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod addressing;
mod balancing;
mod capture;
mod certificates;
mod clear;
mod cni;
mod configuration;
mod conformance;
mod enrolment;
mod families;
mod fronts;
mod half_closed;
mod hostile;
mod interop;
mod local;
mod matrix;
mod names;
mod node;
mod observed;
mod outage;
mod peers;
mod policy;
mod same_node;
mod tasks;
mod upgrade;
mod waypoint;
mod waypoint_faults;
mod waypoint_peers;
mod ways;
