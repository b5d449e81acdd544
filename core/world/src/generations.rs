//! Generations of a supervised node proxy: who runs, and the upgrade to the next.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::UnixStream;
use tulle_runtime::http_client;

use crate::mesh::{Component, Mesh, MeshError};
use crate::process::ProcessError;

/// Time until the next generation is ready.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(30);

/// One generation of a node's proxy, as its supervisor tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    /// Counts from 1.
    pub number: u64,
    /// Its process.
    pub pid: Option<i32>,
    /// `starting`, `serving` or `draining`.
    pub phase: String,
}

impl Mesh {
    /// The generations of a node's supervised proxy, the oldest first; none when its supervisor does not answer.
    pub async fn generations(&self, node: &str) -> Vec<Generation> {
        let socket = self.folders().run.join(format!("supervisor-{node}.sock"));
        let Ok(stream) = UnixStream::connect(socket).await else {
            return Vec::new();
        };
        let answer = http_client::get(stream, "localhost", "/generations", http::HeaderMap::new()).await;
        let page: Vec<serde_json::Value> = answer
            .ok()
            .and_then(|answer| serde_json::from_slice(answer.body()).ok())
            .unwrap_or_default();
        let generation = |shown: &serde_json::Value| Generation {
            number: shown["generation"].as_u64().unwrap_or_default(),
            pid: shown["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()),
            phase: shown["phase"].as_str().unwrap_or_default().to_owned(),
        };
        page.iter().map(generation).collect()
    }

    /// The generation that new connections go to.
    pub async fn newest_generation(&self, node: &str) -> Option<Generation> {
        self.generations(node)
            .await
            .pop()
            .filter(|newest| newest.phase == "serving")
    }

    /// Starts the next generation of a node's proxy, as SIGHUP to its supervisor does, and waits until it is ready.
    ///
    /// # Errors
    /// When a component ends, or the generation is not ready in time.
    pub async fn upgrade_ztunnel(&mut self, node: &str) -> Result<Generation, MeshError> {
        let component = Component::Ztunnel(node.to_owned());
        let before = self
            .newest_generation(node)
            .await
            .map_or(0, |newest| newest.number);
        if let Some(supervisor) = self.process(&component) {
            supervisor.signal(Signal::SIGHUP)?;
        }
        let deadline = tokio::time::Instant::now() + UPGRADE_TIMEOUT;
        loop {
            self.ensure_running()?;
            if let Some(newest) = self
                .newest_generation(node)
                .await
                .filter(|newest| newest.number > before)
            {
                return Ok(newest);
            }
            if tokio::time::Instant::now() >= deadline {
                let name = component.name();
                return Err(MeshError::NotReady {
                    log: self.folders().log(&name),
                    name,
                    timeout: UPGRADE_TIMEOUT,
                });
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Kills the newest generation of a node's proxy, as a crash would; its supervisor lives. Returns its number.
    ///
    /// # Errors
    /// When there is none, or it cannot be signalled.
    pub async fn crash_ztunnel(&self, node: &str) -> Result<u64, MeshError> {
        let newest = self.newest_generation(node).await;
        let Some((number, pid)) = newest.and_then(|newest| Some((newest.number, newest.pid?))) else {
            let gone = std::io::Error::other("no generation serves");
            return Err(end_error(node, gone));
        };
        // The supervisor reaps it, and has just said that it runs.
        kill(Pid::from_raw(pid), Signal::SIGKILL).map_err(|error| end_error(node, error.into()))?;
        Ok(number)
    }
}

fn end_error(node: &str, source: std::io::Error) -> MeshError {
    let name = format!("a generation of ztunnel-{node}");
    MeshError::Process(ProcessError::End { name, source })
}
