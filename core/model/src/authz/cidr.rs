//! Sets of addresses, compiled to disjoint ranges.

use std::net::IpAddr;

use ipnet::IpNet;

/// Above this prefix length an IPv6 range may lie in the IPv4-mapped block.
const MAPPED_PREFIX: u8 = 96;

/// The range without host bits; an IPv4-mapped one becomes IPv4, as addresses do everywhere.
#[must_use]
pub fn canonical_net(net: IpNet) -> IpNet {
    let net = net.trunc();
    let IpNet::V6(v6) = net else { return net };
    match v6.addr().to_ipv4_mapped() {
        Some(address) if v6.prefix_len() >= MAPPED_PREFIX => {
            ipnet::Ipv4Net::new(address, v6.prefix_len() - MAPPED_PREFIX).map_or(net, IpNet::V4)
        }
        _ => net,
    }
}

/// Addresses of any of several ranges: sorted, merged, found by bisection.
#[derive(Debug, Default)]
pub(crate) struct IpSet {
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
}

impl IpSet {
    pub(crate) fn new(nets: &[IpNet]) -> Self {
        let mut set = Self::default();
        for net in nets {
            match canonical_net(*net) {
                IpNet::V4(net) => set.v4.push((net.network().into(), net.broadcast().into())),
                IpNet::V6(net) => set.v6.push((net.network().into(), net.broadcast().into())),
            }
        }
        merge(&mut set.v4);
        merge(&mut set.v6);
        set
    }

    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => within(&self.v4, address.into()),
            IpAddr::V6(address) => within(&self.v6, address.into()),
        }
    }
}

/// Sorts ranges and joins those that overlap.
fn merge<T: Ord + Copy>(ranges: &mut Vec<(T, T)>) {
    ranges.sort_unstable();
    ranges.dedup_by(|next, kept| {
        let overlaps = next.0 <= kept.1;
        if overlaps {
            kept.1 = kept.1.max(next.1);
        }
        overlaps
    });
}

fn within<T: Ord + Copy>(ranges: &[(T, T)], value: T) -> bool {
    let after = ranges.partition_point(|(first, _)| *first <= value);
    after.checked_sub(1).is_some_and(|at| value <= ranges[at].1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(nets: &[&str]) -> IpSet {
        IpSet::new(&nets.iter().map(|net| net.parse().unwrap()).collect::<Vec<_>>())
    }

    #[test]
    fn nested_ranges_merge_and_edges_belong() {
        let set = set(&["10.0.0.0/8", "10.1.0.0/16", "192.168.0.1/32"]);
        assert_eq!(set.v4.len(), 2);
        for (address, inside) in [
            ("10.0.0.0", true),
            ("10.255.255.255", true),
            ("11.0.0.0", false),
            ("9.255.255.255", false),
            ("192.168.0.1", true),
            ("192.168.0.2", false),
            ("::1", false),
        ] {
            assert_eq!(set.contains(address.parse().unwrap()), inside, "{address}");
        }
    }

    #[test]
    fn a_zero_prefix_holds_its_whole_family_only() {
        assert!(set(&["0.0.0.0/0"]).contains("255.255.255.255".parse().unwrap()));
        assert!(!set(&["0.0.0.0/0"]).contains("::1".parse().unwrap()));
        assert!(set(&["::/0"]).contains("ff::1".parse().unwrap()));
        assert!(!set(&["::/0"]).contains("10.0.0.1".parse().unwrap()));
    }

    #[test]
    fn mapped_ranges_and_addresses_are_ipv4() {
        assert!(set(&["::ffff:10.0.0.0/104"]).contains("10.9.9.9".parse().unwrap()));
        assert!(set(&["10.0.0.0/8"]).contains("::ffff:10.9.9.9".parse().unwrap()));
    }
}
