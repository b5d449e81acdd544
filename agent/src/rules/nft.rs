//! Applies and reads tables by running `nft` inside the pod's namespace.
//!
//! It serves the comparison with the backend that speaks netlink in process, and nodes where that one fails.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tulle_linux::NetNs;

use super::difference::difference;
use super::host::{PASS_SET4, PASS_SET6, PROBE_SET4, PROBE_SET6, WAIT_SET4, WAIT_SET6};
use super::plan::{
    CAPTURED_MARK, DNS_PORT, HBONE_PORT, Hook, INBOUND_PORT, MARK_MASK, OUTBOUND_PORT, PROBE_V4, PROBE_V6,
    PROXY_MARK, ProxyMark, Rule, TRANSPARENT_MARK, Table,
};
use super::table::{Chain, Elements, NOT_PROXY_CHAIN, Set};
use super::{Comparison, Rules};
use crate::error::CaptureError;

/// How long one run may take; the kernel may wait some 20 ms for a grace period.
const RUN_TIMEOUT: Duration = Duration::from_secs(10);
/// Programs tried, because the folder of system programs is not in everyone's path.
const PROGRAMS: [&str; 2] = ["nft", "/usr/sbin/nft"];
/// Listings kept for comparison; there is one per variant of rules.
const LISTINGS_MAX: usize = 64;

/// Rules through the `nft` program.
#[derive(Debug, Default)]
pub struct Nft {
    /// How this nft prints a table, by script: printed once from a scratch namespace.
    listings: Mutex<HashMap<String, String>>,
}

impl Nft {
    /// A backend that has printed nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    async fn load(&self, netns: &NetNs, script: String) -> Result<(), CaptureError> {
        let output = run(netns, vec!["-f", "-"], script).await?;
        if output.status.success() {
            Ok(())
        } else {
            Err(refused(&output))
        }
    }

    async fn list(&self, netns: &NetNs, table: &'static str) -> Result<Option<String>, CaptureError> {
        let output = run(
            netns,
            vec!["--stateless", "list", "table", "inet", table],
            String::new(),
        )
        .await?;
        if output.status.success() {
            return Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()));
        }
        let missing = String::from_utf8_lossy(&output.stderr).contains("No such file or directory");
        if missing { Ok(None) } else { Err(refused(&output)) }
    }

    /// How this nft prints the planned table: it is loaded into a namespace of nobody and printed from there, so that
    /// the comparison depends on no version's way of printing.
    async fn planned(&self, table: &Table) -> Result<String, CaptureError> {
        let script = render(table);
        if let Some(listing) = self.listings.lock().get(&script) {
            return Ok(listing.clone());
        }
        let scratch = NetNs::create().map_err(CaptureError::kernel("make a scratch network namespace"))?;
        self.load(&scratch, script.clone()).await?;
        let listing = self.list(&scratch, table.name).await?.unwrap_or_default();
        let mut listings = self.listings.lock();
        if listings.len() >= LISTINGS_MAX {
            listings.clear();
        }
        listings.insert(script, listing.clone());
        Ok(listing)
    }
}

impl Rules for Nft {
    fn apply<'a>(&'a self, netns: &'a NetNs, table: &'a Table) -> BoxFuture<'a, Result<(), CaptureError>> {
        self.load(netns, render(table)).boxed()
    }

    fn remove<'a>(
        &'a self,
        netns: &'a NetNs,
        table: &'static str,
    ) -> BoxFuture<'a, Result<(), CaptureError>> {
        self.load(netns, format!("table inet {table}\ndelete table inet {table}\n"))
            .boxed()
    }

    fn compare<'a>(
        &'a self,
        netns: &'a NetNs,
        table: &'a Table,
    ) -> BoxFuture<'a, Result<Comparison, CaptureError>> {
        async move {
            let Some(found) = self.list(netns, table.name).await? else {
                return Ok(Comparison::Missing);
            };
            let planned = self.planned(table).await?;
            if found == planned {
                return Ok(Comparison::Equal);
            }
            Ok(Comparison::Different {
                diff: difference(&lines(&planned), &lines(&found)),
            })
        }
        .boxed()
    }
}

async fn run(netns: &NetNs, arguments: Vec<&'static str>, input: String) -> Result<Output, CaptureError> {
    let work = netns.run_async(move || run_here(&arguments, &input));
    let outcome = tokio::time::timeout(RUN_TIMEOUT, work)
        .await
        .map_err(|_| CaptureError::RulesRefused("nft did not end in time".to_owned()))?;
    outcome.and_then(|ran| ran).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => CaptureError::RulesRefused("the program nft was not found".to_owned()),
        _ => CaptureError::Kernel {
            step: "run nft in the pod's namespace",
            source: error,
        },
    })
}

/// Runs nft in the calling thread's namespace.
fn run_here(arguments: &[&str], input: &str) -> io::Result<Output> {
    let start = |program: &str| {
        Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
    };
    let mut child = match start(PROGRAMS[0]) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => start(PROGRAMS[1])?,
        started => started?,
    };
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    child.wait_with_output()
}

fn refused(output: &Output) -> CaptureError {
    let text = String::from_utf8_lossy(&output.stderr);
    CaptureError::RulesRefused(
        text.lines()
            .next()
            .unwrap_or("nft failed without a message")
            .to_owned(),
    )
}

fn lines(listing: &str) -> Vec<&str> {
    listing.lines().collect()
}

/// The transaction that replaces our table with `table`.
#[must_use]
pub fn render(table: &Table) -> String {
    let name = table.name;
    let mut script = format!("table inet {name}\ndelete table inet {name}\ntable inet {name} {{\n");
    for set in &table.sets {
        script.push_str(&render_set(set));
    }
    for chain in &table.chains {
        render_chain(&mut script, chain, table.mark);
    }
    script.push_str("}\n");
    script
}

fn render_set(set: &Set) -> String {
    let ranges = |ranges: Vec<(String, String)>| -> Vec<String> {
        let one = |(first, last): (String, String)| {
            if first == last {
                first
            } else {
                format!("{first}-{last}")
            }
        };
        ranges.into_iter().map(one).collect()
    };
    let (kind, elements) = match &set.elements {
        Elements::V4(all) => ("ipv4_addr", all.iter().map(ToString::to_string).collect()),
        Elements::V6(all) => ("ipv6_addr", all.iter().map(ToString::to_string).collect()),
        Elements::Ranges4(all) => (
            "ipv4_addr; flags interval",
            ranges(
                all.iter()
                    .map(|(first, last)| (first.to_string(), last.to_string()))
                    .collect(),
            ),
        ),
        Elements::Ranges6(all) => (
            "ipv6_addr; flags interval",
            ranges(
                all.iter()
                    .map(|(first, last)| (first.to_string(), last.to_string()))
                    .collect(),
            ),
        ),
    };
    let elements = match elements.join(", ") {
        none if none.is_empty() => none,
        some => format!(" elements = {{ {some} }}"),
    };
    format!("    set {} {{ type {kind};{elements} }}\n", set.name)
}

fn render_chain(script: &mut String, chain: &Chain, mark: ProxyMark) {
    let mut line = |text: std::fmt::Arguments<'_>| {
        writeln!(script, "{text}").expect("writing to a string does not fail");
    };
    match chain.hook {
        Some(place) => line(format_args!(
            "    chain {} {{ type {}; policy accept;",
            chain.name,
            hook(place)
        )),
        None => line(format_args!("    chain {} {{", chain.name)),
    }
    for rule in &chain.rules {
        for text in statements(rule, mark) {
            line(format_args!("        {text}"));
        }
    }
    line(format_args!("    }}"));
}

fn hook(hook: Hook) -> &'static str {
    match hook {
        Hook::RawPrerouting => "filter hook prerouting priority raw",
        Hook::RawOutput => "filter hook output priority raw",
        Hook::ManglePrerouting => "filter hook prerouting priority mangle",
        Hook::BeforeMangleOutput => "route hook output priority -151",
        Hook::MangleOutput => "route hook output priority mangle",
        Hook::ManglePostrouting => "filter hook postrouting priority mangle",
        Hook::NatPrerouting => "nat hook prerouting priority dstnat",
        Hook::NatOutput => "nat hook output priority -100",
        Hook::NatPostrouting => "nat hook postrouting priority 99",
    }
}

/// The text of one rule; a reroute takes two.
fn statements(rule: &Rule, mark: ProxyMark) -> Vec<String> {
    let proxy = match mark {
        ProxyMark::WellKnown => format!("meta mark & {MARK_MASK:#x} == {PROXY_MARK:#x}"),
        ProxyMark::Secret(mark) => format!("meta mark {mark:#x}"),
    };
    let keep = !MARK_MASK;
    let captured = format!("ct mark set ct mark & {keep:#x} | {CAPTURED_MARK:#x}");
    let to = |port: u16| format!("counter redirect to :{port}");
    let text = match rule {
        Rule::ZoneDnsReplies => "iifname != \"lo\" udp sport 53 ct zone set 1".to_owned(),
        Rule::ZoneDnsRequests => format!("{proxy} udp dport 53 ct zone set 1"),
        Rule::MarkTransparent => format!(
            "iifname \"lo\" ct direction original {proxy} ct mark set ct mark & {keep:#x} | {TRANSPARENT_MARK:#x}"
        ),
        Rule::AcceptLoopbackIn => "iifname \"lo\" accept".to_owned(),
        Rule::AcceptLoopbackOut => "oifname \"lo\" accept".to_owned(),
        Rule::DropOddSyn => {
            "tcp flags & (syn | ack) == syn ct state invalid,untracked counter drop".to_owned()
        }
        Rule::DropSynToOwnPorts { dns } => {
            let dns = if *dns {
                format!(", {DNS_PORT}")
            } else {
                String::new()
            };
            format!(
                "tcp flags & (syn | ack) == syn tcp dport {{ {OUTBOUND_PORT}, {INBOUND_PORT}{dns} }} counter drop"
            )
        }
        Rule::RouteTransparentReplies => format!(
            "ct direction reply ct mark & {MARK_MASK:#x} == {TRANSPARENT_MARK:#x} \
             meta mark set meta mark & {keep:#x} | {TRANSPARENT_MARK:#x}"
        ),
        Rule::AcceptOtherProtocols => "meta l4proto != tcp accept".to_owned(),
        Rule::Reroute(interface) => {
            let from = format!("iifname \"{interface}\" meta l4proto tcp");
            return vec![
                format!("{from} {captured}"),
                format!("{from} {}", to(OUTBOUND_PORT)),
            ];
        }
        Rule::AcceptFromProbe4 => format!("ip saddr {PROBE_V4} counter accept"),
        Rule::AcceptFromProbe6 => format!("ip6 saddr {PROBE_V6} counter accept"),
        Rule::AcceptTunnels => format!("tcp dport {HBONE_PORT} counter accept"),
        Rule::MarkCaptured => captured,
        Rule::RedirectInbound => format!("meta l4proto tcp {}", to(INBOUND_PORT)),
        Rule::AcceptProxy => format!("{proxy} counter accept"),
        Rule::AcceptToProbe4 => format!("ip daddr {PROBE_V4} counter accept"),
        Rule::AcceptToProbe6 => format!("ip6 daddr {PROBE_V6} counter accept"),
        Rule::RedirectDnsUdp => format!("udp dport 53 {captured} {}", to(DNS_PORT)),
        Rule::RedirectDnsTcp => format!("tcp dport 53 {}", to(DNS_PORT)),
        Rule::RedirectOutbound => format!("meta l4proto tcp {}", to(OUTBOUND_PORT)),
        Rule::CheckMarked => format!("ct direction original {proxy} jump {NOT_PROXY_CHAIN}"),
        Rule::ReturnOfCgroup(group) => {
            format!("socket cgroupv2 level {} \"{}\" return", group.level, group.path)
        }
        Rule::TakeMarkOff => format!("counter meta mark set meta mark & {keep:#x}"),
        node => on_the_node(node),
    };
    vec![text]
}

/// The text of a rule of the node's own tables.
fn on_the_node(rule: &Rule) -> String {
    const LOCAL: &str = "oifname != \"lo\" meta l4proto tcp meta skuid >= 0";
    match rule {
        Rule::DropForgedProbe4 => format!("iifname != \"lo\" ip saddr {PROBE_V4} counter drop"),
        Rule::DropForgedProbe6 => format!("iifname != \"lo\" ip6 saddr {PROBE_V6} counter drop"),
        Rule::TranslateProbe4 => format!("{LOCAL} ip daddr @{PROBE_SET4} counter snat ip to {PROBE_V4}"),
        Rule::TranslateProbe6 => format!("{LOCAL} ip6 daddr @{PROBE_SET6} counter snat ip6 to {PROBE_V6}"),
        Rule::AcceptNeighbours => "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept".to_owned(),
        Rule::AcceptReplies => "ct direction reply accept".to_owned(),
        Rule::AcceptLocal => "meta skuid >= 0 accept".to_owned(),
        Rule::DropFromWaiting4 => format!("ip saddr @{WAIT_SET4} ip saddr != @{PASS_SET4} counter drop"),
        Rule::DropFromWaiting6 => format!("ip6 saddr @{WAIT_SET6} ip6 saddr != @{PASS_SET6} counter drop"),
        Rule::DropToWaiting4 => format!("ip daddr @{WAIT_SET4} ip daddr != @{PASS_SET4} counter drop"),
        Rule::DropToWaiting6 => format!("ip6 daddr @{WAIT_SET6} ip6 daddr != @{PASS_SET6} counter drop"),
        other => unreachable!("{other:?} is a rule of pods"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::{Variant, capture, drain};
    use super::*;

    #[test]
    fn the_table_with_dns_is_the_one_of_the_design() {
        insta::assert_snapshot!(render(&capture(&Variant {
            dns: true,
            ..Variant::default()
        })));
    }

    #[test]
    fn the_table_without_dns_lacks_its_chains_and_ports() {
        insta::assert_snapshot!(render(&capture(&Variant::default())));
    }

    #[test]
    fn the_table_without_inbound_and_with_a_virtual_interface() {
        let reroute = vec!["eth1".parse().unwrap()];
        insta::assert_snapshot!(render(&capture(&Variant {
            dns: false,
            inbound: false,
            reroute,
            ..Variant::default()
        })));
    }

    #[test]
    fn the_drain_table_captures_nothing_new() {
        insta::assert_snapshot!(render(&drain(ProxyMark::WellKnown)));
    }
}
