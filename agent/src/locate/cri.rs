//! Asking the container runtime for a pod's sandbox, through the container runtime interface.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tulle_model::Str;
use tulle_proto::cri as wire;
use tulle_proto::cri::runtime_service_client::RuntimeServiceClient;

use super::Candidate;
use crate::records::PodId;
use crate::resolver::{Lists, Resolver};

/// How long an answer may take.
const ANSWER_WAIT: Duration = Duration::from_secs(5);
/// Sandboxes of one pod that are looked at; more than one only while an old one has not ended yet.
const SANDBOXES_MAX: usize = 8;
/// Sandboxes in one answer: bytes of a message.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Where runtimes listen.
pub const SOCKETS: [&str; 4] = [
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/k3s/containerd/containerd.sock",
    "/run/cri-dockerd.sock",
];

/// The runtime cannot be asked.
#[derive(Debug, thiserror::Error)]
#[error("the container runtime answered {}: {}", .0.code(), .0.message())]
pub struct CriError(#[from] Box<tonic::Status>);

/// The container runtime of this node. Clones share the connection.
#[derive(Debug, Clone)]
pub struct Cri {
    client: RuntimeServiceClient<Channel>,
}

/// A client of the runtime that listens at `socket`; it connects when first used, and again whenever it must.
#[must_use]
pub fn client(socket: &Path) -> RuntimeServiceClient<Channel> {
    let socket: Arc<Path> = socket.into();
    let connect = move |_| {
        let socket = Arc::clone(&socket);
        async move { UnixStream::connect(&socket).await.map(TokioIo::new) }
    };
    // The name is never resolved: the connector above knows where to go.
    let channel =
        Endpoint::from_static("http://localhost").connect_with_connector_lazy(tower::service_fn(connect));
    RuntimeServiceClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX)
}

impl Cri {
    /// The runtime that listens at `socket`.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self {
            client: client(socket),
        }
    }

    /// The sandboxes that are ready under a pod's name, the newest first.
    ///
    /// # Errors
    /// When the runtime does not answer, or not in time.
    pub async fn sandboxes(&self, namespace: &str, name: &str) -> Result<Vec<Candidate>, CriError> {
        let asked = tokio::time::timeout(ANSWER_WAIT, self.ask(namespace, name)).await;
        asked.unwrap_or_else(|_| {
            let late = tonic::Status::deadline_exceeded("no answer in time");
            Err(CriError(Box::new(late)))
        })
    }

    async fn ask(&self, namespace: &str, name: &str) -> Result<Vec<Candidate>, CriError> {
        let ready = wire::PodSandboxStateValue {
            state: wire::PodSandboxState::SandboxReady.into(),
        };
        let filter = wire::PodSandboxFilter {
            id: String::new(),
            state: Some(ready),
        };
        let request = wire::ListPodSandboxRequest { filter: Some(filter) };
        let mut client = self.client.clone();
        let listed = client.list_pod_sandbox(request).await.map_err(Box::new)?;
        let named = |sandbox: &wire::PodSandbox| {
            let metadata = sandbox.metadata.as_ref();
            metadata.is_some_and(|metadata| metadata.namespace == namespace && metadata.name == name)
        };
        let mut sandboxes: Vec<_> = listed.into_inner().items.into_iter().filter(named).collect();
        sandboxes.sort_by_key(|sandbox| std::cmp::Reverse(sandbox.created_at));
        let mut found = Vec::new();
        for sandbox in sandboxes.into_iter().take(SANDBOXES_MAX) {
            let request = wire::PodSandboxStatusRequest {
                pod_sandbox_id: sandbox.id,
                verbose: true,
            };
            let status = client.pod_sandbox_status(request).await.map_err(Box::new)?;
            found.extend(candidate(status.into_inner()));
        }
        Ok(found)
    }
}

/// The candidate that a sandbox's verbose status describes, if it says where the network namespace is.
fn candidate(answer: wire::PodSandboxStatusResponse) -> Option<Candidate> {
    let status = answer.status?;
    let metadata = status.metadata?;
    let info = answer.info.get("info")?.as_bytes();
    let netns = netns_path(info)?;
    let network = status.network.unwrap_or_default();
    let addresses = std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|more| more.ip));
    Some(Candidate {
        pod: PodId {
            namespace: metadata.namespace.into(),
            name: metadata.name.into(),
            uid: metadata.uid.into(),
        },
        container_id: Str::from(status.id),
        netns,
        addresses: addresses
            .filter_map(|address| Some(address.parse::<IpAddr>().ok()?.to_canonical()))
            .collect(),
        process: None,
        resolver: resolver(info),
    })
}

/// What of a runtime's verbose information is of use.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Info {
    #[serde(default)]
    pid: u32,
    #[serde(default)]
    runtime_spec: Option<RuntimeSpec>,
    #[serde(default)]
    config: Option<SandboxConfig>,
}

/// `PodSandboxConfig` of the container runtime interface, as JSON.
#[derive(Debug, Deserialize)]
struct SandboxConfig {
    #[serde(default)]
    dns_config: Option<Lists>,
}

#[derive(Debug, Deserialize)]
struct RuntimeSpec {
    #[serde(default)]
    linux: Option<LinuxSpec>,
}

#[derive(Debug, Deserialize)]
struct LinuxSpec {
    #[serde(default)]
    namespaces: Vec<NamespaceSpec>,
}

#[derive(Debug, Deserialize)]
struct NamespaceSpec {
    r#type: String,
    #[serde(default)]
    path: String,
}

/// Where a sandbox's verbose information says that its network namespace is: by path, else by process.
#[must_use]
pub fn netns_path(info: &[u8]) -> Option<PathBuf> {
    let info: Info = serde_json::from_slice(info).ok()?;
    let namespaces = info.runtime_spec.and_then(|spec| spec.linux);
    let namespaces = namespaces.map(|linux| linux.namespaces).unwrap_or_default();
    let network = namespaces
        .into_iter()
        .find(|namespace| namespace.r#type == "network");
    let path = network.map(|network| PathBuf::from(network.path));
    let by_process = || PathBuf::from(format!("/proc/{}/ns/net", info.pid));
    match path.filter(|path| path.is_absolute()) {
        Some(path) => Some(path),
        // Process 0 is none.
        None => (info.pid > 0).then(by_process),
    }
}

/// What a sandbox's verbose information says of its resolv.conf.
fn resolver(info: &[u8]) -> Option<Resolver> {
    let info: Info = serde_json::from_slice(info).ok()?;
    info.config?.dns_config?.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(info: &str) -> Option<PathBuf> {
        netns_path(info.as_bytes())
    }

    #[test]
    fn the_path_of_the_network_namespace_is_taken() {
        let info = r#"{"pid": 42, "runtimeSpec": {"linux": {"namespaces": [
            {"type": "pid"}, {"type": "network", "path": "/var/run/netns/cni-1"}]}}}"#;
        assert_eq!(path(info), Some("/var/run/netns/cni-1".into()));
    }

    #[test]
    fn without_a_path_the_process_leads_to_it() {
        assert_eq!(path(r#"{"pid": 42}"#), Some("/proc/42/ns/net".into()));
        let relative =
            r#"{"pid": 42, "runtimeSpec": {"linux": {"namespaces": [{"type": "network", "path": "x"}]}}}"#;
        assert_eq!(path(relative), Some("/proc/42/ns/net".into()));
    }

    #[test]
    fn the_pods_own_resolver_settings_are_taken() {
        let info = r#"{"pid": 42, "config": {"metadata": {"name": "web"},
            "dns_config": {"servers": ["10.0.0.10"], "searches": ["shop.svc.cluster.local"], "options": ["ndots:5"]}}}"#;
        let settings = resolver(info.as_bytes()).unwrap();
        assert_eq!(settings.nameservers, ["10.0.0.10"]);
        assert_eq!(settings.search, ["shop.svc.cluster.local"]);
        assert_eq!(settings.ndots, 5);
        assert_eq!(path(info), Some("/proc/42/ns/net".into()));
        assert_eq!(resolver(br#"{"pid": 42, "config": {}}"#), None);
    }

    #[test]
    fn what_says_neither_leads_nowhere() {
        for info in [
            "",
            "{}",
            "[]",
            r#"{"pid": 0}"#,
            r#"{"pid": -1}"#,
            r#"{"runtimeSpec": null}"#,
        ] {
            assert_eq!(path(info), None, "{info}");
        }
    }
}
