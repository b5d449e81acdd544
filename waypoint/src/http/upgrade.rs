//! A request that becomes a stream of bytes, a WebSocket: whether both sides agree, and how their agreement is written in
//! `upgrade` of HTTP/1.1 and in extended CONNECT of HTTP/2 (RFC 8441).
//!
//! ```text
//! client                     waypoint                       endpoint
//! GET, upgrade: websocket ─▶          ─▶ GET, upgrade: websocket     (HTTP/1.1)
//! CONNECT, :protocol      ─▶          ─▶ CONNECT, :protocol          (HTTP/2, where the port is declared so)
//! 101 or 200              ◀─          ◀─ 101 or 200     then bytes, both ways; anything else keeps its framing
//! ```

pub mod relay;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{CONNECTION, CONTENT_LENGTH, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::response::Parts;
use http::{HeaderValue, StatusCode};
use tulle_model::request::Protocol;
use tulle_model::{Reason, RequestHead};

pub use relay::Switched;

use crate::upstream::pool::Version;

/// RFC 6455, 1.3.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What was asked of an endpoint.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The client's request.
    pub head: &'a RequestHead,
    /// The key that the endpoint was sent.
    pub key: Option<&'a HeaderValue>,
    /// What is spoken to the endpoint.
    pub over: Version,
}

/// Whether the answer agrees. If so, its head becomes the agreement in the client's own words.
///
/// # Errors
/// The answer means something else to the client than to the endpoint.
pub fn settle(answer: &mut Parts, asked: &Asked<'_>) -> Result<bool, Reason> {
    let agreed = match asked.over {
        Version::Http1 => answer.status == StatusCode::SWITCHING_PROTOCOLS,
        Version::Http2 => answer.status == StatusCode::OK,
    };
    let by_connect = asked.head.protocol == Protocol::Http2;
    if !agreed {
        // To who asks by CONNECT any success is an agreement.
        let misread = by_connect && answer.status.is_success();
        return if misread {
            Err(Reason::UpstreamProtocol)
        } else {
            Ok(false)
        };
    }
    let client_key = asked.head.headers.get(SEC_WEBSOCKET_KEY);
    // The client checks the answer to its own key; that to ours nobody else can check.
    if asked.over == Version::Http1
        && client_key.is_none()
        && answer.headers.get(SEC_WEBSOCKET_ACCEPT) != asked.key.and_then(accept).as_ref()
    {
        return Err(Reason::UpstreamProtocol);
    }
    answer.headers.remove(CONTENT_LENGTH);
    if by_connect {
        answer.status = StatusCode::OK;
        answer.headers.remove(SEC_WEBSOCKET_ACCEPT);
        return Ok(true);
    }
    answer.status = StatusCode::SWITCHING_PROTOCOLS;
    let headers = &mut answer.headers;
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    if asked.over == Version::Http2
        && let Some(accept) = client_key.and_then(accept)
    {
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    Ok(true)
}

/// What a server says to a key.
fn accept(key: &HeaderValue) -> Option<HeaderValue> {
    let text = [key.as_bytes(), GUID.as_bytes()].concat();
    let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, &text);
    HeaderValue::try_from(STANDARD.encode(hash)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, Method, Response};
    use tulle_model::request::Scheme;

    /// The example of RFC 6455, 1.3.
    const KEY: HeaderValue = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
    const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

    fn head(protocol: Protocol) -> RequestHead {
        let mut headers = HeaderMap::new();
        if protocol == Protocol::Http11 {
            headers.insert(SEC_WEBSOCKET_KEY, KEY);
        }
        RequestHead {
            method: Method::GET,
            scheme: Scheme::Http,
            authority: "web.shop".into(),
            path: "/".into(),
            query: None,
            headers,
            protocol,
        }
    }

    fn settled(
        protocol: Protocol,
        over: Version,
        status: u16,
        accept: &str,
    ) -> (Result<bool, Reason>, Parts) {
        let answer = Response::builder()
            .status(status)
            .header(SEC_WEBSOCKET_ACCEPT, accept);
        let (mut parts, ()) = answer.body(()).unwrap().into_parts();
        let asked = Asked {
            head: &head(protocol),
            key: Some(&KEY),
            over,
        };
        (settle(&mut parts, &asked), parts)
    }

    #[test]
    fn an_agreement_is_told_in_the_client_s_own_words() {
        let (agreed, parts) = settled(Protocol::Http2, Version::Http1, 101, ACCEPT);
        assert_eq!((agreed, parts.status.as_u16()), (Ok(true), 200));
        assert!(!parts.headers.contains_key(SEC_WEBSOCKET_ACCEPT));
        let (agreed, parts) = settled(Protocol::Http11, Version::Http2, 200, "-");
        assert_eq!((agreed, parts.status.as_u16()), (Ok(true), 101));
        assert_eq!(parts.headers[SEC_WEBSOCKET_ACCEPT], ACCEPT);
        assert_eq!(parts.headers[UPGRADE], "websocket");
    }

    #[test]
    fn what_is_no_agreement_does_not_become_one() {
        for (protocol, over, status, expected) in [
            (Protocol::Http11, Version::Http1, 200, Ok(false)),
            (Protocol::Http11, Version::Http1, 403, Ok(false)),
            (Protocol::Http2, Version::Http1, 403, Ok(false)),
            // The client would take it for one.
            (
                Protocol::Http2,
                Version::Http1,
                200,
                Err(Reason::UpstreamProtocol),
            ),
            (
                Protocol::Http2,
                Version::Http2,
                204,
                Err(Reason::UpstreamProtocol),
            ),
        ] {
            let (agreed, parts) = settled(protocol, over, status, ACCEPT);
            assert_eq!(agreed, expected, "{protocol:?} {over:?} {status}");
            assert_eq!(parts.status.as_u16(), status);
        }
    }

    #[test]
    fn a_server_that_does_not_know_our_key_did_not_agree() {
        let (agreed, _) = settled(Protocol::Http2, Version::Http1, 101, "wrong");
        assert_eq!(agreed, Err(Reason::UpstreamProtocol));
        let (agreed, _) = settled(Protocol::Http11, Version::Http1, 101, "wrong");
        assert_eq!(agreed, Ok(true), "the client sees to its own");
    }
}
