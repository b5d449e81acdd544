//! Copies of requests: each goes its own way, with one try, and nobody waits for it. What guards the backend that a copy
//! goes to judges the copy, as it judges a request that is sent there.

use std::sync::Arc;

use tulle_model::route::Timeouts;
use tulle_model::{Reason, RequestHead};

use super::{Exchange, Place};
use crate::filter::mirror;
use crate::http::aim::{Aim, Draws};
use crate::http::body::RequestBody;
use crate::http::hygiene::Admitted;
use crate::http::respond::Reply;
use crate::http::routing::Drawn;
use crate::http::send::{Sending, Wants};
use crate::http::tries::Tries;
use crate::upstream::backend::Backend;
use crate::upstream::timeout::Deadline;

/// How a copy ended.
const SENT: &str = "sent";
const FAILED: &str = "failed";
const TIMEOUT: &str = "timeout";
/// Policies refused it, or what was left of it.
const DENIED: &str = "denied";
/// Too many others were on their way.
const DROPPED: &str = "dropped";

impl Exchange<'_> {
    /// Sends copies where the rule says, and hands the body back that feeds them. Nobody waits for a copy.
    pub(super) fn mirror(
        &self,
        draws: &Draws<'_>,
        admitted: &Admitted,
        incoming: RequestBody,
    ) -> RequestBody {
        let Draws {
            place,
            way,
            source,
            passed,
            ..
        } = *draws;
        let drawn = way.rule.iter().flat_map(|rule| {
            let mirrors = rule.mirrors.iter();
            let drawn = mirrors.filter(|mirror| mirror.share.draws(rand::random()));
            drawn.filter_map(|mirror| mirror.backend.as_ref().filter(|backend| rule.may_use(backend)))
        });
        let wanted: Vec<_> = drawn.cloned().collect();
        // A stream of bytes has two ends and no copies.
        if wanted.is_empty() || admitted.upgrade.is_some() {
            return incoming;
        }
        let (body, copies) = incoming.teed(wanted.len());
        for (backend, copy) in wanted.into_iter().zip(copies) {
            let Ok(permit) = Arc::clone(&self.waypoint.mirrors).try_acquire_owned() else {
                self.waypoint.metrics.mirrored(DROPPED);
                continue;
            };
            let place = Place {
                snapshot: Arc::clone(&place.snapshot),
                front: Arc::clone(&place.front),
                port: Arc::clone(&place.port),
            };
            let (way, asked) = (way.clone(), admitted.head.clone());
            let (source, passed) = (source.clone(), passed.clone());
            let (waypoint, arrival) = (Arc::clone(self.waypoint), self.arrival.clone());
            let record = Arc::clone(self.record);
            let (id, grpc, takes_trailers) = (self.id.clone(), self.grpc, admitted.takes_trailers);
            tulle_runtime::tasks::spawn("mirror", async move {
                let _permit = permit;
                let exchange = Exchange {
                    waypoint: &waypoint,
                    arrival: &arrival,
                    id,
                    grpc,
                    record: &record,
                    aside: None,
                    start: waypoint.clock.now(),
                    fault: None,
                };
                let draws = Draws {
                    exchange: &exchange,
                    place: &place,
                    way: &way,
                    asked: &asked,
                    source: &source,
                    passed: &passed,
                    session: None,
                };
                let wants = Wants {
                    trailers: takes_trailers,
                    ..Wants::default()
                };
                let copying = exchange.copy(&draws, wants, backend, copy);
                let outcome = match tokio::time::timeout(mirror::LIFE_MAX, copying).await {
                    Ok(outcome) => outcome,
                    Err(_) => TIMEOUT,
                };
                waypoint.metrics.mirrored(outcome);
            });
        }
        body
    }

    /// Sends one copy, and says how it ended.
    async fn copy(
        &self,
        draws: &Draws<'_>,
        wants: Wants<'_>,
        backend: Arc<Backend>,
        mut copy: RequestBody,
    ) -> &'static str {
        let to = Drawn {
            backend: Arc::clone(&backend),
            weighted: None,
        };
        let (head, passed) = match draws.judge(&to, &mut copy).await {
            Ok((head, passed)) => (head.into_owned(), passed),
            Err(reply) => {
                let (code, token) = (reply.reason.code(), reply.reason.token());
                tracing::debug!(code, token, policy = reply.because.as_deref(), "no copy");
                return DENIED;
            }
        };
        let head = RequestHead {
            authority: mirror::shadow(&head.authority).into(),
            ..head
        };
        let (tries, parent) = (Tries::plain(), &draws.place.port.backend);
        let deadline = Deadline::new(&Timeouts::default(), None, self.start);
        let sending = Sending {
            once: true,
            record: None,
            wants,
            ..self.sending(draws.place, tries, parent, deadline)
        };
        let sent = async {
            let answer = sending.run(&mut Aim::at(backend, head), copy).await?;
            http_body_util::BodyExt::collect(answer.into_body())
                .await
                .map_err(|_| Reason::UpstreamReset)?;
            Ok::<_, Reply>(())
        };
        let denied = draws.open(&to, &passed).ended(Arc::clone(self.waypoint));
        tokio::select! {
            sent = sent => sent.map_or(FAILED, |()| SENT),
            _ = denied => DENIED,
        }
    }
}
