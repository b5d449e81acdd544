//! Asking for addresses when traffic or a question for a name needs them, instead of holding all of them.
//!
//! ```text
//!          look_up                    sent                    a resource with that name or alias
//! (none) ─────────▶ waiting ─────────────────▶ pending ──────────────────────────────────▶ (none): it is held
//!                                                 │  "removed"
//!                                                 └─────────▶ absent: the server tells when it appears
//! ```

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tulle_model::mesh::Snapshot;
use tulle_model::{NamespacedHostname, NetworkAddress, Str};

use crate::state::MeshState;

/// Longest wait for an answer; then the key counts as unknown.
pub const LOOKUP_MAX: Duration = Duration::from_secs(5);
/// Keys that are asked for, or known to be absent, at once. The longest absent one makes room.
pub const ASKED_MAX: usize = 4096;

/// What is asked for and not held.
#[derive(Debug, Default)]
pub(crate) struct Demand {
    asked: Mutex<Asked>,
    /// There is something to send.
    wake: Notify,
    /// What is asked for comes beside a wildcard, which does not name it: it is named anew on each stream.
    beside: bool,
}

#[derive(Debug, Default)]
struct Asked {
    keys: HashMap<Str, Answer>,
    /// Absent keys, the longest absent first. A key may be gone from `keys` meanwhile.
    absent: VecDeque<Str>,
    /// Keys that were found beside a wildcard, the first found first.
    kept: VecDeque<Str>,
    to_ask: Vec<Str>,
    to_forget: Vec<Str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Pending,
    Absent,
    /// It is held, for as long as it is named.
    Found,
}

/// Whether the mesh has something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// It has.
    Yes,
    /// It has not.
    No,
    /// Nobody has said.
    Unknown,
}

/// What the next request says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Wishes {
    pub(crate) ask: Vec<Str>,
    pub(crate) forget: Vec<Str>,
}

impl Demand {
    /// For what is asked for beside everything that the server tells by itself.
    pub(crate) fn beside() -> Self {
        Self {
            beside: true,
            ..Self::default()
        }
    }

    /// Notes that a key is wanted. Says whether an answer is to be waited for.
    fn ask(&self, key: &Str) -> bool {
        let mut asked = self.asked.lock();
        match asked.keys.get(key) {
            Some(Answer::Absent) => return false,
            Some(Answer::Pending) => return true,
            Some(Answer::Found) => return false,
            None => {}
        }
        if asked.keys.len() >= ASKED_MAX && !asked.make_room() {
            return false;
        }
        asked.keys.insert(Str::clone(key), Answer::Pending);
        asked.to_ask.push(Str::clone(key));
        self.wake.notify_one();
        true
    }

    fn is_pending(&self, key: &Str) -> bool {
        self.asked.lock().keys.get(key) == Some(&Answer::Pending)
    }

    fn answer(&self, key: &Str) -> Option<Answer> {
        self.asked.lock().keys.get(key).copied()
    }

    /// Waits for something to send.
    pub(crate) async fn wishes(&self) -> Wishes {
        loop {
            let wishes = self.asked.lock().take_wishes();
            if wishes != Wishes::default() {
                return wishes;
            }
            self.wake.notified().await;
        }
    }

    /// Everything asked for so far: what the first message of a new stream names beside what is held.
    pub(crate) fn all(&self) -> Vec<Str> {
        let mut asked = self.asked.lock();
        drop(asked.take_wishes());
        asked.keys.keys().cloned().collect()
    }

    /// These names and aliases are held now.
    pub(crate) fn found<'a>(&self, names: impl Iterator<Item = &'a str>) {
        let mut asked = self.asked.lock();
        for name in names {
            if !self.beside {
                asked.keys.remove(name);
            } else if let Some(answer) = asked.keys.get_mut(name)
                && std::mem::replace(answer, Answer::Found) != Answer::Found
            {
                asked.kept.push_back(name.into());
            }
        }
    }

    /// These do not exist.
    pub(crate) fn absent<'a>(&self, names: impl Iterator<Item = &'a str>) {
        let mut asked = self.asked.lock();
        for name in names {
            let Some(answer) = asked.keys.get_mut(name) else {
                continue;
            };
            if std::mem::replace(answer, Answer::Absent) == Answer::Pending {
                asked.absent.push_back(name.into());
            }
        }
    }
}

impl Asked {
    /// Forgets the key that has been absent for longest, else the one that was found first; a pending one is waited for
    /// and stays.
    fn make_room(&mut self) -> bool {
        for (queue, answer) in [
            (&mut self.absent, Answer::Absent),
            (&mut self.kept, Answer::Found),
        ] {
            while let Some(oldest) = queue.pop_front() {
                if self.keys.get(&oldest) == Some(&answer) {
                    self.keys.remove(&oldest);
                    self.to_forget.push(oldest);
                    return true;
                }
            }
        }
        false
    }

    fn take_wishes(&mut self) -> Wishes {
        Wishes {
            ask: std::mem::take(&mut self.to_ask),
            forget: std::mem::take(&mut self.to_forget),
        }
    }
}

impl MeshState {
    /// What the search finds; where addresses are asked for one by one, `key` is asked for first if it finds nothing,
    /// and the answer waited for, at most [`LOOKUP_MAX`].
    pub async fn look_up<T>(
        &self,
        key: impl FnOnce() -> Str,
        mut search: impl FnMut(&Snapshot) -> Option<T>,
    ) -> Option<T> {
        let found = search(&self.snapshot());
        let Some(demand) = self.demand().filter(|_| found.is_none()) else {
            return found;
        };
        let key = key();
        if !demand.ask(&key) {
            return None;
        }
        let answered = self.wait_for(LOOKUP_MAX, |snapshot| match search(snapshot) {
            Some(found) => Some(Some(found)),
            None => (!demand.is_pending(&key)).then_some(None),
        });
        answered.await.flatten()
    }

    /// Whether the mesh has what the search looks for. Where something can be asked for, `key` is asked for first if the
    /// search finds nothing, and the answer waited for, at most [`LOOKUP_MAX`]. No answer is not a no.
    pub async fn has(&self, key: impl FnOnce() -> Str, mut search: impl FnMut(&Snapshot) -> bool) -> Held {
        if search(&self.snapshot()) {
            return Held::Yes;
        }
        // Who is told of everything has been told.
        let Some(demand) = self.demand() else {
            return Held::No;
        };
        let key = key();
        if demand.ask(&key) {
            let answered = |snapshot: &Snapshot| (search(snapshot) || !demand.is_pending(&key)).then_some(());
            let _ = self.wait_for(LOOKUP_MAX, answered).await;
        }
        match demand.answer(&key) {
            _ if search(&self.snapshot()) => Held::Yes,
            // Something has that key, though not what the search takes, such as a pod that uses its node's address.
            Some(Answer::Found) => Held::Yes,
            Some(Answer::Absent) => Held::No,
            Some(Answer::Pending) | None => Held::Unknown,
        }
    }

    /// Whether addresses are asked for one by one, so that an absent one may exist.
    #[must_use]
    pub fn on_demand(&self) -> bool {
        self.demand().is_some_and(|demand| !demand.beside)
    }

    /// Asks for what is at an address, without waiting for the answer. Where nothing can be asked for, nothing happens.
    pub fn want(&self, address: &NetworkAddress) {
        if let Some(demand) = self.demand() {
            demand.ask(&address_key(address));
        }
    }
}

/// The key of an address: `<network>/<ip>`.
#[must_use]
pub fn address_key(address: &NetworkAddress) -> Str {
    format!("{}/{}", address.network, address.address).into()
}

/// The key of a service: `<namespace>/<hostname>`.
#[must_use]
pub fn service_key(service: &NamespacedHostname) -> Str {
    format!("{}/{}", service.namespace, service.hostname).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(demand: &Demand, key: &str) -> bool {
        demand.ask(&key.into())
    }

    #[tokio::test]
    async fn a_key_is_sent_once_and_waited_for_by_all() {
        let demand = Demand::default();
        assert!(ask(&demand, "/10.0.0.1") && ask(&demand, "/10.0.0.1"));
        assert_eq!(demand.wishes().await.ask, ["/10.0.0.1".into()]);
        assert!(ask(&demand, "/10.0.0.1"));
        assert_eq!(demand.asked.lock().take_wishes(), Wishes::default());
    }

    #[test]
    fn an_absent_key_is_not_asked_for_again_until_it_was_found_and_removed() {
        let demand = Demand::default();
        assert!(ask(&demand, "/10.0.0.1"));
        demand.absent(["/10.0.0.1", "never asked"].into_iter());
        assert!(!ask(&demand, "/10.0.0.1"));
        demand.found(["/10.0.0.1"].into_iter());
        assert!(ask(&demand, "/10.0.0.1"));
    }

    #[test]
    fn the_longest_absent_key_makes_room_and_pending_ones_stay() {
        let demand = Demand::default();
        for key in 0..ASKED_MAX {
            assert!(ask(&demand, &key.to_string()));
        }
        assert!(!ask(&demand, "one more"), "all of them are pending");
        demand.absent(["7", "3"].into_iter());
        assert!(ask(&demand, "one more"));
        assert_eq!(demand.asked.lock().take_wishes().forget, ["7".into()]);
    }

    #[test]
    fn what_is_found_beside_a_wildcard_stays_named_and_makes_room_last() {
        let demand = Demand::beside();
        assert!(ask(&demand, "found") && ask(&demand, "absent"));
        demand.found(["found", "found", "never asked"].into_iter());
        demand.absent(["absent"].into_iter());
        assert!(!ask(&demand, "found"), "it is held");
        let mut all = demand.all();
        all.sort();
        assert_eq!(all, ["absent".into(), "found".into()]);
        for key in 2..ASKED_MAX {
            assert!(ask(&demand, &key.to_string()));
        }
        assert!(ask(&demand, "one more") && ask(&demand, "and one more"));
        assert!(!ask(&demand, "too many"), "the others are pending");
        assert_eq!(
            demand.asked.lock().take_wishes().forget,
            ["absent".into(), "found".into()]
        );
    }

    #[test]
    fn a_new_stream_names_all_that_is_asked_for() {
        let demand = Demand::default();
        assert!(ask(&demand, "a") && ask(&demand, "b"));
        demand.absent(["b"].into_iter());
        let mut all = demand.all();
        all.sort();
        assert_eq!(all, ["a".into(), "b".into()]);
        assert_eq!(
            demand.asked.lock().take_wishes(),
            Wishes::default(),
            "said already"
        );
    }

    /// What a mesh says of an address that its server answers like this.
    async fn has(answer: impl FnOnce(&Demand, &str)) -> Held {
        let state = MeshState::new(tulle_model::Mesh::new());
        state.ask_beside();
        let key = "/10.0.0.1";
        let asking = state.has(|| key.into(), |_| false);
        let answering = async {
            let demand = state.demand().unwrap();
            assert_eq!(demand.wishes().await.ask, [key.into()]);
            answer(demand, key);
            state.wake();
        };
        tokio::join!(asking, answering).0
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_answers_for_is_unknown_and_not_absent() {
        assert_eq!(has(|_, _| {}).await, Held::Unknown);
        let absent = has(|demand, key| demand.absent([key].into_iter())).await;
        assert_eq!(absent, Held::No);
        let found = has(|demand, key| demand.found([key].into_iter())).await;
        assert_eq!(found, Held::Yes);
        let alone = MeshState::new(tulle_model::Mesh::new());
        assert_eq!(alone.has(|| "/10.0.0.1".into(), |_| false).await, Held::No);
    }

    #[tokio::test(start_paused = true)]
    async fn what_there_is_no_room_to_ask_for_is_unknown() {
        let state = MeshState::new(tulle_model::Mesh::new());
        state.ask_beside();
        for key in 0..ASKED_MAX {
            assert!(ask(state.demand().unwrap(), &key.to_string()));
        }
        assert_eq!(state.has(|| "one more".into(), |_| false).await, Held::Unknown);
    }
}
