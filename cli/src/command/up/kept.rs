//! A process that is started again when it ends, and ever more slowly if it ends at once.

use std::process::ExitStatus;
use std::time::{Duration, Instant};

use tulle_world::{Process, ProcessError};

/// What ends at once is not started again at once: the pause doubles from this one …
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// … to this one, until it has lived for longer than it.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// A process, or the wait for its next start.
#[derive(Debug)]
pub(super) struct Kept {
    /// `None` while it waits to be started again.
    process: Option<Process>,
    since: Instant,
    pause: Duration,
}

impl Kept {
    pub(super) fn new(process: Process) -> Self {
        Self {
            process: Some(process),
            since: Instant::now(),
            pause: Duration::ZERO,
        }
    }

    /// Its status, once after each end.
    pub(super) fn ended(&mut self) -> Result<Option<ExitStatus>, ProcessError> {
        let status = match &mut self.process {
            Some(process) => process.ended()?,
            None => None,
        };
        if status.is_some() {
            self.pause = pause(self.pause, self.since.elapsed());
            (self.process, self.since) = (None, Instant::now());
        }
        Ok(status)
    }

    /// Whether it is to be started again now.
    pub(super) fn is_due(&self) -> bool {
        self.process.is_none() && self.since.elapsed() >= self.pause
    }

    pub(super) fn restarted(&mut self, process: Process) {
        (self.process, self.since) = (Some(process), Instant::now());
    }

    /// The process, if it runs.
    pub(super) fn into_process(self) -> Option<Process> {
        self.process
    }
}

/// How long to wait before something is started again that has lived for this long.
fn pause(last: Duration, lived: Duration) -> Duration {
    if lived > PAUSE_MAX {
        PAUSE_MIN
    } else {
        (last * 2).clamp(PAUSE_MIN, PAUSE_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_at_once_is_started_again_ever_more_slowly() {
        let mut last = Duration::ZERO;
        for expected in [200, 400, 800] {
            last = pause(last, Duration::from_millis(5));
            assert_eq!(last, Duration::from_millis(expected));
        }
        assert_eq!(pause(PAUSE_MAX, Duration::ZERO), PAUSE_MAX);
        assert_eq!(pause(PAUSE_MAX, PAUSE_MAX * 2), PAUSE_MIN, "it had been well");
    }
}
