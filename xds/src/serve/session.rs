//! One client's delta-ADS stream as a state machine without I/O: requests in, responses out.
//!
//! ```text
//!  request ──> subscription (what the client wants)
//!                    │ asked for by name, or the wildcard began
//!                    ▼
//!  head ──> cut ──> queue per type ──> response ──> unacked ──> ACK | NACK
//!        (never while a cut is sent in part: one is sent whole, in order, before the next)
//! ```
//!
//! All types of a stream are brought from one cut to the next together. Within a cut, additions go out in the
//! order policies, then addresses, and removals last in the reverse order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use tulle_model::Str;

use crate::serve::push::{self, Queue, Taken};
use crate::serve::viewer::Viewer;
use crate::snapshot::{ResourceType, Slot};

mod again;
mod delivery;
mod message;
mod store;
mod subscription;
mod type_state;

pub(crate) use again::{named_of, node_of};
pub use delivery::{Delivery, Rejection};
pub use message::{Nack, Request, Response};
pub use store::Store;
pub use subscription::Subscription;
pub use type_state::Opened;
use type_state::TypeState;

/// Responses of one type that may wait for an answer.
pub const UNACKED_RESPONSES_MAX: usize = 4;
/// Bytes of one type that may wait for an answer.
pub const UNACKED_BYTES_MAX: usize = 8 << 20;
/// Names one stream may be subscribed to per type.
pub const NAMES_MAX: usize = 250_000;
/// Types outside our own that one stream may ask for.
pub const UNKNOWN_TYPES_MAX: usize = 64;

/// Why the server ends a stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum End {
    /// A type of Envoy's own, which is never served.
    #[error("resources of type {0} are not served")]
    Unimplemented(Str),
    /// The client subscribed to more names than one stream may hold.
    #[error("a stream may subscribe to at most {NAMES_MAX} names of a type")]
    TooManyNames,
    /// The client asked for more unknown types than one stream may.
    #[error("a stream may ask for at most {UNKNOWN_TYPES_MAX} unknown types")]
    TooManyTypes,
}

/// The server's side of one stream.
#[derive(Debug)]
pub struct Session<S> {
    /// Random per process, so that no nonce of an earlier process is mistaken for ours.
    epoch: u64,
    viewer: Viewer,
    cut: S,
    /// When the oldest of the cuts that came since was published.
    newer_since: Option<Instant>,
    /// Part of the cut has been sent, so that the rest goes out before a newer one. Until then changes accumulate.
    begun: bool,
    nonces: u64,
    /// Boxed, as there are two or three of them and a tree has room for eleven.
    types: BTreeMap<ResourceType, Box<TypeState>>,
    /// Policies to be told again once the workloads that name them are out.
    again: BTreeSet<Str>,
    /// Types we do not know; `true` while the one empty answer is still owed.
    unknown: BTreeMap<Str, bool>,
}

/// What a client lacks of a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Behind {
    /// Resources and removals not sent, or not accepted.
    pub changes: usize,
    /// Responses left of what a client is told that began with nothing, or with digests that differ.
    pub opening: usize,
    /// Since when the oldest of the changes is owed: since its cut was published, or since it was asked for.
    pub since: Option<Instant>,
}

impl<S: Store> Session<S> {
    /// A stream of this viewer, beginning at a synced cut.
    pub fn new(epoch: u64, viewer: Viewer, cut: S) -> Self {
        Self {
            epoch,
            viewer,
            cut,
            newer_since: None,
            begun: false,
            nonces: 0,
            types: BTreeMap::new(),
            again: BTreeSet::new(),
            unknown: BTreeMap::new(),
        }
    }

    /// Takes one request; what it asks for is sent by later calls of [`Self::poll_send`].
    ///
    /// # Errors
    /// The stream must end.
    pub fn on_request(&mut self, request: &Request, head: &S) -> Result<(), End> {
        let Some(ty) = ResourceType::from_type_url(&request.type_url) else {
            return self.on_unknown_type(&request.type_url);
        };
        self.advance(head);
        match self.types.get_mut(&ty) {
            None => {
                let state = TypeState::open(ty, request, &self.cut, &self.viewer)?;
                if ty == ResourceType::Address && !request.initial_versions.is_empty() {
                    let changed = state.queue.additions();
                    self.again
                        .extend(again::named_by(&self.viewer, &self.cut, changed));
                }
                self.types.insert(ty, Box::new(state));
            }
            Some(state) => {
                state.delivery.on_answer(&request.nonce, request.error.as_ref());
                state.change(ty, request, &self.cut, &self.viewer)?;
                state.owe_since(None);
            }
        }
        Ok(())
    }

    /// An unknown type is answered once, with nothing, so that newer clients stay connected.
    fn on_unknown_type(&mut self, type_url: &Str) -> Result<(), End> {
        let message = type_url.rsplit('/').next().unwrap_or_default();
        if message.starts_with("envoy.") {
            return Err(End::Unimplemented(type_url.clone()));
        }
        if self.unknown.len() >= UNKNOWN_TYPES_MAX && !self.unknown.contains_key(type_url) {
            return Err(End::TooManyTypes);
        }
        self.unknown.entry(type_url.clone()).or_insert(true);
        Ok(())
    }

    /// Notes since when the client is owed what it lacks: what a newer cut brings since that was published, what it asked
    /// for since now. It ages whether it can be sent or not.
    pub fn look(&mut self, head: &S, now: Instant) {
        for state in self.types.values_mut().filter(|state| state.owed_since.is_none()) {
            state.owe_since(Some(now));
        }
        if head.sequence() > self.cut.sequence() {
            self.newer_since
                .get_or_insert_with(|| head.published().unwrap_or(now));
        }
    }

    /// The next response, if there is one that may be sent now.
    pub fn poll_send(&mut self, head: &S, now: Instant) -> Option<Response> {
        self.look(head, now);
        if let Some((type_url, owed)) = self.unknown.iter_mut().find(|(_, owed)| **owed) {
            *owed = false;
            let type_url = type_url.clone();
            return Some(self.response(type_url, Taken::default(), false));
        }
        self.advance(head);
        let mut additions = ResourceType::ALL.into_iter();
        let mut removals = ResourceType::ALL.into_iter().rev();
        let ty = additions
            .find(|ty| self.has(*ty, Queue::has_additions))
            .or_else(|| removals.find(|ty| self.has(*ty, Queue::has_removals)))
            .or_else(|| self.queue_again())?;
        self.send(ty, now)
    }

    /// Queues the policies that are to be told again, now that everything else is out.
    fn queue_again(&mut self) -> Option<ResourceType> {
        let ty = ResourceType::Authorization;
        let names = std::mem::take(&mut self.again);
        let state = self.types.get_mut(&ty)?;
        for name in names {
            let (cut, viewer) = (&self.cut, &self.viewer);
            push::repeated(ty, cut, viewer, &state.subscription, &name, &mut state.queue);
        }
        state.queue.has_additions().then_some(ty)
    }

    fn has(&self, ty: ResourceType, what: impl Fn(&Queue) -> bool) -> bool {
        self.types.get(&ty).is_some_and(|state| what(&state.queue))
    }

    /// Brings every type to the newest cut, unless the one before has been sent in part only.
    fn advance(&mut self, head: &S) {
        if self.types.values().all(|state| state.queue.is_empty()) {
            self.begun = false;
        }
        if self.begun || head.sequence() <= self.cut.sequence() {
            return;
        }
        let since = self.newer_since.take().or_else(|| head.published());
        for (ty, state) in &mut self.types {
            if state.takes_steps()
                && let Some(step) = head.step(&self.cut, &self.viewer, *ty).filter(|step| step.fits())
            {
                state.queue.take_step(step);
                state.owe_since(since);
                continue;
            }
            let refused = |slot: &Slot| state.delivery.was_rejected(&slot.name, &slot.version);
            let (cuts, viewer, queue) = ((&self.cut, head), &self.viewer, &mut state.queue);
            if !state.subscription.is_on_demand() {
                let same = (&state.subscription, &state.subscription);
                push::difference(*ty, cuts, viewer, same, refused, queue);
                state.owe_since(since);
                continue;
            }
            let mut next = state.subscription.clone();
            next.set_along(Arc::new(head.along(viewer, *ty, next.names())));
            if next.along() != state.subscription.along() {
                next.set_told_by(head.sequence());
            }
            push::difference(*ty, cuts, viewer, (&state.subscription, &next), refused, queue);
            state.subscription = next;
            state.owe_since(since);
        }
        self.note_again(head);
        self.cut = head.clone();
    }

    /// Notes which policies a client is told again because workloads of its node begin to name them.
    fn note_again(&mut self, head: &S) {
        let ty = ResourceType::Address;
        let Some(node) = self
            .viewer
            .foreign_node()
            .filter(|_| self.types.contains_key(&ty))
        else {
            return;
        };
        match head.step(&self.cut, &self.viewer, ty) {
            Some(step) => self.again.extend(step.named_on(node).cloned()),
            None => self
                .again
                .extend(again::newly_named(&self.viewer, &self.cut, head)),
        }
    }

    /// Makes a response of what the queue of one type holds, unless too much of it is unanswered.
    fn send(&mut self, ty: ResourceType, now: Instant) -> Option<Response> {
        let last = self.is_last_with_work(ty);
        let state = self.types.get_mut(&ty)?;
        if state.delivery.is_full() {
            return None;
        }
        let (cut, viewer, subscription) = (&self.cut, &self.viewer, &state.subscription);
        let wanted = |slot: &Arc<Slot>| push::wants(ty, cut, viewer, subscription, slot);
        let mut taken = state.queue.take(ty, cut, wanted, last);
        state.queue.confirm(ty, cut, viewer, subscription, &mut taken);
        let is_opening = state.takes_opening();
        self.begun = true;
        let response = self.response(ty.type_url().into(), taken, is_opening);
        let state = self.types.get_mut(&ty)?;
        let is_last = state.queue.is_empty();
        state
            .delivery
            .on_sent(&response, state.owed_since.unwrap_or(now), is_last);
        state.owe_since(None);
        Some(response)
    }

    /// Whether removals of this type may follow its additions at once: no type after it has anything left.
    fn is_last_with_work(&self, ty: ResourceType) -> bool {
        let mut after = ResourceType::ALL
            .into_iter()
            .skip_while(|other| *other != ty)
            .skip(1);
        !after.any(|other| self.has(other, |queue| !queue.is_empty()))
    }

    fn response(&mut self, type_url: Str, taken: Taken, is_opening: bool) -> Response {
        self.nonces += 1;
        Response {
            type_url,
            nonce: format!("{:x}.{}.{}", self.epoch, self.cut.sequence(), self.nonces).into(),
            cut: self.cut.sequence(),
            resources: taken.resources,
            chunk: taken.chunk,
            step: taken.step,
            removed: taken.removed,
            is_opening,
        }
    }

    /// The cut that the client is brought to.
    pub fn cut(&self) -> &S {
        &self.cut
    }

    /// How the client began with each type it asked for.
    pub fn openings(&self) -> impl Iterator<Item = (ResourceType, Opened)> {
        self.types.iter().map(|(ty, state)| (*ty, state.opened))
    }

    /// What a client lacks of one type, given the newest cut.
    #[must_use]
    pub fn behind(&self, ty: ResourceType, head: &S) -> Behind {
        let Some(state) = self.types.get(&ty) else {
            return Behind::default();
        };
        let newer = match head.sequence() > self.cut.sequence() {
            true => match head.step(&self.cut, &self.viewer, ty) {
                Some(step) => step.changes(),
                None => head
                    .changed_since(ty, self.cut.sequence())
                    .map_or(0, Iterator::count),
            },
            false => 0,
        };
        let newer_since = self.newer_since.or_else(|| head.published());
        let newer_since = newer_since.filter(|_| newer > 0);
        let since = [state.delivery.waiting_since(), state.owed_since, newer_since];
        Behind {
            changes: state.delivery.unacked_changes() + state.queue.len() + newer,
            opening: state.queue.opening_left(),
            since: since.into_iter().flatten().min(),
        }
    }

    /// How far the client is, per type it asked for.
    pub fn deliveries(&self) -> impl Iterator<Item = (ResourceType, &Subscription, &Delivery)> {
        let types = self.types.iter();
        types.map(|(ty, state)| (*ty, &state.subscription, &state.delivery))
    }

    /// What the client rejected and is still in force.
    pub fn rejections(&self) -> impl Iterator<Item = (ResourceType, &Str, &Rejection)> {
        self.types.iter().flat_map(move |(ty, state)| {
            let rejections = state.delivery.rejections();
            rejections
                .filter(move |(name, rejection)| {
                    let slot = self.cut.resource(*ty, name);
                    slot.is_some_and(|slot| *slot.version == *rejection.version)
                })
                .map(move |(name, rejection)| (*ty, name, rejection))
        })
    }

    /// Number of types asked for that this server does not know.
    #[must_use]
    pub fn unknown_types(&self) -> usize {
        self.unknown.len()
    }
}
