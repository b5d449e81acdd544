//! Whom a proxy serves, and who it is itself.

use std::fmt;
use std::net::IpAddr;

use serde::Serialize;
use tulle_model::Str;
use tulle_runtime::config::Collector;

/// Whom a proxy serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum ProxyMode {
    /// All pods of the node, as the agent names them.
    Shared,
    /// One workload, in the current network namespace.
    Dedicated(WorkloadName),
}

/// What the control plane knows a workload by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadName {
    /// Namespace.
    pub namespace: Str,
    /// Name of the pod.
    pub name: Str,
    /// Service account.
    pub service_account: Str,
}

impl fmt::Display for WorkloadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.namespace, self.name, self.service_account)
    }
}

/// The proxy's own pod.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessIdentity {
    /// Its address.
    pub instance_ip: Option<IpAddr>,
    /// Its name.
    pub pod_name: String,
    /// Its namespace.
    pub pod_namespace: String,
    /// Its service account.
    pub service_account: String,
}

pub(super) fn read_mode(read: &mut Collector<'_>) -> ProxyMode {
    let mode = read.string("PROXY_MODE", "shared");
    match mode.as_str() {
        "shared" => ProxyMode::Shared,
        "dedicated" => read_dedicated(read).map_or(ProxyMode::Shared, ProxyMode::Dedicated),
        other => {
            read.problem("PROXY_MODE", other, "must be shared or dedicated");
            ProxyMode::Shared
        }
    }
}

fn read_dedicated(read: &mut Collector<'_>) -> Option<WorkloadName> {
    const NAME: &str = "PROXY_WORKLOAD_INFO";
    let Some(text) = read.optional_string(NAME) else {
        read.problem(NAME, "", "must be set with PROXY_MODE=dedicated");
        return None;
    };
    let parts: Vec<&str> = text.split('/').collect();
    match parts[..] {
        [namespace, name, service_account] if parts.iter().all(|part| !part.is_empty()) => {
            Some(WorkloadName {
                namespace: namespace.into(),
                name: name.into(),
                service_account: service_account.into(),
            })
        }
        _ => {
            read.problem(NAME, &text, "must be <namespace>/<name>/<service account>");
            None
        }
    }
}

pub(super) fn read_cluster_id(read: &mut Collector<'_>) -> Str {
    let meta = read.optional_string("ISTIO_META_CLUSTER_ID");
    meta.unwrap_or_else(|| read.string("CLUSTER_ID", "Kubernetes"))
        .into()
}

pub(super) fn read_process(read: &mut Collector<'_>) -> ProcessIdentity {
    ProcessIdentity {
        instance_ip: read.optional("INSTANCE_IP", str::parse),
        pod_name: read.string("POD_NAME", ""),
        pod_namespace: read.string("POD_NAMESPACE", ""),
        service_account: read.string("SERVICE_ACCOUNT", ""),
    }
}
