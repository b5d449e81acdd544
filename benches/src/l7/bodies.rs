//! A large body: how fast it passes, and what it takes of memory meanwhile.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tulle_model::MeshUpdate;
use tulle_model::route::{Route, Timeouts};

use super::waypoint::{Fronting, rule};
use super::{Cpu, Device, Lives, Load, Reached, Site, Version, threads};
use crate::resident;

/// Pause between two looks at the memory.
const PAUSE: Duration = Duration::from_millis(2);

/// What was measured of one proxy.
#[derive(Debug, Clone)]
pub struct Measured {
    /// What clients speak.
    pub version: Version,
    /// The proxy.
    pub who: &'static str,
    /// Bytes a second, the middle of some turns.
    pub speed: f64,
    /// Memory of the whole process beyond what it had before, at most: the client's and the server's is in it.
    pub grown: u64,
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            version,
            who,
            speed,
            grown,
        } = self;
        let grown = *grown as f64 / f64::from(1 << 20);
        write!(
            f,
            "{version} body {who:<9} {:.0} MB/s, at most {grown:.1} MiB more",
            speed / 1e6
        )
    }
}

/// Lets a body of so many bytes pass, in turns of every proxy.
pub fn measure(bytes: u64, rounds: usize, mut each: impl FnMut(&Measured)) {
    let (site, clients) = (Site::start(), threads("client"));
    for version in [Version::One, Version::Two] {
        let devices = [
            Device::direct(&site),
            Device::bare(&site, version),
            unhurried(&site, version),
        ];
        let mut loads: Vec<Load> = devices
            .iter()
            .map(|device| Load::open(&clients, &site, device, version, 1))
            .collect();
        let mut found = vec![(Vec::new(), 0); devices.len()];
        // The first round opens connections upstream, and fills what is kept for later.
        for round in 0..=rounds {
            for (load, (speeds, grown)) in loads.iter_mut().zip(&mut found) {
                let watch = Watch::start();
                let took = load.bulk(&clients, if round == 0 { bytes / 16 } else { bytes });
                let most = watch.end();
                if round > 0 {
                    speeds.push(bytes as f64 / took.as_secs_f64());
                    *grown = most.max(*grown);
                }
            }
        }
        for (device, (mut speeds, grown)) in devices.iter().zip(found) {
            speeds.sort_by(f64::total_cmp);
            let who = device.name;
            let speed = speeds[speeds.len() / 2];
            each(&Measured {
                version,
                who,
                speed,
                grown,
            });
        }
    }
}

/// A waypoint whose route has no time for an answer to be whole in.
fn unhurried(site: &Site, version: Version) -> Device {
    let fronting = Fronting::start(&site.ca, site.tunnel, version);
    fronting.apply(untimed());
    Device {
        name: "waypoint",
        reached: Reached::Tunnel(fronting.address),
        cpu: Cpu::Nobody,
        _lives: Lives::Fronting(Box::new(fronting)),
    }
}

/// The route of the benchmark, without its time.
pub(super) fn untimed() -> Vec<MeshUpdate> {
    let route = Route {
        timeouts: Timeouts::default(),
        ..rule()
    };
    vec![MeshUpdate::Route(Arc::new(route))]
}

/// Looks at the memory of this process until it is told to end.
struct Watch {
    over: Arc<AtomicBool>,
    most: Arc<AtomicU64>,
    before: u64,
    thread: std::thread::JoinHandle<()>,
}

impl Watch {
    fn start() -> Self {
        let (over, most) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ends, highest) = (Arc::clone(&over), Arc::clone(&most));
        let before = resident();
        let thread = std::thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                highest.fetch_max(resident(), Ordering::Relaxed);
                #[allow(clippy::disallowed_methods, reason = "no task waits here")]
                std::thread::sleep(PAUSE);
            }
        });
        Self {
            over,
            most,
            before,
            thread,
        }
    }

    fn end(self) -> u64 {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.thread.join();
        self.most.load(Ordering::Relaxed).saturating_sub(self.before)
    }
}
