//! Services that own address ranges, found by the longest prefix.

use std::sync::Arc;

use ipnet::IpNet;

use super::services::{Sharers, choose};
use super::trie::Trie;
use super::{Map, empty_map};
use crate::authz::cidr::canonical_net;
use crate::name::{NamespacedHostname, Str};
use crate::network::{NetworkAddress, NetworkCidr};
use crate::service::Service;

/// Ranges by network.
#[derive(Debug, Clone)]
pub(super) struct Cidrs(Map<Str, Trie<Sharers>>);

impl Default for Cidrs {
    fn default() -> Self {
        Self(empty_map())
    }
}

impl Cidrs {
    pub(super) fn insert(&mut self, cidr: &NetworkCidr, key: &NamespacedHostname, service: &Arc<Service>) {
        self.alter(&cidr.network, canonical_net(cidr.cidr), |sharers| {
            let mut sharers = sharers.cloned().unwrap_or_default();
            sharers.insert_mut(key.clone(), Arc::clone(service));
            Some(sharers)
        });
    }

    pub(super) fn remove(&mut self, cidr: &NetworkCidr, key: &NamespacedHostname) {
        self.alter(&cidr.network, canonical_net(cidr.cidr), |sharers| {
            sharers
                .map(|sharers| sharers.remove(key))
                .filter(|rest| !rest.is_empty())
        });
    }

    fn alter(
        &mut self,
        network: &Str,
        range: IpNet,
        change: impl FnOnce(Option<&Sharers>) -> Option<Sharers>,
    ) {
        let mut trie = self.0.get(network).cloned().unwrap_or_default();
        trie.alter(range, change);
        if trie.is_empty() {
            self.0.remove_mut(network);
        } else {
            self.0.insert_mut(network.clone(), trie);
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
        let trie = self.0.get(&address.network);
        let found = trie.map(|trie| trie.holding(address.address));
        found.into_iter().flatten()
    }

    /// How many entries all indexes hold, to prove that none is left behind.
    #[cfg(test)]
    pub(super) fn indexed(&self) -> usize {
        self.0.values().map(Trie::len).sum::<usize>() + self.0.size()
    }
}
