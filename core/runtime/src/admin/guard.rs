//! Refuses requests that a web page in an operator's browser could make: foreign `Host`, foreign `Origin`.

use std::net::IpAddr;

use axum::Router;
use axum::extract::Request;
use axum::http::header::{HOST, ORIGIN};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};

/// `router` behind the check.
pub(super) fn guarded(router: Router) -> Router {
    router.layer(from_fn(check))
}

async fn check(request: Request, next: Next) -> Response {
    let host = request.uri().host().map(str::to_owned);
    if host.is_none_or(|host| is_loopback(&host)) && is_local(request.headers()) {
        next.run(request).await
    } else {
        (
            StatusCode::FORBIDDEN,
            "only requests from and to this machine are answered\n",
        )
            .into_response()
    }
}

/// Whether every `Host` and `Origin` names this machine's loopback.
fn is_local(headers: &HeaderMap) -> bool {
    let text = |value: &HeaderValue| value.to_str().map(str::to_owned).unwrap_or_default();
    let hosts_fit = headers
        .get_all(HOST)
        .iter()
        .all(|host| is_loopback(host_of(&text(host))));
    let origins_fit = headers.get_all(ORIGIN).iter().all(|origin| {
        text(origin)
            .split_once("://")
            .is_some_and(|(_, authority)| is_loopback(host_of(authority)))
    });
    headers.contains_key(HOST) && hosts_fit && origins_fit
}

/// The host of `host:port`, `[v6]:port` or `host`.
fn host_of(authority: &str) -> &str {
    match authority.strip_prefix('[') {
        Some(bracketed) => bracketed.split_once(']').map_or("", |(host, _)| host),
        None => authority.split_once(':').map_or(authority, |(host, _)| host),
    }
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host
            .trim_matches(['[', ']'])
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderName;

    fn check(headers: &[(&'static str, &'static str)]) -> bool {
        let pairs = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        is_local(&pairs.collect())
    }

    #[test]
    fn loopback_hosts_and_origins_pass() {
        assert!(check(&[("host", "localhost:15000")]));
        assert!(check(&[
            ("host", "127.0.0.1:15000"),
            ("origin", "http://localhost:15000")
        ]));
        assert!(check(&[("host", "[::1]:15000")]));
    }

    #[test]
    fn foreign_or_missing_hosts_and_origins_are_refused() {
        assert!(!check(&[]));
        assert!(!check(&[("host", "evil.example:15000")]));
        assert!(!check(&[("host", "localhost.evil.example")]));
        assert!(!check(&[
            ("host", "localhost"),
            ("origin", "https://evil.example")
        ]));
        assert!(!check(&[("host", "localhost"), ("origin", "null")]));
    }
}
