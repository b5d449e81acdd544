//! Single facts first; then ten thousand random interleavings against proxies that do what they are told.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;

/// A pod's payload: which listeners it has.
type Pod = u64;

fn uid(name: &str) -> Str {
    name.into()
}

fn ours(generation: &str) -> Introduction {
    Introduction {
        generation: generation.into(),
        takes_sockets: true,
        lingering: false,
        pid: None,
    }
}

fn lingering(generation: &str) -> Introduction {
    Introduction {
        lingering: true,
        ..ours(generation)
    }
}

/// Accepts everything that is to be said to a proxy now, and returns it.
fn settle(book: &mut Book<Pod>, id: u64, now: Instant) -> Vec<Step<Pod>> {
    let mut said = Vec::new();
    while let Next::Send(step) = book.next(id, now) {
        book.answered(id, &step, None, now);
        said.push(step);
        assert!(said.len() < 1000, "it never comes to an end: {said:?}");
    }
    said
}

fn book_of(pods: &[&str]) -> Book<Pod> {
    let mut book = Book::default();
    for pod in pods {
        book.announce(&uid(pod), 0, false);
    }
    book.complete();
    book
}

#[tokio::test(start_paused = true)]
async fn the_older_hands_over_what_the_newest_accepted_and_nothing_else() {
    let now = Instant::now();
    let mut book = book_of(&["a", "b"]);
    book.connect(1, ours("1"));
    settle(&mut book, 1, now);
    book.connect(2, ours("2"));
    assert_eq!(
        settle(&mut book, 1, now),
        [],
        "nothing before the newest has accepted"
    );
    let Next::Send(first) = book.next(2, now) else {
        panic!("a snapshot")
    };
    book.answered(2, &first, None, now);
    assert_eq!(settle(&mut book, 1, now), [Step::HandOver(uid("a"))]);
    let Next::Send(second) = book.next(2, now) else {
        panic!("a snapshot")
    };
    book.answered(2, &second, Some("no".into()), now);
    assert_eq!(
        settle(&mut book, 1, now),
        [],
        "what was refused stays where it is"
    );
    assert_eq!(settle(&mut book, 2, now), [Step::SnapshotSent]);
    assert_eq!(book.next(2, now), Next::Wait(Some(now + RETRY)));
    assert_eq!(settle(&mut book, 2, now + RETRY), [Step::Add(uid("b"), 0)]);
    assert_eq!(settle(&mut book, 1, now), [Step::HandOver(uid("b"))]);
}

#[tokio::test(start_paused = true)]
async fn f05_a_generation_is_told_of_each_pod_that_another_accepts_for_and_takes_it_when_it_can() {
    let now = Instant::now();
    let mut book = book_of(&["a"]);
    book.connect(1, ours("1"));
    assert!(!book.is_served_beside(1, &uid("a")), "the first is alone");
    settle(&mut book, 1, now);
    assert!(!book.is_served_beside(1, &uid("a")), "by nobody but itself");
    book.connect(2, ours("2"));
    assert!(book.is_served_beside(2, &uid("a")));
    let Next::Send(add) = book.next(2, now) else {
        panic!("a snapshot")
    };
    book.answered(2, &add, Some("no certificate yet".into()), now);
    assert_eq!(settle(&mut book, 2, now), [Step::SnapshotSent]);
    assert_eq!(settle(&mut book, 1, now), [], "the first serves on");
    assert!(book.is_served_beside(2, &uid("a")));
    assert_eq!(settle(&mut book, 2, now + RETRY), [Step::Add(uid("a"), 0)]);
    assert_eq!(settle(&mut book, 1, now + RETRY), [Step::HandOver(uid("a"))]);
    assert!(!book.is_served_beside(2, &uid("a")));
    book.connect(3, lingering("3"));
    assert!(
        !book.is_served_beside(2, &uid("a")),
        "one that lingers accepts for nobody"
    );
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_leaves_is_handed_over_to_nobody_and_deleted_once_it_is_withdrawn() {
    let now = Instant::now();
    let mut book = book_of(&["a"]);
    book.connect(1, ours("1"));
    book.connect(2, Introduction::default());
    book.connect(3, ours("3"));
    for id in [1, 2, 3] {
        settle(&mut book, id, now);
    }
    settle(&mut book, 1, now);
    book.leave(&uid("a"));
    assert!(!book.has_left(&uid("a")));
    assert_eq!(settle(&mut book, 3, now), [Step::HandOver(uid("a"))]);
    assert!(book.has_left(&uid("a")), "the first has handed it over before");
    assert_eq!(
        settle(&mut book, 2, now),
        [],
        "a plain proxy knows no way to stop"
    );
    book.connect(4, ours("4"));
    assert_eq!(
        settle(&mut book, 4, now),
        [Step::Keep(uid("a")), Step::SnapshotSent, Step::HandOver(uid("a"))],
        "one that comes now, or again, drops nothing"
    );
    book.withdraw(&uid("a"));
    assert_eq!(book.next(1, now), Next::Cut, "a fourth generation");
    for id in [2, 3, 4] {
        assert_eq!(settle(&mut book, id, now), [Step::Delete(uid("a"))]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_leaving_pod_that_is_wanted_again_is_added_again() {
    let now = Instant::now();
    let mut book = book_of(&["a"]);
    book.connect(1, ours("1"));
    settle(&mut book, 1, now);
    book.leave(&uid("a"));
    settle(&mut book, 1, now);
    book.keep(&uid("a"));
    assert_eq!(settle(&mut book, 1, now), []);
    book.announce(&uid("a"), 1, false);
    assert_eq!(settle(&mut book, 1, now), [Step::Add(uid("a"), 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_newest_that_dies_before_its_acceptance_was_never_noticed() {
    let now = Instant::now();
    let mut book = book_of(&["a"]);
    book.connect(1, ours("1"));
    settle(&mut book, 1, now);
    book.connect(2, ours("2"));
    assert!(matches!(book.next(2, now), Next::Send(Step::Add(..))));
    book.disconnect(2);
    assert_eq!(settle(&mut book, 1, now), []);
    assert_eq!(book.progress(&uid("a")), Progress::Accepted);
}

#[tokio::test(start_paused = true)]
async fn a_newest_that_dies_later_gives_its_pods_back_to_the_older() {
    let now = Instant::now();
    let mut book = book_of(&["a"]);
    for (id, generation) in [(1, "1"), (2, "2")] {
        book.connect(id, ours(generation));
        settle(&mut book, id, now);
    }
    settle(&mut book, 1, now);
    book.disconnect(2);
    assert_eq!(settle(&mut book, 1, now), [Step::Add(uid("a"), 0)]);
}

#[tokio::test(start_paused = true)]
async fn a_fourth_generation_cuts_the_oldest_and_a_lingering_one_first() {
    let now = Instant::now();
    let mut book = book_of(&["a"]);
    book.connect(1, ours("t1"));
    book.connect(2, ours("t2"));
    book.connect(3, lingering("t0"));
    book.connect(4, ours("t3"));
    assert_eq!(book.next(3, now), Next::Cut);
    book.disconnect(3);
    book.connect(5, ours("t4"));
    assert_eq!(book.next(1, now), Next::Cut);
    assert_ne!(book.next(2, now), Next::Cut);
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_of_the_agent_the_later_process_is_the_newest_whoever_dials_first() {
    let now = Instant::now();
    let mut book = book_of(&["a"]);
    book.connect(1, ours("t2"));
    assert_eq!(
        settle(&mut book, 1, now),
        [Step::Add(uid("a"), 0), Step::SnapshotSent]
    );
    book.connect(2, ours("t1"));
    assert_eq!(
        settle(&mut book, 2, now),
        [Step::Keep(uid("a")), Step::SnapshotSent, Step::HandOver(uid("a"))]
    );
    // An earlier version does not tell when it started; who dials last is the newest then.
    book.connect(3, ours("0123456789abcdef"));
    assert_eq!(book.newest().map(|newest| newest.id), Some(3));
}

#[tokio::test(start_paused = true)]
async fn a_lingering_proxy_gets_no_pod_and_hears_of_every_end() {
    let now = Instant::now();
    let mut book = book_of(&["a"]);
    book.connect(1, lingering("t1"));
    assert_eq!(
        settle(&mut book, 1, now),
        [Step::Keep(uid("a")), Step::SnapshotSent]
    );
    assert_eq!(book.progress(&uid("a")), Progress::Nobody);
    book.announce(&uid("b"), 0, false);
    assert_eq!(settle(&mut book, 1, now), []);
    book.withdraw(&uid("a"));
    assert!(!book.is_gone(&uid("a")));
    assert_eq!(settle(&mut book, 1, now), [Step::Delete(uid("a"))]);
    assert!(book.is_gone(&uid("a")));
}

#[tokio::test(start_paused = true)]
async fn a_plain_proxy_is_never_asked_to_hand_over() {
    let now = Instant::now();
    let mut book = book_of(&["a"]);
    book.connect(1, Introduction::default());
    settle(&mut book, 1, now);
    book.connect(2, Introduction::default());
    settle(&mut book, 2, now);
    assert_eq!(settle(&mut book, 1, now), []);
    book.announce(&uid("a"), 1, false);
    assert_eq!(settle(&mut book, 2, now), [Step::Add(uid("a"), 1)]);
    book.withdraw(&uid("a"));
    assert_eq!(settle(&mut book, 1, now), [Step::Delete(uid("a"))]);
}

#[tokio::test(start_paused = true)]
async fn new_listeners_are_taken_after_the_old_ones_were_let_go() {
    let now = Instant::now();
    let mut book = book_of(&["a"]);
    book.connect(1, ours("1"));
    settle(&mut book, 1, now);
    book.announce(&uid("a"), 0, true);
    assert_eq!(settle(&mut book, 1, now), [Step::Add(uid("a"), 0)]);
    book.announce(&uid("a"), 1, false);
    assert_eq!(
        settle(&mut book, 1, now),
        [Step::HandOver(uid("a")), Step::Add(uid("a"), 1)]
    );
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_ends_while_it_is_added_is_deleted_right_after() {
    let now = Instant::now();
    let mut book = book_of(&["a"]);
    book.connect(1, ours("1"));
    let Next::Send(add) = book.next(1, now) else {
        panic!("a snapshot")
    };
    book.withdraw(&uid("a"));
    book.answered(1, &add, None, now);
    assert_eq!(
        settle(&mut book, 1, now),
        [Step::SnapshotSent, Step::Delete(uid("a"))]
    );
}

/// What a proxy of ours does with what it is told.
#[derive(Debug, Default)]
struct Peer {
    id: u64,
    /// Pods it accepts for.
    accepting: BTreeSet<Str>,
    /// Pods it knows, accepting or not.
    known: BTreeSet<Str>,
    mentioned: BTreeSet<Str>,
    live: bool,
    lingering: bool,
    /// Sent and not answered yet.
    in_flight: Option<Step<Pod>>,
}

impl Peer {
    fn take(&mut self, step: &Step<Pod>, accepted_by_newest: bool) {
        match step {
            Step::Add(uid, _) => {
                assert!(!self.lingering, "a lingering proxy takes no pod");
                self.mentioned.insert(uid.clone());
                self.known.insert(uid.clone());
                self.accepting.insert(uid.clone());
            }
            Step::Keep(uid) => {
                assert!(!self.live, "keep is legal only before the snapshot's end");
                self.mentioned.insert(uid.clone());
            }
            Step::SnapshotSent => {
                assert!(!self.live, "a snapshot ends once");
                self.live = true;
                let mentioned = std::mem::take(&mut self.mentioned);
                self.known.retain(|uid| mentioned.contains(uid));
                self.accepting.retain(|uid| mentioned.contains(uid));
            }
            Step::Delete(uid) => {
                self.known.remove(uid);
                self.accepting.remove(uid);
            }
            Step::HandOver(uid) => {
                assert!(accepted_by_newest, "nobody else accepts for {uid}");
                self.accepting.remove(uid);
            }
            Step::Return(_) => {}
        }
    }
}

#[derive(Debug, Clone)]
enum Op {
    Announce(u8),
    Reopen(u8),
    Keep(u8),
    Leave(u8),
    Withdraw(u8),
    Start,
    Reconnect(u8),
    Linger(u8),
    Die(u8),
    Say(u8),
    Answer(u8, bool),
}

fn op() -> impl Strategy<Value = Op> {
    let pod = 0..4_u8;
    let peer = 0..4_u8;
    prop_oneof![
        3 => pod.clone().prop_map(Op::Announce),
        1 => pod.clone().prop_map(Op::Reopen),
        1 => pod.clone().prop_map(Op::Keep),
        1 => pod.clone().prop_map(Op::Leave),
        2 => pod.prop_map(Op::Withdraw),
        1 => Just(Op::Start),
        1 => peer.clone().prop_map(Op::Reconnect),
        1 => peer.clone().prop_map(Op::Linger),
        1 => peer.clone().prop_map(Op::Die),
        10 => peer.clone().prop_map(Op::Say),
        10 => (peer, prop::bool::weighted(0.9)).prop_map(|(peer, good)| Op::Answer(peer, good)),
    ]
}

/// The agent's book and the proxies around it.
struct Rig {
    book: Book<Pod>,
    peers: Vec<(String, Peer)>,
    ids: u64,
    processes: u64,
    now: Instant,
}

impl Rig {
    fn pod(number: u8) -> Str {
        format!("pod-{number}").into()
    }

    fn peer(&mut self, number: u8) -> Option<&mut (String, Peer)> {
        let count = self.peers.len();
        (count > 0).then(|| &mut self.peers[usize::from(number) % count])
    }

    fn connect(&mut self, generation: String, mut peer: Peer) {
        self.ids += 1;
        (peer.id, peer.live, peer.in_flight) = (self.ids, false, None);
        peer.mentioned.clear();
        let lingering = peer.lingering;
        if lingering {
            peer.accepting.clear();
        }
        self.peers.push((generation.clone(), peer));
        self.book.connect(
            self.ids,
            Introduction {
                generation,
                takes_sockets: true,
                lingering,
                pid: None,
            },
        );
        let gone: Vec<_> = self
            .peers
            .iter()
            .map(|(_, peer)| peer.id)
            .filter(|id| self.book.proxies().iter().all(|proxy| proxy.id != *id))
            .collect();
        self.peers.retain(|(_, peer)| !gone.contains(&peer.id));
    }

    fn leave(&mut self, number: u8) -> Option<(String, Peer)> {
        let id = self.peer(number)?.1.id;
        self.book.disconnect(id);
        let at = self.peers.iter().position(|(_, peer)| peer.id == id)?;
        Some(self.peers.remove(at))
    }

    fn say(&mut self, number: u8) -> bool {
        let Some((_, peer)) = self.peer(number) else {
            return false;
        };
        let id = peer.id;
        if peer.in_flight.is_some() {
            return false;
        }
        match self.book.next(id, self.now) {
            Next::Send(step) => {
                self.peers
                    .iter_mut()
                    .find(|(_, peer)| peer.id == id)
                    .unwrap()
                    .1
                    .in_flight = Some(step);
                true
            }
            Next::Wait(_) => false,
            Next::Cut => {
                self.leave(number);
                true
            }
        }
    }

    fn answer(&mut self, number: u8, good: bool) -> bool {
        let (book, now) = (&self.book, self.now);
        let count = self.peers.len();
        if count == 0 {
            return false;
        }
        let own = usize::from(number) % count;
        let Some(step) = self.peers[own].1.in_flight.take() else {
            return false;
        };
        let id = self.peers[own].1.id;
        let refused = matches!(step, Step::Add(..)) && !good;
        if refused {
            if let Step::Add(uid, _) = &step {
                self.peers[own].1.mentioned.insert(uid.clone());
            }
        } else {
            let elsewhere = match &step {
                Step::HandOver(uid) => {
                    // Or the newest itself, which takes other listeners in the next breath, or a pod that ended.
                    self.peers
                        .iter()
                        .any(|(_, peer)| peer.id != id && peer.accepting.contains(uid))
                        || book.newest().is_none_or(|newest| newest.id == id)
                        || book.announced(uid).is_none()
                        || book.progress(uid) != Progress::Accepted
                }
                _ => true,
            };
            self.peers[own].1.take(&step, elsewhere);
        }
        let refusal = refused.then(|| "no".to_owned());
        self.book.answered(id, &step, refusal, now);
        true
    }

    fn perform(&mut self, op: Op) {
        match op {
            Op::Announce(pod) => self.book.announce(&Self::pod(pod), 0, true),
            Op::Reopen(pod) => self.book.announce(&Self::pod(pod), 1, false),
            Op::Keep(pod) => self.book.keep(&Self::pod(pod)),
            Op::Leave(pod) => self.book.leave(&Self::pod(pod)),
            Op::Withdraw(pod) => self.book.withdraw(&Self::pod(pod)),
            Op::Start => {
                self.processes += 1;
                self.connect(format!("t{:04}", self.processes), Peer::default());
            }
            Op::Reconnect(peer) => {
                if let Some((generation, peer)) = self.leave(peer) {
                    self.connect(generation, peer);
                }
            }
            Op::Linger(peer) => {
                if let Some((generation, mut peer)) = self.leave(peer) {
                    peer.lingering = true;
                    self.connect(generation, peer);
                }
            }
            Op::Die(peer) => drop(self.leave(peer)),
            Op::Say(peer) => drop(self.say(peer)),
            Op::Answer(peer, good) => drop(self.answer(peer, good)),
        }
    }

    /// Lets everything be said and answered.
    fn settle(&mut self) {
        for round in 0.. {
            assert!(round < 500, "it never comes to rest");
            let moved = (0..4_u8).fold(false, |moved, peer| {
                let said = self.say(peer);
                self.answer(peer, true) || said || moved
            });
            if !moved {
                self.now += RETRY;
                let again = (0..4_u8).any(|peer| self.say(peer));
                if !again {
                    return;
                }
            }
        }
    }

    fn check(&self) {
        let newest = self.book.newest().map(|newest| newest.id);
        let announced: BTreeSet<_> = (0..4)
            .map(Self::pod)
            .filter(|uid| self.book.announced(uid).is_some())
            .collect();
        for (_, peer) in &self.peers {
            if Some(peer.id) == newest {
                assert!(
                    announced.is_subset(&peer.accepting),
                    "the newest accepts for every announced pod"
                );
            } else {
                let shared: Vec<_> = peer.accepting.intersection(&announced).collect();
                assert!(
                    shared.is_empty() || newest.is_none(),
                    "an older one accepts on: {shared:?}"
                );
            }
            for uid in (0..4).map(Self::pod) {
                let gone = !self.book.pods.contains_key(&uid);
                let leaving = self.book.pods.get(&uid).is_some_and(|entry| entry.leaving);
                assert!(
                    !(leaving && peer.accepting.contains(&uid)),
                    "{uid} leaves and {} accepts on",
                    peer.id
                );
                assert!(
                    !(gone && peer.known.contains(&uid)),
                    "{uid} ended and {} was not told",
                    peer.id
                );
            }
        }
        assert!(self.peers.len() <= GENERATIONS_MAX);
    }
}

const INTERLEAVINGS: u32 = 10_000;

#[tokio::test(start_paused = true)]
async fn whatever_the_order_of_events_everyone_ends_up_with_what_is_announced() {
    let now = Instant::now();
    let mut runner = TestRunner::new(Config {
        cases: INTERLEAVINGS,
        failure_persistence: None,
        ..Config::default()
    });
    let outcome = runner.run(&prop::collection::vec(op(), 1..60), |ops| {
        let mut rig = Rig {
            book: Book::default(),
            peers: Vec::new(),
            ids: 0,
            processes: 0,
            now,
        };
        rig.book.complete();
        for op in ops {
            rig.perform(op);
        }
        rig.settle();
        rig.check();
        Ok(())
    });
    outcome.unwrap();
}
