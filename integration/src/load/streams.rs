//! The streams of a load: each a loop that sends when it is due and checks what comes back.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tulle_linux::NetNs;

use super::Shared;
use crate::mesh::PATIENCE;
use crate::traffic::{call, connect, spawn};

/// Bytes of a request and of its answer.
const REQUEST_BYTES: usize = 200;
/// Pieces of the bulk stream per second.
const BULK_PIECES_PER_SECOND: u64 = 50;

/// Opens a lasting connection; a load whose connections cannot be opened is no measurement.
pub(super) async fn open(from: &NetNs, to: SocketAddr, shared: &Shared) -> TcpStream {
    let stream = connect(from, to).await;
    let stream = stream.unwrap_or_else(|error| panic!("a lasting connection to {to}: {error}"));
    stream.set_nodelay(true).unwrap();
    shared.established.fetch_add(1, Ordering::Relaxed);
    stream
}

/// Sends bytes and waits for the same bytes; a connection that hangs is one that is lost.
async fn exchange(stream: &mut TcpStream, bytes: &[u8], shared: &Shared) -> io::Result<()> {
    let mut answer = vec![0; bytes.len()];
    let there_and_back = async {
        stream.write_all(bytes).await?;
        stream.read_exact(&mut answer).await
    };
    tokio::time::timeout(PATIENCE, there_and_back).await??;
    if answer != bytes {
        shared.corrupt.fetch_add(1, Ordering::Relaxed);
        return Err(io::Error::other("the answer differs"));
    }
    Ok(())
}

/// Messages with a sequence number, so that a lost, doubled or mixed one is seen.
pub(super) async fn pin(mut stream: TcpStream, every: Duration, index: usize, shared: Arc<Shared>) {
    let mut ticks = interval(every);
    // Spread over the interval, so that a thousand of them are no burst.
    let offset = every.mul_f64(f64::from(u32::try_from(index % 1000).unwrap_or(0)) / 1000.0);
    ticks.reset_after(offset);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for sequence in 0_u64.. {
        let due = ticks.tick().await;
        if shared.over() {
            return;
        }
        let message = [(index as u64).to_be_bytes(), sequence.to_be_bytes()].concat();
        if let Err(error) = exchange(&mut stream, &message, &shared).await {
            shared.lose("pinned connection", &error);
            return;
        }
        shared.messages.came_back(due);
    }
}

/// Requests on one lasting connection, due at fixed times.
pub(super) async fn requests(mut stream: TcpStream, every: Duration, shared: Arc<Shared>) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let body = [b'r'; REQUEST_BYTES];
    loop {
        let due = ticks.tick().await;
        if shared.over() {
            return;
        }
        if let Err(error) = exchange(&mut stream, &body, &shared).await {
            shared.requests.failed(due);
            shared.lose("request connection", &error);
            return;
        }
        shared.requests.came_back(due);
    }
}

/// New connections with one request each, due at fixed times and each on its own.
pub(super) async fn connects(from: NetNs, targets: Vec<SocketAddr>, every: Duration, shared: Arc<Shared>) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for target in targets.iter().copied().cycle() {
        let due = ticks.tick().await;
        if shared.over() {
            return;
        }
        let (from, shared) = (from.clone(), Arc::clone(&shared));
        // Detached: it ends by itself within the patience of a call.
        drop(spawn(async move {
            match call(&from, target, b"one new connection").await {
                Ok(answer) if answer == b"one new connection" => shared.connects.came_back(due),
                other => {
                    shared.connects.failed(due);
                    shared.note(format!("new connection to {target}: {other:?}"));
                }
            }
        }));
    }
}

/// A paced stream of patterned bytes whose echo is compared byte by byte.
pub(super) async fn bulk(mut stream: TcpStream, bytes_per_second: u64, shared: Arc<Shared>) {
    let size = usize::try_from(bytes_per_second / BULK_PIECES_PER_SECOND).expect("a piece fits memory");
    let mut ticks = interval(Duration::from_secs(1) / u32::try_from(BULK_PIECES_PER_SECOND).expect("small"));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let started = Instant::now();
    for sequence in 0_u64.. {
        ticks.tick().await;
        if shared.over() {
            return;
        }
        let piece: Vec<u8> = (0..size as u64)
            .map(|at| (at.wrapping_mul(31).wrapping_add(sequence) & 0xff) as u8)
            .collect();
        if let Err(error) = exchange(&mut stream, &piece, &shared).await {
            shared.note(format!("bulk stream ended after {:?}", started.elapsed()));
            shared.lose("bulk stream", &error);
            return;
        }
        shared.bulk_bytes.fetch_add(size as u64, Ordering::Relaxed);
    }
}
