//! Who takes part in a request, in the labels that Istio's dashboards know. What is not known is `unknown`.

use std::fmt;
use std::sync::{Arc, LazyLock};

use prometheus_client::encoding::{EncodeLabel, LabelSetEncoder};
use tulle_model::service::Service;
use tulle_model::workload::Workload;
use tulle_model::{Identity, Str};
use tulle_runtime::metrics::Label;
use xxhash_rust::xxh3::Xxh3;

/// What stands for what is not known.
pub const UNKNOWN: &str = "unknown";

/// One end of a request. Made once per tunnel or endpoint, and shared by its requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Party {
    /// Name of the owner.
    pub workload: Str,
    /// Namespace.
    pub namespace: Str,
    /// Identity that a handshake proved.
    pub principal: Str,
    /// Cluster.
    pub cluster: Str,
    /// Canonical service.
    pub service: Str,
    /// Canonical revision.
    pub revision: Str,
    /// The control plane described it: there are as many of these as there are workloads.
    pub described: bool,
    id: u128,
}

static NOBODY: LazyLock<Arc<Party>> = LazyLock::new(|| Arc::new(Party::new(None, None)));
static NOTHING: LazyLock<Arc<ServiceLabels>> = LazyLock::new(|| Arc::new(ServiceLabels::new(None)));
static OTHER: LazyLock<Arc<Party>> = LazyLock::new(|| {
    let other: Str = "other".into();
    let mut party = Party::new(None, None);
    for label in [
        &mut party.workload,
        &mut party.namespace,
        &mut party.principal,
        &mut party.cluster,
        &mut party.service,
        &mut party.revision,
    ] {
        *label = Str::clone(&other);
    }
    party.described = true;
    Arc::new(party.identified())
});

impl Party {
    /// A workload, if the control plane describes it, and the identity that was proven.
    #[must_use]
    pub fn new(workload: Option<&Workload>, principal: Option<&Identity>) -> Self {
        let unknown = || Str::from(UNKNOWN);
        let known = |text: &Str| if text.is_empty() { unknown() } else { text.clone() };
        let of =
            |pick: fn(&Workload) -> &Str| workload.map_or_else(unknown, |workload| known(pick(workload)));
        let namespace = match (workload, principal) {
            (None, Some(identity)) => identity.namespace.clone(),
            _ => of(|workload| &workload.namespace),
        };
        let party = Self {
            workload: of(|workload| &workload.workload_name),
            namespace,
            principal: principal.map_or_else(unknown, |identity| identity.to_string().into()),
            cluster: of(|workload| &workload.cluster_id),
            service: of(|workload| &workload.canonical_name),
            revision: of(|workload| &workload.canonical_revision),
            described: workload.is_some(),
            id: 0,
        };
        party.identified()
    }

    /// Nobody that is known.
    #[must_use]
    pub fn nobody() -> Arc<Self> {
        Arc::clone(&NOBODY)
    }

    /// What stands for those that are too many.
    #[must_use]
    pub(super) fn other() -> Arc<Self> {
        Arc::clone(&OTHER)
    }

    /// The same for the same labels, and for no others.
    #[must_use]
    pub(super) fn id(&self) -> u128 {
        self.id
    }

    fn identified(mut self) -> Self {
        self.id = hash(&[
            &self.workload,
            &self.namespace,
            &self.principal,
            &self.cluster,
            &self.service,
            &self.revision,
        ]);
        self
    }

    /// Writes the labels, each with this prefix.
    pub(super) fn encode(&self, prefix: Prefix, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let [
            workload,
            service,
            revision,
            namespace,
            principal,
            app,
            version,
            cluster,
        ] = prefix.names();
        for (name, value) in [
            (workload, &self.workload),
            (service, &self.service),
            (revision, &self.revision),
            (namespace, &self.namespace),
            (principal, &self.principal),
            (app, &self.service),
            (version, &self.revision),
            (cluster, &self.cluster),
        ] {
            (name, &**value).encode(encoder.encode_label())?;
        }
        Ok(())
    }
}

/// Which end a party is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Prefix {
    Source,
    Destination,
}

impl Prefix {
    /// The labels of a party at this end.
    pub(super) const fn labels(self) -> [Label; 8] {
        let names = self.names();
        let mut labels = [Label::new(""); 8];
        let mut index = 0;
        while index < names.len() {
            labels[index] = Label::new(names[index]);
            index += 1;
        }
        labels
    }

    const fn names(self) -> [&'static str; 8] {
        match self {
            Self::Source => [
                "source_workload",
                "source_canonical_service",
                "source_canonical_revision",
                "source_workload_namespace",
                "source_principal",
                "source_app",
                "source_version",
                "source_cluster",
            ],
            Self::Destination => [
                "destination_workload",
                "destination_canonical_service",
                "destination_canonical_revision",
                "destination_workload_namespace",
                "destination_principal",
                "destination_app",
                "destination_version",
                "destination_cluster",
            ],
        }
    }
}

/// The service that a request was for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceLabels {
    /// Host name.
    pub host: Str,
    /// Short name.
    pub name: Str,
    /// Namespace.
    pub namespace: Str,
    id: u128,
}

impl ServiceLabels {
    /// The labels of a service, or of none.
    #[must_use]
    pub fn new(service: Option<&Service>) -> Self {
        let of = |pick: fn(&Service) -> &Str| service.map_or_else(|| UNKNOWN.into(), |one| pick(one).clone());
        let (host, name) = (of(|one| &one.hostname), of(|one| &one.name));
        let namespace = of(|one| &one.namespace);
        Self {
            id: hash(&[&host, &name, &namespace]),
            host,
            name,
            namespace,
        }
    }

    /// Of what is no service, or is not known yet.
    #[must_use]
    pub fn nothing() -> Arc<Self> {
        Arc::clone(&NOTHING)
    }

    pub(super) fn id(&self) -> u128 {
        self.id
    }

    pub(super) fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        ("destination_service", &*self.host).encode(encoder.encode_label())?;
        ("destination_service_name", &*self.name).encode(encoder.encode_label())?;
        ("destination_service_namespace", &*self.namespace).encode(encoder.encode_label())
    }
}

fn hash(texts: &[&str]) -> u128 {
    let mut hasher = Xxh3::new();
    for text in texts {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    }
    hasher.digest128()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tulle_model::testing::workload;

    #[test]
    fn parties_with_the_same_labels_are_the_same() {
        let web = workload("web").build();
        let identity = web.identity();
        let id = |workload, principal| Party::new(workload, principal).id();
        assert_eq!(id(Some(&web), Some(&identity)), id(Some(&web), Some(&identity)));
        assert_ne!(id(Some(&web), Some(&identity)), id(Some(&web), None));
        assert_ne!(id(Some(&web), None), id(None, None));
    }

    #[test]
    fn who_is_not_described_is_known_by_its_namespace_only() {
        let identity = Identity::new("cluster.local", "shop", "web");
        let party = Party::new(None, Some(&identity));
        assert_eq!(
            (&*party.namespace, &*party.workload, party.described),
            ("shop", UNKNOWN, false)
        );
    }
}
