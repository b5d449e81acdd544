//! A thread that changes pods at a rate, before everything else on the machine: what is measured is the control plane.
//!
//! It shares nothing with those who hear of the changes. The address that a change gives its pod tells the change's number,
//! and the number tells when it was due.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::plane::{CHANGING, Manifests};
use crate::load::pauses::goes_before_others;

/// Time that the thread has to start.
const LEAD: Duration = Duration::from_millis(100);
/// What each part of an address counts to.
const PART: usize = 250;

/// Changes at one rate. Change `number` is version `number / CHANGING + 1` of pod `number % CHANGING`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Series {
    /// What the addresses begin with, unlike those of any other series.
    era: u8,
    begun: Instant,
    apart: Duration,
}

impl Series {
    /// A series that begins in a moment.
    pub(super) fn new(era: u8, per_second: usize) -> Self {
        Self {
            era,
            begun: Instant::now() + LEAD,
            apart: Duration::from_secs(1) / u32::try_from(per_second).expect("a rate"),
        }
    }

    /// What its addresses begin with.
    pub(super) fn era(self) -> u8 {
        self.era
    }

    /// When a change is due.
    pub(super) fn due(self, number: usize) -> Instant {
        self.begun + self.apart * u32::try_from(number).expect("a count")
    }

    /// The address that a change gives its pod.
    fn address(self, number: usize) -> String {
        let (high, middle, low) = (number / PART / PART, number / PART % PART, number % PART);
        format!("{}.{high}.{middle}.{low}", self.era)
    }

    /// The change that put a pod at this address, `/<era>.<number>`; `None` if it is of no change of this series.
    pub(super) fn number_of(self, alias: &str) -> Option<usize> {
        let mut parts = alias.strip_prefix('/')?.split('.').map(str::parse::<usize>);
        let mut part = || parts.next()?.ok();
        (part()? == usize::from(self.era)).then_some(())?;
        Some((part()? * PART + part()?) * PART + part()?)
    }
}

/// How the changes were written.
#[derive(Debug)]
pub(super) struct Written {
    /// How late each was in the folder, sorted: that part of a lag is not the control plane's.
    late: Vec<Duration>,
    /// Time from the first change's moment to the last in the folder.
    pub took: Duration,
}

impl Written {
    /// So many of a thousand changes were no later.
    pub(super) fn late(&self, of_thousand: usize) -> Duration {
        let at = self.late.len().saturating_sub(1) * of_thousand / 1000;
        self.late.get(at).copied().unwrap_or(Duration::MAX)
    }
}

/// The thread. It ends with the value.
#[derive(Debug)]
pub(super) struct Writer {
    /// Nothing is said: the thread hears that this is gone.
    _stop: mpsc::Sender<()>,
    written: oneshot::Receiver<Written>,
}

impl Writer {
    /// Begins to write so many changes.
    pub(super) fn start(manifests: Manifests, series: Series, changes: usize) -> Self {
        let (stop, stopped) = mpsc::channel();
        let (done, written) = oneshot::channel();
        let write = move || {
            // Whoever may not goes with the others; how late the changes are is told.
            let _ = goes_before_others();
            if let Some(written) = write(&manifests, series, changes, &stopped) {
                let _ = done.send(written);
            }
        };
        std::thread::Builder::new()
            .name("writer".to_owned())
            .spawn(write)
            .expect("a thread can be started");
        Self { _stop: stop, written }
    }

    /// Once all changes are written.
    pub(super) async fn written(self) -> Written {
        self.written.await.expect("changes can be written")
    }
}

/// Writes each change when it is due; `None` if nobody waits for them any more.
fn write(
    manifests: &Manifests,
    series: Series,
    changes: usize,
    stopped: &mpsc::Receiver<()>,
) -> Option<Written> {
    let mut late = Vec::with_capacity(changes);
    for number in 0..changes {
        let due = series.due(number);
        // Waits for the word to stop, which is how this thread sleeps, too.
        let wait = due.saturating_duration_since(Instant::now());
        if stopped.recv_timeout(wait) != Err(mpsc::RecvTimeoutError::Timeout) {
            return None;
        }
        manifests.change(number % CHANGING, Some(series.address(number)));
        late.push(due.elapsed());
    }
    let took = series.due(0).elapsed();
    late.sort_unstable();
    Some(Written { late, took })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_tells_which_change_it_is_of() {
        let series = Series::new(11, 1_000);
        for number in [0, 1, 249, 250, 59_999, 62_500, 70_001] {
            let alias = format!("/{}", series.address(number));
            assert_eq!(series.number_of(&alias), Some(number));
            assert_eq!(Series::new(12, 1_000).number_of(&alias), None, "another series");
        }
        assert_eq!(series.number_of("ns0/s0.ns0.svc.cluster.local"), None);
    }

    #[test]
    fn changes_are_due_at_their_rate() {
        let series = Series::new(11, 100);
        assert_eq!(series.due(250) - series.due(0), Duration::from_millis(2_500));
    }
}
