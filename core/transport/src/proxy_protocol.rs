//! PROXY protocol version 2: how an application behind an application tunnel learns who its client is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tulle_model::Identity;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const VERSION_2_PROXY: u8 = 0x21;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;
const IPV4_LENGTH: usize = 12;
const IPV6_LENGTH: usize = 36;

/// TLV of the client's identity.
pub const TLV_IDENTITY: u8 = 0xD0;
/// TLV of the service that was addressed.
pub const TLV_SERVICE: u8 = 0xD1;

/// Longest TLV value that is written or read.
const VALUE_LENGTH_MAX: usize = 2048;

/// What goes in front of the application's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The real client.
    pub source: SocketAddr,
    /// What the client addressed.
    pub destination: SocketAddr,
    /// Full `spiffe://` text of the client's identity, if it has one.
    pub identity: Option<String>,
    /// Fully qualified name of the service that was addressed, if known.
    pub service: Option<String>,
}

/// Why bytes are no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidHeader {
    /// More bytes are needed to tell.
    #[error("the header is not complete")]
    Incomplete,
    /// Not version 2, command PROXY.
    #[error("not a version 2 PROXY header")]
    NotProxy,
    /// Not TCP over IPv4 or IPv6.
    #[error("the address family is not TCP over IPv4 or IPv6")]
    Family,
    /// A TLV ends beyond the header, is repeated, too long or no text.
    #[error("a TLV is malformed")]
    Tlv,
}

impl Header {
    /// A header without TLVs.
    #[must_use]
    pub fn new(source: SocketAddr, destination: SocketAddr) -> Self {
        Self {
            source,
            destination,
            identity: None,
            service: None,
        }
    }

    /// Adds the client's identity.
    #[must_use]
    pub fn identity(mut self, identity: &Identity) -> Self {
        self.identity = Some(identity.to_string());
        self
    }

    /// Adds the service that was addressed.
    #[must_use]
    pub fn service(mut self, service: &str) -> Self {
        self.service = Some(service.to_owned());
        self
    }

    /// The bytes. Values too long for the header are left out; mixed families are written as IPv6.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(IPV6_LENGTH + 128);
        let family = match (
            self.source.ip().to_canonical(),
            self.destination.ip().to_canonical(),
        ) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                body.extend(source.octets());
                body.extend(destination.octets());
                TCP_OVER_IPV4
            }
            (source, destination) => {
                body.extend(as_ipv6(source).octets());
                body.extend(as_ipv6(destination).octets());
                TCP_OVER_IPV6
            }
        };
        body.extend(self.source.port().to_be_bytes());
        body.extend(self.destination.port().to_be_bytes());
        push_tlv(&mut body, TLV_IDENTITY, self.identity.as_deref());
        push_tlv(&mut body, TLV_SERVICE, self.service.as_deref());

        let length = u16::try_from(body.len()).expect("addresses and two bounded TLVs fit 16 bits");
        let mut bytes = Vec::with_capacity(SIGNATURE.len() + 4 + body.len());
        bytes.extend(SIGNATURE);
        bytes.extend([VERSION_2_PROXY, family]);
        bytes.extend(length.to_be_bytes());
        bytes.extend(body);
        bytes
    }

    /// Reads a header at the start of `bytes`; also returns how long it was.
    pub fn parse(bytes: &[u8]) -> Result<(Self, usize), InvalidHeader> {
        let known = bytes.len().min(SIGNATURE.len());
        if bytes[..known] != SIGNATURE[..known] {
            return Err(InvalidHeader::NotProxy);
        }
        let (fixed, rest) = bytes.split_at_checked(16).ok_or(InvalidHeader::Incomplete)?;
        if fixed[12] != VERSION_2_PROXY {
            return Err(InvalidHeader::NotProxy);
        }
        let length = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
        let body = rest.get(..length).ok_or(InvalidHeader::Incomplete)?;
        let (mut header, tlvs) = match fixed[13] {
            TCP_OVER_IPV4 => parse_ipv4(body)?,
            TCP_OVER_IPV6 => parse_ipv6(body)?,
            _ => return Err(InvalidHeader::Family),
        };
        header.read_tlvs(tlvs)?;
        Ok((header, 16 + length))
    }

    fn read_tlvs(&mut self, mut tlvs: &[u8]) -> Result<(), InvalidHeader> {
        while let [kind, high, low, rest @ ..] = tlvs {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            let (value, after) = rest.split_at_checked(length).ok_or(InvalidHeader::Tlv)?;
            let slot = match *kind {
                TLV_IDENTITY => Some(&mut self.identity),
                TLV_SERVICE => Some(&mut self.service),
                _ => None,
            };
            if let Some(slot) = slot {
                let text = std::str::from_utf8(value).map_err(|_| InvalidHeader::Tlv)?;
                if length > VALUE_LENGTH_MAX || slot.replace(text.to_owned()).is_some() {
                    return Err(InvalidHeader::Tlv);
                }
            }
            tlvs = after;
        }
        if tlvs.is_empty() {
            Ok(())
        } else {
            Err(InvalidHeader::Tlv)
        }
    }
}

fn as_ipv6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

fn push_tlv(body: &mut Vec<u8>, kind: u8, value: Option<&str>) {
    let Some(value) = value.filter(|value| value.len() <= VALUE_LENGTH_MAX) else {
        return;
    };
    let Ok(length) = u16::try_from(value.len()) else {
        return;
    };
    body.push(kind);
    body.extend(length.to_be_bytes());
    body.extend(value.as_bytes());
}

fn parse_ipv4(body: &[u8]) -> Result<(Header, &[u8]), InvalidHeader> {
    let (addresses, tlvs) = body
        .split_first_chunk::<IPV4_LENGTH>()
        .ok_or(InvalidHeader::Family)?;
    let [a, b, c, d, e, f, g, h, ports @ ..] = *addresses;
    let (source, destination) = (Ipv4Addr::new(a, b, c, d), Ipv4Addr::new(e, f, g, h));
    Ok((header(source.into(), destination.into(), ports), tlvs))
}

fn parse_ipv6(body: &[u8]) -> Result<(Header, &[u8]), InvalidHeader> {
    let (addresses, tlvs) = body
        .split_first_chunk::<IPV6_LENGTH>()
        .ok_or(InvalidHeader::Family)?;
    let (source, rest) = addresses.split_first_chunk::<16>().ok_or(InvalidHeader::Family)?;
    let (destination, rest) = rest.split_first_chunk::<16>().ok_or(InvalidHeader::Family)?;
    let ports = *rest.first_chunk::<4>().ok_or(InvalidHeader::Family)?;
    Ok((
        header(
            Ipv6Addr::from(*source).into(),
            Ipv6Addr::from(*destination).into(),
            ports,
        ),
        tlvs,
    ))
}

fn header(source: IpAddr, destination: IpAddr, [a, b, c, d]: [u8; 4]) -> Header {
    Header::new(
        SocketAddr::new(source, u16::from_be_bytes([a, b])),
        SocketAddr::new(destination, u16::from_be_bytes([c, d])),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_ipv4_header_is_these_bytes() {
        let header = Header::new("10.0.0.1:1".parse().unwrap(), "10.0.0.2:80".parse().unwrap());
        let identity = Identity::new("td", "n", "s");
        let bytes = header.identity(&identity).service("a.b").encode();
        let mut expect = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x29".to_vec();
        expect.extend(b"\x0a\0\0\x01\x0a\0\0\x02\0\x01\0\x50");
        expect.extend(b"\xd0\0\x14spiffe://td/ns/n/sa/s\xd1\0\x03a.b");
        expect[15] = 12 + 3 + 21 + 3 + 3;
        expect[30] = 21;
        assert_eq!(bytes, expect);
    }

    #[test]
    fn a_truncated_header_asks_for_more() {
        let bytes = Header::new("[::1]:1".parse().unwrap(), "[::2]:80".parse().unwrap())
            .service("a")
            .encode();
        for end in 0..bytes.len() {
            assert_eq!(
                Header::parse(&bytes[..end]),
                Err(InvalidHeader::Incomplete),
                "{end}"
            );
        }
        assert_eq!(Header::parse(&bytes).unwrap().1, bytes.len());
    }

    #[test]
    fn a_repeated_tlv_is_refused() {
        let mut bytes = Header::new("10.0.0.1:1".parse().unwrap(), "10.0.0.2:80".parse().unwrap()).encode();
        bytes.extend(b"\xd1\0\x01a\xd1\0\x01b");
        bytes[15] += 8;
        assert_eq!(Header::parse(&bytes), Err(InvalidHeader::Tlv));
    }

    #[test]
    fn other_versions_and_families_are_refused() {
        assert_eq!(Header::parse(b"GET / HTTP/1.1"), Err(InvalidHeader::NotProxy));
        let bytes = Header::new("10.0.0.1:1".parse().unwrap(), "10.0.0.2:80".parse().unwrap()).encode();
        let mut local = bytes.clone();
        local[12] = 0x20;
        assert_eq!(Header::parse(&local), Err(InvalidHeader::NotProxy));
        let mut udp = bytes;
        udp[13] = 0x12;
        assert_eq!(Header::parse(&udp), Err(InvalidHeader::Family));
    }

    proptest! {
        #[test]
        fn bytes_round_trip(
            v4: bool, a: [u8; 16], b: [u8; 16], ports: (u16, u16),
            identity in proptest::option::of("[a-z:/]{0,60}"), service in proptest::option::of("[a-z.]{0,60}"),
        ) {
            let ip = |bytes: [u8; 16]| if v4 {
                IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]])
            } else {
                IpAddr::V6(Ipv6Addr::from(bytes))
            };
            let (source, destination) = (ip(a), ip(b));
            prop_assume!(source.to_canonical() == source && destination.to_canonical() == destination);
            let given = Header {
                source: SocketAddr::new(source, ports.0),
                destination: SocketAddr::new(destination, ports.1),
                identity,
                service,
            };
            let bytes = given.encode();
            prop_assert_eq!(Header::parse(&bytes), Ok((given, bytes.len())));
        }

        #[test]
        fn any_bytes_are_survived(tail: Vec<u8>) {
            let mut bytes = SIGNATURE.to_vec();
            bytes.extend(tail);
            let _ = Header::parse(&bytes);
        }
    }
}
