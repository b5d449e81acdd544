//! Ranges of addresses: read from their written form, and merged so that none touches another.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A range of addresses of one family. Its written form is a network, `10.0.0.0/24`, or an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range {
    first: IpAddr,
    last: IpAddr,
}

/// Text that is no network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be an address and a prefix length, such as 10.0.0.0/24 or fd00::/64, with no bit set behind the prefix"
)]
pub struct InvalidRange;

impl FromStr for Range {
    type Err = InvalidRange;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let first: IpAddr = address.parse().map_err(|_| InvalidRange)?;
        let widest = if first.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            Some(prefix) => prefix.parse().map_err(|_| InvalidRange)?,
            None => widest,
        };
        // A range of everything would cut the node off.
        if !(1..=widest).contains(&prefix) {
            return Err(InvalidRange);
        }
        let last = last_of(first, prefix);
        // Bits behind the prefix are a slip of the pen.
        if first_of(first, prefix) == first {
            Ok(Self { first, last })
        } else {
            Err(InvalidRange)
        }
    }
}

impl From<IpAddr> for Range {
    fn from(address: IpAddr) -> Self {
        let address = address.to_canonical();
        Self {
            first: address,
            last: address,
        }
    }
}

impl Range {
    /// From one address to another, both in it.
    #[must_use]
    pub fn between(first: IpAddr, last: IpAddr) -> Option<Self> {
        let fits = first.is_ipv4() == last.is_ipv4() && first <= last;
        fits.then_some(Self { first, last })
    }

    /// Its first address.
    #[must_use]
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// Whether an address is in it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.first.is_ipv4() && (self.first..=self.last).contains(&address)
    }
}

fn first_of(network: IpAddr, prefix: u8) -> IpAddr {
    match network {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() & !host4(prefix)).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !host6(prefix)).into(),
    }
}

fn last_of(network: IpAddr, prefix: u8) -> IpAddr {
    match network {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() | host4(prefix)).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() | host6(prefix)).into(),
    }
}

/// The bits behind the prefix.
fn host4(prefix: u8) -> u32 {
    u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0)
}

fn host6(prefix: u8) -> u128 {
    u128::MAX.checked_shr(u32::from(prefix)).unwrap_or(0)
}

/// What a set of the kernel holds, as its elements list it: keys, and whether a range ends before them.
pub(super) fn of_elements(mut elements: Vec<(Vec<u8>, bool)>, intervals: bool) -> Vec<Range> {
    elements.sort();
    let mut ranges = Vec::new();
    let mut open: Option<IpAddr> = None;
    for (key, ends) in elements {
        let Some(address) = address_of(&key) else { continue };
        if !intervals {
            ranges.push(Range::from(address));
        } else if ends {
            let closed = open
                .take()
                .and_then(|first| Range::between(first, before(address)?));
            ranges.extend(closed);
        } else {
            open = Some(address);
        }
    }
    // A range that nothing ends reaches to the last address.
    ranges.extend(open.and_then(|first| Range::between(first, last_of(first, 0))));
    ranges
}

fn address_of(key: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(key).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(key).map(IpAddr::from)).ok()
}

fn before(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => Some(Ipv4Addr::from_bits(address.to_bits().checked_sub(1)?).into()),
        IpAddr::V6(address) => Some(Ipv6Addr::from_bits(address.to_bits().checked_sub(1)?).into()),
    }
}

/// First and last addresses, ascending; overlapping and adjacent ranges are one.
type Merged = (Vec<(Ipv4Addr, Ipv4Addr)>, Vec<(Ipv6Addr, Ipv6Addr)>);

/// The ranges by family, such as a set of the kernel takes them.
pub(super) fn merged(ranges: &[Range]) -> Merged {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for range in ranges {
        match (range.first, range.last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                v4.push((u128::from(first.to_bits()), u128::from(last.to_bits())));
            }
            (IpAddr::V6(first), IpAddr::V6(last)) => v6.push((first.to_bits(), last.to_bits())),
            _ => {}
        }
    }
    let v4 = joined(v4)
        .into_iter()
        .map(|(first, last)| (low(first), low(last)));
    let v6 = joined(v6)
        .into_iter()
        .map(|(first, last)| (Ipv6Addr::from_bits(first), Ipv6Addr::from_bits(last)));
    (v4.collect(), v6.collect())
}

fn low(bits: u128) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::try_from(bits).expect("the number was made of an IPv4 address"))
}

fn joined(mut ranges: Vec<(u128, u128)>) -> Vec<(u128, u128)> {
    ranges.sort_unstable();
    let mut joined: Vec<(u128, u128)> = Vec::new();
    for (first, last) in ranges {
        match joined.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => joined.push((first, last)),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(texts: &[&str]) -> Vec<Range> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn overlapping_and_adjacent_ranges_become_one() {
        let (v4, v6) = merged(&ranges(&[
            "10.0.1.0/24",
            "10.0.0.0/24",
            "10.0.0.7",
            "10.0.3.0/24",
            "fd00::/64",
        ]));
        let v4: Vec<_> = v4.iter().map(|(first, last)| format!("{first}-{last}")).collect();
        assert_eq!(v4, ["10.0.0.0-10.0.1.255", "10.0.3.0-10.0.3.255"]);
        assert_eq!(v6.len(), 1);
        assert_eq!(v6[0].1.to_string(), "fd00::ffff:ffff:ffff:ffff");
    }

    #[test]
    fn the_end_of_the_address_space_does_not_overflow() {
        let (v4, v6) = merged(&ranges(&["255.255.255.0/24", "ffff::/16"]));
        assert_eq!(v4[0].1, Ipv4Addr::BROADCAST);
        assert_eq!(v6[0].1, Ipv6Addr::from_bits(u128::MAX));
    }

    #[test]
    fn everything_and_slips_are_no_ranges() {
        for text in [
            "0.0.0.0/0",
            "10.0.0.1/24",
            "10.0.0.0/33",
            "fd00::/0",
            "ten",
            "10.0.0.0/",
        ] {
            assert_eq!(text.parse::<Range>(), Err(InvalidRange), "{text}");
        }
    }

    #[test]
    fn elements_of_a_set_become_ranges_again() {
        let element = |last: u8, ends| (vec![10, 0, 0, last], ends);
        let listed = vec![
            (vec![0; 4], true),
            element(8, true),
            element(7, false),
            element(9, false),
        ];
        let [one, open] = of_elements(listed, true)[..] else {
            unreachable!()
        };
        assert_eq!(one, "10.0.0.7".parse().unwrap());
        assert!(
            open.contains("255.255.255.255".parse().unwrap()) && !open.contains("10.0.0.8".parse().unwrap())
        );
        assert_eq!(of_elements(vec![element(7, false)], false), [one]);
        assert_eq!(of_elements(vec![(vec![1, 2], false)], false), []);
    }

    #[test]
    fn a_range_contains_its_addresses_in_either_writing() {
        let [range] = ranges(&["10.0.0.0/24"])[..] else {
            unreachable!()
        };
        assert!(range.contains("::ffff:10.0.0.255".parse().unwrap()));
        assert!(!range.contains("10.0.1.0".parse().unwrap()) && !range.contains("fd00::1".parse().unwrap()));
    }
}
