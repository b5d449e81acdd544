//! One type on one stream: how the client began with it, what it wants, what it lacks, and what it answered.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use tulle_model::Str;
use tulle_proto::resume::Layout;

use crate::serve::push::{self, Queue};
use crate::serve::session::{Delivery, End, NAMES_MAX, Request, Store, Subscription};
use crate::serve::viewer::Viewer;
use crate::snapshot::ResourceType;

/// How a client began with a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Opened {
    /// It held nothing.
    #[default]
    Fresh,
    /// It listed what it held.
    Versions,
    /// It told digests, and they were ours.
    Equal,
    /// It told digests, and some differed.
    Buckets,
}

impl Opened {
    /// The word for it in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Versions => "versions",
            Self::Equal => "equal",
            Self::Buckets => "buckets",
        }
    }
}

/// What one stream wants of a type, what it still lacks, and what it answered.
#[derive(Debug, Default)]
pub(super) struct TypeState {
    pub(super) opened: Opened,
    /// Something of what it is told first, or by a wildcard that began later, is still queued.
    opening: bool,
    pub(super) subscription: Subscription,
    pub(super) queue: Queue,
    pub(super) delivery: Delivery,
    /// Since when the oldest of what is queued is owed.
    pub(super) owed_since: Option<Instant>,
}

impl TypeState {
    /// The first request of a type: subscription, and what the client lacks compared with what it reports to hold.
    pub(super) fn open<S: Store>(
        ty: ResourceType,
        request: &Request,
        cut: &S,
        viewer: &Viewer,
    ) -> Result<Self, End> {
        let mut state = Self {
            subscription: Subscription::open(request),
            ..Self::default()
        };
        state.check_bounds()?;
        // A nonce of an earlier stream says nothing here, but is counted.
        state.delivery.on_answer(&request.nonce, request.error.as_ref());
        let (held, subscription, queue) = (&request.initial_versions, &state.subscription, &mut state.queue);
        let told = |layout: Layout| Some((layout, &**held.get(layout.name())?));
        let told = Layout::ALL.into_iter().find_map(told);
        state.opened = match told.filter(|_| subscription.is_wildcard()) {
            Some(told) => match push::resumed(ty, cut, viewer, subscription, told, queue) {
                0 => Opened::Equal,
                _ => Opened::Buckets,
            },
            None => {
                push::initial(ty, cut, viewer, subscription, held, queue);
                match held.is_empty() {
                    true => Opened::Fresh,
                    false => Opened::Versions,
                }
            }
        };
        state.tell_along(ty, cut, viewer, &request.initial_versions);
        state.subscription.set_told_by(cut.sequence() + 1);
        if state.subscription.is_wildcard() || request.names_wildcard() {
            state.queue.owe_answer();
        }
        state.opening = !state.queue.is_empty();
        Ok(state)
    }

    /// Whether what was just taken of the queue is part of an opening, which ends with the queue.
    pub(super) fn takes_opening(&mut self) -> bool {
        let was = self.opening;
        self.opening = was && !self.queue.is_empty();
        was
    }

    /// Notes since when what was just queued is owed; what waited before is owed longer. Nothing is owed of an empty queue.
    pub(super) fn owe_since(&mut self, since: Option<Instant>) {
        self.owed_since = match self.queue.is_empty() {
            true => None,
            false => self.owed_since.into_iter().chain(since).min(),
        };
    }

    /// Whether the client is sent everything of the type and nothing stands in the way of the next step.
    pub(super) fn takes_steps(&self) -> bool {
        let of = &self.subscription;
        of.is_wildcard()
            && of.names().is_empty()
            && of.along().is_empty()
            && self.queue.is_empty()
            && !self.delivery.has_rejected()
    }

    /// Takes a later request of the type.
    pub(super) fn change<S: Store>(
        &mut self,
        ty: ResourceType,
        request: &Request,
        cut: &S,
        viewer: &Viewer,
    ) -> Result<(), End> {
        if !request.changes_subscription() {
            return Ok(());
        }
        let before = self.subscription.clone();
        let asked = self.subscription.change(request);
        self.check_bounds()?;
        // What is on its way is of this cut, and says nothing of what is asked for now.
        self.subscription.set_told_by(cut.sequence() + 1);
        self.tell_along(ty, cut, viewer, &BTreeMap::new());
        if self.subscription.is_empty() {
            self.queue.clear();
            self.opening = false;
            return Ok(());
        }
        self.queue.spread();
        self.queue.narrow(ty, cut, viewer, &self.subscription);
        if self.subscription.is_wildcard() && !before.is_wildcard() {
            push::widened(ty, cut, viewer, &before, &self.subscription, &mut self.queue);
            self.queue.owe_answer();
            self.opening = true;
        }
        for name in &asked {
            push::asked(ty, cut, viewer, &self.subscription, name, &mut self.queue);
        }
        if !request.subscribe.is_empty() {
            // What was sent under an earlier subscription may arrive under this one: the client must know what is gone.
            let under_way = self.delivery.under_way();
            push::gone(ty, cut, viewer, &self.subscription, under_way, &mut self.queue);
        }
        Ok(())
    }

    /// Queues what goes with the names and did not before.
    fn tell_along<S: Store>(
        &mut self,
        ty: ResourceType,
        cut: &S,
        viewer: &Viewer,
        held: &BTreeMap<Str, Str>,
    ) {
        if !self.subscription.is_on_demand() {
            self.subscription.set_along(Arc::default());
            return;
        }
        let along = Arc::new(cut.along(viewer, ty, self.subscription.names()));
        let new = along.difference(self.subscription.along());
        push::along(ty, cut, viewer, new, held, &mut self.queue);
        self.subscription.set_along(along);
    }

    fn check_bounds(&self) -> Result<(), End> {
        if self.subscription.names().len() > NAMES_MAX {
            return Err(End::TooManyNames);
        }
        Ok(())
    }
}
