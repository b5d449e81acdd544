//! What the agent tells about itself: pods, proxies, metrics, readiness.

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use tulle_model::Str;
use tulle_runtime::admin;
use tulle_runtime::metrics::Exposition;
use tulle_runtime::ready::Ready;
use tulle_runtime::telemetry::LogHandle;

use crate::board::{Board, Entry, Note};
use crate::events::Event;
use crate::zds::{Hub, ProxyInfo};

/// What `/pods` answers.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Pods {
    /// Id of the node.
    pub node: Str,
    /// Connected node proxies, the newest last.
    pub proxies: Vec<ProxyInfo>,
    /// What an operator should know of the node.
    pub notes: Vec<Note>,
    /// Pods of the node.
    pub pods: Vec<Entry>,
}

#[derive(Clone)]
struct Pages {
    node: Str,
    board: Board,
    hub: Hub,
}

/// All pages of the agent's admin socket.
pub(crate) fn router(
    node: Str,
    board: Board,
    hub: Hub,
    exposition: &Exposition,
    ready: &Ready,
    logs: Option<&LogHandle>,
) -> Router {
    let router = Router::new()
        .route("/pods", get(pods))
        .route("/events", get(events))
        .with_state(Pages { node, board, hub })
        .merge(admin::metrics(exposition))
        .merge(admin::readiness(ready));
    match logs {
        Some(logs) => router.merge(admin::logging(logs)),
        None => router,
    }
}

async fn events(State(pages): State<Pages>) -> Json<Vec<Event>> {
    Json(pages.board.events())
}

async fn pods(State(pages): State<Pages>) -> Json<Pods> {
    let proxies = pages.hub.watch().borrow().connected.clone();
    Json(Pods {
        node: pages.node,
        proxies,
        notes: pages.board.notes(),
        pods: pages.board.entries(),
    })
}
