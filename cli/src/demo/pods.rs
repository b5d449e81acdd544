//! The application's processes in their pods, and what they report.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use parking_lot::Mutex;
use tulle_world::{Folders, Pod, Process, World};

use super::application::{self, PodSpec};
use super::stats::{CallStats, Stats};

/// The running application.
#[derive(Debug)]
pub(crate) struct Application {
    pods: Vec<RunningPod>,
}

#[derive(Debug)]
struct RunningPod {
    spec: PodSpec,
    process: Process,
    stats: Arc<Mutex<Stats>>,
}

impl Application {
    /// Makes the pods of the world and starts their services.
    pub(crate) async fn start(
        world: &mut World,
        folders: &Folders,
        marker: &str,
    ) -> anyhow::Result<(Self, Vec<(PodSpec, Pod)>)> {
        let mut placed = Vec::new();
        for spec in application::PODS {
            placed.push((spec, world.add_pod(spec.node, spec.name).await?));
        }
        world.set_services(&application::virtual_services(&placed))?;
        let mut pods = Vec::new();
        for (spec, pod) in &placed {
            pods.push(start_pod(folders, *spec, pod, marker)?);
        }
        Ok((Self { pods }, placed))
    }

    /// Waits until a condition on the reports holds.
    pub(crate) async fn wait(
        &mut self,
        what: &str,
        timeout: Duration,
        mut holds: impl FnMut(&Self) -> bool,
    ) -> anyhow::Result<()> {
        let deadline = tokio::time::Instant::now() + timeout;
        while !holds(self) {
            self.ensure_running()?;
            anyhow::ensure!(
                tokio::time::Instant::now() < deadline,
                "{what} did not happen within {timeout:?}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// What a pod reports of the service it calls.
    pub(crate) fn calls(&self, pod: &str, service: &str) -> CallStats {
        let found = self.pods.iter().find(|running| running.spec.name == pod);
        found
            .and_then(|running| running.stats.lock().calls.get(service).cloned())
            .unwrap_or_default()
    }

    /// Every (pod, service) pair that is called, with its counts.
    pub(crate) fn all_calls(&self) -> Vec<(PodSpec, &'static str, CallStats)> {
        let pairs = self
            .pods
            .iter()
            .flat_map(|pod| pod.spec.calls.iter().map(|service| (pod.spec, *service)));
        pairs
            .map(|(spec, service)| (spec, service, self.calls(spec.name, service)))
            .collect()
    }

    /// Asks every pod inside of the mesh for one more lasting connection to each service it calls.
    pub(crate) fn pin(&mut self) -> anyhow::Result<()> {
        for pod in self.pods.iter_mut().filter(|pod| !pod.spec.outside) {
            let stdin = pod
                .process
                .child()
                .stdin
                .as_mut()
                .context("standard input is piped")?;
            stdin
                .write_all(b"pin\n")
                .with_context(|| format!("{} is gone", pod.spec.name))?;
        }
        Ok(())
    }

    /// Fails if a process of the application has ended.
    pub(crate) fn ensure_running(&mut self) -> anyhow::Result<()> {
        for pod in &mut self.pods {
            if let Some(status) = pod.process.ended()? {
                anyhow::bail!("{} of the application ended: {status}", pod.spec.name);
            }
        }
        Ok(())
    }

    /// The process ids, by pod.
    pub(crate) fn process_ids(&self) -> Vec<u32> {
        self.pods.iter().map(|pod| pod.process.id()).collect()
    }
}

fn start_pod(folders: &Folders, spec: PodSpec, pod: &Pod, marker: &str) -> anyhow::Result<RunningPod> {
    let mut arguments = vec![
        "demo-service".to_owned(),
        "--name".to_owned(),
        spec.name.to_owned(),
    ];
    arguments.extend([
        "--marker".to_owned(),
        marker.to_owned(),
        "--rate".to_owned(),
        spec.rate.to_string(),
    ]);
    for service in spec.calls {
        arguments.extend([
            "--call".to_owned(),
            format!("{service}={}", application::virtual_address(service)),
        ]);
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut command = folders.command(spec.name, &arguments)?;
    command.stdout(Stdio::piped());
    let mut process = pod.spawn(spec.name, command)?;
    let stats = Arc::new(Mutex::new(Stats::default()));
    let (reports, newest) = (
        process
            .child()
            .stdout
            .take()
            .context("standard output is piped")?,
        Arc::clone(&stats),
    );
    std::thread::Builder::new()
        .name(format!("report-{}", spec.name))
        .spawn(move || {
            for line in BufReader::new(reports).lines().map_while(Result::ok) {
                if let Ok(report) = serde_json::from_str(&line) {
                    *newest.lock() = report;
                }
            }
        })?;
    Ok(RunningPod { spec, process, stats })
}
