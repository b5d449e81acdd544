//! What an operator tells the control plane, on its admin socket.

use std::time::Duration;

use serde_json::Value;
use tokio::net::UnixStream;
use tokio::time::Instant;
use tulle_runtime::http_client;
use tulle_world::Component;

use crate::TestMesh;

/// Sends a command; it must be taken.
pub(super) async fn command(mesh: &TestMesh, path: &str, body: &Value) -> Value {
    let socket = mesh.mesh.folders().socket(&Component::Control);
    let stream = UnixStream::connect(socket).await.unwrap();
    let answer = http_client::post_json(stream, "localhost", path, body.to_string())
        .await
        .unwrap();
    let text = String::from_utf8_lossy(answer.body()).into_owned();
    assert!(answer.status().is_success(), "{path}: {} {text}", answer.status());
    serde_json::from_str(&text).unwrap_or(Value::Null)
}

/// A page of the control plane.
pub(super) async fn page(mesh: &TestMesh, path: &str) -> Value {
    mesh.ask(&Component::Control, path).await
}

/// Waits until something holds; gives the time that took, or nothing.
pub(super) async fn within(patience: Duration, mut holds: impl AsyncFnMut() -> bool) -> Option<Duration> {
    let begun = Instant::now();
    while begun.elapsed() < patience {
        if holds().await {
            return Some(begun.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    None
}
