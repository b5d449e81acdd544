//! Requests and streams that are open are judged again when policies change, by what was known of them when they came: by
//! the policies of what was asked for, and by those of the backend that it goes to.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::BoxFuture;
use http::HeaderValue;
use tokio::sync::watch;
use tokio::time::sleep;
use tulle_model::Str;
use tulle_model::policy::authz::{Attributes, Denial, Verdict};
use tulle_model::request::{Destination, RequestHead, Source};
use tulle_model::waypoint::FrontOf;

use super::ask::BEGINS;
use super::ext_authz::Subject;
use super::jwt::token::Claims;
use super::rules::{Decider, Rules};
use crate::context::Waypoint;
use crate::snapshot::{FrontState, Snapshot, View};
use crate::spare;
use crate::upstream::backend::{Backend, BackendKey};

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
    /// The id of the request.
    pub id: HeaderValue,
    /// Waypoints it has passed, this one included.
    pub hops: u8,
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
    /// The id of the request.
    pub id: &'a str,
    /// Waypoints it has passed, this one included.
    pub hops: u8,
}

/// What the token of a request says.
#[derive(Debug, Clone, Copy)]
pub enum Said<'a> {
    /// This, or nothing where there is none.
    Claims(Option<&'a Claims>),
    /// Not yet: it is being verified.
    Unverified,
}

/// Those who decide about it now and did not before, each with the policy that says so.
pub type Unasked = Vec<(Str, Decider)>;

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
    /// Who asked may not see any more what was asked for.
    Hidden,
    /// A policy that is needed now has not arrived.
    Pending(Str),
    /// A policy would have somebody else decide, and nobody can be asked about what is not read.
    Unasked(Str),
    /// Somebody who decides by this policy now refuses it, or does not answer.
    Refused(Str),
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
            let (asked, passed) = self.parts();
            let judged = passed.judge(asked, &waypoint.view.load());
            let ended = match judged {
                Err(ended) => Some(ended),
                Ok(unasked) => asked.ask(&waypoint, unasked).await,
            };
            if let Some(ended) = ended {
                return ended;
            }
        }
    }

    fn parts(&mut self) -> (Asked<'_>, &mut Passed) {
        let asked = Asked {
            front: &self.front,
            route: self.route.as_deref(),
            source: &self.source,
            destination: self.destination,
            head: self.head.as_ref(),
            sni: self.sni.as_deref(),
            id: self.id.to_str().unwrap_or_default(),
            hops: self.hops,
        };
        (asked, &mut self.passed)
    }
}

impl Ended {
    /// The policy that decides.
    #[must_use]
    pub fn policy(&self) -> Option<&Str> {
        match self {
            Self::Hidden => None,
            Self::Denied(denial) => denial.policy(),
            Self::Pending(policy) | Self::Unasked(policy) | Self::Refused(policy) => Some(policy),
        }
    }
}

impl Passed {
    /// Judges it by what a snapshot says. What nobody fronts any more is drained elsewhere, not cut here. What is to be
    /// asked is told once.
    ///
    /// # Errors
    /// Why it ends.
    pub fn judge(&mut self, asked: Asked<'_>, snapshot: &Snapshot) -> Result<Unasked, Ended> {
        let Some(front) = snapshot.front(asked.front) else {
            return Ok(Unasked::new());
        };
        asked.sees(front)?;
        let port = front.port(asked.destination.address.port());
        let rules = port.map(|port| port.policies_of(asked.route));
        let said = Said::Claims(self.claims.as_deref());
        let mut unasked = asked.judge(front, rules, &mut self.rules, said)?;
        if let Some((front, port)) = snapshot.behind(&self.backend.key, asked.front) {
            let rules = port.policies_as_backend();
            let known = self.behind.get_or_insert_default();
            let said = Said::Claims(self.claims_behind.as_deref());
            unasked.extend(asked.judge(front, Some(rules), known, said)?);
        }
        Ok(unasked)
    }
}

impl Asked<'_> {
    /// Whether who asked may still see what was asked for.
    fn sees(self, front: &FrontState) -> Result<(), Ended> {
        let sees = front.is_visible_from(self.source);
        sees.then_some(()).ok_or(Ended::Hidden)
    }

    /// Judges it by the rules of one place, if they are others than those it has passed there.
    fn judge(
        self,
        front: &FrontState,
        rules: Option<&Arc<Rules>>,
        known: &mut Arc<Rules>,
        said: Said<'_>,
    ) -> Result<Unasked, Ended> {
        if let Some(missing) = front.missing.first() {
            return Err(Ended::Pending(missing.clone()));
        }
        let Some(rules) = rules.filter(|rules| !Arc::ptr_eq(rules, known)) else {
            return Ok(Unasked::new());
        };
        let before = std::mem::replace(known, Arc::clone(rules));
        let attributes = self.attributes(said);
        let unasked = match self.head {
            Some(_) => rules.deciders_since(&before, &attributes),
            None => Unasked::new(),
        };
        if self.head.is_none() {
            let asks = rules.authorizer.asks(&attributes).next();
            let policy = asks.map(|(matched, _)| matched.policy);
            let policy = policy.or_else(|| rules.ask_nobody().err().map(|(_, policy)| policy));
            if let Some(policy) = policy {
                return Err(Ended::Unasked(policy));
            }
        }
        match rules.authorizer.check(&attributes) {
            Verdict::Allow(_) => Ok(unasked),
            Verdict::Deny(denial) => Err(Ended::Denied(denial)),
        }
    }

    fn attributes<'a>(&'a self, said: Said<'a>) -> Attributes<'a> {
        match (self.head, said) {
            (Some(head), Said::Claims(claims)) => {
                let token = claims.map(|claims| &claims.token);
                Attributes::of_request(self.source, self.destination, head, token)
            }
            (Some(head), Said::Unverified) => Attributes::before_tokens(self.source, self.destination, head),
            (None, _) => Attributes::of_stream(self.source, self.destination, self.sni),
        }
    }

    /// Asks those who decide about it now; says why it ends, if one of them does not let it pass.
    pub async fn ask(self, waypoint: &Waypoint, unasked: Unasked) -> Option<Ended> {
        let head = self.head.filter(|_| !unasked.is_empty())?;
        for (policy, decider) in unasked {
            let subject = Subject {
                source: self.source,
                destination: self.destination,
                head,
                id: self.id,
                // It has gone by.
                body: &[],
                now: now(),
                hops: self.hops,
            };
            let passes = waypoint.policies.ask_again(&policy, &decider, waypoint, subject);
            if !passes.await {
                return Some(Ended::Refused(policy));
            }
        }
        None
    }
}

/// A request that is held back before it goes anywhere: by who verifies its token, decides about it or counts it, or on
/// purpose.
#[derive(Debug, Clone, Copy)]
pub struct Held<'a> {
    /// Where newer snapshots are seen.
    pub view: &'a View,
    /// What it is judged by so far.
    pub by: &'a Snapshot,
    /// What was asked for.
    pub front: &'a FrontOf,
    /// Name of the route that was chosen.
    pub route: Option<&'a str>,
    /// The backend whose policies it is held by, if it is not held by those of what was asked for.
    pub backend: Option<Behind<'a>>,
}

/// A backend with policies of its own.
#[derive(Debug, Clone, Copy)]
pub struct Behind<'a> {
    /// The backend.
    pub key: &'a BackendKey,
    /// What the token of the request says to the policies of what was asked for.
    pub claims: Option<&'a Claims>,
}

impl Held<'_> {
    /// Waits until policies deny it, which may be never. `said` is what the policies which hold it go by.
    pub async fn ended(
        &self,
        (source, destination): (&Source, Destination),
        head: &RequestHead,
        said: Said<'_>,
    ) -> Ended {
        let mut changes = self.view.subscribe();
        if !std::ptr::eq(&*self.view.load(), self.by) {
            changes.mark_changed();
        }
        let asked = Asked {
            front: self.front,
            route: self.route,
            source,
            destination,
            head: Some(head),
            sni: None,
            // By these somebody would be asked, and nobody is.
            id: "",
            hops: BEGINS,
        };
        loop {
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
            sleep(PAUSE).await;
            changes.mark_unchanged();
            if let Err(ended) = self.judge(asked, said, &self.view.load()) {
                return ended;
            }
        }
    }

    /// By DENY and ALLOW: who else decides is asked before it goes anywhere.
    fn judge(&self, asked: Asked<'_>, said: Said<'_>, snapshot: &Snapshot) -> Result<(), Ended> {
        let number = asked.destination.address.port();
        let port = |snapshot: &Snapshot| -> Option<(Arc<FrontState>, Arc<Rules>)> {
            let front = snapshot.front(self.front)?;
            let rules = front.port(number)?.policies_of(self.route);
            Some((Arc::clone(front), Arc::clone(rules)))
        };
        let of_front = self.backend.map_or(said, |behind| Said::Claims(behind.claims));
        if let (Some((_, mut known)), Some((front, rules))) = (port(self.by), port(snapshot)) {
            asked.sees(&front)?;
            asked.judge(&front, Some(&rules), &mut known, of_front)?;
        }
        let Some(Behind { key, .. }) = self.backend else {
            return Ok(());
        };
        let (before, after) = (self.by.behind(key, self.front), snapshot.behind(key, self.front));
        if let (Some((_, before)), Some((front, after))) = (before, after) {
            let mut known = Arc::clone(before.policies_as_backend());
            asked.judge(front, Some(after.policies_as_backend()), &mut known, said)?;
        }
        Ok(())
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
    pub async fn keep<'j, F: Future>(
        &mut self,
        mut doing: Pin<&mut F>,
        judge: impl Fn(Arc<Snapshot>) -> BoxFuture<'j, Option<Ended>>,
    ) -> Result<F::Output, Ended> {
        if self.changes.has_changed().unwrap_or_default() {
            self.look(&judge).await.map_or(Ok(()), Err)?;
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
                () = gathering => {}
            }
            let judging = self.look(&judge);
            tokio::select! {
                biased;
                done = doing.as_mut() => return Ok(done),
                ended = judging => ended.map_or(Ok(()), Err)?,
            }
        }
    }

    /// What is looked at is marked as seen before the look, so that what comes after it is another change.
    fn look<'j>(
        &mut self,
        judge: &impl Fn(Arc<Snapshot>) -> BoxFuture<'j, Option<Ended>>,
    ) -> BoxFuture<'j, Option<Ended>> {
        self.changes.mark_unchanged();
        judge(self.view.load())
    }
}

/// Seconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
