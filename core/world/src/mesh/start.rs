//! Starts components: with which arguments and environment, and where.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use super::error::file_step;
use super::{Component, Mesh, MeshError};
use crate::process::Process;
use crate::topology::{CONTROL, World};

impl Mesh {
    /// Starts the control plane and waits until it is ready.
    ///
    /// # Errors
    /// When it does not start or does not become ready.
    pub async fn start_control(&mut self, world: &World) -> Result<(), MeshError> {
        let control = world.node(CONTROL)?;
        let addresses = format!("{},{}", control.ipv4(), control.ipv6());
        let (config, state) = (
            self.folders.config.display().to_string(),
            self.folders.state.display().to_string(),
        );
        let arguments = [
            "xds",
            "--config-dir",
            &config,
            "--state-dir",
            &state,
            "--xds-san",
            &addresses,
            "--listen",
            "[::]:15012",
        ];
        let further = self.control_arguments.clone();
        let further = further.iter().map(String::as_str);
        let arguments: Vec<_> = arguments.into_iter().chain(further).collect();
        self.start(world, CONTROL, Component::Control, &arguments, &[])?;
        self.wait_ready(&Component::Control).await
    }

    /// Starts the agent of a node, with the node's credential.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_agent(&mut self, world: &World, node: &str) -> Result<(), MeshError> {
        let place = self.place(world, node)?;
        let netns = world.netns_dir().display().to_string();
        let resolvers = world.resolver_dir().display().to_string();
        let state = self.folders.agent_state(node).display().to_string();
        let arguments = [
            "agent",
            "--node",
            node,
            "--xds-address",
            &place.url,
            "--xds-root-ca",
            &place.root,
            "--token-file",
            &place.token,
            "--inpod-uds",
            &place.inpod,
            "--netns-dir",
            &netns,
            "--resolver-dir",
            &resolvers,
            "--state-dir",
            &state,
            "--cni-socket",
            &place.cni,
            "--cri-socket",
            &place.cri,
        ];
        let further = self.agent_arguments.clone();
        let further = further.iter().map(String::as_str);
        let arguments: Vec<_> = arguments.into_iter().chain(further).collect();
        self.start(world, node, Component::Agent(node.to_owned()), &arguments, &[])
    }

    /// Starts the proxy of a node, with the node's credential.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_ztunnel(&mut self, world: &World, node: &str) -> Result<(), MeshError> {
        let place = self.place(world, node)?;
        let environment = [
            ("NODE_NAME", node),
            ("INPOD_UDS", &place.inpod),
            ("AUTH_TOKEN", &place.token),
            ("XDS_ADDRESS", &place.url),
            ("CA_ADDRESS", &place.url),
            ("XDS_ROOT_CA", &place.root),
            ("CA_ROOT_CA", &place.root),
            ("ZTUNNEL_WORKER_THREADS", "2"),
        ];
        self.start(
            world,
            node,
            Component::Ztunnel(node.to_owned()),
            if self.supervised {
                &["ztunnel", "--supervise"]
            } else {
                &["ztunnel"]
            },
            &environment,
        )
    }

    /// Starts the waypoint of a gateway in a pod of its own, whose service account is called like the gateway. It shows
    /// the credential of the pod's node.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_waypoint(
        &mut self,
        world: &World,
        pod: &str,
        namespace: &str,
        gateway: &str,
    ) -> Result<(), MeshError> {
        let process = self.spawn_waypoint(world, pod, namespace, gateway, &[])?;
        self.processes
            .insert(Component::waypoint(namespace, gateway), process);
        Ok(())
    }

    /// As [`Self::start_waypoint`], with variables of its own, for those who look after the process themselves.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn_waypoint(
        &self,
        world: &World,
        pod: &str,
        namespace: &str,
        gateway: &str,
        environment: &[(&str, &str)],
    ) -> Result<Process, MeshError> {
        let pod = world.pod(pod)?;
        let place = self.place(world, pod.node())?;
        let name = Component::waypoint(namespace, gateway).name();
        let command = self.folders.command(&name, &["waypoint"]);
        let mut command = file_step(format!("log for {name}"), command)?;
        let address = pod.ipv4().to_string();
        command.envs([
            ("POD_NAMESPACE", namespace),
            ("SERVICE_ACCOUNT", gateway),
            ("TULLE_WAYPOINT", gateway),
            ("POD_NAME", pod.name()),
            ("INSTANCE_IP", &address),
            ("NODE_NAME", pod.node()),
            ("TULLE_CREDENTIAL", "node"),
            ("AUTH_TOKEN", &place.token),
            ("XDS_ADDRESS", &place.url),
            ("CA_ADDRESS", &place.url),
            ("XDS_ROOT_CA", &place.root),
            ("CA_ROOT_CA", &place.root),
        ]);
        command.envs(&self.environment);
        command.envs(environment.iter().copied());
        Ok(pod.spawn(&name, command)?)
    }

    fn start(
        &mut self,
        world: &World,
        node: &str,
        component: Component,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Result<(), MeshError> {
        let name = component.name();
        let mut command = file_step(format!("log for {name}"), self.folders.command(&name, arguments))?;
        command.envs(environment.iter().copied());
        if matches!(component, Component::Ztunnel(_)) {
            command.envs(&self.environment);
            command.envs(self.node_environment.get(node).into_iter().flatten());
            if let Some(binary) = self.foreign.get(node) {
                command = foreign(binary, &command, &self.folders.log(&name))?;
            }
        }
        let process = world.node(node)?.spawn(&name, command)?;
        self.processes.insert(component, process);
        Ok(())
    }

    fn place(&self, world: &World, node: &str) -> Result<Place, MeshError> {
        Ok(Place {
            url: format!("https://{}:15012", world.node(CONTROL)?.ipv4()),
            // Also there when the issuer is given from outside.
            root: self.folders.run.join("xds-root-cert.pem").display().to_string(),
            token: self.token_file(node).display().to_string(),
            cri: self.cri_socket(node).display().to_string(),
            cni: self.cni_socket(node).display().to_string(),
            inpod: self.folders.run.join(format!("{node}.zds")).display().to_string(),
        })
    }
}

/// What a component of a node needs to know.
struct Place {
    url: String,
    root: String,
    token: String,
    inpod: String,
    cni: String,
    cri: String,
}

/// The same environment and log for a binary of another make, which does not watch standard input.
fn foreign(binary: &Path, ours: &Command, log: &Path) -> Result<Command, MeshError> {
    let log = file_step(
        "log for a foreign ztunnel",
        File::options().create(true).append(true).open(log),
    )?;
    let mut command = Command::new(binary);
    command
        .stdin(Stdio::null())
        .stdout(file_step("share a log", log.try_clone())?)
        .stderr(log);
    for (name, value) in ours.get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    Ok(command)
}
