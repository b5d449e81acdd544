//! The signals that ask a process to end.

use tokio::signal::unix::{SignalKind, signal};

/// Waits for SIGTERM or SIGINT and names the one that came.
///
/// If a handler cannot be installed the wait lasts for ever: the kernel's default action still ends the process.
pub async fn shutdown() -> &'static str {
    tokio::select! {
        () = arrival(SignalKind::terminate()) => "SIGTERM",
        () = arrival(SignalKind::interrupt()) => "SIGINT",
    }
}

async fn arrival(kind: SignalKind) {
    match signal(kind) {
        Ok(mut stream) => {
            stream.recv().await;
        }
        Err(error) => {
            tracing::warn!(%error, ?kind, "cannot listen for a signal");
            std::future::pending::<()>().await;
        }
    }
}
