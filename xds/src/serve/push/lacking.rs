//! What a client lacks: by its first request, by another subscription, by a newer cut.

use std::collections::BTreeMap;
use std::sync::Arc;

use tulle_model::Str;
use tulle_proto::resume::{Digests, Layout};

use super::Queue;
use crate::serve::session::{Store, Subscription};
use crate::serve::viewer::Viewer;
use crate::snapshot::{Order, ResourceType, Slot};

/// Queues what a client lacks that tells digests of what it holds under a wildcard; says how many buckets that are.
pub fn resumed<S: Store>(
    ty: ResourceType,
    cut: &S,
    viewer: &Viewer,
    subscription: &Subscription,
    (layout, told): (Layout, &str),
    queue: &mut Queue,
) -> usize {
    queue.buckets = match Digests::parse(layout, told) {
        Some(held) => cut.digests(viewer, ty, layout).differing(&held),
        // What cannot be read says nothing: then every bucket is another.
        None => layout.all().collect(),
    };
    queue.confirms = layout == Layout::Fine && !queue.buckets.is_empty();
    for name in subscription.names() {
        asked(ty, cut, viewer, subscription, name, queue);
    }
    queue.buckets.len()
}

/// Whether a client that holds these versions lacks this one.
fn differs(held: &BTreeMap<Str, Str>, slot: &Slot) -> bool {
    held.get(&slot.name)
        .is_none_or(|version| **version != *slot.version)
}

/// Queues what a type's first request lacks, given what the client reports to hold.
pub fn initial<S: Store>(
    ty: ResourceType,
    cut: &S,
    viewer: &Viewer,
    subscription: &Subscription,
    held: &BTreeMap<Str, Str>,
    queue: &mut Queue,
) {
    let differs = |slot: &Arc<Slot>| differs(held, slot);
    let whole = cut
        .chunks(viewer, ty)
        .filter(|_| subscription.is_wildcard() && held.is_empty());
    if let Some(chunks) = whole {
        queue.whole = chunks.into();
        for name in subscription.names() {
            if visible(ty, cut, viewer, name).is_empty() {
                queue.remove(name, Order::Service);
            }
        }
        if queue.whole.len() <= 1 && queue.has_removals() {
            queue.spread();
        }
        return;
    }
    if subscription.is_wildcard() {
        let covered = cut
            .resources(ty)
            .filter(|slot| cut.lets(viewer, ty, slot) && cut.covers(viewer, ty, slot));
        covered
            .filter(|slot| differs(slot))
            .for_each(|slot| queue.set(slot));
    }
    // What is held and wanted no more is gone, as far as this client goes.
    let wanted = |slot: &&Arc<Slot>| wants(ty, cut, viewer, subscription, slot);
    if subscription.is_wildcard() {
        for name in held.keys().filter(|name| !subscription.names().contains(*name)) {
            if cut.resource(ty, name).filter(wanted).is_none() {
                queue.remove(name, Order::Service);
            }
        }
    }
    // Without a wildcard the held names are among the subscribed ones.
    for name in subscription.names() {
        let found = visible(ty, cut, viewer, name);
        if found.is_empty() {
            queue.remove(name, Order::Service);
        }
        found
            .into_iter()
            .filter(|slot| differs(slot))
            .for_each(|slot| queue.set(slot));
    }
}

/// Queues what a wildcard adds to what the client already holds by its earlier subscription.
pub fn widened<S: Store>(
    ty: ResourceType,
    cut: &S,
    viewer: &Viewer,
    before: &Subscription,
    after: &Subscription,
    queue: &mut Queue,
) {
    let wanted = |subscription, slot: &&Arc<Slot>| wants(ty, cut, viewer, subscription, slot);
    let added = cut
        .resources(ty)
        .filter(|slot| wanted(after, slot) && !wanted(before, slot));
    added.for_each(|slot| queue.set(slot));
}

/// Queues the answer to a name asked for or given up: the resources of that name or alias, or that there is none for
/// this client.
pub fn asked<S: Store>(
    ty: ResourceType,
    cut: &S,
    viewer: &Viewer,
    subscription: &Subscription,
    name: &Str,
    queue: &mut Queue,
) {
    let found = visible(ty, cut, viewer, name);
    if found.is_empty() {
        queue.remove(name, Order::Service);
    }
    for slot in found {
        if wants(ty, cut, viewer, subscription, slot) {
            queue.set(slot);
        } else {
            queue.remove(&slot.name, slot.order);
        }
    }
}

/// Queues what a client that asks by name is to be told along and does not hold as it is.
pub fn along<'a, S: Store>(
    ty: ResourceType,
    cut: &S,
    viewer: &Viewer,
    names: impl Iterator<Item = &'a Str>,
    held: &BTreeMap<Str, Str>,
    queue: &mut Queue,
) {
    let slots = names.filter_map(|name| cut.resource(ty, name));
    slots
        .filter(|slot| cut.lets(viewer, ty, slot) && differs(held, slot))
        .for_each(|slot| queue.set(slot));
}

/// Queues a resource that the client is to hold, whether it holds it already or not.
pub fn repeated<S: Store>(
    ty: ResourceType,
    cut: &S,
    viewer: &Viewer,
    subscription: &Subscription,
    name: &str,
    queue: &mut Queue,
) {
    let held = cut.resource(ty, name);
    if let Some(slot) = held.filter(|slot| wants(ty, cut, viewer, subscription, slot)) {
        queue.set(slot);
    }
}

/// Queues the removal of those names that there is nothing of for the client any more.
pub fn gone<'a, S: Store>(
    ty: ResourceType,
    cut: &S,
    viewer: &Viewer,
    subscription: &Subscription,
    names: impl Iterator<Item = &'a Str>,
    queue: &mut Queue,
) {
    let held = |slot: &&Arc<Slot>| wants(ty, cut, viewer, subscription, slot);
    for name in names.filter(|name| cut.resource(ty, name).filter(held).is_none()) {
        queue.remove(name, Order::Service);
    }
}

/// Queues what changed for a client between two cuts, by content and by who may see it, on top of what is queued.
///
/// Content of which `refused` says that the client refused it on this stream is left out.
pub fn difference<S: Store>(
    ty: ResourceType,
    (old, new): (&S, &S),
    viewer: &Viewer,
    (before, subscription): (&Subscription, &Subscription),
    refused: impl Fn(&Slot) -> bool,
    queue: &mut Queue,
) {
    if before.is_empty() && subscription.is_empty() {
        return;
    }
    // Nothing of the whole was sent yet, or there would be no newer cut: it is exchanged. Chunks are not asked for
    // where none are awaited: what a change touches would be cut anew for every stream.
    let whole = match queue.whole.is_empty() {
        true => None,
        false => new.chunks(viewer, ty),
    };
    let is_whole = whole.is_some();
    if let Some(chunks) = whole {
        queue.whole = chunks.into();
    }
    let held = |cut: &S, of: &Subscription, slot: &&Arc<Slot>| wants(ty, cut, viewer, of, slot);
    let (then, now) = (before, subscription);
    let mut compare = |name: &str| {
        let before = old.resource(ty, name).filter(|slot| held(old, then, slot));
        let after = new.resource(ty, name).filter(|slot| held(new, now, slot));
        match (before, after) {
            (Some(before), Some(after)) if before.version == after.version => {}
            (_, Some(after)) if is_whole => queue.found(after),
            (_, Some(after)) if refused(after) => queue.forget(&after.name),
            (_, Some(after)) => queue.set(after),
            // What was to come with the whole and never went out is not missed, unless it was asked for.
            (Some(before), None) if is_whole && !subscription.names_it(before) => {}
            (Some(before), None) => queue.remove(&before.name, before.order),
            (None, None) => {}
        }
    };
    match new.changed_since(ty, old.sequence()) {
        Some(changes) => changes.for_each(|change| compare(change.name())),
        // The log does not reach back: both cuts are at hand, so they are compared whole.
        None => {
            new.resources(ty).for_each(|slot| compare(&slot.name));
            let gone = old
                .resources(ty)
                .filter(|slot| new.resource(ty, &slot.name).is_none());
            gone.for_each(|slot| compare(&slot.name));
        }
    }
    new.covered_anew(old, viewer, ty)
        .iter()
        .for_each(|name| compare(name));
    then.along()
        .symmetric_difference(now.along())
        .for_each(|name| compare(name));
}

/// Whether this viewer is to hold a resource of a cut.
pub fn wants<S: Store>(
    ty: ResourceType,
    cut: &S,
    viewer: &Viewer,
    subscription: &Subscription,
    slot: &Slot,
) -> bool {
    let covered = || subscription.is_wildcard() && cut.covers(viewer, ty, slot);
    cut.lets(viewer, ty, slot) && (subscription.names_it(slot) || covered())
}

fn visible<'a, S: Store>(ty: ResourceType, cut: &'a S, viewer: &Viewer, name: &str) -> Vec<&'a Arc<Slot>> {
    let mut found = cut.resolve(ty, name);
    found.retain(|slot| cut.lets(viewer, ty, slot));
    found
}
