//! Our framing against the `h2` crate, either way round, over random operations: bytes, ends and resets arrive alike.

use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use tokio::io::duplex;
use tokio::sync::mpsc;

use super::tests::serve;
use super::*;

/// What a test does next. Streams are numbered as they were opened; sides are those of a stream.
#[derive(Debug, Clone)]
enum Op {
    Open,
    Write {
        stream: usize,
        server: bool,
        length: usize,
    },
    Read {
        stream: usize,
        server: bool,
    },
    Finish {
        stream: usize,
        server: bool,
    },
    Reset {
        stream: usize,
        server: bool,
        code: u32,
    },
    Drop {
        stream: usize,
        server: bool,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let place = || (0usize..6, any::<bool>());
    let length = prop_oneof![Just(1usize), 2usize..600, 600usize..20_000, 20_000usize..400_000];
    prop_oneof![
        2 => Just(Op::Open),
        6 => (place(), length).prop_map(|((stream, server), length)| Op::Write { stream, server, length }),
        5 => place().prop_map(|(stream, server)| Op::Read { stream, server }),
        2 => place().prop_map(|(stream, server)| Op::Finish { stream, server }),
        1 => (place(), 0u32..14).prop_map(|((stream, server), code)| Op::Reset { stream, server, code }),
        1 => place().prop_map(|(stream, server)| Op::Drop { stream, server }),
    ]
}

/// One end of a stream, and what has gone through it.
struct Side {
    halves: Option<(HboneReader, HboneWriter)>,
    written: usize,
    read: usize,
    finished: bool,
    ended: bool,
    /// How this side ended it, if it did before its end.
    code: Option<ResetCode>,
    error: Option<StreamError>,
}

impl Side {
    fn new(stream: HboneStream) -> Self {
        Self {
            halves: Some(stream.split()),
            written: 0,
            read: 0,
            finished: false,
            ended: false,
            code: None,
            error: None,
        }
    }

    fn write(&mut self, length: usize) {
        if self.finished || self.error.is_some() {
            return;
        }
        let Some((_, writer)) = &mut self.halves else {
            return;
        };
        let bytes: Vec<u8> = (self.written..self.written + length).map(pattern).collect();
        let mut chunk = Bytes::from(bytes);
        match writer.poll_write(&mut Context::from_waker(Waker::noop()), &mut chunk) {
            Poll::Ready(Ok(taken)) => self.written += taken,
            Poll::Ready(Err(error)) => self.error = Some(error),
            Poll::Pending => {}
        }
    }

    /// Reads what is there; says whether there was something.
    fn read(&mut self) -> bool {
        let Some((reader, _)) = &mut self.halves else {
            return false;
        };
        let mut moved = false;
        while !self.ended {
            match reader.poll_chunk(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Some(Ok(chunk))) => {
                    assert!(!chunk.is_empty(), "no chunk is empty");
                    for (at, byte) in chunk.iter().enumerate() {
                        assert_eq!(*byte, pattern(self.read + at), "bytes come in order");
                    }
                    self.read += chunk.len();
                    reader.release(chunk.len());
                    moved = true;
                }
                Poll::Ready(Some(Err(error))) => {
                    self.error = Some(error);
                    return moved;
                }
                Poll::Ready(None) => self.ended = true,
                Poll::Pending => return moved,
            }
        }
        moved
    }

    fn finish(&mut self) {
        if let Some((_, writer)) = &mut self.halves {
            let done = writer.finish();
            self.finished |= done.is_ok();
        }
    }

    /// Ends it before its end, unless it has ended.
    fn end(&mut self, code: ResetCode, by_drop: bool) {
        let Some((reader, mut writer)) = self.halves.take() else {
            return;
        };
        if self.code.is_none() && self.error.is_none() && !(self.finished && self.ended) {
            // What a drop is told as differs between the sides and with what was sent.
            self.code = Some(code);
        }
        if !by_drop {
            writer.reset(code);
        }
        drop((reader, writer));
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a pattern")]
fn pattern(at: usize) -> u8 {
    (at % 251) as u8
}

/// Lets both sides do all they can do; time is paused.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

struct Bench {
    client: ClientConnection,
    incoming: mpsc::Receiver<Incoming>,
    _server: ServerHandle,
    streams: Vec<[Side; 2]>,
}

impl Bench {
    async fn new(client: Settings, server: Settings) -> Self {
        let (near, far) = duplex(64 * 1024);
        let (client, connection) =
            tokio::join!(client::handshake(near, &client), server::handshake(far, &server));
        let (server, incoming) = serve(connection.unwrap());
        Self {
            client: client.unwrap(),
            incoming,
            _server: server,
            streams: Vec::new(),
        }
    }

    async fn open(&mut self) {
        let request = ConnectRequest::new("10.0.0.1:80");
        let (opened, accepted) = tokio::join!(self.client.open(&request), async {
            let incoming = self.incoming.recv().await.unwrap();
            assert_eq!(incoming.request(), Ok(&request));
            incoming.accept(&ConnectResponse::default()).unwrap()
        });
        self.streams
            .push([Side::new(opened.unwrap().0), Side::new(accepted)]);
    }

    async fn apply(&mut self, op: Op) {
        let (Op::Write { stream, server, .. }
        | Op::Read { stream, server }
        | Op::Finish { stream, server }
        | Op::Reset { stream, server, .. }
        | Op::Drop { stream, server }) = op
        else {
            if self.streams.len() < 6 {
                self.open().await;
            }
            return;
        };
        let count = self.streams.len().max(1);
        let Some(sides) = self.streams.get_mut(stream % count) else {
            return;
        };
        let side = &mut sides[usize::from(server)];
        match op {
            Op::Open => {}
            Op::Write { length, .. } => side.write(length),
            Op::Read { .. } => drop(side.read()),
            Op::Finish { .. } => side.finish(),
            Op::Reset { code, .. } => side.end(
                match code {
                    0 => ResetCode::NoError,
                    7 => ResetCode::Refused,
                    8 => ResetCode::Cancel,
                    10 => ResetCode::Connect,
                    other => ResetCode::Other(other),
                },
                false,
            ),
            Op::Drop { .. } => side.end(ResetCode::Cancel, true),
        }
    }

    /// Reads all there is, and judges what each side has seen.
    async fn judge(mut self) {
        loop {
            settle().await;
            let sides = self.streams.iter_mut().flatten();
            if sides.map(Side::read).filter(|moved| *moved).count() == 0 {
                break;
            }
        }
        for (n, [client, server]) in self.streams.iter().enumerate() {
            for (from, to, what) in [
                (client, server, "to the server"),
                (server, client, "to the client"),
            ] {
                assert!(to.read <= from.written, "stream {n} {what}: no byte is invented");
                if to.halves.is_none() {
                    continue;
                }
                if from.code.is_none() {
                    assert_eq!(to.read, from.written, "stream {n} {what}: every byte arrives");
                    assert_eq!(to.ended, from.finished, "stream {n} {what}: FIN is FIN");
                } else if !(to.ended || from.finished && to.finished) {
                    assert!(
                        matches!(to.error, Some(StreamError::Reset(_))),
                        "stream {n} {what}: {:?} became {:?}",
                        from.code,
                        to.error
                    );
                }
            }
        }
        self.streams.clear();
        settle().await;
        assert_eq!(self.client.active(), 0, "every place is given back");
        self.open().await;
        let [client, server] = &mut self.streams[0];
        client.write(10_000);
        client.finish();
        settle().await;
        server.read();
        assert_eq!(
            (server.read, server.ended),
            (10_000, true),
            "the connection goes on"
        );
    }
}

fn run(framings: (Framing, Framing), windows: (u32, u32), ops: Vec<Op>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let client = Settings {
            framing: framings.0,
            stream_window: windows.0,
            ..Settings::client()
        };
        let server = Settings {
            framing: framings.1,
            stream_window: windows.1,
            ..Settings::server()
        };
        let mut bench = Bench::new(client, server).await;
        // Both have heard of the other's windows.
        settle().await;
        for op in ops {
            bench.apply(op).await;
            settle().await;
        }
        bench.judge().await;
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn both_framings_carry_the_same(
        windows in (prop_oneof![10_000u32..70_000, Just(4 << 20)], prop_oneof![10_000u32..70_000, Just(4 << 20)]),
        ops in proptest::collection::vec(op(), 1..60),
    ) {
        for framings in [
            (Framing::H2, Framing::H2),
            (Framing::Own, Framing::H2),
            (Framing::H2, Framing::Own),
            (Framing::Own, Framing::Own),
        ] {
            run(framings, windows, ops.clone());
        }
    }
}
