//! Whether a pod is captured: the one answer that control plane, agent and CNI plugin give alike.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use crate::name::Str;
use crate::workload::TunnelProtocol;

/// Label of pods and namespaces that chooses a data plane.
pub const DATAPLANE_MODE_LABEL: &str = "istio.io/dataplane-mode";
/// Annotation of pods that carry a sidecar.
pub const SIDECAR_STATUS_ANNOTATION: &str = "sidecar.istio.io/status";
/// Annotation that Istio's node agent sets on pods it has captured.
pub const REDIRECTION_ANNOTATION: &str = "ambient.istio.io/redirection";
/// Label of pods that speak HBONE themselves.
pub const TUNNEL_LABEL: &str = "networking.istio.io/tunnel";

/// What of a pod decides its enrolment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PodFacts<'a> {
    /// It shares its node's network.
    pub host_network: bool,
    /// It carries [`SIDECAR_STATUS_ANNOTATION`].
    pub has_sidecar: bool,
    /// Its [`DATAPLANE_MODE_LABEL`].
    pub dataplane_mode: Option<&'a str>,
    /// Its [`REDIRECTION_ANNOTATION`].
    pub redirection: Option<&'a str>,
    /// Its [`TUNNEL_LABEL`].
    pub tunnel: Option<&'a str>,
}

impl<'a> PodFacts<'a> {
    /// Reads the facts through two look-ups, so that any shape of labels and annotations will do.
    pub fn read(
        host_network: bool,
        label: impl Fn(&str) -> Option<&'a str>,
        annotation: impl Fn(&str) -> Option<&'a str>,
    ) -> Self {
        Self {
            host_network,
            has_sidecar: annotation(SIDECAR_STATUS_ANNOTATION).is_some(),
            dataplane_mode: label(DATAPLANE_MODE_LABEL),
            redirection: annotation(REDIRECTION_ANNOTATION),
            tunnel: label(TUNNEL_LABEL),
        }
    }
}

/// What of a namespace decides the enrolment of its pods.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NamespaceFacts<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its [`DATAPLANE_MODE_LABEL`].
    pub dataplane_mode: Option<&'a str>,
}

/// What of the mesh decides enrolment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshFacts {
    /// Namespaces whose pods are never enrolled.
    pub excluded_namespaces: BTreeSet<Str>,
}

impl MeshFacts {
    /// The default: `kube-system` and the root namespace are excluded.
    #[must_use]
    pub fn new(root_namespace: &str) -> Self {
        Self {
            excluded_namespaces: ["kube-system", root_namespace].map(Str::from).into(),
        }
    }
}

/// The answer, with the rule that gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Captured.
    In {
        /// Why.
        because: InBecause,
    },
    /// Left alone.
    Out {
        /// Why.
        because: OutBecause,
    },
}

impl Decision {
    /// Whether the pod is captured.
    #[must_use]
    pub fn is_in(self) -> bool {
        matches!(self, Self::In { .. })
    }
}

/// Why a pod is enrolled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InBecause {
    /// Its own label.
    PodLabel,
    /// Its namespace's label.
    NamespaceLabel,
}

/// Why a pod is not enrolled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OutBecause {
    /// It shares its node's network.
    HostNetwork,
    /// It has a sidecar.
    Sidecar,
    /// Its namespace is excluded.
    ExcludedNamespace,
    /// Its own label says `none`.
    PodLabel,
    /// Neither it nor its namespace asks for it.
    NotLabelled,
}

/// Whether a pod is enrolled. What is never enrolled comes first, then the pod's label, then the namespace's.
#[must_use]
pub fn enrolled(pod: &PodFacts<'_>, namespace: &NamespaceFacts<'_>, mesh: &MeshFacts) -> Decision {
    let out = |because| Decision::Out { because };
    if pod.host_network {
        return out(OutBecause::HostNetwork);
    }
    if pod.has_sidecar {
        return out(OutBecause::Sidecar);
    }
    if mesh.excluded_namespaces.contains(namespace.name) {
        return out(OutBecause::ExcludedNamespace);
    }
    match (pod.dataplane_mode, namespace.dataplane_mode) {
        (Some("ambient"), _) => Decision::In {
            because: InBecause::PodLabel,
        },
        (Some("none"), _) => out(OutBecause::PodLabel),
        // Any other value on the pod does not opt out.
        (_, Some("ambient")) => Decision::In {
            because: InBecause::NamespaceLabel,
        },
        _ => out(OutBecause::NotLabelled),
    }
}

/// How a pod is reached, and whether it speaks HBONE itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tunnel {
    /// The protocol.
    pub protocol: TunnelProtocol,
    /// Nothing is tunnelled on its behalf.
    pub native: bool,
}

/// How a pod is reached. `derived` says that its node captures what is enrolled, without a word per pod.
#[must_use]
pub fn tunnel(pod: &PodFacts<'_>, decision: Decision, derived: bool) -> Tunnel {
    let native = pod.tunnel == Some("http");
    let captured = pod.redirection == Some("enabled") || (decision.is_in() && derived);
    let protocol = if native || captured {
        TunnelProtocol::Hbone
    } else {
        TunnelProtocol::None
    };
    Tunnel { protocol, native }
}
