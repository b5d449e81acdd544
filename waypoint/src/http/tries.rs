//! What a rule says of tries: how long, how often, and with whom.

use std::sync::LazyLock;
use std::time::SystemTime;

use tulle_model::RequestHead;
use tulle_model::route::{Route, Timeouts};

use crate::clock::Time;
use crate::upstream::backend::Backend;
use crate::upstream::retry::RetryPolicy;
use crate::upstream::session::SessionPolicy;
use crate::upstream::timeout::{self as limits, Deadline};

/// What a rule says of tries.
#[derive(Debug, Clone)]
pub struct Tries {
    pub(super) retry: RetryPolicy,
    pub(super) timeouts: Timeouts,
    pub(super) session: Option<SessionPolicy>,
}

static PLAIN: LazyLock<Tries> = LazyLock::new(|| Tries {
    retry: RetryPolicy::new(None),
    timeouts: Timeouts::default(),
    session: None,
});

impl Tries {
    /// What a route's rule says.
    #[must_use]
    pub fn of(route: &Route) -> Self {
        Self {
            retry: RetryPolicy::new(route.retry.as_ref()),
            timeouts: route.timeouts.clone(),
            session: route.session.as_ref().and_then(SessionPolicy::new),
        }
    }

    /// The endpoint that a request's session is with, as far as the rule or the backend that is asked for keeps one.
    #[must_use]
    pub fn session_of(&self, backend: &Backend, head: &RequestHead) -> Option<u128> {
        let policy = self.session.clone().or_else(|| backend.session())?;
        let token = policy.read(&head.headers, unix_now())?;
        Some(token.fingerprint)
    }

    /// When a request that began then has to be over.
    #[must_use]
    pub fn deadline(&self, head: &RequestHead, start: Time) -> Deadline {
        let grpc = head
            .is_grpc()
            .then(|| limits::grpc_timeout(&head.headers))
            .flatten();
        Deadline::new(&self.timeouts, grpc, start)
    }

    /// What holds where no rule says anything.
    #[must_use]
    pub fn plain() -> &'static Self {
        &PLAIN
    }
}

/// Seconds since 1970.
pub(super) fn unix_now() -> u32 {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
}
