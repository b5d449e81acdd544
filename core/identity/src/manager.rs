//! The store of the node's certificates: fetches, renews, forgets. What to do when is decided in
//! [`schedule`](crate::schedule); this is the shell that does it.

mod driver;
mod summary;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use tulle_model::identity::Identity;
use tulle_model::reason::Reason;

use crate::ca::{CaClient, CaError};
use crate::certificate::WorkloadCertificate;
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::schedule::{Now, Priority, Schedule};
use crate::tls::KeyExchange;
use crate::trust::{Distrust, TrustStore};

pub use summary::{CertificateState, CertificateSummary};

/// A certificate of which less than this share of its life is left is overdue: it should have been renewed at half.
const OVERDUE_SHARE: u32 = 3;
/// So much earlier it is told: it may have been under way to us for a part of its life, and whoever looks does so from
/// time to time.
const OVERDUE_EARLIER: Duration = Duration::from_secs(1);

/// How the store behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long a fetch waits for a certificate.
    pub wait: Duration,
    /// Which groups connections may use.
    pub key_exchange: KeyExchange,
    /// What time it is.
    pub clock: Clock,
    /// What peers are judged by, beside their certificates.
    pub trust: TrustStore,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            wait: Duration::from_secs(5),
            key_exchange: KeyExchange::Standard,
            clock: Clock::system(),
            trust: TrustStore::default(),
        }
    }
}

/// Why there is no certificate to use.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CertificateError {
    /// None was issued yet.
    #[error("no certificate for {identity} yet{}", because(.last))]
    Unavailable {
        /// Whose certificate.
        identity: Identity,
        /// What the last attempt ended with.
        last: Option<Arc<CaError>>,
    },
    /// The last one has expired and could not be renewed.
    #[error("the certificate of {identity} expired{}", because(.last))]
    Expired {
        /// Whose certificate.
        identity: Identity,
        /// What the last attempt ended with.
        last: Option<Arc<CaError>>,
    },
    /// There is one, which peers would refuse.
    #[error("the certificate of {identity}: {why}")]
    Distrusted {
        /// Whose certificate.
        identity: Identity,
        /// Why peers would refuse it.
        why: Distrust,
    },
}

fn because(last: &Option<Arc<CaError>>) -> String {
    last.as_ref()
        .map(|error| format!("; last attempt: {error}"))
        .unwrap_or_default()
}

impl CertificateError {
    /// The stable code.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Unavailable { .. } => Reason::CertUnavailable,
            Self::Expired { .. } => Reason::CertExpired,
            Self::Distrusted { why, .. } => why.reason(),
        }
    }
}

/// A cheap handle on the store, which ends with its last handle.
#[derive(Clone)]
pub struct SecretManager {
    handle: Arc<Handle>,
}

/// Tells the driver when nobody is left.
struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.closed.store(true, Ordering::Release);
        self.0.wake.notify_one();
    }
}

struct Shared {
    ca: Arc<dyn CaClient>,
    options: Options,
    metrics: Metrics,
    state: Mutex<State>,
    /// The schedule changed.
    wake: Notify,
    closed: AtomicBool,
}

#[derive(Default)]
struct State {
    schedule: Schedule,
    slots: HashMap<Identity, Slot>,
}

/// What is known about one identity's certificate.
#[derive(Default)]
struct Slot {
    current: Option<Arc<WorkloadCertificate>>,
    /// When it was issued to us; its own beginning may be dated back.
    since: Option<SystemTime>,
    /// It was said that it is overdue.
    alarmed: bool,
    /// How the last attempt failed, if it did.
    last: Option<Arc<CaError>>,
    /// An attempt ended, either way.
    ended: Arc<Notify>,
}

impl Slot {
    fn valid(&self, now: SystemTime) -> Option<Arc<WorkloadCertificate>> {
        self.current
            .as_ref()
            .filter(|certificate| certificate.is_valid(now))
            .map(Arc::clone)
    }

    /// How long until so little of the certificate's life is left that a renewal must have failed for long; zero from
    /// then on.
    fn overdue_in(&self, now: SystemTime) -> Option<Duration> {
        let (current, since) = (self.current.as_ref()?, self.since?);
        let life = current.not_after().duration_since(since).unwrap_or_default();
        let left = current.not_after().duration_since(now).unwrap_or_default();
        Some(left.saturating_sub(life / OVERDUE_SHARE + OVERDUE_EARLIER))
    }

    fn missing(&self, identity: &Identity) -> CertificateError {
        let (identity, last) = (identity.clone(), self.last.clone());
        match self.current {
            Some(_) => CertificateError::Expired { identity, last },
            None => CertificateError::Unavailable { identity, last },
        }
    }
}

/// What a look into the store yields to somebody who wants a certificate.
enum Look {
    Valid(Arc<WorkloadCertificate>),
    Wait(Arc<Notify>),
    Hopeless(CertificateError),
}

impl SecretManager {
    /// Starts a store over `ca`. Must be called within a runtime; the store ends with its last handle.
    #[must_use]
    pub fn new(ca: Arc<dyn CaClient>, options: Options, metrics: Metrics) -> Self {
        let shared = Arc::new(Shared {
            ca,
            options,
            metrics,
            state: Mutex::default(),
            wake: Notify::new(),
            closed: AtomicBool::new(false),
        });
        drop(tulle_runtime::tasks::spawn(
            "certificates",
            driver::run(Arc::clone(&shared)),
        ));
        Self {
            handle: Arc::new(Handle(shared)),
        }
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.handle.0
    }

    /// The valid certificate of `identity`; waits for one if there is none, at most [`Options::wait`].
    ///
    /// # Errors
    /// When none can be had in time: `cert_unavailable`, or `cert_expired`; `cert_revoked` when peers would refuse
    /// it. At once, when the next attempt is
    /// further away than the wait.
    pub async fn fetch(
        &self,
        identity: &Identity,
        priority: Priority,
    ) -> Result<Arc<WorkloadCertificate>, CertificateError> {
        let certificate = self.fetch_valid(identity, priority).await?;
        match certificate.judge() {
            Ok(()) => Ok(certificate),
            Err(why) => Err(CertificateError::Distrusted {
                identity: identity.clone(),
                why,
            }),
        }
    }

    async fn fetch_valid(
        &self,
        identity: &Identity,
        priority: Priority,
    ) -> Result<Arc<WorkloadCertificate>, CertificateError> {
        let shared = self.shared();
        let deadline = Instant::now() + shared.options.wait;
        if let Some(certificate) = shared.touch(identity)? {
            return Ok(certificate);
        }
        let _waiting = Waiting::begin(shared, identity, priority);
        loop {
            let ended = match shared.look(identity, deadline) {
                Look::Valid(certificate) => return Ok(certificate),
                Look::Hopeless(error) => return Err(error),
                Look::Wait(ended) => ended,
            };
            let mut ended = std::pin::pin!(ended.notified());
            // From here on no end is missed; one that came before is seen by looking again.
            ended.as_mut().enable();
            if let Look::Valid(certificate) = shared.look(identity, deadline) {
                return Ok(certificate);
            }
            if timeout_at(deadline, ended).await.is_err() {
                return shared.last_look(identity);
            }
        }
    }

    /// The valid certificate of `identity`, if there is one now.
    #[must_use]
    pub fn current(&self, identity: &Identity) -> Option<Arc<WorkloadCertificate>> {
        let shared = self.shared();
        let now = shared.options.clock.now();
        shared.state.lock().slots.get(identity)?.valid(now)
    }

    /// Whether there is a certificate of `identity` that peers would refuse.
    #[must_use]
    pub fn is_distrusted(&self, identity: &Identity) -> bool {
        self.current(identity)
            .is_some_and(|certificate| certificate.judge().is_err())
    }

    /// A local workload of this identity appeared: fetch its certificate and keep it fresh.
    pub fn retain(&self, identity: &Identity) {
        self.shared().state.lock().schedule.retain(identity);
        self.shared().wake.notify_one();
    }

    /// A local workload of this identity is gone; the certificate is forgotten with the last one.
    pub fn release(&self, identity: &Identity) {
        let shared = self.shared();
        let mut state = shared.state.lock();
        if state.schedule.release(identity) {
            if let Some(slot) = state.slots.get_mut(identity) {
                slot.current = None;
            }
            shared.forget(identity);
            shared.wake.notify_one();
        }
    }

    /// How long all local workloads could go on if no certificate were issued any more. None without any.
    #[must_use]
    pub fn outage_budget(&self) -> Option<Duration> {
        let now = self.shared().options.clock.now();
        self.shared().state.lock().schedule.first_expiry(now)
    }

    /// What is held, for dumps, by identity.
    #[must_use]
    pub fn list(&self) -> Vec<CertificateSummary> {
        let shared = self.shared();
        let now = shared.options.clock.now();
        let state = shared.state.lock();
        let mut all: Vec<_> = state
            .schedule
            .identities()
            .map(|identity| summary::of(&state, identity, now))
            .collect();
        all.sort_by(|one, other| one.identity.cmp(&other.identity));
        all
    }
}

impl fmt::Debug for SecretManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held = self.shared().state.lock().slots.len();
        f.debug_struct("SecretManager")
            .field("identities", &held)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn now(&self) -> Now {
        Now {
            wall: self.options.clock.now(),
            monotonic: Instant::now().into_std(),
        }
    }

    /// Nobody needs the certificate any more, nor its key. Called under the lock of the state, so that what is asked for
    /// again meanwhile is not forgotten.
    fn forget(&self, identity: &Identity) {
        self.metrics.forgotten(identity);
        self.ca.forget(identity);
    }

    /// Notes the use of an identity; yields its certificate when there is nothing to wait for.
    fn touch(&self, identity: &Identity) -> Result<Option<Arc<WorkloadCertificate>>, CertificateError> {
        let now = self.options.clock.now();
        let mut state = self.state.lock();
        if !state.schedule.touch(identity) {
            return Err(CertificateError::Unavailable {
                identity: identity.clone(),
                last: None,
            });
        }
        Ok(state.slots.entry(identity.clone()).or_default().valid(now))
    }

    fn look(&self, identity: &Identity, deadline: Instant) -> Look {
        let now = self.now();
        let mut state = self.state.lock();
        let pause = state.schedule.pause_left(identity, now);
        let slot = state.slots.entry(identity.clone()).or_default();
        if let Some(certificate) = slot.valid(now.wall) {
            return Look::Valid(certificate);
        }
        match pause {
            Some(pause) if Instant::now() + pause >= deadline => Look::Hopeless(slot.missing(identity)),
            _ => Look::Wait(Arc::clone(&slot.ended)),
        }
    }

    fn last_look(&self, identity: &Identity) -> Result<Arc<WorkloadCertificate>, CertificateError> {
        let now = self.options.clock.now();
        let mut state = self.state.lock();
        let slot = state.slots.entry(identity.clone()).or_default();
        slot.valid(now).ok_or_else(|| slot.missing(identity))
    }
}

/// Counts a caller as waiting for as long as it lives, also when its future is dropped.
struct Waiting<'a> {
    shared: &'a Shared,
    identity: &'a Identity,
    priority: Priority,
}

impl<'a> Waiting<'a> {
    fn begin(shared: &'a Shared, identity: &'a Identity, priority: Priority) -> Self {
        shared.state.lock().schedule.wait(identity, priority);
        shared.wake.notify_one();
        Self {
            shared,
            identity,
            priority,
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.shared
            .state
            .lock()
            .schedule
            .leave(self.identity, self.priority);
    }
}

#[cfg(test)]
mod tests;
