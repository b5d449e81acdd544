//! HTTP for operators: admin pages on loopback TCP and a unix socket, readiness, metrics.
//!
//! Admin pages say much, so they are guarded: the unix socket is for its owner only, and on TCP a `Host` or `Origin`
//! that is not loopback is refused, which keeps a web page in an operator's browser out. Readiness and metrics are
//! asked for by kubelet and Prometheus from elsewhere and say little; they are open.

mod caller;
mod guard;
mod listen;
mod pages;
pub mod profile;

use std::time::Duration;

pub use axum::Router;
pub use caller::Caller;
pub use listen::{AdminError, Listen, Listener};
pub use pages::{logging, metrics, readiness};

use crate::drain::DrainWatcher;

/// How long open requests may take once the process is over.
const CLOSE_WAIT_MAX: Duration = Duration::from_secs(1);

/// Serves guarded pages until the drain is over: pages stay reachable while connections drain.
pub async fn serve(listener: Listener, router: Router, drain: DrainWatcher) {
    let router = if listener.is_tcp() {
        guard::guarded(router)
    } else {
        router
    };
    serve_open(listener, router, drain).await;
}

/// Serves pages to anyone who can connect, until the drain is over.
pub async fn serve_open(listener: Listener, router: Router, drain: DrainWatcher) {
    let name = listener.to_string();
    let over = drain.clone();
    let serving = listener.serve(router, async move { over.over().await });
    let cut = async {
        drain.over().await;
        tokio::time::sleep(CLOSE_WAIT_MAX).await;
    };
    tokio::select! {
        result = serving => if let Err(error) = result {
            tracing::error!(%error, listener = name, "cannot serve");
        },
        () = cut => {}
    }
}

#[cfg(test)]
mod tests;
