//! Who still calls without the mesh: plaintext callers of local workloads, kept for a day.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tulle_model::Str;

use crate::record::Story;

/// How long a caller is remembered.
const KEEP: Duration = Duration::from_secs(24 * 60 * 60);

/// Callers that are remembered; the one longest silent makes room.
const CALLERS_MAX: usize = 1000;

/// The callers seen. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Plaintext(Arc<Mutex<HashMap<Edge, Seen>>>);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Edge {
    source: Str,
    destination: Str,
    port: u16,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    connections: u64,
    last: SystemTime,
}

/// One caller of one port of one workload.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Caller {
    /// The calling workload, or its address where it is not known.
    pub source: Str,
    /// The called workload.
    pub destination: Str,
    /// The called port.
    pub port: u16,
    /// How often it connected.
    pub connections: u64,
    /// Seconds since it last did.
    pub last_seen_seconds: u64,
}

impl Plaintext {
    /// Notes a plaintext connection.
    pub fn note(&self, story: &Story) {
        self.note_at(story, SystemTime::now());
    }

    /// Every caller of the last day, most connections first.
    #[must_use]
    pub fn list(&self) -> Vec<Caller> {
        self.list_at(SystemTime::now())
    }

    fn note_at(&self, story: &Story, now: SystemTime) {
        let named = |party: &crate::metrics::labels::Party| {
            let (namespace, pod) = (party.namespace.as_ref()?, party.pod.as_ref()?);
            Some(Str::from(format!("{namespace}/{pod}")))
        };
        let edge = Edge {
            source: named(&story.source).unwrap_or_else(|| story.source_address.ip().to_string().into()),
            destination: named(&story.destination)
                .unwrap_or_else(|| story.destination_address.ip().to_string().into()),
            port: story.destination_address.port(),
        };
        let mut callers = self.0.lock();
        if callers.len() >= CALLERS_MAX && !callers.contains_key(&edge) {
            make_room(&mut callers, now);
        }
        let seen = callers.entry(edge).or_insert(Seen {
            connections: 0,
            last: now,
        });
        seen.connections += 1;
        seen.last = now;
    }

    fn list_at(&self, now: SystemTime) -> Vec<Caller> {
        let callers = self.0.lock();
        let recent = callers.iter().filter(|(_, seen)| silence(seen, now) < KEEP);
        let mut list: Vec<_> = recent
            .map(|(edge, seen)| Caller {
                source: Arc::clone(&edge.source),
                destination: Arc::clone(&edge.destination),
                port: edge.port,
                connections: seen.connections,
                last_seen_seconds: silence(seen, now).as_secs(),
            })
            .collect();
        list.sort_by(|a, b| {
            b.connections
                .cmp(&a.connections)
                .then_with(|| a.source.cmp(&b.source))
        });
        list
    }
}

/// A clock that went back makes a caller recent, not old.
fn silence(seen: &Seen, now: SystemTime) -> Duration {
    now.duration_since(seen.last).unwrap_or_default()
}

fn make_room(callers: &mut HashMap<Edge, Seen>, now: SystemTime) {
    callers.retain(|_, seen| silence(seen, now) < KEEP);
    if callers.len() < CALLERS_MAX {
        return;
    }
    let silent = callers
        .iter()
        .max_by_key(|(_, seen)| silence(seen, now))
        .map(|(edge, _)| edge.clone());
    if let Some(edge) = silent {
        callers.remove(&edge);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::labels::Direction;

    fn story(source: [u8; 4]) -> Story {
        Story::begin(
            Direction::Inbound,
            (source, 40000).into(),
            ([10, 0, 0, 1], 80).into(),
        )
    }

    #[test]
    fn callers_are_counted_and_forgotten_after_a_day() {
        let plaintext = Plaintext::default();
        let start = SystemTime::UNIX_EPOCH + KEEP;
        plaintext.note_at(&story([10, 0, 0, 2]), start);
        plaintext.note_at(&story([10, 0, 0, 2]), start + Duration::from_secs(5));
        let list = plaintext.list_at(start + Duration::from_secs(7));
        assert_eq!(list.len(), 1);
        assert_eq!((list[0].connections, list[0].last_seen_seconds), (2, 2));
        assert_eq!(&*list[0].source, "10.0.0.2");
        assert!(
            plaintext
                .list_at(start + KEEP + Duration::from_secs(5))
                .is_empty()
        );
    }

    #[test]
    fn the_list_is_bounded() {
        let plaintext = Plaintext::default();
        let start = SystemTime::UNIX_EPOCH;
        for number in 0..=u16::try_from(CALLERS_MAX).unwrap() {
            let [high, low] = number.to_be_bytes();
            plaintext.note_at(
                &story([10, 1, high, low]),
                start + Duration::from_secs(number.into()),
            );
        }
        let list = plaintext.list_at(start + Duration::from_secs(2000));
        assert_eq!(list.len(), CALLERS_MAX);
        assert!(
            list.iter().all(|caller| &*caller.source != "10.1.0.0"),
            "the longest silent one made room"
        );
    }
}
