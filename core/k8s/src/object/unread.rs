//! Documents of kinds that are not read: which of them are probably not meant so, and which object they may have been.

use tulle_model::Str;

use super::read::NAME_BYTES_MAX;
use super::{CORE, DEFAULT_NAMESPACE, Key, Kind, NETWORKING, SECURITY};
use crate::document::Fault;
use crate::document::node::Node;

/// Longest kind and version that are repeated.
const SHOWN_CHARS_MAX: usize = 128;

/// A document of a kind that is not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unread {
    /// Where, which kind, and what to do.
    pub fault: Fault,
    /// How much it matters.
    pub weight: Weight,
    kind: Str,
    group: Str,
    /// Namespace and name, if they can be read.
    named: Option<(Str, Str)>,
}

/// How much it matters that a document is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// Its kind means nothing to the mesh.
    Foreign,
    /// Something else stands in the place of its kind.
    Replaced,
    /// Nobody knows such a kind where others are read: it is probably misspelt.
    Misspelt,
    /// It was to restrict access.
    Restricts,
}

impl Unread {
    /// Reads a document of this kind and group, which is not read any further.
    pub(super) fn of(node: &Node, version: &str, kind: &str, group: &str) -> Self {
        let (weight, fix) = judge(kind, group);
        let shown = printable(&format!("{version} {kind}"));
        let fault = Fault::new(
            node.place,
            format!("{shown} is not read by this control plane"),
            fix,
        );
        Self {
            fault,
            weight,
            kind: kind.chars().take(SHOWN_CHARS_MAX).collect::<String>().into(),
            group: group.chars().take(SHOWN_CHARS_MAX).collect::<String>().into(),
            named: named(node),
        }
    }

    /// Whether it may be what became of this object.
    #[must_use]
    pub fn may_be(&self, key: &Key) -> bool {
        let same_name = self.named.as_ref().is_none_or(|(namespace, name)| {
            *name == key.name && (!key.kind.is_namespaced() || *namespace == key.namespace)
        });
        same_name && self.may_be_of(key.kind)
    }

    /// Whether it may be what became of an object of this kind: the kind stands in a group that has none of it, or in its
    /// group stands one that nobody knows.
    #[must_use]
    pub fn may_be_of(&self, kind: Kind) -> bool {
        let same_kind = *self.kind == *kind.as_str() && self.weight != Weight::Replaced;
        let is_unknown = matches!(self.weight, Weight::Misspelt | Weight::Restricts);
        let known_elsewhere = || Kind::ALL.iter().any(|known| *self.kind == *known.as_str());
        same_kind || is_unknown && *self.group == *kind.group() && !known_elsewhere()
    }
}

/// Namespace and name, as far as they are texts of a name's length.
fn named(node: &Node) -> Option<(Str, Str)> {
    let metadata = node.field("metadata")?;
    let name = metadata
        .text("name")
        .filter(|name| name.len() <= NAME_BYTES_MAX)?;
    let namespace = metadata.text("namespace").unwrap_or(DEFAULT_NAMESPACE);
    (namespace.len() <= NAME_BYTES_MAX).then(|| (namespace.into(), name.into()))
}

/// How much a kind matters, and what to do about it.
fn judge(kind: &str, group: &str) -> (Weight, String) {
    let names = |kinds: &mut dyn Iterator<Item = Kind>| -> String {
        let names: Vec<&str> = kinds.map(Kind::as_str).collect();
        names.join(", ")
    };
    let in_group = |known: &Kind| known.group() == group && *known != Kind::Mesh;
    let mut known = Kind::ALL.iter().copied().filter(in_group);
    if group == SECURITY {
        let fix = format!(
            "what it was to refuse is not refused; write one of {}",
            names(&mut known)
        );
        return (Weight::Restricts, fix);
    }
    if let Some((_, _, fix)) = REPLACED
        .iter()
        .find(|(of, replaced, _)| (*of, *replaced) == (group, kind))
    {
        return (Weight::Replaced, (*fix).to_owned());
    }
    let mut elsewhere = Kind::ALL
        .iter()
        .filter(|known| known.as_str() == kind && known.group() != CORE);
    if let Some(elsewhere) = elsewhere.next().filter(|known| **known != Kind::Mesh) {
        let fix = format!("{kind} is read as one of {}", elsewhere.group());
        return (Weight::Misspelt, fix);
    }
    let is_foreign = group == CORE && FOREIGN_CORE.contains(&kind);
    if is_foreign || known.clone().next().is_none() {
        return (Weight::Foreign, "nothing to do if that is meant so".to_owned());
    }
    let fix = format!("write one of {}, or leave it out", names(&mut known));
    (Weight::Misspelt, fix)
}

fn printable(text: &str) -> String {
    let printable = text.chars().filter(|c| !c.is_control());
    printable.take(SHOWN_CHARS_MAX).collect()
}

/// Kinds of the core group that mean nothing to the mesh.
const FOREIGN_CORE: &[&str] = &[
    "Binding",
    "ComponentStatus",
    "Endpoints",
    "Event",
    "LimitRange",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "PodTemplate",
    "ReplicationController",
    "ResourceQuota",
    "ServiceAccount",
];

/// Kinds that are not read, each with what stands in its place.
const REPLACED: &[(&str, &str, &str)] = &[
    (
        NETWORKING,
        "VirtualService",
        "use HTTPRoute, GRPCRoute, TLSRoute or TCPRoute with the service as parent",
    ),
    (
        NETWORKING,
        "DestinationRule",
        "use TrafficPolicy for balancing, limits and outlier detection, and one Service per subset as backends of a route; BackendTLSPolicy for TLS",
    ),
    (
        NETWORKING,
        "Sidecar",
        "nothing to do: proxies ask for what they need",
    ),
    (
        NETWORKING,
        "EnvoyFilter",
        "there is no Envoy; use TrafficPolicy, or filters of a route",
    ),
    (
        NETWORKING,
        "ProxyConfig",
        "use the settings of the mesh, mesh.yaml",
    ),
    (
        NETWORKING,
        "WorkloadGroup",
        "write a WorkloadEntry per workload, with the annotations tulle.dev/node and tulle.dev/process; `tulle workload add` does",
    ),
    (
        NETWORKING,
        "Gateway",
        "use the Gateway of gateway.networking.k8s.io",
    ),
    (
        "telemetry.istio.io",
        "Telemetry",
        "use `waypoint` in the settings of the mesh, mesh.yaml",
    ),
    (
        "extensions.istio.io",
        "WasmPlugin",
        "use externalAuth of TrafficPolicy, or a filter of a route",
    ),
];
