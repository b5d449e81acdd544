//! Requests and streams that are open are judged again when policies change, by what was known of them when they came.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tulle_model::Str;
use tulle_model::policy::authz::{Attributes, Denial, Verdict};
use tulle_model::request::{Destination, RequestHead, Source};
use tulle_model::waypoint::FrontOf;

use super::jwt::token::Claims;
use super::rules::Rules;
use crate::context::Waypoint;
use crate::snapshot::Snapshot;
use crate::spare;

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
    /// What its token says.
    pub claims: Option<Arc<Claims>>,
    /// The server name it asked for.
    pub sni: Option<String>,
    /// The rules it passed.
    pub rules: Arc<Rules>,
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

    /// What nobody fronts any more is drained elsewhere, not cut here.
    fn judge(&mut self, snapshot: &Snapshot) -> Option<Ended> {
        let front = snapshot.front(&self.front)?;
        if let Some(missing) = front.missing.first() {
            return Some(Ended::Pending(missing.clone()));
        }
        let port = front.port(self.destination.address.port())?;
        let rules = port.policies_of(self.route.as_deref());
        if Arc::ptr_eq(rules, &self.rules) {
            return None;
        }
        self.rules = Arc::clone(rules);
        let token = self.claims.as_deref().map(|claims| &claims.token);
        let attributes = match &self.head {
            Some(head) => Attributes::of_request(&self.source, self.destination, head, token),
            None => Attributes::of_stream(&self.source, self.destination, self.sni.as_deref()),
        };
        match self.rules.authorizer.check(&attributes) {
            Verdict::Allow(_) => None,
            Verdict::Deny(denial) => Some(Ended::Denied(denial)),
        }
    }
}
