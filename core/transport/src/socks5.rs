//! SOCKS5 (RFC 1928) as far as a proxy of TCP needs it: no authentication, CONNECT, by address or by name.
//!
//! The parsers are pure and take what has arrived so far; `Incomplete` says how many bytes there must be at least
//! before it makes sense to ask again. None of them ever asks for more than [`GREETING_BYTES_MAX`] or
//! [`REQUEST_BYTES_MAX`].

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Version, number of methods, and as many methods as a byte can count.
pub const GREETING_BYTES_MAX: usize = 2 + 255;

/// Version, command, reserved, kind of address, and the longest: a name with its length and a port.
pub const REQUEST_BYTES_MAX: usize = 4 + 1 + 255 + 2;

const VERSION: u8 = 5;
const NO_AUTHENTICATION: u8 = 0;
const NO_METHOD: u8 = 0xff;
const CONNECT: u8 = 1;
const KIND_IPV4: u8 = 1;
const KIND_NAME: u8 = 3;
const KIND_IPV6: u8 = 4;

/// Where a client wants to go.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// An address; never an IPv4-mapped one.
    Address(SocketAddr),
    /// A host name and a port.
    Name(String, u16),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
        }
    }
}

/// Why bytes are no greeting or request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// More has to arrive: at least so many bytes in all.
    #[error("at least {0} bytes are needed")]
    Incomplete(usize),
    /// Another version.
    #[error("the client does not speak SOCKS version 5")]
    Version,
    /// Every method of the client asks for credentials.
    #[error("the client does not offer to go without authentication")]
    Method,
    /// BIND or UDP.
    #[error("the client asks for another command than CONNECT")]
    Command,
    /// No IPv4 or IPv6 address and no name, or a name that is none.
    #[error("the address is of an unknown kind, or the name is none")]
    Address,
}

/// What a client is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// Connected.
    Succeeded,
    /// Something here failed.
    Failure,
    /// Policy refused.
    NotAllowed,
    /// There is no way.
    HostUnreachable,
    /// Nobody listens.
    Refused,
    /// Not CONNECT.
    CommandNotSupported,
    /// No such kind of address.
    AddressNotSupported,
}

impl Reply {
    fn code(self) -> u8 {
        match self {
            Self::Succeeded => 0,
            Self::Failure => 1,
            Self::NotAllowed => 2,
            Self::HostUnreachable => 4,
            Self::Refused => 5,
            Self::CommandNotSupported => 7,
            Self::AddressNotSupported => 8,
        }
    }

    /// The reply as bytes. Which address the proxy used is none of the client's business: it says 0.0.0.0:0.
    #[must_use]
    pub fn encode(self) -> [u8; 10] {
        [VERSION, self.code(), 0, KIND_IPV4, 0, 0, 0, 0, 0, 0]
    }
}

impl Malformed {
    /// What a client is answered whose request was read.
    #[must_use]
    pub fn reply(self) -> Reply {
        match self {
            Self::Command => Reply::CommandNotSupported,
            Self::Address => Reply::AddressNotSupported,
            Self::Incomplete(_) | Self::Version | Self::Method => Reply::Failure,
        }
    }
}

/// The answer to a greeting: go on without authentication, or nothing fits.
#[must_use]
pub fn method(accepted: bool) -> [u8; 2] {
    [VERSION, if accepted { NO_AUTHENTICATION } else { NO_METHOD }]
}

/// Reads a greeting; how many bytes it took.
///
/// # Errors
/// When it is none, or not whole.
pub fn greeting(bytes: &[u8]) -> Result<usize, Malformed> {
    let [version, count] = *take(bytes, 0)?;
    if version != VERSION {
        return Err(Malformed::Version);
    }
    let end = 2 + usize::from(count);
    let methods = bytes.get(2..end).ok_or(Malformed::Incomplete(end))?;
    if methods.contains(&NO_AUTHENTICATION) {
        Ok(end)
    } else {
        Err(Malformed::Method)
    }
}

/// Reads a request; where it leads, and how many bytes it took.
///
/// # Errors
/// When it is none, or not whole.
pub fn request(bytes: &[u8]) -> Result<(Target, usize), Malformed> {
    let [version, command, _reserved, kind] = *take(bytes, 0)?;
    if version != VERSION {
        return Err(Malformed::Version);
    }
    if command != CONNECT {
        return Err(Malformed::Command);
    }
    match kind {
        KIND_IPV4 => {
            let address: [u8; 4] = *take(bytes, 4)?;
            address_with_port(bytes, Ipv4Addr::from(address).into(), 8)
        }
        KIND_IPV6 => {
            let address: [u8; 16] = *take(bytes, 4)?;
            address_with_port(bytes, Ipv6Addr::from(address).into(), 20)
        }
        KIND_NAME => {
            let [length] = *take(bytes, 4)?;
            let end = 5 + usize::from(length);
            let name = bytes.get(5..end).ok_or(Malformed::Incomplete(end + 2))?;
            let port = u16::from_be_bytes(*take(bytes, end)?);
            Ok((named(name, port)?, end + 2))
        }
        _ => Err(Malformed::Address),
    }
}

fn take<const N: usize>(bytes: &[u8], at: usize) -> Result<&[u8; N], Malformed> {
    let part = bytes.get(at..).and_then(|rest| rest.first_chunk());
    part.ok_or(Malformed::Incomplete(at + N))
}

fn address_with_port(bytes: &[u8], address: IpAddr, at: usize) -> Result<(Target, usize), Malformed> {
    let port = u16::from_be_bytes(*take(bytes, at)?);
    let address = SocketAddr::new(address.to_canonical(), port);
    Ok((Target::Address(address), at + 2))
}

/// Some clients write an address as a name; it is an address all the same.
fn named(name: &[u8], port: u16) -> Result<Target, Malformed> {
    let printable = !name.is_empty() && name.iter().all(u8::is_ascii_graphic);
    let name = std::str::from_utf8(name)
        .ok()
        .filter(|_| printable)
        .ok_or(Malformed::Address)?;
    Ok(match name.parse::<IpAddr>() {
        Ok(address) => Target::Address(SocketAddr::new(address.to_canonical(), port)),
        Err(_) => Target::Name(name.to_ascii_lowercase(), port),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(kind: u8, address: &[u8]) -> Vec<u8> {
        [&[5, 1, 0, kind], address, &[0x1f, 0x90]].concat()
    }

    #[test]
    fn a_greeting_without_authentication_is_taken() {
        assert_eq!(greeting(&[5, 1, 0]), Ok(3));
        assert_eq!(greeting(&[5, 2, 2, 0, 9]), Ok(4), "what follows is the request");
        assert_eq!(greeting(&[5, 1, 2]), Err(Malformed::Method));
        assert_eq!(greeting(&[5, 0]), Err(Malformed::Method));
        assert_eq!(greeting(&[4, 1, 0]), Err(Malformed::Version));
    }

    #[test]
    fn what_is_not_whole_says_how_much_it_needs() {
        assert_eq!(greeting(&[5]), Err(Malformed::Incomplete(2)));
        assert_eq!(greeting(&[5, 3, 1]), Err(Malformed::Incomplete(5)));
        assert_eq!(request(&[5, 1, 0]), Err(Malformed::Incomplete(4)));
        assert_eq!(request(&[5, 1, 0, 3, 4]), Err(Malformed::Incomplete(11)));
        assert_eq!(
            request(&[5, 1, 0, 1, 10, 0, 0, 1]),
            Err(Malformed::Incomplete(10))
        );
    }

    #[test]
    fn every_kind_of_address_is_read() {
        let v6: Ipv6Addr = "fd00::1".parse().unwrap();
        for (bytes, expected) in [
            (asked(1, &[10, 0, 0, 1]), "10.0.0.1:8080"),
            (asked(4, &v6.octets()), "[fd00::1]:8080"),
            (
                asked(4, &"::ffff:10.0.0.1".parse::<Ipv6Addr>().unwrap().octets()),
                "10.0.0.1:8080",
            ),
            (asked(3, b"\x07Db.Shop"), "db.shop:8080"),
            (asked(3, b"\x0810.0.0.1"), "10.0.0.1:8080"),
        ] {
            let (target, length) = request(&bytes).unwrap();
            assert_eq!((target.to_string().as_str(), length), (expected, bytes.len()));
        }
        let literal = request(&asked(3, b"\x0810.0.0.1")).unwrap().0;
        assert!(matches!(literal, Target::Address(_)));
    }

    #[test]
    fn other_commands_and_kinds_are_refused_with_their_codes() {
        assert_eq!(request(&[5, 2, 0, 1]).unwrap_err().reply().encode()[1], 7);
        assert_eq!(request(&[5, 3, 0, 1]).unwrap_err(), Malformed::Command);
        assert_eq!(request(&[5, 1, 0, 9]).unwrap_err().reply().encode()[1], 8);
        assert_eq!(request(&asked(3, b"\x00")).unwrap_err(), Malformed::Address);
        assert_eq!(request(&asked(3, b"\x03a b")).unwrap_err(), Malformed::Address);
    }
}
