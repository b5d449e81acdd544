//! One type's resources by name, with content-hashed versions and a bounded log of changes.
//!
//! Tables are persistent: the engine edits its own clone while readers keep theirs, and both share what is equal.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use prost::encoding::{WireType, decode_key, decode_varint};
use rpds::RedBlackTreeMapSync;
use tulle_model::Str;
use tulle_proto::resume::{Bucket, Digests, Layout};

use crate::few::Few;
use crate::leaves::Leaves;
use crate::snapshot::chunk::{Buckets, Chunk};
use crate::snapshot::{Change, Order, Scope, Slot, Version};

/// Changes remembered per type. A client further behind gets a comparison by versions instead.
pub const LOG_ENTRIES_MAX: usize = 65_536;

/// Changes of one cut from which on they are not remembered one by one: to compare everything costs no more then, and the
/// first cut of all would fill the log with what nobody asks for.
const BULK_MIN: u32 = 32_768;

/// A resource as computed, before the table decides whether it is news.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// Resource name.
    pub name: Str,
    /// Other names it can be asked for by.
    pub aliases: Vec<Str>,
    /// The encoded message.
    pub body: Bytes,
    /// Place within one response.
    pub order: Order,
    /// Who may receive it.
    pub scope: Scope,
}

/// Where an entry stands in the log: the cut, then its place within the cut.
type LogPosition = (u64, u32);

/// The resources of one type.
#[derive(Debug, Clone, Default)]
pub struct Table {
    aliases: Leaves<Str, Few<Str>>,
    log: RedBlackTreeMapSync<LogPosition, Str>,
    /// The resources themselves.
    buckets: Buckets,
    /// Newest cut of which entries were dropped from the log.
    forgotten: u64,
}

impl Table {
    /// The resource of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<Slot>> {
        self.buckets.get(name)
    }

    /// The resource of this name, then those that have it as an alias.
    #[must_use]
    pub fn resolve(&self, name: &str) -> Vec<&Arc<Slot>> {
        let by_alias = self.aliases.get(name).into_iter().flat_map(Few::iter);
        let by_alias = by_alias
            .filter(|other| other.as_ref() != name)
            .filter_map(|other| self.get(other));
        self.get(name).into_iter().chain(by_alias).collect()
    }

    /// Every resource, in an order that means nothing.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Slot>> {
        self.buckets.iter()
    }

    /// Everything in chunks, for those who hold nothing.
    #[must_use]
    pub fn chunks(&self) -> Vec<Arc<Chunk>> {
        self.buckets.chunks()
    }

    /// The resources of one bucket.
    pub fn bucket(&self, bucket: Bucket) -> impl Iterator<Item = &Arc<Slot>> {
        self.buckets.resources(bucket)
    }

    /// What a client tells that holds all of it.
    #[must_use]
    pub fn digests(&self, layout: Layout) -> Arc<Digests> {
        self.buckets.digests(layout)
    }

    /// Bytes of all resources, as far as they count for what is sent.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.buckets.bytes()
    }

    /// Number of resources.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buckets.len()
    }

    /// Number of resources of these places.
    #[must_use]
    pub(crate) fn count(&self, orders: &[Order]) -> usize {
        self.buckets.count(orders)
    }

    /// Whether there is no resource.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buckets.len() == 0
    }

    /// What changed after the cut `sequence`; `None` if the log does not reach back that far.
    #[must_use]
    pub fn changed_since(&self, sequence: u64) -> Option<impl Iterator<Item = Change> + use<'_>> {
        if sequence < self.forgotten {
            return None;
        }
        let mut told = BTreeSet::new();
        let after = (sequence + 1, 0)..;
        Some(self.log.range(after).filter_map(move |((at, _), name)| {
            let change = match self.buckets.get(name) {
                Some(slot) if slot.sequence == *at => Change::Set(slot.clone()),
                Some(_) => return None,
                None => Change::Removed(name.clone()),
            };
            told.insert(name.clone()).then_some(change)
        }))
    }

    /// Whether the log does not reach back to the cut `sequence`.
    #[must_use]
    pub fn has_forgotten(&self, sequence: u64) -> bool {
        sequence < self.forgotten
    }

    /// Adds or replaces a resource; says whether that is a change. Equal content is none.
    pub fn set(&mut self, resource: Resource, sequence: u64) -> bool {
        let old = self.buckets.get(&resource.name).cloned();
        if old.as_ref().is_some_and(|old| same(old, &resource)) {
            return false;
        }
        let version = match &old {
            Some(old) if old.body == resource.body => old.version,
            _ => Version::of(&resource.body),
        };
        self.rename(
            &resource.name,
            old.as_deref().map_or(&[], |old| &old.aliases),
            &resource.aliases,
        );
        let Resource {
            name,
            aliases,
            body,
            order,
            scope,
        } = resource;
        self.record(&name, sequence);
        let slot = Arc::new(Slot {
            name,
            aliases: aliases.into(),
            version,
            body,
            sequence,
            order,
            scope,
        });
        self.buckets.replace(old.as_deref(), Some(&slot));
        true
    }

    /// Changes who may receive a resource; says whether that is a change.
    pub fn rescope(&mut self, name: &str, scope: Scope, sequence: u64) -> bool {
        let Some(old) = self.buckets.get(name).filter(|old| old.scope != scope).cloned() else {
            return false;
        };
        self.record(&old.name, sequence);
        let slot = Arc::new(Slot {
            scope,
            sequence,
            ..(*old).clone()
        });
        self.buckets.replace(Some(&old), Some(&slot));
        true
    }

    /// Removes a resource; says whether there was one.
    pub fn remove(&mut self, name: &str, sequence: u64) -> bool {
        let Some(old) = self.buckets.get(name).cloned() else {
            return false;
        };
        self.rename(&old.name, &old.aliases, &[]);
        self.record(&old.name, sequence);
        self.buckets.replace(Some(&old), None);
        true
    }

    /// Moves a resource from its old aliases to its new ones.
    fn rename(&mut self, name: &Str, old: &[Str], new: &[Str]) {
        for alias in old.iter().filter(|alias| !new.contains(alias)) {
            let mut names = self.aliases.get(alias).cloned().unwrap_or_default();
            names.remove(name);
            if names.is_empty() {
                self.aliases.remove_mut(alias);
            } else {
                self.aliases.insert_mut(alias.clone(), names);
            }
        }
        for alias in new.iter().filter(|alias| !old.contains(alias)) {
            let mut names = self.aliases.get(alias).cloned().unwrap_or_default();
            if names.insert(name.clone()) {
                self.aliases.insert_mut(alias.clone(), names);
            }
        }
    }

    fn record(&mut self, name: &Str, sequence: u64) {
        if self.forgotten == sequence {
            return;
        }
        let place = match self.log.last() {
            Some(((at, place), _)) if *at == sequence => place + 1,
            _ => 0,
        };
        if place >= BULK_MIN {
            (self.log, self.forgotten) = (RedBlackTreeMapSync::default(), sequence);
            return;
        }
        self.log.insert_mut((sequence, place), name.clone());
        if self.log.size() <= LOG_ENTRIES_MAX {
            return;
        }
        if let Some(oldest) = self.log.first().map(|(position, _)| *position) {
            self.log.remove_mut(&oldest);
            self.forgotten = oldest.0;
        }
    }

    /// Gives back what the index of aliases takes that was not filled in order, once that is much.
    pub(super) fn pack(&mut self) {
        self.aliases.pack();
    }

    /// The workloads among these addresses as bare ones, as the older type carries them; `sequence` is that of the cut.
    #[must_use]
    pub(crate) fn bare(&self, sequence: u64) -> Self {
        let mut bare = Self {
            forgotten: sequence,
            ..Self::default()
        };
        for slot in self.iter() {
            let Some(body) = bare_body(slot.order, &slot.body) else {
                continue;
            };
            let slot = Arc::new(Slot {
                version: Version::of(&body),
                body,
                ..Slot::clone(slot)
            });
            bare.rename(&slot.name, &[], &slot.aliases);
            bare.buckets.replace(None, Some(&slot));
        }
        bare
    }
}

impl Resource {
    /// The bare workload of an address, if it is one.
    #[must_use]
    pub(crate) fn bare(&self) -> Option<Self> {
        let body = bare_body(self.order, &self.body)?;
        Some(Self { body, ..self.clone() })
    }
}

/// A bare workload stands as it is in its address, whose only field it is, so that it is not held twice.
fn bare_body(order: Order, address: &Bytes) -> Option<Bytes> {
    if !matches!(order, Order::Workload | Order::WaypointWorkload) {
        return None;
    }
    let mut rest = &**address;
    let (_, WireType::LengthDelimited) = decode_key(&mut rest).ok()? else {
        return None;
    };
    let length = decode_varint(&mut rest).ok()?;
    (length == rest.len() as u64).then(|| address.slice(address.len() - rest.len()..))
}

fn same(slot: &Slot, resource: &Resource) -> bool {
    slot.body == resource.body
        && *slot.aliases == *resource.aliases
        && slot.order == resource.order
        && slot.scope == resource.scope
}
