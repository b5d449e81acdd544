//! A request on its way to endpoints: *draw → pick → breaker → timer → upstream*, again where that is allowed.

mod attempt;

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::header::{HeaderName, SET_COOKIE};
use http::{HeaderMap, HeaderValue, Response};
use smallvec::SmallVec;
use tokio::time::{Instant, sleep, timeout};
use tulle_model::{Reason, RequestHead};

use super::aim::Aim;
use super::body::{RequestBody, ResponseBody};
use super::hygiene::Upgrade;
use super::hygiene::encode::FORWARDED_PROTO;
use super::record::Record;
use super::respond::{Own, Reply};
use super::routing::Drawn;
use super::tries::{Tries, unix_now};
use super::wire::Aside;
use crate::context::Waypoint;
use crate::listener::arrival::Arrival;
use crate::policy::live::{Ended, Vigil};
use crate::snapshot::{PortState, Snapshot};
use crate::upstream::backend::Backend;
use crate::upstream::breaker::Guard;
use crate::upstream::cluster::{Ask, Pick};
use crate::upstream::endpoint::EndpointState;
use crate::upstream::hash;
use crate::upstream::outcome::Outcome;
use crate::upstream::retry::replay::Replay;
use crate::upstream::retry::{Decision, Tried};
use crate::upstream::session::{SessionPolicy, Token};
use crate::upstream::timeout::{self as limits, Deadline, TryLimit};

/// A waypoint tells its clients when it was its breaker that refused.
const OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");

/// Draws of one retry, until one brings an endpoint that was not tried before.
const REDRAWS_MAX: usize = 5;

/// What a client wants beside its answer.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Wants<'a> {
    /// Trailers.
    pub(super) trailers: bool,
    /// To be told when its body is wanted.
    pub(super) word: bool,
    /// To go on as a stream of bytes.
    pub(super) upgrade: Option<Upgrade>,
    /// Where it is told of interim answers, if it can be.
    pub(super) aside: Option<&'a Arc<Aside>>,
}

/// What one request is sent by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sending<'a> {
    pub(super) waypoint: &'a Arc<Waypoint>,
    pub(super) arrival: &'a Arrival,
    pub(super) snapshot: &'a Snapshot,
    pub(super) port: &'a PortState,
    /// What was asked for: whose retries count, and who keeps sessions.
    pub(super) parent: &'a Arc<Backend>,
    pub(super) id: &'a HeaderValue,
    pub(super) wants: Wants<'a>,
    pub(super) tries: &'a Tries,
    /// Whether another try may be made at all; copies have one.
    pub(super) once: bool,
    /// When it has to be over.
    pub(super) deadline: Deadline,
    /// What it is told by; copies have none.
    pub(super) record: Option<&'a Record>,
}

/// What a try brought.
struct Brought {
    outcome: Outcome,
    /// The answer, if there is one.
    response: Option<Response<ResponseBody>>,
    /// Why there is none.
    reason: Reason,
    /// The whole request is out of time, not this try alone.
    over: bool,
}

/// An endpoint for one try.
struct Picked {
    drawn: Drawn,
    pick: Pick,
    /// What a client is told that has no cookie to be hashed by yet.
    set_cookie: Option<HeaderValue>,
}

/// What the tries of one request share.
struct State {
    replay: Replay<RequestBody>,
    tried: SmallVec<[Arc<EndpointState>; 3]>,
    token: Option<Token>,
    number: u32,
    /// The span of the try.
    span: u64,
    /// When the try began.
    started: SystemTime,
    /// Held by the try that is one too many for nobody.
    retrying: Option<Guard>,
}

impl Sending<'_> {
    /// Sends a request where `aim` points, and where it points for each further try.
    pub(super) async fn run(
        &self,
        aim: &mut Aim<'_>,
        body: RequestBody,
    ) -> Result<Response<ResponseBody>, Reply> {
        if !self.once {
            self.parent.count_request();
        }
        let session = self.tries.session.clone().or_else(|| self.parent.session());
        let mut state = State {
            replay: Replay::new(body, self.tries.retry.retries() && !self.once),
            tried: SmallVec::new(),
            token: session
                .as_ref()
                .and_then(|policy| policy.read(&aim.asked().headers, unix_now())),
            number: 1,
            span: 0,
            started: SystemTime::now(),
            retrying: None,
        };
        let mut vigil = Vigil::begin(&self.waypoint.view, self.snapshot);
        loop {
            let brought = self.one(&mut state, aim, session.as_ref(), &mut vigil).await?;
            let again = self.again(&mut state, aim, &brought)?;
            let Some(wait) = again else {
                state.replay.commit();
                return match brought.response {
                    Some(response) => Ok(response),
                    None => Err(brought.reason.into()),
                };
            };
            // What came is dropped, and its connection with it, before the wait.
            drop(brought);
            let waiting = pin!(sleep(wait));
            let aim = &*aim;
            vigil
                .keep(waiting, |snapshot| aim.judge_again(snapshot))
                .await
                .map_err(denied)?;
            state.number += 1;
        }
    }

    /// How long to wait before another try; `None` if there is none.
    fn again(&self, state: &mut State, aim: &Aim<'_>, brought: &Brought) -> Result<Option<Duration>, Reply> {
        state.retrying = None;
        if self.once || brought.over {
            return Ok(None);
        }
        let tried = Tried {
            number: state.number,
            outcome: &brought.outcome,
            method: &aim.asked().method,
            replayable: state.replay.is_replayable(),
            left: self.left(),
            random: rand::random(),
        };
        let wait = match self.tries.retry.decide(&tried) {
            Decision::Retry(wait) => wait,
            Decision::Exhausted => {
                self.note(|record| record.ended_by(Reason::RetriesExhausted, None));
                return Ok(None);
            }
            Decision::Pass => return Ok(None),
        };
        let metrics = &self.waypoint.metrics;
        if !self.parent.may_retry() {
            metrics.retried("over_budget");
            return Err(Reason::RetryBudgetSpent.into());
        }
        // The last answer can still be passed on: that is why the backend counts that gave it.
        let Some(cluster) = aim.drawn().backend.cluster() else {
            return Ok(None);
        };
        match cluster.state().breaker.retry(cluster.policy().limits) {
            Ok(guard) => state.retrying = Some(guard),
            Err(_) => {
                metrics.retried("overflow");
                return Ok(None);
            }
        }
        metrics.retried("made");
        Ok(Some(wait))
    }

    /// One try, from the pick of its endpoint to the head of its answer.
    async fn one(
        &self,
        state: &mut State,
        aim: &mut Aim<'_>,
        session: Option<&SessionPolicy>,
        vigil: &mut Vigil<'_>,
    ) -> Result<Brought, Reply> {
        let mut body = RequestBody::of_try(state.replay.next_try());
        let Picked {
            drawn,
            mut pick,
            set_cookie,
        } = self.pick(state, aim)?;
        if state.number > 1 {
            let turning = aim.turn_to(drawn, &mut body);
            match self.left() {
                Some(left) => timeout(left, turning)
                    .await
                    .map_err(|_| Reason::RequestTimeout)??,
                None => turning.await?,
            }
        }
        let backend = &aim.drawn().backend;
        self.note(|record| record.sent_to(backend));
        let (at, limits) = (backend.now(), pick.cluster().policy().limits);
        let guard = pick
            .cluster()
            .state()
            .breaker
            .request(limits)
            .map_err(|_| overflow())?;
        state.tried.push(Arc::clone(&pick.endpoint().state));
        let secure = self.is_secure(aim.asked());
        let cookies = cookies(state, &pick, (session, secure), set_cookie);
        let limit = limits::of_try(&self.tries.timeouts, &self.deadline, self.waypoint.clock.now());
        let ends = limit.limit().map(|limit| Instant::now() + limit);
        (state.span, state.started) = (rand::random::<u64>().max(1), SystemTime::now());
        let brought = {
            let aim = &*aim;
            let trying = pin!(self.attempt(state, aim, body, &pick));
            let keeping = vigil.keep(trying, |snapshot| aim.judge_again(snapshot));
            // Waited for at one point only: at two, its state would share its room with nothing else.
            within(limit.limit(), keeping).await
        };
        let brought = brought.unwrap_or_else(|| Ok(Ok(late(limit))));
        let mut brought = brought.map_err(denied)??;
        pick.settle(&brought.outcome, backend.now());
        self.note(|record| brought.tell(record, state));
        let took = backend.now().since(at);
        if let Some(response) = &mut brought.response {
            self.note(|record| record.answered_after(took));
            for (name, value) in cookies {
                response.headers_mut().append(name, value);
            }
            let held = (pick, guard, state.retrying.take());
            response.body_mut().hold(held, ends);
        }
        Ok(brought)
    }

    /// Draws a backend and picks an endpoint of it that was not tried before, if there is one.
    fn pick(&self, state: &State, aim: &Aim<'_>) -> Result<Picked, Reply> {
        let mut last = None;
        for _ in 0..=REDRAWS_MAX {
            let drawn = if state.number == 1 {
                aim.drawn().clone()
            } else {
                aim.redraw()?
            };
            let Some(cluster) = drawn.backend.cluster() else {
                return Err(Reason::BackendInvalid.into());
            };
            let hashed = hash::of(
                cluster.hash_keys(),
                aim.asked(),
                &self.arrival.source,
                rand::random(),
            );
            let ask = Ask {
                now: drawn.backend.now(),
                hash: hashed.hash,
                session: state.token.map(|token| token.fingerprint),
                tried: &state.tried,
                moves_on: false,
                address: Some(self.arrival.destination.address.ip()),
            };
            let picked = drawn.backend.pick(&ask);
            let is_new = |pick: &Pick| {
                !state
                    .tried
                    .iter()
                    .any(|one| Arc::ptr_eq(one, &pick.endpoint().state))
            };
            let is_good = picked.as_ref().is_some_and(is_new);
            last = picked
                .map(|pick| Picked {
                    drawn,
                    pick,
                    set_cookie: hashed.set_cookie,
                })
                .or(last);
            // Who hashes wants one endpoint for one key, also when it is tried again.
            if is_good || hashed.hash.is_some() || state.number == 1 || !aim.varies() {
                break;
            }
        }
        last.ok_or_else(|| Reason::NoHealthyEndpoint.into())
    }

    /// What is left of the request's time; `None` is without end.
    fn left(&self) -> Option<Duration> {
        self.deadline.left(self.waypoint.clock.now())
    }

    fn note(&self, note: impl FnOnce(&Record)) {
        if let Some(record) = self.record {
            note(record);
        }
    }

    /// Whether the client speaks TLS, as far as its gateway says so: in the mesh, applications speak in clear to their node
    /// proxies.
    fn is_secure(&self, head: &RequestHead) -> bool {
        let told = head.headers.get(FORWARDED_PROTO);
        self.arrival.is_gateway && told.is_some_and(|scheme| scheme.as_bytes().eq_ignore_ascii_case(b"https"))
    }
}

/// What the client is told so that it comes back to the same endpoint.
fn cookies(
    state: &State,
    pick: &Pick,
    (session, secure): (Option<&SessionPolicy>, bool),
    hashed: Option<HeaderValue>,
) -> SmallVec<[(HeaderName, HeaderValue); 2]> {
    let session =
        session.and_then(|policy| policy.write(state.token, pick.fingerprint(), unix_now(), secure));
    let hashed = hashed.map(|cookie| (SET_COOKIE, cookie));
    session.into_iter().chain(hashed).collect()
}

impl Brought {
    /// Tells the span of the try.
    fn tell(&self, record: &Record, state: &State) {
        let (status, grpc) = match &self.outcome {
            Outcome::Answered(answer) => (answer.status, answer.grpc),
            _ => (0, None),
        };
        let reason = self.response.is_none().then_some(self.reason);
        record.tried_span(state.span, state.started, (status, grpc, reason));
    }

    fn failed(outcome: Outcome, reason: Reason) -> Self {
        Self {
            outcome,
            response: None,
            reason,
            over: false,
        }
    }
}

fn late(limit: TryLimit) -> Brought {
    match limit {
        TryLimit::Request(_) => Brought {
            over: true,
            ..Brought::failed(Outcome::TimedOut, Reason::RequestTimeout)
        },
        TryLimit::Try(_) | TryLimit::None => Brought::failed(Outcome::TimedOut, Reason::BackendTimeout),
    }
}

/// Does something within a time, if there is one; `None` if it takes longer.
async fn within<T>(limit: Option<Duration>, doing: impl Future<Output = T>) -> Option<T> {
    match limit {
        Some(limit) => timeout(limit, doing).await.ok(),
        None => Some(doing.await),
    }
}

/// Policies deny it now, which let it pass before.
fn denied(ended: Ended) -> Reply {
    tracing::info!(?ended, "a request ends that waits for its answer");
    Reply {
        because: ended.policy().cloned(),
        ..Reason::PolicyChanged.into()
    }
}

fn overflow() -> Reply {
    let headers = HeaderMap::from_iter([(OVERLOADED, HeaderValue::from_static("true"))]);
    Reply {
        own: Some(Box::new(Own {
            headers,
            ..Own::default()
        })),
        ..Reason::Overflow.into()
    }
}
