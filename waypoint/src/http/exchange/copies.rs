//! Copies of requests: each goes its own way, with one try, and nobody waits for it.

use std::sync::Arc;

use tulle_model::route::Timeouts;
use tulle_model::{Reason, RequestHead};

use super::{Exchange, Place};
use crate::filter::mirror;
use crate::http::aim::Aim;
use crate::http::body::RequestBody;
use crate::http::hygiene::Admitted;
use crate::http::respond::Reply;
use crate::http::routing::Way;
use crate::http::send::{Sending, Wants};
use crate::http::tries::Tries;
use crate::upstream::timeout::Deadline;

impl Exchange<'_> {
    /// Sends copies where the rule says, and hands the body back that feeds them. Nobody waits for a copy.
    pub(super) fn mirror(
        &self,
        place: &Place,
        way: &Way,
        head: &RequestHead,
        admitted: &Admitted,
        incoming: RequestBody,
    ) -> RequestBody {
        let mirrors = way.rule.iter().flat_map(|rule| &rule.mirrors);
        let drawn = mirrors.filter(|mirror| mirror.share.draws(rand::random()));
        let wanted: Vec<_> = drawn.filter_map(|mirror| mirror.backend.clone()).collect();
        // A stream of bytes has two ends and no copies.
        if wanted.is_empty() || admitted.upgrade.is_some() {
            return incoming;
        }
        let (body, copies) = incoming.teed(wanted.len());
        for (backend, copy) in wanted.into_iter().zip(copies) {
            let Ok(permit) = Arc::clone(&self.waypoint.mirrors).try_acquire_owned() else {
                self.waypoint.metrics.mirrored("dropped");
                continue;
            };
            let head = RequestHead {
                authority: mirror::shadow(&head.authority).into(),
                ..head.clone()
            };
            let place = Place {
                snapshot: Arc::clone(&place.snapshot),
                front: Arc::clone(&place.front),
                port: Arc::clone(&place.port),
            };
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
                let copying = async {
                    let (tries, parent) = (Tries::plain(), &place.port.backend);
                    let deadline = Deadline::new(&Timeouts::default(), None, exchange.start);
                    let wants = Wants {
                        trailers: takes_trailers,
                        ..Wants::default()
                    };
                    let sending = Sending {
                        once: true,
                        record: None,
                        wants,
                        ..exchange.sending(&place, tries, parent, deadline)
                    };
                    let answer = sending.run(&mut Aim::at(backend, head), copy).await?;
                    http_body_util::BodyExt::collect(answer.into_body())
                        .await
                        .map_err(|_| Reason::UpstreamReset)?;
                    Ok::<_, Reply>(())
                };
                let outcome = match tokio::time::timeout(mirror::LIFE_MAX, copying).await {
                    Ok(Ok(())) => "sent",
                    Ok(Err(_)) => "failed",
                    Err(_) => "timeout",
                };
                waypoint.metrics.mirrored(outcome);
            });
        }
        body
    }
}
