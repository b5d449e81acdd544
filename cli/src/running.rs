//! Finds the components that run on this machine by their admin sockets, and asks them.

use std::path::PathBuf;

use anyhow::Context as _;
use nix::unistd::Uid;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tulle_runtime::config::{Env, ProcessEnv};
use tulle_runtime::http_client;

/// The folder with the admin sockets of the components.
#[derive(Debug, Clone)]
pub(crate) struct RunDir(PathBuf);

/// A component that may be asked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Component {
    pub(crate) kind: Kind,
    /// The node it serves; empty for the control plane, `<namespace>.<gateway>` for a waypoint.
    pub(crate) node: String,
    socket: PathBuf,
}

/// What a component is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Control,
    Agent,
    Ztunnel,
    /// Requests of services.
    Waypoint,
    /// What runs the generations of a node proxy.
    Supervisor,
}

impl Kind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Agent => "agent",
            Self::Ztunnel => "ztunnel",
            Self::Waypoint => "waypoint",
            Self::Supervisor => "supervisor",
        }
    }
}

/// The default: where root's components put their sockets, and where another user's do.
pub(crate) fn default_run_dir() -> PathBuf {
    if let Some(configured) = ProcessEnv.var("TULLE_RUN_DIR") {
        return configured.into();
    }
    let uid = Uid::effective();
    if uid.is_root() {
        "/run/tulle".into()
    } else {
        format!("/tmp/tulle-{uid}").into()
    }
}

impl RunDir {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// Every component that has a socket here.
    pub(crate) fn components(&self) -> anyhow::Result<Vec<Component>> {
        let missing = || {
            format!(
                "no mesh runs here: cannot read {} (start one: tulle up)",
                self.0.display()
            )
        };
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.0).with_context(missing)? {
            let socket = entry?.path();
            if let Some(component) = Component::of_socket(socket) {
                found.push(component);
            }
        }
        anyhow::ensure!(
            !found.is_empty(),
            "no mesh runs here: no component in {}",
            self.0.display()
        );
        found.sort();
        Ok(found)
    }

    /// Every component of a kind.
    pub(crate) fn of_kind(&self, kind: Kind) -> anyhow::Result<Vec<Component>> {
        Ok(self
            .components()?
            .into_iter()
            .filter(|component| component.kind == kind)
            .collect())
    }

    /// The nodes whose proxies run under a supervisor here.
    pub(crate) fn supervised(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).into_iter().flatten().flatten();
        let node = |name: &str| {
            Some(
                name.strip_prefix("supervisor-")?
                    .strip_suffix(".sock")?
                    .to_owned(),
            )
        };
        let mut nodes: Vec<_> = entries
            .filter_map(|entry| node(entry.file_name().to_str()?))
            .collect();
        nodes.sort();
        nodes
    }

    /// The component of a kind on a node, or of a gateway, running or not.
    pub(crate) fn component(&self, kind: Kind, node: &str) -> Component {
        let name = match kind {
            Kind::Control => "xds.sock".to_owned(),
            Kind::Agent => format!("agent-{node}.sock"),
            Kind::Ztunnel => format!("ztunnel-{node}.sock"),
            Kind::Waypoint => format!("waypoint-{node}.sock"),
            Kind::Supervisor => format!("supervisor-{node}.sock"),
        };
        Component {
            kind,
            node: node.to_owned(),
            socket: self.0.join(name),
        }
    }
}

impl Component {
    /// Namespace and name of the gateway of a waypoint.
    pub(crate) fn gateway(&self) -> Option<(&str, &str)> {
        let named = self.node.split_once('.');
        named.filter(|_| self.kind == Kind::Waypoint)
    }

    fn of_socket(socket: PathBuf) -> Option<Self> {
        let name = socket.file_name()?.to_str()?.strip_suffix(".sock")?;
        let (kind, node) = match name.split_once('-') {
            None if name == "xds" => (Kind::Control, ""),
            Some(("agent", node)) => (Kind::Agent, node),
            Some(("ztunnel", node)) => (Kind::Ztunnel, node),
            Some(("waypoint", gateway)) => (Kind::Waypoint, gateway),
            _ => return None,
        };
        Some(Self {
            kind,
            node: node.to_owned(),
            socket: socket.clone(),
        })
    }

    async fn connect(&self) -> anyhow::Result<UnixStream> {
        let connected = UnixStream::connect(&self.socket).await;
        connected.with_context(|| {
            format!(
                "{} does not answer at {}",
                self.kind.as_str(),
                self.socket.display()
            )
        })
    }

    /// A page of the component's admin server, as text.
    pub(crate) async fn text(&self, path: &str) -> anyhow::Result<String> {
        let answer =
            http_client::get(self.connect().await?, "localhost", path, http::HeaderMap::new()).await?;
        let body = String::from_utf8(answer.body().to_vec())?;
        anyhow::ensure!(
            answer.status().is_success(),
            "{path}: {}: {}",
            answer.status(),
            body.trim()
        );
        Ok(body)
    }

    /// A page of the component's admin server, as a value.
    pub(crate) async fn json<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let text = self.text(path).await?;
        let place = || format!("{}{path} answered something unexpected", self.socket.display());
        serde_json::from_str(&text).with_context(place)
    }

    /// Tells the component's admin server to do something; what it says of that.
    pub(crate) async fn tell(&self, path: &str) -> anyhow::Result<String> {
        let stream = self.connect().await?;
        let answer = http_client::post_json(stream, "localhost", path, String::new()).await?;
        let body = String::from_utf8_lossy(answer.body()).trim().to_owned();
        anyhow::ensure!(
            answer.status().is_success(),
            "{path}: {}: {body}",
            answer.status()
        );
        Ok(body)
    }

    /// Sends a question to the component's admin server.
    pub(crate) async fn ask<T: DeserializeOwned>(
        &self,
        path: &str,
        question: &serde_json::Value,
    ) -> anyhow::Result<T> {
        let stream = self.connect().await?;
        let answer = http_client::post_json(stream, "localhost", path, question.to_string()).await?;
        let body = String::from_utf8_lossy(answer.body());
        anyhow::ensure!(
            answer.status().is_success(),
            "{path}: {}: {}",
            answer.status(),
            body.trim()
        );
        Ok(serde_json::from_str(&body)?)
    }
}
