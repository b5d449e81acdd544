//! What a sending proxy carries on machines with more cores than this one has, by a simulation of its tasks.
//!
//! ```text
//!   application ─▶ copy (a task for each stream) ─▶ queue ─▶ driver (a task for each connection): seal, write
//! ```
//!
//! Costs are those that were measured here for a batch; workers are threads with a core of their own. A task runs on one
//! worker at a time, a worker runs what has waited longest, and waking one that sleeps costs both.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io::Write;

/// Bytes of a batch.
const BATCH: f64 = 128.0 * 1024.0;

/// What a batch costs, in nanoseconds: 1.9 s of CPU for each gigabyte in a sending proxy, of which a third is taking it from
/// the application (docs/performance.md).
const COPY: u64 = 83_000;
const DRIVE: u64 = 166_000;

/// Waking a worker that sleeps: what it costs who wakes, and how long it takes.
const WAKE: u64 = 3_000;
const WAKEUP: u64 = 15_000;

/// What a task pays more on another worker than the one before: its data is in another core's cache.
const MOVED: u64 = 8_000;

/// Batches of a stream that wait between both tasks.
const QUEUE: usize = 4;

/// Connections to one peer, as the pool opens them under load.
const CONNECTIONS_MAX: usize = 8;

/// Batches after which a run ends.
const BATCHES: u64 = 20_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Task {
    Copy(usize),
    Drive(usize),
}

#[derive(Debug, Default, Clone)]
struct State {
    /// It waits for a worker, or runs.
    busy: bool,
    worker: Option<usize>,
}

/// A proxy with so many workers and streams.
#[derive(Debug)]
struct Proxy {
    connections: usize,
    /// Batches of each stream that wait to be sealed.
    queued: Vec<usize>,
    copies: Vec<State>,
    drivers: Vec<State>,
    /// The stream that each driver looks at first.
    turns: Vec<usize>,
    runnable: VecDeque<Task>,
    asleep: Vec<usize>,
    /// When workers are done with what they run.
    ends: BinaryHeap<Reverse<(u64, usize, Task)>>,
    now: u64,
    sent: u64,
}

impl Proxy {
    fn new(workers: usize, streams: usize) -> Self {
        let connections = workers.min(CONNECTIONS_MAX).min(streams);
        let mut proxy = Self {
            connections,
            queued: vec![0; streams],
            copies: vec![State::default(); streams],
            drivers: vec![State::default(); connections],
            turns: (0..connections).collect(),
            runnable: VecDeque::new(),
            asleep: (0..workers).collect(),
            ends: BinaryHeap::new(),
            now: 0,
            sent: 0,
        };
        for stream in 0..streams {
            proxy.wake(Task::Copy(stream));
        }
        proxy
    }

    fn state(&mut self, task: Task) -> &mut State {
        match task {
            Task::Copy(stream) => &mut self.copies[stream],
            Task::Drive(connection) => &mut self.drivers[connection],
        }
    }

    /// Whether a task has something to do.
    fn ready(&self, task: Task) -> bool {
        match task {
            Task::Copy(stream) => self.queued[stream] < QUEUE,
            Task::Drive(connection) => self.next_of(connection).is_some(),
        }
    }

    /// The stream whose turn it is on a connection.
    fn next_of(&self, connection: usize) -> Option<usize> {
        let streams = self.queued.len();
        let from = self.turns[connection];
        let mine = (0..streams).map(|step| (from + step) % streams);
        mine.filter(|stream| stream % self.connections == connection)
            .find(|stream| self.queued[*stream] > 0)
    }

    fn wake(&mut self, task: Task) {
        if self.ready(task) && !std::mem::replace(&mut self.state(task).busy, true) {
            self.runnable.push_back(task);
        }
    }

    /// Gives runnable tasks to sleeping workers; says how many were woken.
    fn hand_out(&mut self) -> u64 {
        let mut woken = 0;
        while !self.runnable.is_empty()
            && let Some(worker) = self.asleep.pop()
            && let Some(task) = self.runnable.pop_front()
        {
            woken += 1;
            self.run(task, worker, self.now + WAKEUP);
        }
        woken
    }

    fn run(&mut self, task: Task, worker: usize, from: u64) {
        let before = self.state(task).worker.replace(worker);
        let moved = if before == Some(worker) { 0 } else { MOVED };
        let cost = match task {
            Task::Copy(_) => COPY,
            Task::Drive(_) => DRIVE,
        };
        self.ends.push(Reverse((from + cost + moved, worker, task)));
    }

    /// Gigabits a second.
    fn carries(mut self) -> f64 {
        self.hand_out();
        while self.sent < BATCHES {
            let Some(Reverse((at, worker, task))) = self.ends.pop() else {
                break;
            };
            self.now = at;
            self.state(task).busy = false;
            match task {
                Task::Copy(stream) => {
                    self.queued[stream] += 1;
                    self.wake(Task::Drive(stream % self.connections));
                }
                Task::Drive(connection) => {
                    if let Some(stream) = self.next_of(connection) {
                        self.queued[stream] -= 1;
                        self.turns[connection] = (stream + 1) % self.queued.len();
                        self.sent += 1;
                        self.wake(Task::Copy(stream));
                    }
                }
            }
            self.wake(task);
            // Who is done goes on with what waits, and pays for whom it has to wake for the rest.
            let next = self.runnable.pop_front();
            let woken = self.hand_out();
            match next {
                Some(next) => self.run(next, worker, at + woken * WAKE),
                None => self.asleep.push(worker),
            }
        }
        self.sent as f64 * BATCH * 8.0 / self.now as f64
    }
}

/// Gigabits a second that a proxy with so many workers, each with a core, carries in so many streams.
#[must_use]
pub fn carries(workers: usize, streams: usize) -> f64 {
    Proxy::new(workers.max(1), streams.max(1)).carries()
}

/// The numbers of workers and streams that are looked at.
const WORKERS: [usize; 5] = [1, 2, 4, 8, 16];
const STREAMS: [usize; 3] = [1, 4, 16];

/// Prints the table.
pub fn print() {
    for streams in STREAMS {
        for workers in WORKERS {
            let carried = carries(workers, streams);
            let _ = writeln!(
                std::io::stdout(),
                "simulated: streams {streams:<3} workers {workers:<3} {carried:>8.3} Gbit/s"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_workers_never_carry_less() {
        for streams in STREAMS {
            let carried = WORKERS.map(|workers| carries(workers, streams));
            let falls = carried.windows(2).any(|pair| pair[1] < pair[0] * 0.995);
            assert!(!falls, "{streams} streams: {carried:?}");
        }
    }

    #[test]
    fn one_worker_carries_what_a_core_can() {
        let expected = BATCH * 8.0 / (COPY + DRIVE) as f64;
        let carried = carries(1, 4);
        assert!(
            (carried / expected - 1.0).abs() < 0.02,
            "{carried} for {expected}"
        );
    }
}
