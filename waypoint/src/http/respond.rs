//! The only place where reasons become answers.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use tulle_model::reason::http::grpc_status;
use tulle_model::{Reason, Str};
use tulle_transport::ReasonHeader;

use super::body::ResponseBody;
use super::hygiene::encode::REQUEST_ID;
use crate::config::ReasonDetail;
use crate::telemetry::request_id::fresh;

const REASON: HeaderName = HeaderName::from_static(tulle_transport::reason_header::NAME);
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// An answer of the waypoint itself.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Why.
    pub reason: Reason,
    /// The policy or route that decided, if one did.
    pub because: Option<Str>,
    /// What differs from what the reason says.
    pub own: Option<Box<Own>>,
}

/// What a reply says otherwise than its reason would.
#[derive(Debug, Clone, Default)]
pub struct Own {
    /// The status.
    pub status: Option<StatusCode>,
    /// The status of gRPC; without it, what follows from the status.
    pub grpc: Option<u32>,
    /// Further fields.
    pub headers: HeaderMap,
    /// The body; callers of gRPC get none.
    pub body: Option<Bytes>,
}

impl From<Reason> for Reply {
    fn from(reason: Reason) -> Self {
        Self {
            reason,
            because: None,
            own: None,
        }
    }
}

/// To whom a reply goes.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'a> {
    /// Whether it speaks gRPC.
    pub grpc: bool,
    /// The id of its request.
    pub id: &'a HeaderValue,
    /// How much it is told.
    pub detail: ReasonDetail,
}

/// Makes the answer.
#[must_use]
pub fn reply(reply: Reply, caller: Caller<'_>) -> Response<ResponseBody> {
    let answer = reply.reason.answer();
    let usual = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    let own = reply.own.map(|own| *own).unwrap_or_default();
    let mut response = Response::new(ResponseBody::default());
    *response.headers_mut() = own.headers;
    if caller.grpc {
        let told = own.status.map(|status| grpc_status(status.as_u16()));
        let grpc = own.grpc.or(told).unwrap_or(answer.grpc);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(GRPC_STATUS, HeaderValue::from(grpc));
        headers.insert(GRPC_MESSAGE, HeaderValue::from_static(reply.reason.token()));
    } else {
        *response.status_mut() = own.status.unwrap_or(usual);
        let body = own
            .body
            .unwrap_or_else(|| Bytes::from_static(line(reply.reason).as_bytes()));
        let headers = response.headers_mut();
        headers
            .entry(CONTENT_TYPE)
            .or_insert(HeaderValue::from_static("text/plain"));
        *response.body_mut() = ResponseBody::text(body);
    }
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, caller.id.clone());
    if let Some(told) = told(reply.reason, reply.because.as_ref(), caller) {
        headers.insert(REASON, told);
    }
    response
}

/// An answer of HTTP/1.1 to what never became a request; the connection ends with it.
#[must_use]
pub fn last_word(reason: Reason, detail: ReasonDetail) -> Vec<u8> {
    let id = fresh(rand::random());
    let caller = Caller {
        grpc: false,
        id: &id,
        detail,
    };
    let status = StatusCode::from_u16(reason.answer().status).unwrap_or(StatusCode::BAD_REQUEST);
    let body = line(reason);
    let mut text = format!(
        "HTTP/1.1 {} {}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n",
        status.as_str(),
        status.canonical_reason().unwrap_or_default(),
        body.len()
    );
    if let Some(told) = told(reason, None, caller) {
        text.push_str(&format!("{REASON}: {}\r\n", told.to_str().unwrap_or_default()));
    }
    text.push_str("\r\n");
    text.push_str(body);
    text.into_bytes()
}

/// The body of a reply, one line.
fn line(reason: Reason) -> &'static str {
    match reason {
        Reason::PolicyDenied
        | Reason::NoAllowMatched
        | Reason::PolicyPending
        | Reason::PolicyUntranslatable
        | Reason::PolicyChanged => "RBAC: access denied",
        other => other.help(),
    }
}

fn told(reason: Reason, because: Option<&Str>, caller: Caller<'_>) -> Option<HeaderValue> {
    let header = ReasonHeader::new(reason);
    let header = match (caller.detail, because) {
        (ReasonDetail::None, _) => return None,
        (ReasonDetail::Code, _) => header,
        (ReasonDetail::Full, None) => header,
        (ReasonDetail::Full, Some(policy)) => header.policy(policy),
    };
    let id = caller.id.to_str().unwrap_or_default();
    HeaderValue::try_from(header.id(id).to_string()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body::Body;

    fn caller(id: &HeaderValue, grpc: bool) -> Caller<'_> {
        Caller {
            grpc,
            id,
            detail: ReasonDetail::Full,
        }
    }

    #[test]
    fn a_reply_says_its_reason_and_the_id_of_the_request() {
        let id = HeaderValue::from_static("r1");
        let denied = Reply {
            because: Some("shop/deny".into()),
            ..Reason::PolicyDenied.into()
        };
        let response = reply(denied, caller(&id, false));
        assert_eq!(response.status(), 403);
        assert_eq!(
            response.headers()[REASON],
            "T0412; policy_denied; policy=shop/deny; id=r1"
        );
        assert_eq!(response.headers()[REQUEST_ID], "r1");
        assert_eq!(response.body().size_hint().exact(), Some(19));
    }

    #[test]
    fn callers_of_grpc_get_trailers_only() {
        let id = HeaderValue::from_static("r1");
        let response = reply(Reason::RouteNotFound.into(), caller(&id, true));
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()[GRPC_STATUS], "12");
        assert!(response.body().is_end_stream());
    }

    #[test]
    fn who_may_not_know_is_told_nothing() {
        let id = HeaderValue::from_static("r1");
        let silent = Caller {
            detail: ReasonDetail::None,
            ..caller(&id, false)
        };
        let response = reply(Reason::PolicyDenied.into(), silent);
        assert!(!response.headers().contains_key(REASON));
    }
}
