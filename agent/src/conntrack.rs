//! Conntrack entries of a namespace: which to delete (pure), and deleting exactly those.

use std::io;

use tulle_linux::NetNs;

use crate::netlink::{Attributes, Connection, Message, NESTED, NETLINK_NETFILTER, attribute, attributes};
use crate::rules::plan::{CAPTURED_MARK, MARK_MASK, TRANSPARENT_MARK};

const SUBSYSTEM_CONNTRACK: u16 = 1 << 8;
const MESSAGE_GET: u16 = SUBSYSTEM_CONNTRACK | 1;
const MESSAGE_DELETE: u16 = SUBSYSTEM_CONNTRACK | 2;
/// `struct nfgenmsg`: any address family, version 0, no resource.
const ANY_FAMILY: [u8; 4] = [0; 4];

const CTA_TUPLE_ORIGINAL: u16 = 1;
const CTA_MARK: u16 = 8;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_PROTOCOL: u16 = 2;
const CTA_PROTOCOL_NUMBER: u16 = 1;
const CTA_PROTOCOL_DESTINATION_PORT: u16 = 3;

const IPPROTO_UDP: u8 = 17;
const DNS: u16 = 53;

/// Which entries to delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Select {
    /// Everything that was redirected to the proxy.
    Captured,
    /// UDP that was redirected to the proxy.
    CapturedUdp,
    /// The proxy's connections to the application.
    Transparent,
    /// UDP requests to port 53, of anyone.
    Dns,
}

impl Select {
    fn takes(self, entry: &Entry<'_>) -> bool {
        let marked = |mark| entry.mark & MARK_MASK == mark;
        match self {
            Self::Captured => marked(CAPTURED_MARK),
            Self::CapturedUdp => marked(CAPTURED_MARK) && entry.protocol == IPPROTO_UDP,
            Self::Transparent => marked(TRANSPARENT_MARK),
            Self::Dns => entry.protocol == IPPROTO_UDP && entry.destination_port == DNS,
        }
    }
}

/// One entry as the kernel lists it.
#[derive(Debug, PartialEq, Eq)]
struct Entry<'a> {
    family: u8,
    mark: u32,
    protocol: u8,
    destination_port: u16,
    /// What names the entry when it is deleted, as it was listed.
    tuple: &'a [u8],
    id: Option<&'a [u8]>,
    zone: Option<&'a [u8]>,
}

impl<'a> Entry<'a> {
    fn parse(body: &'a [u8]) -> Option<Self> {
        let (&[family, ..], listed) = body.split_first_chunk::<4>()?;
        let tuple = attribute(listed, CTA_TUPLE_ORIGINAL)?;
        let protocol = attribute(tuple, CTA_TUPLE_PROTOCOL)?;
        let mut entry = Entry {
            family,
            mark: 0,
            protocol: 0,
            destination_port: 0,
            tuple,
            id: None,
            zone: None,
        };
        for (kind, payload) in attributes(listed) {
            match kind {
                CTA_MARK => entry.mark = u32::from_be_bytes(payload.try_into().ok()?),
                CTA_ID => entry.id = Some(payload),
                CTA_ZONE => entry.zone = Some(payload),
                _ => {}
            }
        }
        entry.protocol = *attribute(protocol, CTA_PROTOCOL_NUMBER)?.first()?;
        if let Some(port) = attribute(protocol, CTA_PROTOCOL_DESTINATION_PORT) {
            entry.destination_port = u16::from_be_bytes(port.try_into().ok()?);
        }
        Some(entry)
    }

    /// The id makes sure that no younger entry with the same addresses is taken for this one.
    fn deletion(&self) -> Message {
        let mut named = Attributes::new().bytes(CTA_TUPLE_ORIGINAL | NESTED, self.tuple);
        if let Some(id) = self.id {
            named = named.bytes(CTA_ID, id);
        }
        if let Some(zone) = self.zone {
            named = named.bytes(CTA_ZONE, zone);
        }
        Message::new(MESSAGE_DELETE, &[self.family, 0, 0, 0]).with(named)
    }
}

/// Deletes what any of `selected` takes; returns how many entries went.
///
/// # Errors
/// What the kernel answers. An entry that ended meanwhile is no error.
pub async fn delete(netns: &NetNs, selected: &'static [Select]) -> io::Result<usize> {
    netns.run_async(move || delete_here(selected)).await?
}

/// Asks for the listing and forgets it: the kernel then has conntrack, and its settings, in the namespace.
///
/// # Errors
/// When the kernel has no conntrack.
pub fn wake_here() -> io::Result<()> {
    Connection::open(NETLINK_NETFILTER)?.dump(&Message::new(MESSAGE_GET, &ANY_FAMILY), |_| ())
}

fn delete_here(selected: &[Select]) -> io::Result<usize> {
    let mut connection = Connection::open(NETLINK_NETFILTER)?;
    let mut deletions = Vec::new();
    connection.dump(&Message::new(MESSAGE_GET, &ANY_FAMILY), |body| {
        let entry = Entry::parse(body).filter(|entry| selected.iter().any(|select| select.takes(entry)));
        deletions.extend(entry.map(|entry| entry.deletion()));
    })?;
    let mut deleted = 0;
    for deletion in &deletions {
        match connection.request(deletion) {
            Ok(()) => deleted += 1,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(deleted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(mark: u32, protocol: u8, destination_port: u16) -> Entry<'static> {
        Entry {
            family: 2,
            mark,
            protocol,
            destination_port,
            tuple: &[],
            id: None,
            zone: None,
        }
    }

    #[test]
    fn marks_are_compared_in_our_bits_only() {
        assert!(Select::Captured.takes(&entry(0xabc0_0222, 6, 80)));
        assert!(!Select::Captured.takes(&entry(0x0000_0322, 6, 80)));
        assert!(Select::Transparent.takes(&entry(0x0000_0111, 6, 80)));
    }

    #[test]
    fn udp_is_told_from_tcp_and_dns_from_other_udp() {
        assert!(Select::CapturedUdp.takes(&entry(0x222, 17, 443)));
        assert!(!Select::CapturedUdp.takes(&entry(0x222, 6, 443)));
        assert!(Select::Dns.takes(&entry(0, 17, 53)));
        assert!(!Select::Dns.takes(&entry(0, 17, 5353)));
        assert!(!Select::Dns.takes(&entry(0, 6, 53)));
    }

    #[test]
    fn a_cut_entry_is_no_entry() {
        assert_eq!(Entry::parse(&[2, 0, 0]), None);
        assert_eq!(Entry::parse(&[2, 0, 0, 0, 8, 0, 1, 128, 0, 0, 0, 0]), None);
    }
}
