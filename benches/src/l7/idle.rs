//! What a client's connection takes that asked once and is idle, and a call that is open and silent: by how much memory
//! grows with their number. Clients are bytes by hand, so that nearly all of it is the waypoint's; the near end of a
//! stream in a tunnel, with which each of them is asked for, is in it.

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tulle_model::Identity;
use tulle_transport::hbone::{ClientConnection, ConnectRequest, HboneStream, Settings, client};
use tulle_waypoint::http::pace::REST_AFTER;

use super::bodies::untimed;
use super::client::STREAMS_PER_TUNNEL;
use super::waypoint::{self, Fronting};
use super::{ANSWER, Site, Version};

/// Of either, that are added in one step.
const STEP: usize = 1_000;
/// Steps: a slope that is the same twice is no start-up cost.
const STEPS: usize = 2;
/// What is there before anything is measured.
const WARM: usize = 50;
/// Calls on one connection: a waypoint takes 256.
const CALLS_PER_CONNECTION: usize = 250;

/// After this long without a request, connections are as they are for hours.
const SETTLED: Duration = Duration::from_secs(2 * REST_AFTER.as_secs());

/// By how many bytes memory grew while this ran.
pub type Growth<'a> = &'a mut dyn FnMut(&mut dyn FnMut()) -> i64;

/// What was measured.
#[derive(Debug, Clone)]
pub struct Measured {
    /// Of what.
    pub what: &'static str,
    /// Bytes for each, step by step.
    pub each: Vec<i64>,
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.what)?;
        let steps = self.each.iter().enumerate();
        for (step, bytes) in steps {
            let (from, to) = (step * STEP, (step + 1) * STEP);
            write!(f, " {bytes} bytes each from {from} to {to};")?;
        }
        Ok(())
    }
}

/// Measures on runtimes of their own, which a waypoint shares with its clients.
pub fn measure(runtime: impl Fn() -> Runtime, growth: Growth<'_>, mut each: impl FnMut(&Measured)) {
    let what = "an idle connection of HTTP/1.1 that asked once";
    each(&steps(what, (Version::One, 1), &runtime, growth, ask_once));
    let what = "an open call of HTTP/2 on which nothing moves";
    let calls = (Version::Two, CALLS_PER_CONNECTION);
    each(&steps(what, calls, &runtime, growth, call_all));
}

/// Asks on connections, and waits until they are idle.
type Asking<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

fn ask_once(streams: &mut [HboneStream]) -> Asking<'_> {
    Box::pin(async {
        for stream in streams {
            let request = b"GET /items/7 HTTP/1.1\r\nhost: web.shop\r\nx-kind: bench\r\n\r\n";
            let sent = stream.write_all(request).await;
            sent.expect("the waypoint takes requests");
            read_answer(stream).await;
        }
        tokio::time::sleep(SETTLED).await;
    })
}

fn call_all(streams: &mut [HboneStream]) -> Asking<'_> {
    Box::pin(async {
        for stream in streams {
            call(stream).await;
        }
        tokio::time::sleep(SETTLED).await;
    })
}

/// Opens connections, each for so many of what is measured, and lets `ask` ask on those that are new.
fn steps(
    what: &'static str,
    (version, per_connection): (Version, usize),
    runtime: impl Fn() -> Runtime,
    growth: Growth<'_>,
    ask: fn(&mut [HboneStream]) -> Asking<'_>,
) -> Measured {
    let site = Site::start();
    let fronting = Fronting::on(runtime(), &site, version);
    fronting.apply(untimed());
    let mut clients = Clients::default();
    let mut more = |count: usize| {
        fronting.block_on(async {
            let from = clients.streams.len();
            clients.open(&site, &fronting, count / per_connection).await;
            ask(&mut clients.streams[from..]).await;
        });
    };
    more(WARM.max(per_connection));
    let each = (0..STEPS).map(|_| growth(&mut || more(STEP)) / i64::try_from(STEP).unwrap_or(i64::MAX));
    let each = each.collect();
    Measured { what, each }
}

#[derive(Default)]
struct Clients {
    tunnels: Vec<ClientConnection>,
    streams: Vec<HboneStream>,
}

impl Clients {
    async fn open(&mut self, site: &Site, fronting: &Fronting, count: usize) {
        let own = Identity::new("cluster.local", "shop", "client");
        let own = site.ca.certificate(&own);
        for _ in 0..count {
            if self.streams.len().is_multiple_of(STREAMS_PER_TUNNEL) {
                let tls = own.client_config(&[waypoint::identity()]);
                let socket = TcpStream::connect(fronting.address).await;
                let socket = socket.expect("the waypoint listens");
                let tunnel = client::connect_over(socket, fronting.address, tls, &Settings::client()).await;
                self.tunnels.push(tunnel.expect("the waypoint takes tunnels"));
            }
            let tunnel = self.tunnels.last().expect("one was opened");
            let opened = tunnel.open(&ConnectRequest::new(waypoint::VIP)).await;
            self.streams.push(opened.expect("the front is there").0);
        }
    }
}

/// One answer, to its end.
async fn read_answer(stream: &mut HboneStream) {
    let (mut answer, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        let length = stream.read(&mut piece).await.expect("an answer");
        answer.extend_from_slice(&piece[..length]);
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
        if length == 0 || end.is_some_and(|end| answer.len() >= end + 4 + ANSWER) {
            assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", answer.escape_ascii());
            return;
        }
    }
}

/// Opens [`CALLS_PER_CONNECTION`] calls whose bodies have not ended, and waits until each was answered with a head.
async fn call(stream: &mut HboneStream) {
    const HEADERS: u8 = 1;
    let mut sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    // POST, http, and names of HPACK's static table: path, authority, content-type; then `te` and what the route wants.
    let head = [
        b"\x83\x86\x04\x13/bench.Bench/Stream\x01\x08web.shop\x0f\x10\x10application/grpc".as_slice(),
        b"\x00\x02te\x08trailers\x00\x06x-kind\x05bench",
    ]
    .concat();
    for number in 0..CALLS_PER_CONNECTION {
        let id = u32::try_from(2 * number + 1).expect("few");
        let length = u8::try_from(head.len()).expect("short");
        sent.extend_from_slice(&[0, 0, length, HEADERS, 4]);
        sent.extend_from_slice(&id.to_be_bytes());
        sent.extend_from_slice(&head);
    }
    stream
        .write_all(&sent)
        .await
        .expect("the waypoint takes requests");
    let mut answered = 0;
    while answered < CALLS_PER_CONNECTION {
        let mut frame = [0; 9];
        stream.read_exact(&mut frame).await.expect("an answer");
        let [a, b, c, kind, ..] = frame;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        stream.read_exact(&mut payload).await.expect("an answer");
        assert!(kind != 3 && kind != 7, "a call was refused: {payload:?}");
        if kind == HEADERS {
            // 200 of the static table.
            assert!(payload.contains(&0x88), "{}", payload.escape_ascii());
            answered += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_told_step_by_step() {
        let measured = Measured {
            what: "one",
            each: vec![5, 7],
        };
        let told = measured.to_string();
        assert_eq!(
            told,
            "one: 5 bytes each from 0 to 1000; 7 bytes each from 1000 to 2000;"
        );
    }
}
