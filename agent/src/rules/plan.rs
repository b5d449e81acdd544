//! Which rules a pod gets: a pure function from its variant to a table.

use super::table::{Chain, NOT_PROXY_CHAIN, chain};

pub use super::table::{Cgroup, Hook, Interface, InvalidInterface, ProxyMark, Rule, Table};

/// Name of our table in a pod, in family `inet`.
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
    /// How packets of the proxy are told from others.
    pub mark: ProxyMark,
    /// The groups whose sockets may carry the proxy's mark; empty if everyone may.
    pub proxies: Vec<Cgroup>,
}

impl Default for Variant {
    fn default() -> Self {
        Self {
            dns: false,
            inbound: true,
            reroute: Vec::new(),
            mark: ProxyMark::WellKnown,
            proxies: Vec::new(),
        }
    }
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
    if !variant.proxies.is_empty() {
        chains.extend(mark_guard(&variant.proxies));
    }
    pod_table(variant.mark, chains)
}

/// The table of a pod that leaves: nothing new is captured, what is translated already goes on.
///
/// The empty chain keeps the hooks of translation registered. Without it the kernel would unregister them with the
/// last chain, existing translations would stop, and both ends would be reset.
#[must_use]
pub fn drain(mark: ProxyMark) -> Table {
    let chains = vec![
        chain("mangle-pre", Hook::ManglePrerouting, vec![Rule::MarkTransparent]),
        chain(
            "mangle-out",
            Hook::MangleOutput,
            vec![Rule::RouteTransparentReplies],
        ),
        chain("nat-keep", Hook::NatOutput, Vec::new()),
    ];
    pod_table(mark, chains)
}

fn pod_table(mark: ProxyMark, chains: Vec<Chain>) -> Table {
    Table {
        name: TABLE,
        mark,
        sets: Vec::new(),
        chains,
    }
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

/// A socket that carries the mark and is not the proxy's loses it, before anything else looks.
///
/// Each group returns; its opposite would not do, for a socket above the group's level ends such a rule.
fn mark_guard(proxies: &[Cgroup]) -> [Chain; 2] {
    let mut rules: Vec<_> = proxies.iter().cloned().map(Rule::ReturnOfCgroup).collect();
    rules.push(Rule::TakeMarkOff);
    [
        chain("mark-guard", Hook::BeforeMangleOutput, vec![Rule::CheckMarked]),
        Chain {
            name: NOT_PROXY_CHAIN,
            hook: None,
            rules,
        },
    ]
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
    fn the_mark_is_guarded_only_when_the_proxies_groups_are_known() {
        let names = |proxies| {
            let table = capture(&Variant {
                proxies,
                ..Variant::default()
            });
            table.chains.iter().map(|chain| chain.name).collect::<Vec<_>>()
        };
        assert!(!names(Vec::new()).contains(&"mark-guard"));
        let group = Cgroup {
            id: 7,
            level: 1,
            path: "tulle-proxy".to_owned(),
        };
        assert_eq!(names(vec![group])[4..], ["mark-guard", NOT_PROXY_CHAIN]);
    }
}
