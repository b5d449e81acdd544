//! Services with the indexes they are found by, and who is meant when several share a name or address.

use std::cmp::Reverse;
use std::sync::Arc;

use super::cidrs::Cidrs;
use super::{Map, OrderedMap, empty_map};
use crate::name::{NamespacedHostname, Str};
use crate::network::NetworkAddress;
use crate::service::Service;

/// Services by key, virtual address, range and host name.
#[derive(Debug, Clone)]
pub(super) struct Services {
    by_key: Map<NamespacedHostname, Arc<Service>>,
    by_vip: Map<NetworkAddress, Sharers>,
    by_hostname: Map<Str, Sharers>,
    cidrs: Cidrs,
}

/// Services of several namespaces that share a name or address, in the order of their keys.
pub(super) type Sharers = OrderedMap<NamespacedHostname, Arc<Service>>;

impl Default for Services {
    fn default() -> Self {
        Self {
            by_key: empty_map(),
            by_vip: empty_map(),
            by_hostname: empty_map(),
            cidrs: Cidrs::default(),
        }
    }
}

impl Services {
    /// Adds or replaces; whether anything changed.
    pub(super) fn insert(&mut self, service: Arc<Service>) -> bool {
        let key = service.key();
        if let Some(before) = self.by_key.get(&key) {
            if *before == service {
                return false;
            }
            let before = Arc::clone(before);
            self.unindex(&key, &before);
        }
        for vip in vips(&service) {
            share(&mut self.by_vip, vip, &key, &service);
        }
        share(&mut self.by_hostname, service.hostname.clone(), &key, &service);
        for cidr in &service.cidrs {
            self.cidrs.insert(cidr, &key, &service);
        }
        self.by_key.insert_mut(key, service);
        true
    }

    /// Removes; whether it was there.
    pub(super) fn remove(&mut self, key: &NamespacedHostname) -> bool {
        let Some(before) = self.by_key.get(key).cloned() else {
            return false;
        };
        self.unindex(key, &before);
        self.by_key.remove_mut(key);
        true
    }

    pub(super) fn get(&self, key: &NamespacedHostname) -> Option<&Arc<Service>> {
        self.by_key.get(key)
    }

    pub(super) fn by_vip(&self, client_namespace: &str, address: &NetworkAddress) -> Option<&Arc<Service>> {
        let exact = self
            .by_vip
            .get(address)
            .and_then(|sharers| choose(client_namespace, sharers));
        exact.or_else(|| self.cidrs.find(client_namespace, address))
    }

    pub(super) fn at<'a>(
        &'a self,
        address: &NetworkAddress,
    ) -> impl Iterator<Item = &'a Arc<Service>> + use<'a> {
        let exact = self.by_vip.get(address).into_iter().flat_map(Sharers::values);
        exact.chain(self.cidrs.ranges_of(address).flat_map(Sharers::values))
    }

    pub(super) fn by_hostname(&self, client_namespace: &str, hostname: &str) -> Option<&Arc<Service>> {
        choose(client_namespace, self.by_hostname.get(hostname)?)
    }

    pub(super) fn all_by_hostname(
        &self,
        client_namespace: &str,
        hostname: &str,
    ) -> impl Iterator<Item = &Arc<Service>> {
        let sharers = self.by_hostname.get(hostname).into_iter();
        sharers
            .flat_map(Sharers::values)
            .filter(move |service| service.is_visible_to(client_namespace))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.by_key.values()
    }

    /// How many entries all indexes hold, to prove that none is left behind.
    #[cfg(test)]
    pub(super) fn indexed(&self) -> usize {
        self.by_key.size() + self.by_vip.size() + self.by_hostname.size() + self.cidrs.indexed()
    }

    fn unindex(&mut self, key: &NamespacedHostname, service: &Service) {
        for vip in vips(service) {
            unshare(&mut self.by_vip, &vip, key);
        }
        unshare(&mut self.by_hostname, &service.hostname, key);
        for cidr in &service.cidrs {
            self.cidrs.remove(cidr, key);
        }
    }
}

/// Virtual addresses in canonical form.
fn vips(service: &Service) -> impl Iterator<Item = NetworkAddress> + '_ {
    service
        .addresses
        .iter()
        .map(|vip| NetworkAddress::new(vip.network.clone(), vip.address))
}

/// The one a caller means: of its own namespace, else canonical, else the first; invisible ones do not exist.
pub(super) fn choose<'a>(client_namespace: &str, sharers: &'a Sharers) -> Option<&'a Arc<Service>> {
    sharers
        .values()
        .filter(|service| service.is_visible_to(client_namespace))
        .min_by_key(|service| {
            (
                Reverse(*service.namespace == *client_namespace),
                Reverse(service.canonical),
            )
        })
}

pub(super) fn share<K: Eq + std::hash::Hash>(
    map: &mut Map<K, Sharers>,
    index: K,
    key: &NamespacedHostname,
    service: &Arc<Service>,
) {
    let mut sharers = map.get(&index).cloned().unwrap_or_default();
    sharers.insert_mut(key.clone(), Arc::clone(service));
    map.insert_mut(index, sharers);
}

/// Whether the index has become empty.
pub(super) fn unshare<K: Eq + std::hash::Hash + Clone>(
    map: &mut Map<K, Sharers>,
    index: &K,
    key: &NamespacedHostname,
) -> bool {
    let Some(sharers) = map.get(index) else {
        return false;
    };
    let rest = sharers.remove(key);
    if rest.is_empty() {
        map.remove_mut(index)
    } else {
        map.insert_mut(index.clone(), rest);
        false
    }
}
