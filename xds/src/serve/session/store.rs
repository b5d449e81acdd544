//! What a session reads: one immutable cut, as its viewer may see it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use tulle_model::Str;
use tulle_proto::resume::{Bucket, Digests, Layout};

use crate::serve::viewer::Viewer;
use crate::snapshot::{Change, Chunk, ResourceType, Slot, Snapshot, Step};

/// One immutable cut.
pub trait Store: Clone {
    /// Number of the cut.
    fn sequence(&self) -> u64;
    /// When it was published.
    fn published(&self) -> Option<Instant> {
        None
    }
    /// The resource of this name.
    fn resource(&self, ty: ResourceType, name: &str) -> Option<&Arc<Slot>>;
    /// The resources with this name or alias.
    fn resolve(&self, ty: ResourceType, name_or_alias: &str) -> Vec<&Arc<Slot>>;
    /// Every resource of a type.
    fn resources(&self, ty: ResourceType) -> impl Iterator<Item = &Arc<Slot>>;
    /// What changed after the cut `sequence`; `None` if that is not known any more.
    fn changed_since(&self, ty: ResourceType, sequence: u64) -> Option<impl Iterator<Item = Change>>;
    /// Everything of a type in chunks that others are sent, too; `None` where each viewer sees something else.
    fn chunks(&self, _viewer: &Viewer, _ty: ResourceType) -> Option<Vec<Arc<Chunk>>> {
        None
    }
    /// What changed since an older cut for a viewer that is sent everything of a type, as one value for all of them;
    /// `None` where each viewer sees something else, or the log does not reach back.
    fn step(&self, _old: &Self, _viewer: &Viewer, _ty: ResourceType) -> Option<Arc<Step>> {
        None
    }
    /// The resources of one bucket.
    fn bucket(&self, ty: ResourceType, bucket: Bucket) -> Vec<&Arc<Slot>> {
        let resources = self.resources(ty);
        resources.filter(|slot| bucket.holds(&slot.name)).collect()
    }
    /// Whether a viewer may receive this resource at all.
    fn lets(&self, viewer: &Viewer, ty: ResourceType, slot: &Slot) -> bool {
        viewer.receives(ty, slot)
    }
    /// What a viewer whose wildcard is up to date would tell of what it holds.
    fn digests(&self, viewer: &Viewer, ty: ResourceType, layout: Layout) -> Arc<Digests> {
        let held = |slot: &&Arc<Slot>| self.lets(viewer, ty, slot) && self.covers(viewer, ty, slot);
        let held = self.resources(ty).filter(held);
        let held = held.map(|slot| (&*slot.name, &*slot.version));
        Arc::new(Digests::of(layout, held))
    }
    /// What a viewer that asks by name is told along: what runs on its node, and what goes with the names.
    fn along(&self, _viewer: &Viewer, _ty: ResourceType, _names: &BTreeSet<Str>) -> BTreeSet<Str> {
        BTreeSet::new()
    }
    /// Whether a wildcard of this viewer means this resource: everything for node proxies, its own part for a
    /// waypoint.
    fn covers(&self, _viewer: &Viewer, _ty: ResourceType, _slot: &Slot) -> bool {
        true
    }
    /// Names whose [`Self::covers`] or [`Self::lets`] may differ from that of an older cut although they did not change.
    fn covered_anew(&self, _old: &Self, _viewer: &Viewer, _ty: ResourceType) -> Vec<Str> {
        Vec::new()
    }
}

impl Store for Arc<Snapshot> {
    fn sequence(&self) -> u64 {
        Snapshot::sequence(self)
    }

    fn published(&self) -> Option<Instant> {
        Snapshot::published(self)
    }

    fn resource(&self, ty: ResourceType, name: &str) -> Option<&Arc<Slot>> {
        Snapshot::resource(self, ty, name)
    }

    fn resolve(&self, ty: ResourceType, name_or_alias: &str) -> Vec<&Arc<Slot>> {
        Snapshot::resolve(self, ty, name_or_alias)
    }

    fn resources(&self, ty: ResourceType) -> impl Iterator<Item = &Arc<Slot>> {
        Snapshot::resources(self, ty)
    }

    fn changed_since(&self, ty: ResourceType, sequence: u64) -> Option<impl Iterator<Item = Change>> {
        Snapshot::changed_since(self, ty, sequence)
    }

    fn chunks(&self, viewer: &Viewer, ty: ResourceType) -> Option<Vec<Arc<Chunk>>> {
        is_for_all(viewer, ty).then(|| self.table(ty).chunks())
    }

    fn step(&self, old: &Self, viewer: &Viewer, ty: ResourceType) -> Option<Arc<Step>> {
        is_for_all(viewer, ty)
            .then(|| Snapshot::step(self, old, ty))
            .flatten()
    }

    fn bucket(&self, ty: ResourceType, bucket: Bucket) -> Vec<&Arc<Slot>> {
        self.table(ty).bucket(bucket).collect()
    }

    fn lets(&self, viewer: &Viewer, ty: ResourceType, slot: &Slot) -> bool {
        match (viewer.waypoint(), ty) {
            // A waypoint is judged by what its own replicas name, and gets no other policy of node proxies.
            (Some(waypoint), ResourceType::Authorization) => {
                let fronts = self.fronted().of(waypoint);
                fronts.is_some_and(|fronts| fronts.authorizations.contains(&slot.name))
            }
            _ => viewer.receives(ty, slot),
        }
    }

    fn digests(&self, viewer: &Viewer, ty: ResourceType, layout: Layout) -> Arc<Digests> {
        let table = self.table(ty);
        if is_for_all(viewer, ty) {
            return table.digests(layout);
        }
        let held = |slot: &&Arc<Slot>| self.lets(viewer, ty, slot) && self.covers(viewer, ty, slot);
        let held = table.iter().filter(held);
        let held = held.map(|slot| (&*slot.name, &*slot.version));
        Arc::new(Digests::of(layout, held))
    }

    fn along(&self, viewer: &Viewer, ty: ResourceType, names: &BTreeSet<Str>) -> BTreeSet<Str> {
        let (Some(node), ResourceType::Address) = (viewer.node_name(), ty) else {
            return BTreeSet::new();
        };
        let resolve = |name: &str| -> Vec<Str> {
            let found = Snapshot::resolve(self, ty, name).into_iter();
            found.map(|slot| slot.name.clone()).collect()
        };
        let asked = names.iter().flat_map(|name| resolve(name));
        let mut along = self.around().along(asked, resolve);
        along.extend(self.around().of_node(node).cloned());
        along
    }

    fn covers(&self, viewer: &Viewer, ty: ResourceType, slot: &Slot) -> bool {
        match (viewer.waypoint(), ty) {
            (Some(waypoint), ResourceType::Address | ResourceType::Workload) => {
                self.waypoint_addresses(waypoint, &slot.name)
            }
            _ => true,
        }
    }

    fn covered_anew(&self, old: &Self, viewer: &Viewer, ty: ResourceType) -> Vec<Str> {
        let Some(waypoint) = viewer.waypoint() else {
            return Vec::new();
        };
        let names = |cut: &Self| -> BTreeSet<Str> {
            let fronts = cut.fronted().of(waypoint);
            let names = fronts.map(|fronts| match ty {
                ResourceType::Address | ResourceType::Workload => fronts.addresses.clone(),
                ResourceType::Authorization => fronts.authorizations.clone(),
                _ => BTreeSet::new(),
            });
            names.unwrap_or_default()
        };
        let (old, new) = (names(old), names(self));
        old.symmetric_difference(&new).cloned().collect()
    }
}

/// Whether every viewer of this kind receives everything of the type: addresses are every node's.
fn is_for_all(viewer: &Viewer, ty: ResourceType) -> bool {
    viewer.waypoint().is_none() && matches!(ty, ResourceType::Address | ResourceType::Workload)
}
