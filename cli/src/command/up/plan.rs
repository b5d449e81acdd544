//! What a folder of manifests asks a local mesh for: nodes, pods, what runs in them, and virtual addresses. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde_json::Value;
use tulle_world::{Backend, CONTROL, VirtualService};

use crate::command::folder::Folder;

/// Where a WorkloadEntry runs; without it, it is somewhere else and not ours to make.
const NODE: &str = "tulle.dev/node";
/// How its process is recognised: `netns:NAME` is a pod that is made here.
const PROCESS: &str = "tulle.dev/process";
/// What runs in it, for the shell.
const COMMAND: &str = "tulle.dev/command";
/// What instances of waypoints are labelled with: they are made by who looks after them.
const MANAGED: &str = "gateway.istio.io/managed";
const ENROLLED: &str = "istio.io/dataplane-mode";
/// The node of pods that name none.
const DEFAULT_NODE: &str = "local";
/// Nodes at most: each is an agent and a proxy.
pub(super) const NODES_MAX: usize = 16;
/// Bytes of a name: of a folder entry, with room for what is put round it.
const NAME_BYTES_MAX: usize = 200;

/// What is to be there.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// The nodes of the pods; at least one.
    pub(super) nodes: BTreeSet<String>,
    /// Pods, by the name of their network namespace.
    pub(super) pods: BTreeMap<String, PodPlan>,
    /// Virtual addresses, for pods outside of the mesh.
    pub(super) services: Vec<Virtual>,
    /// What cannot be done, with the cure.
    pub(super) findings: Vec<String>,
    /// Whether a file could not be read, so that what is missing may be in it.
    pub(super) partial: bool,
}

/// A pod as it is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodPlan {
    /// The object, `namespace/name`.
    pub(super) workload: String,
    pub(super) namespace: String,
    pub(super) node: String,
    pub(super) address: Ipv4Addr,
    /// What runs in it, for the shell.
    pub(super) command: Option<String>,
    /// Whether the mesh takes it in.
    pub(super) enrolled: bool,
}

/// A virtual address and where its connections go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Virtual {
    address: SocketAddr,
    backends: Vec<SocketAddr>,
}

impl Virtual {
    pub(super) fn service(&self) -> VirtualService {
        VirtualService {
            address: self.address,
            backends: self.backends.iter().copied().map(Backend).collect(),
        }
    }
}

/// Reads a folder.
pub(super) fn plan(folder: &Folder) -> Plan {
    let mut plan = Plan {
        partial: folder.has_unread(),
        ..Plan::default()
    };
    let mut addresses = BTreeMap::new();
    for document in folder.of_kind("WorkloadEntry") {
        let object = document.value();
        if object["spec"]["labels"][MANAGED].is_string() {
            continue;
        }
        let Some(name) = text(object, "annotations", PROCESS).and_then(|text| text.strip_prefix("netns:"))
        else {
            continue;
        };
        let workload = format!("{}/{}", document.namespace(), document.name());
        let outcome = pod(folder, document.namespace(), object, workload.clone());
        let taken = |pod: PodPlan| {
            if !is_name(name) {
                return Err(format!(
                    "{PROCESS}: {name:?} is no name of lower case letters, digits, - and ."
                ));
            }
            if let Some(other) = plan.pods.get(name) {
                return Err(format!(
                    "{PROCESS}: {} is in netns:{name} already",
                    other.workload
                ));
            }
            match addresses.insert(pod.address, workload.clone()) {
                Some(other) => Err(format!("spec.address: {other} has {} already", pod.address)),
                None => Ok(pod),
            }
        };
        match outcome.and_then(taken) {
            Ok(pod) => {
                plan.nodes.insert(pod.node.clone());
                plan.pods.insert(name.to_owned(), pod);
            }
            Err(error) => plan.findings.push(format!("WorkloadEntry {workload}: {error}")),
        }
    }
    if plan.nodes.is_empty() {
        plan.nodes.insert(DEFAULT_NODE.to_owned());
    }
    plan.services = services(folder);
    plan
}

fn pod(folder: &Folder, namespace: &str, object: &Value, workload: String) -> Result<PodPlan, String> {
    let node = text(object, "annotations", NODE)
        .ok_or_else(|| format!("{NODE} is missing; add the name of a node, such as {DEFAULT_NODE}"))?;
    if !is_name(node) || node == CONTROL {
        return Err(format!("{NODE}: {node:?} cannot be the name of a node here"));
    }
    let address = object["spec"]["address"].as_str().unwrap_or_default();
    let address = address
        .parse()
        .ok()
        .filter(|address| is_usable(*address))
        .ok_or_else(|| {
            format!("spec.address: {address:?} cannot be the IPv4 address of a pod here, 10.11.1.2 could")
        })?;
    let of_namespace = folder
        .find("Namespace", "", namespace)
        .and_then(|found| text(found.value(), "labels", ENROLLED));
    let enrolled = text(object, "labels", ENROLLED)
        .or_else(|| object["spec"]["labels"][ENROLLED].as_str())
        .or(of_namespace);
    Ok(PodPlan {
        workload,
        namespace: namespace.to_owned(),
        node: node.to_owned(),
        address,
        command: text(object, "annotations", COMMAND).map(str::to_owned),
        enrolled: enrolled == Some("ambient"),
    })
}

fn text<'a>(object: &'a Value, part: &str, name: &str) -> Option<&'a str> {
    object["metadata"][part][name].as_str()
}

/// A name that is safe as one step down a folder, and that none of our own entries there has.
fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(plain)
        && !name.starts_with('.')
        && !name.starts_with("node-")
}

/// Not what the world has for itself: the wire between nodes, loopback, link-local addresses.
fn is_usable(address: Ipv4Addr) -> bool {
    let of_the_wire = address.octets()[..3] == [10, 10, 0];
    !(address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_broadcast()
        || address.is_unspecified()
        || of_the_wire)
}

/// The virtual addresses of services, as plain nodes know them.
fn services(folder: &Folder) -> Vec<Virtual> {
    let mut services = Vec::new();
    for document in folder.of_kind("Service") {
        let spec = &document.value()["spec"];
        let Ok(address) = spec["clusterIP"].as_str().unwrap_or_default().parse::<IpAddr>() else {
            continue;
        };
        let Some(selector) = spec["selector"]
            .as_object()
            .filter(|selector| !selector.is_empty())
        else {
            continue;
        };
        let selected = folder.of_kind("WorkloadEntry").filter(|entry| {
            let labels = &entry.value()["spec"]["labels"];
            entry.namespace() == document.namespace()
                && selector.iter().all(|(name, value)| &labels[name] == value)
        });
        let addresses = selected.filter_map(|entry| entry.value()["spec"]["address"].as_str()?.parse().ok());
        let addresses: Vec<IpAddr> = addresses.collect();
        for port in spec["ports"].as_array().into_iter().flatten() {
            let number = |value: &Value| value.as_u64().and_then(|number| u16::try_from(number).ok());
            let Some(own) = number(&port["port"]) else {
                continue;
            };
            let target = number(&port["targetPort"]).unwrap_or(own);
            services.push(Virtual {
                address: SocketAddr::new(address, own),
                backends: addresses.iter().map(|ip| SocketAddr::new(*ip, target)).collect(),
            });
        }
    }
    services
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, netns: &str, address: &str) -> String {
        format!(
            "kind: WorkloadEntry\nmetadata:\n  name: {name}\n  namespace: shop\n  annotations:\n    \
             tulle.dev/node: n1\n    tulle.dev/process: netns:{netns}\n    tulle.dev/command: sleep 1\n\
             spec:\n  address: {address}\n  labels: {{app: web}}\n---\n"
        )
    }

    fn read(text: &str) -> Plan {
        plan(&Folder::of_text(text))
    }

    #[test]
    fn a_workload_entry_with_a_namespace_of_the_network_is_a_pod() {
        let namespace =
            "kind: Namespace\nmetadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}\n---\n";
        let service = "kind: Service\nmetadata: {name: web, namespace: shop}\nspec:\n  clusterIP: 10.96.0.9\n  \
                       selector: {app: web}\n  ports: [{port: 80, targetPort: 8080}]\n";
        let plan = read(&format!(
            "{namespace}{}{service}",
            entry("web", "web-1", "172.16.0.9")
        ));
        assert_eq!(plan.findings, Vec::<String>::new());
        assert_eq!(plan.nodes, BTreeSet::from(["n1".to_owned()]));
        let expected = PodPlan {
            workload: "shop/web".to_owned(),
            namespace: "shop".to_owned(),
            node: "n1".to_owned(),
            address: Ipv4Addr::new(172, 16, 0, 9),
            command: Some("sleep 1".to_owned()),
            enrolled: true,
        };
        assert_eq!(plan.pods, BTreeMap::from([("web-1".to_owned(), expected)]));
        let web = Virtual {
            address: "10.96.0.9:80".parse().unwrap(),
            backends: vec!["172.16.0.9:8080".parse().unwrap()],
        };
        assert_eq!(plan.services, [web]);
    }

    #[test]
    fn two_pods_share_neither_namespace_nor_address() {
        let plan = read(&(entry("a", "one", "10.11.1.2") + &entry("b", "one", "10.11.1.3")));
        assert_eq!(
            plan.findings,
            ["WorkloadEntry shop/b: tulle.dev/process: shop/a is in netns:one already"]
        );
        let plan = read(&(entry("a", "one", "10.11.1.2") + &entry("b", "two", "10.11.1.2")));
        assert_eq!(
            plan.findings,
            ["WorkloadEntry shop/b: spec.address: shop/a has 10.11.1.2 already"]
        );
        assert_eq!(plan.pods.len(), 1);
    }

    #[test]
    fn names_and_addresses_that_are_not_ours_to_give_are_refused() {
        for name in ["../up", "node-n1", "a/b", ".", "UP"] {
            let plan = read(&entry("a", name, "10.11.1.2"));
            assert!(
                plan.pods.is_empty() && plan.findings.len() == 1,
                "{name}: {plan:?}"
            );
        }
        for address in ["127.0.0.1", "169.254.1.1", "10.10.0.3", "fd00::1", "nowhere"] {
            let plan = read(&entry("a", "one", address));
            assert!(
                plan.pods.is_empty() && plan.findings.len() == 1,
                "{address}: {plan:?}"
            );
        }
        let control = entry("a", "one", "10.11.1.2").replace("node: n1", "node: control");
        assert_eq!(read(&control).findings.len(), 1);
    }

    #[test]
    fn an_empty_folder_has_one_node_and_what_is_elsewhere_is_no_pod() {
        let elsewhere = "kind: WorkloadEntry\nmetadata: {name: vm}\nspec: {address: 192.0.2.1}\n";
        for text in ["", elsewhere] {
            let plan = read(text);
            assert_eq!(plan.nodes, BTreeSet::from(["local".to_owned()]));
            assert!(plan.pods.is_empty() && plan.findings.is_empty());
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_noticed() {
        assert!(read("kind: [\n").partial);
        assert!(!read(&entry("a", "one", "10.11.1.2")).partial);
    }
}
