//! Kinds of `networking.istio.io` that describe workloads and services.

use std::sync::Arc;

use serde::Deserialize;
use tulle_model::Str;

use super::core::NamedPorts;
use super::meta::{Labels, Meta, StatusCondition};

/// A workload that is no pod.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct WorkloadEntry {
    /// Metadata.
    pub metadata: Meta,
    /// Wanted state.
    pub spec: EndpointSpec,
    /// Observed state.
    pub status: WorkloadEntryStatus,
}

/// Observed state of a [`WorkloadEntry`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct WorkloadEntryStatus {
    /// Conditions; entries in the same state share them.
    pub conditions: Arc<[StatusCondition]>,
}

/// An endpoint: a workload entry, or one of those written into a service entry.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSpec {
    /// IP address or host name.
    pub address: Str,
    /// Ports that differ from the service's, by name.
    pub ports: NamedPorts,
    /// Labels that services select by.
    pub labels: Labels,
    /// Network id.
    pub network: Str,
    /// `region/zone/subzone`.
    pub locality: Str,
    /// Balancing weight; absent is 1.
    pub weight: Option<u32>,
    /// Service account of its identity.
    pub service_account: Str,
}

/// A service that is not in Kubernetes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct ServiceEntry {
    /// Metadata.
    pub metadata: Meta,
    /// Wanted state; apart, so that it does not make objects of every other kind as large as it is.
    pub spec: Box<ServiceEntrySpec>,
    /// Observed state.
    pub status: ServiceEntryStatus,
}

/// Wanted state of a [`ServiceEntry`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceEntrySpec {
    /// Host names.
    pub hosts: Vec<Str>,
    /// Virtual addresses or ranges.
    pub addresses: Vec<Str>,
    /// Ports.
    pub ports: Vec<EntryPort>,
    /// How endpoints are found.
    pub resolution: Resolution,
    /// Endpoints written out.
    pub endpoints: Vec<EndpointSpec>,
    /// Endpoints by label.
    pub workload_selector: Option<WorkloadSelector>,
    /// Who may see it.
    pub export_to: Vec<Str>,
    /// Identities its endpoints may present.
    pub subject_alt_names: Vec<Str>,
    /// Inside or outside of the mesh; it changes nothing here.
    pub location: Str,
}

/// Observed state of a [`ServiceEntry`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct ServiceEntryStatus {
    /// Virtual addresses given to it.
    pub addresses: Vec<AllocatedAddress>,
}

/// A virtual address given to a host of a service entry.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct AllocatedAddress {
    /// The address.
    pub value: Str,
    /// The host; empty for every host.
    pub host: Str,
}

/// A port of a [`ServiceEntry`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EntryPort {
    /// Number.
    pub number: u16,
    /// Declared protocol.
    pub protocol: Str,
    /// Name.
    pub name: Str,
    /// Port at the endpoints; absent is the same.
    pub target_port: Option<u16>,
}

/// How the endpoints of a service entry are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Resolution {
    /// Not at all: the caller's own destination is used.
    #[default]
    None,
    /// Addresses written out.
    Static,
    /// By DNS.
    Dns,
    /// By DNS, one address at a time.
    DnsRoundRobin,
    /// By the name the caller asks for.
    DynamicDns,
}

/// Endpoints by label.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct WorkloadSelector {
    /// The labels.
    pub labels: Labels,
}
