//! Which rules a pod gets: a pure function from its variant to a table.
//!
//! Rules are values, not text, so that each backend writes them in its own way.

use std::fmt;
use std::str::FromStr;

/// Name of our table, in family `inet`.
pub const TABLE: &str = "tulle";
/// Mark (under [`MARK_MASK`]) of packets that the proxy sends; never captured.
pub const PROXY_MARK: u32 = 0x539;
/// Conntrack mark of the proxy's transparent connections to the application; also the packet mark of their replies.
pub const TRANSPARENT_MARK: u32 = 0x111;
/// Conntrack mark of everything that was redirected to the proxy.
pub const CAPTURED_MARK: u32 = 0x222;
/// The bits of a mark that are ours.
pub const MARK_MASK: u32 = 0xfff;
/// Where captured outbound TCP goes.
pub const OUTBOUND_PORT: u16 = 15001;
/// Where captured inbound TCP goes.
pub const INBOUND_PORT: u16 = 15006;
/// Where tunnels arrive.
pub const HBONE_PORT: u16 = 15008;
/// Where captured DNS goes.
pub const DNS_PORT: u16 = 15053;
/// Source address of the node's probes, IPv4.
pub const PROBE_V4: &str = "169.254.7.127";
/// Source address of the node's probes, IPv6.
pub const PROBE_V6: &str = "fd16:9254:7127:1337:ffff:ffff:ffff:ffff";

/// What can differ between pods.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Variant {
    /// Capture DNS.
    pub dns: bool,
    /// Capture inbound connections.
    pub inbound: bool,
    /// Interfaces whose traffic is the pod's own outbound, such as those of virtual machines inside of it.
    pub reroute: Vec<Interface>,
}

impl Default for Variant {
    fn default() -> Self {
        Self {
            dns: false,
            inbound: true,
            reroute: Vec::new(),
        }
    }
}

/// The name of a network interface, as the kernel allows it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
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

/// A whole table.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Table {
    /// Its chains, in order.
    pub chains: Vec<Chain>,
}

/// A chain and where it hooks in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Chain {
    /// Its name.
    pub name: &'static str,
    /// Its type, hook and priority; the policy is always accept.
    pub hook: Hook,
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
    /// Route, output: a changed mark routes anew.
    MangleOutput,
    /// Translation of what arrives.
    NatPrerouting,
    /// Translation of what is sent.
    NatOutput,
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
}

/// The table of a captured pod.
#[must_use]
pub fn capture(variant: &Variant) -> Table {
    let mut chains = Vec::new();
    if variant.dns {
        chains.push(chain("raw-pre", Hook::RawPrerouting, vec![Rule::ZoneDnsReplies]));
        chains.push(chain("raw-out", Hook::RawOutput, vec![Rule::ZoneDnsRequests]));
    }
    chains.push(chain(
        "mangle-pre",
        Hook::ManglePrerouting,
        vec![
            Rule::MarkTransparent,
            Rule::AcceptLoopbackIn,
            Rule::DropOddSyn,
            Rule::DropSynToOwnPorts { dns: variant.dns },
        ],
    ));
    chains.push(chain(
        "mangle-out",
        Hook::MangleOutput,
        vec![Rule::RouteTransparentReplies],
    ));
    chains.push(chain("nat-pre", Hook::NatPrerouting, nat_prerouting(variant)));
    chains.push(chain("nat-out", Hook::NatOutput, nat_output(variant)));
    Table { chains }
}

/// The table of a pod that leaves: nothing new is captured, what is translated already goes on.
///
/// The empty chain keeps the hooks of translation registered. Without it the kernel would unregister them with the
/// last chain, existing translations would stop, and both ends would be reset.
#[must_use]
pub fn drain() -> Table {
    let chains = vec![
        chain("mangle-pre", Hook::ManglePrerouting, vec![Rule::MarkTransparent]),
        chain(
            "mangle-out",
            Hook::MangleOutput,
            vec![Rule::RouteTransparentReplies],
        ),
        chain("nat-keep", Hook::NatOutput, Vec::new()),
    ];
    Table { chains }
}

fn nat_prerouting(variant: &Variant) -> Vec<Rule> {
    let mut rules = vec![Rule::AcceptOtherProtocols, Rule::AcceptLoopbackIn];
    rules.extend(variant.reroute.iter().cloned().map(Rule::Reroute));
    rules.extend([
        Rule::AcceptFromProbe4,
        Rule::AcceptFromProbe6,
        Rule::AcceptTunnels,
    ]);
    if variant.inbound {
        rules.extend([Rule::MarkCaptured, Rule::RedirectInbound]);
    }
    rules
}

fn nat_output(variant: &Variant) -> Vec<Rule> {
    let mut rules = vec![
        Rule::AcceptLoopbackOut,
        Rule::AcceptProxy,
        Rule::AcceptToProbe4,
        Rule::AcceptToProbe6,
    ];
    if variant.dns {
        rules.push(Rule::RedirectDnsUdp);
    }
    rules.extend([Rule::AcceptOtherProtocols, Rule::MarkCaptured]);
    if variant.dns {
        rules.push(Rule::RedirectDnsTcp);
    }
    rules.push(Rule::RedirectOutbound);
    rules
}

fn chain(name: &'static str, hook: Hook, rules: Vec<Rule>) -> Chain {
    Chain { name, hook, rules }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_dns_nothing_mentions_its_port() {
        let table = capture(&Variant::default());
        let rules: Vec<_> = table.chains.iter().flat_map(|chain| &chain.rules).collect();
        assert!(!rules.contains(&&Rule::RedirectDnsUdp) && !rules.contains(&&Rule::RedirectDnsTcp));
        assert!(rules.contains(&&Rule::DropSynToOwnPorts { dns: false }));
    }

    #[test]
    fn without_inbound_capture_what_arrives_is_left_alone() {
        let table = capture(&Variant {
            inbound: false,
            ..Variant::default()
        });
        let nat_pre = table.chains.iter().find(|chain| chain.name == "nat-pre").unwrap();
        assert_eq!(nat_pre.rules.last(), Some(&Rule::AcceptTunnels));
    }

    #[test]
    fn an_interface_name_that_would_need_quoting_is_refused() {
        assert!("eth1".parse::<Interface>().is_ok());
        for text in ["", "a b", "x\"; drop", "sixteen-letters1", "..", "a/b"] {
            assert_eq!(text.parse::<Interface>(), Err(InvalidInterface), "{text}");
        }
    }
}
