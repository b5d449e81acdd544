//! Waits until components are ready, and notices those that ended by themselves.

use std::path::Path;
use std::time::Duration;

use tokio::net::UnixStream;
use tulle_runtime::http_client;

use super::{Component, Mesh, MeshError};
use crate::topology::World;

/// Time until a component is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(20);
/// Lines of its log shown when a component ends by itself.
const LOG_TAIL_LINES: usize = 15;

impl Mesh {
    /// Waits until a component says that it is ready.
    ///
    /// # Errors
    /// When it ends, or is not ready in time.
    pub async fn wait_ready(&mut self, component: &Component) -> Result<(), MeshError> {
        let deadline = tokio::time::Instant::now() + READY_TIMEOUT;
        while !is_ready(&self.folders.socket(component)).await {
            self.ensure_running()?;
            if tokio::time::Instant::now() >= deadline {
                let name = component.name();
                return Err(MeshError::NotReady {
                    log: self.folders.log(&name),
                    name,
                    timeout: READY_TIMEOUT,
                });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Waits until a readiness port inside of a node answers.
    ///
    /// # Errors
    /// When a component ends, or it does not answer in time.
    pub async fn wait_ready_at(&mut self, world: &World, node: &str, port: u16) -> Result<(), MeshError> {
        let namespace = world.node(node)?.namespace().clone();
        let deadline = tokio::time::Instant::now() + READY_TIMEOUT;
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
        loop {
            self.ensure_running()?;
            let connected = namespace
                .run_async(move || std::net::TcpStream::connect(address))
                .await;
            if let Ok(Ok(stream)) = connected
                && stream.set_nonblocking(true).is_ok()
                && let Ok(stream) = tokio::net::TcpStream::from_std(stream)
                && answers_ready(stream).await
            {
                return Ok(());
            }
            if tokio::time::Instant::now() >= deadline {
                let name = format!("ztunnel-{node}");
                return Err(MeshError::NotReady {
                    log: self.folders.log(&name),
                    name,
                    timeout: READY_TIMEOUT,
                });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Fails with the end of its log if a component has ended by itself.
    ///
    /// # Errors
    /// When one has.
    pub fn ensure_running(&mut self) -> Result<(), MeshError> {
        for process in self.processes.values_mut() {
            if let Some(status) = process.ended()? {
                let name = process.name().to_owned();
                let log = std::fs::read_to_string(self.folders.log(&name)).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let tail = lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n");
                return Err(MeshError::Ended { name, status, tail });
            }
        }
        Ok(())
    }
}

async fn is_ready(socket: &Path) -> bool {
    match UnixStream::connect(socket).await {
        Ok(stream) => answers_ready(stream).await,
        Err(_) => false,
    }
}

async fn answers_ready<S>(stream: S) -> bool
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let answer = http_client::get(stream, "localhost", "/healthz/ready", http::HeaderMap::new()).await;
    answer.is_ok_and(|answer| answer.status().is_success())
}
