//! What is done to a contestant, and what it took: bulk by iperf3, requests of 200 bytes by sockets of this process.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tulle_benches::pace::ticks;
use tulle_linux::NetNs;

use super::arena::Contestant;
use super::process::cpu_seconds;
use crate::traffic::{connect, spawn};

/// Bytes of a request and of its answer.
const REQUEST_BYTES: usize = 200;

/// Requests per second of the paced load, and the connections that share them.
const PACED_PER_SECOND: u32 = 1_000;
const PACED_CONNECTIONS: u32 = 10;

/// What something took: the thing itself, and the CPU seconds of each proxy meanwhile.
#[derive(Debug)]
pub(super) struct Took<T> {
    pub done: T,
    pub cpu: Vec<f64>,
}

/// Runs something and reads what each proxy spent meanwhile.
pub(super) async fn took<T>(of: &Contestant, work: impl Future<Output = T>) -> Took<T> {
    let before: Vec<f64> = of.proxies.iter().map(|&proxy| cpu_seconds(proxy)).collect();
    let done = work.await;
    let after = of.proxies.iter().map(|&proxy| cpu_seconds(proxy));
    let cpu = after.zip(before).map(|(after, before)| after - before).collect();
    Took { done, cpu }
}

/// What iperf3 moved.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bulk {
    pub gbit_per_second: f64,
    pub gigabytes: f64,
}

/// Moves bytes for a while, to the server or, `reverse`, from it.
pub(super) async fn bulk(of: &Contestant, seconds: u64, streams: u32, reverse: bool) -> Bulk {
    const TRIES: u32 = 50;
    // A server that still clears up after the run before says that it is busy.
    for _ in 0..TRIES {
        if let Some(bulk) = try_bulk(of, seconds, streams, reverse).await {
            return bulk;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{}: iperf3 does not get through", of.name);
}

async fn try_bulk(of: &Contestant, seconds: u64, streams: u32, reverse: bool) -> Option<Bulk> {
    let (namespace, to) = (of.client.namespace().clone(), of.iperf());
    let report = tokio::task::spawn_blocking(move || {
        let (ip, port) = (to.ip().to_string(), to.port().to_string());
        let (seconds, streams) = (seconds.to_string(), streams.to_string());
        let mut arguments = vec![
            "--client",
            &ip,
            "--port",
            &port,
            "--time",
            &seconds,
            "--parallel",
            &streams,
        ];
        arguments.push("--json");
        if reverse {
            arguments.push("--reverse");
        }
        let mut command = Command::new("iperf3");
        command
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        namespace.spawn(command)?.wait_with_output()
    });
    let output = report
        .await
        .unwrap()
        .unwrap_or_else(|error| panic!("iperf3: {error}"));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    let received = &report["end"]["sum_received"];
    Some(Bulk {
        gbit_per_second: received["bits_per_second"].as_f64()? / 1e9,
        gigabytes: received["bytes"].as_f64()? / 1e9,
    })
}

/// Latencies of a load, each from the moment a request was due.
#[derive(Debug)]
pub(super) struct Latencies(Vec<Duration>);

impl Latencies {
    /// A percentile, in microseconds.
    pub(super) fn micros(&self, percent: usize) -> f64 {
        let index = (self.0.len() * percent / 100).min(self.0.len().saturating_sub(1));
        self.0
            .get(index)
            .map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e6)
    }

    pub(super) fn count(&self) -> usize {
        self.0.len()
    }
}

/// Requests at a steady pace on lasting connections.
pub(super) async fn paced(of: &Contestant, time: Duration) -> Latencies {
    let every = Duration::from_secs(1) * PACED_CONNECTIONS / PACED_PER_SECOND;
    let mut streams = Vec::new();
    for _ in 0..PACED_CONNECTIONS {
        streams.push(open(of.client.namespace(), of.echo()).await);
    }
    let clocks = ticks(streams.len(), std::time::Instant::now(), every);
    let mut tasks = Vec::new();
    for (mut stream, mut clock) in streams.into_iter().zip(clocks) {
        tasks.push(spawn(async move {
            let (began, mut latencies) = (Instant::now(), Vec::new());
            while began.elapsed() < time {
                let due = clock.recv().await.unwrap();
                exchange(&mut stream).await;
                latencies.push(due.elapsed());
            }
            latencies
        }));
    }
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await.unwrap());
    }
    all.sort_unstable();
    Latencies(all)
}

/// Requests as fast as they go, one at a time on each of some connections; how many there were.
pub(super) async fn closed_loop(of: &Contestant, time: Duration, connections: u32) -> u64 {
    let mut streams = Vec::new();
    for _ in 0..connections {
        streams.push(open(of.client.namespace(), of.echo()).await);
    }
    let done = Arc::new(AtomicU64::new(0));
    let until = Instant::now() + time;
    let tasks = streams.into_iter().map(|mut stream| {
        let done = Arc::clone(&done);
        spawn(async move {
            while Instant::now() < until {
                exchange(&mut stream).await;
                done.fetch_add(1, Ordering::Relaxed);
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    done.load(Ordering::Relaxed)
}

/// New connections with one request each, as fast as they go, until the time is over or so many are done.
pub(super) async fn new_connections(of: &Contestant, time: Duration, at_most: u64) -> u64 {
    const AT_ONCE: usize = 16;
    let done = Arc::new(AtomicU64::new(0));
    let until = Instant::now() + time;
    let tasks = (0..AT_ONCE).map(|_| {
        let (done, from, to) = (Arc::clone(&done), of.client.namespace().clone(), of.echo());
        spawn(async move {
            while Instant::now() < until && done.fetch_add(1, Ordering::Relaxed) < at_most {
                exchange(&mut open(&from, to).await).await;
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    done.load(Ordering::Relaxed).min(at_most)
}

/// Opens connections that stay.
pub(super) async fn hold(of: &Contestant, count: usize) -> Vec<TcpStream> {
    let mut held = Vec::with_capacity(count);
    for _ in 0..count {
        let mut stream = open(of.client.namespace(), of.echo()).await;
        exchange(&mut stream).await;
        held.push(stream);
    }
    held
}

async fn open(from: &NetNs, to: SocketAddr) -> TcpStream {
    let stream = connect(from, to).await;
    let stream = stream.unwrap_or_else(|error| panic!("a connection to {to}: {error}"));
    stream.set_nodelay(true).unwrap();
    stream
}

async fn exchange(stream: &mut TcpStream) {
    let mut answer = [0; REQUEST_BYTES];
    stream.write_all(&[b'r'; REQUEST_BYTES]).await.unwrap();
    stream.read_exact(&mut answer).await.unwrap();
}
