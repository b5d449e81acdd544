//! A store of opaque resources that tests edit by hand.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tulle_model::Str;
use tulle_xds::serve::session::Store;
use tulle_xds::serve::viewer::Viewer;
use tulle_xds::snapshot::{Change, Chunk, Order, ResourceType, Scope, Slot, Step};

/// Entries the log keeps, small enough for tests to overrun it.
pub(crate) const LOG_MAX: usize = 8;

/// One immutable cut.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cut(Arc<Content>);

#[derive(Debug, Clone, Default)]
struct Content {
    /// Resources in one chunk, where tables are told in chunks.
    chunk: Option<usize>,
    sequence: u64,
    published: Option<Instant>,
    slots: BTreeMap<(ResourceType, Str), Arc<Slot>>,
    log: Vec<(u64, ResourceType, Str)>,
    forgotten: u64,
}

impl Store for Cut {
    fn sequence(&self) -> u64 {
        self.0.sequence
    }

    fn published(&self) -> Option<Instant> {
        self.0.published
    }

    fn resource(&self, ty: ResourceType, name: &str) -> Option<&Arc<Slot>> {
        self.0.slots.get(&(ty, name.into()))
    }

    fn resolve(&self, ty: ResourceType, name: &str) -> Vec<&Arc<Slot>> {
        let by_alias =
            |slot: &&Arc<Slot>| &*slot.name == name || slot.aliases.iter().any(|alias| &**alias == name);
        self.resources(ty).filter(by_alias).collect()
    }

    fn resources(&self, ty: ResourceType) -> impl Iterator<Item = &Arc<Slot>> {
        self.0
            .slots
            .iter()
            .filter(move |((of, _), _)| *of == ty)
            .map(|(_, slot)| slot)
    }

    fn chunks(&self, _: &Viewer, ty: ResourceType) -> Option<Vec<Arc<Chunk>>> {
        let all: Vec<Arc<Slot>> = self.resources(ty).cloned().collect();
        let for_all = all.iter().all(|slot| slot.scope == Scope::Everyone);
        let chunk = |slots: &[Arc<Slot>]| Arc::new(Chunk::new(slots.into()));
        let size = self.0.chunk.filter(|_| for_all)?;
        Some(all.chunks(size).map(chunk).collect())
    }

    fn step(&self, old: &Self, _: &Viewer, ty: ResourceType) -> Option<Arc<Step>> {
        // As where tables are told in chunks: only where everybody is sent everything.
        let all = self.resources(ty).chain(old.resources(ty));
        let for_all = all.into_iter().all(|slot| slot.scope == Scope::Everyone);
        self.0.chunk.filter(|_| for_all && ty == ResourceType::Address)?;
        let changes = self.changed_since(ty, old.sequence())?;
        let changes = changes.map(|change| (old.resource(ty, change.name()), change));
        Some(Arc::new(Step::new(ty, old.sequence(), changes)))
    }

    fn changed_since(&self, ty: ResourceType, sequence: u64) -> Option<impl Iterator<Item = Change>> {
        if sequence < self.0.forgotten {
            return None;
        }
        let log = self.0.log.iter();
        let names: BTreeSet<&Str> = log
            .filter(|(at, of, _)| *at > sequence && *of == ty)
            .map(|(_, _, n)| n)
            .collect();
        Some(names.into_iter().map(move |name| match self.resource(ty, name) {
            Some(slot) => Change::Set(slot.clone()),
            None => Change::Removed(name.clone()),
        }))
    }
}

impl Cut {
    /// The same in chunks of this many resources.
    pub(crate) fn in_chunks_of(mut self, resources: usize) -> Self {
        Arc::make_mut(&mut self.0).chunk = Some(resources);
        self
    }

    /// The next cut with these edits, published at this time.
    pub(crate) fn edit_at(&mut self, published: Instant, edits: impl IntoIterator<Item = Edit>) {
        Arc::make_mut(&mut self.0).published = Some(published);
        self.edit(edits);
    }

    /// The next cut with these edits.
    pub(crate) fn edit(&mut self, edits: impl IntoIterator<Item = Edit>) {
        let content = Arc::make_mut(&mut self.0);
        content.sequence += 1;
        for edit in edits {
            let (ty, name) = match edit {
                Edit::Set(ty, mut slot) => {
                    slot.sequence = content.sequence;
                    let name = slot.name.clone();
                    content.slots.insert((ty, name.clone()), Arc::new(slot));
                    (ty, name)
                }
                Edit::Remove(ty, name) => {
                    content.slots.remove(&(ty, name.clone()));
                    (ty, name)
                }
            };
            content.log.push((content.sequence, ty, name));
            if content.log.len() > LOG_MAX {
                content.forgotten = content.log.remove(0).0;
            }
        }
    }
}

/// One change of a cut.
#[derive(Debug, Clone)]
pub(crate) enum Edit {
    Set(ResourceType, Slot),
    Remove(ResourceType, Str),
}

/// A resource whose content is its version.
pub(crate) fn slot(name: &str, version: &str) -> Slot {
    Slot {
        name: name.into(),
        aliases: [].into(),
        version: version.into(),
        body: Bytes::copy_from_slice(version.as_bytes()),
        sequence: 0,
        order: Order::Workload,
        scope: Scope::Everyone,
    }
}

/// `name@version`.
pub(crate) fn set(ty: ResourceType, text: &str) -> Edit {
    let (name, version) = text.split_once('@').expect("name@version");
    Edit::Set(ty, slot(name, version))
}

pub(crate) fn remove(ty: ResourceType, name: &str) -> Edit {
    Edit::Remove(ty, name.into())
}
