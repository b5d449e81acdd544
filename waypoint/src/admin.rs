//! Pages for operators and for `tulle`: what is known, what is in front of what.

pub mod explain;

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tulle_runtime::admin;
use tulle_runtime::metrics::Exposition;
use tulle_runtime::ready::Ready;
use tulle_runtime::telemetry::LogHandle;

use crate::context::Waypoint;
use crate::upstream::backend::Backend;
use crate::upstream::endpoint::Endpoint;

/// What the pages show. Clones share it.
#[derive(Debug, Clone)]
pub struct Pages {
    /// The waypoint.
    pub waypoint: Arc<Waypoint>,
    /// Readiness.
    pub ready: Ready,
    /// Metrics.
    pub exposition: Exposition,
    /// Log levels; `None` where logging is not ours to change.
    pub log: Option<LogHandle>,
    /// Notified by `/quitquitquit`.
    pub quit: Arc<Notify>,
}

const INDEX: &str = "GET  /config_dump   settings, fronts, routes, policies, backends, certificates\n\
                     POST /explain       what would become of a request: source, sourceIp, authority, method, path, headers\n\
                     POST /logging       ?level=<filter> or ?reset\n\
                     POST /quitquitquit  drain and end\n";

impl Pages {
    /// Pages of the admin port.
    pub fn admin(&self) -> Router {
        let pages = Router::new()
            .route("/", get(|| async { INDEX }))
            .route("/config_dump", get(config_dump))
            .route("/explain", post(explain::answer))
            .route("/quitquitquit", post(quit))
            .with_state(self.clone());
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

async fn config_dump(State(pages): State<Pages>) -> Json<Value> {
    let waypoint = &pages.waypoint;
    let snapshot = waypoint.view.load();
    let mut fronts: Vec<Value> = snapshot
        .fronts()
        .map(|front| {
            let ports = front.ports().map(|(port, state)| {
                let endpoints = endpoints(&state.backend);
                json!({
                    "port": port,
                    "protocol": state.protocol,
                    "readsRequests": state.is_http,
                    "routes": state.routes.iter().map(|route| route.name()).collect::<Vec<_>>(),
                    "endpoints": endpoints,
                })
            });
            json!({
                "front": front.front,
                "missingPolicies": front.missing,
                "security": front.security.iter().map(|policy| policy.name()).collect::<Vec<_>>(),
                "ports": ports.collect::<Vec<_>>(),
            })
        })
        .collect();
    fronts.sort_by_key(|front| front["front"].to_string());
    Json(json!({
        "generation": snapshot.mesh.generation(),
        "config": waypoint.config,
        "settings": snapshot.settings,
        "fronts": fronts,
        "routes": snapshot.mesh.routes().collect::<Vec<_>>(),
        "policies": snapshot.mesh.waypoint_policies().collect::<Vec<_>>(),
        "certificates": waypoint.secrets.list(),
        "xds": waypoint.mesh.status(),
    }))
}

/// Who serves a backend, and how it stands with each of them.
fn endpoints(backend: &Backend) -> Vec<Value> {
    let Some(cluster) = backend.cluster() else {
        return Vec::new();
    };
    let now = backend.now();
    let endpoint = |endpoint: &Endpoint| {
        let state = &endpoint.state;
        json!({
            "workload": endpoint.workload.uid,
            "addresses": endpoint.workload.addresses,
            "targetPort": endpoint.target_port,
            "tunnelled": endpoint.is_tunnelled(),
            "encryption": cluster.encryption_to(endpoint),
            "capacity": endpoint.workload.capacity,
            "inFlight": state.in_flight(),
            "latencyMs": state.latency(now).map(|latency| latency.as_secs_f64() * 1_000.0),
            "state": cluster.state_of(endpoint, now).as_str(),
        })
    };
    cluster.endpoints().iter().map(endpoint).collect()
}

async fn quit(State(pages): State<Pages>) -> impl IntoResponse {
    pages.quit.notify_one();
    (StatusCode::OK, "shutdown now\n")
}
