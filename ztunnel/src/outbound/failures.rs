//! Endpoints that failed a moment ago: tried last, so that callers do not queue up for one that is gone.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tulle_model::WorkloadUid;

/// How long a failure counts.
const RECENT: Duration = Duration::from_secs(1);

/// Failures that are remembered; the oldest makes room.
const FAILURES_MAX: usize = 256;

/// Recent failures of one workload's calls.
#[derive(Debug, Default)]
pub struct RecentFailures(Mutex<Vec<(Instant, WorkloadUid)>>);

impl RecentFailures {
    /// Remembers a failure.
    pub fn note(&self, uid: &WorkloadUid) {
        let now = Instant::now();
        let mut failures = self.0.lock();
        failures.retain(|(at, known)| now.duration_since(*at) < RECENT && known != uid);
        if failures.len() == FAILURES_MAX {
            failures.remove(0);
        }
        failures.push((now, uid.clone()));
    }

    /// Who failed within the last second.
    #[must_use]
    pub fn list(&self) -> Vec<WorkloadUid> {
        let now = Instant::now();
        let failures = self.0.lock();
        let recent = failures.iter().filter(|(at, _)| now.duration_since(*at) < RECENT);
        recent.map(|(_, uid)| uid.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_failure_counts_for_a_second() {
        let failures = RecentFailures::default();
        failures.note(&"a".into());
        tokio::time::advance(Duration::from_millis(600)).await;
        failures.note(&"b".into());
        assert_eq!(failures.list(), ["a".into(), "b".into()]);
        tokio::time::advance(Duration::from_millis(600)).await;
        assert_eq!(failures.list(), ["b".into()]);
    }
}
