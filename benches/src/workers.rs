//! Whether a tunnel carries less as worker threads are added: 1 to 16 of them, with 1, 4 and 16 streams, interleaved in one
//! run.
//!
//! A machine with fewer cores than workers shows what more workers cost (wake-ups, threads that look for work, moved tasks),
//! not what more cores bring: that is what the simulation is for.

use std::io::Write;
use std::time::Instant;

use tokio::runtime::{Builder, Runtime};

use crate::{Path, Peers, cpu, transfer_all};

const MIB: usize = 1024 * 1024;

/// Times that each number of workers has a turn.
const ROUNDS: usize = 7;

/// Bytes of a turn, of all streams together.
const LENGTH: usize = 128 * MIB;

const WRITE: usize = 256 * 1024;

/// Worker threads, streams of one tunnel between them, and what the turns brought.
struct Contestant {
    workers: usize,
    runtime: Runtime,
    paths: Vec<Path>,
    gbit_per_second: Vec<f64>,
    cpu_per_gb: Vec<f64>,
}

impl Contestant {
    fn new(workers: usize, streams: usize) -> Self {
        let runtime = Builder::new_multi_thread()
            .worker_threads(workers)
            .enable_all()
            .build()
            .expect("threads and epoll are there");
        let paths = runtime.block_on(async {
            let mut tunnel = Peers::default().tunnel().await;
            let mut paths = Vec::new();
            for _ in 0..streams {
                paths.push(tunnel.path().await);
            }
            paths
        });
        Self {
            workers,
            runtime,
            paths,
            gbit_per_second: Vec::new(),
            cpu_per_gb: Vec::new(),
        }
    }

    fn turn(&mut self, counted: bool) {
        let (before, started) = (cpu(), Instant::now());
        let paths = std::mem::take(&mut self.paths);
        self.paths = self.runtime.block_on(transfer_all(paths, LENGTH, WRITE));
        if counted {
            self.gbit_per_second
                .push(LENGTH as f64 * 8e-9 / started.elapsed().as_secs_f64());
            self.cpu_per_gb
                .push((cpu() - before).as_secs_f64() * 1e9 / LENGTH as f64);
        }
    }
}

/// Measures and prints all rows.
///
/// # Panics
/// When loopback has no room for the sockets.
pub fn run() {
    for streams in [1, 4, 16] {
        let mut all: Vec<_> = [1, 2, 4, 8, 16]
            .into_iter()
            .map(|workers| Contestant::new(workers, streams))
            .collect();
        // The first round fills buffers and is not counted.
        for round in 0..=ROUNDS {
            for contestant in &mut all {
                contestant.turn(round > 0);
            }
        }
        for mut contestant in all {
            print(
                streams,
                contestant.workers,
                "Gbit/s",
                &mut contestant.gbit_per_second,
            );
            print(
                streams,
                contestant.workers,
                "CPU s/GB",
                &mut contestant.cpu_per_gb,
            );
        }
    }
}

fn print(streams: usize, workers: usize, unit: &str, figures: &mut [f64]) {
    figures.sort_by(f64::total_cmp);
    let (median, least, most) = (figures[figures.len() / 2], figures[0], figures[figures.len() - 1]);
    let _ = writeln!(
        std::io::stdout(),
        "streams {streams:<3} workers {workers:<3} {median:>8.3} [{least:.3}..{most:.3}] {unit}"
    );
}
