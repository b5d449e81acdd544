//! Requests counted by a service for all replicas (`envoy.service.ratelimit.v3`).
//!
//! Without an answer the request is refused, unless the user says otherwise.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::sync::Semaphore;
use tulle_model::Str;
use tulle_model::policy::traffic::{Descriptor, GlobalRateLimit};
use tulle_model::request::reserved::is_untouchable;
use tulle_model::waypoint::{Provider, ProviderKind};
use tulle_proto::ext_authz::HeaderValue as Field;
use tulle_proto::rate_limit::rate_limit_descriptor::Entry;
use tulle_proto::rate_limit::rate_limit_response::Code;
use tulle_proto::rate_limit::{RateLimitDescriptor, RateLimitRequest, RateLimitResponse};

use super::key::Keyed;
use crate::policy::ask::{Ask, AskError, Asked, unary};

/// How long an answer may take, unless the user says otherwise.
pub const TIMEOUT: Duration = Duration::from_millis(100);
/// Questions of the process that are open at once.
pub const QUESTIONS_MAX: usize = 1_024;
/// Bytes of an answer.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
const PATH: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";

/// One limit, and who counts.
#[derive(Debug)]
pub struct GlobalLimiter {
    /// `None` if the provider is not known: then there is no answer.
    to: Option<Asked>,
    domain: Str,
    descriptors: Vec<Descriptor>,
    timeout: Duration,
    fail_open: bool,
}

/// Bounds the questions of the process.
#[derive(Debug)]
pub struct Questions(Arc<Semaphore>);

impl Default for Questions {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(QUESTIONS_MAX)))
    }
}

/// What was said of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Counted {
    /// It may pass, with these fields for the application and for the caller.
    Pass {
        /// For the application.
        request: HeaderMap,
        /// For the caller.
        response: HeaderMap,
    },
    /// It is over the limit, and answered with these.
    Over {
        /// Header fields.
        headers: HeaderMap,
        /// Body.
        body: Bytes,
    },
    /// There was no answer, and the user wants it to pass then.
    PassUncounted(AskError),
    /// There was no answer.
    Unavailable(AskError),
    /// Nobody was asked, since the question would pass too many waypoints. It does not pass, whatever the user wants to
    /// happen without an answer: who can write the number would have it uncounted.
    Loop,
}

impl GlobalLimiter {
    /// Who counts is one of the providers of the waypoint's settings.
    #[must_use]
    pub fn new(of: &GlobalRateLimit, providers: &[Provider]) -> Self {
        let provider = providers.iter().find(|provider| provider.name == of.provider);
        let to = provider.and_then(|provider| match &provider.kind {
            ProviderKind::RateLimit(target) => Some(Asked {
                service: target.service.clone(),
                port: target.port,
            }),
            _ => None,
        });
        Self {
            to,
            domain: of.domain.clone(),
            descriptors: of.descriptors.clone(),
            timeout: of.timeout.unwrap_or(TIMEOUT),
            fail_open: of.fail_open,
        }
    }

    /// Asks whether a request may pass that has passed so many waypoints. Without anything to count, nobody is asked.
    pub async fn count(&self, ask: &dyn Ask, questions: &Questions, of: &Keyed<'_>, hops: u8) -> Counted {
        let descriptors = self.descriptors_of(of);
        if descriptors.is_empty() {
            return passes();
        }
        let asking = self.asked(ask, questions, descriptors, hops);
        let answer = tokio::time::timeout(self.timeout, asking).await;
        match answer.unwrap_or(Err(AskError::Timeout)) {
            Ok(counted) => counted,
            Err(AskError::Loop) => Counted::Loop,
            Err(error) if self.fail_open => Counted::PassUncounted(error),
            Err(error) => Counted::Unavailable(error),
        }
    }

    async fn asked(
        &self,
        ask: &dyn Ask,
        questions: &Questions,
        descriptors: Vec<RateLimitDescriptor>,
        hops: u8,
    ) -> Result<Counted, AskError> {
        let unknown = || AskError::Unusable("the provider is not known".to_owned());
        let to = self.to.as_ref().ok_or_else(unknown)?;
        let _open = questions.0.try_acquire().map_err(|_| AskError::Busy)?;
        let question = RateLimitRequest {
            domain: self.domain.to_string(),
            descriptors,
            hits_addend: 1,
        };
        let answer: RateLimitResponse = unary(ask, (to, PATH), &question, ANSWER_BYTES_MAX, hops).await?;
        match Code::try_from(answer.overall_code) {
            Ok(Code::Ok) => Ok(Counted::Pass {
                request: fields(answer.request_headers_to_add),
                response: fields(answer.response_headers_to_add),
            }),
            Ok(Code::OverLimit) => Ok(Counted::Over {
                headers: fields(answer.response_headers_to_add),
                body: Bytes::from(answer.raw_body),
            }),
            _ => Err(AskError::Unusable("neither OK nor OVER_LIMIT".to_owned())),
        }
    }

    /// One with a missing value is left out.
    fn descriptors_of(&self, of: &Keyed<'_>) -> Vec<RateLimitDescriptor> {
        let descriptor = |descriptor: &Descriptor| {
            let entries = descriptor.entries.iter().map(|entry| {
                let value = of.value(&entry.key)?;
                Some(Entry {
                    key: entry.name.to_string(),
                    value: String::from_utf8_lossy(&value).into_owned(),
                })
            });
            let entries: Option<Vec<_>> = entries.collect();
            let entries = entries.filter(|entries| !entries.is_empty())?;
            Some(RateLimitDescriptor { entries })
        };
        self.descriptors.iter().filter_map(descriptor).collect()
    }
}

fn passes() -> Counted {
    Counted::Pass {
        request: HeaderMap::new(),
        response: HeaderMap::new(),
    }
}

fn fields(list: Vec<Field>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for field in list {
        let value = if field.raw_value.is_empty() {
            field.value.into_bytes()
        } else {
            field.raw_value
        };
        if let (Ok(name), Ok(value)) = (
            HeaderName::from_bytes(field.key.as_bytes()),
            HeaderValue::from_bytes(&value),
        ) && !is_untouchable(name.as_str())
        {
            headers.append(name, value);
        }
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    use parking_lot::Mutex;
    use tokio::net::TcpListener;
    use tonic::{Response, Status};
    use tulle_model::NamespacedHostname;
    use tulle_model::policy::traffic::{Entry as Wanted, Key};
    use tulle_model::request::Source;
    use tulle_model::testing::get;
    use tulle_model::waypoint::Target;
    use tulle_proto::rate_limit::rate_limit_service_server::{RateLimitService, RateLimitServiceServer};
    use tulle_runtime::tasks;

    use crate::policy::ask::BEGINS;
    use crate::policy::ask::testing::Loopback;

    #[derive(Clone)]
    struct Counter {
        asked: Arc<Mutex<Vec<RateLimitRequest>>>,
        code: Code,
    }

    #[tonic::async_trait]
    impl RateLimitService for Counter {
        async fn should_rate_limit(
            &self,
            request: tonic::Request<RateLimitRequest>,
        ) -> Result<Response<RateLimitResponse>, Status> {
            self.asked.lock().push(request.into_inner());
            let field = |key: &str| Field {
                key: key.into(),
                value: "1".into(),
                raw_value: vec![],
            };
            Ok(Response::new(RateLimitResponse {
                overall_code: self.code.into(),
                response_headers_to_add: vec![field("x-ratelimit-remaining"), field("x-envoy-y")],
                request_headers_to_add: vec![field("x-counted")],
                raw_body: b"slow down".to_vec(),
                ..RateLimitResponse::default()
            }))
        }
    }

    async fn serve(code: Code) -> (SocketAddr, Counter) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let counter = Counter {
            asked: Arc::default(),
            code,
        };
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        let service = RateLimitServiceServer::new(counter.clone());
        tasks::spawn("counter", async move {
            let server = tonic::transport::Server::builder().add_service(service);
            server.serve_with_incoming(incoming).await
        });
        (address, counter)
    }

    fn limit() -> GlobalRateLimit {
        let entry = |name: &str, key| Wanted {
            name: name.into(),
            key,
        };
        GlobalRateLimit {
            provider: "rls".into(),
            domain: "shop".into(),
            descriptors: vec![
                Descriptor {
                    entries: vec![entry("ns", Key::SourceNamespace), entry("m", Key::Method)],
                },
                Descriptor {
                    entries: vec![entry("user", Key::Header("x-user".into()))],
                },
            ],
            // Long enough for a busy machine; the bound itself is a fact of its own.
            timeout: Some(Duration::from_secs(20)),
            fail_open: false,
        }
    }

    async fn count(of: &GlobalRateLimit, to: SocketAddr) -> Counted {
        let provider = Provider {
            name: "rls".into(),
            kind: ProviderKind::RateLimit(Target {
                service: NamespacedHostname::new("shop", "rls"),
                port: 8081,
            }),
        };
        let source = Source {
            identity: Some(tulle_model::Identity::new("td", "shop", "web")),
            ip: "10.0.0.7".parse().unwrap(),
            remote_ip: "10.0.0.7".parse().unwrap(),
        };
        let head = get("/");
        let keyed = Keyed {
            source: &source,
            head: &head,
            route: None,
        };
        let limiter = GlobalLimiter::new(of, &[provider]);
        limiter
            .count(&Loopback(to), &Questions::default(), &keyed, BEGINS)
            .await
    }

    #[tokio::test]
    async fn a_request_within_the_limit_passes_with_what_the_service_adds() {
        let (to, counter) = serve(Code::Ok).await;
        let Counted::Pass { request, response } = count(&limit(), to).await else {
            panic!("it passes")
        };
        assert_eq!(request["x-counted"], "1");
        assert_eq!(response.len(), 1, "what the mesh needs is not touched");
        let asked = counter.asked.lock();
        assert_eq!((&*asked[0].domain, asked[0].hits_addend), ("shop", 1));
        let entry = |key: &str, value: &str| Entry {
            key: key.into(),
            value: value.into(),
        };
        let whole = vec![entry("ns", "shop"), entry("m", "GET")];
        assert_eq!(
            asked[0].descriptors.len(),
            1,
            "one with a missing value is left out"
        );
        assert_eq!(asked[0].descriptors[0].entries, whole);
    }

    #[tokio::test]
    async fn a_request_over_the_limit_is_answered_with_what_the_service_says() {
        let (to, _) = serve(Code::OverLimit).await;
        let Counted::Over { headers, body } = count(&limit(), to).await else {
            panic!("it is over the limit")
        };
        assert_eq!(headers["x-ratelimit-remaining"], "1");
        assert_eq!(&body[..], b"slow down");
    }

    #[tokio::test]
    async fn without_an_answer_nothing_passes_unless_the_user_wants_that() {
        let nobody = "127.0.0.1:1".parse().unwrap();
        assert!(matches!(count(&limit(), nobody).await, Counted::Unavailable(_)));
        let (unknown, _) = serve(Code::Unknown).await;
        assert!(matches!(count(&limit(), unknown).await, Counted::Unavailable(_)));
        let open = GlobalRateLimit {
            fail_open: true,
            ..limit()
        };
        assert!(matches!(count(&open, nobody).await, Counted::PassUncounted(_)));
        let elsewhere = GlobalRateLimit {
            provider: "other".into(),
            ..limit()
        };
        assert!(matches!(count(&elsewhere, nobody).await, Counted::Unavailable(_)));
    }

    #[tokio::test]
    async fn an_answer_has_a_tenth_of_a_second() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let of = GlobalRateLimit {
            timeout: None,
            ..limit()
        };
        let counted = count(&of, listener.local_addr().unwrap()).await;
        assert_eq!(counted, Counted::Unavailable(AskError::Timeout));
    }

    #[tokio::test]
    async fn without_anything_to_count_nobody_is_asked() {
        let of = GlobalRateLimit {
            descriptors: limit().descriptors.split_off(1),
            ..limit()
        };
        let nobody = "127.0.0.1:1".parse().unwrap();
        assert_eq!(count(&of, nobody).await, passes());
    }
}
