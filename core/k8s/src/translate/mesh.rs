//! What holds for the mesh as a whole.

use tulle_model::Str;
use tulle_model::enrolment::MeshFacts;

use crate::api::Namespace;
use crate::api::security::MtlsMode;

/// Label that puts something into a network.
pub(super) const NETWORK_LABEL: &str = "topology.istio.io/network";

/// Settings of the mesh that translation depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshConfig {
    /// First part of every workload's uid.
    pub cluster_id: Str,
    /// Trust domain of every identity that is issued.
    pub trust_domain: Str,
    /// Other trust domains that mean ours in policies.
    pub trust_domain_aliases: Vec<Str>,
    /// Last part of the host names of services.
    pub domain: Str,
    /// Namespace whose policies hold for the whole mesh.
    pub root_namespace: Str,
    /// Network of what names none.
    pub network: Str,
    /// What holds where no peer authentication says otherwise; unset counts as permissive.
    pub mtls_mode: MtlsMode,
    /// What of the mesh decides enrolment.
    pub enrolment: MeshFacts,
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self {
            cluster_id: "Kubernetes".into(),
            trust_domain: tulle_model::identity::DEFAULT_TRUST_DOMAIN.into(),
            trust_domain_aliases: Vec::new(),
            domain: "cluster.local".into(),
            root_namespace: "istio-system".into(),
            network: "".into(),
            mtls_mode: MtlsMode::Permissive,
            enrolment: MeshFacts::new("istio-system"),
        }
    }
}

impl MeshConfig {
    /// The network of what names none, given the root namespace's object.
    #[must_use]
    pub fn default_network(&self, root: Option<&Namespace>) -> Str {
        let label = root.and_then(|root| root.metadata.labels.get(NETWORK_LABEL));
        label.unwrap_or(&self.network).clone()
    }
}
