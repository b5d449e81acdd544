//! `tulle node upgrade`: the next generation of a node's proxy, without a lost connection.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use tulle_runtime::exit::Exit;

use super::Reading;
use crate::output::{print, table};
use crate::running::{Component, Kind};

/// The supervisor ends a generation that is not ready within 60 s; this is a little more.
const READY_WAIT: Duration = Duration::from_secs(65);

/// How often the supervisor is asked.
const POLL: Duration = Duration::from_millis(100);

/// One generation, as its supervisor tells of it.
#[derive(Debug, Clone, Deserialize, Serialize)]
struct Generation {
    generation: u64,
    pid: Option<i32>,
    phase: String,
}

/// Starts the next generation and waits until new connections are its own.
pub(super) async fn run(reading: &Reading, node: Option<String>) -> anyhow::Result<Exit> {
    let run_dir = reading.run_dir();
    let node = match node {
        Some(node) => node,
        None => only(run_dir.supervised())?,
    };
    let supervisor = run_dir.component(Kind::Supervisor, &node);
    let context = "the node proxy must run under `tulle ztunnel --supervise`";
    let before = newest(&generations(&supervisor).await.context(context)?);
    supervisor.tell("/upgrade").await?;
    let shown = until_serving(&supervisor, before).await?;
    print(reading.output(), "node.upgrade", &shown, || {
        let mut table = table(&["GENERATION", "PID", "PHASE"]);
        for one in &shown {
            let pid = one.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
            table.add_row([one.generation.to_string(), pid, one.phase.clone()]);
        }
        table
    })?;
    Ok(Exit::Ok)
}

fn only(mut nodes: Vec<String>) -> anyhow::Result<String> {
    match (nodes.pop(), nodes.is_empty()) {
        (Some(node), true) => Ok(node),
        (None, _) => {
            bail!("no node proxy runs under a supervisor here; start it with `tulle ztunnel --supervise`")
        }
        (Some(last), false) => {
            nodes.push(last);
            bail!(
                "several node proxies run here; name one with --node: {}",
                nodes.join(", ")
            )
        }
    }
}

async fn generations(supervisor: &Component) -> anyhow::Result<Vec<Generation>> {
    supervisor.json("/generations").await
}

fn newest(generations: &[Generation]) -> u64 {
    generations
        .iter()
        .map(|one| one.generation)
        .max()
        .unwrap_or_default()
}

async fn until_serving(supervisor: &Component, before: u64) -> anyhow::Result<Vec<Generation>> {
    let deadline = Instant::now() + READY_WAIT;
    let mut started = false;
    while Instant::now() < deadline {
        let shown = generations(supervisor).await?;
        match shown.iter().find(|one| one.generation > before) {
            Some(next) if next.phase == "serving" => return Ok(shown),
            Some(_) => started = true,
            None => ensure!(
                !started,
                "the next generation ended before it was ready; the one before serves on. See the supervisor's log, \
                 mend the binary or its configuration, and upgrade again"
            ),
        }
        sleep(POLL).await;
    }
    bail!(
        "the next generation is not ready after {} s; the one before serves on",
        READY_WAIT.as_secs()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_name_the_only_node_is_meant() {
        let named = |nodes: &[&str]| only(nodes.iter().map(|&node| node.to_owned()).collect());
        assert_eq!(named(&["n1"]).unwrap(), "n1");
        assert!(named(&[]).unwrap_err().to_string().contains("--supervise"));
        let several = named(&["n1", "n2"]).unwrap_err().to_string();
        assert!(
            several.contains("--node") && several.contains("n1, n2"),
            "{several}"
        );
    }
}
