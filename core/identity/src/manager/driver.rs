//! The task behind the store: starts what is due, sleeps until something else is.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use tokio::time::timeout;
use tulle_model::identity::Identity;

use super::{Shared, State};
use crate::ca::CaError;
use crate::certificate::WorkloadCertificate;
use crate::schedule::Failure;

/// Longest sleep. The wall clock may be set, and what is due is looked at again.
const SLEEP_MAX: Duration = Duration::from_secs(60);
/// An attempt that takes longer has failed, whatever the client thinks.
const FETCH_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) async fn run(shared: Arc<Shared>) {
    while !shared.closed.load(Ordering::Acquire) {
        let (due, sleep) = plan(&shared);
        for identity in due {
            drop(tulle_runtime::tasks::spawn(
                "certificate_fetch",
                attempt(Arc::clone(&shared), identity),
            ));
        }
        // Ended by time or by news; what there is to do is looked up either way.
        let _ = timeout(sleep, shared.wake.notified()).await;
    }
}

fn plan(shared: &Shared) -> (Vec<Identity>, Duration) {
    let now = shared.now();
    let mut state = shared.state.lock();
    for forgotten in state.schedule.sweep(now) {
        state.slots.remove(&forgotten);
        shared.forget(&forgotten);
    }
    let mut due = Vec::new();
    while let Some((identity, priority)) = state.schedule.next(now) {
        tracing::debug!(%identity, ?priority, "asking for a certificate");
        due.push(identity);
    }
    shared
        .metrics
        .outage_budget(state.schedule.first_expiry(now.wall));
    let (overdue, next_alarm) = sound_alarms(&mut state, now.wall);
    shared.metrics.overdue(overdue);
    // An alarm is due at its own time, also while the next attempt is far.
    let sleep = [state.schedule.wake_in(now), next_alarm]
        .into_iter()
        .flatten()
        .min();
    (due, sleep.unwrap_or(SLEEP_MAX).min(SLEEP_MAX))
}

/// Says once of each certificate that it is overdue; how many are, and how long until the next one will be.
fn sound_alarms(state: &mut State, now: SystemTime) -> (usize, Option<Duration>) {
    let State { schedule, slots } = state;
    let (mut overdue, mut next): (_, Option<Duration>) = (0, None);
    for (identity, slot) in slots.iter_mut() {
        let Some(left) = slot.overdue_in(now).filter(|_| schedule.is_retained(identity)) else {
            slot.alarmed = false;
            continue;
        };
        if left > Duration::ZERO {
            slot.alarmed = false;
            next = Some(next.map_or(left, |next| next.min(left)));
            continue;
        }
        overdue += 1;
        if !std::mem::replace(&mut slot.alarmed, true) {
            let left = slot.current.as_ref().map(|current| current.not_after());
            let left = left
                .and_then(|end| end.duration_since(now).ok())
                .unwrap_or_default();
            let last = slot.last.as_ref().map(ToString::to_string).unwrap_or_default();
            tracing::error!(
                %identity,
                left_seconds = left.as_secs(),
                last,
                "less than a third of a certificate's life is left and it is not renewed; its workloads are cut off when it ends"
            );
        }
    }
    (overdue, next)
}

/// One request, whose end is recorded even if it panics.
async fn attempt(shared: Arc<Shared>, identity: Identity) {
    let mut attempt = Attempt {
        shared,
        identity,
        ended: false,
    };
    let result = attempt.ask().await;
    attempt.end(result);
}

struct Attempt {
    shared: Arc<Shared>,
    identity: Identity,
    ended: bool,
}

impl Attempt {
    async fn ask(&self) -> Result<Arc<WorkloadCertificate>, CaError> {
        let issued = timeout(FETCH_TIMEOUT, self.shared.ca.fetch(&self.identity)).await;
        let issued = issued.map_err(|_| CaError::Timeout(FETCH_TIMEOUT))??;
        let options = &self.shared.options;
        let certificate =
            WorkloadCertificate::new(&self.identity, &issued, options.key_exchange, options.clock.now())?;
        Ok(Arc::new(certificate.trusting(options.trust.clone())))
    }

    fn end(&mut self, result: Result<Arc<WorkloadCertificate>, CaError>) {
        self.ended = true;
        match result {
            Ok(certificate) => self.keep(certificate),
            Err(error) => {
                tracing::warn!(identity = %self.identity, %error, "no certificate was issued; trying again");
                self.note(Some(error));
            }
        }
        self.shared.wake.notify_one();
    }

    fn keep(&self, certificate: Arc<WorkloadCertificate>) {
        let now = self.shared.now();
        let mut state = self.shared.state.lock();
        let not_after = certificate.not_after();
        if !state.schedule.fetched(&self.identity, not_after, random(), now) {
            // Its last workload left while the authority was asked.
            self.shared.forget(&self.identity);
            return;
        }
        tracing::info!(identity = %self.identity, serial = certificate.serial(), "a certificate was issued");
        self.shared.metrics.issued(&self.identity, not_after);
        let slot = state.slots.entry(self.identity.clone()).or_default();
        slot.current = Some(certificate);
        slot.since = Some(now.wall);
        slot.last = None;
        slot.ended.notify_waiters();
    }

    fn note(&self, error: Option<CaError>) {
        let now = self.shared.now();
        self.shared.metrics.failed();
        let mut state = self.shared.state.lock();
        let failure = match &error {
            Some(error) if error.is_outage() => Failure::Outage,
            _ => Failure::Refusal,
        };
        state.schedule.failed(&self.identity, failure, random(), now);
        let slot = state.slots.entry(self.identity.clone()).or_default();
        slot.last = error.map(Arc::new);
        slot.ended.notify_waiters();
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.ended {
            self.note(None);
            self.shared.wake.notify_one();
        }
    }
}

/// Uniform in -1..=1.
fn random() -> f64 {
    rand::random_range(-1.0..=1.0)
}
