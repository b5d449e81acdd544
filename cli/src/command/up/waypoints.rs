//! The waypoints of a local mesh: a process in a pod of its own for each Gateway that the control plane takes for one.
//!
//! What a controller and a kubelet do in a cluster: a Gateway that comes gets an instance, one that goes is drained, and
//! an instance that ends by itself is started again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::signal::Signal;
use serde_json::Value;
use tulle_world::{Mesh, Pod, Process, World};

use super::kept::Kept;
use crate::demo::write;
use crate::running::{Kind, RunDir};

/// How long one may take for what runs in it when its Gateway goes.
const DRAIN: &str = "20s";
/// After this long it is ended in any case.
const DRAIN_MAX: Duration = Duration::from_secs(25);

/// How the files begin that are written here.
const WRITTEN_BY: &str = "# Written by `tulle up`";

/// Namespace and name of a gateway.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Gateway {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Gateway {
    fn pod(&self) -> String {
        format!("{}-{}-waypoint", self.namespace, self.name)
    }
}

/// The instances.
#[derive(Debug)]
pub(crate) struct Waypoints {
    run_dir: RunDir,
    config: PathBuf,
    /// The node they run on.
    node: String,
    running: BTreeMap<Gateway, Kept>,
    leaving: Vec<Leaving>,
}

/// An instance whose Gateway is gone.
#[derive(Debug)]
struct Leaving {
    gateway: Gateway,
    process: Option<Process>,
    since: Instant,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Start(Gateway),
    Drain(Gateway),
}

/// Compares what is wanted with what is there. A Gateway that comes back while its former instance drains waits for that
/// to end: they would have the same pod.
fn steps(wanted: &BTreeSet<Gateway>, there: &BTreeSet<Gateway>, leaving: &BTreeSet<Gateway>) -> Vec<Step> {
    let gone = there.difference(wanted).cloned().map(Step::Drain);
    let new = wanted
        .difference(there)
        .filter(|gateway| !leaving.contains(*gateway));
    gone.chain(new.cloned().map(Step::Start)).collect()
}

/// The Gateways that are waypoints, by what the control plane says of its objects: it has nothing to say of others.
fn wanted(page: &Value) -> BTreeSet<Gateway> {
    let accepted = |object: &&Value| {
        let conditions = object["conditions"].as_array().into_iter().flatten();
        object["key"]["kind"] == "Gateway"
            && conditions
                // Its listeners have conditions of their own.
                .filter(|condition| condition["type"] == "Accepted" && condition["of"].is_null())
                .any(|condition| condition["status"] == "True")
    };
    let objects = page["objects"].as_array().into_iter().flatten();
    let gateway = |object: &Value| {
        let text = |field: &str| object["key"][field].as_str().map(str::to_owned);
        Some(Gateway {
            namespace: text("namespace")?,
            name: text("name")?,
        })
    };
    objects.filter(accepted).filter_map(gateway).collect()
}

/// An instance, as the mesh knows workloads.
fn manifest(gateway: &Gateway, pod: &Pod) -> String {
    let Gateway { namespace, name } = gateway;
    let (workload, node, ipv4, ipv6) = (pod.name(), pod.node(), pod.ipv4(), pod.ipv6());
    format!(
        "{WRITTEN_BY}: the instance of Gateway {namespace}/{name}.\n\
         apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata:\n  name: {workload}\n  \
         namespace: {namespace}\n  annotations:\n    tulle.dev/node: {node}\n    tulle.dev/process: netns:{workload}\n    \
         tulle.dev/addresses: \"{ipv4},{ipv6}\"\nspec:\n  address: {ipv4}\n  serviceAccount: {name}\n  labels:\n    \
         gateway.networking.k8s.io/gateway-name: {name}\n    gateway.istio.io/managed: tulle.dev-waypoint\n    \
         istio.io/dataplane-mode: none\n    networking.istio.io/tunnel: http\n"
    )
}

impl Waypoints {
    /// None yet; those that come run on this node.
    pub(crate) fn new(run_dir: RunDir, config: PathBuf, node: &str) -> Self {
        Self {
            run_dir,
            config,
            node: node.to_owned(),
            running: BTreeMap::new(),
            leaving: Vec::new(),
        }
    }

    /// Brings the instances in line with the Gateways, as far as that can be done at once; says what happened. While the
    /// control plane does not answer, everything stays.
    pub(crate) async fn look(&mut self, world: &mut World, mesh: &Mesh) -> anyhow::Result<Vec<String>> {
        let mut news = self.bury(world).await?;
        news.extend(self.restart(world, mesh)?);
        let control = self.run_dir.component(Kind::Control, "");
        let Ok(gateways) = control.json::<Value>("/debug/world?kind=Gateway").await else {
            return Ok(news);
        };
        let there = self.running.keys().cloned().collect();
        let leaving = self.leaving.iter().map(|one| one.gateway.clone()).collect();
        for step in steps(&wanted(&gateways), &there, &leaving) {
            news.push(match step {
                Step::Start(gateway) => self.start(gateway, world, mesh).await?,
                Step::Drain(gateway) => self.drain(gateway)?,
            });
        }
        Ok(news)
    }

    async fn start(&mut self, gateway: Gateway, world: &mut World, mesh: &Mesh) -> anyhow::Result<String> {
        let pod = world.add_pod(&self.node, &gateway.pod()).await?;
        write(&self.file(&gateway), &manifest(&gateway, &pod))?;
        let process = spawn(&gateway, world, mesh)?;
        let told = format!(
            "waypoint {}/{} runs on {}",
            gateway.namespace,
            gateway.name,
            pod.node()
        );
        self.running.insert(gateway, Kept::new(process));
        Ok(told)
    }

    fn drain(&mut self, gateway: Gateway) -> anyhow::Result<String> {
        let told = format!("waypoint {}/{} drains", gateway.namespace, gateway.name);
        let mut process = self.running.remove(&gateway).and_then(Kept::into_process);
        if let Some(process) = &mut process {
            process.signal(Signal::SIGTERM)?;
        }
        self.leaving.push(Leaving {
            gateway,
            process,
            since: Instant::now(),
        });
        Ok(told)
    }

    /// Starts again what ended by itself.
    fn restart(&mut self, world: &World, mesh: &Mesh) -> anyhow::Result<Vec<String>> {
        let mut news = Vec::new();
        for (gateway, instance) in &mut self.running {
            if let Some(status) = instance.ended()? {
                let Gateway { namespace, name } = gateway;
                news.push(format!(
                    "waypoint {namespace}/{name} ended ({status}) and is started again"
                ));
            }
            if instance.is_due() {
                instance.restarted(spawn(gateway, world, mesh)?);
            }
        }
        Ok(news)
    }

    /// Clears up after what has drained.
    async fn bury(&mut self, world: &mut World) -> anyhow::Result<Vec<String>> {
        let mut news = Vec::new();
        for mut one in std::mem::take(&mut self.leaving) {
            let over = match &mut one.process {
                Some(process) => process.ended()?.is_some() || one.since.elapsed() > DRAIN_MAX,
                None => true,
            };
            if !over {
                self.leaving.push(one);
                continue;
            }
            if let Some(mut process) = one.process {
                process.kill()?;
            }
            let file = self.file(&one.gateway);
            forget(&file)?;
            world.remove_pod(&one.gateway.pod()).await?;
            news.push(format!(
                "waypoint {}/{} is gone",
                one.gateway.namespace, one.gateway.name
            ));
        }
        Ok(news)
    }

    /// Ends every instance; nothing talks through them any more.
    pub(crate) async fn end(self) -> anyhow::Result<()> {
        let gateways = self
            .running
            .keys()
            .chain(self.leaving.iter().map(|one| &one.gateway));
        let files: Vec<_> = gateways.map(|gateway| self.file(gateway)).collect();
        let running = self.running.into_values().map(Kept::into_process);
        let leaving = self.leaving.into_iter().map(|one| one.process);
        for mut process in running.chain(leaving).flatten() {
            process.stop(Duration::from_secs(1)).await?;
        }
        files.iter().try_for_each(|file| forget(file))
    }

    /// Removes what an earlier mesh that was killed has left in the folder.
    pub(crate) fn clear_leftovers(&self) -> anyhow::Result<()> {
        for entry in std::fs::read_dir(&self.config)? {
            let path = entry?.path();
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            let named = name.starts_with("instance-") && name.ends_with(".yaml");
            if named && std::fs::read_to_string(&path)?.starts_with(WRITTEN_BY) {
                forget(&path)?;
            }
        }
        Ok(())
    }

    fn file(&self, gateway: &Gateway) -> PathBuf {
        let Gateway { namespace, name } = gateway;
        self.config.join(format!("instance-{namespace}.{name}.yaml"))
    }
}

/// Removes a file that somebody else may have removed.
fn forget(file: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", file.display()))
        }
        _ => Ok(()),
    }
}

fn spawn(gateway: &Gateway, world: &World, mesh: &Mesh) -> anyhow::Result<Process> {
    let environment = [("TERMINATION_DRAIN_DURATION", DRAIN)];
    let Gateway { namespace, name } = gateway;
    Ok(mesh.spawn_waypoint(world, &gateway.pod(), namespace, name, &environment)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn gateways(names: &[&str]) -> BTreeSet<Gateway> {
        let gateway = |name: &&str| Gateway {
            namespace: "shop".to_owned(),
            name: (*name).to_owned(),
        };
        names.iter().map(gateway).collect()
    }

    #[test]
    fn what_comes_is_started_what_goes_is_drained_and_what_stays_is_left_alone() {
        let one = |name| gateways(&[name]).pop_first().unwrap();
        assert_eq!(
            steps(&gateways(&["a", "b"]), &gateways(&["b", "c"]), &gateways(&[])),
            [Step::Drain(one("c")), Step::Start(one("a"))]
        );
    }

    #[test]
    fn a_gateway_that_comes_back_waits_for_its_former_instance() {
        assert_eq!(steps(&gateways(&["a"]), &gateways(&[]), &gateways(&["a"])), []);
    }

    #[test]
    fn a_waypoint_is_what_the_control_plane_accepts_as_one() {
        let object = |kind: &str, name: &str, status: &str| {
            json!({"key": {"kind": kind, "namespace": "shop", "name": name},
                "conditions": [{"type": "Accepted", "status": status}]})
        };
        let ingress =
            json!({"key": {"kind": "Gateway", "namespace": "shop", "name": "edge"}, "conditions": []});
        let page = json!({"objects": [
            object("Gateway", "way", "True"), object("Gateway", "bad", "False"), object("HTTPRoute", "r", "True"), ingress,
        ]});
        assert_eq!(wanted(&page), gateways(&["way"]));
        assert_eq!(wanted(&Value::Null), gateways(&[]));
    }
}
