//! Windows and frames of HTTP/2: how fast a large body passes, and how long small requests beside it take, whose bytes
//! are in the same tunnels.
//!
//! Windows are measured over a link that takes some time, as they bound what may be on its way; frames without one, as
//! they bound for how long one stream has the connection to itself.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tulle_runtime::tasks;
use tulle_transport::hbone::Settings;
use tulle_waypoint::Config;
use tulle_waypoint::buffers::Http2;

use super::bodies::untimed;
use super::waypoint::{Fronting, THREADS};
use super::{Cpu, Device, Lives, Load, Reached, Site, Version, address, listen, threads};

/// Bytes of a body.
const BODY: u64 = 64 << 20;
/// What the link between waypoint and server takes each way.
const DELAY: Duration = Duration::from_millis(1);
/// Reads that are on the link at once, and bytes of one.
const LINK_READS: usize = 1024;
const LINK_READ: usize = 64 * 1024;
const KIB: u32 = 1024;
/// The smallest window that can be asked for.
const LEAST: u32 = 65_535;

/// What is varied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Varied {
    /// The window of a stream of the waypoint's tunnels.
    TunnelWindow,
    /// The longest frame that a waypoint may send its callers.
    TunnelFrame,
    /// The window of a request of HTTP/2 inside of a tunnel; a connection has four times as much.
    Window,
    /// The longest frame of HTTP/2 inside of a tunnel that a waypoint takes.
    Frame,
}

impl Varied {
    const ALL: [Self; 4] = [Self::TunnelWindow, Self::TunnelFrame, Self::Window, Self::Frame];

    fn sizes(self) -> &'static [u32] {
        match self {
            Self::TunnelWindow | Self::Window => &[LEAST, 256 * KIB, 1024 * KIB, 4096 * KIB],
            Self::TunnelFrame => &[16 * KIB, 64 * KIB, 256 * KIB, 1024 * KIB],
            Self::Frame => &[16 * KIB, 64 * KIB, 256 * KIB],
        }
    }

    /// What it is where nobody says anything.
    fn usual(self) -> u32 {
        match self {
            Self::TunnelWindow => 1024 * KIB,
            Self::TunnelFrame => Settings::client().frame_size,
            Self::Window => Http2::default().stream_window,
            Self::Frame => Http2::default().frame_size,
        }
    }

    fn is_window(self) -> bool {
        matches!(self, Self::TunnelWindow | Self::Window)
    }

    /// In tunnels, bodies of HTTP/1.1 have no other window and no other frames.
    fn version(self) -> Version {
        match self {
            Self::TunnelWindow | Self::TunnelFrame => Version::One,
            Self::Window | Self::Frame => Version::Two,
        }
    }

    fn tune(self, size: u32, config: &mut Config) {
        match self {
            Self::TunnelWindow => config.stream_window = size,
            Self::TunnelFrame => {}
            Self::Window => {
                config.http2.stream_window = size;
                config.http2.connection_window = size.saturating_mul(4);
            }
            Self::Frame => config.http2.frame_size = size,
        }
    }

    fn of_callers(self, size: u32) -> Settings {
        match self {
            Self::TunnelFrame => Settings {
                frame_size: size,
                ..Settings::client()
            },
            _ => Settings::client(),
        }
    }
}

impl fmt::Display for Varied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TunnelWindow => "window of a tunnel's stream",
            Self::TunnelFrame => "frame of a tunnel",
            Self::Window => "window of HTTP/2",
            Self::Frame => "frame of HTTP/2",
        })
    }
}

/// What was measured with one size.
#[derive(Debug, Clone)]
pub struct Measured {
    varied: Varied,
    size: u32,
    /// Bytes a second, the middle of some turns; so are the others.
    pub speed: f64,
    /// CPU seconds of the waypoint for a GB, the small requests' among them.
    pub cpu: f64,
    /// Times of the small requests, microseconds.
    pub p50: f64,
    /// That which one of a hundred exceeds.
    pub p99: f64,
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            varied,
            size,
            speed,
            cpu,
            p50,
            p99,
        } = self;
        let usual = if *size == varied.usual() { " (usual)" } else { "" };
        write!(
            f,
            "{varied} of {} KiB{usual}: {:.0} MB/s, CPU {cpu:.2} s/GB; beside it p50 {p50:.0} µs, p99 {p99:.0} µs",
            size.div_ceil(KIB),
            speed / 1e6
        )
    }
}

/// A waypoint with one size, and what one turn of it after the other brought: speed, CPU, p50 and p99.
struct Case {
    size: u32,
    device: Device,
    load: Load,
    turns: [Vec<f64>; 4],
}

impl Case {
    fn open(site: &Site, clients: &Runtime, endpoint: SocketAddr, varied: Varied, size: u32) -> Self {
        let version = varied.version();
        let fronting = Fronting::tuned(&site.ca, endpoint, version, |config| varied.tune(size, config));
        fronting.apply(untimed());
        let device = Device {
            name: "waypoint",
            reached: Reached::Tunnel(fronting.address),
            cpu: Cpu::Threads(THREADS),
            _lives: Lives::Fronting(Box::new(fronting)),
        };
        let load = Load::open_with(clients, site, &device, version, (2, 1), &varied.of_callers(size));
        Self {
            size,
            device,
            load,
            turns: Default::default(),
        }
    }

    fn turn(&mut self, clients: &Runtime, bytes: u64) -> [f64; 4] {
        let before = self.device.cpu();
        let (took, mut times) = self.load.beside(clients, bytes);
        let cpu = self.device.cpu().saturating_sub(before).as_secs_f64();
        times.sort_unstable();
        let at = |share: usize| f64::from(times[(times.len() * share / 100).min(times.len() - 1)]);
        let bytes = bytes as f64;
        [bytes / took.as_secs_f64(), cpu / (bytes / 1e9), at(50), at(99)]
    }
}

/// Measures every size in turns, by so many of each.
pub fn measure(rounds: usize, mut each: impl FnMut(&Measured)) {
    let (site, clients, links) = (Site::start(), threads("client"), threads("link"));
    let far = links.block_on(async {
        let listener = listen().await;
        let far = address(&listener);
        drop(links.spawn(link(listener, site.tunnel)));
        far
    });
    for varied in Varied::ALL {
        let endpoint = if varied.is_window() { far } else { site.tunnel };
        let sizes = varied.sizes().iter();
        let mut cases: Vec<Case> = sizes
            .map(|size| Case::open(&site, &clients, endpoint, varied, *size))
            .collect();
        // The first round opens connections upstream.
        for round in 0..=rounds {
            for case in &mut cases {
                let turn = case.turn(&clients, if round == 0 { BODY / 16 } else { BODY });
                for (all, one) in case.turns.iter_mut().zip(turn).filter(|_| round > 0) {
                    all.push(one);
                }
            }
        }
        for case in cases {
            let [speed, cpu, p50, p99] = case.turns.map(|mut all| {
                all.sort_by(f64::total_cmp);
                all[all.len() / 2]
            });
            each(&Measured {
                varied,
                size: case.size,
                speed,
                cpu,
                p50,
                p99,
            });
        }
    }
}

/// Takes connections that go on, later, to another address.
async fn link(listener: TcpListener, to: SocketAddr) {
    while let Ok((near, _)) = listener.accept().await {
        drop(tasks::spawn("bench-link", async move {
            let Ok(far) = TcpStream::connect(to).await else {
                return;
            };
            let _ = (near.set_nodelay(true), far.set_nodelay(true));
            let ((near_reads, near_writes), (far_reads, far_writes)) = (near.into_split(), far.into_split());
            tokio::join!(late(near_reads, far_writes), late(far_reads, near_writes));
        }));
    }
}

/// Copies what is read, and writes it some time after.
async fn late(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Bytes)>(LINK_READS);
    let reading = async move {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(LINK_READ);
            let read = from.read_buf(&mut buffer).await;
            let moved = (Instant::now() + DELAY, buffer.split().freeze());
            if !matches!(read, Ok(1..)) || sender.send(moved).await.is_err() {
                return;
            }
        }
    };
    let writing = async move {
        while let Some((due, bytes)) = receiver.recv().await {
            sleep_until(due).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(reading, writing);
}
