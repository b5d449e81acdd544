//! Whether packets of pods pass the node's own rules: those of a bridge do only if the kernel is told so.

use std::io;

use tulle_linux::NetNs;

use crate::netlink::{Connection, Message, NETLINK_ROUTE, attribute};

const BRIDGE_CALLS_IPTABLES: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";
const GET_LINK: u16 = 18;
/// `struct ifinfomsg`.
const FIXED: [u8; 16] = [0; 16];
const LINK_INFO: u16 = 18;
const INFO_KIND: u16 = 1;
const INFO_SLAVE_KIND: u16 = 4;

/// Whether packets between pods bypass the node's rules, in the namespace of the node.
///
/// # Errors
/// When the interfaces cannot be listed.
pub async fn are_bypassed(netns: &NetNs) -> io::Result<bool> {
    netns.run_async(are_bypassed_here).await?
}

fn are_bypassed_here() -> io::Result<bool> {
    let mut bridged = false;
    Connection::open(NETLINK_ROUTE)?.dump(&Message::new(GET_LINK, &FIXED), |body| {
        bridged |= is_bridged_pod(body);
    })?;
    let setting = std::fs::read_to_string(BRIDGE_CALLS_IPTABLES);
    Ok(bypassed(bridged, setting.ok().as_deref()))
}

/// Routed pods pass the rules always; bridged ones if the bridge calls them. Without the module that has the setting it
/// never does.
fn bypassed(bridged: bool, setting: Option<&str>) -> bool {
    bridged && setting.is_none_or(|text| text.trim() != "1")
}

/// One end of a pair, plugged into a bridge.
fn is_bridged_pod(body: &[u8]) -> bool {
    let info = body
        .get(FIXED.len()..)
        .and_then(|listed| attribute(listed, LINK_INFO));
    let is = |number, kind: &str| {
        let found = info.and_then(|info| attribute(info, number)).unwrap_or_default();
        found.strip_suffix(&[0]).unwrap_or(found) == kind.as_bytes()
    };
    is(INFO_KIND, "veth") && is(INFO_SLAVE_KIND, "bridge")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Attributes;

    #[test]
    fn routed_pods_pass_the_rules_and_bridged_ones_if_told_so() {
        assert!(!bypassed(false, None));
        assert!(bypassed(true, None));
        assert!(bypassed(true, Some("0\n")));
        assert!(!bypassed(true, Some("1\n")));
    }

    #[test]
    fn a_pair_in_a_bridge_is_a_bridged_pod() {
        let link = |kind: &str, slave: Option<&str>| {
            let info = Attributes::new().text(INFO_KIND, kind);
            let info = match slave {
                Some(slave) => info.text(INFO_SLAVE_KIND, slave),
                None => info,
            };
            [&FIXED[..], Attributes::new().nested(LINK_INFO, &info).as_bytes()].concat()
        };
        assert!(is_bridged_pod(&link("veth", Some("bridge"))));
        assert!(!is_bridged_pod(&link("veth", None)));
        assert!(!is_bridged_pod(&link("dummy", Some("bridge"))));
        assert!(!is_bridged_pod(&[0; 3]));
    }
}
