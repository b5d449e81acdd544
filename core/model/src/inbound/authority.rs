//! The `:authority` of CONNECT, parsed strictly: it comes from a peer and decides where bytes go.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use crate::name::Str;
use crate::network::canonical;

/// The longest authority: a host name of 253 characters, a colon and five digits.
pub const AUTHORITY_LENGTH_MAX: usize = HOSTNAME_LENGTH_MAX + 6;
const HOSTNAME_LENGTH_MAX: usize = 253;
const LABEL_LENGTH_MAX: usize = 63;
const PORT_LENGTH_MAX: usize = 5;

/// What a tunnel asks for. A port is always given and never zero.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Authority {
    /// An address; never an IPv4-mapped one.
    Ip(SocketAddr),
    /// A host name, in lower case, and a service port.
    Host {
        /// The name.
        hostname: Str,
        /// The port.
        port: u16,
    },
}

/// Why a text is no authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAuthority {
    /// Longer than any authority can be.
    #[error("the authority is longer than {AUTHORITY_LENGTH_MAX} bytes")]
    TooLong,
    /// No port, or one that is not a plain number from 1 to 65535.
    #[error("the authority has no port from 1 to 65535")]
    Port,
    /// Neither an IPv4 address, nor an IPv6 address in brackets, nor a host name.
    #[error("the authority's host is no address and no host name")]
    Host,
}

impl Authority {
    /// The port that was asked for.
    #[must_use]
    pub fn port(&self) -> u16 {
        match self {
            Self::Ip(address) => address.port(),
            Self::Host { port, .. } => *port,
        }
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Host { hostname, port } => write!(f, "{hostname}:{port}"),
        }
    }
}

impl FromStr for Authority {
    type Err = InvalidAuthority;

    /// `a.b.c.d:port`, `[v6]:port` or `host:port`: no user, no zone, no trailing dot, nothing around it.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > AUTHORITY_LENGTH_MAX {
            return Err(InvalidAuthority::TooLong);
        }
        let (host, port) = text.rsplit_once(':').ok_or(InvalidAuthority::Port)?;
        let port = parse_port(port).ok_or(InvalidAuthority::Port)?;
        if let Some(address) = parse_address(host) {
            return Ok(Self::Ip(canonical(SocketAddr::new(address, port))));
        }
        if !is_hostname(host) {
            return Err(InvalidAuthority::Host);
        }
        Ok(Self::Host {
            hostname: host.to_ascii_lowercase().into(),
            port,
        })
    }
}

/// One to five digits without a leading zero; the library's parser would take a sign too.
fn parse_port(text: &str) -> Option<u16> {
    let plain = text.len() <= PORT_LENGTH_MAX
        && text.bytes().all(|byte| byte.is_ascii_digit())
        && !text.starts_with('0');
    if plain { text.parse().ok() } else { None }
}

fn parse_address(host: &str) -> Option<IpAddr> {
    let bracketed = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    match bracketed {
        Some(inner) => inner.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None => host.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
    }
}

/// Labels of letters, digits, hyphens and underscores; the last is not a number, decimal or hexadecimal, so no
/// odd form of an IPv4 address passes for a name.
fn is_hostname(host: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= LABEL_LENGTH_MAX
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = host.rsplit('.').next().unwrap_or_default();
    let is_number =
        last.bytes().all(|byte| byte.is_ascii_digit()) || last.to_ascii_lowercase().starts_with("0x");
    host.len() <= HOSTNAME_LENGTH_MAX && host.split('.').all(label) && !is_number
}
