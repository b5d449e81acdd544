//! Workloads: the pods, virtual machines and processes that send and receive traffic.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::gateway::GatewayAddress;
use crate::identity::Identity;
use crate::name::{NamespacedHostname, NamespacedName, Str, WorkloadUid};

/// One workload, as the control plane describes it (`istio.workload.Workload`).
///
/// Empty fields of the wire are already replaced by their meaning: trust domain, service account and cluster.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    /// Unique opaque name.
    pub uid: WorkloadUid,
    /// Name of the pod or entry.
    pub name: Str,
    /// Namespace of the pod or entry.
    pub namespace: Str,
    /// Trust domain of its identity.
    pub trust_domain: Str,
    /// Service account of its identity.
    pub service_account: Str,
    /// Addresses within [`Self::network`]; may be empty where a hostname or a gateway stands in.
    pub addresses: Vec<IpAddr>,
    /// Network id; empty is the default network.
    pub network: Str,
    /// Name resolved at connect time when there is no address.
    pub hostname: Str,
    /// How to reach it.
    pub tunnel_protocol: TunnelProtocol,
    /// Whether addresses may be looked up.
    pub network_mode: NetworkMode,
    /// The workload speaks HBONE itself; nothing is tunnelled on its behalf.
    pub native_tunnel: bool,
    /// Waypoint for traffic addressed to this workload.
    pub waypoint: Option<GatewayAddress>,
    /// Entry to its network for callers elsewhere.
    pub network_gateway: Option<GatewayAddress>,
    /// How the application itself wants the bytes.
    pub application_tunnel: Option<ApplicationTunnel>,
    /// Node it runs on.
    pub node: Str,
    /// Cluster it belongs to.
    pub cluster_id: Str,
    /// Where it runs.
    pub locality: Locality,
    /// Names of its workload-selector policies.
    pub authorization_policies: Vec<NamespacedName>,
    /// Services it is an endpoint of, with its own port mapping (service port → target port).
    #[serde(with = "by_service")]
    pub services: BTreeMap<NamespacedHostname, PortMapping>,
    /// Whether it may be chosen.
    pub status: HealthStatus,
    /// Balancing weight; zero is never chosen.
    pub capacity: u32,
    /// Telemetry: kind of owner.
    pub workload_type: WorkloadType,
    /// Telemetry: name of the owner.
    pub workload_name: Str,
    /// Telemetry: canonical service name.
    pub canonical_name: Str,
    /// Telemetry: canonical revision.
    pub canonical_revision: Str,
    /// Named values that peers who do not know them ignore, such as `tulle.dev/process`.
    pub extensions: BTreeMap<Str, Str>,
}

/// Extension with the names of the workload-selector policies that are only judged, apart by spaces. They stand apart from
/// those that are enforced, as nobody is to wait for them: not every proxy is told of them.
const DRY_RUNS_EXTENSION: &str = "tulle.dev/dry-run-policies";

impl Workload {
    /// The workload-selector policies that judge who connects to it and refuse nobody.
    pub fn dry_runs(&self) -> impl Iterator<Item = NamespacedName> + '_ {
        let names = self.extensions.get(DRY_RUNS_EXTENSION);
        let names = names.into_iter().flat_map(|names| names.split(' '));
        names.filter_map(|text| {
            let (namespace, name) = text.split_once('/')?;
            Some(NamespacedName::new(namespace, name))
        })
    }

    /// Names the policies of [`Self::dry_runs`].
    pub fn set_dry_runs(&mut self, policies: &[NamespacedName]) {
        let names: Vec<_> = policies.iter().map(ToString::to_string).collect();
        if names.is_empty() {
            self.extensions.remove(DRY_RUNS_EXTENSION);
        } else {
            self.extensions
                .insert(DRY_RUNS_EXTENSION.into(), names.join(" ").into());
        }
    }

    /// The identity its certificate carries.
    #[must_use]
    pub fn identity(&self) -> Identity {
        Identity {
            trust_domain: self.trust_domain.clone(),
            namespace: self.namespace.clone(),
            service_account: self.service_account.clone(),
        }
    }
}

/// Keys of a map as text, `<namespace>/<hostname>`, as on the wire: JSON knows no other keys.
mod by_service {
    use std::collections::BTreeMap;

    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    use super::{NamespacedHostname, PortMapping};

    type Services = BTreeMap<NamespacedHostname, PortMapping>;

    pub(super) fn serialize<S: Serializer>(services: &Services, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(services.iter().map(|(key, ports)| (key.to_string(), ports)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Services, D::Error> {
        let texts = BTreeMap::<String, PortMapping>::deserialize(deserializer)?;
        let parse = |(text, ports): (String, PortMapping)| match text.split_once('/') {
            Some((namespace, hostname)) => Ok((NamespacedHostname::new(namespace, hostname), ports)),
            None => Err(D::Error::custom(format!(
                "`{text}` is no service; expected <namespace>/<hostname>"
            ))),
        };
        texts.into_iter().map(parse).collect()
    }
}

/// Target ports of one workload by service port.
pub type PortMapping = BTreeMap<u16, u16>;

/// How a workload is reached. The legacy sidecar protocol is refused where it is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum TunnelProtocol {
    /// Plain TCP.
    #[default]
    None,
    /// HTTP/2 CONNECT over mutual TLS, port 15008.
    Hbone,
}

/// Whether a workload's addresses are its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum NetworkMode {
    /// Own addresses.
    #[default]
    Standard,
    /// Shares the node's; never looked up by address.
    HostNetwork,
}

/// Whether a workload may be chosen as an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum HealthStatus {
    /// Ready.
    #[default]
    Healthy,
    /// Not ready, or ending.
    Unhealthy,
}

/// Kind of a workload's owner; telemetry only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkloadType {
    /// A Deployment.
    #[default]
    Deployment,
    /// A CronJob.
    CronJob,
    /// A bare pod.
    Pod,
    /// A Job.
    Job,
}

impl WorkloadType {
    /// The word used in baggage keys and labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::CronJob => "cronjob",
            Self::Pod => "pod",
            Self::Job => "job",
        }
    }
}

/// How an application wants its inbound bytes.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ApplicationTunnel {
    /// Framing in front of the bytes.
    pub protocol: ApplicationProtocol,
    /// Port to connect to; `None` keeps the target port.
    pub port: Option<u16>,
}

/// Framing of an [`ApplicationTunnel`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ApplicationProtocol {
    /// Nothing.
    None,
    /// A PROXY protocol version 2 header.
    Proxy,
}

/// Region, zone and subzone; empty parts are unknown.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Locality {
    /// Region.
    pub region: Str,
    /// Zone within the region.
    pub zone: Str,
    /// Subzone within the zone.
    pub subzone: Str,
}

#[cfg(test)]
mod tests {
    use crate::testing::workload;

    #[test]
    fn a_workload_can_be_written_as_json_and_read_back() {
        let workload = workload("web").serves_on("db", [(80, 8080)]).build();
        let text = serde_json::to_string(&workload).unwrap();
        let read: super::Workload = serde_json::from_str(&text).unwrap();
        assert_eq!(read, workload);
    }
}
