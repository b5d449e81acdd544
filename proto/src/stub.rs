//! What stands in for a malformed resource that has no last good version: a refusal, never a hole.

use prost::Message;
use tulle_model::NetworkAddress;
use tulle_model::authz::policy::{Action, Authorization, Rule, Scope};
use tulle_model::network::NetworkCidr;

use crate::convert::authorization;
use crate::convert::gateway::{Vip, vip};
use crate::strict;
use crate::workload::{Address, NetworkAddress as WireAddress, address};

/// A policy that denies whatever the unreadable one selects: its own scope if that can be read, else the
/// namespace in its resource name. `None` if that name has no namespace, so that nothing is known at all.
#[must_use]
pub fn deny_all(resource_name: &str, body: &[u8]) -> Option<Authorization> {
    let (namespace, name) = resource_name
        .split_once('/')
        .filter(|(namespace, _)| !namespace.is_empty())?;
    Some(Authorization {
        name: name.into(),
        namespace: namespace.into(),
        scope: readable_scope(namespace, name, body).unwrap_or(Scope::Namespace),
        action: Action::Deny,
        // A rule without clauses matches everything.
        rules: vec![Rule::default()],
        dry_run: false,
        untranslatable: true,
        match_peer: false,
    })
}

/// An absent scope reads as GLOBAL, so it is believed only in a body that knows its own name: bytes without
/// meaning must not close the whole mesh.
fn readable_scope(namespace: &str, name: &str, body: &[u8]) -> Option<Scope> {
    let heading = strict::heading(body)?;
    let own = heading.namespace == namespace.as_bytes() && heading.name == name.as_bytes();
    own.then(|| authorization::scope(heading.scope).ok()).flatten()
}

/// The addresses that must be refused while a workload or service cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RefusedAddresses {
    /// Single addresses.
    pub addresses: Vec<NetworkAddress>,
    /// Ranges.
    pub ranges: Vec<NetworkCidr>,
}

impl RefusedAddresses {
    /// Reads what can be read, from the body and from the aliases that came with it.
    #[must_use]
    pub fn read(body: &[u8], aliases: &[String]) -> Self {
        let mut refused = Self::default();
        refused.read_body(body);
        for alias in aliases {
            refused.read_alias(alias);
        }
        refused
    }

    /// True if nothing could be read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.ranges.is_empty()
    }

    /// Whether traffic to this address must be refused.
    #[must_use]
    pub fn contains(&self, address: &NetworkAddress) -> bool {
        let inside =
            |range: &NetworkCidr| range.network == address.network && range.cidr.contains(&address.address);
        self.addresses.contains(address) || self.ranges.iter().any(inside)
    }

    fn read_body(&mut self, body: &[u8]) {
        let Ok(Address {
            r#type: Some(resource),
        }) = Address::decode(body)
        else {
            return;
        };
        match resource {
            address::Type::Workload(workload) => {
                for address in workload.addresses {
                    self.read_address(WireAddress {
                        network: workload.network.clone(),
                        address,
                        length: None,
                    });
                }
            }
            address::Type::Service(service) => {
                for address in service.addresses {
                    self.read_address(address);
                }
            }
        }
    }

    fn read_address(&mut self, address: WireAddress) {
        match vip(address) {
            Ok(Vip::Host(address)) => self.push_address(address),
            Ok(Vip::Range(range)) => self.push_range(range),
            Err(_) => {}
        }
    }

    /// `<network>/<ip>` or `<network>/<ip>/<prefix>`.
    fn read_alias(&mut self, alias: &str) {
        let Some((network, rest)) = alias.split_once('/') else {
            return;
        };
        if let Ok(address) = rest.parse() {
            self.push_address(NetworkAddress::new(network, address));
        } else if let Ok(cidr) = rest.parse::<ipnet::IpNet>() {
            self.push_range(NetworkCidr {
                network: network.into(),
                cidr: cidr.trunc(),
            });
        }
    }

    fn push_address(&mut self, address: NetworkAddress) {
        if !self.addresses.contains(&address) {
            self.addresses.push(address);
        }
    }

    fn push_range(&mut self, range: NetworkCidr) {
        if !self.ranges.contains(&range) {
            self.ranges.push(range);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{security, workload};

    fn policy(scope: i32) -> Vec<u8> {
        let policy = security::Authorization {
            name: "p".into(),
            namespace: "shop".into(),
            scope,
            ..Default::default()
        };
        policy.encode_to_vec()
    }

    #[test]
    fn a_stub_keeps_a_scope_that_can_be_read() {
        for (value, scope) in [
            (0, Scope::Global),
            (1, Scope::Namespace),
            (2, Scope::WorkloadSelector),
        ] {
            let stub = deny_all("shop/p", &policy(value)).expect("a stub");
            assert_eq!((stub.scope, stub.untranslatable), (scope, true));
            assert_eq!(stub.key().to_string(), "shop/p");
        }
    }

    #[test]
    fn a_stub_covers_its_namespace_when_the_scope_cannot_be_read() {
        for body in [&policy(9)[..], &[], b"garbage", &policy(0)[..4]] {
            assert_eq!(
                deny_all("shop/p", body).expect("a stub").scope,
                Scope::Namespace,
                "{body:?}"
            );
        }
        assert_eq!(
            deny_all("shop/other", &policy(0)).expect("a stub").scope,
            Scope::Namespace
        );
    }

    #[test]
    fn a_name_without_namespace_selects_nothing() {
        assert_eq!(deny_all("p", &policy(0)), None);
    }

    #[test]
    fn a_rejected_workload_still_tells_its_addresses() {
        let workload = workload::Workload {
            uid: "u".into(),
            network: "n".into(),
            addresses: vec![vec![10, 0, 0, 1], vec![1]],
            tunnel_protocol: 77,
            ..Default::default()
        };
        let body = Address {
            r#type: Some(address::Type::Workload(workload)),
        }
        .encode_to_vec();
        let refused = RefusedAddresses::read(&body, &["n/10.0.0.1".into(), "n/fd00::/64".into()]);
        assert_eq!(refused.addresses.len(), 1, "body and alias name the same address");
        assert!(refused.contains(&NetworkAddress::new("n", "10.0.0.1".parse().expect("an address"))));
        assert!(refused.contains(&NetworkAddress::new("n", "fd00::7".parse().expect("an address"))));
        assert!(!refused.contains(&NetworkAddress::new("", "10.0.0.1".parse().expect("an address"))));
    }
}
