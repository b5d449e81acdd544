//! Where a workload entry runs, as its annotations say.

use std::collections::BTreeMap;
use std::net::IpAddr;

use tulle_model::Str;

use crate::api::Meta;

/// Annotation with the id of the node a workload entry runs on.
pub const NODE_ANNOTATION: &str = "tulle.dev/node";
/// Annotation by which the agent recognises the workload on its node; also the name of the extension.
pub const PROCESS_ANNOTATION: &str = "tulle.dev/process";
/// Annotation with every address, for workloads that have several.
const ADDRESSES_ANNOTATION: &str = "tulle.dev/addresses";

/// The ways to recognise a process.
const PROCESS_KINDS: [&str; 5] = ["unit", "cgroup", "netns", "uid", "pod"];

/// The node a workload entry runs on.
#[must_use]
pub fn node_of(meta: &Meta) -> Option<Str> {
    meta.annotations
        .get(NODE_ANNOTATION)
        .filter(|node| !node.is_empty())
        .cloned()
}

/// The extension that tells the agent which process this is.
pub(super) fn process(meta: &Meta, findings: &mut Vec<String>) -> BTreeMap<Str, Str> {
    let Some(process) = meta.annotations.get(PROCESS_ANNOTATION) else {
        return BTreeMap::new();
    };
    let known = process
        .split_once(':')
        .is_some_and(|(kind, value)| PROCESS_KINDS.contains(&kind) && !value.is_empty() && is_plain(value));
    if !known {
        findings.push(format!(
            "{PROCESS_ANNOTATION} must be unit:, cgroup:, netns:, uid: or pod: with a value"
        ));
        return BTreeMap::new();
    }
    if node_of(meta).is_none() {
        findings.push(format!(
            "{PROCESS_ANNOTATION} needs {NODE_ANNOTATION}; add the id of the node"
        ));
        return BTreeMap::new();
    }
    BTreeMap::from([(PROCESS_ANNOTATION.into(), process.clone())])
}

fn is_plain(value: &str) -> bool {
    value.len() <= 1024 && value.chars().all(|c| !c.is_control())
}

/// The addresses of [`ADDRESSES_ANNOTATION`].
pub(super) fn further_addresses(meta: &Meta, findings: &mut Vec<String>) -> Vec<IpAddr> {
    let texts = meta
        .annotation(ADDRESSES_ANNOTATION)
        .unwrap_or_default()
        .split(',')
        .map(str::trim);
    let mut addresses = Vec::new();
    for text in texts.filter(|text| !text.is_empty()) {
        match text.parse::<IpAddr>() {
            Ok(address) => addresses.push(address.to_canonical()),
            Err(_) => findings.push(format!(
                "{ADDRESSES_ANNOTATION} has a part that is no address; it is left out"
            )),
        }
    }
    addresses
}
