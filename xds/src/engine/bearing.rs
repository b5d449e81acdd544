//! Which pods tokens can be bound to, told by the pods themselves.

use tulle_k8s::Object;
use tulle_k8s::translate::workload::is_over;
use tulle_model::Str;

use crate::snapshot::bearers::Moves;
use crate::snapshot::{Bearer, Bearers};

/// Who came and went since that was last published.
#[derive(Debug, Default)]
pub(super) struct Bearing {
    moves: Moves,
}

impl Bearing {
    /// Takes the change of an object.
    pub(super) fn change(&mut self, old: Option<&Object>, new: Option<&Object>) {
        let (old, new) = (old.and_then(bearer), new.and_then(bearer));
        if old != new {
            old.iter().for_each(|(old, _)| self.moves.went(old));
            new.into_iter()
                .for_each(|(new, node)| self.moves.came(&new, node));
        }
    }

    /// Brings what is published up to date.
    pub(super) fn publish(&mut self, bearers: &mut Bearers) {
        bearers.change(std::mem::take(&mut self.moves));
    }
}

/// The pod that tokens can be bound to: one that has not ended, and that an API server told from all others. With its node,
/// which is empty until it has one.
fn bearer(object: &Object) -> Option<(Bearer, Str)> {
    let Object::Pod(pod) = object else { return None };
    let (meta, account) = (&pod.metadata, &pod.spec.service_account_name);
    let account = match account.is_empty() {
        true => "default".into(),
        false => account.clone(),
    };
    let is_there = !is_over(pod) && !meta.uid.is_empty();
    is_there.then(|| {
        let bearer = Bearer {
            namespace: meta.namespace.clone(),
            account,
            pod: meta.name.clone(),
            uid: meta.uid.clone(),
        };
        (bearer, pod.spec.node_name.clone())
    })
}
