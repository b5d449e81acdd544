//! Looks at the folder that somebody waits for: who wrote a file asks for one, and it is over once what it saw is in force.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

use super::library::Settled;
use crate::engine::Batch;

/// Numbers the looks at a folder, and takes wishes for one. Clones share the numbers.
#[derive(Debug, Clone, Default)]
pub struct Looks {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// The newest that began.
    begun: AtomicU64,
    /// The newest that somebody waits for.
    asked: AtomicU64,
    wish: Notify,
}

impl Looks {
    /// Asks for a look, and returns its number. It sees what is written by now, as does each one after it; it is over once a
    /// cut holds it ([`Objects::look`](crate::snapshot::Objects::look)).
    #[must_use]
    pub fn ask(&self) -> u64 {
        // One that began before may have passed by what was written since.
        let next = self.shared.begun.load(Ordering::SeqCst) + 1;
        self.shared.asked.fetch_max(next, Ordering::SeqCst);
        self.shared.wish.notify_one();
        next
    }

    /// Completes once somebody has asked.
    pub(super) async fn asked(&self) {
        self.shared.wish.notified().await;
    }

    /// Numbers the look that begins now.
    pub(super) fn begin(&self) -> u64 {
        self.shared.begun.fetch_add(1, Ordering::SeqCst) + 1
    }

    fn newest_asked(&self) -> u64 {
        self.shared.asked.load(Ordering::SeqCst)
    }
}

/// What the engine was told of looks.
#[derive(Debug)]
pub(super) struct Told {
    looks: Looks,
    /// The newest that it knows to be over.
    newest: u64,
    /// What it was told last, without the changes.
    last: Option<Batch>,
}

impl Told {
    pub(super) fn new(looks: Looks) -> Self {
        Self {
            looks,
            newest: 0,
            last: None,
        }
    }

    /// What the engine is to be told of a look. One that found nothing is told if somebody waits for it; one that is not
    /// over is told for what it found, and still waited for.
    pub(super) fn of(&mut self, look: u64, settled: &mut Settled) -> Option<Batch> {
        let is_over = !settled.read_again && !settled.is_undecided;
        let is_awaited = is_over && self.looks.newest_asked() > self.newest;
        let mut batch = match settled.batch.take() {
            Some(found) => found,
            None if is_awaited => self.last.clone()?,
            None => return None,
        };
        if is_over {
            batch.look = Some(look);
            self.newest = look;
        }
        self.last = Some(batch.without_changes());
        Some(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(generation: u64) -> Settled {
        Settled {
            batch: Some(Batch {
                generation,
                synced: true,
                ..Batch::default()
            }),
            ..Settled::default()
        }
    }

    #[test]
    fn a_look_that_was_asked_for_begins_after_the_wish() {
        let looks = Looks::default();
        assert_eq!(looks.begin(), 1);
        let asked = looks.ask();
        assert_eq!(
            (asked, looks.ask()),
            (2, 2),
            "the one under way may have passed by"
        );
        assert_eq!(looks.begin(), asked);
    }

    #[test]
    fn a_look_that_finds_nothing_is_told_only_to_who_waits_for_it() {
        let looks = Looks::default();
        let mut told = Told::new(looks.clone());
        let first = told.of(looks.begin(), &mut found(7)).expect("it found something");
        assert_eq!(first.look, Some(1));
        assert_eq!(told.of(looks.begin(), &mut Settled::default()), None);
        let asked = looks.ask();
        let again = told.of(looks.begin(), &mut Settled::default());
        let again = again.expect("somebody waits");
        assert_eq!(
            (again.look, again.generation, again.synced),
            (Some(asked), 7, true)
        );
        assert_eq!(told.of(looks.begin(), &mut Settled::default()), None, "told once");
    }

    #[test]
    fn a_look_that_has_to_look_again_is_not_over() {
        let looks = Looks::default();
        let mut told = Told::new(looks.clone());
        let asked = looks.ask();
        let mut unfinished = Settled {
            read_again: true,
            ..found(1)
        };
        let first = told
            .of(looks.begin(), &mut unfinished)
            .expect("it found something");
        assert_eq!(first.look, None);
        let mut undecided = Settled {
            is_undecided: true,
            ..Settled::default()
        };
        assert_eq!(told.of(looks.begin(), &mut undecided), None);
        let over = told
            .of(looks.begin(), &mut Settled::default())
            .expect("it is waited for still");
        assert!(over.look > Some(asked));
    }
}
