//! Verifying a captured pod against the kernel: which deviations there are (pure); putting them right is the pod
//! task's work. Repair only ever adds capture.

use std::fmt;

use prometheus_client::encoding::EncodeLabelValue;
use tulle_model::reason::Reason;

use crate::rules::Comparison;

/// What the kernel has for a captured pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// The table.
    pub rules: Comparison,
    /// Route and rule of table 100.
    pub routes: bool,
    /// Conntrack does not take up connections in mid-stream.
    pub strict_conntrack: bool,
}

/// What the agent itself knows of a captured pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// The listeners listen.
    pub listeners: bool,
    /// The newest proxy accepted the pod; true as well while no proxy is connected, nothing can be repaired then.
    pub announced: bool,
}

/// One thing that was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(
    non_camel_case_types,
    reason = "the variants are the values of a metric's label"
)]
pub enum Check {
    /// The table.
    rules,
    /// Route and rule.
    routes,
    /// The conntrack setting.
    tcp_loose,
    /// The listeners.
    listeners,
    /// The proxy's acceptance.
    proxy,
    /// The node's table that gives probes their address.
    probes,
    /// The node's table that keeps waiting pods mute.
    guard,
}

impl Check {
    /// The stable reason of a deviation.
    #[must_use]
    pub fn reason(self) -> Reason {
        match self {
            Self::rules | Self::routes | Self::tcp_loose | Self::probes | Self::guard => {
                Reason::CaptureRulesMissing
            }
            Self::listeners => Reason::ListenersMissing,
            Self::proxy => Reason::ProxyNotConnected,
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What must be put right, in the order of joining.
#[must_use]
pub fn deviations(observed: &Observed, held: Held) -> Vec<Check> {
    let checks = [
        (Check::listeners, held.listeners),
        (Check::proxy, held.announced),
        (Check::tcp_loose, observed.strict_conntrack),
        (Check::routes, observed.routes),
        (Check::rules, observed.rules == Comparison::Equal),
    ];
    checks
        .into_iter()
        .filter(|(_, good)| !good)
        .map(|(check, _)| check)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Held = Held {
        listeners: true,
        announced: true,
    };

    fn observed() -> Observed {
        Observed {
            rules: Comparison::Equal,
            routes: true,
            strict_conntrack: true,
        }
    }

    #[test]
    fn a_pod_as_planned_needs_nothing() {
        assert_eq!(deviations(&observed(), GOOD), []);
    }

    #[test]
    fn listeners_are_repaired_before_rules() {
        let observed = Observed {
            rules: Comparison::Missing,
            ..observed()
        };
        let held = Held {
            listeners: false,
            ..GOOD
        };
        assert_eq!(deviations(&observed, held), [Check::listeners, Check::rules]);
    }

    #[test]
    fn each_deviation_is_named() {
        let observed = Observed {
            routes: false,
            strict_conntrack: false,
            ..observed()
        };
        let held = Held {
            announced: false,
            ..GOOD
        };
        assert_eq!(
            deviations(&observed, held),
            [Check::proxy, Check::tcp_loose, Check::routes]
        );
    }
}
