//! What happened to pods, as an operator reads it: the newest first to be kept, the same again counted.
//!
//! Without Kubernetes there is no API that pods' events could be written to; the page `/events` has them.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;
use tulle_model::Str;

/// Events that are kept; the oldest make room.
pub const EVENTS_MAX: usize = 256;

/// How an event is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Kind {
    /// As it should be.
    Normal,
    /// Something that somebody should look at.
    Warning,
}

/// Something that happened to a pod, once or several times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// The pod's uid.
    pub uid: Str,
    /// Its namespace.
    pub namespace: Str,
    /// Its name.
    pub name: Str,
    /// How it is meant.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// What it is, in a word that stays: a token of the error codes, `captured`, `released` or `degraded`.
    pub reason: &'static str,
    /// What it is.
    pub message: String,
    /// How often it happened.
    pub count: u32,
    /// When it happened first (RFC 3339).
    pub first: String,
    /// When it happened last (RFC 3339).
    pub last: String,
}

/// What happened. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Events(Arc<Mutex<VecDeque<Event>>>);

impl Events {
    /// Adds an event; the same of the same pod is counted and moves to the end. Times in it are those of its last time.
    pub fn add(&self, mut event: Event) {
        let mut kept = self.0.lock();
        let same = |other: &Event| {
            (&other.uid, other.reason, &other.message) == (&event.uid, event.reason, &event.message)
        };
        let before = kept.iter().position(same).and_then(|at| kept.remove(at));
        if let Some(before) = before {
            event.count = before.count.saturating_add(1);
            event.first = before.first;
        }
        if kept.len() >= EVENTS_MAX {
            kept.pop_front();
        }
        kept.push_back(event);
    }

    /// Every event that is kept, the one that happened last at the end.
    #[must_use]
    pub fn list(&self) -> Vec<Event> {
        self.0.lock().iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(uid: &str, message: &str, at: &str) -> Event {
        Event {
            uid: uid.into(),
            namespace: "shop".into(),
            name: "web".into(),
            kind: Kind::Warning,
            reason: "port_taken",
            message: message.to_owned(),
            count: 1,
            first: at.to_owned(),
            last: at.to_owned(),
        }
    }

    #[test]
    fn the_same_again_is_counted_and_was_last() {
        let events = Events::default();
        events.add(event("u1", "taken", "1"));
        events.add(event("u2", "taken", "2"));
        events.add(event("u1", "taken", "3"));
        let kept = events.list();
        let shown: Vec<_> = kept
            .iter()
            .map(|event| (&*event.uid, event.count, &*event.first, &*event.last))
            .collect();
        assert_eq!(shown, [("u2", 1, "2", "2"), ("u1", 2, "1", "3")]);
    }

    #[test]
    fn events_are_bounded() {
        let events = Events::default();
        for number in 0..=EVENTS_MAX {
            events.add(event("u1", &number.to_string(), "1"));
        }
        let kept = events.list();
        assert_eq!((kept.len(), kept[0].message.as_str()), (EVENTS_MAX, "1"));
    }
}
