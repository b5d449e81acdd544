//! Which policies are told again after a workload.
//!
//! Istio's ztunnel judges open connections anew when a policy arrives, not when a workload begins to name one it has
//! long had. For such clients the policies that a workload of their node newly names follow it once more, unchanged.

use std::collections::BTreeSet;

use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use tulle_model::Str;

use crate::serve::session::Store;
use crate::serve::viewer::Viewer;
use crate::snapshot::{Change, ResourceType};

/// Fields of `istio.workload.Address` and of the workload in it.
const WORKLOAD: u32 = 1;
const NODE: u32 = 9;
const POLICIES: u32 = 16;

/// The policies that workloads of the viewer's node name in the new cut and did not in the old one.
pub(super) fn newly_named<S: Store>(viewer: &Viewer, old: &S, new: &S) -> BTreeSet<Str> {
    let ty = ResourceType::Address;
    let Some(node) = viewer.foreign_node() else {
        return BTreeSet::new();
    };
    let mut named = BTreeSet::new();
    let mut compare = |name: &str| {
        let Some(after) = new.resource(ty, name) else {
            return;
        };
        let before = old.resource(ty, name).and_then(|slot| named_of(&slot.body, node));
        let before = before.unwrap_or_default();
        let after = named_of(&after.body, node).unwrap_or_default();
        named.extend(
            after
                .iter()
                .filter(|name| !before.contains(name))
                .map(|name| Str::from(*name)),
        );
    };
    match new.changed_since(ty, old.sequence()) {
        Some(changes) => changes.for_each(|change| match change {
            Change::Set(slot) => compare(&slot.name),
            Change::Removed(_) => {}
        }),
        None => new.resources(ty).for_each(|slot| compare(&slot.name)),
    }
    named
}

/// The policies that these workloads of the viewer's node name.
pub(super) fn named_by<'a, S: Store>(
    viewer: &Viewer,
    cut: &S,
    names: impl Iterator<Item = &'a Str>,
) -> BTreeSet<Str> {
    let Some(node) = viewer.foreign_node() else {
        return BTreeSet::new();
    };
    let slots = names.filter_map(|name| cut.resource(ResourceType::Address, name));
    let policies = slots.filter_map(|slot| named_of(&slot.body, node));
    policies.flatten().map(Str::from).collect()
}

/// The node of an encoded workload.
pub(crate) fn node_of(address: &[u8]) -> Option<&str> {
    let workload = field(address, WORKLOAD).next()?;
    std::str::from_utf8(field(workload, NODE).next()?).ok()
}

/// The policies that an encoded workload names, if it is on this node. Everything else is skipped unread.
pub(crate) fn named_of<'a>(address: &'a [u8], node: &str) -> Option<Vec<&'a str>> {
    let workload = field(address, WORKLOAD).next()?;
    if field(workload, NODE).next()? != node.as_bytes() {
        return None;
    }
    let policies = field(workload, POLICIES);
    Some(
        policies
            .filter_map(|name| std::str::from_utf8(name).ok())
            .collect(),
    )
}

/// The values of a length-delimited field of a message.
fn field(mut message: &[u8], wanted: u32) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        loop {
            let (number, wire_type) = decode_key(&mut message).ok()?;
            if number == wanted && wire_type == WireType::LengthDelimited {
                let length = usize::try_from(decode_varint(&mut message).ok()?).ok()?;
                let (value, rest) = message.split_at_checked(length)?;
                message = rest;
                return Some(value);
            }
            skip_field(wire_type, number, &mut message, DecodeContext::default()).ok()?;
        }
    })
}

#[cfg(test)]
mod tests {
    use tulle_model::testing::{name, workload};
    use tulle_proto::{Resource, encode_address};

    use super::*;

    #[test]
    fn the_policies_of_a_workload_are_read_for_its_own_node_only() {
        let mut web = workload("shop/web").build();
        web.node = "n1".into();
        web.authorization_policies = vec![name("shop/a"), name("shop/b")];
        let body = encode_address(&Resource::Workload(web.into())).unwrap();
        assert_eq!(node_of(&body), Some("n1"));
        assert_eq!(named_of(&body, "n1"), Some(vec!["shop/a", "shop/b"]));
        assert_eq!(named_of(&body, "n2"), None);
        for end in 0..body.len() {
            let _ = (named_of(&body[..end], "n1"), node_of(&body[..end]));
        }
    }
}
