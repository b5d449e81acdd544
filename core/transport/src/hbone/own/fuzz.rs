//! Foreign bytes against frames and HPACK, for the fuzzers.

use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tokio::time::Instant;

use super::core::{Core, Next, Outbox, Role};
use super::head::{Head, encode_request};
use super::hpack::Decoder;
use super::wire;
use crate::hbone::connect::ConnectRequest;
use crate::hbone::settings::Settings;

/// Any frames, as a client and as a server see them: nothing panics, all counts stay true, and what a peer makes us
/// say is bounded by what it said.
pub(crate) fn frames(data: &[u8]) {
    let Some((cut, data)) = data.split_first() else {
        return;
    };
    for role in [Role::Client, Role::Server] {
        peer_says(role, usize::from(*cut) + 1, data);
    }
}

fn peer_says(role: Role, cut: usize, data: &[u8]) {
    let settings = Settings {
        stream_window: 1000,
        streams_max: 5,
        ..Settings::server()
    };
    let (now, cx) = (Instant::now(), Context::from_waker(Waker::noop()));
    let mut core = Core::new(role, &settings, now);
    let mut opened = Vec::new();
    if role == Role::Client {
        for _ in 0..3 {
            if let Poll::Ready(Ok(id)) = core.open(b"", &cx) {
                opened.push(id);
            }
        }
    }
    let mut first = Vec::new();
    wire::put(&mut first, wire::SETTINGS, 0, 0, &[]);
    core.receive(first.into(), now).expect("nothing is wrong with it");
    let mut said = 0;
    for part in data.chunks(cut) {
        if let Err(fault) = core.receive(Bytes::copy_from_slice(part), now) {
            core.fail(fault);
        }
        while let Some((id, request)) = core.accept() {
            let _ = core.respond(id, &[0x88], request.is_err());
            opened.push(id);
        }
        for (n, id) in opened.iter().enumerate() {
            if let Poll::Ready(Some(Ok(chunk))) = core.read(*id, &cx) {
                core.release(*id, chunk.len());
            }
            let _ = core.write(*id, &mut Bytes::from_static(&[7; 100]), &cx);
            if n % 3 == 2 {
                let _ = core.finish(*id);
            }
        }
        core.check();
        let mut out = Outbox::default();
        core.gather(&mut out, 10_000);
        said += out.len();
        core.woken.clear();
        core.check();
        if core.next() == Next::Cut {
            break;
        }
    }
    for id in opened {
        core.forget(id);
        core.check();
    }
    assert!(said <= 200_000 + 200 * data.len(), "it made us say {said} bytes");
}

/// Any header blocks on one connection, each with its length in front.
pub(crate) fn hpack(data: &[u8]) {
    let (mut decoder, mut rest) = (Decoder::default(), data);
    while let Some((length, after)) = rest.split_first() {
        let (block, after) = after.split_at(usize::from(*length).min(after.len()));
        rest = after;
        let (mut head, mut total) = (Head::default(), 0);
        let decoded = decoder.decode(block, 4096, |name, value| {
            total += name.len() + value.len() + 32;
            head.put(name, value);
        });
        assert!(total <= 4096, "more was handed on than was asked for");
        if decoded.is_err() {
            return;
        }
        if let Ok(Ok(request)) = head.request() {
            let block = encode_request(&request).expect("what was read can be written");
            let mut again = Head::default();
            let fits = Decoder::default().decode(&block, 8192, |name, value| again.put(name, value));
            assert_eq!(fits, Ok(true));
            assert_eq!(again.request(), Ok(Ok(request)));
        }
    }
}

/// See [`crate::hbone::raw::encode`].
pub(crate) fn encode(request: &ConnectRequest) -> Vec<u8> {
    encode_request(request).expect("a CONNECT has an authority")
}

/// See [`crate::hbone::raw::decode`].
pub(crate) fn decode(block: &[u8]) -> ConnectRequest {
    let mut head = Head::default();
    let decoded = Decoder::default().decode(block, 64 * 1024, |name, value| head.put(name, value));
    decoded.expect("the block can be decoded");
    let request = head.request().expect("the head is in order");
    request.expect("it is a CONNECT's")
}

/// See [`crate::hbone::raw::through_memory`].
pub(crate) fn through_memory(write: usize, length: usize) -> usize {
    let (now, cx) = (Instant::now(), Context::from_waker(Waker::noop()));
    let mut client = Core::new(Role::Client, &Settings::client(), now);
    let mut server = Core::new(Role::Server, &Settings::server(), now);
    let mut block = super::hpack::Encoder::new();
    block.header(":method", b"CONNECT");
    block.header(":authority", b"10.0.0.1:80");
    let Poll::Ready(Ok(id)) = client.open(&block.finish(), &cx) else {
        return 0;
    };
    let source = Bytes::from(vec![7; write]);
    let (mut written, mut read, mut batches, mut preface) = (0, 0, 0, wire::PREFACE.len());
    while read < length {
        while written < length {
            let mut chunk = source.clone();
            let Poll::Ready(Ok(taken)) = client.write(id, &mut chunk, &cx) else {
                break;
            };
            written += taken;
        }
        batches += 1;
        carry(&mut client, &mut server, &mut preface, now);
        let _ = server.accept();
        while let Poll::Ready(Some(Ok(chunk))) = server.read(id, &cx) {
            read += chunk.len();
            server.release(id, chunk.len());
        }
        carry(&mut server, &mut client, &mut 0, now);
    }
    batches
}

/// Hands on what `from` has to say, without its first `skip` bytes.
fn carry(from: &mut Core, to: &mut Core, skip: &mut usize, now: Instant) {
    let mut out = Outbox::default();
    from.gather(&mut out, 256 * 1024);
    while !out.is_empty() {
        let mut parts = out.take();
        let passed = std::mem::take(skip).min(parts.len());
        to.receive(parts.split_off(passed), now)
            .expect("both know the protocol");
    }
    from.woken.clear();
    to.woken.clear();
}
