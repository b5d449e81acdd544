//! Where the tries of a request go: a backend that is drawn and judged, and what the request looks like there. A retry
//! draws again; what it draws is judged before any byte goes there. What is under way is judged again when policies change.

use std::borrow::Cow;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tulle_model::RequestHead;
use tulle_model::request::Source;

use super::body::RequestBody;
use super::exchange::{Exchange, Place};
use super::respond::Reply;
use super::routing::{Drawn, Way};
use crate::policy::engine::Passed;
use crate::policy::live::{self, Ended, Open};
use crate::snapshot::Snapshot;
use crate::upstream::backend::Backend;
use crate::upstream::connect;

/// What a backend is drawn by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Draws<'a> {
    pub(super) exchange: &'a Exchange<'a>,
    pub(super) place: &'a Place,
    pub(super) way: &'a Way,
    /// The request as it came: what filters and policies see.
    pub(super) asked: &'a RequestHead,
    /// Who asks.
    pub(super) source: &'a Source,
    /// What the policies of what was asked for let pass, with what they change.
    pub(super) passed: &'a Passed,
    /// The endpoint of the client's session: it stays with the backend that has it.
    pub(super) session: Option<u128>,
}

/// Where tries go now.
#[derive(Debug)]
pub(super) struct Aim<'a> {
    /// `None` where there is nothing to draw.
    draws: Option<Draws<'a>>,
    drawn: Drawn,
    /// What came, unless something makes another request of it.
    head: Cow<'a, RequestHead>,
    passed: Passed,
    /// What it has passed since, where policies have changed.
    again: Mutex<Option<live::Passed>>,
}

impl<'a> Aim<'a> {
    /// At one backend, whatever happens.
    pub(super) fn at(backend: Arc<Backend>, head: RequestHead) -> Self {
        Self {
            draws: None,
            drawn: Drawn {
                backend,
                weighted: None,
            },
            head: Cow::Owned(head),
            passed: Passed::default(),
            again: Mutex::default(),
        }
    }

    /// At the backend that is drawn first, after its own policies let the request pass.
    ///
    /// # Errors
    /// The reply that it gets instead.
    pub(super) async fn draw(draws: Draws<'a>, body: &mut RequestBody) -> Result<Self, Reply> {
        let drawn = draws.way.draw(&draws.place.port, draws.session)?;
        let (head, passed) = draws.judge(&drawn, body).await?;
        Ok(Self {
            draws: Some(draws),
            drawn,
            head,
            passed,
            again: Mutex::default(),
        })
    }

    /// What may be turned to for another try; what there is now where nothing is drawn.
    ///
    /// # Errors
    /// If what is drawn cannot be used.
    pub(super) fn redraw(&self) -> Result<Drawn, Reply> {
        match &self.draws {
            Some(draws) => draws.way.draw(&draws.place.port, draws.session),
            None => Ok(self.drawn.clone()),
        }
    }

    /// Whether another draw may bring something else.
    pub(super) fn varies(&self) -> bool {
        self.draws
            .as_ref()
            .is_some_and(|draws| draws.way.has_choice() && draws.session.is_none())
    }

    /// Turns to what was drawn. The policies of a backend that was not asked before are asked now.
    ///
    /// # Errors
    /// The reply that the request gets instead.
    pub(super) async fn turn_to(&mut self, drawn: Drawn, body: &mut RequestBody) -> Result<(), Reply> {
        if let Some(draws) = self.draws.filter(|_| drawn.weighted != self.drawn.weighted) {
            (self.head, self.passed) = draws.judge(&drawn, body).await?;
            self.drawn = drawn;
            self.again = Mutex::default();
        }
        Ok(())
    }

    /// What was drawn.
    pub(super) fn drawn(&self) -> &Drawn {
        &self.drawn
    }

    /// The request as it goes there.
    pub(super) fn head(&self) -> &RequestHead {
        &self.head
    }

    /// The request as it came, for what decides by it.
    pub(super) fn asked(&self) -> &RequestHead {
        self.draws.map_or(&self.head, |draws| draws.asked)
    }

    /// What passed, with what changes the answer.
    pub(super) fn passed(&self) -> &Passed {
        &self.passed
    }

    /// Why it ends by what a snapshot says, if it does. A copy is judged by who sends it.
    pub(super) fn judge_again(&self, snapshot: Arc<Snapshot>) -> BoxFuture<'_, Option<Ended>> {
        Box::pin(async move {
            let draws = self.draws.as_ref()?;
            let asked = draws.as_asked();
            let judged = {
                let mut again = self.again.lock();
                let passed = again.get_or_insert_with(|| draws.let_pass(&self.drawn, &self.passed));
                passed.judge(asked, &snapshot)
            };
            match judged {
                Err(ended) => Some(ended),
                Ok(unasked) => asked.ask(draws.exchange.waypoint(), unasked).await,
            }
        })
    }

    /// The policies that let it pass to where it went.
    pub(super) fn let_pass(&self, draws: &Draws<'_>) -> live::Passed {
        let again = self.again.lock().take();
        again.unwrap_or_else(|| draws.let_pass(&self.drawn, &self.passed))
    }
}

impl<'a> Draws<'a> {
    /// What is known of a request on its way to what was drawn, for as long as that takes.
    pub(super) fn open(&self, drawn: &Drawn, passed: &Passed) -> Open {
        let live::Asked {
            front,
            source,
            destination,
            hops,
            ..
        } = self.as_asked();
        Open {
            front: front.clone(),
            route: self.way.name().cloned(),
            source: source.clone(),
            destination,
            head: Some(self.asked.clone()),
            sni: None,
            id: self.exchange.id().clone(),
            hops,
            passed: self.let_pass(drawn, passed),
        }
    }

    /// The policies that let it pass to what was drawn.
    pub(super) fn let_pass(&self, drawn: &Drawn, passed: &Passed) -> live::Passed {
        let (place, backend) = (self.place, &drawn.backend);
        let route = self.way.name().map(|name| &**name);
        let behind = place
            .snapshot
            .behind(&backend.key, &self.exchange.arrival().front);
        live::Passed {
            rules: Arc::clone(place.port.policies_of(route)),
            claims: self.passed.claims.clone(),
            backend: Arc::clone(backend),
            behind: behind.map(|(_, port)| Arc::clone(port.policies_as_backend())),
            claims_behind: passed.claims.clone(),
        }
    }

    fn as_asked(&self) -> live::Asked<'a> {
        let arrival = self.exchange.arrival();
        live::Asked {
            front: &arrival.front,
            route: self.way.name().map(|name| &**name),
            source: self.source,
            destination: arrival.destination,
            head: Some(self.asked),
            sni: None,
            id: self.exchange.id().to_str().unwrap_or_default(),
            hops: connect::hops(arrival),
        }
    }

    /// Judges the request by the policies of a backend, and makes of it what goes there. Filters see what came; what
    /// policies change comes on top of what they make of it.
    ///
    /// # Errors
    /// The reply that it gets instead.
    pub(super) async fn judge(
        &self,
        drawn: &Drawn,
        body: &mut RequestBody,
    ) -> Result<(Cow<'a, RequestHead>, Passed), Reply> {
        let (exchange, mut passed) = (self.exchange, self.passed.clone());
        let guarding = exchange.guarding(self.place, &drawn.backend)?;
        if guarding.is_none() && !self.way.changes(drawn) && passed.leaves_request() {
            return Ok((Cow::Borrowed(self.asked), passed));
        }
        let mut head = self.asked.clone();
        if let Some(port) = guarding {
            let of = (&drawn.backend.key, port);
            exchange
                .police_backend(self, of, (&mut head, body), &mut passed)
                .await?;
        }
        let mut head = self.way.changed(drawn, head);
        passed.change_request(&mut head);
        Ok((Cow::Owned(head), passed))
    }
}
