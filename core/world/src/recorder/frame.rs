//! What a frame of the wire is, as far as it can be told without keeping anything of those before it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of an Ethernet header without tags.
const ETHERNET: usize = 14;
const TCP: u8 = 6;

/// Whether a frame is TCP of one of these addresses, and neither of its ports is `but`. What is cut off so that its ports
/// cannot be seen counts.
pub(super) fn is_stream(frame: &[u8], of: &[IpAddr], but: u16) -> bool {
    let Some(packet) = Packet::parse(frame) else {
        return false;
    };
    let concerned = of.contains(&packet.from) || of.contains(&packet.to);
    let spared = packet
        .ports
        .is_some_and(|ports| ports.map(u16::from_be_bytes).contains(&but));
    concerned && !spared
}

/// A packet of TCP.
struct Packet {
    from: IpAddr,
    to: IpAddr,
    /// Not in a fragment after the first.
    ports: Option<[[u8; 2]; 2]>,
}

impl Packet {
    fn parse(frame: &[u8]) -> Option<Self> {
        let packet = frame.get(ETHERNET..)?;
        match frame.get(12..ETHERNET)? {
            [0x08, 0x00] => Self::v4(packet),
            [0x86, 0xdd] => Self::v6(packet),
            _ => None,
        }
    }

    fn v4(packet: &[u8]) -> Option<Self> {
        let header = usize::from(packet.first()? & 0x0f) * 4;
        if *packet.get(9)? != TCP {
            return None;
        }
        let address = |at: usize| {
            let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
            Some(IpAddr::from(Ipv4Addr::from(octets)))
        };
        let offset = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x1fff;
        Some(Self {
            from: address(12)?,
            to: address(16)?,
            ports: ports(packet, header).filter(|_| offset == 0),
        })
    }

    /// With extension headers it is nothing that a socket of TCP sends here.
    fn v6(packet: &[u8]) -> Option<Self> {
        if *packet.get(6)? != TCP {
            return None;
        }
        let address = |at: usize| {
            let octets: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
            Some(IpAddr::from(Ipv6Addr::from(octets)))
        };
        Some(Self {
            from: address(8)?,
            to: address(24)?,
            ports: ports(packet, 40),
        })
    }
}

fn ports(packet: &[u8], header: usize) -> Option<[[u8; 2]; 2]> {
    match *packet.get(header..header + 4)? {
        [a, b, c, d] => Some([[a, b], [c, d]]),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: Ipv4Addr = Ipv4Addr::new(10, 11, 1, 2);
    const DB: Ipv4Addr = Ipv4Addr::new(10, 11, 2, 2);

    fn v4(protocol: u8, offset: u8, ports: [u16; 2]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00]);
        frame.extend([0x45, 0, 0, 40, 0, 0, 0, offset, 64, protocol, 0, 0]);
        frame.extend(WEB.octets());
        frame.extend(DB.octets());
        frame.extend(ports.map(u16::to_be_bytes).concat());
        frame
    }

    fn v6(ports: [u16; 2]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, TCP, 64]);
        frame.extend(Ipv6Addr::LOCALHOST.octets());
        frame.extend(Ipv6Addr::UNSPECIFIED.octets());
        frame.extend(ports.map(u16::to_be_bytes).concat());
        frame
    }

    #[test]
    fn a_stream_is_tcp_of_an_address_by_other_ports() {
        let of = [IpAddr::V4(WEB), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        for (frame, expected) in [
            (v4(TCP, 0, [40_000, 8080]), true),
            (v4(TCP, 0, [40_000, 15_008]), false),
            (v4(TCP, 0, [15_008, 40_000]), false),
            (v4(17, 0, [40_000, 53]), false),
            (v4(TCP, 1, [40_000, 15_008]), true),
            (v6([40_000, 8080]), true),
            (v6([40_000, 15_008]), false),
        ] {
            assert_eq!(is_stream(&frame, &of, 15_008), expected, "{frame:?}");
        }
        assert!(!is_stream(&v4(TCP, 0, [40_000, 8080]), &[], 15_008));
    }

    #[test]
    fn no_end_of_a_frame_is_read_beyond() {
        for whole in [v4(TCP, 0, [40_000, 8080]), v6([40_000, 8080])] {
            for length in 0..whole.len() {
                is_stream(&whole[..length], &[IpAddr::V4(WEB)], 15_008);
            }
        }
    }
}
