//! Pages for operators and for `tulle`: what is known, what is open, what would happen.

mod dump;
pub mod explain;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use tokio::sync::Notify;
use tulle_runtime::admin;
use tulle_runtime::metrics::Exposition;
use tulle_runtime::ready::Ready;
use tulle_runtime::telemetry::LogHandle;

use crate::connections::ConnectionDump;
use crate::fleet::FleetView;
use crate::plaintext::Caller;
use crate::pod::Node;

/// What the pages show. Clones share it.
#[derive(Debug, Clone)]
pub struct Pages {
    /// What all pods share.
    pub node: Arc<Node>,
    /// The pods.
    pub fleet: FleetView,
    /// Readiness.
    pub ready: Ready,
    /// Metrics.
    pub exposition: Exposition,
    /// Log levels; `None` where logging is not ours to change.
    pub log: Option<LogHandle>,
    /// Notified by `/quitquitquit`.
    pub quit: Arc<Notify>,
}

const INDEX: &str = "GET  /config_dump   workloads, services, policies, certificates, pods\n\
                     GET  /connections   open connections\n\
                     GET  /events        opens, closes and refusals from now on, a line of JSON each\n\
                     GET  /plaintext     callers without the mesh, of the last 24 hours\n\
                     POST /explain       what would happen to a connection\n\
                     POST /logging       ?level=<filter> or ?reset\n\
                     POST /quitquitquit  drain and end\n\
                     GET  /debug/pprof/profile  ?seconds=1-300&frequency=1-1000, where the processor's time goes\n\
                     GET  /debug/pprof/heap     what is known of memory\n";

impl Pages {
    /// Pages of the admin port.
    pub fn admin(&self) -> Router {
        let pages = Router::new()
            .route("/", get(|| async { INDEX }))
            .route("/config_dump", get(dump::config_dump))
            .route("/connections", get(connections))
            .route("/events", get(events))
            .route("/plaintext", get(plaintext))
            .route("/explain", post(explain::answer))
            .route("/quitquitquit", post(quit))
            .with_state(self.clone())
            .merge(admin::profile::pages(|| {
                let buffers = tulle_transport::copy::buffer_bytes();
                format!("buffers of connections: {buffers} bytes\n")
            }));
        match &self.log {
            Some(log) => pages.merge(admin::logging(log)),
            None => pages,
        }
    }

    /// Pages of the unix socket: those, metrics and readiness.
    pub fn local(&self) -> Router {
        self.admin()
            .merge(admin::metrics(&self.exposition))
            .merge(admin::readiness(&self.ready))
    }
}

async fn connections(State(pages): State<Pages>) -> Json<Vec<ConnectionDump>> {
    let mut open = pages.node.connections.list();
    open.sort_by_key(|live| live.story.started);
    Json(open.iter().map(|live| ConnectionDump::from(&**live)).collect())
}

async fn plaintext(State(pages): State<Pages>) -> Json<Vec<Caller>> {
    Json(pages.node.plaintext.list())
}

async fn events(State(pages): State<Pages>) -> Response {
    match pages.node.metrics.events.watch() {
        Some(lines) => (
            [(header::CONTENT_TYPE, "application/jsonl")],
            Body::from_stream(lines),
        )
            .into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "too many watchers\n").into_response(),
    }
}

async fn quit(State(pages): State<Pages>) -> impl IntoResponse {
    pages.quit.notify_one();
    (StatusCode::OK, "shutdown now\n")
}
