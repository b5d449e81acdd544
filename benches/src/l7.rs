//! Reverse proxies beside one another: a waypoint, one of hyper alone, nginx and haproxy. Client and server are the same
//! for all, both hops are mutual TLS, and each proxy runs on threads or in a process of its own, so that its CPU can be
//! told from everybody else's.
//!
//! ```text
//!   client ══ mutual TLS ══ proxy ══ mutual TLS ══ server        waypoint: both hops are tunnels (HBONE)
//! ```

mod bare;
pub mod bodies;
pub mod callers;
pub mod churn;
mod client;
pub mod fair;
pub mod idle;
mod peers;
pub mod routes;
pub mod rules;
mod server;
pub mod table;
mod waypoint;
pub mod windows;

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tulle_identity::testing::TestCa;

pub use client::{Ask, Figures, Load};
pub use peers::{Peer, Program};
pub use waypoint::Fronting;

/// Name that every server proves.
pub const SERVER: &str = "server";
/// Bytes of an answer.
pub const ANSWER: usize = 1024;
/// Path of a body of as many bytes as follow it.
const BULK: &str = "/bulk/";
/// How gRPC calls what it carries.
const GRPC: &str = "application/grpc";
/// Methods that are called: one message each way, and many.
const UNARY: &str = "/bench.Bench/Unary";
const STREAM: &str = "/bench.Bench/Stream";
/// What a route matches.
pub const KIND: (&str, &str) = ("x-kind", "bench");
/// Threads of each part.
const THREADS: usize = 2;

/// Which HTTP clients speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.1.
    One,
    /// HTTP/2.
    Two,
}

impl Version {
    /// As ALPN says it.
    #[must_use]
    pub fn alpn(self) -> &'static str {
        match self {
            Self::One => "http/1.1",
            Self::Two => "h2",
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::One => "h1",
            Self::Two => "h2",
        })
    }
}

/// A runtime whose threads have a name, which their CPU is found by.
#[must_use]
pub fn threads(name: &str) -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(THREADS)
        .thread_name(name)
        .enable_all()
        .build()
        .expect("threads and epoll are there")
}

/// What is around the proxies: an authority, and servers that answer.
#[derive(Debug)]
pub struct Site {
    /// Who vouches for everybody.
    pub ca: Arc<TestCa>,
    /// The server that is reached by TLS.
    pub tls: SocketAddr,
    /// The same behind tunnels.
    pub tunnel: SocketAddr,
    /// The runtime of servers.
    _servers: Runtime,
}

impl Site {
    /// Starts servers.
    #[must_use]
    pub fn start() -> Self {
        let (ca, servers) = (Arc::new(TestCa::new()), threads("server"));
        let (tls, tunnel) = servers.block_on(async {
            let (by_tls, by_tunnel) = (listen().await, listen().await);
            let addresses = (address(&by_tls), address(&by_tunnel));
            drop(servers.spawn(server::by_tls(
                by_tls,
                ca.mutual_server(&[SERVER], &["h2", "http/1.1"]),
            )));
            let certificate = ca.certificate(&server::identity());
            let manner = server::Manner::default();
            drop(servers.spawn(server::by_tunnel(by_tunnel, certificate, manner)));
            addresses
        });
        Self {
            ca,
            tls,
            tunnel,
            _servers: servers,
        }
    }
}

/// How a proxy is reached, and whose CPU is its own.
#[derive(Debug)]
pub struct Device {
    /// What it is called.
    pub name: &'static str,
    /// How clients reach it.
    pub reached: Reached,
    cpu: Cpu,
    /// What it lives by.
    _lives: Lives,
}

/// How a proxy is reached.
#[derive(Debug, Clone, Copy)]
pub enum Reached {
    /// By mutual TLS.
    Tls(SocketAddr),
    /// By a stream of a tunnel.
    Tunnel(SocketAddr),
}

/// Whose CPU it is.
#[derive(Debug, Clone, Copy)]
enum Cpu {
    Nobody,
    Threads(&'static str),
    Process(u32),
}

/// What ends with a device.
#[derive(Debug)]
enum Lives {
    Nothing,
    Runtime(#[allow(dead_code, reason = "it is dropped with the device")] Runtime),
    Fronting(#[allow(dead_code, reason = "it is dropped with the device")] Box<Fronting>),
    Peer(#[allow(dead_code, reason = "it is ended with the device")] Peer),
}

impl Device {
    /// No proxy at all.
    #[must_use]
    pub fn direct(site: &Site) -> Self {
        Self {
            name: "direct",
            reached: Reached::Tls(site.tls),
            cpu: Cpu::Nobody,
            _lives: Lives::Nothing,
        }
    }

    /// A reverse proxy of hyper alone.
    #[must_use]
    pub fn bare(site: &Site, version: Version) -> Self {
        let runtime = threads("bare");
        let listener = runtime.block_on(listen());
        let reached = Reached::Tls(address(&listener));
        drop(runtime.spawn(bare::serve(listener, site.ca.clone(), site.tls, version)));
        Self {
            name: "bare",
            reached,
            cpu: Cpu::Threads("bare"),
            _lives: Lives::Runtime(runtime),
        }
    }

    /// A waypoint.
    #[must_use]
    pub fn waypoint(site: &Site, version: Version) -> Self {
        let fronting = Fronting::start(&site.ca, site.tunnel, version);
        Self {
            name: "waypoint",
            reached: Reached::Tunnel(fronting.address),
            cpu: Cpu::Threads(waypoint::THREADS),
            _lives: Lives::Fronting(Box::new(fronting)),
        }
    }

    /// A program of the machine, if it is there.
    #[must_use]
    pub fn peer(site: &Site, program: Program, version: Version) -> Option<Self> {
        let peer = Peer::start(site, program, version)?;
        Some(Self {
            name: program.name(),
            reached: Reached::Tls(peer.address),
            cpu: Cpu::Process(peer.id()),
            _lives: Lives::Peer(peer),
        })
    }

    /// CPU it has spent so far; nothing where there is no proxy.
    #[must_use]
    pub fn cpu(&self) -> Duration {
        match self.cpu {
            Cpu::Nobody => Duration::ZERO,
            Cpu::Threads(name) => tasks_of(Path::new("/proc/self"), Some(name)),
            Cpu::Process(id) => {
                let children = processes_under(id);
                let paths = children.into_iter().chain([id]);
                paths
                    .map(|id| tasks_of(Path::new(&format!("/proc/{id}")), None))
                    .sum()
            }
        }
    }
}

/// CPU of the threads of a process, of those with this name if one is given.
fn tasks_of(process: &Path, name: Option<&str>) -> Duration {
    let tasks = fs::read_dir(process.join("task")).into_iter().flatten().flatten();
    let nanos = tasks.filter_map(|task| {
        let read = |file: &str| fs::read_to_string(task.path().join(file)).ok();
        let comm = read("comm")?;
        if name.is_some_and(|name| comm.trim_end() != name) {
            return None;
        }
        read("schedstat")?.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}

fn processes_under(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let children = processes.filter_map(|process| {
        let id: u32 = process.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(process.path().join("stat")).ok()?;
        let after = stat.rsplit_once(") ")?.1;
        let of: u32 = after.split(' ').nth(1)?.parse().ok()?;
        (of == parent).then_some(id)
    });
    children.collect()
}

async fn listen() -> TcpListener {
    let bound = TcpListener::bind("127.0.0.1:0").await;
    bound.expect("loopback has ports")
}

fn address(listener: &TcpListener) -> SocketAddr {
    listener.local_addr().expect("it is bound")
}
