//! Somebody else decides about a request: over gRPC (`envoy.service.auth.v3`), or over HTTP.
//!
//! Without an answer the request is refused, unless the user says otherwise. Nothing is remembered between requests.

pub mod changes;
mod grpc;
mod http;
#[cfg(test)]
mod tests;

use std::time::Duration;

use ::http::{HeaderMap, StatusCode};
use bytes::Bytes;
use tulle_model::Str;
use tulle_model::filter::{ASKED_BODY_BYTES_MAX, Ask as Whom, ExtAuthz};
use tulle_model::request::{Destination, RequestHead, Source};
use tulle_model::waypoint::{Provider, ProviderKind};

use super::ask::{Ask, AskError, Asked};
pub use changes::Changes;

/// How long an answer may take, unless the user says otherwise.
pub const TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes of a request's body that are ever sent along.
pub const BODY_BYTES_MAX: usize = ASKED_BODY_BYTES_MAX as usize;
/// Bytes of an answer, with the body that a caller gets in place of the application's.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Somebody who decides, with how they are asked.
#[derive(Debug, Clone)]
pub struct Authorizer {
    whom: Protocol,
    headers: Vec<Str>,
    response_headers: Vec<Str>,
    body_bytes_max: usize,
    allow_partial: bool,
    timeout: Duration,
    fail_open: bool,
    status_on_error: StatusCode,
}

#[derive(Debug, Clone)]
enum Protocol {
    Grpc(Asked),
    Http(Asked, Str),
}

/// Why somebody cannot be asked, so that nobody passes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// The settings have no such provider.
    #[error("the waypoint has no provider `{0}` that decides about requests")]
    Provider(Str),
    /// The backend cannot be used.
    #[error("the service that should decide cannot be used")]
    Backend,
}

/// What is asked about.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Who asks.
    pub source: &'a Source,
    /// What is asked for.
    pub destination: Destination,
    /// The request.
    pub head: &'a RequestHead,
    /// Its id.
    pub id: &'a str,
    /// What was read of its body, if that is wanted.
    pub body: &'a [u8],
    /// Seconds since 1970.
    pub now: i64,
    /// Waypoints it has passed, this one included.
    pub hops: u8,
}

/// What was decided.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    /// It may pass, with these changes.
    Allow(Changes),
    /// It is answered with this.
    Deny(Denied),
    /// Nobody answered in a way that can be used, and the user wants it to pass then.
    AllowUnasked(AskError),
    /// Nobody answered in a way that can be used: it is answered with this status.
    Failed(StatusCode, AskError),
    /// Nobody was asked, since the question would pass too many waypoints. It does not pass, whatever the user wants to
    /// happen without an answer: who can write the number would pass unasked.
    Loop,
}

/// An answer in place of the application's.
#[derive(Debug, PartialEq, Eq)]
pub struct Denied {
    /// Status.
    pub status: StatusCode,
    /// Header fields.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

impl Authorizer {
    /// Who is meant. `providers` are those of the waypoint's settings.
    pub fn new(of: &ExtAuthz, providers: &[Provider]) -> Result<Self, Unknown> {
        let of = match &of.ask {
            Whom::Provider(name) => Self::provider(name, providers)?,
            Whom::Grpc(_) | Whom::Http { .. } => of,
        };
        let asked = |backend| Asked::of(backend).ok_or(Unknown::Backend);
        let whom = match &of.ask {
            Whom::Grpc(backend) => Protocol::Grpc(asked(backend)?),
            Whom::Http { backend, path } => Protocol::Http(asked(backend)?, path.clone()),
            // A provider that names another one leads nowhere.
            Whom::Provider(name) => return Err(Unknown::Provider(name.clone())),
        };
        let status = of
            .status_on_error
            .and_then(|status| StatusCode::from_u16(status).ok());
        let body_bytes_max = usize::try_from(of.body_bytes_max).unwrap_or(usize::MAX);
        Ok(Self {
            whom,
            headers: of.headers.clone(),
            response_headers: of.response_headers.clone(),
            body_bytes_max: body_bytes_max.min(BODY_BYTES_MAX),
            allow_partial: of.allow_partial,
            timeout: of.timeout.unwrap_or(TIMEOUT),
            fail_open: of.fail_open,
            status_on_error: status.unwrap_or(StatusCode::FORBIDDEN),
        })
    }

    /// The provider of this name, as a CUSTOM policy names it.
    pub fn named(name: &Str, providers: &[Provider]) -> Result<Self, Unknown> {
        Self::new(Self::provider(name, providers)?, providers)
    }

    fn provider<'p>(name: &Str, providers: &'p [Provider]) -> Result<&'p ExtAuthz, Unknown> {
        let is_it = |provider: &&Provider| provider.name == *name;
        match providers.iter().find(is_it).map(|provider| &provider.kind) {
            Some(ProviderKind::ExtAuthz(of)) => Ok(of),
            _ => Err(Unknown::Provider(name.clone())),
        }
    }

    /// Bytes of the body to read before asking; `None` asks without.
    #[must_use]
    pub fn wants_body(&self) -> Option<usize> {
        (self.body_bytes_max > 0).then_some(self.body_bytes_max)
    }

    /// Whether a body that is longer than what is wanted may be cut; else the request is refused with 413.
    #[must_use]
    pub fn allows_partial(&self) -> bool {
        self.allow_partial
    }

    /// Asks.
    pub async fn decide(&self, ask: &dyn Ask, subject: Subject<'_>) -> Decision {
        let asking = async {
            match &self.whom {
                Protocol::Grpc(to) => self.ask_grpc(ask, to, subject).await,
                Protocol::Http(to, path) => self.ask_http(ask, to, path, subject).await,
            }
        };
        let answer = tokio::time::timeout(self.timeout, asking).await;
        match answer.unwrap_or(Err(AskError::Timeout)) {
            Ok(decision) => decision,
            Err(AskError::Loop) => Decision::Loop,
            Err(error) if self.fail_open => Decision::AllowUnasked(error),
            Err(error) => Decision::Failed(self.status_on_error, error),
        }
    }
}
