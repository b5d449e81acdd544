//! Ports that are listened on.

use serde::Serialize;

/// Listeners of each pod. Together they are the *own ports* that guard against loops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ports {
    /// Captured outbound TCP.
    pub outbound: u16,
    /// Captured inbound plaintext.
    pub inbound_plain: u16,
    /// Tunnels.
    pub inbound_hbone: u16,
    /// SOCKS5 on loopback, where it is on.
    pub socks5: Option<u16>,
}

impl Ports {
    /// What every peer and every packet rule expects.
    pub const DEFAULT: Self = Self {
        outbound: 15001,
        inbound_plain: 15006,
        inbound_hbone: tulle_model::gateway::HBONE_PORT,
        socks5: None,
    };

    /// Where SOCKS5 is listened for, if it is.
    pub const SOCKS5: u16 = 15080;

    /// Whether a connection to this port would come back to the proxy.
    #[must_use]
    pub fn is_own(&self, port: u16) -> bool {
        let captured = [self.outbound, self.inbound_plain, self.inbound_hbone];
        captured.contains(&port) || self.socks5 == Some(port)
    }
}

/// Listeners of the process, in its own network namespace.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessPorts {
    /// Admin, on loopback.
    pub admin: u16,
    /// Metrics.
    pub stats: u16,
    /// Readiness.
    pub readiness: u16,
}
