//! What of a namespace the translation of its objects reads. Who begins to read more adds it here.

use tulle_model::enrolment::DATAPLANE_MODE_LABEL;

use super::mesh::NETWORK_LABEL;
use super::{service, waypoint};
use crate::api::Meta;
use crate::api::gateway::NamespaceSelector;

/// Whether its objects come out alike in both forms of a namespace, whatever waypoints select namespaces by.
#[must_use]
pub fn says_the_same(old: &Meta, new: &Meta) -> bool {
    let labels = waypoint::INHERITED_LABELS.iter().chain(&[DATAPLANE_MODE_LABEL]);
    let annotations = [waypoint::CANARY_WEIGHT, service::TRAFFIC_DISTRIBUTION];
    labels.into_iter().all(|name| old.label(name) == new.label(name))
        && annotations
            .iter()
            .all(|name| old.annotation(name) == new.annotation(name))
}

/// Whether a waypoint that selects namespaces like this judges both forms alike.
#[must_use]
pub fn is_judged_alike(old: &Meta, new: &Meta, selector: &NamespaceSelector) -> bool {
    selector.matches(&old.labels) == selector.matches(&new.labels)
}

/// Whether a root namespace means the same network in both forms: that is the network of all that names none.
#[must_use]
pub fn is_of_the_same_network(old: &Meta, new: &Meta) -> bool {
    old.label(NETWORK_LABEL) == new.label(NETWORK_LABEL)
}
