//! All framings of a tunnel beside TLS without HTTP/2, a plain relay, the least that records and a relay can cost, and no
//! proxy at all, interleaved in one run.
//!
//! Each row is a median of rounds in which every contestant has its turn, so that other work on the machine meets all
//! of them.

use std::future::Future;
use std::io::Write;
use std::pin::Pin;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tulle_runtime::tasks;
use tulle_transport::hbone::{Framing, raw};

use crate::contestants::{FRAMINGS, contestants, tunnelled};
use crate::{Path, Peers, Tunnel, cpu, runtime, transfer_all};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// Times that each contestant has a turn.
const ROUNDS: usize = 7;

/// Bytes that open the copy buffers to their largest step before anything is measured.
const WARM_UP: usize = 16 * MIB;

/// Measures and prints all rows, or those in whose name this part stands.
///
/// # Panics
/// When loopback has no room for the sockets, or a path does not carry what it is given.
pub fn run(wanted: Option<&str>) {
    let wants = |name: &str| wanted.is_none_or(|wanted| name.contains(wanted));
    let runtime = runtime();
    let inside = runtime.enter();
    if wants("bulk") {
        for streams in [1, 4, 16, 64] {
            bulk(&runtime, streams, 256 * KIB, 192 * MIB);
        }
    }
    if wants("tunnels") {
        several_tunnels(&runtime);
    }
    if wants("write") {
        for (write, length) in [
            (1, 64 * KIB),
            (KIB, 16 * MIB),
            (16 * KIB, 96 * MIB),
            (MIB, 192 * MIB),
        ] {
            bulk(&runtime, 1, write, length);
        }
    }
    if wants("latency") {
        latency(&runtime);
    }
    if wants("beside") {
        elephant_beside_mouse(&runtime);
    }
    if wants("crowd") {
        crowd(&runtime);
    }
    if wants("connections") {
        connections(&runtime);
    }
    if wants("framing") {
        framing_alone();
    }
    drop(inside);
}

fn print(row: &str, who: &str, unit: &str, mut figures: Vec<f64>) {
    figures.sort_by(f64::total_cmp);
    let (median, least, most) = (figures[figures.len() / 2], figures[0], figures[figures.len() - 1]);
    let _ = writeln!(
        std::io::stdout(),
        "{row:<34} {who:<8} {median:>10.3} [{least:.3}..{most:.3}] {unit}"
    );
}

/// Bytes per second and CPU seconds per gigabyte, of all parts together.
fn bulk(runtime: &Runtime, streams: usize, write: usize, length: usize) {
    let row = format!("bulk, streams {streams}, write {write}");
    let all = runtime.block_on(contestants(streams));
    moved(runtime, &row, all, write, length);
}

/// The same streams on one tunnel, and spread over several.
fn several_tunnels(runtime: &Runtime) {
    const STREAMS: usize = 16;
    let mut all = Vec::new();
    for tunnels in [1, 2, 4] {
        let paths = runtime.block_on(tunnelled(Framing::Records, STREAMS, tunnels));
        all.push((format!("{tunnels} of them"), paths));
    }
    moved(runtime, "tunnels, streams 16", all, 256 * KIB, 192 * MIB);
}

fn moved(runtime: &Runtime, row: &str, mut all: Vec<(String, Vec<Path>)>, write: usize, length: usize) {
    let mut figures = vec![(Vec::new(), Vec::new()); all.len()];
    for (_, paths) in &mut all {
        *paths = runtime.block_on(transfer_all(std::mem::take(paths), WARM_UP.min(length), write));
    }
    for _ in 0..ROUNDS {
        for ((_, paths), (speed, cost)) in all.iter_mut().zip(&mut figures) {
            let (before, started) = (cpu(), Instant::now());
            *paths = runtime.block_on(transfer_all(std::mem::take(paths), length, write));
            speed.push(length as f64 * 8e-9 / started.elapsed().as_secs_f64());
            cost.push((cpu() - before).as_secs_f64() * 1e9 / length as f64);
        }
    }
    for ((who, _), (speed, cost)) in all.iter().zip(figures) {
        print(row, who, "Gbit/s", speed);
        print(row, who, "CPU s/GB", cost);
    }
}

/// One small message there and back at a time.
fn latency(runtime: &Runtime) {
    const PINGS: u64 = 3000;
    let mut all = runtime.block_on(contestants(1));
    let mut figures = vec![(Vec::new(), Vec::new()); all.len()];
    for _ in 0..ROUNDS {
        for ((_, paths), (time, cost)) in all.iter_mut().zip(&mut figures) {
            let (before, started) = (cpu(), Instant::now());
            runtime.block_on(paths[0].ping(PINGS));
            time.push(started.elapsed().as_secs_f64() * 1e6 / PINGS as f64);
            cost.push((cpu() - before).as_secs_f64() * 1e6 / PINGS as f64);
        }
    }
    for ((who, _), (time, cost)) in all.iter().zip(figures) {
        print("latency, 200 bytes", who, "us", time);
        print("latency, 200 bytes", who, "CPU us", cost);
    }
}

/// A small message there and back while another stream of the same tunnel sends all it can.
fn elephant_beside_mouse(runtime: &Runtime) {
    const PINGS: usize = 300;
    for framing in FRAMINGS {
        let mut tunnel = runtime.block_on(Peers::with(framing).tunnel());
        let (mut mouse, mut elephant) =
            runtime.block_on(async { (tunnel.path().await, tunnel.path().await) });
        let quiet = times(runtime, &mut mouse, PINGS);
        let bulk = tasks::spawn("bench elephant", async move {
            loop {
                elephant.transfer(64 * MIB, 256 * KIB).await;
            }
        });
        runtime.block_on(tokio::time::sleep(Duration::from_millis(300)));
        let beside = times(runtime, &mut mouse, PINGS);
        bulk.abort();
        for (what, mut times) in [("quiet", quiet), ("beside bulk", beside)] {
            times.sort_by(f64::total_cmp);
            let (p50, p99) = (times[PINGS / 2], times[PINGS * 99 / 100]);
            let who = framing.to_string();
            let _ = writeln!(
                std::io::stdout(),
                "{:<34} {who:<8} p50 {p50:.0} us, p99 {p99:.0} us",
                format!("mouse {what}")
            );
        }
    }
}

fn times(runtime: &Runtime, path: &mut Path, pings: usize) -> Vec<f64> {
    let time = |_| {
        let started = Instant::now();
        runtime.block_on(path.ping(1));
        started.elapsed().as_secs_f64() * 1e6
    };
    (0..pings).map(time).collect()
}

/// 32 connections of one tunnel that each ask and wait.
fn crowd(runtime: &Runtime) {
    const CONNECTIONS: usize = 32;
    const PINGS: u64 = 200;
    let mut all = runtime.block_on(contestants(CONNECTIONS));
    let mut figures = vec![(Vec::new(), Vec::new()); all.len()];
    for _ in 0..ROUNDS {
        for ((_, paths), (rate, cost)) in all.iter_mut().zip(&mut figures) {
            let (before, started) = (cpu(), Instant::now());
            *paths = runtime.block_on(ping_all(std::mem::take(paths), PINGS));
            let messages = (CONNECTIONS as u64 * PINGS) as f64;
            rate.push(messages / started.elapsed().as_secs_f64());
            cost.push((cpu() - before).as_secs_f64() * 1e6 / messages);
        }
    }
    for ((who, _), (rate, cost)) in all.iter().zip(figures) {
        print("crowd of 32, 200 bytes", who, "/s", rate);
        print("crowd of 32, 200 bytes", who, "CPU us", cost);
    }
}

async fn ping_all(paths: Vec<Path>, pings: u64) -> Vec<Path> {
    let spawn = |mut path: Path| {
        tasks::spawn("bench pings", async move {
            path.ping(pings).await;
            path
        })
    };
    let running: Vec<_> = paths.into_iter().map(spawn).collect();
    let mut paths = Vec::new();
    for path in running {
        paths.push(path.await.expect("no ping panics"));
    }
    paths
}

/// New streams on a tunnel that is there, and whole tunnels.
fn connections(runtime: &Runtime) {
    const STREAMS: usize = 1000;
    const TUNNELS: usize = 50;
    let peers = FRAMINGS.map(Peers::with);
    let mut tunnels: Vec<Tunnel> = peers
        .iter()
        .map(|peers| runtime.block_on(peers.tunnel()))
        .collect();
    let mut figures = [(); FRAMINGS.len()].map(|()| [(); 4].map(|()| Vec::new()));
    for _ in 0..ROUNDS {
        for ((tunnel, peers), [rate, cost, handshakes, cost_of_one]) in
            tunnels.iter_mut().zip(&peers).zip(&mut figures)
        {
            let streams = measured(runtime, STREAMS, async {
                for _ in 0..STREAMS {
                    drop(tunnel.stream().await);
                }
            });
            rate.push(streams.0);
            cost.push(streams.1);
            let whole = measured(runtime, TUNNELS, async {
                for _ in 0..TUNNELS {
                    drop(peers.handshake().await);
                }
            });
            handshakes.push(whole.0);
            cost_of_one.push(whole.1);
        }
    }
    for (framing, [rate, cost, handshakes, cost_of_one]) in FRAMINGS.iter().zip(figures) {
        let who = framing.to_string();
        print("connections, streams", &who, "/s", rate);
        print("connections, streams", &who, "CPU us", cost);
        print("connections, tunnels", &who, "/s", handshakes);
        print("connections, tunnels", &who, "CPU us", cost_of_one);
    }
}

/// How many a second, and CPU microseconds for each.
fn measured<F: Future<Output = ()>>(runtime: &Runtime, count: usize, work: F) -> (f64, f64) {
    let work: Pin<Box<F>> = Box::pin(work);
    let (before, started) = (cpu(), Instant::now());
    runtime.block_on(work);
    let rate = count as f64 / started.elapsed().as_secs_f64();
    (rate, (cpu() - before).as_secs_f64() * 1e6 / count as f64)
}

/// Our frames alone: written by one side and read by the other, in memory.
fn framing_alone() {
    for (write, length) in [(100, 8 * MIB), (16 * KIB, 256 * MIB), (256 * KIB, 256 * MIB)] {
        let mut figures = Vec::new();
        for _ in 0..ROUNDS {
            let started = Instant::now();
            let frames = raw::through_memory(write, length);
            assert!(frames > 0);
            figures.push(length as f64 * 8e-9 / started.elapsed().as_secs_f64());
        }
        print(&format!("framing alone, write {write}"), "own", "Gbit/s", figures);
    }
}
