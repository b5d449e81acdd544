//! A mesh of a user's own folder: its WorkloadEntries become pods on nodes of this machine, and it stays in force while
//! the mesh runs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tulle_k8s::translate::MeshConfig;
use tulle_model::Reason;
use tulle_world::{Component, Folders, Mesh, World};
use tulle_xds::analyze::analyze;
use tulle_xds::history::View;

use super::plan::{self, NODES_MAX, Plan, PodPlan};
use super::programs::{self, Desk, Program};
use super::waypoints::Waypoints;
use crate::command::folder::Folder;
use crate::command::status;
use crate::running::{Kind, RunDir};

/// A program of a pod that is to be captured waits for that, but not longer.
const CAPTURE_MAX: Duration = Duration::from_secs(15);

/// The running mesh.
#[derive(Debug)]
pub(super) struct Local {
    folders: Folders,
    run_dir: RunDir,
    plan: Plan,
    pods: BTreeMap<String, Running>,
    /// Those of them that agents say are captured.
    captured: BTreeSet<String>,
    waypoints: Waypoints,
    /// Declared after what runs in it.
    mesh: Mesh,
    world: World,
}

/// A pod and what runs in it.
#[derive(Debug)]
struct Running {
    plan: PodPlan,
    since: Instant,
    program: Option<Program>,
}

impl Running {
    fn is_late(&self) -> bool {
        self.since.elapsed() > CAPTURE_MAX
    }
}

/// A control plane that has nothing on record waits until every file can be read. Who started it at a terminal is better
/// told at once.
fn ensure_readable(config: &Path, state: &Path) -> anyhow::Result<()> {
    if !View::of(state).list().is_empty() {
        return Ok(());
    }
    let found = analyze(&[config.to_owned()], &MeshConfig::default())?;
    let unread = found
        .iter()
        .filter(|finding| finding.code == Reason::UnparsableFile.code());
    let unread: Vec<String> = unread.map(ToString::to_string).collect();
    anyhow::ensure!(
        unread.is_empty(),
        "nothing of a folder is served until every file could be read once\n{}",
        unread.join("\n")
    );
    Ok(())
}

impl Local {
    /// Builds the nodes of the folder and starts the mesh on them.
    pub(super) async fn start(config: PathBuf, root: &Path, run_dir: &Path) -> anyhow::Result<Self> {
        let mut folders = Folders::create(std::env::current_exe()?, root)?;
        std::fs::create_dir_all(run_dir).with_context(|| format!("cannot make {}", run_dir.display()))?;
        (folders.config, folders.run) = (config, run_dir.to_owned());
        let run_dir = RunDir::new(run_dir.to_owned());
        ensure_readable(&folders.config, &folders.state)?;
        let plan = plan::plan(&Folder::read(&folders.config)?);
        let nodes: Vec<&str> = plan.nodes.iter().map(String::as_str).collect();
        anyhow::ensure!(
            nodes.len() <= NODES_MAX,
            "the folder names {} nodes, and one machine takes {NODES_MAX}; give WorkloadEntries the same tulle.dev/node",
            nodes.len()
        );
        let world = World::create(root, &nodes).await?;
        let node = nodes.last().context("a plan has a node")?;
        let waypoints = Waypoints::new(run_dir.clone(), folders.config.clone(), node);
        waypoints.clear_leftovers()?;
        let mut mesh = Mesh::new(folders.clone()).with_supervision();
        mesh.start_control(&world).await?;
        for node in &nodes {
            mesh.set_token(node, &tulle_xds::token::create(&folders.state, node)?)?;
            mesh.start_agent(&world, node)?;
            mesh.start_ztunnel(&world, node)?;
        }
        for node in &nodes {
            mesh.wait_ready(&Component::Ztunnel((*node).to_owned())).await?;
            mesh.wait_ready(&Component::Agent((*node).to_owned())).await?;
        }
        Ok(Self {
            folders,
            run_dir,
            plan: Plan {
                nodes: plan.nodes,
                ..Plan::default()
            },
            pods: BTreeMap::new(),
            captured: BTreeSet::new(),
            waypoints,
            mesh,
            world,
        })
    }

    /// Brings everything in line with the folder, as far as that can be done at once; says what happened.
    pub(super) async fn look(&mut self) -> anyhow::Result<Vec<String>> {
        self.mesh.ensure_running()?;
        let mut news = Vec::new();
        match Folder::read(&self.folders.config) {
            Ok(folder) => self.follow(plan::plan(&folder), &mut news).await?,
            // Nothing is taken away for that.
            Err(error) if !self.plan.partial => {
                self.plan.partial = true;
                news.push(format!("! {error:#}"));
            }
            Err(_) => {}
        }
        self.tend(&mut news).await?;
        news.extend(self.waypoints.look(&mut self.world, &self.mesh).await?);
        Ok(news)
    }

    /// Whether every pod is in the mesh that is to be, or has had the time for it, and its program runs.
    pub(super) fn is_settled(&self) -> bool {
        let settled = |(name, pod): (&String, &Running)| {
            let runs = pod.plan.command.is_none() || pod.program.is_some();
            runs && (!pod.plan.enrolled || self.captured.contains(name) || pod.is_late())
        };
        self.pods.iter().all(settled)
    }

    /// What runs, in a line.
    pub(super) fn summary(&self) -> String {
        let nodes: Vec<&str> = self.plan.nodes.iter().map(String::as_str).collect();
        format!(
            "{} nodes ({}), {} pods, {} of them in the mesh",
            nodes.len(),
            nodes.join(", "),
            self.pods.len(),
            self.captured.len()
        )
    }

    /// What to try next, for the shell.
    pub(super) fn hint(&self) -> String {
        format!(
            "In another terminal:\n  export TULLE_CONFIG_DIR={} TULLE_STATE_DIR={}\n  \
             tulle status\n  tulle edges\n  tulle waypoint apply --namespace NAMESPACE --enroll-namespace --wait\n\
             Changes in the folder are in force at once; logs are in {}. Stop with Ctrl-C.",
            self.folders.config.display(),
            self.folders.state.display(),
            self.folders.logs.display()
        )
    }

    async fn follow(&mut self, mut plan: Plan, news: &mut Vec<String>) -> anyhow::Result<()> {
        // Nodes are made once: later ones have no place on the wire.
        plan.nodes.clone_from(&self.plan.nodes);
        let unknown: BTreeSet<String> = plan.pods.values().map(|pod| pod.node.clone()).collect();
        let told = unknown.difference(&plan.nodes).map(|node| {
            format!("node {node} is new in the folder: end this command and start it again for its pods")
        });
        plan.findings.extend(told);
        plan.pods.retain(|_, pod| plan.nodes.contains(&pod.node));
        if plan == self.plan {
            return Ok(());
        }
        let new = |finding: &&String| !self.plan.findings.contains(finding);
        news.extend(
            plan.findings
                .iter()
                .filter(new)
                .map(|finding| format!("! {finding}")),
        );
        for name in self.outdated(&plan) {
            self.remove(&name).await?;
            news.push(format!("pod {name} is gone"));
        }
        for (name, pod) in &plan.pods {
            if !self.pods.contains_key(name) {
                news.push(match self.add(name, pod).await {
                    Ok(()) => format!("pod {name} on {} at {}", pod.node, pod.address),
                    Err(error) => format!("! {error:#}"),
                });
            }
        }
        if plan.services != self.plan.services {
            let services: Vec<_> = plan.services.iter().map(|service| service.service()).collect();
            self.world.set_services(&services)?;
        }
        self.plan = plan;
        Ok(())
    }

    /// Pods that are not to be, or not as they are. Where a file cannot be read, none is missing for that.
    fn outdated(&self, plan: &Plan) -> Vec<String> {
        let outdated = self
            .pods
            .iter()
            .filter(|(name, running)| match plan.pods.get(*name) {
                Some(pod) => (pod.address, &pod.node) != (running.plan.address, &running.plan.node),
                None => !plan.partial,
            });
        outdated.map(|(name, _)| name.clone()).collect()
    }

    async fn add(&mut self, name: &str, pod: &PodPlan) -> anyhow::Result<()> {
        programs::write_resolver(&self.world.resolver_dir(), name, &pod.namespace)?;
        let made = self.world.add_pod_with(&pod.node, name, pod.address).await;
        made.with_context(|| format!("cannot make the pod of {}", pod.workload))?;
        let running = Running {
            plan: pod.clone(),
            since: Instant::now(),
            program: None,
        };
        self.pods.insert(name.to_owned(), running);
        Ok(())
    }

    async fn remove(&mut self, name: &str) -> anyhow::Result<()> {
        if let Some(program) = self.pods.remove(name).and_then(|pod| pod.program) {
            program.end().await?;
        }
        Ok(self.world.remove_pod(name).await?)
    }

    /// Starts programs whose pods are ready, again those that have ended, and others in the place of those that have
    /// changed.
    async fn tend(&mut self, news: &mut Vec<String>) -> anyhow::Result<()> {
        self.captured = self.captured().await;
        let resolvers = self.world.resolver_dir();
        let desk = Desk {
            folders: &self.folders,
            resolvers: &resolvers,
        };
        for (name, running) in &mut self.pods {
            if let Some(pod) = self.plan.pods.get(name) {
                running.plan = pod.clone();
            }
            let wanted = running.plan.command.as_deref();
            if running
                .program
                .as_ref()
                .is_some_and(|program| !program.runs(wanted))
                && let Some(program) = running.program.take()
            {
                program.end().await?;
            }
            let pod = self.world.pod(name)?;
            match (&mut running.program, wanted) {
                (Some(program), _) => news.extend(program.tend(desk, pod)?),
                (None, Some(command)) => {
                    let late = running.is_late();
                    let ready = !running.plan.enrolled || self.captured.contains(name);
                    if late && !ready {
                        news.push(format!(
                            "! pod {name} is not captured after {} s; tulle status says why",
                            CAPTURE_MAX.as_secs()
                        ));
                    }
                    if ready || late {
                        running.program = Some(Program::start(desk, pod, command)?);
                    }
                }
                (None, None) => {}
            }
        }
        Ok(())
    }

    /// Pods that agents say are captured, by the names of their namespaces of the network.
    async fn captured(&self) -> BTreeSet<String> {
        let mut captured = BTreeSet::new();
        for node in &self.plan.nodes {
            let agent = self.run_dir.component(Kind::Agent, node);
            for pod in status::pods(&agent).await.unwrap_or_default() {
                if pod.state == "In" {
                    let workload = format!("{}/{}", pod.namespace, pod.name);
                    captured.extend(self.named(&workload));
                }
            }
        }
        captured
    }

    fn named(&self, workload: &str) -> Option<String> {
        let found = self.pods.iter().find(|(_, pod)| pod.plan.workload == workload);
        found.map(|(name, _)| name.clone())
    }

    /// Ends every process and removes the world.
    pub(super) async fn end(self) -> anyhow::Result<()> {
        let programs = self.pods.into_values().filter_map(|pod| pod.program);
        let ends = futures_util::future::join_all(programs.map(Program::end));
        ends.await.into_iter().collect::<anyhow::Result<()>>()?;
        self.waypoints.end().await?;
        let mut mesh = self.mesh;
        Ok(mesh.stop_all().await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_read_is_named_before_anything_is_started() {
        let (config, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert!(ensure_readable(config.path(), state.path()).is_ok());
        std::fs::write(config.path().join("deny.yaml"), "kind: [broken\n").unwrap();
        let error = ensure_readable(config.path(), state.path()).unwrap_err();
        assert!(error.to_string().contains("deny.yaml"), "{error}");
    }
}
