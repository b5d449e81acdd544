//! Connections without a socket: turns, windows, the end of streams and of connections.

use std::task::{Context, Poll, Waker};

use proptest::prelude::*;

use super::super::head::{encode_refusal, encode_request, encode_response};
use super::*;
use crate::hbone::connect::{ConnectResponse, Refusal};

pub(super) const CX: Context<'static> = Context::from_waker(Waker::noop());

/// A client and a server; bytes go from one to the other when that is asked for.
pub(super) struct Two {
    pub(super) client: Core,
    pub(super) server: Core,
}

impl Two {
    pub(super) fn new() -> Self {
        Self::with(Settings::client(), Settings::server())
    }

    fn with(client: Settings, server: Settings) -> Self {
        let now = Instant::now();
        let mut two = Self {
            client: Core::new(Role::Client, &client, now),
            server: Core::new(Role::Server, &server, now),
        };
        two.client.control.drain(..wire::PREFACE.len());
        two.exchange();
        two
    }

    /// Carries all there is to carry.
    pub(super) fn exchange(&mut self) {
        while carry(&mut self.client, &mut self.server) + carry(&mut self.server, &mut self.client) > 0 {}
        self.client.check();
        self.server.check();
    }

    /// A stream that the server has answered.
    pub(super) fn stream(&mut self) -> u32 {
        let id = self.opened();
        let block = encode_response(&ConnectResponse::default());
        self.server.respond(id, &block, false).unwrap();
        self.exchange();
        assert!(matches!(self.client.poll_answer(id, &CX), Poll::Ready(Ok(Ok(_)))));
        id
    }

    /// A stream that the server has not answered.
    fn opened(&mut self) -> u32 {
        let block = encode_request(&ConnectRequest::new("10.0.0.1:80")).unwrap();
        let Poll::Ready(Ok(id)) = self.client.open(&block, &CX) else {
            panic!("it can be opened")
        };
        self.exchange();
        let (accepted, request) = self.server.accept().unwrap();
        assert_eq!(
            (accepted, request.unwrap().authority.as_str()),
            (id, "10.0.0.1:80")
        );
        id
    }
}

fn carry(from: &mut Core, to: &mut Core) -> usize {
    let mut out = Outbox::default();
    from.gather(&mut out, 1 << 20);
    let length = out.len();
    let bytes = flat(&mut out);
    to.receive(bytes, Instant::now()).unwrap();
    length
}

fn flat(out: &mut Outbox) -> Bytes {
    let mut bytes = Vec::new();
    while !out.is_empty() {
        let (slices, count) = out.slices();
        slices[..count]
            .iter()
            .for_each(|slice| bytes.extend_from_slice(slice));
        let written = slices[..count].iter().map(|slice| slice.len()).sum();
        out.advance(written);
    }
    bytes.into()
}

pub(super) fn write(core: &mut Core, id: u32, bytes: &'static [u8]) {
    let mut chunk = Bytes::from_static(bytes);
    assert_eq!(core.write(id, &mut chunk, &CX), Poll::Ready(Ok(bytes.len())));
}

pub(super) fn read(core: &mut Core, id: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Poll::Ready(Some(Ok(chunk))) = core.read(id, &CX) {
        core.release(id, chunk.len());
        bytes.extend(chunk);
    }
    bytes
}

/// The streams whose DATA a batch carries, in order, with how much.
fn turns(mut bytes: Bytes) -> Vec<(u32, usize)> {
    let (mut parser, mut turns) = (Parser::new(1 << 20, 1 << 20), Vec::new());
    while let Some(item) = parser.next(&mut bytes).unwrap() {
        if let super::super::parser::Item::Data { stream, length, .. } = item {
            turns.push((stream, length));
        }
    }
    turns
}

static BULK: [u8; 300_000] = [7; 300_000];

#[test]
fn a_mouse_does_not_wait_for_elephants() {
    let mut two = Two::new();
    let elephants: Vec<u32> = (0..4).map(|_| two.stream()).collect();
    let mouse = two.stream();
    elephants.iter().for_each(|id| write(&mut two.client, *id, &BULK));
    let mut out = Outbox::default();
    two.client.gather(&mut out, 100_000);
    write(&mut two.client, mouse, b"squeak");
    let mut next = Outbox::default();
    two.client.gather(&mut next, 100_000);
    assert_eq!(turns(flat(&mut next))[0], (mouse, 6));
    let turns = turns(flat(&mut out));
    let share = |id: &u32| {
        turns
            .iter()
            .filter(|(stream, _)| stream == id)
            .map(|(_, length)| length)
            .sum::<usize>()
    };
    let shares: Vec<usize> = elephants.iter().map(share).collect();
    let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
    assert!(most - least <= 40_000, "{shares:?}");
}

#[test]
fn first_turns_are_short_and_those_of_bulk_are_long() {
    let mut two = Two::new();
    let elephants = [two.stream(), two.stream()];
    elephants.iter().for_each(|id| write(&mut two.client, *id, &BULK));
    let mut out = Outbox::default();
    two.client.gather(&mut out, 2 * (16 + 128) * 1024);
    let [first, second] = elephants;
    let (short, long) = (16 * 1024 - 9, 128 * 1024 - 9);
    let expected = [(first, short), (second, short), (first, long), (second, long)];
    assert_eq!(turns(flat(&mut out)), expected);
}

#[test]
fn mice_do_not_starve_an_elephant() {
    let mut two = Two::new();
    let (elephant, mice) = (two.stream(), [two.stream(), two.stream()]);
    write(&mut two.client, elephant, &BULK);
    let (mut carried, mut rounds) = (0, 0);
    while carried < 200_000 {
        for mouse in mice {
            let _ = two.client.write(mouse, &mut Bytes::from_static(&[1; 1000]), &CX);
        }
        let mut out = Outbox::default();
        two.client.gather(&mut out, 1);
        let of_elephant = turns(flat(&mut out))
            .into_iter()
            .filter(|(id, _)| *id == elephant);
        carried += of_elephant.map(|(_, length)| length).sum::<usize>();
        rounds += 1;
        assert!(rounds < 1000, "only {carried} bytes were carried");
    }
}

#[test]
fn many_small_writes_leave_in_one_frame() {
    let mut two = Two::new();
    let id = two.stream();
    (0..500).for_each(|_| write(&mut two.client, id, b"x"));
    let mut out = Outbox::default();
    two.client.gather(&mut out, 1 << 20);
    assert_eq!(turns(flat(&mut out)), [(id, 500)]);
}

#[test]
fn a_shrunken_window_may_become_negative() {
    let mut two = Two::new();
    let id = two.stream();
    write(&mut two.client, id, &BULK);
    let mut out = Outbox::default();
    two.client.gather(&mut out, 1);
    let window = |bytes: u32| {
        let mut frame = Vec::new();
        wire::put(
            &mut frame,
            wire::SETTINGS,
            0,
            0,
            &[&[0, 4][..], &bytes.to_be_bytes()].concat(),
        );
        Bytes::from(frame)
    };
    two.client.receive(window(10), Instant::now()).unwrap();
    two.client.check();
    assert!(two.client.streams[&id].send_window < 0);
    let mut nothing = Outbox::default();
    two.client.gather(&mut nothing, 1 << 20);
    assert_eq!(turns(flat(&mut nothing)), []);
    two.client.receive(window(4 << 20), Instant::now()).unwrap();
    let mut rest = Outbox::default();
    two.client.gather(&mut rest, 1 << 20);
    let lengths: usize = [out, rest]
        .iter_mut()
        .flat_map(|out| turns(flat(out)))
        .map(|(_, length)| length)
        .sum();
    assert_eq!(lengths, BULK.len());
}

/// Payload that came before the answer is held for whoever accepts, and dropped with a refusal.
#[test]
fn r201_early_data_waits_for_the_answer() {
    for refused in [false, true] {
        let mut two = Two::new();
        let id = two.opened();
        write(&mut two.client, id, b"too early");
        two.exchange();
        if refused {
            let refusal = Refusal {
                status: 401,
                header: None,
            };
            two.server.respond(id, &encode_refusal(&refusal), true).unwrap();
            two.server.forget(id);
            two.exchange();
            assert_eq!(two.client.poll_answer(id, &CX), Poll::Ready(Ok(Err(refusal))));
            assert!(two.server.streams.is_empty());
            assert_eq!(two.server.credit.held, 0);
        } else {
            let block = encode_response(&ConnectResponse::default());
            two.server.respond(id, &block, false).unwrap();
            assert_eq!(read(&mut two.server, id), b"too early");
        }
    }
}

#[test]
fn a_drain_takes_what_was_on_its_way_and_nothing_after() {
    let mut two = Two::new();
    let before = two.stream();
    let block = encode_request(&ConnectRequest::new("10.0.0.1:80")).unwrap();
    assert!(two.client.open(&block, &CX).is_ready());
    two.server.drain();
    // The stream and the first GOAWAY cross.
    let mut crossing = Outbox::default();
    two.server.gather(&mut crossing, 1 << 20);
    carry(&mut two.client, &mut two.server);
    let (id, _) = two.server.accept().expect("it was on its way");
    two.client.receive(flat(&mut crossing), Instant::now()).unwrap();
    two.exchange();
    assert_eq!(two.client.open(&block, &CX), Poll::Ready(Err(Gone::Away)));
    assert_eq!(
        (two.client.next(), two.server.next()),
        (Next::Read, Next::Read),
        "two streams are open"
    );
    for id in [before, id] {
        two.server.forget(id);
        two.client.forget(id);
    }
    two.exchange();
    assert_eq!((two.client.next(), two.server.next()), (Next::Close, Next::Close));
}

#[test]
fn what_a_goaway_did_not_take_can_be_tried_elsewhere() {
    let mut two = Two::new();
    let taken = two.opened();
    let block = encode_request(&ConnectRequest::new("10.0.0.1:80")).unwrap();
    let Poll::Ready(Ok(lost)) = two.client.open(&block, &CX) else {
        panic!("it can be opened")
    };
    two.server.goodbye(taken, code::NO_ERROR, "");
    carry(&mut two.server, &mut two.client);
    assert_eq!(two.client.poll_answer(lost, &CX), Poll::Ready(Err(Gone::Away)));
    assert_eq!(two.client.poll_answer(taken, &CX), Poll::Pending);
}

#[test]
fn a_client_waits_for_a_place_and_gets_the_next_one() {
    let server = Settings {
        streams_max: 1,
        ..Settings::server()
    };
    let mut two = Two::with(Settings::client(), server);
    let id = two.stream();
    let block = encode_request(&ConnectRequest::new("10.0.0.1:80")).unwrap();
    assert!(two.client.open(&block, &CX).is_pending());
    two.client.forget(id);
    assert_eq!(two.client.open(&block, &CX), Poll::Ready(Ok(3)));
    // The server hears of the end of the first before it hears of the second.
    two.exchange();
    assert!(two.client.streams[&3].reset.is_none());
}

#[test]
fn a_stream_dropped_after_its_fin_sends_what_was_written() {
    let mut two = Two::new();
    let id = two.stream();
    write(&mut two.client, id, &BULK);
    two.client.finish(id).unwrap();
    two.client.forget(id);
    two.exchange();
    assert_eq!(read(&mut two.server, id).len(), BULK.len());
    assert_eq!(two.server.read(id, &CX), Poll::Ready(None));
    assert_eq!(
        two.server.poll_reset(id, &CX),
        Poll::Ready(Gone::Reset(code::CANCEL))
    );
    two.server.forget(id);
    assert!(two.client.streams.is_empty() && two.server.streams.is_empty());
}

#[test]
fn slow_readers_do_not_use_up_the_connection() {
    let mut two = Two::new();
    let slow: Vec<u32> = (0..8).map(|_| two.stream()).collect();
    for _ in 0..20 {
        for id in &slow {
            let _ = two.client.write(*id, &mut Bytes::from_static(&BULK), &CX);
        }
        two.exchange();
    }
    assert_eq!(
        two.server.credit.held,
        8 * (4 << 20),
        "more than the connection's own window"
    );
    let quick = two.stream();
    write(&mut two.client, quick, b"through");
    two.exchange();
    assert_eq!(read(&mut two.server, quick), b"through");
}

fn receive(core: &mut Core, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Result<(), u32> {
    let mut frame = Vec::new();
    wire::put(&mut frame, kind, flags, stream, payload);
    core.receive(frame.into(), Instant::now())
        .map_err(|fault| fault.code)
}

/// RFC 9113, 5.1, 5.4, 6: what ends the connection.
#[test]
fn what_no_peer_may_say_ends_the_connection() {
    let wrong: &[(u8, u8, u32, &[u8], u32)] = &[
        (wire::DATA, 0, 5, b"x", code::PROTOCOL_ERROR),
        (wire::DATA, 0, 2, b"x", code::PROTOCOL_ERROR),
        (wire::RST_STREAM, 0, 5, &[0; 4], code::PROTOCOL_ERROR),
        (wire::WINDOW_UPDATE, 0, 5, &[0, 0, 0, 1], code::PROTOCOL_ERROR),
        (wire::WINDOW_UPDATE, 0, 0, &[0; 4], code::PROTOCOL_ERROR),
        (
            wire::WINDOW_UPDATE,
            0,
            0,
            &[0x7f, 0xff, 0xff, 0xff],
            code::FLOW_CONTROL_ERROR,
        ),
        (wire::HEADERS, wire::END_HEADERS, 2, &[0x82], code::PROTOCOL_ERROR),
        (
            wire::HEADERS,
            wire::END_HEADERS,
            5,
            &[0x80],
            code::COMPRESSION_ERROR,
        ),
        (
            wire::HEADERS,
            wire::END_HEADERS | wire::PADDED,
            5,
            &[9, 0x82],
            code::PROTOCOL_ERROR,
        ),
        (
            wire::HEADERS,
            wire::END_HEADERS | wire::WITH_PRIORITY,
            5,
            &[0; 4],
            code::FRAME_SIZE_ERROR,
        ),
        (
            wire::CONTINUATION,
            wire::END_HEADERS,
            1,
            &[],
            code::PROTOCOL_ERROR,
        ),
        (wire::SETTINGS, 0, 0, &[0, 2, 0, 0, 0, 2], code::PROTOCOL_ERROR),
        (
            wire::SETTINGS,
            0,
            0,
            &[0, 4, 0x80, 0, 0, 0],
            code::FLOW_CONTROL_ERROR,
        ),
        (wire::SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 1], code::PROTOCOL_ERROR),
        (wire::PUSH_PROMISE, 0, 1, &[0; 4], code::PROTOCOL_ERROR),
    ];
    for (kind, flags, stream, payload, expect) in wrong {
        let mut two = Two::new();
        two.stream();
        let code = receive(&mut two.server, *kind, *flags, *stream, payload);
        assert_eq!(code, Err(*expect), "{kind} {flags} {stream} {payload:?}");
    }
}

#[test]
fn settings_come_first_and_heads_are_not_interrupted() {
    let mut fresh = Core::new(Role::Server, &Settings::server(), Instant::now());
    assert_eq!(
        receive(&mut fresh, wire::PING, 0, 0, &[0; 8]),
        Err(code::PROTOCOL_ERROR)
    );
    let mut two = Two::new();
    receive(&mut two.server, wire::HEADERS, 0, 1, &[]).unwrap();
    assert_eq!(
        receive(&mut two.server, wire::PING, 0, 0, &[0; 8]),
        Err(code::PROTOCOL_ERROR)
    );
    assert_eq!(
        receive(&mut two.client, wire::HEADERS, wire::END_HEADERS, 1, &[0x88]),
        Err(code::PROTOCOL_ERROR)
    );
}

/// What ends a stream and nothing else.
#[test]
fn what_is_wrong_on_a_stream_ends_that_stream() {
    let wrong: &[(u8, u8, &[u8], u32)] = &[
        (wire::WINDOW_UPDATE, 0, &[0; 4], code::PROTOCOL_ERROR),
        (
            wire::WINDOW_UPDATE,
            0,
            &[0x7f, 0xff, 0xff, 0xff],
            code::FLOW_CONTROL_ERROR,
        ),
        (wire::HEADERS, wire::END_HEADERS, &[0x82], code::PROTOCOL_ERROR),
    ];
    for (kind, flags, payload, code) in wrong {
        let mut two = Two::new();
        let (id, other) = (two.stream(), two.stream());
        receive(&mut two.server, *kind, *flags, id, payload).unwrap();
        two.exchange();
        assert_eq!(two.client.poll_reset(id, &CX), Poll::Ready(Gone::Reset(*code)));
        write(&mut two.client, other, b"goes on");
        two.exchange();
        assert_eq!(read(&mut two.server, other), b"goes on");
    }
}

#[test]
fn more_data_than_the_window_is_an_error_of_the_stream() {
    let server = Settings {
        stream_window: 100_000,
        ..Settings::server()
    };
    let mut two = Two::with(Settings::client(), server);
    let id = two.stream();
    for _ in 0..10 {
        receive(&mut two.server, wire::DATA, 0, id, &[0; 10_001]).unwrap();
    }
    assert_eq!(two.server.streams[&id].reset, Some(code::FLOW_CONTROL_ERROR));
}

#[test]
fn trailers_end_a_direction_and_late_frames_do_no_harm() {
    let mut two = Two::new();
    let id = two.stream();
    receive(
        &mut two.server,
        wire::HEADERS,
        wire::END_HEADERS | wire::END_STREAM,
        id,
        &[],
    )
    .unwrap();
    assert_eq!(two.server.read(id, &CX), Poll::Ready(None));
    receive(&mut two.server, wire::DATA, 0, id, b"late").unwrap();
    assert_eq!(two.server.streams[&id].reset, Some(code::STREAM_CLOSED));
    two.server.forget(id);
    assert!(two.server.streams.is_empty());
    for (kind, payload) in [
        (wire::DATA, &b"later"[..]),
        (wire::WINDOW_UPDATE, &[0, 0, 0, 1]),
        (wire::RST_STREAM, &[0; 4]),
    ] {
        receive(&mut two.server, kind, 0, id, payload).unwrap();
    }
    two.server.check();
}

proptest! {
    #[test]
    fn any_frames_leave_the_counts_true(
        cut in any::<u8>(),
        frames in proptest::collection::vec(
            (0u8..11, any::<u8>(), 0u32..8, proptest::collection::vec(any::<u8>(), 0..40)),
            0..30,
        ),
    ) {
        let mut bytes = vec![cut];
        for (kind, flags, stream, mut payload) in frames {
            match kind {
                wire::RST_STREAM | wire::WINDOW_UPDATE => payload.resize(4, 0),
                wire::PRIORITY => payload.resize(5, 0),
                wire::PING => payload.resize(8, 0),
                wire::SETTINGS => payload.truncate(payload.len() / 6 * 6),
                wire::HEADERS => payload = [crate::hbone::raw::CONNECT, &payload].concat(),
                _ => {}
            }
            let stream = if [wire::SETTINGS, wire::PING, wire::GOAWAY].contains(&kind) { 0 } else { stream };
            let flags = if kind == wire::HEADERS { flags & 5 | wire::END_HEADERS } else { flags };
            wire::put(&mut bytes, kind, flags, stream, &payload);
        }
        super::super::fuzz::frames(&bytes);
    }

    #[test]
    fn any_bytes_leave_the_counts_true(bytes: Vec<u8>) {
        super::super::fuzz::frames(&bytes);
        super::super::fuzz::hpack(&bytes);
    }
}
