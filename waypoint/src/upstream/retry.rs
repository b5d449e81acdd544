//! Whether a request is tried again, and when.

use std::time::Duration;

use http::Method;
use smallvec::SmallVec;
use tulle_model::Reason;
use tulle_model::route::Retry;

use super::outcome::{Hint, Outcome, Unsent};

pub mod look_ahead;
pub mod replay;
pub mod retry_after;

/// Tries after the first, where nobody says how many.
pub const ATTEMPTS: u32 = 2;
/// A route that asks for more gets this many.
pub const ATTEMPTS_MAX: u32 = 100;
/// A hint that asks to wait longer is passed on to who asked.
pub const HINT_MAX: Duration = Duration::from_secs(5);
/// Steps of the wait where no backoff is set.
const STEP: Duration = Duration::from_millis(25);
/// Such a wait is no longer than this.
const STEP_MAX: Duration = Duration::from_millis(250);
/// CANCELLED and UNAVAILABLE.
const GRPC_CODES: u32 = 1 << 1 | 1 << 14;

/// When the requests of a rule are tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    attempts: u32,
    /// What the route asks for; without it only what cannot have reached the application is tried again.
    asked: Option<Asked>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Asked {
    codes: SmallVec<[u16; 4]>,
    /// A bit for each status of gRPC.
    grpc_codes: u32,
    backoff: Option<Duration>,
}

impl RetryPolicy {
    /// The policy of a rule with this stanza, or with none.
    #[must_use]
    pub fn new(stanza: Option<&Retry>) -> Self {
        let Some(stanza) = stanza else {
            return Self {
                attempts: ATTEMPTS,
                asked: None,
            };
        };
        let bits = stanza.grpc_codes.iter().filter(|code| **code < 32);
        let grpc_codes = bits.fold(0, |bits, code| bits | 1 << code);
        Self {
            attempts: stanza.attempts.unwrap_or(ATTEMPTS).min(ATTEMPTS_MAX),
            asked: Some(Asked {
                codes: stanza.codes.iter().copied().collect(),
                grpc_codes: if stanza.grpc_codes.is_empty() {
                    GRPC_CODES
                } else {
                    grpc_codes
                },
                backoff: stanza.backoff,
            }),
        }
    }

    /// The policy of a stream of bytes: further endpoints when none can be connected to.
    #[must_use]
    pub fn of_streams() -> Self {
        Self::new(None)
    }

    /// Whether the status of gRPC can decide, so that it is worth waiting for the trailers of an answer that has no
    /// message.
    #[must_use]
    pub fn reads_trailers(&self) -> bool {
        self.attempts > 0 && self.asked.is_some()
    }

    /// Whether another try may come at all, so that the body has to be kept.
    #[must_use]
    pub fn retries(&self) -> bool {
        self.attempts > 0
    }

    /// What follows a try.
    #[must_use]
    pub fn decide(&self, tried: &Tried<'_>) -> Decision {
        if !self.deserves(tried) || !tried.replayable {
            return Decision::Pass;
        }
        if tried.number > self.attempts {
            return Decision::Exhausted;
        }
        let Some(wait) = self.wait(tried) else {
            return Decision::Pass;
        };
        match tried.left {
            // There is no time for it: what came is better than a timeout.
            Some(left) if wait >= left => Decision::Pass,
            _ => Decision::Retry(wait),
        }
    }

    fn deserves(&self, tried: &Tried<'_>) -> bool {
        let asked = self.asked.as_ref();
        let has_code = |code| asked.is_some_and(|asked| asked.codes.contains(&code));
        let idempotent = asked.is_some() && is_idempotent(tried.method);
        match tried.outcome {
            Outcome::Unsent(_) => true,
            Outcome::Refused | Outcome::Malformed | Outcome::ClientGone | Outcome::Connected => false,
            Outcome::Reset => idempotent,
            Outcome::TimedOut => idempotent || has_code(504),
            Outcome::Answered(answer) => {
                let grpc = answer.grpc.filter(|code| *code < 32);
                let by_grpc = |asked: &Asked| grpc.is_some_and(|code| asked.grpc_codes & 1 << code != 0);
                has_code(answer.status) || asked.is_some_and(by_grpc)
            }
        }
    }

    /// The larger of backoff and hint; `None` if the endpoint wants no other try soon.
    fn wait(&self, tried: &Tried<'_>) -> Option<Duration> {
        let own = backoff(
            self.asked.as_ref().and_then(|asked| asked.backoff),
            tried.number,
            tried.random,
        );
        let hint = match tried.outcome {
            Outcome::Answered(answer) => answer.hint,
            _ => None,
        };
        match hint {
            None => Some(own),
            Some(Hint::After(hint)) if hint <= HINT_MAX => Some(own.max(hint)),
            Some(_) => None,
        }
    }
}

/// A try that has ended.
#[derive(Debug, Clone, Copy)]
pub struct Tried<'a> {
    /// Which try it was, from 1.
    pub number: u32,
    /// How it ended.
    pub outcome: &'a Outcome,
    /// The request's method.
    pub method: &'a Method,
    /// Whether all of the body that was read is still there.
    pub replayable: bool,
    /// What is left of the request's time; `None` is without end.
    pub left: Option<Duration>,
    /// In 0 to 1.
    pub random: f64,
}

/// What follows a try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// What came goes to who asked.
    Pass,
    /// It does, and it would have been tried again if there were tries left.
    Exhausted,
    /// Another try after this time, if budget and breaker allow it.
    Retry(Duration),
}

/// The wait before retry `number`, from 1.
#[must_use]
pub fn backoff(set: Option<Duration>, number: u32, random: f64) -> Duration {
    let random = random.clamp(0.0, 1.0);
    let power = |exponent: u32| 1u32.checked_shl(exponent).unwrap_or(u32::MAX);
    match set {
        None => {
            let most = STEP.saturating_mul(power(number.min(31)) - 1).min(STEP_MAX);
            most.mul_f64(random)
        }
        Some(base) => {
            let nominal = base
                .saturating_mul(power(number.saturating_sub(1).min(31)))
                .min(base.saturating_mul(10));
            nominal + nominal.mul_f64(random)
        }
    }
}

/// GET, HEAD, OPTIONS, PUT, DELETE, TRACE: asking twice does what asking once does.
#[must_use]
pub fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE | Method::TRACE
    )
}

impl Outcome {
    /// Why there is no answer to pass on; `None` if there is one, or nobody to pass it to.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        Some(match self {
            Self::Unsent(Unsent::Tls) => Reason::TlsFailed,
            Self::Unsent(Unsent::Connect | Unsent::Unavailable) | Self::Refused => Reason::ConnectFailed,
            Self::Unsent(_) | Self::Reset => Reason::UpstreamReset,
            Self::Malformed => Reason::UpstreamProtocol,
            Self::TimedOut => Reason::BackendTimeout,
            Self::ClientGone => Reason::ClientGone,
            Self::Answered(_) | Self::Connected => return None,
        })
    }
}

#[cfg(test)]
mod tests;
