//! Whether a tunnel carries less as worker threads are added: 1 to 16 of them, with 1, 4 and 16 streams, interleaved in one
//! run. Applications run on threads of their own, always as many, as they do beside a proxy.
//!
//! A machine with fewer cores than workers shows what more workers cost (wake-ups, threads that look for work, threads that
//! are put aside with work in hand), not what more cores bring: that is what the simulation is for.

use std::fs::{read_dir, read_to_string};
use std::io::Write;
use std::time::Instant;

use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};

use crate::{Path, Peers, cpu, transfer_all};

const MIB: usize = 1024 * 1024;

/// Times that each number of workers has a turn.
const ROUNDS: usize = 7;

/// Bytes of a turn, of all streams together.
const LENGTH: usize = 128 * MIB;

const WRITE: usize = 256 * 1024;

/// Threads of the applications.
const APPLICATION_THREADS: usize = 2;

/// What turns brought, one figure of each for each of them.
#[derive(Default)]
struct Figures {
    gbit_per_second: Vec<f64>,
    cpu_per_gb: Vec<f64>,
    /// Of the proxies' threads: how often one of them waited for something, and how often it was put aside, for each MB.
    waits_per_mb: Vec<f64>,
    put_aside_per_mb: Vec<f64>,
}

/// Worker threads of both proxies, streams of one tunnel between them, and what the turns brought.
struct Contestant {
    workers: usize,
    /// Lives as long as the proxies are to.
    _proxies: Runtime,
    threads: String,
    paths: Vec<Path>,
    figures: Figures,
}

impl Contestant {
    fn new(workers: usize, streams: usize, applications: &Runtime) -> Self {
        // Linux cuts names of threads after 15 bytes.
        let threads = format!("proxy {streams}/{workers}");
        let proxies = runtime(workers, &threads);
        let paths = proxies.block_on(async {
            let mut tunnel = Peers::default().tunnel().await;
            let mut paths = Vec::new();
            for _ in 0..streams {
                paths.push(tunnel.path().await);
            }
            paths
        });
        let inside = applications.enter();
        let paths = paths.into_iter().map(taken_over).collect();
        drop(inside);
        Self {
            workers,
            _proxies: proxies,
            threads,
            paths,
            figures: Figures::default(),
        }
    }

    fn turn(&mut self, applications: &Runtime, counted: bool) {
        let (cpu_before, switches_before) = (cpu(), switches(&self.threads));
        let started = Instant::now();
        let paths = std::mem::take(&mut self.paths);
        self.paths = applications.block_on(transfer_all(paths, LENGTH, WRITE));
        let (elapsed, spent, now) = (started.elapsed(), cpu() - cpu_before, switches(&self.threads));
        if counted {
            let (figures, mb) = (&mut self.figures, LENGTH as f64 * 1e-6);
            figures.gbit_per_second.push(mb * 8e-3 / elapsed.as_secs_f64());
            figures.cpu_per_gb.push(spent.as_secs_f64() * 1e3 / mb);
            figures
                .waits_per_mb
                .push(now.0.saturating_sub(switches_before.0) as f64 / mb);
            figures
                .put_aside_per_mb
                .push(now.1.saturating_sub(switches_before.1) as f64 / mb);
        }
    }
}

fn runtime(threads: usize, name: &str) -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name(name)
        .enable_all()
        .build()
        .expect("threads and epoll are there")
}

/// The same applications on the runtime that this is called in.
fn taken_over(path: Path) -> Path {
    let [client, server] = [path.client, path.server].map(|socket| {
        let socket = socket.into_std().expect("it is idle");
        TcpStream::from_std(socket).expect("it can be waited for")
    });
    Path { client, server }
}

/// How often threads of this name have waited, and how often they were put aside while they had something to do.
fn switches(name: &str) -> (u64, u64) {
    let tasks = read_dir("/proc/self/task").into_iter().flatten().flatten();
    let of_this_name = |folder: &std::path::PathBuf| {
        read_to_string(folder.join("comm")).is_ok_and(|comm| comm.trim_end() == name)
    };
    tasks
        .map(|task| task.path())
        .filter(of_this_name)
        .map(|folder| switches_in(&read_to_string(folder.join("status")).unwrap_or_default()))
        .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
}

fn switches_in(status: &str) -> (u64, u64) {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
    };
    (
        field("voluntary_ctxt_switches:"),
        field("nonvoluntary_ctxt_switches:"),
    )
}

/// Measures and prints all rows.
///
/// # Panics
/// When loopback has no room for the sockets.
pub fn run() {
    let applications = runtime(APPLICATION_THREADS, "applications");
    for streams in [1, 4, 16] {
        let mut all: Vec<_> = [1, 2, 4, 8, 16]
            .into_iter()
            .map(|workers| Contestant::new(workers, streams, &applications))
            .collect();
        // The first round fills buffers and is not counted.
        for round in 0..=ROUNDS {
            for contestant in &mut all {
                contestant.turn(&applications, round > 0);
            }
        }
        for contestant in all {
            print(streams, contestant.workers, contestant.figures);
        }
    }
}

fn print(streams: usize, workers: usize, figures: Figures) {
    let rows = [
        ("Gbit/s", figures.gbit_per_second),
        ("CPU s/GB", figures.cpu_per_gb),
        ("waits/MB", figures.waits_per_mb),
        ("put aside/MB", figures.put_aside_per_mb),
    ];
    for (unit, mut figures) in rows {
        figures.sort_by(f64::total_cmp);
        let (median, least, most) = (figures[figures.len() / 2], figures[0], figures[figures.len() - 1]);
        let _ = writeln!(
            std::io::stdout(),
            "streams {streams:<3} workers {workers:<3} {median:>8.3} [{least:.3}..{most:.3}] {unit}"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_of_threads_are_counted_by_their_name() {
        let status = "Name:\tx\nvoluntary_ctxt_switches:\t12\nnonvoluntary_ctxt_switches:\t3\n";
        assert_eq!(switches_in(status), (12, 3));
        assert_eq!(switches("nobody is called so"), (0, 0));
    }
}
