//! The question over HTTP: the request's own method and path, without its body unless that is asked for. Status 200 is
//! a yes.

use ::http::header::{AUTHORIZATION, CONTENT_LENGTH, HOST};
use ::http::{HeaderName, HeaderValue, Request, StatusCode};
use bytes::Bytes;
use tulle_model::request::reserved::is_untouchable;

use super::changes::How;
use super::{ANSWER_BYTES_MAX, Authorizer, Changes, Decision, Denied, Subject};
use crate::policy::ask::{Ask, AskError, Asked, Over, Question};

/// Who asked, for the authorizer.
const SOURCE_PRINCIPAL: HeaderName = HeaderName::from_static("x-tulle-source-principal");
/// Where the caller is, for the authorizer.
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

impl Authorizer {
    pub(super) async fn ask_http(
        &self,
        ask: &dyn Ask,
        to: &Asked,
        path: &str,
        subject: Subject<'_>,
    ) -> Result<Decision, AskError> {
        let question = Question {
            to,
            over: Over::Http1,
            request: self.http_question(path, subject)?,
            answer_bytes_max: ANSWER_BYTES_MAX,
            hops: subject.hops,
        };
        let (parts, body) = ask.ask(question).await?.response.into_parts();
        if parts.status == StatusCode::OK {
            let mut changes = Changes::default();
            for name in &self.response_headers {
                for (n, value) in parts.headers.get_all(&**name).iter().enumerate() {
                    let how = if n == 0 { How::Set } else { How::Append };
                    changes.on_request(how, name, value.as_bytes());
                }
            }
            return Ok(Decision::Allow(changes));
        }
        // Who is broken decides nothing.
        if parts.status.is_server_error() || parts.status.is_informational() {
            return Err(AskError::Unusable(format!("status {}", parts.status.as_u16())));
        }
        let mut headers = parts.headers;
        let names: Vec<_> = headers
            .keys()
            .filter(|name| is_untouchable(name.as_str()))
            .cloned()
            .collect();
        for name in names {
            headers.remove(name);
        }
        // Any other success is no yes, and a caller must not take it for one.
        let status = if parts.status.is_success() {
            StatusCode::FORBIDDEN
        } else {
            parts.status
        };
        Ok(Decision::Deny(Denied {
            status,
            headers,
            body,
        }))
    }

    fn http_question(&self, path: &str, subject: Subject<'_>) -> Result<Request<Bytes>, AskError> {
        let head = subject.head;
        let unusable = |error: ::http::Error| AskError::Unusable(error.to_string());
        let query = head
            .query
            .as_deref()
            .map(|query| format!("?{query}"))
            .unwrap_or_default();
        let prefix = path.trim_end_matches('/');
        let mut request = Request::builder()
            .method(head.method.clone())
            .uri(format!("{prefix}{}{query}", head.path))
            .body(Bytes::copy_from_slice(subject.body))
            .map_err(unusable)?;
        let headers = request.headers_mut();
        for wanted in self
            .headers
            .iter()
            .map(|name| &**name)
            .chain([AUTHORIZATION.as_str()])
        {
            let Ok(name) = HeaderName::from_bytes(wanted.as_bytes()) else {
                continue;
            };
            if headers.contains_key(&name) || name == CONTENT_LENGTH || name == HOST {
                continue;
            }
            for value in head.headers.get_all(&name) {
                headers.append(&name, value.clone());
            }
        }
        let mut set = |name: HeaderName, text: &str| {
            if let Ok(value) = HeaderValue::from_str(text) {
                headers.insert(name, value);
            }
        };
        set(HOST, &head.authority);
        set(FORWARDED_FOR, &subject.source.ip.to_string());
        if let Some(identity) = &subject.source.identity {
            set(SOURCE_PRINCIPAL, &identity.to_string());
        }
        Ok(request)
    }
}
