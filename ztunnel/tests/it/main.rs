//! The node proxy in one process, over loopback: dedicated mode against clients that are built here.

mod agent;
mod inbound;
mod outbound;
mod pages;
mod world;
