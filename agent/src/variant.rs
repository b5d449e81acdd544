//! What of a pod is captured: from the node's settings and the pod's own wishes to a variant of the rules. Pure.

use std::collections::BTreeMap;

use tulle_model::Str;

use crate::rules::plan::{Cgroup, Interface, ProxyMark, Variant};

/// Whether the pod's names are asked for through the proxy: `true` or `false`.
pub const DNS_EXTENSION: &str = "ambient.istio.io/dns-capture";
/// Whether connections to the pod are left alone: `true` or `false`.
pub const BYPASS_INBOUND_EXTENSION: &str = "ambient.istio.io/bypass-inbound-capture";
/// Interfaces of virtual machines in the pod: names, separated by commas.
pub const REROUTE_EXTENSION: &str = "istio.io/reroute-virtual-interfaces";
/// What happens to connections older than the capture: `keep` or `reset`.
pub const EXISTING_EXTENSION: &str = "tulle.dev/existing-connections";

/// Interfaces of virtual machines that are heeded.
const INTERFACES_MAX: usize = 16;

/// What happens to connections that are older than the capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Existing {
    /// They stay as they are until they end.
    #[default]
    Keep,
    /// They are reset.
    Reset,
}

/// Who may carry the proxy's mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum MarkGuard {
    /// Everyone who may set marks.
    Off,
    /// Sockets of the node proxies' control groups; everyone where those are not known.
    #[default]
    Cgroup,
    /// Everyone, but the mark is a secret of this node and boot.
    Random,
}

/// What the node's agent was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Names are asked for through the proxy, unless a pod says otherwise.
    pub dns: bool,
    /// How packets of the proxy are told from others.
    pub mark: ProxyMark,
    /// Who may carry that mark.
    pub mark_guard: MarkGuard,
    /// What happens to old connections, unless a pod says otherwise.
    pub existing: Existing,
}

/// What a pod asks for by its annotations.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wishes {
    /// Names are asked for through the proxy.
    pub dns: Option<bool>,
    /// Connections to the pod are left alone.
    pub bypass_inbound: bool,
    /// Interfaces of virtual machines.
    pub reroute: Vec<Interface>,
    /// What happens to old connections.
    pub existing: Option<Existing>,
}

impl Wishes {
    /// From a workload's extensions. What cannot be read is as if it were not there: it never takes capture away.
    #[must_use]
    pub fn read(extensions: &BTreeMap<Str, Str>) -> Self {
        let value = |name: &str| extensions.get(name).map(|value| value.trim());
        let names = value(REROUTE_EXTENSION).unwrap_or_default().split(',');
        Self {
            dns: value(DNS_EXTENSION).and_then(|value| value.parse().ok()),
            bypass_inbound: value(BYPASS_INBOUND_EXTENSION) == Some("true"),
            reroute: names
                .filter_map(|name| name.trim().parse().ok())
                .take(INTERFACES_MAX)
                .collect(),
            existing: match value(EXISTING_EXTENSION) {
                Some("keep") => Some(Existing::Keep),
                Some("reset") => Some(Existing::Reset),
                _ => None,
            },
        }
    }
}

impl Settings {
    /// Whether names of a pod are to be asked for through the proxy.
    #[must_use]
    pub fn dns_of(&self, wishes: &Wishes) -> bool {
        wishes.dns.unwrap_or(self.dns)
    }

    /// What happens to a pod's old connections.
    #[must_use]
    pub fn existing_of(&self, wishes: &Wishes) -> Existing {
        wishes.existing.unwrap_or(self.existing)
    }

    /// The variant of a pod whose proxy answers names as `dns` says; sockets of these groups may carry the mark.
    #[must_use]
    pub fn variant(&self, wishes: &Wishes, dns: bool, proxies: Vec<Cgroup>) -> Variant {
        Variant {
            dns,
            inbound: !wishes.bypass_inbound,
            reroute: wishes.reroute.clone(),
            mark: self.mark,
            proxies,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wishes(values: &[(&str, &str)]) -> Wishes {
        let extensions = values
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()));
        Wishes::read(&extensions.collect())
    }

    #[test]
    fn a_pod_without_wishes_is_captured_as_the_node_says() {
        let settings = Settings {
            dns: true,
            mark: ProxyMark::WellKnown,
            mark_guard: MarkGuard::Off,
            existing: Existing::Keep,
        };
        assert!(settings.dns_of(&wishes(&[])));
        assert!(!settings.dns_of(&wishes(&[(DNS_EXTENSION, "false")])));
        let variant = settings.variant(&wishes(&[]), true, Vec::new());
        assert!(variant.inbound && variant.dns && variant.reroute.is_empty());
    }

    #[test]
    fn each_wish_is_read() {
        let wishes = wishes(&[
            (BYPASS_INBOUND_EXTENSION, "true"),
            (REROUTE_EXTENSION, "eth1, net1"),
            (EXISTING_EXTENSION, "reset"),
        ]);
        assert!(wishes.bypass_inbound);
        assert_eq!(wishes.reroute.len(), 2);
        assert_eq!(wishes.existing, Some(Existing::Reset));
    }

    #[test]
    fn a_wish_that_cannot_be_read_takes_no_capture_away() {
        let wishes = wishes(&[
            (DNS_EXTENSION, "maybe"),
            (BYPASS_INBOUND_EXTENSION, "yes"),
            (REROUTE_EXTENSION, "a b,,x\"y"),
        ]);
        assert_eq!(wishes, Wishes::default());
    }
}
