//! What it costs that connections to endpoints are never shared between callers: the same load by one identity, and by
//! many.

use std::fmt;
use std::time::Duration;

use super::{Device, Figures, Load, Site, Version, threads};

/// Connections that ask.
const CONNECTIONS: usize = 64;
/// Callers that they are of.
const CALLERS: [usize; 2] = [1, 16];

/// What was measured.
#[derive(Debug, Clone)]
pub struct Measured {
    /// What callers and endpoint speak.
    pub version: Version,
    /// Identities that asked.
    pub callers: usize,
    /// Times and CPU.
    pub figures: Figures,
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "callers: {} by {} of {CONNECTIONS} connections: {:.0} req/s, CPU {:.3} s/1000, p50 {:.0} us, p99 {:.0} us",
            self.version,
            self.callers,
            self.figures.rate,
            self.figures.cpu,
            self.figures.p50,
            self.figures.p99
        )
    }
}

/// Measures each for this time.
pub fn measure(length: Duration, mut each: impl FnMut(&Measured)) {
    let (site, clients) = (Site::start(), threads("client"));
    for version in [Version::One, Version::Two] {
        for callers in CALLERS {
            let device = Device::waypoint(&site, version);
            let mut load = Load::open_by(&clients, &site, &device, version, (CONNECTIONS, callers));
            // The first requests open connections.
            load.full(&clients, &device, length / 4);
            let figures = load.full(&clients, &device, length);
            each(&Measured {
                version,
                callers,
                figures,
            });
        }
    }
}
