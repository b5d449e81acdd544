//! Whole tables, cut into chunks that are encoded once for everybody who starts from nothing, and into buckets whose
//! digests tell a client that comes back what it lacks.
//!
//! A change replaces the bucket of its name, and the row that its family stands in: pods of one owner have names that
//! differ at the end only, and side by side they take half the bytes of strangers. Chunks are groups of rows, made when
//! somebody asks and kept for as long as they hold the same, also from one cut to the next.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use rpds::RedBlackTreeMapSync;
use tulle_proto::resume::{self, Digests, Layout};

use super::{Order, Slot};
use crate::serve::frame::Payload;
use crate::serve::push::size_of;

/// Resources in one chunk.
pub const CHUNK_RESOURCES_MAX: usize = 1000;
/// Bytes of one chunk, save a single larger resource.
pub const CHUNK_BYTES_MAX: usize = 2 << 20;

/// Some resources of a table, in the order in which they are sent.
#[derive(Debug)]
pub struct Chunk {
    resources: Arc<[Arc<Slot>]>,
    bytes: usize,
    payload: OnceLock<Arc<Payload>>,
}

impl Chunk {
    /// Of these resources, which must be sorted by order.
    #[must_use]
    pub fn new(resources: Arc<[Arc<Slot>]>) -> Self {
        Self {
            bytes: resources.iter().map(|slot| size_of(slot)).sum(),
            resources,
            payload: OnceLock::new(),
        }
    }

    /// Bytes of the resources, as far as they count for what waits for an answer.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The resources.
    #[must_use]
    pub fn resources(&self) -> &Arc<[Arc<Slot>]> {
        &self.resources
    }

    /// The resources as they are written, encoded at the first call.
    #[must_use]
    pub fn payload(&self, type_url: &str) -> Arc<Payload> {
        let encode = || Arc::new(Payload::encode(type_url, &self.resources, &[]));
        self.payload.get_or_init(encode).clone()
    }
}

/// The resources whose names fall together, by name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bucket {
    resources: Vec<Arc<Slot>>,
    digest: OnceLock<u64>,
}

/// Rows of a table.
const ROWS: u16 = resume::BUCKETS;
/// Rows that one family is spread over, so that a large one is not told anew as a whole.
const ROWS_PER_FAMILY: u16 = 4;

/// Resources whose families fall together, by name.
type Row = Vec<Arc<Slot>>;

/// A table's resources by bucket of the fine layout. Clones share what is equal, and the chunks.
#[derive(Debug, Clone, Default)]
pub(crate) struct Buckets {
    buckets: RedBlackTreeMapSync<u16, Arc<Bucket>>,
    /// What a client tells that holds all of it, in each layout that somebody came back with since the last change.
    digests: [OnceLock<Arc<Digests>>; Layout::ALL.len()],
    /// The same resources by family.
    rows: RedBlackTreeMapSync<u16, Arc<Row>>,
    /// Resources by order.
    counts: BTreeMap<Order, usize>,
    bytes: usize,
    made: Arc<Mutex<BTreeMap<Group, Made>>>,
}

/// Neighbouring rows, and which of their resources are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Group {
    order: Option<Order>,
    first: u16,
    rows: u16,
}

#[derive(Debug)]
struct Made {
    of: Vec<Arc<Row>>,
    chunks: Vec<Arc<Chunk>>,
}

impl Buckets {
    /// Puts a resource in the place of an old one.
    pub(crate) fn replace(&mut self, old: Option<&Slot>, new: Option<&Arc<Slot>>) {
        let Some(name) = old
            .or_else(|| new.map(AsRef::as_ref))
            .map(|slot| slot.name.clone())
        else {
            return;
        };
        if let Some(old) = old {
            self.bytes -= size_of(old);
            *self.counts.entry(old.order).or_default() -= 1;
        }
        if let Some(new) = new {
            self.bytes += size_of(new);
            *self.counts.entry(new.order).or_default() += 1;
        }
        self.digests = Default::default();
        let at = place_of(&name);
        if !self.buckets.contains_key(&at) {
            self.buckets.insert_mut(at, Arc::default());
        }
        let Some(bucket) = self.buckets.get_mut(&at).map(Arc::make_mut) else {
            return;
        };
        bucket.digest = OnceLock::new();
        replace_in(&mut bucket.resources, &name, new);
        let at = row_of(&name);
        if !self.rows.contains_key(&at) {
            self.rows.insert_mut(at, Arc::default());
        }
        if let Some(row) = self.rows.get_mut(&at) {
            replace_in(Arc::make_mut(row), &name, new);
        }
    }

    /// The resource of this name.
    pub(crate) fn get(&self, name: &str) -> Option<&Arc<Slot>> {
        let of = self.within(place_of(name));
        let at = of.binary_search_by(|slot| (*slot.name).cmp(name)).ok()?;
        of.get(at)
    }

    /// Every resource, by bucket and name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Slot>> {
        self.buckets.values().flat_map(|bucket| &bucket.resources)
    }

    /// Number of resources.
    pub(crate) fn len(&self) -> usize {
        self.counts.values().sum()
    }

    /// Number of resources of these places.
    pub(crate) fn count(&self, orders: &[Order]) -> usize {
        orders.iter().filter_map(|order| self.counts.get(order)).sum()
    }

    /// Bytes of everything, as far as they count for what is sent.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The resources of one bucket.
    pub(crate) fn resources(&self, bucket: resume::Bucket) -> impl Iterator<Item = &Arc<Slot>> {
        // A coarse bucket is every so manieth fine one: its number is what remains of theirs.
        let parts = (bucket.number()..Layout::Fine.buckets()).step_by(bucket.layout().buckets().into());
        parts.flat_map(move |part| self.within(part))
    }

    fn within(&self, fine: u16) -> &[Arc<Slot>] {
        self.buckets.get(&fine).map_or(&[], |bucket| &bucket.resources)
    }

    /// What a client tells that holds all of it.
    pub(crate) fn digests(&self, layout: Layout) -> Arc<Digests> {
        let make = || {
            let digests = match layout {
                Layout::Fine => Digests::by_bucket(layout, |bucket| self.digest(bucket.number())),
                Layout::Coarse => {
                    let pairs = self.iter().map(|slot| (&*slot.name, &*slot.version));
                    Digests::of(layout, pairs)
                }
            };
            Arc::new(digests)
        };
        self.digests[layout as usize].get_or_init(make).clone()
    }

    fn digest(&self, fine: u16) -> u64 {
        let of = |bucket: &Arc<Bucket>| {
            let pairs = bucket.resources.iter().map(|slot| (&*slot.name, &*slot.version));
            *bucket.digest.get_or_init(|| resume::digest(pairs))
        };
        self.buckets.get(&fine).map_or(0, of)
    }

    /// Everything, in the order in which it is sent. A small table is one chunk.
    pub(crate) fn chunks(&self) -> Vec<Arc<Chunk>> {
        let groups = self.groups();
        let mut made = self.made.lock();
        let chunks = groups
            .iter()
            .flat_map(|group| self.made(*group, &mut made))
            .collect();
        let asked: BTreeSet<Group> = groups.into_iter().collect();
        made.retain(|group, _| asked.contains(group));
        chunks
    }

    fn groups(&self) -> Vec<Group> {
        let all: usize = self.counts.values().sum();
        if all <= CHUNK_RESOURCES_MAX {
            return vec![Group {
                order: None,
                first: 0,
                rows: ROWS,
            }];
        }
        let filled = self.counts.iter().filter(|(_, count)| **count > 0);
        let of_order = |(order, count): (&Order, &usize)| {
            let (order, rows) = (Some(*order), rows_per_chunk(*count));
            let starts = (0..ROWS).step_by(rows.into());
            starts.map(move |first| Group { order, first, rows })
        };
        filled.flat_map(of_order).collect()
    }

    fn made(&self, group: Group, made: &mut BTreeMap<Group, Made>) -> Vec<Arc<Chunk>> {
        let of: Vec<Arc<Row>> = self
            .rows
            .range(group.first..group.first + group.rows)
            .map(|(_, row)| row.clone())
            .collect();
        let is_same = |known: &Made| {
            known.of.len() == of.len()
                && known
                    .of
                    .iter()
                    .zip(&of)
                    .all(|(one, other)| Arc::ptr_eq(one, other))
        };
        if let Some(known) = made.get(&group).filter(|known| is_same(known)) {
            return known.chunks.clone();
        }
        let mut resources: Vec<Arc<Slot>> = of
            .iter()
            .flat_map(|row| row.iter())
            .filter(|slot| group.order.is_none_or(|order| slot.order == order))
            .cloned()
            .collect();
        resources.sort_by(|one, other| (one.order, &one.name).cmp(&(other.order, &other.name)));
        let known = made.get(&group).map_or(&[][..], |known| &known.chunks);
        let chunks = cut(&resources, known);
        made.insert(
            group,
            Made {
                of,
                chunks: chunks.clone(),
            },
        );
        chunks
    }
}

/// Puts a resource into a list that is ordered by name, or takes the one of this name out of it.
fn replace_in(resources: &mut Vec<Arc<Slot>>, name: &str, new: Option<&Arc<Slot>>) {
    match (resources.binary_search_by(|slot| (*slot.name).cmp(name)), new) {
        (Ok(place), Some(new)) => resources[place] = new.clone(),
        (Ok(place), None) => drop(resources.remove(place)),
        (Err(place), Some(new)) => resources.insert(place, new.clone()),
        (Err(_), None) => {}
    }
}

/// The row of a name: that of its family, which is what stands before the last dash, and one of its few for the rest.
fn row_of(name: &str) -> u16 {
    let (family, own) = name.rsplit_once('-').unwrap_or((name, ""));
    let first = resume::bucket_of(family) / ROWS_PER_FAMILY * ROWS_PER_FAMILY;
    first + resume::bucket_of(own) % ROWS_PER_FAMILY
}

fn place_of(name: &str) -> u16 {
    Layout::Fine.bucket_of(name).number()
}

/// As many neighbouring rows as hold no more than a chunk should; a power of two, so that groups meet their bounds.
fn rows_per_chunk(resources: usize) -> u16 {
    let mut rows = ROWS;
    while rows > 1 && resources * usize::from(rows) > CHUNK_RESOURCES_MAX * usize::from(ROWS) {
        rows /= 2;
    }
    rows
}

/// Resources as chunks; one that holds what a known one at its place does is that one.
fn cut(resources: &[Arc<Slot>], known: &[Arc<Chunk>]) -> Vec<Arc<Chunk>> {
    let mut chunks: Vec<Arc<Chunk>> = Vec::new();
    let mut push = |some: &[Arc<Slot>]| {
        let is_same = |known: &&Arc<Chunk>| {
            let pairs = known.resources.iter().zip(some);
            known.resources.len() == some.len()
                && pairs.into_iter().all(|(one, other)| Arc::ptr_eq(one, other))
        };
        let same = known.get(chunks.len()).filter(is_same).cloned();
        chunks.push(same.unwrap_or_else(|| Arc::new(Chunk::new(some.into()))));
    };
    let (mut begin, mut bytes) = (0, 0);
    for (at, slot) in resources.iter().enumerate() {
        let size = size_of(slot);
        if at > begin && (bytes + size > CHUNK_BYTES_MAX || at - begin >= CHUNK_RESOURCES_MAX) {
            push(&resources[begin..at]);
            (begin, bytes) = (at, 0);
        }
        bytes += size;
    }
    if begin < resources.len() {
        push(&resources[begin..]);
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Scope;

    fn slot(name: &str, version: &str, order: Order) -> Arc<Slot> {
        Arc::new(Slot {
            name: name.into(),
            aliases: [].into(),
            version: version.into(),
            body: bytes::Bytes::from(vec![1; 100]),
            sequence: 1,
            order,
            scope: Scope::Everyone,
        })
    }

    fn filled(workloads: usize, services: usize) -> (Buckets, Vec<Arc<Slot>>) {
        let (mut buckets, mut all) = (Buckets::default(), Vec::new());
        for (count, order) in [(services, Order::Service), (workloads, Order::Workload)] {
            for number in 0..count {
                let slot = slot(&format!("{order:?}{:05}-{number:06}", number / 10), "1", order);
                buckets.replace(None, Some(&slot));
                all.push(slot);
            }
        }
        (buckets, all)
    }

    fn names(chunks: &[Arc<Chunk>]) -> Vec<&str> {
        chunks
            .iter()
            .flat_map(|chunk| chunk.resources().iter())
            .map(|slot| &*slot.name)
            .collect()
    }

    #[test]
    fn chunks_hold_everything_once_in_order_and_within_their_bounds() {
        for (workloads, services) in [(0, 0), (3, 2), (900, 200), (30_000, 3_000)] {
            let (buckets, all) = filled(workloads, services);
            let chunks = buckets.chunks();
            let told = names(&chunks);
            let first_service = told.iter().position(|name| name.starts_with("Service"));
            assert!(first_service.is_none_or(|at| at == workloads), "workloads first");
            let (told, expected): (BTreeSet<&str>, BTreeSet<&str>) = (
                told.into_iter().collect(),
                all.iter().map(|slot| &*slot.name).collect(),
            );
            assert_eq!(told, expected);
            assert_eq!(
                chunks.iter().map(|chunk| chunk.resources().len()).sum::<usize>(),
                all.len()
            );
            assert!(
                chunks
                    .iter()
                    .all(|chunk| chunk.resources().len() <= CHUNK_RESOURCES_MAX)
            );
            assert_eq!(
                buckets.bytes(),
                all.iter().map(|slot| size_of(slot)).sum::<usize>()
            );
        }
    }

    #[test]
    fn large_resources_make_small_chunks() {
        let mut buckets = Buckets::default();
        for name in ["a", "b", "c"] {
            let mut large = Slot::clone(&slot(name, "1", Order::Workload));
            large.body = bytes::Bytes::from(vec![1; 3 << 20]);
            buckets.replace(None, Some(&Arc::new(large)));
        }
        assert_eq!(buckets.chunks().len(), 3);
    }

    #[test]
    fn a_change_renews_its_own_chunk_and_no_other() {
        let (mut buckets, all) = filled(20_000, 0);
        let before = buckets.chunks();
        let old_cut = buckets.clone();
        let new = slot(&all[77].name, "2", Order::Workload);
        buckets.replace(Some(&all[77]), Some(&new));
        let after = buckets.chunks();
        let kept = after
            .iter()
            .filter(|chunk| before.iter().any(|old| Arc::ptr_eq(old, chunk)));
        assert!(kept.count() + 2 >= before.len());
        let found = after
            .iter()
            .flat_map(|chunk| chunk.resources().iter())
            .find(|slot| slot.name == new.name);
        assert_eq!(&*found.unwrap().version, "2");
        let older = old_cut.chunks();
        let found = older
            .iter()
            .flat_map(|chunk| chunk.resources().iter())
            .find(|slot| slot.name == new.name);
        assert_eq!(&*found.unwrap().version, "1", "an older cut stays what it was");
    }

    #[test]
    fn of_a_large_family_a_change_renews_one_chunk() {
        let mut buckets = Buckets::default();
        let all: Vec<_> = (0..20_000)
            .map(|number| slot(&format!("web-{number:05}"), "1", Order::Workload))
            .collect();
        all.iter().for_each(|slot| buckets.replace(None, Some(slot)));
        let before = buckets.chunks();
        buckets.replace(Some(&all[7_777]), Some(&slot("web-07777", "2", Order::Workload)));
        let after = buckets.chunks();
        let renewed = before
            .iter()
            .zip(&after)
            .filter(|(old, new)| !Arc::ptr_eq(old, new));
        assert_eq!((renewed.count(), before.len()), (1, after.len()));
    }

    #[test]
    fn pods_of_one_owner_are_neighbours() {
        let rows: BTreeSet<u16> = (0..100)
            .map(|number| row_of(&format!("Kubernetes//Pod/shop/web-5d4f-{number:05}")))
            .collect();
        assert_eq!(rows.len(), usize::from(ROWS_PER_FAMILY));
        let (first, last) = (rows.first().unwrap(), rows.last().unwrap());
        assert_eq!(last - first, ROWS_PER_FAMILY - 1);
        assert!(row_of("") < ROWS && row_of("-") < ROWS);
    }

    #[test]
    fn payloads_are_made_once() {
        let (buckets, _) = filled(10, 0);
        let (one, other) = (buckets.chunks(), buckets.chunks());
        assert!(Arc::ptr_eq(&one[0].payload("t"), &other[0].payload("t")));
    }

    #[test]
    fn digests_follow_content() {
        let (mut buckets, all) = filled(100, 100);
        for layout in Layout::ALL {
            let before = buckets.digests(layout);
            let of = all.iter().map(|slot| (&*slot.name, &*slot.version));
            assert_eq!(*before, Digests::of(layout, of));
            let new = slot(&all[0].name, "2", Order::Service);
            buckets.replace(Some(&all[0]), Some(&new));
            let at = layout.bucket_of(&new.name);
            assert_eq!(before.differing(&buckets.digests(layout)), BTreeSet::from([at]));
            buckets.replace(Some(&new), Some(&all[0]));
            assert_eq!(buckets.digests(layout), before);
        }
        all.iter().for_each(|slot| buckets.replace(Some(slot), None));
        for layout in Layout::ALL {
            assert_eq!(*buckets.digests(layout), Digests::of(layout, std::iter::empty()));
        }
        assert_eq!((buckets.bytes(), buckets.chunks().len()), (0, 0));
    }

    #[test]
    fn each_bucket_holds_what_falls_into_it_and_nothing_else() {
        let (buckets, all) = filled(3_000, 300);
        for layout in Layout::ALL {
            let mut count = 0;
            for bucket in layout.all() {
                for slot in buckets.resources(bucket) {
                    assert!(bucket.holds(&slot.name));
                    count += 1;
                }
            }
            assert_eq!(count, all.len());
        }
    }
}
