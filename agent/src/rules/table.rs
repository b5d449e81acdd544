//! What a table of packet rules is made of. Rules are values, not text, so that each backend writes them in its own way.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use super::plan::{MARK_MASK, PROXY_MARK};

/// The name of a network interface, as the kernel allows it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Interface(String);

/// Text that is no interface name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be an interface name: 1 to 15 letters, digits, dots, dashes or underscores")]
pub struct InvalidInterface;

impl FromStr for Interface {
    type Err = InvalidInterface;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // Stricter than the kernel: these characters need no quoting anywhere.
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if (1..=15).contains(&text.len()) && text.chars().all(allowed) && !matches!(text, "." | "..") {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidInterface)
        }
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How packets of the proxy are told from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ProxyMark {
    /// By the well-known mark, in our bits.
    #[default]
    WellKnown,
    /// By a mark of this node and boot, in all bits.
    Secret(u32),
}

impl ProxyMark {
    /// The mark that sockets of the proxy carry.
    #[must_use]
    pub fn value(self) -> u32 {
        match self {
            Self::WellKnown => PROXY_MARK,
            Self::Secret(mark) => mark,
        }
    }

    /// Whether a socket or packet with this mark is the proxy's.
    #[must_use]
    pub fn is_on(self, mark: u32) -> bool {
        match self {
            Self::WellKnown => mark & MARK_MASK == PROXY_MARK,
            Self::Secret(secret) => mark == secret,
        }
    }
}

/// A control group of the unified hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cgroup {
    /// Its number, which the kernel compares.
    pub id: u64,
    /// How far below the root it is.
    pub level: u32,
    /// Its path below the root, without the first slash.
    pub path: String,
}

/// A whole table of family `inet`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Table {
    /// Its name.
    pub name: &'static str,
    /// Which packets its rules take for the proxy's.
    pub mark: ProxyMark,
    /// Its sets, in order.
    pub sets: Vec<Set>,
    /// Its chains, in order.
    pub chains: Vec<Chain>,
}

/// A set of addresses that rules look into.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Set {
    /// Its name.
    pub name: &'static str,
    /// What it holds.
    pub elements: Elements,
}

/// What a set holds: addresses or ranges, ascending, none twice and none touching another range.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Elements {
    /// Addresses of IPv4.
    V4(Vec<Ipv4Addr>),
    /// Addresses of IPv6.
    V6(Vec<Ipv6Addr>),
    /// Ranges of IPv4, first and last address.
    Ranges4(Vec<(Ipv4Addr, Ipv4Addr)>),
    /// Ranges of IPv6, first and last address.
    Ranges6(Vec<(Ipv6Addr, Ipv6Addr)>),
}

/// A chain and where it hooks in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Chain {
    /// Its name.
    pub name: &'static str,
    /// Its type, hook and priority, the policy is always accept; none if only other rules lead here.
    pub hook: Option<Hook>,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
}

/// Type, hook and priority of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hook {
    /// Filter, prerouting, before conntrack.
    RawPrerouting,
    /// Filter, output, before conntrack.
    RawOutput,
    /// Filter, prerouting, after conntrack and before translation.
    ManglePrerouting,
    /// Route, output, just before [`Self::MangleOutput`].
    BeforeMangleOutput,
    /// Route, output: a changed mark routes anew.
    MangleOutput,
    /// Filter, postrouting, before translation.
    ManglePostrouting,
    /// Translation of what arrives.
    NatPrerouting,
    /// Translation of what is sent.
    NatOutput,
    /// Translation of sources, just before everyone else's.
    NatPostrouting,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Rule {
    /// Replies to the proxy's own DNS requests are tracked in a zone of their own.
    ZoneDnsReplies,
    /// The proxy's own DNS requests are tracked in a zone of their own.
    ZoneDnsRequests,
    /// The proxy's transparent connections to the application get the transparent mark.
    MarkTransparent,
    /// Packets on the loopback interface pass.
    AcceptLoopbackIn,
    /// Packets for the loopback interface pass.
    AcceptLoopbackOut,
    /// A SYN that conntrack does not know as new is dropped.
    DropOddSyn,
    /// A SYN from outside to a port of the proxy that is for redirected connections only is dropped.
    DropSynToOwnPorts {
        /// Whether the DNS port is among them.
        dns: bool,
    },
    /// Replies on transparent connections get the transparent mark, which routes them back to the proxy.
    RouteTransparentReplies,
    /// Anything but TCP passes.
    AcceptOtherProtocols,
    /// What comes from an interface of a virtual machine is captured as outbound.
    Reroute(Interface),
    /// Probes of the node pass, IPv4.
    AcceptFromProbe4,
    /// Probes of the node pass, IPv6.
    AcceptFromProbe6,
    /// Tunnels go straight to the proxy's listener.
    AcceptTunnels,
    /// What follows is captured; its entry gets the captured mark.
    MarkCaptured,
    /// TCP that arrives goes to the proxy.
    RedirectInbound,
    /// Packets of the proxy pass.
    AcceptProxy,
    /// Replies to probes pass, IPv4.
    AcceptToProbe4,
    /// Replies to probes pass, IPv6.
    AcceptToProbe6,
    /// DNS over UDP goes to the proxy, with the captured mark.
    RedirectDnsUdp,
    /// DNS over TCP goes to the proxy.
    RedirectDnsTcp,
    /// TCP that is sent goes to the proxy.
    RedirectOutbound,
    /// New packets with the proxy's mark are looked at by the chain [`Rule::ReturnOfCgroup`] is in.
    CheckMarked,
    /// Sockets of this group, or below it, may carry the proxy's mark.
    ReturnOfCgroup(Cgroup),
    /// The mark is taken off; a counter tells how often.
    TakeMarkOff,
    /// A pod does not send from the probes' address, IPv4.
    DropForgedProbe4,
    /// A pod does not send from the probes' address, IPv6.
    DropForgedProbe6,
    /// What the node itself sends to a captured pod comes from the probes' address, IPv4.
    TranslateProbe4,
    /// What the node itself sends to a captured pod comes from the probes' address, IPv6.
    TranslateProbe6,
    /// Neighbours find each other.
    AcceptNeighbours,
    /// Answers pass.
    AcceptReplies,
    /// What a process of the node sends passes.
    AcceptLocal,
    /// What a waiting pod sends is dropped, IPv4.
    DropFromWaiting4,
    /// What a waiting pod sends is dropped, IPv6.
    DropFromWaiting6,
    /// What is sent to a waiting pod is dropped, IPv4.
    DropToWaiting4,
    /// What is sent to a waiting pod is dropped, IPv6.
    DropToWaiting6,
}

/// Name of the chain that takes a forged mark off.
pub const NOT_PROXY_CHAIN: &str = "not-proxy";

/// A chain with a hook.
pub(super) fn chain(name: &'static str, hook: Hook, rules: Vec<Rule>) -> Chain {
    Chain {
        name,
        hook: Some(hook),
        rules,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_name_that_would_need_quoting_is_refused() {
        assert!("eth1".parse::<Interface>().is_ok());
        for text in ["", "a b", "x\"; drop", "sixteen-letters1", "..", "a/b"] {
            assert_eq!(text.parse::<Interface>(), Err(InvalidInterface), "{text}");
        }
    }

    #[test]
    fn the_well_known_mark_is_looked_for_in_our_bits_and_a_secret_one_in_all() {
        assert!(ProxyMark::WellKnown.is_on(0xabc0_0539));
        assert!(ProxyMark::Secret(0x8123_4567).is_on(0x8123_4567));
        assert!(!ProxyMark::Secret(0x8123_4567).is_on(0x0123_4567));
    }
}
