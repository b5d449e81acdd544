//! The pages every program has: readiness, metrics, log level.

use axum::Router;
use axum::extract::{Query, State};
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use tower_http::compression::CompressionLayer;

use crate::metrics::{Exposition, Format};
use crate::ready::Ready;
use crate::telemetry::LogHandle;

/// `GET /healthz/ready` and `GET /readyz`: 200 `ready`, or 500 with what is pending. `GET /healthz`: 200 for as long as the
/// process answers.
pub fn readiness(ready: &Ready) -> Router {
    async fn answer(State(ready): State<Ready>) -> Response {
        let pending = ready.pending();
        if pending.is_empty() {
            return (StatusCode::OK, "ready\n").into_response();
        }
        (
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("not ready, pending: {}\n", pending.join(", ")),
        )
            .into_response()
    }
    Router::new()
        .route("/healthz/ready", get(answer))
        .route("/readyz", get(answer))
        .route("/healthz", get(async || "alive\n"))
        .with_state(ready.clone())
}

/// `GET /metrics` and `GET /stats/prometheus`, as OpenMetrics and compressed when the scraper accepts it.
pub fn metrics(exposition: &Exposition) -> Router {
    async fn answer(State(exposition): State<Exposition>, headers: HeaderMap) -> Response {
        let format = Format::negotiate(headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()));
        (
            [(CONTENT_TYPE, format.content_type())],
            exposition.encode_as(format),
        )
            .into_response()
    }
    Router::new()
        .route("/metrics", get(answer))
        .route("/stats/prometheus", get(answer))
        .layer(CompressionLayer::new())
        .with_state(exposition.clone())
}

#[derive(Deserialize)]
struct LoggingQuery {
    level: Option<String>,
    reset: Option<String>,
}

/// `POST /logging?level=…` or `?reset`: changes the log filter, and answers with the one in force.
pub fn logging(handle: &LogHandle) -> Router {
    async fn answer(State(handle): State<LogHandle>, Query(query): Query<LoggingQuery>) -> Response {
        let changed = match (&query.level, &query.reset) {
            (Some(level), _) => handle.set_level(level),
            (None, Some(_)) => handle.reset_level(),
            (None, None) => Ok(()),
        };
        match changed {
            Ok(()) => format!("current log level is {}\n", handle.level()).into_response(),
            Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
        }
    }
    Router::new()
        .route("/logging", post(answer))
        .with_state(handle.clone())
}
