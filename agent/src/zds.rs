//! The in-pod protocol towards node proxies: the [`Hub`] knows every announced pod and every connected proxy, and the
//! [`server`] connects the two.
//!
//! `add` goes to the newest proxy, `del` to all. What a proxy missed while it was away it gets in its snapshot. Once the
//! newest has accepted a pod, older generations hand it over: they stop accepting for it and keep its connections. When
//! the newest dies, the next newest is given its pods again. The [`book`] decides all of it.

mod book;
mod connection;
mod hub;
mod server;

pub use hub::{Announcement, Hub, Proxies, ProxyInfo};
pub use server::{ZdsError, serve};
