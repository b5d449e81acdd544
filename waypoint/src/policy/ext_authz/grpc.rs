//! The question over gRPC.

use std::collections::BTreeMap;

use ::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use bytes::Bytes;
use tulle_model::request::Protocol;
use tulle_model::request::reserved::is_untouchable;
use tulle_proto::ext_authz::attribute_context::{HttpRequest, Peer, Request};
use tulle_proto::ext_authz::check_response::HttpResponse;
use tulle_proto::ext_authz::{
    Address, AppendAction, AttributeContext, CheckRequest, CheckResponse, DeniedHttpResponse,
    HeaderValueOption, OkHttpResponse, SocketAddress,
};

use super::changes::How;
use super::{ANSWER_BYTES_MAX, Authorizer, Changes, Decision, Denied, Subject};
use crate::policy::ask::{Ask, AskError, Asked, unary};

const PATH: &str = "/envoy.service.auth.v3.Authorization/Check";

impl Authorizer {
    pub(super) async fn ask_grpc(
        &self,
        ask: &dyn Ask,
        to: &Asked,
        subject: Subject<'_>,
    ) -> Result<Decision, AskError> {
        let question = self.question(subject);
        let answer: CheckResponse = unary(ask, (to, PATH), &question, ANSWER_BYTES_MAX, subject.hops).await?;
        // Without a status, nothing was said.
        let status = answer
            .status
            .ok_or_else(|| AskError::Unusable("no status".to_owned()))?;
        Ok(match (status.code, answer.http_response) {
            (0, Some(HttpResponse::OkResponse(ok))) => Decision::Allow(changes(ok)),
            (0, None) => Decision::Allow(Changes::default()),
            // A yes that carries a no is a no.
            (_, Some(HttpResponse::DeniedResponse(denied))) => Decision::Deny(denial(denied)),
            _ => Decision::Deny(denial(DeniedHttpResponse::default())),
        })
    }

    fn question(&self, subject: Subject<'_>) -> CheckRequest {
        let Subject {
            source,
            destination,
            head,
            id,
            body,
            now,
            hops: _,
        } = subject;
        let query = head
            .query
            .as_deref()
            .map(|query| format!("?{query}"))
            .unwrap_or_default();
        let body_text = String::from_utf8(body.to_vec());
        let (body, raw_body) = match body_text {
            Ok(text) => (text, Vec::new()),
            Err(error) => (String::new(), error.into_bytes()),
        };
        let length = head.headers.get(::http::header::CONTENT_LENGTH);
        let length = length.and_then(|value| value.to_str().ok()?.parse().ok());
        let http = HttpRequest {
            id: id.to_owned(),
            method: head.method.to_string(),
            headers: self.chosen(&head.headers),
            path: format!("{}{query}", head.path),
            host: head.authority.to_string(),
            scheme: head.scheme.as_str().to_owned(),
            size: length.unwrap_or(-1),
            protocol: match head.protocol {
                Protocol::Http10 => "HTTP/1.0",
                Protocol::Http11 => "HTTP/1.1",
                Protocol::Http2 => "HTTP/2",
            }
            .to_owned(),
            body,
            raw_body,
        };
        let address = |address: std::net::IpAddr, port: u16| Address {
            socket_address: Some(SocketAddress {
                address: address.to_string(),
                port_value: port.into(),
            }),
        };
        let identity = source.identity.as_ref().map(ToString::to_string);
        CheckRequest {
            attributes: Some(AttributeContext {
                source: Some(Peer {
                    address: Some(address(source.ip, 0)),
                    service: String::new(),
                    principal: identity.unwrap_or_default(),
                }),
                destination: Some(Peer {
                    address: Some(address(destination.address.ip(), destination.address.port())),
                    ..Peer::default()
                }),
                request: Some(Request {
                    time: Some(prost_types::Timestamp {
                        seconds: now,
                        nanos: 0,
                    }),
                    http: Some(http),
                }),
                context_extensions: BTreeMap::new(),
            }),
        }
    }

    /// Without a list, all fields; with one, those.
    fn chosen(&self, headers: &HeaderMap) -> BTreeMap<String, String> {
        let mut chosen = BTreeMap::new();
        for name in headers.keys() {
            let is_listed = self
                .headers
                .iter()
                .any(|wanted| wanted.eq_ignore_ascii_case(name.as_str()));
            if !self.headers.is_empty() && !is_listed {
                continue;
            }
            let values = headers.get_all(name).iter();
            let values: Vec<_> = values
                .map(|value| String::from_utf8_lossy(value.as_bytes()))
                .collect();
            chosen.insert(name.to_string(), values.join(","));
        }
        chosen
    }
}

fn changes(ok: OkHttpResponse) -> Changes {
    let mut changes = Changes::default();
    for name in &ok.headers_to_remove {
        changes.remove_from_request(name);
    }
    for option in ok.headers {
        // What stands there is replaced, unless more is said.
        if let Some((how, name, value)) = read(option, How::Set) {
            changes.on_request(how, &name, &value);
        }
    }
    for option in ok.response_headers_to_add {
        if let Some((how, name, value)) = read(option, How::Append) {
            changes.on_response(how, &name, &value);
        }
    }
    changes
}

fn read(option: HeaderValueOption, usual: How) -> Option<(How, String, Vec<u8>)> {
    let how = match (option.append, AppendAction::try_from(option.append_action)) {
        (Some(true), _) => How::Append,
        (Some(false), _) => How::Set,
        (None, Ok(AppendAction::AddIfAbsent)) => How::AddIfAbsent,
        (None, Ok(AppendAction::OverwriteIfExistsOrAdd)) => How::Set,
        (None, Ok(AppendAction::OverwriteIfExists)) => How::SetIfThere,
        // The first action cannot be told from none at all.
        (None, _) => usual,
    };
    let header = option.header?;
    let value = if header.raw_value.is_empty() {
        header.value.into_bytes()
    } else {
        header.raw_value
    };
    Some((how, header.key, value))
}

fn denial(denied: DeniedHttpResponse) -> Denied {
    let status = denied.status.and_then(|status| u16::try_from(status.code).ok());
    let status = status.and_then(|status| StatusCode::from_u16(status).ok());
    let mut headers = HeaderMap::new();
    for option in denied.headers {
        let Some((how, name, value)) = read(option, How::Set) else {
            continue;
        };
        let (Ok(name), Ok(value)) = (
            HeaderName::from_bytes(name.as_bytes()),
            HeaderValue::from_bytes(&value),
        ) else {
            continue;
        };
        if is_untouchable(name.as_str()) {
            continue;
        }
        if how == How::Append {
            headers.append(name, value);
        } else {
            headers.insert(name, value);
        }
    }
    Denied {
        status: status
            .filter(|status| status.as_u16() >= 200)
            .unwrap_or(StatusCode::FORBIDDEN),
        headers,
        body: Bytes::from(denied.body),
    }
}
