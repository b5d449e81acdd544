//! Services that own address ranges, found by the longest prefix.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::services::{Sharers, choose, share, unshare};
use super::{Map, empty_map};
use crate::authz::cidr::canonical_net;
use crate::name::{NamespacedHostname, Str};
use crate::network::{NetworkAddress, NetworkCidr};
use crate::service::Service;

/// Ranges by network. A lookup asks once per prefix length that is in use, the longest first.
#[derive(Debug, Clone)]
pub(super) struct Cidrs {
    by_range: Map<(Str, IpNet), Sharers>,
    /// How many ranges there are of each length, per network and family.
    lengths: Map<(Str, Family), BTreeMap<Reverse<u8>, usize>>,
}

/// The two kinds of address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Family {
    V4,
    V6,
}

impl Default for Cidrs {
    fn default() -> Self {
        Self {
            by_range: empty_map(),
            lengths: empty_map(),
        }
    }
}

impl Cidrs {
    pub(super) fn insert(&mut self, cidr: &NetworkCidr, key: &NamespacedHostname, service: &Arc<Service>) {
        let range = (cidr.network.clone(), canonical_net(cidr.cidr));
        if !self.by_range.contains_key(&range) {
            self.count(&range, |count| count + 1);
        }
        share(&mut self.by_range, range, key, service);
    }

    pub(super) fn remove(&mut self, cidr: &NetworkCidr, key: &NamespacedHostname) {
        let range = (cidr.network.clone(), canonical_net(cidr.cidr));
        if unshare(&mut self.by_range, &range, key) {
            self.count(&range, |count| count - 1);
        }
    }

    /// Own namespace beats a longer prefix; then the longest prefix; then canonical.
    pub(super) fn find(&self, client_namespace: &str, address: &NetworkAddress) -> Option<&Arc<Service>> {
        let mut best = None;
        for sharers in self.ranges_of(address) {
            match choose(client_namespace, sharers) {
                Some(own) if *own.namespace == *client_namespace => return Some(own),
                other => best = best.or(other),
            }
        }
        best
    }

    /// What owns each range that holds the address, the longest first.
    pub(super) fn ranges_of<'a>(
        &'a self,
        address: &NetworkAddress,
    ) -> impl Iterator<Item = &'a Sharers> + use<'a> {
        let NetworkAddress { network, address } = address.clone();
        let lengths = self.lengths.get(&(network.clone(), family(address)));
        lengths
            .into_iter()
            .flat_map(BTreeMap::keys)
            .filter_map(move |Reverse(length)| {
                let range = IpNet::new(address, *length).ok()?.trunc();
                self.by_range.get(&(network.clone(), range))
            })
    }

    /// How many entries all indexes hold, to prove that none is left behind.
    #[cfg(test)]
    pub(super) fn indexed(&self) -> usize {
        self.by_range.size() + self.lengths.size()
    }

    fn count(&mut self, (network, range): &(Str, IpNet), change: impl Fn(usize) -> usize) {
        let key = (network.clone(), family(range.addr()));
        let mut lengths = self.lengths.get(&key).cloned().unwrap_or_default();
        let length = Reverse(range.prefix_len());
        match change(lengths.get(&length).copied().unwrap_or(0)) {
            0 => lengths.remove(&length),
            count => lengths.insert(length, count),
        };
        if lengths.is_empty() {
            self.lengths.remove_mut(&key);
        } else {
            self.lengths.insert_mut(key, lengths);
        }
    }
}

fn family(address: IpAddr) -> Family {
    match address {
        IpAddr::V4(_) => Family::V4,
        IpAddr::V6(_) => Family::V6,
    }
}
