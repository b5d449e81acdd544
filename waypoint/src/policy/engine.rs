//! The policies of a request in their one order: *local limits → tokens → authorizers → authorization → global limit →
//! fault*. Each may end the request with a reply; what passes carries what it changes of request and answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use tulle_model::policy::authz::{Attributes, Denial, Verdict};
use tulle_model::reason::http::grpc_status;
use tulle_model::request::{Destination, RequestHead, Source};
use tulle_model::{Reason, Str};

use super::ask::Ask;
use super::ext_authz::{Changes, Decision, Subject};
use super::fault::Delays;
use super::jwt::authenticate::CHALLENGE;
use super::jwt::cache::Cache;
use super::jwt::token::Claims;
use super::jwt::{Effects, Fetch, Jwks};
use super::limit::global::{Counted, Questions};
use super::limit::key::Keyed;
use super::limit::local::{self, Refused};
use super::live::{Held, Said};
use super::metrics::PolicyMetrics;
use super::rules::{Decider, Rules};
use crate::http::body::RequestBody;
use crate::http::respond::{Own, Reply};

const RETRY_AFTER: HeaderName = HeaderName::from_static("retry-after");
const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// Questions about open requests at once, when a policy comes that has somebody decide about them.
const AGAIN_MAX: usize = 256;
/// How long such a question waits for its turn; the request ends if it does not come.
const AGAIN_WAIT: Duration = Duration::from_millis(500);

/// What all requests of the process share for their policies.
#[derive(Debug)]
pub struct Engine {
    /// Keys of tokens.
    pub jwks: Arc<Jwks>,
    tokens: Cache,
    delays: Delays,
    questions: Questions,
    /// Questions about open requests that may run at once.
    again: Semaphore,
    /// What is counted.
    pub metrics: PolicyMetrics,
    started: Instant,
}

/// Who asks for what.
#[derive(Debug, Clone, Copy)]
pub struct Asking<'a> {
    /// Who asks.
    pub source: &'a Source,
    /// What is asked for.
    pub destination: Destination,
    /// Name of the route that was chosen.
    pub route: Option<&'a str>,
    /// The id of the request.
    pub id: &'a str,
    /// Is set where a policy on trial would have refused it.
    pub on_trial: &'a AtomicBool,
    /// Where it stands while it is held back.
    pub held: Held<'a>,
    /// Waypoints it has passed, this one included.
    pub hops: u8,
}

impl Asking<'_> {
    /// Does what holds a request back, unless policies deny it meanwhile.
    async fn hold<T>(
        &self,
        head: &RequestHead,
        said: Said<'_>,
        doing: impl Future<Output = T>,
    ) -> Result<T, Reply> {
        let denied = self.held.ended((self.source, self.destination), head, said);
        tokio::select! {
            biased;
            done = doing => Ok(done),
            ended = denied => {
                tracing::info!(?ended, id = self.id, "a request ends that was held back");
                Err(Reply {
                    because: ended.policy().cloned(),
                    ..Reason::PolicyChanged.into()
                })
            }
        }
    }
}

/// What passed, with what is to be changed.
#[derive(Debug, Clone, Default)]
pub struct Passed {
    /// What its token says.
    pub claims: Option<Arc<Claims>>,
    /// The policy that held it back on purpose.
    pub delayed_by: Option<Str>,
    effects: Vec<Effects>,
    changes: Changes,
    request: HeaderMap,
    response: HeaderMap,
}

impl Passed {
    /// What its token says, where no other is being verified.
    fn said(&self) -> Said<'_> {
        Said::Claims(self.claims.as_deref())
    }

    /// Whether what goes upstream is what came.
    #[must_use]
    pub fn leaves_request(&self) -> bool {
        self.effects.is_empty() && self.changes.leave_request() && self.request.is_empty()
    }

    /// Changes what goes upstream. Policies and routes have seen what came.
    pub fn change_request(&self, head: &mut RequestHead) {
        for effects in &self.effects {
            effects.apply(&mut head.headers, &mut head.query);
        }
        self.changes.apply_to_request(&mut head.headers);
        for (name, value) in &self.request {
            head.headers.append(name, value.clone());
        }
    }

    /// Changes what goes back.
    pub fn change_response(&self, headers: &mut HeaderMap) {
        self.changes.apply_to_response(headers);
        for (name, value) in &self.response {
            headers.append(name, value.clone());
        }
    }
}

impl Engine {
    /// Without any key, bucket or token yet.
    #[must_use]
    pub fn new(fetch: Arc<dyn Fetch>, metrics: PolicyMetrics) -> Self {
        Self {
            jwks: Arc::new(Jwks::new(fetch)),
            tokens: Cache::default(),
            delays: Delays::default(),
            questions: Questions::default(),
            again: Semaphore::new(AGAIN_MAX),
            metrics,
            started: Instant::now(),
        }
    }

    /// Judges a request by everything that applies to what it asks for. What few requests meet has its state in a box, so
    /// that those that do not meet it carry none of it.
    ///
    /// # Errors
    /// The reply that it gets instead.
    pub async fn judge(
        &self,
        rules: &Rules,
        ask: &dyn Ask,
        head: &mut RequestHead,
        body: &mut RequestBody,
        of: Asking<'_>,
    ) -> Result<Passed, Reply> {
        self.limit(rules, head, of)?;
        let mut passed = Passed::default();
        self.judge_security(rules, ask, head, body, of, &mut passed)
            .await?;
        if rules.global.is_some() {
            Box::pin(self.count(rules, ask, head, of, &mut passed)).await?;
        }
        if rules.fault.is_some() {
            Box::pin(self.fault(rules, head, of, &mut passed)).await?;
        }
        Ok(passed)
    }

    /// Judges a request by the security policies alone: of the backend that its route chose.
    ///
    /// # Errors
    /// The reply that it gets instead.
    pub async fn judge_security(
        &self,
        rules: &Rules,
        ask: &dyn Ask,
        head: &mut RequestHead,
        body: &mut RequestBody,
        of: Asking<'_>,
        passed: &mut Passed,
    ) -> Result<(), Reply> {
        if !rules.authentication.is_empty() {
            Box::pin(self.authenticate(rules, head, of, passed)).await?;
        }
        let claims = passed.claims.clone();
        let token = claims.as_deref().map(|claims| &claims.token);
        let attributes = Attributes::of_request(of.source, of.destination, head, token);
        for (matched, provider) in rules.authorizer.asks(&attributes) {
            let decider = rules.provider(provider);
            Box::pin(self.decide(&matched.policy, &decider, ask, head, body, of, passed)).await?;
        }
        for (policy, decider) in &rules.asked {
            Box::pin(self.decide(policy, decider, ask, head, body, of, passed)).await?;
        }
        self.authorize(rules, &attributes, of.on_trial)
            .map_err(|denial| denied(&denial))
    }

    /// Judges a request or a stream by DENY and ALLOW, and counts what is marked or only tried.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn authorize(&self, rules: &Rules, of: &Attributes<'_>, on_trial: &AtomicBool) -> Result<(), Denial> {
        for run in rules.authorizer.dry_runs(of) {
            if run.denies {
                on_trial.store(true, Ordering::Relaxed);
                self.metrics.judged("deny", &run.policy, true);
                tracing::info!(policy = %run.policy, rule = run.rule, source = ?of.source.identity, "dry_run_denied");
            }
        }
        for matched in rules.authorizer.audits(of) {
            self.metrics.judged("audit", &matched.policy, false);
            tracing::info!(policy = %matched.policy, rule = matched.rule, source = ?of.source.identity, "audited");
        }
        match rules.authorizer.check(of) {
            Verdict::Allow(_) => Ok(()),
            Verdict::Deny(denial) => {
                let none = Str::from("");
                self.metrics
                    .judged("deny", denial.policy().unwrap_or(&none), false);
                Err(denial)
            }
        }
    }

    fn limit(&self, rules: &Rules, head: &RequestHead, of: Asking<'_>) -> Result<(), Reply> {
        let keyed = keyed(head, of);
        let limiters = rules.limits.iter().map(|(_, limiter)| &**limiter);
        local::take(limiters, &keyed, self.started.elapsed() + Duration::from_secs(1)).map_err(|refused| {
            let policy = &rules.limits[refused.index].0;
            self.metrics.limited(policy);
            limited(policy, refused)
        })
    }

    async fn authenticate(
        &self,
        rules: &Rules,
        head: &mut RequestHead,
        of: Asking<'_>,
        passed: &mut Passed,
    ) -> Result<(), Reply> {
        rules.authentication.strip(&mut head.headers);
        let judging = rules
            .authentication
            .authenticate(head, &self.jwks, &self.tokens, now(), of.hops);
        let judged = of.hold(head, Said::Unverified, judging).await?;
        match judged {
            Ok(authenticated) => {
                if authenticated.claims.is_some() {
                    passed.claims = authenticated.claims;
                }
                passed.effects.push(authenticated.effects);
                Ok(())
            }
            Err(failure) => {
                self.metrics.bad_token(failure.0.as_str());
                if failure.reason() == Reason::LoopDetected {
                    return Err(failure.reason().into());
                }
                let challenge = (
                    http::header::WWW_AUTHENTICATE,
                    HeaderValue::from_static(CHALLENGE),
                );
                Err(Reply {
                    own: Some(Box::new(Own {
                        headers: HeaderMap::from_iter([challenge]),
                        ..Own::default()
                    })),
                    ..failure.reason().into()
                })
            }
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "what is asked about, whom, and where the answer goes"
    )]
    async fn decide(
        &self,
        policy: &Str,
        decider: &Decider,
        ask: &dyn Ask,
        head: &RequestHead,
        body: &mut RequestBody,
        of: Asking<'_>,
        passed: &mut Passed,
    ) -> Result<(), Reply> {
        let reply = |reason: Reason| Reply {
            because: Some(policy.clone()),
            ..reason.into()
        };
        let Some(decider) = decider else {
            return Err(reply(Reason::PolicyUntranslatable));
        };
        let sent = match decider.wants_body() {
            None => Bytes::new(),
            Some(max) => {
                let peeked = of.hold(head, passed.said(), body.peek(max)).await?;
                let (bytes, is_whole) = peeked.map_err(|_| reply(Reason::ClientGone))?;
                if !is_whole && !decider.allows_partial() {
                    return Err(reply(Reason::BodyTooLarge));
                }
                bytes
            }
        };
        let subject = Subject {
            source: of.source,
            destination: of.destination,
            head,
            id: of.id,
            body: &sent,
            now: now(),
            hops: of.hops,
        };
        let before = Instant::now();
        let deciding = decider.decide(ask, subject);
        let decision = of.hold(head, passed.said(), deciding).await?;
        self.metrics.ext_authz.observe(before.elapsed().as_secs_f64());
        match decision {
            Decision::Allow(changes) => {
                passed.changes.extend(changes);
                Ok(())
            }
            Decision::AllowUnasked(error) => {
                tracing::warn!(%policy, %error, "the authorizer did not answer; the policy lets pass then");
                Ok(())
            }
            Decision::Deny(denied) => {
                self.metrics.judged("custom", policy, false);
                Err(with(
                    reply(Reason::ExtAuthzDenied),
                    denied.status,
                    denied.headers,
                    Some(denied.body),
                ))
            }
            Decision::Failed(status, error) => {
                tracing::warn!(%policy, %error, "the authorizer did not answer; see T0625");
                self.metrics.judged("custom", policy, false);
                Err(with(reply(Reason::ExtAuthzError), status, HeaderMap::new(), None))
            }
            Decision::Loop => {
                self.metrics.judged("custom", policy, false);
                Err(reply(Reason::LoopDetected))
            }
        }
    }

    /// Whether somebody who decides now lets an open request pass that was let pass before. What of its body would have to
    /// be seen has gone by.
    pub async fn ask_again(
        &self,
        policy: &Str,
        decider: &Decider,
        ask: &dyn Ask,
        subject: Subject<'_>,
    ) -> bool {
        let asking = async {
            let decider = decider.as_ref()?;
            if decider.wants_body().is_some() && !decider.allows_partial() {
                return None;
            }
            let permit = timeout(AGAIN_WAIT, self.again.acquire()).await;
            let _permit = permit.ok()?.ok()?;
            let before = Instant::now();
            let decision = decider.decide(ask, subject).await;
            self.metrics.ext_authz.observe(before.elapsed().as_secs_f64());
            matches!(decision, Decision::Allow(_) | Decision::AllowUnasked(_)).then_some(())
        };
        let passes = asking.await.is_some();
        if !passes {
            self.metrics.judged("custom", policy, false);
        }
        passes
    }

    async fn count(
        &self,
        rules: &Rules,
        ask: &dyn Ask,
        head: &RequestHead,
        of: Asking<'_>,
        passed: &mut Passed,
    ) -> Result<(), Reply> {
        let Some((policy, limiter)) = &rules.global else {
            return Ok(());
        };
        let reply = |reason: Reason| Reply {
            because: Some(policy.clone()),
            ..reason.into()
        };
        let keyed = keyed(head, of);
        let counting = limiter.count(ask, &self.questions, &keyed, of.hops);
        let counted = of.hold(head, passed.said(), counting).await?;
        match counted {
            Counted::Pass { request, response } => {
                passed.request.extend(request);
                passed.response.extend(response);
                Ok(())
            }
            Counted::PassUncounted(error) => {
                tracing::warn!(%policy, %error, "the rate limit service did not answer; the policy lets pass then");
                Ok(())
            }
            Counted::Over { headers, body } => {
                self.metrics.limited(policy);
                let body = (!body.is_empty()).then_some(body);
                Err(with(
                    reply(Reason::RateLimited),
                    StatusCode::TOO_MANY_REQUESTS,
                    headers,
                    body,
                ))
            }
            Counted::Unavailable(error) => {
                tracing::warn!(%policy, %error, "the rate limit service did not answer; see T0606");
                Err(reply(Reason::RateLimitUnavailable))
            }
            Counted::Loop => Err(reply(Reason::LoopDetected)),
        }
    }

    async fn fault(
        &self,
        rules: &Rules,
        head: &RequestHead,
        of: Asking<'_>,
        passed: &mut Passed,
    ) -> Result<(), Reply> {
        let Some((policy, injector)) = &rules.fault else {
            return Ok(());
        };
        let random = |whole| rand::random_range(0..whole);
        let injected = injector.draw(of.source, head, random);
        if let Some(delay) = injected.delay {
            let waiting = self.delays.wait(delay);
            let waited = of.hold(head, passed.said(), waiting).await?;
            self.metrics.fault(if waited { "delay" } else { "delay_skipped" });
            passed.delayed_by = waited.then(|| policy.clone());
        }
        let Some(aborted) = injected.abort else {
            return Ok(());
        };
        self.metrics.fault("abort");
        Err(Reply {
            because: Some(policy.clone()),
            own: Some(Box::new(Own {
                status: StatusCode::from_u16(aborted.status).ok(),
                grpc: aborted.grpc,
                ..Own::default()
            })),
            ..Reason::FaultAbort.into()
        })
    }
}

/// Refuses for a denial.
#[must_use]
pub fn denied(denial: &Denial) -> Reply {
    Reply {
        because: denial.policy().cloned(),
        ..denial.reason().into()
    }
}

fn keyed<'a>(head: &'a RequestHead, of: Asking<'a>) -> Keyed<'a> {
    Keyed {
        source: of.source,
        head,
        route: of.route,
    }
}

fn with(reply: Reply, status: StatusCode, headers: HeaderMap, body: Option<Bytes>) -> Reply {
    // Callers of gRPC are told what the status means to them; forbidden is what an authorizer's own refusal means.
    let grpc = match grpc_status(status.as_u16()) {
        2 => reply.reason.answer().grpc,
        told => told,
    };
    Reply {
        own: Some(Box::new(Own {
            status: Some(status),
            grpc: Some(grpc),
            headers,
            body,
        })),
        ..reply
    }
}

fn limited(policy: &Str, refused: Refused) -> Reply {
    let Refused {
        retry_after, state, ..
    } = refused;
    let fields = [
        (RETRY_AFTER, retry_after),
        (LIMIT, state.limit),
        (REMAINING, state.remaining),
        (RESET, state.reset),
    ];
    let headers = fields.map(|(name, number)| (name, HeaderValue::from(number)));
    Reply {
        because: Some(policy.clone()),
        own: Some(Box::new(Own {
            headers: HeaderMap::from_iter(headers),
            ..Own::default()
        })),
        ..Reason::RateLimited.into()
    }
}

/// Seconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
