//! The bounded queue between who logs and the thread that writes: a slow sink loses lines, never time.

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
        drop(state);
        self.filled.notify_one();
    }

    /// Waits until nothing is queued or being written, or the time is up.
    pub(super) fn flush(&self, wait: Duration) {
        let mut state = self.state.lock();
        let busy = |state: &mut State| state.writing || !state.lines.is_empty();
        self.emptied.wait_while_for(&mut state, busy, wait);
    }

    fn write_to(&self, mut sink: impl Write) {
        loop {
            let line = self.next();
            // There is nowhere left to report that the log itself cannot be written.
            let _ = sink.write_all(&line);
        }
    }

    fn next(&self) -> Vec<u8> {
        let mut state = self.state.lock();
        state.writing = false;
        if state.lines.is_empty() {
            self.emptied.notify_all();
            self.filled.wait_while(&mut state, |state| state.lines.is_empty());
        }
        state.writing = true;
        state
            .lines
            .pop_front()
            .expect("the wait above ends with a line in the queue")
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
        // One line may be in the writer's hands, so the queue is full after one more than its bound.
        for _ in 0..=QUEUE_LINES_MAX {
            push(&queue, false);
        }
        let before = lines_dropped();
        for _ in 0..10 {
            push(&queue, false);
        }
        assert!(lines_dropped() - before >= 9, "ordinary lines are dropped");
        let before = lines_dropped();
        for _ in 0..QUEUE_RESERVE_LINES_MAX {
            push(&queue, true);
        }
        assert_eq!(lines_dropped(), before, "errors use the reserve");
        drop(release);
        queue.flush(Duration::from_secs(5));
        assert!(queue.state.lock().lines.is_empty());
    }
}
