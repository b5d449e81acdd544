//! Requests and streams that are open are judged again when policies change, by what was known of them when they came: by
//! the policies of what was asked for, and by those of the backend that it goes to.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;
use tulle_model::Str;
use tulle_model::policy::authz::{Attributes, Denial, Verdict};
use tulle_model::request::{Destination, RequestHead, Source};
use tulle_model::waypoint::FrontOf;

use super::jwt::token::Claims;
use super::rules::Rules;
use crate::context::Waypoint;
use crate::snapshot::{FrontState, Snapshot, View};
use crate::spare;
use crate::upstream::backend::Backend;

/// How long changes are gathered before open streams are judged. What is denied ends within a second.
const PAUSE: Duration = Duration::from_millis(400);

/// What is known of an open request or stream.
#[derive(Debug)]
pub struct Open {
    /// What was asked for.
    pub front: FrontOf,
    /// Name of the route that was chosen.
    pub route: Option<Str>,
    /// Who asked.
    pub source: Source,
    /// For what.
    pub destination: Destination,
    /// The request; `None` for a stream that is not read.
    pub head: Option<RequestHead>,
    /// The server name it asked for.
    pub sni: Option<String>,
    /// What it passed.
    pub passed: Passed,
}

/// What was asked, as it is judged again.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// What was asked for.
    pub front: &'a FrontOf,
    /// Name of the route that was chosen.
    pub route: Option<&'a str>,
    /// Who asked.
    pub source: &'a Source,
    /// For what.
    pub destination: Destination,
    /// The request; `None` for a stream that is not read.
    pub head: Option<&'a RequestHead>,
    /// The server name it asked for.
    pub sni: Option<&'a str>,
}

/// The policies that let it pass.
#[derive(Debug)]
pub struct Passed {
    /// Those of what was asked for.
    pub rules: Arc<Rules>,
    /// What its token says to them.
    pub claims: Option<Arc<Claims>>,
    /// Where it goes.
    pub backend: Arc<Backend>,
    /// Those of the backend, where it is guarded by some of its own.
    pub behind: Option<Arc<Rules>>,
    /// What its token says to those.
    pub claims_behind: Option<Arc<Claims>>,
}

impl Drop for Open {
    /// The map of its fields serves another request.
    fn drop(&mut self) {
        if let Some(head) = self.head.take() {
            spare::give_headers(head.headers);
        }
    }
}

/// Why an open request or stream ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// A policy denies it now.
    Denied(Denial),
    /// A policy that is needed now has not arrived.
    Pending(Str),
    /// A policy would have somebody else decide, and nobody can be asked about what is not read.
    Unasked(Str),
}

impl Open {
    /// Waits until policies deny it, which may be never.
    pub async fn ended(mut self, waypoint: Arc<Waypoint>) -> Ended {
        let mut changes = waypoint.view.subscribe();
        // What changed between its verdict and now is not missed.
        changes.mark_changed();
        loop {
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
            sleep(PAUSE).await;
            changes.mark_unchanged();
            if let Some(ended) = self.judge(&waypoint.view.load()) {
                return ended;
            }
        }
    }

    fn judge(&mut self, snapshot: &Snapshot) -> Option<Ended> {
        let asked = Asked {
            front: &self.front,
            route: self.route.as_deref(),
            source: &self.source,
            destination: self.destination,
            head: self.head.as_ref(),
            sni: self.sni.as_deref(),
        };
        self.passed.judge(asked, snapshot)
    }
}

impl Ended {
    /// The policy that decides.
    #[must_use]
    pub fn policy(&self) -> Option<&Str> {
        match self {
            Self::Denied(denial) => denial.policy(),
            Self::Pending(policy) | Self::Unasked(policy) => Some(policy),
        }
    }
}

impl Passed {
    /// Why it ends by what a snapshot says. What nobody fronts any more is drained elsewhere, not cut here.
    pub fn judge(&mut self, asked: Asked<'_>, snapshot: &Snapshot) -> Option<Ended> {
        let front = snapshot.front(asked.front)?;
        let port = front.port(asked.destination.address.port());
        let rules = port.map(|port| port.policies_of(asked.route));
        let ended = asked.judge(front, rules, &mut self.rules, self.claims.as_deref());
        if ended.is_some() {
            return ended;
        }
        let (front, port) = snapshot.behind(&self.backend.key, asked.front)?;
        let rules = port.policies_as_backend();
        let known = self.behind.get_or_insert_default();
        asked.judge(front, Some(rules), known, self.claims_behind.as_deref())
    }
}

impl Asked<'_> {
    /// Judges it by the rules of one place, if they are others than those it has passed there.
    fn judge(
        self,
        front: &FrontState,
        rules: Option<&Arc<Rules>>,
        known: &mut Arc<Rules>,
        claims: Option<&Claims>,
    ) -> Option<Ended> {
        if let Some(missing) = front.missing.first() {
            return Some(Ended::Pending(missing.clone()));
        }
        let rules = rules.filter(|rules| !Arc::ptr_eq(rules, known))?;
        *known = Arc::clone(rules);
        let token = claims.map(|claims| &claims.token);
        let attributes = match self.head {
            Some(head) => Attributes::of_request(self.source, self.destination, head, token),
            None => Attributes::of_stream(self.source, self.destination, self.sni),
        };
        if self.head.is_none() {
            let asks = rules.authorizer.asks(&attributes).next();
            let unasked = asks.map(|(matched, _)| matched.policy);
            let unasked = unasked.or_else(|| rules.ask_nobody().err().map(|(_, policy)| policy));
            if let Some(policy) = unasked {
                return Some(Ended::Unasked(policy));
            }
        }
        match rules.authorizer.check(&attributes) {
            Verdict::Allow(_) => None,
            Verdict::Deny(denial) => Some(Ended::Denied(denial)),
        }
    }
}

/// Looks out for changes while something is done that policies have let pass.
#[derive(Debug)]
pub struct Vigil<'a> {
    view: &'a View,
    changes: watch::Receiver<u64>,
}

impl<'a> Vigil<'a> {
    /// For what was decided by this snapshot. If there is a newer one, that is a change.
    #[must_use]
    pub fn begin(view: &'a View, decided_by: &Snapshot) -> Self {
        let mut changes = view.subscribe();
        if !std::ptr::eq(&*view.load(), decided_by) {
            changes.mark_changed();
        }
        Self { view, changes }
    }

    /// Does something until it is done, unless the judge says why it ends. What has changed before is judged before
    /// anything is done; while nothing changes, nothing is judged.
    ///
    /// # Errors
    /// Why it ends.
    pub async fn keep<F: Future>(
        &mut self,
        mut doing: Pin<&mut F>,
        judge: impl Fn(&Snapshot) -> Option<Ended>,
    ) -> Result<F::Output, Ended> {
        if self.changes.has_changed().unwrap_or_default() {
            self.judge(&judge)?;
        }
        loop {
            tokio::select! {
                biased;
                done = doing.as_mut() => return Ok(done),
                _ = self.changes.changed() => {}
            }
            // Few wait while something changes: the others have no room for this.
            let gathering = Box::pin(sleep(PAUSE));
            tokio::select! {
                biased;
                done = doing.as_mut() => return Ok(done),
                () = gathering => self.judge(&judge)?,
            }
        }
    }

    fn judge(&mut self, judge: impl Fn(&Snapshot) -> Option<Ended>) -> Result<(), Ended> {
        // Before the look, so that what comes after it is another change.
        self.changes.mark_unchanged();
        judge(&self.view.load()).map_or(Ok(()), Err)
    }
}
