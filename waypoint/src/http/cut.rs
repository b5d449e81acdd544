//! What ends an answer that is on its way when policies deny it. An answer that is there at once is over before anybody
//! could, and costs nothing for it: what watches policies is made when an answer is waited for.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tulle_model::Reason;

use super::record::Record;
use crate::policy::live::Open;

/// Ready when policies deny what is open.
pub struct Cut(State);

enum State {
    /// Nobody has waited so far. The record has what is known of the request.
    Unwatched(Arc<Record>),
    /// One allocation for an answer that is waited for.
    Watched(Pin<Box<dyn Future<Output = ()> + Send>>),
}

impl Cut {
    /// What ends the answer to the request of this record, which policies have let pass as this.
    #[must_use]
    pub fn of(record: &Arc<Record>, open: Open) -> Self {
        record.passed(open);
        Self(State::Unwatched(Arc::clone(record)))
    }
}

impl Future for Cut {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let State::Unwatched(record) = &self.0 {
            let record = Arc::clone(record);
            self.0 = State::Watched(Box::pin(denied(record)));
        }
        match &mut self.0 {
            State::Unwatched(_) => Poll::Pending,
            State::Watched(watching) => watching.as_mut().poll(cx),
        }
    }
}

async fn denied(record: Arc<Record>) {
    let Some(open) = record.take_open() else {
        return std::future::pending().await;
    };
    let (waypoint, id) = (Arc::clone(record.waypoint()), record.id().clone());
    drop(record);
    let ended = open.ended(Arc::clone(&waypoint)).await;
    let reason = Reason::PolicyChanged;
    waypoint.metrics.replied(reason);
    let (code, token) = (reason.code(), reason.token());
    tracing::info!(?id, ?ended, code, token, "answer cut");
}

impl fmt::Debug for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cut")
    }
}
