//! Kinds of Kubernetes itself.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde::Deserialize;
use tulle_model::Str;

use super::meta::{Labels, Meta, StatusCondition};

/// A namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Namespace {
    /// Metadata.
    pub metadata: Meta,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Node {
    /// Metadata.
    pub metadata: Meta,
    /// Observed state.
    pub status: NodeStatus,
}

/// Observed state of a [`Node`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// Where it is reached.
    pub addresses: Vec<NodeAddress>,
}

impl NodeStatus {
    /// Its addresses; names that stand for it are none.
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().filter_map(|one| one.address.parse().ok())
    }
}

/// An address or a name of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct NodeAddress {
    /// The address, or the name.
    pub address: Str,
}

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// Metadata.
    pub metadata: Meta,
    /// Wanted state.
    pub spec: PodSpec,
    /// Observed state.
    pub status: PodStatus,
}

/// Wanted state of a [`Pod`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// Node it runs on.
    pub node_name: Str,
    /// Service account.
    pub service_account_name: Str,
    /// Whether it shares the node's network.
    pub host_network: bool,
    /// Containers; pods that declare the same share them.
    pub containers: Arc<[Container]>,
    /// Containers that start before.
    pub init_containers: Arc<[Container]>,
}

/// A container, as far as its ports go.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    /// Ports it declares.
    pub ports: Vec<ContainerPort>,
    /// `Always` makes an init container a sidecar.
    pub restart_policy: Str,
}

/// A declared port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort {
    /// Name that services may refer to.
    pub name: Str,
    /// Number.
    pub container_port: u16,
    /// `TCP` if empty.
    pub protocol: Str,
}

/// Observed state of a [`Pod`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// Phase.
    pub phase: Str,
    /// First address.
    #[serde(rename = "podIP")]
    pub pod_ip: Option<IpAddr>,
    /// Every address.
    #[serde(rename = "podIPs")]
    pub pod_ips: Box<[PodIp]>,
    /// Conditions; pods in the same state share them.
    pub conditions: Arc<[StatusCondition]>,
}

/// One address of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct PodIp {
    /// The address.
    pub ip: IpAddr,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Service {
    /// Metadata.
    pub metadata: Meta,
    /// Wanted state; apart, so that it does not make pods as large as it is.
    pub spec: Box<ServiceSpec>,
}

/// Wanted state of a [`Service`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// `ClusterIP` if empty.
    #[serde(rename = "type")]
    pub kind: Str,
    /// Labels of the pods it stands for; empty selects nothing.
    pub selector: Labels,
    /// First virtual address, or `None`.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Str,
    /// Every virtual address.
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Vec<Str>,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// Families it is reachable by.
    pub ip_families: Vec<Str>,
    /// Whether endpoints that are not ready take part.
    pub publish_not_ready_addresses: bool,
    /// `Local` keeps traffic on the node.
    pub internal_traffic_policy: Str,
    /// Preference for near endpoints.
    pub traffic_distribution: Str,
}

/// A port of a [`Service`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort {
    /// Name.
    pub name: Str,
    /// Number.
    pub port: u16,
    /// Port at the pods: number, name, or the same.
    pub target_port: Option<IntOrName>,
    /// `TCP` if empty.
    pub protocol: Str,
    /// Declared protocol.
    pub app_protocol: Str,
}

/// A port by number or by name.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum IntOrName {
    /// By number.
    Number(u16),
    /// By name.
    Name(Str),
}

/// Endpoints of a service.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSlice {
    /// Metadata.
    pub metadata: Meta,
    /// `IPv4`, `IPv6` or `FQDN`.
    pub address_type: Str,
    /// Endpoints.
    pub endpoints: Vec<SliceEndpoint>,
    /// Ports of every endpoint.
    pub ports: Vec<SlicePort>,
}

/// One endpoint of a slice.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SliceEndpoint {
    /// Addresses.
    pub addresses: Vec<Str>,
    /// Conditions.
    pub conditions: EndpointConditions,
    /// What it stands for.
    pub target_ref: Option<TargetRef>,
    /// Node it runs on.
    pub node_name: Str,
}

/// Conditions of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct EndpointConditions {
    /// Absent means ready.
    pub ready: Option<bool>,
}

/// What an endpoint stands for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct TargetRef {
    /// Kind.
    pub kind: Str,
    /// Namespace.
    pub namespace: Str,
    /// Name.
    pub name: Str,
    /// Unique id.
    pub uid: Str,
}

/// A port of a slice.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct SlicePort {
    /// Name, matched with the service's port name.
    pub name: Str,
    /// Number.
    pub port: Option<u16>,
    /// `TCP` if empty.
    pub protocol: Str,
}

/// Named ports.
pub type NamedPorts = BTreeMap<Str, u16>;
