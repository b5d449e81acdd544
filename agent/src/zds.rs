//! The in-pod protocol towards node proxies: the [`Hub`] knows every announced pod and every connected proxy, and the
//! [`server`] connects the two.
//!
//! `add` goes to the newest proxy, `del` to all. What a proxy missed while it was away it gets in its snapshot.

mod connection;
mod hub;
mod server;

pub use hub::{Announcement, Hub, Proxies, ProxyInfo};
pub use server::{ZdsError, serve};
