//! What a client still lacks of one type, between two cuts, and how that is cut into responses.

use std::cmp::Reverse;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use tulle_model::Str;
use tulle_proto::resume::{Bucket, Digests, Layout};

use crate::serve::session::{Store, Subscription};
use crate::serve::viewer::Viewer;
use crate::snapshot::{Chunk, Order, ResourceType, Slot, Step};

mod lacking;

pub use lacking::{along, asked, difference, gone, initial, repeated, resumed, wants, widened};

/// Resources and removals in one response.
pub const RESPONSE_ENTRIES_MAX: usize = 1000;
/// Bytes of one response, save a single larger resource.
pub const RESPONSE_BYTES_MAX: usize = 4 << 20;
/// Framing counted per resource: tags, lengths and the type URL.
const ENTRY_OVERHEAD: usize = 96;
const ORDERS: [Order; 5] = [
    Order::Policy,
    Order::WaypointWorkload,
    Order::WaypointService,
    Order::Workload,
    Order::Service,
];

/// What is still to be sent of one type, all of one cut. No name is both to be set and to be removed.
#[derive(Debug, Default)]
pub struct Queue {
    /// Everything there is, for a client that holds nothing; nothing of it is in the additions.
    whole: VecDeque<Arc<Chunk>>,
    /// All there is to be sent, for a client that is sent everything and lacks one step; then nothing else is queued.
    step: Option<Arc<Step>>,
    /// Buckets that a client that came back holds in another form.
    buckets: BTreeSet<Bucket>,
    /// The last response says what the client must hold then.
    confirms: bool,
    additions: BTreeSet<(Order, Str)>,
    removals: BTreeSet<(Reverse<Order>, Str)>,
    /// An answer is owed even if it is empty.
    answer: bool,
}

/// The content of one response.
#[derive(Debug, Default)]
pub struct Taken {
    /// New and changed resources.
    pub resources: Arc<[Arc<Slot>]>,
    /// The chunk they are, if they are one.
    pub chunk: Option<Arc<Chunk>>,
    /// The step they are, if they are one.
    pub step: Option<Arc<Step>>,
    /// Names gone.
    pub removed: Vec<Str>,
}

impl Queue {
    /// Whether nothing is to be sent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.has_additions() && !self.has_removals()
    }

    /// Whether a resource, or an answer that may be empty, is to be sent.
    #[must_use]
    pub fn has_additions(&self) -> bool {
        let step = self.step.as_ref().is_some_and(|step| !step.set().is_empty());
        step || self.answer
            || !self.additions.is_empty()
            || !self.whole.is_empty()
            || !self.buckets.is_empty()
    }

    /// Resources and removals that are to be sent; a bucket counts as one.
    #[must_use]
    pub fn len(&self) -> usize {
        let whole: usize = self.whole.iter().map(|chunk| chunk.resources().len()).sum();
        let step = self.step.as_ref().map_or(0, |step| step.changes());
        whole + step + self.buckets.len() + self.additions.len() + self.removals.len()
    }

    /// Responses left of what a client that began with nothing, or with other buckets, is told, at most.
    #[must_use]
    pub fn opening_left(&self) -> usize {
        self.whole.len() + self.buckets.len()
    }

    /// Whether a removal is to be sent.
    #[must_use]
    pub fn has_removals(&self) -> bool {
        let step = self.step.as_ref().is_some_and(|step| !step.removed().is_empty());
        step || !self.removals.is_empty()
    }

    /// Names of the resources to be sent.
    pub fn additions(&self) -> impl Iterator<Item = &Str> {
        self.additions.iter().map(|(_, name)| name)
    }

    /// Demands a response even if there is nothing to say.
    pub fn owe_answer(&mut self) {
        self.answer = true;
    }

    /// Queues all that is between two cuts, where nothing else is queued.
    pub fn take_step(&mut self, step: Arc<Step>) {
        debug_assert!(self.is_empty(), "a step is all that is queued");
        self.step = Some(step).filter(|step| step.changes() > 0);
    }

    /// Turns a step into single additions and removals, so that others can come to them.
    fn unfold(&mut self) {
        if let Some(step) = self.step.take() {
            let set = step.set().iter().map(|slot| (slot.order, slot.name.clone()));
            self.additions.extend(set);
            let removed = step.removed().iter();
            self.removals
                .extend(removed.map(|(order, name)| (Reverse(*order), name.clone())));
        }
    }

    fn set(&mut self, slot: &Slot) {
        self.forget(&slot.name);
        slot.aliases.iter().for_each(|alias| self.forget_removal(alias));
        self.additions.insert((slot.order, slot.name.clone()));
    }

    fn remove(&mut self, name: &Str, order: Order) {
        self.forget(name);
        self.removals.insert((Reverse(order), name.clone()));
    }

    /// Notes that something is there after all.
    fn found(&mut self, slot: &Slot) {
        self.forget_removal(&slot.name);
        slot.aliases.iter().for_each(|alias| self.forget_removal(alias));
    }

    fn forget(&mut self, name: &Str) {
        self.unfold();
        self.forget_removal(name);
        if !self.additions.is_empty() {
            for order in ORDERS {
                self.additions.remove(&(order, name.clone()));
            }
        }
    }

    fn forget_removal(&mut self, name: &Str) {
        self.unfold();
        if !self.removals.is_empty() {
            for order in ORDERS {
                self.removals.remove(&(Reverse(order), name.clone()));
            }
        }
    }

    /// Drops everything but an answer that is owed.
    pub fn clear(&mut self) {
        self.whole.clear();
        self.step = None;
        self.buckets.clear();
        self.confirms = false;
        self.additions.clear();
        self.removals.clear();
    }

    /// Turns what is left of the whole into single additions, so that a changed subscription can pick among them.
    pub fn spread(&mut self) {
        self.unfold();
        for chunk in std::mem::take(&mut self.whole) {
            chunk.resources().iter().for_each(|slot| self.set(slot));
        }
    }

    /// Turns additions that a narrower subscription does not want any more into removals: the client may hold an
    /// older form under an alias that it still asks for.
    pub fn narrow<S: Store>(
        &mut self,
        ty: ResourceType,
        cut: &S,
        viewer: &Viewer,
        subscription: &Subscription,
    ) {
        let wanted = |name: &str| {
            cut.resource(ty, name)
                .is_some_and(|slot| wants(ty, cut, viewer, subscription, slot))
        };
        let unwanted: Vec<_> = self
            .additions
            .iter()
            .filter(|(_, name)| !wanted(name))
            .cloned()
            .collect();
        for (order, name) in unwanted {
            self.remove(&name, order);
        }
    }

    /// Takes as much as fits one response. Removals follow the additions only if `removals_too`.
    pub fn take<S: Store>(
        &mut self,
        ty: ResourceType,
        cut: &S,
        wanted: impl Fn(&Arc<Slot>) -> bool,
        removals_too: bool,
    ) -> Taken {
        let only_removals = !self.has_additions();
        self.answer = false;
        if let Some(chunk) = self.whole.pop_front() {
            return Taken {
                resources: chunk.resources().clone(),
                chunk: Some(chunk),
                ..Taken::default()
            };
        }
        if let Some(step) = self.step.take() {
            if removals_too || step.removed().is_empty() || step.set().is_empty() {
                return Taken {
                    resources: step.set().clone(),
                    removed: step.removed_names(),
                    step: Some(step),
                    chunk: None,
                };
            }
            // Something of another type comes before what is removed.
            self.step = Some(step);
            self.unfold();
        }
        if !self.buckets.is_empty() {
            return self.take_buckets(ty, cut, wanted);
        }
        let (mut taken, mut resources, mut bytes) = (Taken::default(), Vec::new(), 0);
        while resources.len() < RESPONSE_ENTRIES_MAX {
            let mut together = self.first_together(ty, cut);
            let needed: usize = together.iter().map(|slot| size_of(slot)).sum();
            let too_much =
                |count: usize, more: usize| count > RESPONSE_ENTRIES_MAX || bytes + more > RESPONSE_BYTES_MAX;
            if too_much(resources.len() + together.len(), needed) {
                if !resources.is_empty() {
                    break;
                }
                // More than one response holds: it comes in several.
                let mut sum = 0;
                let fits = together.iter().take_while(|slot| {
                    sum += size_of(slot);
                    sum <= RESPONSE_BYTES_MAX
                });
                together.truncate(fits.count().clamp(1, RESPONSE_ENTRIES_MAX));
            }
            if together.is_empty() {
                break;
            }
            bytes += together.iter().map(|slot| size_of(slot)).sum::<usize>();
            // They stand first, one after the other.
            for _ in &together {
                self.additions.pop_first();
            }
            resources.append(&mut together);
        }
        taken.resources = resources.into();
        if self.additions.is_empty() && (removals_too || only_removals) {
            self.take_removals(&mut taken, bytes);
        }
        taken
    }

    /// Says in the last response to short digests what the client must hold then, which is all that it wants of this cut:
    /// of what differs, they may have hidden some.
    pub fn confirm<S: Store>(
        &mut self,
        ty: ResourceType,
        cut: &S,
        viewer: &Viewer,
        subscription: &Subscription,
        taken: &mut Taken,
    ) {
        if !self.confirms || !self.is_empty() {
            return;
        }
        self.confirms = false;
        let digests = match subscription.is_wildcard() && subscription.names().is_empty() {
            true => cut.digests(viewer, ty, Layout::Fine),
            false => {
                let held = cut.resources(ty);
                let held = held.filter(|slot| wants(ty, cut, viewer, subscription, slot));
                let held = held.map(|slot| (&*slot.name, &*slot.version));
                Arc::new(Digests::of(Layout::Fine, held))
            }
        };
        taken.removed.extend(digests.whole_name().map(Str::from));
    }

    /// The first addition, with all that come of the same object of a user.
    fn first_together<S: Store>(&self, ty: ResourceType, cut: &S) -> Vec<Arc<Slot>> {
        let Some((first, name)) = self.additions.first() else {
            return Vec::new();
        };
        let slot = |name: &Str| {
            cut.resource(ty, name)
                .expect("a queue holds names of its cut")
                .clone()
        };
        match object_of(ty, name) {
            None => vec![slot(name)],
            Some(object) => {
                let same = self
                    .additions
                    .iter()
                    .take_while(|(order, name)| order == first && object_of(ty, name) == Some(object));
                same.map(|(_, name)| slot(name)).collect()
            }
        }
    }

    /// As many buckets as fit, each whole.
    fn take_buckets<S: Store>(
        &mut self,
        ty: ResourceType,
        cut: &S,
        wanted: impl Fn(&Arc<Slot>) -> bool,
    ) -> Taken {
        let (mut resources, mut removed, mut bytes) = (Vec::new(), Vec::new(), 0);
        while let Some(bucket) = self.buckets.first().copied() {
            let mut of: Vec<Arc<Slot>> = cut
                .bucket(ty, bucket)
                .into_iter()
                .filter(|slot| wanted(slot))
                .cloned()
                .collect();
            bytes += of.iter().map(|slot| size_of(slot)).sum::<usize>();
            let too_much = bytes > RESPONSE_BYTES_MAX || resources.len() + of.len() > RESPONSE_ENTRIES_MAX;
            if too_much && !removed.is_empty() {
                break;
            }
            resources.append(&mut of);
            removed.push(bucket.to_string().into());
            self.buckets.pop_first();
        }
        resources.sort_by(|one, other| (one.order, &one.name).cmp(&(other.order, &other.name)));
        Taken {
            resources: resources.into(),
            removed,
            ..Taken::default()
        }
    }

    fn take_removals(&mut self, taken: &mut Taken, mut bytes: usize) {
        while taken.resources.len() + taken.removed.len() < RESPONSE_ENTRIES_MAX {
            let Some((_, name)) = self.removals.first() else {
                break;
            };
            bytes += name.len() + ENTRY_OVERHEAD;
            if bytes > RESPONSE_BYTES_MAX {
                break;
            }
            taken
                .removed
                .extend(self.removals.pop_first().map(|(_, name)| name));
        }
    }
}

/// The object of a user that a resource comes of, where several do: names end in the rule, or in the concern.
fn object_of(ty: ResourceType, name: &str) -> Option<&str> {
    match ty {
        ResourceType::Route | ResourceType::Policy => name.rsplit_once('/').map(|(object, _)| object),
        _ => None,
    }
}

/// Bytes that a resource takes in a response, estimated from above.
#[must_use]
pub fn size_of(slot: &Slot) -> usize {
    let aliases: usize = slot.aliases.iter().map(|alias| alias.len() + 6).sum();
    slot.body.len() + slot.name.len() + slot.version.len() + aliases + ENTRY_OVERHEAD
}
