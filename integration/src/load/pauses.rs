//! When the machine itself stood still: time that a hypervisor takes from its guest is no wait that a mesh caused.
//!
//! A thread of real-time priority on each processor asks to be woken every two milliseconds. Where one comes late although
//! nothing in this kernel goes before it, and the kernel has booked as much time as stolen (`steal` in `/proc/stat`,
//! `proc_stat(5)`), the processor was away. Both are asked for, so that a long system call of ours is never taken for a pause.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::{Pid, gettid};
use parking_lot::Mutex;
use tokio::time::Instant;

/// Time between two looks.
const BEAT: Duration = Duration::from_millis(2);
/// Whoever comes later than this was not let run; less cannot be told from the unit of the books.
const LATE: Duration = Duration::from_millis(12);
/// The unit of the kernel's books.
const TICK: Duration = Duration::from_millis(10);
/// The books are kept at ticks: what was stolen shows a tick or two later.
const BOOKED_WITHIN: Duration = Duration::from_millis(20);
/// How old the last look into the books may be.
const READ_EVERY: Duration = Duration::from_millis(100);
/// The priority of the threads among those of real time.
const PRIORITY: &str = "50";

/// From when to when a processor was away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pause {
    /// The last moment at which it is known to have run.
    pub from: Instant,
    /// When it ran again.
    pub to: Instant,
}

/// The pauses of every processor since a moment; the watch ends with the value.
#[derive(Debug)]
pub struct Pauses {
    seen: Arc<Mutex<Vec<Pause>>>,
    /// Threads end when this is gone.
    _stop: Vec<mpsc::Sender<()>>,
}

impl Pauses {
    /// Begins to watch. Whoever may not have real-time threads sees no pauses: nothing is excused then.
    #[must_use]
    pub fn watch() -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let stop = (0..processors).map(|processor| {
            let (stop, stopped) = mpsc::channel();
            let seen = Arc::clone(&seen);
            std::thread::spawn(move || {
                if goes_first(processor) {
                    watch(processor, &seen, &stopped);
                }
            });
            stop
        });
        let _stop = stop.collect();
        Self { seen, _stop }
    }

    /// What was seen until now, in order.
    #[must_use]
    pub fn seen(&self) -> Vec<Pause> {
        let mut seen = self.seen.lock().clone();
        seen.sort_unstable();
        seen
    }
}

/// How much of an interval some processor was away; `pauses` are in order and may overlap.
#[must_use]
pub fn away(pauses: &[Pause], from: Instant, to: Instant) -> Duration {
    let (mut away, mut until) = (Duration::ZERO, from);
    for pause in pauses {
        let (begin, end) = (pause.from.max(until), pause.to.min(to));
        if begin < end {
            away += end - begin;
            until = end;
        }
    }
    away
}

/// Ties the thread to a processor and puts it before all that is not of real time.
fn goes_first(processor: usize) -> bool {
    let mut only = CpuSet::new();
    let tied = only
        .set(processor)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &only));
    tied.is_ok() && goes_before_others()
}

/// Gives the thread the processor before all that is not of real time; says whether it may. On the disk it goes with the
/// others: the kernel takes that priority from this one unless it is told (`ioprio_set(2)`), and a thread that writes all the
/// time would keep everybody else from the disk for as long as the scheduler there allows, which are ten seconds.
#[must_use]
pub fn goes_before_others() -> bool {
    let thread = gettid().to_string();
    let is_set = |program: &str, arguments: &[&str]| {
        let mut set = std::process::Command::new(program);
        let set = set.args(arguments).arg(&thread);
        let status = set.stderr(std::process::Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    is_set("ionice", &["--class", "best-effort", "--classdata", "4", "--pid"])
        && is_set("chrt", &["--fifo", "--pid", PRIORITY])
}

fn watch(processor: usize, seen: &Mutex<Vec<Pause>>, stopped: &mpsc::Receiver<()>) {
    // Waits for the word to stop, which is how this thread sleeps, too.
    let over = |time| stopped.recv_timeout(time) != Err(mpsc::RecvTimeoutError::Timeout);
    let (mut books, mut read, mut before) = (stolen(processor), Instant::now(), Instant::now());
    while !over(BEAT) {
        let now = Instant::now();
        if now - before > LATE {
            if over(BOOKED_WITHIN) {
                return;
            }
            if is_a_pause(now - before, stolen(processor).saturating_sub(books)) {
                seen.lock().push(Pause {
                    from: before,
                    to: now,
                });
            }
        }
        before = Instant::now();
        if before - read > READ_EVERY {
            (books, read) = (stolen(processor), before);
        }
    }
}

/// Whether the books explain that somebody came late; they may be short by a tick.
fn is_a_pause(late: Duration, stolen: Duration) -> bool {
    !stolen.is_zero() && stolen + TICK >= late
}

/// The time stolen from a processor since the machine started; none where the kernel does not say.
fn stolen(processor: usize) -> Duration {
    let books = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    TICK * stolen_ticks(&books, processor).unwrap_or(0)
}

/// `cpu<n> user nice system idle iowait irq softirq steal …`, in ticks of a hundredth of a second.
fn stolen_ticks(books: &str, processor: usize) -> Option<u32> {
    let name = format!("cpu{processor}");
    let line = books
        .lines()
        .find(|line| line.split_whitespace().next() == Some(&name))?;
    line.split_whitespace().nth(8)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn milliseconds(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn a_wait_is_excused_for_as_long_as_a_processor_was_away_and_no_longer() {
        let start = Instant::now();
        let pause = |from, to| Pause {
            from: start + milliseconds(from),
            to: start + milliseconds(to),
        };
        let of =
            |from, to, pauses: &[Pause]| away(pauses, start + milliseconds(from), start + milliseconds(to));
        assert_eq!(of(0, 100, &[]), milliseconds(0));
        assert_eq!(of(0, 100, &[pause(10, 30)]), milliseconds(20));
        assert_eq!(
            of(20, 25, &[pause(10, 30)]),
            milliseconds(5),
            "the wait is inside"
        );
        assert_eq!(of(40, 50, &[pause(10, 30)]), milliseconds(0), "it was over");
        let both = [pause(10, 30), pause(20, 40), pause(60, 70)];
        assert_eq!(
            of(0, 65, &both),
            milliseconds(35),
            "two processors at once count once"
        );
    }

    #[test]
    fn late_without_stolen_time_is_no_pause() {
        assert!(
            !is_a_pause(milliseconds(70), milliseconds(0)),
            "a system call of ours"
        );
        assert!(
            !is_a_pause(milliseconds(70), milliseconds(20)),
            "less than it was late"
        );
        assert!(is_a_pause(milliseconds(70), milliseconds(60)), "short by a tick");
    }

    #[test]
    fn stolen_time_is_read_per_processor() {
        let books =
            "cpu  9 9 9 9 9 9 9 99 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\ncpu1 1 2 3 4 5 6 7 42 0 0\nintr 1\n";
        assert_eq!(stolen_ticks(books, 1), Some(42));
        assert_eq!(stolen_ticks(books, 0), Some(8));
        assert_eq!(stolen_ticks(books, 2), None);
        assert_eq!(stolen_ticks("cpu0 1 2", 0), None);
    }
}
