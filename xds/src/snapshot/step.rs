//! What lies between two cuts, found out once for all streams that take the same step.
//!
//! Thousands of streams stand at the same cut when a change comes, and most are sent all of a type. For them the
//! difference, its order and its bytes are the same.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tulle_model::Str;

use super::{Change, Order, ResourceType, Slot, Snapshot};
use crate::serve::frame::Payload;
use crate::serve::push::{RESPONSE_BYTES_MAX, RESPONSE_ENTRIES_MAX, size_of};
use crate::serve::session::{named_of, node_of};

/// Steps that a cut remembers. Streams that lag stand at some cuts before it, not at any.
const STEPS_MAX: usize = 64;

/// What changed of a type from one cut to another, for those who are sent everything of it.
#[derive(Debug)]
pub struct Step {
    ty: ResourceType,
    from: u64,
    changes: usize,
    bytes: usize,
    /// In the order in which they are sent.
    set: Arc<[Arc<Slot>]>,
    removed: Vec<(Order, Str)>,
    /// The policies that workloads name and did not before, by node.
    named: BTreeMap<Str, BTreeSet<Str>>,
    payload: OnceLock<Arc<Payload>>,
}

impl Step {
    /// What these changes since the cut `from` come to; each comes with what there was before.
    pub fn new<'a>(
        ty: ResourceType,
        from: u64,
        changes: impl Iterator<Item = (Option<&'a Arc<Slot>>, Change)>,
    ) -> Self {
        let (mut set, mut removed, mut named) = (Vec::new(), Vec::new(), BTreeMap::new());
        for change in changes {
            match change {
                (Some(before), Change::Set(after)) if before.version == after.version => {}
                (before, Change::Set(after)) => {
                    note_named(before, &after, &mut named);
                    set.push(after);
                }
                (Some(before), Change::Removed(name)) => removed.push((before.order, name)),
                (None, Change::Removed(_)) => {}
            }
        }
        set.sort_unstable_by(|one, other| (one.order, &one.name).cmp(&(other.order, &other.name)));
        removed.sort_unstable_by(|(one, first), (other, second)| {
            (Reverse(one), first).cmp(&(Reverse(other), second))
        });
        Self {
            ty,
            from,
            changes: set.len() + removed.len(),
            bytes: set.iter().map(|slot| size_of(slot)).sum(),
            set: set.into(),
            removed,
            named,
            payload: OnceLock::new(),
        }
    }

    /// Resources and removals.
    #[must_use]
    pub fn changes(&self) -> usize {
        self.changes
    }

    /// Bytes of the resources, as far as they count for what waits for an answer.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether one response holds all of it.
    #[must_use]
    pub fn fits(&self) -> bool {
        let names: usize = self.removed.iter().map(|(_, name)| name.len()).sum();
        self.changes <= RESPONSE_ENTRIES_MAX && self.bytes + names <= RESPONSE_BYTES_MAX
    }

    /// New and changed resources, in the order in which they are sent.
    #[must_use]
    pub fn set(&self) -> &Arc<[Arc<Slot>]> {
        &self.set
    }

    /// What is gone, in the order in which that is sent.
    #[must_use]
    pub fn removed(&self) -> &[(Order, Str)] {
        &self.removed
    }

    /// Names of what is gone.
    #[must_use]
    pub fn removed_names(&self) -> Vec<Str> {
        self.removed.iter().map(|(_, name)| name.clone()).collect()
    }

    /// The policies that workloads of a node name and did not before.
    pub fn named_on(&self, node: &str) -> impl Iterator<Item = &Str> {
        self.named.get(node).into_iter().flatten()
    }

    /// All of it as it is written, encoded at the first call.
    #[must_use]
    pub fn payload(&self, type_url: &str) -> Arc<Payload> {
        let encode = || Arc::new(Payload::encode(type_url, &self.set, &self.removed_names()));
        self.payload.get_or_init(encode).clone()
    }
}

fn note_named(before: Option<&Arc<Slot>>, after: &Slot, named: &mut BTreeMap<Str, BTreeSet<Str>>) {
    let Some(node) = node_of(&after.body) else {
        return;
    };
    let held = before
        .and_then(|slot| named_of(&slot.body, node))
        .unwrap_or_default();
    let now = named_of(&after.body, node).unwrap_or_default();
    let new: Vec<&str> = now.into_iter().filter(|name| !held.contains(name)).collect();
    if !new.is_empty() {
        let of_node = named.entry(node.into()).or_default();
        of_node.extend(new.into_iter().map(Str::from));
    }
}

/// The steps to one cut that streams asked for. A clone of a cut becomes another one, and remembers none.
#[derive(Debug, Default)]
pub(crate) struct Steps(Mutex<Vec<Arc<Step>>>);

impl Clone for Steps {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Snapshot {
    /// What changed of a type since an older cut; `None` if that is not known any more.
    #[must_use]
    pub fn step(&self, old: &Self, ty: ResourceType) -> Option<Arc<Step>> {
        let mut steps = self.steps.0.lock();
        let known = |step: &&Arc<Step>| step.ty == ty && step.from == old.sequence();
        if let Some(known) = steps.iter().find(known) {
            return Some(known.clone());
        }
        // Whoever else wants it waits here for what would take it as long to find out.
        let changes = self.changed_since(ty, old.sequence())?;
        let changes = changes.map(|change| (old.resource(ty, change.name()), change));
        let step = Arc::new(Step::new(ty, old.sequence(), changes));
        if steps.len() >= STEPS_MAX {
            steps.remove(0);
        }
        steps.push(step.clone());
        Some(step)
    }
}

#[cfg(test)]
mod tests {
    use tulle_model::testing::{name, workload};
    use tulle_proto::{Resource, encode_address};

    use super::*;
    use crate::engine::table;
    use crate::snapshot::Scope;

    /// The cut after one in which this workload is so, or gone.
    fn next(cut: &Snapshot, name: &str, body: Option<&[u8]>) -> Snapshot {
        let mut next = cut.clone();
        next.sequence += 1;
        let sequence = next.sequence;
        match body {
            None => drop(next.addresses.remove(name, sequence)),
            Some(body) => drop(next.addresses.set(
                table::Resource {
                    name: name.into(),
                    aliases: Vec::new(),
                    body: body.to_vec().into(),
                    order: Order::Workload,
                    scope: Scope::Everyone,
                },
                sequence,
            )),
        }
        next
    }

    fn names(step: &Step) -> Vec<&str> {
        step.set().iter().map(|slot| &*slot.name).collect()
    }

    #[test]
    fn a_step_holds_each_name_once_at_its_newest_and_nothing_that_is_as_before() {
        let ty = ResourceType::Address;
        let old = next(&next(&Snapshot::default(), "a", Some(b"1")), "gone", Some(b"1"));
        let new = next(&next(&old, "b", Some(b"1")), "a", Some(b"2"));
        let new = next(&next(&new, "a", Some(b"3")), "gone", None);
        // There and away again meanwhile: nobody heard of it.
        let new = next(&next(&new, "short", Some(b"1")), "short", None);
        let step = new.step(&old, ty).unwrap();
        assert_eq!(names(&step), ["a", "b"]);
        assert_eq!(step.removed_names(), ["gone".into()]);
        assert_eq!((step.changes(), step.fits()), (3, true));
        let back = next(&next(&old, "a", Some(b"2")), "a", Some(b"1"));
        assert_eq!(back.step(&old, ty).unwrap().changes(), 0);
    }

    #[test]
    fn who_takes_the_same_step_shares_it_with_its_bytes() {
        let ty = ResourceType::Address;
        let old = next(&Snapshot::default(), "a", Some(b"1"));
        let new = next(&old, "a", Some(b"2"));
        let (one, other) = (new.step(&old, ty).unwrap(), new.step(&old, ty).unwrap());
        assert!(Arc::ptr_eq(&one, &other));
        assert!(Arc::ptr_eq(
            &one.payload(ty.type_url()),
            &other.payload(ty.type_url())
        ));
        // A cut that is made of this one is reached by other steps.
        let newer = next(&new, "b", Some(b"1"));
        assert_eq!(names(&newer.step(&old, ty).unwrap()), ["a", "b"]);
    }

    #[test]
    fn a_cut_remembers_so_many_steps() {
        let mut cuts = vec![Snapshot::default()];
        for at in 0..STEPS_MAX + 8 {
            let last = cuts.last().unwrap();
            cuts.push(next(last, &format!("w{at}"), Some(b"1")));
        }
        let new = cuts.pop().unwrap();
        for old in &cuts {
            assert!(new.step(old, ResourceType::Address).is_some());
        }
        assert_eq!(new.steps.0.lock().len(), STEPS_MAX);
    }

    #[test]
    fn a_step_knows_the_policies_that_workloads_begin_to_name() {
        let body = |node: &str, policies: &[&str]| {
            let mut web = workload("shop/web").build();
            web.node = node.into();
            web.authorization_policies = policies.iter().map(|policy| name(policy)).collect();
            encode_address(&Resource::Workload(web.into())).unwrap()
        };
        let ty = ResourceType::Address;
        let old = next(&Snapshot::default(), "web", Some(&body("n1", &["shop/a"])));
        let new = next(&old, "web", Some(&body("n1", &["shop/a", "shop/b"])));
        let step = new.step(&old, ty).unwrap();
        assert_eq!(step.named_on("n1").collect::<Vec<_>>(), [&Str::from("shop/b")]);
        assert_eq!(step.named_on("n2").count(), 0);
        // On another node it names all of them anew.
        let moved = next(&new, "web", Some(&body("n2", &["shop/a"])));
        let step = moved.step(&new, ty).unwrap();
        assert_eq!(step.named_on("n2").collect::<Vec<_>>(), [&Str::from("shop/a")]);
        assert_eq!(step.named_on("n1").count(), 0);
    }
}
