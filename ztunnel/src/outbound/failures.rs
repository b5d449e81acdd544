//! Endpoints that failed a moment ago: tried last, so that callers do not queue up for one that is gone.
//!
//! One that refused counts as failed for a second. One that swallowed an attempt costs its caller seconds, so it is left
//! alone for longer each time, and then tried by one connection while the others go elsewhere. Being tried last never
//! means not being tried: the last endpoint there is stays in use.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tulle_model::WorkloadUid;

/// How long a failure counts; after an attempt that timed out, at first.
const WAIT_MIN: Duration = Duration::from_secs(1);

/// How long an endpoint is left alone at most, after attempts that timed out one after the other.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// How long it is remembered that attempts timed out, after the last wait was over: the next is twice as long.
const MEMORY: Duration = Duration::from_secs(60);

/// Endpoints that are remembered; the one that was heard of longest ago makes room.
const FAILURES_MAX: usize = 256;

/// Recent failures of one workload's calls.
#[derive(Debug, Default)]
pub struct RecentFailures(Mutex<Vec<(WorkloadUid, Standing)>>);

/// How an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Something answered, and quickly.
    Refused,
    /// Nothing did.
    TimedOut,
}

/// What is known of one endpoint that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Standing {
    how: Failure,
    noted: Instant,
    wait: Duration,
    /// Somebody tries it again.
    probed: bool,
}

impl Standing {
    /// After one more failure of an attempt that began at `began`.
    fn after(before: Option<Self>, how: Failure, began: Instant, now: Instant) -> Self {
        let wait = match (how, before) {
            (Failure::TimedOut, Some(before)) if before.how == Failure::TimedOut => {
                if began < before.noted {
                    // It was under way when the endpoint was found out: nothing new.
                    return before;
                }
                (before.wait * 2).min(WAIT_MAX)
            }
            _ => WAIT_MIN,
        };
        Self {
            how,
            noted: now,
            wait,
            probed: false,
        }
    }

    /// Whether connections should rather go elsewhere.
    fn is_avoided(&self, now: Instant) -> bool {
        self.probed || now < self.noted + self.wait
    }

    fn is_remembered(&self, now: Instant) -> bool {
        let memory = match self.how {
            Failure::Refused => Duration::ZERO,
            Failure::TimedOut => MEMORY,
        };
        self.probed || now < self.noted + self.wait + memory
    }
}

/// An attempt at an endpoint that failed before; until it ends, others go elsewhere.
#[derive(Debug)]
pub struct Probe<'a> {
    failures: &'a RecentFailures,
    uid: WorkloadUid,
}

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        if let Some((_, standing)) = find(&mut self.failures.0.lock(), &self.uid) {
            standing.probed = false;
        }
    }
}

impl RecentFailures {
    /// Remembers that an attempt that began at `began` failed.
    pub fn note(&self, uid: &WorkloadUid, how: Failure, began: Instant) {
        let now = Instant::now();
        let mut failures = self.0.lock();
        failures.retain(|(_, standing)| standing.is_remembered(now));
        let before = failures.iter().position(|(known, _)| known == uid);
        let before = before.map(|at| failures.remove(at).1);
        if failures.len() == FAILURES_MAX {
            failures.remove(0);
        }
        failures.push((uid.clone(), Standing::after(before, how, began, now)));
    }

    /// Forgets the failures of an endpoint that answered.
    pub fn clear(&self, uid: &WorkloadUid) {
        let mut failures = self.0.lock();
        if !failures.is_empty() {
            failures.retain(|(known, _)| known != uid);
        }
    }

    /// An attempt at an endpoint begins. The first one after a wait is a probe.
    #[must_use]
    pub fn begin(&self, uid: &WorkloadUid) -> Option<Probe<'_>> {
        let mut failures = self.0.lock();
        let (_, standing) = find(&mut failures, uid)?;
        if standing.is_avoided(Instant::now()) {
            return None;
        }
        standing.probed = true;
        Some(Probe {
            failures: self,
            uid: uid.clone(),
        })
    }

    /// Endpoints to choose last.
    #[must_use]
    pub fn list(&self) -> Vec<WorkloadUid> {
        let failures = self.0.lock();
        if failures.is_empty() {
            return Vec::new();
        }
        let now = Instant::now();
        let avoided = failures.iter().filter(|(_, standing)| standing.is_avoided(now));
        avoided.map(|(uid, _)| uid.clone()).collect()
    }
}

fn find<'a>(
    failures: &'a mut [(WorkloadUid, Standing)],
    uid: &WorkloadUid,
) -> Option<&'a mut (WorkloadUid, Standing)> {
    failures.iter_mut().find(|(known, _)| known == uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The waits after attempts that time out, each begun when the wait before it was over.
    fn waits(count: usize) -> Vec<u64> {
        let mut now = Instant::now();
        let mut standing = None;
        let one = |_| {
            let began = now;
            now += Duration::from_secs(5);
            let after = Standing::after(standing, Failure::TimedOut, began, now);
            standing = Some(after);
            now += after.wait;
            after.wait.as_secs()
        };
        (0..count).map(one).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn f10_an_endpoint_that_swallows_attempts_is_left_alone_for_longer_each_time() {
        assert_eq!(waits(7), [1, 2, 4, 8, 16, 30, 30]);
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_that_were_under_way_count_once() {
        let failures = RecentFailures::default();
        let began = Instant::now();
        for _ in 0..50 {
            tokio::time::advance(Duration::from_millis(100)).await;
            failures.note(&"a".into(), Failure::TimedOut, began);
        }
        let (_, standing) = failures.0.lock()[0];
        assert_eq!(standing.wait, WAIT_MIN);
        assert_eq!(standing.noted, began + Duration::from_millis(100));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_counts_for_a_second_however_often() {
        let failures = RecentFailures::default();
        for _ in 0..3 {
            failures.note(&"a".into(), Failure::Refused, Instant::now());
        }
        tokio::time::advance(Duration::from_millis(600)).await;
        failures.note(&"b".into(), Failure::Refused, Instant::now());
        assert_eq!(failures.list(), ["a".into(), "b".into()]);
        tokio::time::advance(Duration::from_millis(600)).await;
        assert_eq!(failures.list(), ["b".into()]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_connection_probes_while_others_go_elsewhere() {
        let failures = RecentFailures::default();
        let uid: WorkloadUid = "a".into();
        failures.note(&uid, Failure::TimedOut, Instant::now());
        assert!(
            failures.begin(&uid).is_none(),
            "the last endpoint there is, no probe"
        );
        tokio::time::advance(WAIT_MIN).await;
        assert!(failures.list().is_empty());
        let began = Instant::now();
        let probe = failures.begin(&uid);
        assert!(probe.is_some());
        assert_eq!(failures.list(), ["a".into()]);
        assert!(failures.begin(&uid).is_none());
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(failures.list(), ["a".into()], "for as long as it takes");
        failures.note(&uid, Failure::TimedOut, began);
        drop(probe);
        tokio::time::advance(WAIT_MIN).await;
        assert_eq!(failures.list(), ["a".into()], "twice as long now");
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_hangs_up_leaves_the_probe_to_the_next() {
        let failures = RecentFailures::default();
        let uid: WorkloadUid = "a".into();
        failures.note(&uid, Failure::TimedOut, Instant::now());
        tokio::time::advance(WAIT_MIN).await;
        drop(failures.begin(&uid));
        assert!(failures.list().is_empty());
        assert!(failures.begin(&uid).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_makes_good_for_all() {
        let failures = RecentFailures::default();
        let uid: WorkloadUid = "a".into();
        failures.note(&uid, Failure::TimedOut, Instant::now());
        failures.clear(&uid);
        assert!(failures.list().is_empty());
        failures.note(&uid, Failure::TimedOut, Instant::now());
        assert_eq!(failures.0.lock()[0].1.wait, WAIT_MIN);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded_and_ends() {
        let failures = RecentFailures::default();
        for number in 0..FAILURES_MAX + 10 {
            failures.note(
                &format!("w{number}").as_str().into(),
                Failure::TimedOut,
                Instant::now(),
            );
        }
        assert_eq!(failures.0.lock().len(), FAILURES_MAX);
        tokio::time::advance(WAIT_MIN + MEMORY).await;
        failures.note(&"a".into(), Failure::TimedOut, Instant::now());
        assert_eq!(failures.0.lock().len(), 1);
    }
}
