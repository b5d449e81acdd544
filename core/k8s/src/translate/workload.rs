//! Pods, workload entries and written-out endpoints into workloads of the model.

use std::collections::BTreeMap;
use std::net::IpAddr;

use tulle_model::enrolment::{self, NamespaceFacts, PodFacts, Tunnel};
use tulle_model::workload::{
    HealthStatus, Locality, NetworkMode, PortMapping, TunnelProtocol, Workload, WorkloadType,
};
use tulle_model::{NamespacedHostname, NamespacedName, Str, WorkloadUid};

use super::MeshConfig;
use super::condition::{Condition, USABLE};
use super::mesh::NETWORK_LABEL;
use crate::api::core::{Namespace, Node, Pod, SliceEndpoint};
use crate::api::meta::{Labels, Meta, has_condition};
use crate::api::networking::{EndpointSpec, WorkloadEntry};
use crate::api::{EndpointSlice, ServiceEntry};

mod capture;
mod owner;
mod placement;
#[cfg(test)]
mod tests;

pub use placement::{NODE_ANNOTATION, PROCESS_ANNOTATION, node_of};

/// Annotation of nodes whose agent captures every enrolled workload.
pub const ENROLMENT_ANNOTATION: &str = "tulle.dev/enrolment";

/// What stands around a workload.
#[derive(Debug, Clone)]
pub struct Around<'a> {
    /// The mesh.
    pub mesh: &'a MeshConfig,
    /// Its namespace's object.
    pub namespace: Option<&'a Namespace>,
    /// Its node's object.
    pub node: Option<&'a Node>,
    /// The network of what names none.
    pub network: &'a Str,
    /// The services it is an endpoint of, with its ports.
    pub services: BTreeMap<NamespacedHostname, PortMapping>,
    /// The policies that select it.
    pub policies: Vec<NamespacedName>,
}

/// The uid of a pod.
#[must_use]
pub fn pod_uid(meta: &Meta, mesh: &MeshConfig) -> WorkloadUid {
    WorkloadUid(format!("{}//Pod/{}/{}", mesh.cluster_id, meta.namespace, meta.name).into())
}

/// The uid of a workload entry.
#[must_use]
pub fn entry_uid(meta: &Meta, mesh: &MeshConfig) -> WorkloadUid {
    let (cluster, namespace, name) = (&mesh.cluster_id, &meta.namespace, &meta.name);
    WorkloadUid(format!("{cluster}/networking.istio.io/WorkloadEntry/{namespace}/{name}").into())
}

/// The addresses of a pod, in the order of its status.
#[must_use]
pub fn pod_addresses(pod: &Pod) -> Vec<IpAddr> {
    let all = pod.status.pod_ips.iter().map(|entry| entry.ip);
    let mut addresses: Vec<IpAddr> = all.chain(pod.status.pod_ip).map(|ip| ip.to_canonical()).collect();
    let mut seen = std::collections::BTreeSet::new();
    addresses.retain(|address| seen.insert(*address));
    addresses
}

/// How a pod is reached.
#[must_use]
pub fn pod_tunnel(
    pod: &Pod,
    namespace: Option<&Namespace>,
    node: Option<&Node>,
    mesh: &MeshConfig,
) -> Tunnel {
    let meta = &pod.metadata;
    let facts = PodFacts::read(
        pod.spec.host_network,
        |name| meta.label(name),
        |name| meta.annotation(name),
    );
    let derived = node.is_some_and(|node| node.metadata.annotation(ENROLMENT_ANNOTATION) == Some("derived"));
    tunnel(&facts, &meta.namespace, namespace, mesh, derived)
}

/// Whether a pod has ended.
#[must_use]
pub fn is_over(pod: &Pod) -> bool {
    matches!(&*pod.status.phase, "Succeeded" | "Failed")
}

/// Translates a pod; `None` while it has no address or once it has ended.
#[must_use]
pub fn pod(pod: &Pod, around: &Around<'_>) -> (Option<Workload>, Vec<Condition>) {
    let addresses = pod_addresses(pod);
    if is_over(pod) || addresses.is_empty() {
        return (None, Vec::new());
    }
    let meta = &pod.metadata;
    let (workload_name, workload_type) = owner::of(meta);
    let ready = has_condition(&pod.status.conditions, "Ready", "True") && meta.deletion_timestamp.is_none();
    let mut workload = base(
        pod_uid(meta, around.mesh),
        meta,
        &meta.labels,
        &workload_name,
        around,
    );
    workload.addresses = addresses;
    workload.service_account = or_default(&pod.spec.service_account_name);
    workload.node = pod.spec.node_name.clone();
    workload.status = if ready {
        HealthStatus::Healthy
    } else {
        HealthStatus::Unhealthy
    };
    workload.workload_type = workload_type;
    workload.locality = around.node.map(node_locality).unwrap_or_default();
    if pod.spec.host_network {
        workload.network_mode = NetworkMode::HostNetwork;
    }
    // Nobody reads conditions of pods; what is left out is as if it were not said.
    capture::extend(&mut workload, meta, &mut Vec::new());
    set_tunnel(
        &mut workload,
        pod_tunnel(pod, around.namespace, around.node, around.mesh),
    );
    (Some(workload), Vec::new())
}

/// Translates a workload entry.
#[must_use]
pub fn workload_entry(entry: &WorkloadEntry, around: &Around<'_>) -> (Option<Workload>, Vec<Condition>) {
    let meta = &entry.metadata;
    let labels = entry_labels(entry);
    let mut findings = Vec::new();
    let mut workload = base(entry_uid(meta, around.mesh), meta, &labels, &meta.name, around);
    endpoint(&mut workload, &entry.spec, &mut findings);
    for address in placement::further_addresses(meta, &mut findings) {
        if !workload.addresses.contains(&address) {
            workload.addresses.push(address);
        }
    }
    if has_condition(&entry.status.conditions, "Healthy", "False") {
        workload.status = HealthStatus::Unhealthy;
    }
    workload.node = node_of(meta).unwrap_or_default();
    workload.extensions = placement::process(meta, &mut findings);
    capture::extend(&mut workload, meta, &mut findings);
    if workload.locality == Locality::default() {
        workload.locality = around.node.map(node_locality).unwrap_or_default();
    }
    let facts = PodFacts::read(
        false,
        |name| labels.get(name).map(AsRef::as_ref),
        |name| meta.annotation(name),
    );
    let placed = !workload.node.is_empty();
    set_tunnel(
        &mut workload,
        tunnel(&facts, &meta.namespace, around.namespace, around.mesh, placed),
    );
    conclude(workload, findings)
}

/// The labels a workload entry is selected by: those of its spec, then those of the object.
#[must_use]
pub fn entry_labels(entry: &WorkloadEntry) -> Labels {
    entry.spec.labels.over(&entry.metadata.labels)
}

/// The addresses of a workload entry.
#[must_use]
pub fn entry_addresses(entry: &WorkloadEntry) -> Vec<IpAddr> {
    let first = entry
        .spec
        .address
        .parse::<IpAddr>()
        .ok()
        .map(|address| address.to_canonical());
    let mut addresses: Vec<IpAddr> = first.into_iter().collect();
    for address in placement::further_addresses(&entry.metadata, &mut Vec::new()) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses
}

/// The network of something with these labels; `own` is one that it names itself.
#[must_use]
pub fn network(own: &Str, labels: &Labels, default: &Str) -> Str {
    let label = labels.get(NETWORK_LABEL);
    if own.is_empty() {
        label.unwrap_or(default).clone()
    } else {
        own.clone()
    }
}

/// Translates an endpoint that is written into a service entry.
#[must_use]
pub fn inline_endpoint(
    entry: &ServiceEntry,
    spec: &EndpointSpec,
    around: &Around<'_>,
) -> (Option<Workload>, Vec<Condition>) {
    let meta = &entry.metadata;
    let mut findings = Vec::new();
    let mut workload = base(
        inline_uid(meta, &spec.address, around.mesh),
        meta,
        &spec.labels,
        &meta.name,
        around,
    );
    endpoint(&mut workload, spec, &mut findings);
    let facts = PodFacts::read(false, |name| spec.labels.get(name).map(AsRef::as_ref), |_| None);
    set_tunnel(
        &mut workload,
        tunnel(&facts, &meta.namespace, around.namespace, around.mesh, false),
    );
    conclude(workload, findings)
}

fn inline_uid(meta: &Meta, address: &str, mesh: &MeshConfig) -> WorkloadUid {
    let (cluster, namespace, name) = (&mesh.cluster_id, &meta.namespace, &meta.name);
    WorkloadUid(format!("{cluster}/networking.istio.io/ServiceEntry/{namespace}/{name}/{address}").into())
}

/// The workload that stands for a host which is found by DNS.
#[must_use]
pub fn dns_endpoint(entry: &ServiceEntry, host: &Str, around: &Around<'_>) -> Workload {
    let meta = &entry.metadata;
    let uid = inline_uid(meta, host, around.mesh);
    let mut workload = base(uid, meta, &meta.labels, &meta.name, around);
    workload.hostname = host.clone();
    workload
}

/// Translates an endpoint of a slice that stands for no pod: it has no identity, and no policy selects it.
#[must_use]
pub fn slice_endpoint(
    slice: &EndpointSlice,
    endpoint: &SliceEndpoint,
    address: IpAddr,
    around: &Around<'_>,
) -> Workload {
    let meta = &slice.metadata;
    let (cluster, namespace, name) = (&around.mesh.cluster_id, &meta.namespace, &meta.name);
    let uid = format!("{cluster}/discovery.k8s.io/EndpointSlice/{namespace}/{name}/{address}");
    let mut workload = base(WorkloadUid(uid.into()), meta, &meta.labels, &meta.name, around);
    workload.addresses = vec![address.to_canonical()];
    workload.network_mode = NetworkMode::HostNetwork;
    workload.node = endpoint.node_name.clone();
    if endpoint.conditions.ready == Some(false) {
        workload.status = HealthStatus::Unhealthy;
    }
    workload
}

/// What every workload has, whatever it comes from.
fn base(
    uid: WorkloadUid,
    meta: &Meta,
    labels: &Labels,
    workload_name: &Str,
    around: &Around<'_>,
) -> Workload {
    let label = |names: &[&str]| names.iter().find_map(|name| labels.get(name)).cloned();
    let canonical_name = label(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]);
    let canonical_revision = label(&[
        "service.istio.io/canonical-revision",
        "app.kubernetes.io/version",
        "version",
    ]);
    Workload {
        uid,
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        trust_domain: around.mesh.trust_domain.clone(),
        service_account: "default".into(),
        addresses: Vec::new(),
        network: label(&[NETWORK_LABEL]).unwrap_or_else(|| around.network.clone()),
        hostname: "".into(),
        tunnel_protocol: TunnelProtocol::None,
        network_mode: NetworkMode::Standard,
        native_tunnel: false,
        waypoint: None,
        network_gateway: None,
        application_tunnel: None,
        node: "".into(),
        cluster_id: around.mesh.cluster_id.clone(),
        locality: Locality::default(),
        authorization_policies: around.policies.clone(),
        services: around.services.clone(),
        status: HealthStatus::Healthy,
        capacity: 1,
        workload_type: WorkloadType::Pod,
        workload_name: workload_name.clone(),
        canonical_name: canonical_name.unwrap_or_else(|| workload_name.clone()),
        canonical_revision: canonical_revision.unwrap_or_else(|| "latest".into()),
        extensions: BTreeMap::new(),
    }
}

/// What workload entries and written-out endpoints share.
fn endpoint(workload: &mut Workload, spec: &EndpointSpec, findings: &mut Vec<String>) {
    match spec.address.parse::<IpAddr>() {
        Ok(address) => workload.addresses = vec![address.to_canonical()],
        Err(_) if spec.address.starts_with("unix:") => {
            findings.push("a Unix socket address is not supported and is left out".to_owned());
        }
        Err(_) => workload.hostname = spec.address.clone(),
    }
    if !spec.network.is_empty() {
        workload.network = spec.network.clone();
    }
    let mut parts = spec.locality.split('/').map(Str::from);
    let mut next = || parts.next().unwrap_or_default();
    workload.locality = Locality {
        region: next(),
        zone: next(),
        subzone: next(),
    };
    workload.capacity = spec.weight.unwrap_or(1);
    workload.service_account = or_default(&spec.service_account);
}

fn or_default(service_account: &Str) -> Str {
    if service_account.is_empty() {
        "default".into()
    } else {
        service_account.clone()
    }
}

fn node_locality(node: &Node) -> Locality {
    let label = |name: &str| node.metadata.labels.get(name).cloned().unwrap_or_default();
    Locality {
        region: label("topology.kubernetes.io/region"),
        zone: label("topology.kubernetes.io/zone"),
        subzone: label("topology.istio.io/subzone"),
    }
}

/// `derived` says that the workload's node captures whatever is enrolled.
fn tunnel(
    facts: &PodFacts<'_>,
    namespace: &str,
    object: Option<&Namespace>,
    mesh: &MeshConfig,
    derived: bool,
) -> Tunnel {
    if facts.host_network {
        return Tunnel {
            protocol: TunnelProtocol::None,
            native: false,
        };
    }
    let dataplane_mode = object.and_then(|object| object.metadata.label(enrolment::DATAPLANE_MODE_LABEL));
    let namespace = NamespaceFacts {
        name: namespace,
        dataplane_mode,
    };
    let decision = enrolment::enrolled(facts, &namespace, &mesh.enrolment);
    enrolment::tunnel(facts, decision, derived)
}

fn set_tunnel(workload: &mut Workload, tunnel: Tunnel) {
    workload.tunnel_protocol = tunnel.protocol;
    workload.native_tunnel = tunnel.native;
}

/// A workload without any way to reach it is none.
fn conclude(workload: Workload, mut findings: Vec<String>) -> (Option<Workload>, Vec<Condition>) {
    let reachable = !workload.addresses.is_empty() || !workload.hostname.is_empty();
    if !reachable {
        findings.push("it has no address; add `address`".to_owned());
    }
    let usable = match (findings.is_empty(), reachable) {
        (true, _) => Condition::holds(USABLE, "Accepted", "all of it is used"),
        (false, true) => Condition::fails(USABLE, "PartiallyInvalid", findings.join("; ")),
        (false, false) => Condition::fails(USABLE, "Invalid", findings.join("; ")),
    };
    (reachable.then_some(workload), vec![usable])
}
