//! The bounded queue between who logs and the thread that writes: a slow sink loses lines, never time.
//!
//! Waking a thread and writing to a file cost more than most lines are worth, so an ordinary line wakes nobody: the
//! writer looks every [`GATHER`] and writes what has come since at once. Lines that matter are written without delay.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// Lines that wait at most.
pub const QUEUE_LINES_MAX: usize = 10_000;
/// Further lines kept for warnings and errors.
pub const QUEUE_RESERVE_LINES_MAX: usize = 1_000;

/// How long an ordinary line waits for others, at most.
const GATHER: Duration = Duration::from_millis(20);

/// A line is added to what is written at once until that is so long.
const WRITE_BYTES: usize = 64 * 1024;

static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Lines lost since the process started because the queue was full.
#[must_use]
pub fn lines_dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// Lines on their way to the sink.
pub(super) struct Queue {
    state: Mutex<State>,
    filled: Condvar,
    emptied: Condvar,
}

#[derive(Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    writing: bool,
    /// What the writer does while it is not writing.
    rest: Rest,
    /// Somebody waits for the queue to be empty, or a line came that is not to be kept.
    hurry: bool,
}

/// How the writer rests.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// Not at all.
    #[default]
    Awake,
    /// Until a line comes, whichever.
    ForALine,
    /// For a moment, so that more lines come.
    ForMore,
}

impl Queue {
    /// A queue with a thread that writes its lines to `sink` as long as the process lives.
    pub(super) fn start(sink: impl Write + Send + 'static) -> io::Result<Arc<Self>> {
        let queue = Arc::new(Self {
            state: Mutex::default(),
            filled: Condvar::new(),
            emptied: Condvar::new(),
        });
        let writer = Arc::clone(&queue);
        thread::Builder::new()
            .name("log-writer".to_owned())
            .spawn(move || writer.write_to(sink))?;
        Ok(queue)
    }

    /// Takes a line, or drops and counts it; `important` lines may use the reserve.
    pub(super) fn push(&self, line: Vec<u8>, important: bool) {
        let bound = QUEUE_LINES_MAX + if important { QUEUE_RESERVE_LINES_MAX } else { 0 };
        let mut state = self.state.lock();
        if state.lines.len() >= bound {
            DROPPED.fetch_add(1, Ordering::Relaxed);
            return;
        }
        state.lines.push_back(line);
        state.hurry |= important;
        let asleep = match state.rest {
            Rest::Awake => false,
            Rest::ForALine => true,
            Rest::ForMore => state.hurry,
        };
        drop(state);
        if asleep {
            self.filled.notify_one();
        }
    }

    /// Waits until nothing is queued or being written, or the time is up.
    pub(super) fn flush(&self, wait: Duration) {
        let mut state = self.state.lock();
        let busy = |state: &mut State| state.writing || !state.lines.is_empty();
        if busy(&mut state) {
            state.hurry = true;
            self.filled.notify_one();
        }
        self.emptied.wait_while_for(&mut state, busy, wait);
    }

    fn write_to(&self, mut sink: impl Write) {
        loop {
            let lines = self.take();
            // There is nowhere left to report that the log itself cannot be written.
            let _ = sink.write_all(&lines);
        }
    }

    /// Waits for lines, and joins them.
    fn take(&self) -> Vec<u8> {
        let mut state = self.state.lock();
        state.writing = false;
        if state.lines.is_empty() {
            self.emptied.notify_all();
            state.rest = Rest::ForALine;
            self.filled.wait_while(&mut state, |state| state.lines.is_empty());
        }
        if !state.hurry {
            state.rest = Rest::ForMore;
            self.filled
                .wait_while_for(&mut state, |state| !state.hurry, GATHER);
        }
        state.rest = Rest::Awake;
        state.writing = true;
        let mut joined = Vec::new();
        while joined.len() < WRITE_BYTES
            && let Some(line) = state.lines.pop_front()
        {
            joined.extend_from_slice(&line);
        }
        state.hurry &= !state.lines.is_empty();
        joined
    }
}

/// One line being formatted; it is queued when it is dropped.
pub(super) struct Line<'a> {
    queue: &'a Queue,
    bytes: Vec<u8>,
    important: bool,
}

impl<'a> Line<'a> {
    pub(super) fn new(queue: &'a Queue, important: bool) -> Self {
        Self {
            queue,
            bytes: Vec::new(),
            important,
        }
    }
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        if !self.bytes.is_empty() {
            self.queue.push(std::mem::take(&mut self.bytes), self.important);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// A sink that blocks until the test releases it.
    struct Slow(mpsc::Receiver<()>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.recv().map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn push(queue: &Queue, important: bool) {
        writeln!(Line::new(queue, important), "line").unwrap();
    }

    #[test]
    fn a_full_queue_drops_counts_and_keeps_room_for_errors() {
        let (release, released) = mpsc::channel();
        let queue = Queue::start(Slow(released)).unwrap();
        // Some lines may be in the writer's hands: the sink is stuck with them, and the queue is full after it.
        let stuck = || queue.state.lock().writing;
        push(&queue, true);
        while !stuck() {
            thread::yield_now();
        }
        for _ in 0..QUEUE_LINES_MAX {
            push(&queue, false);
        }
        let before = lines_dropped();
        for _ in 0..10 {
            push(&queue, false);
        }
        assert_eq!(lines_dropped() - before, 10, "ordinary lines are dropped");
        let before = lines_dropped();
        for _ in 0..QUEUE_RESERVE_LINES_MAX {
            push(&queue, true);
        }
        assert_eq!(lines_dropped(), before, "errors use the reserve");
        drop(release);
        queue.flush(Duration::from_secs(5));
        assert!(queue.state.lock().lines.is_empty());
    }

    /// A sink that tells how much it was given at once.
    struct Told(mpsc::Sender<usize>);

    impl Write for Told {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.len()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_comes_together_is_written_at_once_and_nothing_is_lost() {
        let (told, writes) = mpsc::channel();
        let queue = Queue::start(Told(told)).unwrap();
        for _ in 0..1_000 {
            push(&queue, false);
        }
        queue.flush(Duration::from_secs(60));
        let writes: Vec<usize> = writes.try_iter().collect();
        assert_eq!(writes.iter().sum::<usize>(), 1_000 * "line\n".len());
        assert!(writes.len() < 1_000, "{} writes", writes.len());
    }

    #[test]
    fn an_ordinary_line_is_written_without_anybody_asking() {
        let (told, writes) = mpsc::channel();
        let queue = Queue::start(Told(told)).unwrap();
        push(&queue, false);
        let written = writes.recv_timeout(Duration::from_secs(60));
        assert_eq!(written, Ok("line\n".len()));
    }
}
