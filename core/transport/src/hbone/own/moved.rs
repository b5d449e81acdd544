//! A connection that goes on elsewhere: all that it is was written down, and read again in its place.

use std::collections::BTreeMap;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use proptest::prelude::*;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tulle_identity::testing::certificate;
use tulle_identity::tls;
use tulle_model::Identity;

use super::core::{Core, Outbox, Role};
use super::head::{encode_request, encode_response};
use super::link::Link;
use super::sealed::Sealed;
use super::wire::PREFACE;
use crate::hbone::connect::{ConnectRequest, ConnectResponse};
use crate::hbone::liveness::Vitals;
use crate::hbone::settings::Settings;
use crate::hbone::watch::Watch;
use crate::records::Session;
use crate::records::testing::pair;

const CX: Context<'static> = Context::from_waker(Waker::noop());

/// Few enough that keys change on the way, in most runs.
const RECORDS_PER_KEY: u64 = 32;

const ROOM: usize = 64 * 1024;

fn elsewhere<T: Serialize + DeserializeOwned>(state: &T) -> T {
    let written = serde_json::to_vec(state).expect("it has not ended");
    serde_json::from_slice(&written).expect("what was written can be read")
}

/// Frames and records of one end.
#[derive(Serialize, Deserialize)]
struct End {
    core: Core,
    out: Outbox,
    session: Session,
    /// Records, or the start of one, that came and are not opened.
    waiting: Vec<u8>,
}

impl End {
    fn new(role: Role, settings: &Settings, session: Session) -> Self {
        let mut end = Self {
            core: Core::new(role, settings, Instant::now()),
            out: Outbox::default(),
            session,
            waiting: Vec::new(),
        };
        if role == Role::Client {
            // A server's driver takes it before there are frames.
            end.core.gather(&mut end.out, 1);
            assert_eq!(
                end.out.parts().next().map(|part| &part[..PREFACE.len()]),
                Some(&PREFACE[..])
            );
            end.out.advance(PREFACE.len());
        }
        end
    }

    /// Seals about as much as that of what there is to send.
    fn send(&mut self, about: usize) -> Vec<u8> {
        if self.out.is_empty() {
            self.core.gather(&mut self.out, about);
        }
        let mut records = vec![0; ROOM];
        let sealed = self.session.seal(self.out.parts(), &mut records).unwrap();
        self.out.advance(sealed.taken);
        records.truncate(sealed.length);
        records
    }

    fn arrived(&mut self, records: &[u8]) {
        self.waiting.extend_from_slice(records);
        let (now, mut found) = (Instant::now(), Vec::new());
        let opened = self
            .session
            .open(&mut self.waiting, now, |range| found.push(range));
        for range in found {
            let payload = Bytes::copy_from_slice(&self.waiting[range]);
            self.core.receive(payload, now).unwrap();
        }
        self.waiting.drain(..opened);
        assert!(self.session.end().is_none());
        self.core.check();
    }
}

/// What the applications of one end wrote and read, by stream; each byte says how many came before it.
#[derive(Default)]
struct Seen {
    written: usize,
    read: usize,
}

fn payload(from: usize, length: usize) -> Bytes {
    (from..from + length)
        .map(|at| u8::try_from(at % 251).unwrap())
        .collect()
}

struct Two {
    ends: [End; 2],
    /// On their way from each end.
    wire: [Vec<u8>; 2],
    carried: usize,
    seen: BTreeMap<(usize, u32), Seen>,
}

#[derive(Debug, Clone)]
enum Step {
    Open,
    Write {
        end: usize,
        stream: usize,
        length: usize,
    },
    Read {
        end: usize,
    },
    Carry {
        from: usize,
        about: usize,
        cut: usize,
    },
    Move {
        end: usize,
    },
}

impl Two {
    fn new() -> Self {
        let [first, second] = pair(RECORDS_PER_KEY, Instant::now());
        // Small, so that windows are used up.
        let small = |settings| Settings {
            stream_window: 20_000,
            connection_window: 65_535,
            ..settings
        };
        let client = End::new(Role::Client, &small(Settings::client()), first);
        let server = End::new(Role::Server, &small(Settings::server()), second);
        Self {
            ends: [client, server],
            wire: Default::default(),
            carried: 0,
            seen: BTreeMap::new(),
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Open => {
                let block = encode_request(&ConnectRequest::new("10.0.0.1:80")).unwrap();
                if let Poll::Ready(Ok(id)) = self.ends[0].core.open(&block, &CX) {
                    self.seen.insert((0, id), Seen::default());
                }
            }
            Step::Write { end, stream, length } => {
                let count = self.seen.keys().filter(|(at, _)| *at == end).count();
                let mut of_end = self.seen.iter_mut().filter(|((at, _), _)| *at == end);
                if let Some(((_, id), seen)) = of_end.nth(stream % count.max(1)) {
                    let mut chunk = payload(seen.written, length);
                    if let Poll::Ready(Ok(taken)) = self.ends[end].core.write(*id, &mut chunk, &CX) {
                        seen.written += taken;
                    }
                }
            }
            Step::Read { end } => self.read(end),
            Step::Carry { from, about, cut } => {
                let records = self.ends[from].send(about);
                self.wire[from].extend(records);
                let some = self.wire[from].len().min(cut);
                let records: Vec<u8> = self.wire[from].drain(..some).collect();
                self.carried += records.len();
                self.ends[1 - from].arrived(&records);
            }
            Step::Move { end } => self.ends[end] = elsewhere(&self.ends[end]),
        }
    }

    /// Takes what waits for the applications of one end.
    fn read(&mut self, end: usize) {
        let core = &mut self.ends[end].core;
        while let Some((id, request)) = core.accept() {
            assert_eq!(request.unwrap().authority, "10.0.0.1:80");
            let block = encode_response(&ConnectResponse::default());
            core.respond(id, &block, false).unwrap();
            self.seen.insert((end, id), Seen::default());
        }
        for ((_, id), seen) in self.seen.iter_mut().filter(|((at, _), _)| *at == end) {
            while let Poll::Ready(chunk) = core.read(*id, &CX) {
                let chunk = chunk.expect("nobody has finished").unwrap();
                core.release(*id, chunk.len());
                assert_eq!(chunk, payload(seen.read, chunk.len()), "stream {id}");
                seen.read += chunk.len();
            }
        }
    }

    /// Carries until nothing is left that can be.
    fn settle(&mut self) {
        loop {
            let before = self.carried;
            for from in [0, 1] {
                self.step(&Step::Carry {
                    from,
                    about: ROOM,
                    cut: usize::MAX,
                });
                self.read(1 - from);
            }
            if self.carried == before {
                break;
            }
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let end = || 0usize..2;
    prop_oneof![
        1 => Just(Step::Open),
        3 => (end(), 0usize..4, 1usize..30_000)
            .prop_map(|(end, stream, length)| Step::Write { end, stream, length }),
        1 => end().prop_map(|end| Step::Read { end }),
        4 => (end(), 1usize..40_000, 1usize..30_000)
            .prop_map(|(from, about, cut)| Step::Carry { from, about, cut }),
        2 => end().prop_map(|end| Step::Move { end }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn either_end_goes_on_wherever_it_was_written_down(steps in proptest::collection::vec(step(), 1..40)) {
        let mut two = Two::new();
        steps.iter().for_each(|step| two.step(step));
        two.step(&Step::Move { end: 0 });
        two.step(&Step::Move { end: 1 });
        two.settle();
        for ((end, id), seen) in &two.seen {
            let other = two.seen.get(&(1 - end, *id)).map_or(0, |other| other.read);
            prop_assert_eq!(seen.written, other, "stream {} of end {}", id, end);
        }
    }
}

#[test]
fn what_was_said_and_not_heard_goes_along() {
    let mut two = Two::new();
    two.step(&Step::Open);
    two.settle();
    // The answer has come, and nobody has taken it.
    let mut client = elsewhere(&two.ends[0]);
    assert!(matches!(client.core.poll_answer(1, &CX), Poll::Ready(Ok(Ok(_)))));
    two.step(&Step::Open);
    for from in [0, 1] {
        two.step(&Step::Carry {
            from,
            about: ROOM,
            cut: usize::MAX,
        });
    }
    let mut server = elsewhere(&two.ends[1]);
    let (id, request) = server.core.accept().expect("the second stream");
    assert_eq!((id, request.unwrap().authority.as_str()), (3, "10.0.0.1:80"));
}

#[test]
fn who_has_ended_goes_nowhere() {
    let mut two = Two::new();
    two.ends[0].core.close();
    assert!(serde_json::to_vec(&two.ends[0].core).is_err());
    two.ends[1].session.cut();
    assert!(serde_json::to_vec(&two.ends[1].session).is_err());
}

/// Links whose socket takes a part of a record at a time, handed over in the middle of one.
#[tokio::test]
async fn a_link_goes_on_in_the_middle_of_a_record() {
    let id = |name| Identity::new("cluster.local", "shop", name);
    let (web, reviews) = (certificate(&id("web")), certificate(&id("reviews")));
    let (near, far) = tokio::io::duplex(5_000);
    let (near, far) = tokio::join!(
        tls::connect_and_hand_over(web.client_config(&[id("reviews")]), near),
        tls::accept_and_hand_over(reviews.server_config(), far),
    );
    let watch = || Watch::client(Vitals::new(&Settings::client()));
    let mut near = Sealed::take_over(near.unwrap(), watch()).unwrap();
    let mut far = Sealed::take_over(far.unwrap(), watch()).unwrap();

    let sent = payload(0, 300_000);
    let (mut out, mut chunks) = (Outbox::default(), Vec::new());
    out.push(sent.clone());
    let mut found = Vec::new();
    for turn in 0.. {
        let written = near.poll_write(&mut Context::from_waker(Waker::noop()), &mut out);
        while let Poll::Ready(read) = far.poll_read(&mut Context::from_waker(Waker::noop()), 0, &mut chunks) {
            assert!(read.unwrap() > 0);
            if turn % 3 == 0 {
                break;
            }
        }
        chunks
            .drain(..)
            .for_each(|chunk: Bytes| found.extend_from_slice(&chunk));
        near = near.elsewhere(elsewhere);
        far = far.elsewhere(elsewhere);
        if written.is_ready() && found.len() == sent.len() {
            break;
        }
        assert!(turn < 1_000, "it stands still at {}", found.len());
        tokio::task::yield_now().await;
    }
    assert!(found == sent);
}
