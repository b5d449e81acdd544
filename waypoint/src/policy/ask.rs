//! Questions to services of the mesh: to whom, over which protocol, and how much of an answer is read.
//!
//! Who carries them is a trait: the pool of the waypoint's upstream connections does, with tunnels where the service is
//! in the mesh, so that no question goes around the mesh.

use std::fmt;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use prost::Message;
use tulle_model::NamespacedHostname;
use tulle_model::route::{Backend, BackendTo};

/// Whom a question goes to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Asked {
    /// The service.
    pub service: NamespacedHostname,
    /// Its port.
    pub port: u16,
}

impl Asked {
    /// `None` for a backend that cannot be used.
    #[must_use]
    pub fn of(backend: &Backend) -> Option<Self> {
        match &backend.to {
            BackendTo::Service { service, port } => Some(Self {
                service: service.clone(),
                port: *port,
            }),
            BackendTo::Invalid(_) => None,
        }
    }
}

/// What a question is carried by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// Waypoints that a question has passed which no request causes: it begins here.
pub const BEGINS: u8 = 1;

/// A question.
#[derive(Debug)]
pub struct Question<'a> {
    /// Whom it goes to.
    pub to: &'a Asked,
    /// What it is carried by.
    pub over: Over,
    /// The request, with its path and authority in the URI.
    pub request: Request<Bytes>,
    /// Bytes of an answer that are read; a longer one is an error.
    pub answer_bytes_max: usize,
    /// Waypoints that the request which causes it has passed, this one included: who is asked may stand behind a waypoint
    /// that has somebody else decide in turn. [`BEGINS`] where no request causes it.
    pub hops: u8,
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    /// Status, headers and body.
    pub response: Response<Bytes>,
    /// What came after the body.
    pub trailers: HeaderMap,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// Nobody serves it.
    #[error("{0} has no endpoint that can be used")]
    NoEndpoint(NamespacedHostname),
    /// It was not reached, or the connection broke.
    #[error("{0}")]
    Connection(String),
    /// It took too long.
    #[error("no answer in time")]
    Timeout,
    /// More came than may come.
    #[error("the answer is longer than it may be")]
    TooLong,
    /// As many are asked already as may be.
    #[error("too many questions are open")]
    Busy,
    /// Who is asked stands behind a waypoint, and the request has passed as many as it may.
    #[error("the question would pass too many waypoints")]
    Loop,
    /// The answer cannot be used.
    #[error("the answer cannot be used: {0}")]
    Unusable(String),
}

/// Carries questions.
pub trait Ask: fmt::Debug + Send + Sync {
    /// Asks. Who asks bounds the time; a question that is dropped is cancelled.
    fn ask<'a>(&'a self, question: Question<'a>) -> BoxFuture<'a, Result<Answer, AskError>>;
}

/// Bytes in front of a message of gRPC: not compressed, and how long it is.
const PREFIX: usize = 5;

/// Asks one question of gRPC, for a request that has passed so many waypoints: one message, and one message back.
pub async fn unary<Q: Message, A: Message + Default>(
    ask: &dyn Ask,
    (to, path): (&Asked, &'static str),
    question: &Q,
    answer_bytes_max: usize,
    hops: u8,
) -> Result<A, AskError> {
    let mut body = Vec::with_capacity(PREFIX + question.encoded_len());
    let length = u32::try_from(question.encoded_len())
        .map_err(|_| AskError::Unusable("the question is too long".to_owned()))?;
    body.push(0);
    body.extend(length.to_be_bytes());
    body.extend(question.encode_to_vec());
    let uri = format!("http://{}:{}{path}", to.service.hostname, to.port);
    let request = Request::post(uri)
        .version(http::Version::HTTP_2)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Bytes::from(body))
        .map_err(|error| AskError::Connection(error.to_string()))?;
    let question = Question {
        to,
        over: Over::Http2,
        request,
        answer_bytes_max,
        hops,
    };
    let answer = ask.ask(question).await?;
    message(&answer)
}

/// The one message of an answer of gRPC.
fn message<A: Message + Default>(answer: &Answer) -> Result<A, AskError> {
    let status = answer.response.status();
    if status != http::StatusCode::OK {
        return Err(AskError::Unusable(format!("status {}", status.as_u16())));
    }
    // Without a body, the trailers are the headers.
    let of = |headers: &HeaderMap| headers.get("grpc-status").cloned();
    let grpc = of(&answer.trailers).or_else(|| of(answer.response.headers()));
    match grpc.as_ref().map(http::HeaderValue::as_bytes) {
        Some(b"0") => {}
        Some(other) => {
            let status = String::from_utf8_lossy(other);
            return Err(AskError::Unusable(format!("grpc-status {status}")));
        }
        None => return Err(AskError::Unusable("no grpc-status".to_owned())),
    }
    let unusable = |what: &str| AskError::Unusable(what.to_owned());
    let body = answer.response.body();
    let (prefix, rest) = body
        .split_at_checked(PREFIX)
        .ok_or_else(|| unusable("no message"))?;
    if prefix[0] != 0 {
        return Err(unusable("a compressed message"));
    }
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
    if usize::try_from(length).ok() != Some(rest.len()) {
        return Err(unusable("more or less than one message"));
    }
    A::decode(rest).map_err(|error| AskError::Unusable(error.to_string()))
}

#[cfg(any(test, feature = "testing"))]
pub mod testing {
    //! Questions over loopback, to servers that really answer.

    use std::net::SocketAddr;

    use http_body_util::{BodyExt, Full, Limited};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use tokio::net::TcpStream;
    use tulle_runtime::tasks;

    use super::*;

    /// Every question goes to one address, whoever it is meant for.
    #[derive(Debug)]
    pub struct Loopback(pub SocketAddr);

    impl Ask for Loopback {
        fn ask<'a>(&'a self, question: Question<'a>) -> BoxFuture<'a, Result<Answer, AskError>> {
            Box::pin(async move {
                let broken = |error: &dyn fmt::Display| AskError::Connection(error.to_string());
                let stream = TcpStream::connect(self.0).await.map_err(|error| broken(&error))?;
                let io = TokioIo::new(stream);
                let request = question.request.map(Full::new);
                let response = match question.over {
                    Over::Http2 => {
                        let connecting =
                            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await;
                        let (mut sender, connection) = connecting.map_err(|error| broken(&error))?;
                        tasks::spawn("loopback", async move { drop(connection.await) });
                        sender.send_request(request).await
                    }
                    Over::Http1 => {
                        let connecting = hyper::client::conn::http1::handshake(io).await;
                        let (mut sender, connection) = connecting.map_err(|error| broken(&error))?;
                        tasks::spawn("loopback", async move { drop(connection.await) });
                        sender.send_request(request).await
                    }
                };
                let (parts, body) = response.map_err(|error| broken(&error))?.into_parts();
                let limited = Limited::new(body, question.answer_bytes_max);
                let collected = limited.collect().await.map_err(|_| AskError::TooLong)?;
                let trailers = collected.trailers().cloned().unwrap_or_default();
                Ok(Answer {
                    response: Response::from_parts(parts, collected.to_bytes()),
                    trailers,
                })
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tulle_proto::rate_limit::RateLimitResponse;

    fn answer(status: &str, body: &'static [u8]) -> Result<RateLimitResponse, AskError> {
        let response = Response::builder()
            .header("grpc-status", status)
            .body(Bytes::from_static(body));
        message(&Answer {
            response: response.unwrap(),
            trailers: HeaderMap::new(),
        })
    }

    #[test]
    fn one_message_with_status_zero_is_an_answer_and_all_else_is_none() {
        assert_eq!(answer("0", &[0, 0, 0, 0, 2, 8, 1]).unwrap().overall_code, 1);
        for (status, body) in [
            ("14", &[0, 0, 0, 0, 0][..]),
            ("0", &[]),
            ("0", &[1, 0, 0, 0, 0]),
            ("0", &[0, 0, 0, 0, 3, 8, 1]),
            ("0", &[0, 0, 0, 0, 1, 8, 1]),
            ("0", &[0, 0, 0, 0, 1, 255]),
        ] {
            let body: &'static [u8] = body;
            assert!(
                matches!(answer(status, body), Err(AskError::Unusable(_))),
                "{status} {body:?}"
            );
        }
    }
}
