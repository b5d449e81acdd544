//! The node's own tables: probes of the node get an address that pods let pass ([`probes`]), and pods that should be
//! captured and are not yet stay mute ([`guard`]). Pure.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::ranges::{Range, merged};
use super::table::{Chain, Elements, Hook, ProxyMark, Rule, Set, Table, chain};

/// Name of the table that gives probes their address.
pub const PROBE_TABLE: &str = "tulle-host";
/// Name of the table that keeps waiting pods mute.
pub const GUARD_TABLE: &str = "tulle-guard";

/// Set of captured pods, IPv4.
pub(crate) const PROBE_SET4: &str = "probe4";
/// Set of captured pods, IPv6.
pub(crate) const PROBE_SET6: &str = "probe6";
/// Set of waiting pods, IPv4.
pub(crate) const WAIT_SET4: &str = "wait4";
/// Set of waiting pods, IPv6.
pub(crate) const WAIT_SET6: &str = "wait6";
/// Set of pods within the waiting ranges that wait no longer, IPv4.
pub(super) const PASS_SET4: &str = "pass4";
/// Set of pods within the waiting ranges that wait no longer, IPv6.
pub(super) const PASS_SET6: &str = "pass6";

/// The table that gives what the node itself sends to these pods the probes' address.
///
/// Only packets with a local socket have an owner, so what the node forwards stays as it is and is captured.
#[must_use]
pub fn probes(captured: &BTreeSet<IpAddr>) -> Table {
    let (v4, v6) = by_family(captured);
    Table {
        name: PROBE_TABLE,
        mark: ProxyMark::WellKnown,
        sets: vec![addresses4(PROBE_SET4, v4), addresses6(PROBE_SET6, v6)],
        chains: vec![
            chain(
                "pre",
                Hook::RawPrerouting,
                vec![Rule::DropForgedProbe4, Rule::DropForgedProbe6],
            ),
            chain(
                "post",
                Hook::NatPostrouting,
                vec![Rule::TranslateProbe4, Rule::TranslateProbe6],
            ),
        ],
    }
}

/// The table that drops what pods in `wait` send or are sent, save those in `pass`.
#[must_use]
pub fn guard(wait: &[Range], pass: &BTreeSet<IpAddr>) -> Table {
    let (wait4, wait6) = merged(wait);
    let (pass4, pass6) = by_family(pass);
    let wait = |name, elements| Set { name, elements };
    Table {
        name: GUARD_TABLE,
        mark: ProxyMark::WellKnown,
        sets: vec![
            wait(WAIT_SET4, Elements::Ranges4(wait4)),
            wait(WAIT_SET6, Elements::Ranges6(wait6)),
            addresses4(PASS_SET4, pass4),
            addresses6(PASS_SET6, pass6),
        ],
        chains: guard_chains(),
    }
}

fn guard_chains() -> Vec<Chain> {
    let from_pod = vec![
        Rule::AcceptLoopbackIn,
        Rule::AcceptNeighbours,
        Rule::AcceptReplies,
        Rule::DropFromWaiting4,
        Rule::DropFromWaiting6,
    ];
    let to_pod = vec![
        Rule::AcceptLoopbackOut,
        Rule::AcceptNeighbours,
        Rule::AcceptLocal,
        Rule::AcceptReplies,
        Rule::DropToWaiting4,
        Rule::DropToWaiting6,
    ];
    vec![
        chain("from-pod", Hook::ManglePrerouting, from_pod),
        chain("to-pod", Hook::ManglePostrouting, to_pod),
    ]
}

fn addresses4(name: &'static str, addresses: Vec<Ipv4Addr>) -> Set {
    Set {
        name,
        elements: Elements::V4(addresses),
    }
}

fn addresses6(name: &'static str, addresses: Vec<Ipv6Addr>) -> Set {
    Set {
        name,
        elements: Elements::V6(addresses),
    }
}

/// Mapped IPv6 addresses are IPv4.
fn by_family(addresses: &BTreeSet<IpAddr>) -> (Vec<Ipv4Addr>, Vec<Ipv6Addr>) {
    let (mut v4, mut v6) = (BTreeSet::new(), BTreeSet::new());
    for address in addresses {
        match address.to_canonical() {
            IpAddr::V4(address) => v4.insert(address),
            IpAddr::V6(address) => v6.insert(address),
        };
    }
    (v4.into_iter().collect(), v6.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_address_is_an_ipv4_address_and_is_in_the_set_once() {
        let captured = ["::ffff:10.0.0.7", "10.0.0.7", "fd00::7"].map(|text| text.parse().unwrap());
        let table = probes(&captured.into());
        assert_eq!(
            table.sets[0].elements,
            Elements::V4(vec![Ipv4Addr::new(10, 0, 0, 7)])
        );
        assert_eq!(
            table.sets[1].elements,
            Elements::V6(vec!["fd00::7".parse().unwrap()])
        );
    }

    #[test]
    fn what_waits_and_what_passes_are_in_sets_of_their_own() {
        let table = guard(
            &["10.0.0.0/24".parse().unwrap()],
            &["10.0.0.7".parse().unwrap()].into(),
        );
        let first = (Ipv4Addr::new(10, 0, 0, 0), Ipv4Addr::new(10, 0, 0, 255));
        assert_eq!(table.sets[0].elements, Elements::Ranges4(vec![first]));
        assert_eq!(
            table.sets[2].elements,
            Elements::V4(vec![Ipv4Addr::new(10, 0, 0, 7)])
        );
    }
}
